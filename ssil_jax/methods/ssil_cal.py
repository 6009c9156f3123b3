"""SS-IL, calibrated: a line sets the new classes' scores against the old ones'.

Ours. The separated softmax (SS-IL, equation 3) leaves two numbers free: the offset and the
relative scale of the two groups' scores. Here they are fitted after each state, the
network fixed: q_k = alpha o_k + beta for the new classes k, with the alpha, 0 or more, and
beta of highest likelihood, by the softmax over all classes seen, for what the state was
trained on: its new images and the exemplars of the old classes, not augmented. Each class
counts the same, however many images it has. `--calibration=scale` keeps beta at 0,
`offset` keeps alpha at 1.

The line is that of the state itself. In the next state its classes are old ones, trained
in one softmax with all others by exemplars, so that scores within the group need no line.
The network is never changed and training does not see the line, so that an SS-IL run lends
all of its states (`--from_workdir`).

Unlike BiC, nothing is held out, nor is beta penalized. Exemplars and new images are fitted
better than test images are, exemplars most, which the line cannot know. Where a line tells
them apart without error, the likelihood grows without end: alpha stays below 100 and beta
within -1000 and 1000, and the search ends where it gains less than 1e-12. Without
exemplars, the scores stay as they are.
"""

import dataclasses

import numpy as np

from ssil_jax.methods.base import Distillation, all_logits
from ssil_jax.methods.correction import CORRECTED, fit_correction, line_statistics
from ssil_jax.methods.ssil import SSIL
from ssil_jax.methods.ssil_tkd import SSIL_TKD
from ssil_jax.settings import setting

_LARGEST_SCALE = 100.0
_LARGEST_OFFSET = 1000.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Calibrated SS-IL's own."""

  calibration: str = setting(
    "scale_and_offset",
    "what is fitted for the new scores: scale_and_offset, scale or offset",
    choices=("scale_and_offset", "scale", "offset"),
    changes="results",
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillingSettings(Settings, Distillation):
  """The own settings of the one that distils."""


def class_weights(labels):
  """Returns float64 [n] with a sum of 1: each class counts the same in all."""
  counts = np.bincount(labels)
  return 1 / (counts[labels] * np.count_nonzero(counts))


def _stats(state, config):
  num_classes = len(state.stats["alpha"])
  if not len(state.pool.memory):  # no old class, or no exemplar of any
    return line_statistics(num_classes)
  records = np.concatenate([state.pool.memory, state.pool.new])
  labels = state.labels[records]
  fitted = config.method_settings.calibration
  alpha, beta = fit_correction(
    state.extract(records, all_logits)[:, : state.num_seen],
    labels,
    state.num_old,
    weights=class_weights(labels),
    alpha_limits=(1.0, 1.0) if fitted == "offset" else (0.0, _LARGEST_SCALE),
    beta_limits=((0.0, 0.0) if fitted == "scale" else (-_LARGEST_OFFSET, _LARGEST_OFFSET)),
  )
  new = slice(state.num_old, state.num_seen)
  return line_statistics(num_classes, new=new, alpha=alpha, beta=beta)


SSIL_CAL = SSIL._replace(
  title="SS-IL, calibrated",
  settings=Settings,
  stats=_stats,
  trains_as="ssil",
  **CORRECTED,
)
SSIL_TKD_CAL = SSIL_TKD._replace(
  title="SS-IL + TKD, calibrated",
  settings=DistillingSettings,
  stats=_stats,
  trains_as="ssil_tkd",
  **CORRECTED,
)
