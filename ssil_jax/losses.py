"""Cross-entropies and distillation over intervals of the classes: one equation each.

The head has a column for every class there will ever be. Two integers say which columns
count: `[0, num_old)` are the old classes P_t, `[num_old, num_seen)` the new ones N_t, the
rest is unseen. Both may be traced, so one compiled program serves every state.
"""

import jax
import jax.numpy as jnp
import numpy as np


def masked_logsumexp(logits: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns log sum_j exp(s_j) over the classes of a mask; float32 [B].

  Finite for any finite logits; its gradient by a masked-out logit is exactly 0.

  Args:
    logits: [B, C]; computed in float32 whatever the type.
    mask: bool [B, C], at least one True in every row.
  """
  return jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1, where=mask)


def masked_cross_entropy(
  logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> jax.Array:
  """Returns -s_y + log sum_j exp(s_j), j over the classes of a mask; float32 [B].

  Args:
    logits: [B, C].
    labels: int [B].
    mask: bool [B, C], True for the label.
  """
  own = jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
  return masked_logsumexp(logits, mask) - own.astype(jnp.float32)


def interval_cross_entropy(
  logits: jax.Array, labels: jax.Array, low: jax.Array | int, high: jax.Array | int
) -> jax.Array:
  """Returns the cross-entropy among the classes `low <= j < high`; float32 [B].

  Args:
    logits: [B, C].
    labels: int [B], `low <= labels < high`.
    low: int [B], or one number for all examples.
    high: int [B], or one number.
  """
  low, high = (jnp.broadcast_to(end, labels.shape)[:, None] for end in (low, high))
  classes = jnp.arange(logits.shape[-1])[None, :]
  return masked_cross_entropy(logits, labels, (classes >= low) & (classes < high))


def separated_softmax_cross_entropy(
  logits: jax.Array,
  labels: jax.Array,
  num_old: jax.Array | int,
  num_seen: jax.Array | int,
) -> jax.Array:
  """Returns the separated softmax loss, each softmax over the sample's group; float32 [B].

  Equation (3) of the SS-IL paper. The gradient by the scores of the other group is exactly
  0: new samples do not push the scores of old classes down, nor the other way round.
  Without old classes (`num_old` 0) it is the plain softmax over the seen classes.

  Args:
    logits: [B, C], scores of all classes.
    labels: int [B], all below `num_seen`.
    num_old: classes of earlier states.
    num_seen: classes of earlier states and this one.
  """
  is_old = labels < num_old
  low = jnp.where(is_old, 0, num_old)
  high = jnp.where(is_old, num_old, num_seen)
  return interval_cross_entropy(logits, labels, low, high)


def seen_softmax_cross_entropy(
  logits: jax.Array, labels: jax.Array, num_seen: jax.Array | int
) -> jax.Array:
  """Returns the cross-entropy of one softmax over all classes seen, as in FT; float32 [B].

  Its gradient by score j is p_j - 1{j = y}, equation (2) of the SS-IL paper, and exactly 0
  for unseen classes.

  Args:
    logits: [B, C], scores of all classes.
    labels: int [B], all below `num_seen`.
    num_seen: classes of earlier states and this one.
  """
  return interval_cross_entropy(logits, labels, 0, num_seen)


def lone_class_cross_entropy(
  logits: jax.Array, labels: jax.Array, num_old: jax.Array | int
) -> jax.Array:
  """Returns the cross-entropy of "the one new class or any old one"; float32 [B].

  The separated softmax of a state with a single new class is 1 whatever the scores, and
  would teach it nothing. Here that class, y = `num_old`, competes with all old classes
  together, p = sigmoid(s_y - log sum_{j old} exp(s_j)), of which the old scores are
  constants: their gradient is exactly 0, as in equation (3) of the SS-IL paper, which does
  not speak of this case.

  Args:
    logits: [B, C], scores of all classes.
    labels: int [B], at most `num_old`.
    num_old: classes of earlier states; without any, the result means nothing.
  """
  classes = jnp.arange(logits.shape[-1])[None, :]
  # A softmax over no class at all would be NaN, and so would its gradient.
  is_old = (classes < num_old) | (jnp.asarray(num_old) == 0)
  old = jax.lax.stop_gradient(masked_logsumexp(logits, is_old))
  score = jnp.sum(jnp.where(classes == num_old, logits.astype(jnp.float32), 0), axis=-1)
  return jax.nn.softplus(jnp.where(labels < num_old, score - old, old - score))


def softened_cross_entropy(
  logits: jax.Array,
  teacher_logits: jax.Array,
  num_teacher_classes: jax.Array | int,
  *,
  temperature: float,
) -> jax.Array:
  """Returns -sum_k q_k log p_k, softmaxes over all the teacher's classes; float32 [B].

  Knowledge distillation as in BiC (section 3, L_d) and WA (L_KD), without the factor T^2 of
  Hinton et al. 2015. No gradient reaches the teacher's logits.

  Args:
    logits: [B, C], of the network in training.
    teacher_logits: [B, C].
    num_teacher_classes: how many classes, from 0 on, count; without any, the result is 0.
    temperature: T, by which both logits are divided.
  """
  taught = jnp.arange(logits.shape[-1])[None, :] < num_teacher_classes
  # A softmax over no class at all would be NaN, and so would its gradient.
  mask = taught | (jnp.asarray(num_teacher_classes) == 0)
  teacher_logits = jax.lax.stop_gradient(teacher_logits)
  log_p, log_q = (
    x.astype(jnp.float32) - masked_logsumexp(x, mask)[:, None]
    for x in (logits / temperature, teacher_logits / temperature)
  )
  # Masked before the product: of an untaught class, q may be infinite.
  return -jnp.sum(jnp.where(taught, jnp.exp(log_q), 0.0) * log_p, axis=-1)


def task_wise_cross_entropy(
  logits: jax.Array,
  teacher_logits: jax.Array,
  state_of_class: np.ndarray,
  num_teacher_classes: jax.Array | int,
  *,
  temperature: float,
) -> jax.Array:
  """Returns sum_s -sum_k q_k log p_k, softmaxes over state s alone; float32 [B].

  Distillation for each classification layer apart, as in LwF (equations 2 and 3) and EEIL
  (equation 3). No gradient reaches the teacher's logits.

  Args:
    logits: [B, C], of the network in training.
    teacher_logits: [B, C].
    state_of_class: int [C], which state (from 0) introduced each class; rising.
    num_teacher_classes: the states whose classes are below count; with 0, the result is 0.
    temperature: T, by which both logits are divided.
  """
  log_p, log_q, taught = _task_wise(
    logits, teacher_logits, state_of_class, num_teacher_classes, temperature
  )
  return -jnp.sum(jnp.exp(log_q) * log_p, axis=-1, where=taught)


def task_wise_distillation(
  logits: jax.Array,
  teacher_logits: jax.Array,
  state_of_class: np.ndarray,
  num_teacher_classes: jax.Array | int,
  *,
  temperature: float,
) -> jax.Array:
  """Returns T^2 sum_s KL(q || p), softmaxes over state s alone; float32 [B].

  TKD of SS-IL's conference version (ICCV 2021), arguments as for
  `task_wise_cross_entropy`. Its gradient is that of the cross-entropy times T^2.
  """
  log_p, log_q, taught = _task_wise(
    logits, teacher_logits, state_of_class, num_teacher_classes, temperature
  )
  divergence = jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1, where=taught)
  return temperature**2 * divergence


def _log_softmax_by_state(logits: jax.Array, state_of_class: np.ndarray) -> jax.Array:
  """Returns each class's log-probability among those of its own state, float32 [B, C]."""
  logits = logits.astype(jnp.float32).T  # classes first, for the sums over segments
  over = {
    "segment_ids": state_of_class,
    "num_segments": int(state_of_class.max()) + 1,
    "indices_are_sorted": True,
  }
  largest = jax.lax.stop_gradient(jax.ops.segment_max(logits, **over))
  shifted = logits - largest[state_of_class]
  total = jax.ops.segment_sum(jnp.exp(shifted), **over)
  return (shifted - jnp.log(total)[state_of_class]).T


def _task_wise(logits, teacher_logits, state_of_class, num_teacher_classes, temperature):
  """Returns float32 [B, C] log p and log q, and bool [1, C], the classes that count."""
  teacher_logits = jax.lax.stop_gradient(teacher_logits)
  log_p, log_q = (
    _log_softmax_by_state(x / temperature, state_of_class) for x in (logits, teacher_logits)
  )
  return log_p, log_q, jnp.arange(logits.shape[-1])[None, :] < num_teacher_classes
