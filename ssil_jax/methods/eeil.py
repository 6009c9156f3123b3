"""EEIL: end-to-end incremental learning, with balanced fine-tuning.

F. Castro, M. Marin-Jimenez, N. Guil, C. Schmid and K. Alahari, *End-to-End Incremental
Learning*, ECCV 2018, arXiv:1807.09536. The loss is a cross-entropy over all classes seen
plus, for the classes of each earlier state, the cross-entropy with the teacher's softened
outputs (equations 1 to 3, T = 2). After that, balanced fine-tuning on as many images of
each new class as there are exemplars of an old one, at a tenth of the learning rate: there
the teacher is the network as the first phase left it, which knows the new classes, too.

The first state's 60 epochs are those of the authors' ImageNet runs; its rate drops where
that of later states does. Left out are the paper's gradient noise and its twelvefold
augmentation (brightness, contrast, crops, mirrors): all methods here see the same images.
FACIL differs: in the balanced phase it draws new images at random from all classes
together and keeps the old teacher, and the first phase does not distil the classes of the
last state.
"""

import dataclasses

from ssil_jax.losses import task_wise_cross_entropy
from ssil_jax.methods.base import (
  Distillation,
  Method,
  drops_at,
  one_phase,
  with_distillation,
)
from ssil_jax.methods.ft import softmax_loss
from ssil_jax.sampling import BALANCED, SHUFFLED
from ssil_jax.settings import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Distillation):
  """EEIL's own."""

  eeil_epochs: int = setting(
    30, "epochs of balanced fine-tuning", at_least=1, changes="later_states"
  )


def _phases(config, t):
  (unbalanced,) = one_phase(config, t, SHUFFLED)
  if t == 1:
    return (unbalanced,)
  epochs = config.method_settings.eeil_epochs
  balanced = unbalanced._replace(
    sampling=BALANCED,
    epochs=epochs,
    learning_rate=unbalanced.learning_rate / 10,
    milestones=tuple(sorted({epochs // 3, 2 * epochs // 3} - {0})),
    new_teacher=True,
  )
  return (unbalanced, balanced)


EEIL = Method(
  title="EEIL",
  phases=_phases,
  loss=with_distillation(softmax_loss, task_wise_cross_entropy),
  defaults={
    "epochs_first": 60,
    "epochs": 40,
    **drops_at("1/4", "1/2", "3/4"),
    "learning_rate_by_state": "constant",
    "selection": "herding",
  },
  settings=Settings,
  has_teacher=True,
)
