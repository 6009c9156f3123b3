"""SS-IL: separated softmax and ratio-preserving mini-batches (section 5, Algorithm 1)."""

from ssil_jax.losses import separated_softmax_cross_entropy
from ssil_jax.methods.base import Method, one_phase
from ssil_jax.sampling import RATIO_PRESERVING


def _loss(outputs, labels, classes):
  return separated_softmax_cross_entropy(
    outputs.logits, labels, classes.num_old, classes.num_seen
  )


SSIL = Method(
  title="SS-IL",
  defaults={"epochs": 20},
  phases=lambda config, t: one_phase(config, t, RATIO_PRESERVING),
  loss=_loss,
)
