"""Evaluation: exact counts on the device, the paper's scores from them on the host.

A device counts its share of a test batch (`count`), the counts of all batches are added
up in 64 bits (`add`), and `summarize` makes accuracies and error ratios of the sums. So
batch size and device count cannot change an accuracy or error ratio.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

TOP_K = 5


class Counts(NamedTuple):
  """Sums over test images; row s is for images whose class was new in state s (from 0)."""

  confusion: jax.Array  # int [T, T], column: the state of the predicted class
  top1: jax.Array  # int [T], predicted class is the true one
  top5: jax.Array  # int [T], true class is among the five best
  state_specific: jax.Array  # int [T], best class of the true class's state is the true one
  score_old: jax.Array  # float [T], mean logit of the old classes, summed over images
  score_new: jax.Array  # float [T], the same for the new classes


def count(
  scores: jax.Array,
  logits: jax.Array,
  labels: jax.Array,
  valid: jax.Array,
  *,
  num_old: jax.Array,
  num_seen: jax.Array,
  state_of_class: jax.Array,
  num_states: int,
) -> Counts:
  """Counts one batch.

  Args:
    scores: float [B, C], the method's prediction; -inf for unseen classes.
    logits: float [B, C], the network's outputs, for the mean scores.
    labels: int [B].
    valid: bool [B], False for the padding that fills the last batch.
    num_old: classes of earlier states.
    num_seen: classes of earlier states and this one.
    state_of_class: int [C], the state (from 0) that introduced each class.
    num_states: T.
  """
  predicted = jnp.argmax(scores, axis=-1)
  label_state = state_of_class[labels]
  same_state = state_of_class[None, :] == label_state[:, None]
  best_of_state = jnp.argmax(jnp.where(same_state, scores, -jnp.inf), axis=-1)
  label_score = jnp.take_along_axis(scores, labels[:, None], axis=-1)
  # Written with "not <=" so that a NaN counts as better than the true class, not worse.
  better = jnp.sum(~(scores <= label_score), axis=-1)

  rows = jax.nn.one_hot(label_state, num_states, dtype=jnp.int32) * valid[:, None]
  # A class whose own score is NaN is not found, whatever argmax makes of it.
  hits = (rows * ~jnp.isnan(label_score)).T
  columns = jax.nn.one_hot(state_of_class[predicted], num_states, dtype=jnp.int32)
  classes = jnp.arange(logits.shape[-1])[None, :]
  return Counts(
    confusion=rows.T @ columns,
    top1=hits @ (predicted == labels).astype(jnp.int32),
    top5=hits @ (better < TOP_K).astype(jnp.int32),
    state_specific=hits @ (best_of_state == labels).astype(jnp.int32),
    score_old=_sum_by_state(rows, _mean_where(logits, classes < num_old)),
    score_new=_sum_by_state(
      rows, _mean_where(logits, (classes >= num_old) & (classes < num_seen))
    ),
  )


def _sum_by_state(rows: jax.Array, values: jax.Array) -> jax.Array:
  """Sums values [B] by state, [T]. Accelerators would round a plain product's inputs."""
  return jnp.matmul(rows.T.astype(values.dtype), values, precision="highest")


def _mean_where(logits: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns the mean over the classes of a mask [1, C], [B]; 0 where it is empty."""
  total = jnp.sum(jnp.where(mask, logits, 0.0), axis=-1)
  return total / jnp.maximum(jnp.sum(mask), 1)


def add(batches: list[Counts]) -> Counts:
  """Adds up host copies of the counts, in int64 and float64."""

  def total(*arrays):
    wide = np.int64 if np.issubdtype(arrays[0].dtype, np.integer) else np.float64
    return np.sum(np.stack(arrays), axis=0, dtype=wide)

  return jax.tree.map(total, *batches)


def summarize(counts: Counts, *, state: int) -> dict[str, Any]:
  """Returns the scores of state t from the counts over its whole test set.

  Args:
    counts: sums over the test images of all classes seen.
    state: t, from 1.

  Returns:
    Fractions; None where there is nothing to divide by (no old classes in state 1):
      top1, top5: share of images whose class is the best, among the five best. With five
        classes seen or fewer, top5 is 1 by definition.
      error_old_as_new: e_t(p, n), share of old-class images predicted as a new class.
      error_new_as_old: e_t(n, p), the other way round.
      imbalance: the mean of the two (section 6.3).
      state_specific_top1: accuracy when only the classes of the true class's state
        compete, averaged over the states (figure 1, top).
      score_old, score_new: mean network output of old and new classes over all images
        (figure 6, center).
      top1_by_state: accuracy on the images of each state's classes, a list of t; None of a
        state without test images.
      confusion: images by state of the true and of the predicted class, t x t.
  """
  confusion = counts.confusion[:state, :state]
  images_by_state = confusion.sum(axis=1)
  images, old = images_by_state.sum(), images_by_state[:-1].sum()
  error_old_as_new = _ratio(confusion[:-1, -1].sum(), old)
  new = images_by_state[-1] if old else 0
  error_new_as_old = _ratio(confusion[-1, :-1].sum(), new)
  with_images = images_by_state > 0
  top1_by_state = [
    _ratio(right, count)
    for right, count in zip(counts.top1[:state], images_by_state, strict=True)
  ]
  state_specific = counts.state_specific[:state][with_images] / images_by_state[with_images]
  return {
    "top1": _ratio(counts.top1.sum(), images),
    "top5": _ratio(counts.top5.sum(), images),
    "error_old_as_new": error_old_as_new,
    "error_new_as_old": error_new_as_old,
    "imbalance": _mean([error_old_as_new, error_new_as_old]) if new else None,
    "state_specific_top1": _mean(state_specific.tolist()),
    "score_old": _ratio(counts.score_old.sum(), images) if old else None,
    "score_new": _ratio(counts.score_new.sum(), images),
    "top1_by_state": top1_by_state,
    "confusion": confusion.tolist(),
  }


def average(states: list[dict[str, Any]]) -> dict[str, float | None]:
  """Returns averages over the states done; imbalance over those with old classes."""
  return {
    name: _mean([state[name] for state in states if state[name] is not None])
    for name in ("top1", "top5", "imbalance")
  }


def _mean(values: list[float]) -> float | None:
  return float(np.mean(values)) if values else None


def _ratio(part, whole) -> float | None:
  return float(part / whole) if whole else None
