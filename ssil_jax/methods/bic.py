"""BiC: bias correction, a line that maps the new classes' scores.

Y. Wu et al., *Large Scale Incremental Learning*, CVPR 2019, arXiv:1905.13260. Stage one
trains with lambda L_d + (1 - lambda) L_c, lambda = old / seen classes (equation 1), without
a tenth of the exemplars and as many images of each new class. Stage two fits
q_k = alpha o_k + beta for the new classes k to these by the cross-entropy over all classes
seen (equations 4 and 5), the network fixed. The next state's teacher is the corrected one.
Of every class, however small, one image at least is trained on.

Stage two has two unknowns and is convex, so that it is solved to the end here, with alpha
of 0 or more; the authors take 200 epochs of SGD, and add 0.1 beta^2 / 2 to the loss, which
is kept. Where very few images are held out and one score tells old from new among them,
the best alpha may be very large. As with the authors, a correction serves until the next
one; FACIL and PyCIL keep those of all states, for the student in training, too, and PyCIL
takes a softmax of a softmax. The authors' weight decay is larger in early states.

The authors choose exemplars by herding and images to hold out at random. Here exemplars are
random, too, and the first of them are those held out, so that images of the second state
on are not trained on before they serve to fit; those of the first state are, in that state,
and so are some where all old classes were smaller than their share of the memory. With
`--selection=herding`, so are most others, in the state that brings them.
"""

import dataclasses

import numpy as np
import scipy.optimize
import scipy.special

from ssil_jax.methods.base import (
  Distillation,
  Method,
  all_logits,
  mask_unseen,
  one_phase,
  softmax_in_first_state,
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


def correct(logits, stats):
  """Returns alpha o_k + beta, [B, C]: alpha 1 and beta 0 for all but the newest classes."""
  return logits * stats["alpha"][None, :] + stats["beta"][None, :]


def fit_correction(logits, labels, num_old):
  """Fits the alpha, 0 or more, and beta of lowest cross-entropy.

  Args:
    logits: float [n, seen classes], of held-out images.
    labels: int [n].
    num_old: classes whose logits stay as they are.
  """
  logits = logits.astype(np.float64)
  rows = np.arange(len(labels))
  new = np.arange(logits.shape[1]) >= num_old

  def loss_and_gradient(pair):
    alpha, beta = pair
    corrected = np.where(new, alpha * logits + beta, logits)
    log_p = scipy.special.log_softmax(corrected, axis=1)
    error = np.exp(log_p)
    error[rows, labels] -= 1
    error[:, ~new] = 0
    loss = -log_p[rows, labels].mean() + _OFFSET_PENALTY * beta**2 / 2
    by_alpha = (error * logits).sum(axis=1).mean()
    by_beta = error.sum(axis=1).mean() + _OFFSET_PENALTY * beta
    return loss, np.array([by_alpha, by_beta])

  found = scipy.optimize.minimize(
    loss_and_gradient,
    np.array([1.0, 0.0]),
    jac=True,
    method="L-BFGS-B",
    bounds=[(0, None), (None, None)],
    options={"ftol": 1e-12, "gtol": 1e-9},
  )
  return tuple(found.x)


@softmax_in_first_state
def _loss(examples, config):
  teacher_logits = correct(examples.teacher.logits, examples.context.stats)
  return weighted_distillation(examples, teacher_logits, config)


def _stats(state, config):
  stats = _init_stats(len(state.stats["alpha"]))
  records = held_out(state.pool, config.method_settings.bic_held_out)
  if not len(records):
    return stats
  logits = state.extract(records, all_logits)[:, : state.num_seen]
  alpha, beta = fit_correction(logits, state.labels[records], state.num_old)
  stats["alpha"][state.num_old : state.num_seen] = alpha
  stats["beta"][state.num_old : state.num_seen] = beta
  return stats


def _init_stats(num_classes):
  return {
    "alpha": np.ones(num_classes, np.float32),
    "beta": np.zeros(num_classes, np.float32),
  }


def _predict(outputs, context, config):
  corrected = correct(outputs.logits, context.stats)
  return mask_unseen(outputs._replace(logits=corrected), context, config)


BIC = Method(
  title="BiC",
  phases=lambda config, t: one_phase(
    config, t, without_held_out(config.method_settings.bic_held_out)
  ),
  loss=_loss,
  defaults=LARGE_SCALE,
  settings=Settings,
  predict=_predict,
  prediction="scores: alpha * logits + beta; probabilities: the softmax of the scores",
  fold=lambda head, stats: {
    "kernel": head["kernel"] * stats["alpha"],
    "bias": head["bias"] * stats["alpha"] + stats["beta"],
  },
  has_teacher=True,
  init_stats=lambda sizes: _init_stats(sizes.num_classes),
  stats=_stats,
  describe=lambda state, config: {
    name: float(values[state.num_seen - 1]) for name, values in state.stats.items()
  },
)
