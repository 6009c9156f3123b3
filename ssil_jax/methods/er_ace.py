"""ER-ACE: experience replay with an asymmetric cross-entropy.

L. Caccia, R. Aljundi, N. Asadi, T. Tuytelaars, J. Pineau and E. Belilovsky, *New Insights
on Reducing Abrupt Representation Change in Online Continual Learning*, ICLR 2022,
arXiv:2104.05025. The loss is L_ce(X_bf; C_old + C_curr) + L_ce(X_in; C_curr): a replayed
sample's softmax runs over all classes seen, a new one's over the classes of the incoming
batch only; each part is a mean over its own samples.

The paper passes over the data once and fills its memory by reservoir sampling; here a
batch is a ratio-preserving one, and epochs, learning rates and exemplars are those of
SS-IL, whose separated softmax blocks new samples' gradients the same way but confines
replayed ones, too. The authors' code also lets new samples compete with classes that no
one has seen; here such classes do not exist before their state.
"""

import jax.numpy as jnp

from ssil_jax.losses import masked_cross_entropy
from ssil_jax.methods.base import Method, one_phase
from ssil_jax.sampling import RATIO_PRESERVING


def _asymmetric_cross_entropy(examples, config):
  logits, labels, counts = examples.outputs.logits, examples.labels, examples.class_counts
  classes = examples.context.classes
  index = jnp.arange(logits.shape[-1])
  is_old, is_replayed = index < classes.num_old, labels < classes.num_old
  incoming = ~is_old & (counts > 0)
  mask = jnp.where(
    is_replayed[:, None], index[None, :] < classes.num_seen, incoming[None, :]
  )
  num_replayed, num_incoming = jnp.sum(counts, where=is_old), jnp.sum(counts, where=~is_old)
  # The loop takes the mean over all samples of the batch, each part over its own.
  part = jnp.where(is_replayed, num_replayed, num_incoming)
  return masked_cross_entropy(logits, labels, mask) * jnp.sum(counts) / part


ER_ACE = Method(
  title="ER-ACE",
  phases=lambda config, t: one_phase(config, t, RATIO_PRESERVING),
  loss=_asymmetric_cross_entropy,
  defaults={"epochs": 20},
  fewest_new=lambda config: 2,
)
