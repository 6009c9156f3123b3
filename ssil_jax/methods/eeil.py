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

In the SS-IL authors' released code, of which published figures come, distillation is T^2
times as strong, and in the balanced phase it is of the new classes alone:
`--eeil_distillation=released`.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ssil_jax.losses import task_wise_cross_entropy, task_wise_distillation
from ssil_jax.methods.base import (
  Distillation,
  Method,
  drops_at,
  one_phase,
  softmax_in_first_state,
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
  eeil_distillation: str = setting(
    "paper",
    "paper: of all classes of the teacher, in both phases; released, as in the SS-IL "
    "authors' code: T^2 times as strong, in the balanced phase of the new classes alone",
    choices=("paper", "released"),
    changes="later_states",
  )


_loss_of_paper = with_distillation(softmax_loss, task_wise_cross_entropy)


@softmax_in_first_state
def _loss(examples, config):
  own = config.method_settings
  if own.eeil_distillation == "paper":
    return _loss_of_paper(examples, config)
  classes, logits = examples.context.classes, examples.outputs.logits
  teacher_logits = jax.lax.stop_gradient(examples.teacher.logits)
  # The teacher of the balanced phase knows the new classes. Scores that are the teacher's
  # have no distance to it.
  is_balanced = classes.num_teacher_classes > classes.num_old
  counts = ~is_balanced | (jnp.arange(logits.shape[-1])[None, :] >= classes.num_old)
  return softmax_loss(examples, config) + task_wise_distillation(
    jnp.where(counts, logits, teacher_logits),
    teacher_logits,
    examples.state_of_class,
    classes.num_teacher_classes,
    temperature=own.temperature,
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
  loss=_loss,
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
