"""Softmax cross-entropies over an interval of the classes: one equation each.

The head has a column for every class there will ever be. Two integers say which columns
count: `[0, num_old)` are the old classes P_t, `[num_old, num_seen)` the new ones N_t, the
rest is unseen. Both may be traced, so one compiled program serves every state.
"""

import jax
import jax.numpy as jnp


def interval_mask(low: jax.Array, high: jax.Array, num_classes: int) -> jax.Array:
  """Which classes each example's softmax runs over.

  Args:
    low: int [B], the first class of the interval.
    high: int [B], one past its last class.
    num_classes: C.

  Returns:
    bool [B, C], True where `low <= class < high`.
  """
  classes = jnp.arange(num_classes)[None, :]
  return (classes >= low[:, None]) & (classes < high[:, None])


def masked_logsumexp(logits: jax.Array, mask: jax.Array) -> jax.Array:
  """log sum_j exp(s_j) over the classes of a mask.

  Args:
    logits: [B, C]; computed in float32 whatever the type.
    mask: bool [B, C], at least one True in every row.

  Returns:
    float32 [B]. Finite for any finite logits, and its gradient by a masked-out logit is
    exactly 0.
  """
  return jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1, where=mask)


def interval_cross_entropy(
  logits: jax.Array, labels: jax.Array, low: jax.Array, high: jax.Array
) -> jax.Array:
  """-log(exp(s_y) / sum_{low <= j < high} exp(s_j)) for each example.

  Args:
    logits: [B, C].
    labels: int [B], `low <= labels < high`.
    low: int [B].
    high: int [B].

  Returns:
    float32 [B].
  """
  mask = interval_mask(low, high, logits.shape[-1])
  label_logits = jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
  return masked_logsumexp(logits, mask) - label_logits.astype(jnp.float32)


def separated_softmax_cross_entropy(
  logits: jax.Array,
  labels: jax.Array,
  num_old: jax.Array | int,
  num_seen: jax.Array | int,
) -> jax.Array:
  """Separated softmax: a sample's softmax runs over its own group of classes only.

  Equation (3) of the SS-IL paper. The gradient by the scores of the other group is exactly
  0: new samples do not push the scores of old classes down, nor the other way round.
  Without old classes (`num_old` 0) it is the plain softmax over the seen classes.

  Args:
    logits: [B, C], scores of all classes.
    labels: int [B], all below `num_seen`.
    num_old: classes of earlier states.
    num_seen: classes of earlier states and this one.

  Returns:
    float32 [B], one loss per example.
  """
  is_old = labels < num_old
  low = jnp.where(is_old, 0, num_old)
  high = jnp.where(is_old, num_old, num_seen)
  return interval_cross_entropy(logits, labels, low, high)


def seen_softmax_cross_entropy(
  logits: jax.Array, labels: jax.Array, num_seen: jax.Array | int
) -> jax.Array:
  """The ordinary softmax over all classes seen so far, as in fine-tuning.

  Its gradient by score j is p_j - 1{j = y}, equation (2) of the SS-IL paper, and exactly 0
  for unseen classes.

  Args:
    logits: [B, C], scores of all classes.
    labels: int [B], all below `num_seen`.
    num_seen: classes of earlier states and this one.

  Returns:
    float32 [B], one loss per example.
  """
  low = jnp.zeros_like(labels)
  return interval_cross_entropy(logits, labels, low, jnp.full_like(labels, num_seen))
