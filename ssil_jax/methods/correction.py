"""Fits and applies a line that maps the newest classes' scores, the network fixed.

q_k = alpha o_k + beta for the new classes k, q_j = o_j for the old ones j: equation 4 of
BiC (`methods.bic`), which calibrated SS-IL (`methods.ssil_cal`) shares.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from ssil_jax.methods.base import mask_unseen


def correct(logits, stats):
  """Returns alpha o_k + beta, [B, C]: alpha 1 and beta 0 for all but the newest classes."""
  return logits * stats["alpha"][None, :] + stats["beta"][None, :]


def fit_correction(
  logits,
  labels,
  num_old,
  *,
  weights=None,
  offset_penalty=0.0,
  alpha_limits=(0.0, np.inf),
  beta_limits=(-np.inf, np.inf),
):
  """Fits the alpha and beta of lowest cross-entropy over all classes.

  The loss is convex in both. It is solved until a step lowers it by less than 1e-12, or
  its slope is below 1e-9. Where alpha and beta can make every image right by any margin,
  there is no lowest loss, and a limit, or these numbers, end the search.

  Args:
    logits: float [n, seen classes].
    labels: int [n].
    num_old: classes, one at least, whose logits stay as they are.
    weights: float [n], how much each image counts, with a sum of 1; None for the mean.
    offset_penalty: times beta^2 / 2, it is added to the loss.
    alpha_limits, beta_limits: the least and the largest value; equal ones fix it.

  Returns:
    alpha and beta, floats.
  """
  from scipy import optimize, special  # only now: they take a second to import

  weights = np.full(len(labels), 1 / len(labels)) if weights is None else weights
  # Of the old scores, only the log of their summed exponentials meets alpha and beta.
  old = special.logsumexp(logits[:, :num_old].astype(np.float64), axis=1)
  new = logits[:, num_old:].astype(np.float64)
  own_old = np.where(labels < num_old, logits[np.arange(len(labels)), labels], 0.0)
  is_own = np.arange(num_old, logits.shape[1]) == labels[:, None]

  def loss_and_gradient(pair):
    alpha, beta = pair
    corrected = alpha * new + beta
    log_sum = np.logaddexp(old, special.logsumexp(corrected, axis=1))
    own = own_old + np.where(is_own, corrected, 0.0).sum(axis=1)
    error = np.exp(corrected - log_sum[:, None]) - is_own
    loss = weights @ (log_sum - own) + offset_penalty * beta**2 / 2
    by_alpha = weights @ (error * new).sum(axis=1)
    by_beta = weights @ error.sum(axis=1) + offset_penalty * beta
    return loss, np.array([by_alpha, by_beta])

  limits = np.array([alpha_limits, beta_limits])
  found = optimize.minimize(
    loss_and_gradient,
    np.clip([1.0, 0.0], *limits.T),
    jac=True,
    method="L-BFGS-B",
    bounds=limits,
    options={"ftol": 1e-12, "gtol": 1e-9},
  )
  return tuple(map(float, found.x))


def line_statistics(num_classes, *, new=slice(0), alpha=1.0, beta=0.0):
  """Returns statistics of a line: alpha and beta for a slice of classes, 1 and 0 else."""
  stats = {
    "alpha": np.ones(num_classes, np.float32),
    "beta": np.zeros(num_classes, np.float32),
  }
  stats["alpha"][new], stats["beta"][new] = alpha, beta
  return stats


def _predict(outputs, context, config):
  corrected = correct(outputs.logits, context.stats)
  return mask_unseen(outputs._replace(logits=corrected), context, config)


# Fields of a `Method` that predicts by the line of its statistics.
CORRECTED: Mapping[str, Any] = MappingProxyType(
  {
    "predict": _predict,
    "prediction": (
      "scores: alpha * logits + beta; probabilities: the softmax of the scores"
    ),
    "fold": lambda head, stats: {
      "kernel": head["kernel"] * stats["alpha"],
      "bias": head["bias"] * stats["alpha"] + stats["beta"],
    },
    "init_stats": lambda sizes: line_statistics(sizes.num_classes),
    "describe": lambda state, config: {
      name: float(values[state.num_seen - 1]) for name, values in state.stats.items()
    },
  }
)
