"""Defines the quadratic penalty on parameters that move, which EWC, SI and RWalk share.

strength * sum_i importance_i (theta_i - anchor_i)^2. Which parameters are important, and
where the anchor is, are the method's statistics after each state.

Without exemplars, as their papers have it, training is on new images alone, with a softmax
over the state's own classes. So the head's columns of old classes have no gradient, as if
each state had a head of its own: what the network knows of a state shows where its classes
compete among themselves (`state_specific_top1`), and class-incremental accuracy is low, as
it is in the literature. With `--replay`, the exemplars are trained on as in FT, with one
softmax over all classes seen.

What differs from the papers, for all three:
- The step that the penalty makes is a proximal one (`training.step`): stable for any
  strength and learning rate, where a gradient step diverges if rate * strength * importance
  is large. Both come to rest in the same place.
- The penalty is on all parameters, BatchNorm's scales and offsets and the head's columns,
  too. The running means and variances of BatchNorm are no parameters, and follow the newest
  images.
"""

import dataclasses

import jax
import numpy as np

from ssil_jax.losses import interval_cross_entropy
from ssil_jax.methods.base import (
  Elastic,
  one_phase,
  softmax_in_first_state,
  zero_in_first_state,
)
from ssil_jax.sampling import NEW_ONLY, SHUFFLED
from ssil_jax.settings import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Penalized:
  """The own settings of a method with a penalty on parameters."""

  penalty_strength: float = setting(
    1.0, "weight of the penalty on parameters that move", at_least=0, changes="later_states"
  )
  replay: bool = setting(
    False,
    "train on the exemplars, too, with one softmax over all classes seen; else on new "
    "images alone, with a softmax over the new classes",
    changes="later_states",
  )


def phases(config, t):
  """Returns a state in one phase, on new images, with exemplars if they are replayed."""
  return one_phase(config, t, SHUFFLED if config.method_settings.replay else NEW_ONLY)


def cross_entropy(logits, labels, classes, config):
  """Returns it among the new classes, or among all seen with `--replay`; float32 [B].

  Args:
    logits: float [B, C].
    labels: int32 [B], of new classes without `--replay`.
    classes: `SeenClasses`.
    config: of the run.
  """
  first = 0 if config.method_settings.replay else classes.num_old
  return interval_cross_entropy(logits, labels, first, classes.num_seen)


@softmax_in_first_state
def loss(examples, config):
  """Returns the cross-entropy of each image, float32 [B]."""
  return cross_entropy(
    examples.outputs.logits, examples.labels, examples.context.classes, config
  )


@zero_in_first_state
def elastic(context, config):
  """Returns the penalty as an `Elastic`, whose stiffness is 2 strength * importance."""
  strength, stats = config.method_settings.penalty_strength, context.stats
  stiffness = jax.tree.map(lambda weight: 2 * strength * weight, stats["importance"])
  return Elastic(stiffness, stats["anchor"])


def zeros_like(tree):
  """Returns a tree of zeros of the same shapes; host arrays."""
  return jax.tree.map(np.zeros_like, tree)


def init_stats(sizes):
  """Returns no importance, and the first parameters as the anchor; trees like these."""
  return {"importance": zeros_like(sizes.params), "anchor": sizes.params}


PENALIZED = {
  "phases": phases,
  "loss": loss,
  "elastic": elastic,
  "init_stats": init_stats,
  "fewest_new": lambda config: 1 if config.method_settings.replay else 2,
}
