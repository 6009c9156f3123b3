"""FT: vanilla fine-tuning on new data and exemplars together (section 6.2)."""

from ssil_jax.losses import seen_softmax_cross_entropy
from ssil_jax.methods.base import Method, one_phase
from ssil_jax.sampling import SHUFFLED


def _loss(outputs, labels, classes):
  return seen_softmax_cross_entropy(outputs.logits, labels, classes.num_seen)


FT = Method(
  title="FT",
  defaults={"epochs": 25},
  phases=lambda config, t: one_phase(config, t, SHUFFLED),
  loss=_loss,
)
