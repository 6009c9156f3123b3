"""Evaluation: exact counts on the device, the paper's scores from them on the host.

A device counts its share of a test batch (`count`), the counts of all batches are added
up in 64 bits (`add`), and `summarize` makes accuracies and error ratios of the sums. So
batch size and device count cannot change an accuracy or error ratio. What is told of single
classes, and calibration, is worked out on the host (`summarize_classes`) from what a device
says of each image (`predictions`). docs/measures.md has all definitions.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

TOP_K = 5
CALIBRATION_BINS = 15  # of equal width, as by Guo et al. (2017)


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


class Predictions(NamedTuple):
  """Holds what is predicted for each image of a batch."""

  classes: jax.Array  # int32 [B], of the largest score
  right: jax.Array  # bool [B], that is the true one
  confidence: jax.Array  # float32 [B], its probability


def predictions(
  scores: jax.Array, probabilities: jax.Array, labels: jax.Array
) -> Predictions:
  """Returns the prediction for each image; scores and labels as in `count`.

  Args:
    scores: float [B, C].
    probabilities: float [B, C], the method's, of the same classes.
    labels: int [B].
  """
  classes = jnp.argmax(scores, axis=-1)

  def of(values, chosen):
    return jnp.take_along_axis(values, chosen[:, None], axis=-1)[:, 0]

  return Predictions(
    classes=classes.astype(jnp.int32),
    right=(classes == labels) & ~jnp.isnan(of(scores, labels)),  # as in `count`
    confidence=of(probabilities, classes).astype(jnp.float32),
  )


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
      state_specific_top1_by_state: the same of each state's images, a list of t; None of a
        state without test images.
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
  top1_by_state, state_specific = (
    [_ratio(*of_state) for of_state in zip(right[:state], images_by_state, strict=True)]
    for right in (counts.top1, counts.state_specific)
  )
  return {
    "top1": _ratio(counts.top1.sum(), images),
    "top5": _ratio(counts.top5.sum(), images),
    "error_old_as_new": error_old_as_new,
    "error_new_as_old": error_new_as_old,
    "imbalance": _mean([error_old_as_new, error_new_as_old]) if new else None,
    "state_specific_top1": _mean([share for share in state_specific if share is not None]),
    "state_specific_top1_by_state": state_specific,
    "score_old": _ratio(counts.score_old.sum(), images) if old else None,
    "score_new": _ratio(counts.score_new.sum(), images),
    "top1_by_state": top1_by_state,
    "confusion": confusion.tolist(),
  }


def summarize_classes(
  predicted: Predictions, labels: np.ndarray, *, num_seen: int
) -> dict[str, Any]:
  """Returns what the predictions for a whole test set say of single classes.

  Args:
    predicted: for each image, host arrays.
    labels: int [N], of the same images.
    num_seen: classes seen.

  Returns:
      top1_by_class: share of each class's images that are predicted right, a list of
        num_seen; None of a class without images.
      ece: `calibration_error` of the predictions.
      class_confusion: [true class, predicted class, images], sorted, without those of no
        image.
  """
  images = np.bincount(labels, minlength=num_seen)
  right = np.bincount(labels[predicted.right], minlength=num_seen)
  pairs, counts = np.unique(
    np.stack([labels, predicted.classes], axis=1), axis=0, return_counts=True
  )
  return {
    "top1_by_class": [_ratio(*of_class) for of_class in zip(right, images, strict=True)],
    "ece": calibration_error(predicted.confidence, predicted.right),
    "class_confusion": np.column_stack([pairs, counts]).tolist(),
  }


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float | None:
  """Returns the expected calibration error, from 0 to 1 (Guo et al. 2017, ECE).

  Bin m of M = `CALIBRATION_BINS` has the images with confidence in ((m - 1) / M, m / M]; 0
  is in the first one.

  Args:
    confidence: float [N], the probability of each predicted class.
    right: bool [N], whether that is the true one.

  Returns:
    The mean, over all images, of |accuracy - mean confidence| of an image's bin; None
    without images, and if a confidence is not finite.
  """
  if not len(confidence) or not np.isfinite(confidence).all():
    return None
  confidence = confidence.astype(np.float64)  # in which its product with M is exact
  bins = np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1
  bins = np.clip(bins, 0, CALIBRATION_BINS - 1)
  gaps = np.bincount(bins, weights=right) - np.bincount(bins, weights=confidence)
  return float(np.abs(gaps).sum() / len(confidence))


def average(states: Sequence[dict[str, Any]]) -> dict[str, float | None]:
  """Returns what results.json has of the finished states together.

  Args:
    states: their rows of results.json, in their order.

  Returns:
    Means over the states in which they are defined: top1, top5, imbalance, ece; and
    `forgetting` and `backward_transfer` of the accuracies `top1_by_state`. None of what has
    nothing to be averaged, and of what an earlier version did not measure in some state.
  """
  accuracy = [state.get("top1_by_state") for state in states]
  is_known = None not in accuracy
  return {
    **{
      name: _mean([state[name] for state in states if state[name] is not None])
      if all(name in state for state in states)
      else None
      for name in ("top1", "top5", "imbalance", "ece")
    },
    "forgetting": forgetting(accuracy) if is_known else None,
    "backward_transfer": backward_transfer(accuracy) if is_known else None,
  }


def forgetting(accuracy: Sequence[Sequence[float | None]]) -> float | None:
  """Returns the average forgetting after the last state (Chaudhry et al. 2018, F).

  Args:
    accuracy: accuracy[t][j] is that on the classes of state j after state t >= j, both from
      0; None of a state without test images.

  Returns:
    The mean over the states before the last one of the best accuracy on a state's classes
    before the last state, less that after it; None if there is no such state.
  """
  drops = []
  for j, last in enumerate(accuracy[-1][:-1] if accuracy else ()):
    before = [row[j] for row in accuracy[j:-1] if row[j] is not None]
    if before and last is not None:
      drops.append(max(before) - last)
  return _mean(drops)


def backward_transfer(accuracy: Sequence[Sequence[float | None]]) -> float | None:
  """Returns the backward transfer (Lopez-Paz & Ranzato 2017, BWT); see `forgetting`.

  It is the mean over the states before the last one of the accuracy on a state's classes
  after the last state, less that right after their own.
  """
  return _mean(
    [
      last - accuracy[j][j]
      for j, last in enumerate(accuracy[-1][:-1] if accuracy else ())
      if last is not None and accuracy[j][j] is not None
    ]
  )


def _mean(values: list[float]) -> float | None:
  return float(np.mean(values)) if values else None


def _ratio(part, whole) -> float | None:
  return float(part / whole) if whole else None
