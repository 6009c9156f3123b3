"""BiC: bias correction, a line that maps the new classes' scores.

Y. Wu et al., *Large Scale Incremental Learning*, CVPR 2019, arXiv:1905.13260. Stage one
trains with lambda L_d + (1 - lambda) L_c, lambda = old / seen classes (equation 1), without
a tenth of the exemplars and as many images of each new class. Stage two fits
q_k = alpha o_k + beta for the new classes k to these by the cross-entropy over all classes
seen (equations 4 and 5), the network fixed. The next state's teacher is the corrected one.
Of every class, however small, one image at least is trained on.

Stage two has two unknowns and is convex, so that it is solved to the end here
(`methods.correction`), with alpha of 0 or more; the authors take 200 epochs of SGD, and add
0.1 beta^2 / 2 to the loss, which is kept. Where very few images are held out and one score
tells old from new among them, the best alpha may be very large. As with the authors, a
correction serves until the next one; FACIL and PyCIL keep those of all states, for the
student in training, too, and PyCIL takes a softmax of a softmax. The authors' weight decay
is larger in early states.

The authors choose exemplars by herding and images to hold out at random. Here exemplars are
random, too, and the first of them are those held out, so that images of the second state
on are not trained on before they serve to fit; those of the first state are, in that state,
and so are some where all old classes were smaller than their share of the memory. With
`--selection=herding`, so are most others, in the state that brings them.
"""

import dataclasses

from ssil_jax.methods.base import (
  Distillation,
  Method,
  all_logits,
  one_phase,
  softmax_in_first_state,
)
from ssil_jax.methods.correction import (
  CORRECTED,
  correct,
  fit_correction,
  line_statistics,
)
from ssil_jax.methods.wa import LARGE_SCALE, weighted_distillation
from ssil_jax.sampling import held_out, without_held_out
from ssil_jax.settings import setting

_OFFSET_PENALTY = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Distillation):
  """BiC's own."""

  bic_held_out: float = setting(
    0.1,
    "share of the exemplars that is kept from training to fit the correction",
    above=0,
    below=1,
    changes="later_states",
  )


@softmax_in_first_state
def _loss(examples, config):
  teacher_logits = correct(examples.teacher.logits, examples.context.stats)
  return weighted_distillation(examples, teacher_logits, config)


def _stats(state, config):
  records = held_out(state.pool, config.method_settings.bic_held_out)
  num_classes = len(state.stats["alpha"])
  if not len(records):
    return line_statistics(num_classes)
  alpha, beta = fit_correction(
    state.extract(records, all_logits)[:, : state.num_seen],
    state.labels[records],
    state.num_old,
    offset_penalty=_OFFSET_PENALTY,
  )
  new = slice(state.num_old, state.num_seen)
  return line_statistics(num_classes, new=new, alpha=alpha, beta=beta)


BIC = Method(
  title="BiC",
  phases=lambda config, t: one_phase(
    config, t, without_held_out(config.method_settings.bic_held_out)
  ),
  loss=_loss,
  defaults=LARGE_SCALE,
  settings=Settings,
  has_teacher=True,
  stats=_stats,
  **CORRECTED,
)
