"""FT: vanilla fine-tuning on new data and exemplars together (section 6.2)."""

from ssil_jax.losses import seen_softmax_cross_entropy
from ssil_jax.methods.base import Method, one_phase, softmax_in_first_state
from ssil_jax.sampling import SHUFFLED


@softmax_in_first_state
def softmax_loss(examples, config):
  """Returns the cross-entropy of the softmax over all classes seen, equation (2)."""
  return seen_softmax_cross_entropy(
    examples.outputs.logits, examples.labels, examples.context.classes.num_seen
  )


FT = Method(
  title="FT",
  phases=lambda config, t: one_phase(config, t, SHUFFLED),
  loss=softmax_loss,
  defaults={"epochs": 25},
)
