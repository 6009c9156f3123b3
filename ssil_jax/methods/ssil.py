"""SS-IL: separated softmax and ratio-preserving mini-batches (section 5, Algorithm 1)."""

from ssil_jax.losses import separated_softmax_cross_entropy
from ssil_jax.methods.base import Method, one_phase, softmax_in_first_state
from ssil_jax.sampling import RATIO_PRESERVING


@softmax_in_first_state
def separated_softmax_loss(examples, config):
  """Returns the separated softmax cross-entropy of equation (3)."""
  classes = examples.context.classes
  return separated_softmax_cross_entropy(
    examples.outputs.logits, examples.labels, classes.num_old, classes.num_seen
  )


SSIL = Method(
  title="SS-IL",
  phases=lambda config, t: one_phase(config, t, RATIO_PRESERVING),
  loss=separated_softmax_loss,
  defaults={"epochs": 20},
)
