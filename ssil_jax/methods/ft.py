"""FT: vanilla fine-tuning on new data and exemplars together (section 6.2)."""

from ssil_jax.losses import seen_softmax_cross_entropy
from ssil_jax.methods.base import Method, one_phase
from ssil_jax.sampling import SHUFFLED


def softmax_loss(examples, config):
  """The ordinary softmax over all classes seen, equation (2)."""
  del config
  return seen_softmax_cross_entropy(
    examples.outputs.logits, examples.labels, examples.given.classes.num_seen
  )


FT = Method(
  title="FT",
  phases=lambda config, t: one_phase(config, t, SHUFFLED),
  loss=softmax_loss,
  defaults={"epochs": 25},
)
