"""SS-IL: separated softmax and ratio-preserving mini-batches (section 5, Algorithm 1).

A state with a single new class, which the paper has not, has nothing to separate: see
`losses.lone_class_cross_entropy`.
"""

import jax.numpy as jnp

from ssil_jax.losses import lone_class_cross_entropy, separated_softmax_cross_entropy
from ssil_jax.methods.base import Method, one_phase, softmax_in_first_state
from ssil_jax.sampling import RATIO_PRESERVING


@softmax_in_first_state
def separated_softmax_loss(examples, config):
  """Returns the separated softmax cross-entropy of equation (3).

  Where one class alone is new, what tells it from the old ones is added.
  """
  classes, logits, labels = (
    examples.context.classes,
    examples.outputs.logits,
    examples.labels,
  )
  num_old, num_seen = classes.num_old, classes.num_seen
  is_lone = (num_old > 0) & (num_seen - num_old == 1)
  return separated_softmax_cross_entropy(logits, labels, num_old, num_seen) + jnp.where(
    is_lone, lone_class_cross_entropy(logits, labels, num_old), 0.0
  )


SSIL = Method(
  title="SS-IL",
  phases=lambda config, t: one_phase(config, t, RATIO_PRESERVING),
  loss=separated_softmax_loss,
  defaults={"epochs": 20},
)
