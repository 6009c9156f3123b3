"""The paper's definitions as plain loops over one sample, or one class, at a time.

Slow and literal on purpose, and without anything of ssil_jax: the tests compare the
package with these. `scores` and `logits` are lists of rows, one number per class.
"""

import numpy as np

# The exemplar memory.


def ring_quota(memory_size, num_seen):
  """The largest number of exemplars that every class seen can have within |M|."""
  each = 0
  while (each + 1) * num_seen <= memory_size:
    each += 1
  return each


def ring_buffer(memory_size, states):
  """Class -> records held after the last state.

  Args:
    memory_size: |M|.
    states: for each state a list of (record, class), the dearest exemplars first.
  """
  buffers = {}
  for state in states:
    for record, label in state:
      buffers.setdefault(label, []).append(record)
    each = ring_quota(memory_size, len(buffers))
    for label in buffers:
      while len(buffers[label]) > each:
        buffers[label].pop()
  return buffers


# Evaluation.


def best_class(row, candidates):
  best = None
  for c in candidates:
    if best is None or row[c] > row[best]:
      best = c
  return best


def top1(scores, labels):
  """Share of samples whose class has the highest score."""
  correct = 0
  for row, label in zip(scores, labels, strict=True):
    if best_class(row, range(len(row))) == label:
      correct += 1
  return correct / len(labels)


def top1_by_state(scores, labels, state_of_class, num_states):
  """Share of right samples among those of each state; None where there are none."""
  shares = []
  for state in range(num_states):
    right, samples = 0, 0
    for row, label in zip(scores, labels, strict=True):
      if state_of_class[label] == state:
        samples += 1
        if best_class(row, range(len(row))) == label:
          right += 1
    shares.append(right / samples if samples else None)
  return shares


def top1_by_class(predicted, labels, num_seen):
  """Share of right samples among those of each class; None where there are none."""
  shares = []
  for c in range(num_seen):
    of_class = [p == c for p, label in zip(predicted, labels, strict=True) if label == c]
    shares.append(sum(of_class) / len(of_class) if of_class else None)
  return shares


def class_confusion(predicted, labels):
  """[true, predicted, samples] of each pair that there is."""
  pairs = list(zip(labels.tolist(), predicted.tolist(), strict=True))
  return [[*pair, pairs.count(pair)] for pair in sorted(set(pairs))]


def calibration_error(confidence, right, num_bins):
  """Guo et al. (2017), eq. 3: bins of equal width, open below, closed above."""
  error = 0
  for m in range(1, num_bins + 1):
    of_bin = [
      (c, r)
      for c, r in zip(confidence.tolist(), right, strict=True)
      if (m - 1) / num_bins < c <= m / num_bins or (c == 0 and m == 1)
    ]
    if of_bin:
      accuracy = sum(r for _, r in of_bin) / len(of_bin)
      mean = sum(c for c, _ in of_bin) / len(of_bin)
      error += len(of_bin) / len(right) * abs(accuracy - mean)
  return error


def forgetting(accuracy):
  """Chaudhry et al. (2018): f_j = max over l < T of a[l][j], less a[T][j]; their mean."""
  last, drops = len(accuracy) - 1, []
  for j in range(last):
    earlier = [accuracy[t][j] for t in range(j, last)]
    earlier = [a for a in earlier if a is not None]
    if earlier and accuracy[last][j] is not None:
      drops.append(max(earlier) - accuracy[last][j])
  return sum(drops) / len(drops) if drops else None


def backward_transfer(accuracy):
  """Lopez-Paz & Ranzato (2017): the mean of a[T][j] - a[j][j]."""
  last, gains = len(accuracy) - 1, []
  for j in range(last):
    if accuracy[last][j] is not None and accuracy[j][j] is not None:
      gains.append(accuracy[last][j] - accuracy[j][j])
  return sum(gains) / len(gains) if gains else None


def avalanche_stream_forgetting(accuracy):
  """What avalanche 0.6.0 calls StreamForgetting, after the last experience.

  Evaluated after each experience is trained, it keeps the accuracy of that one as the
  initial one and that of every other as its last, and averages initial less last over
  those that have both.
  """
  initial, last = {}, {}
  for trained, row in enumerate(accuracy):
    last = {}
    for experience, value in enumerate(row):
      if experience == trained:
        initial[experience] = value
      else:
        last[experience] = value
  drops = [initial[e] - last[e] for e in last if e in initial]
  return sum(drops) / len(drops) if drops else 0.0


def top5(scores, labels):
  """Share of samples whose class is among the five with the highest scores."""
  correct = 0
  for row, label in zip(scores, labels, strict=True):
    left = list(range(len(row)))
    for _ in range(min(5, len(row))):
      best = best_class(row, left)
      left.remove(best)
      if best == label:
        correct += 1
  return correct / len(labels)


def error_old_as_new(scores, labels, num_old):
  """e(p, n): share of the samples of old classes that are predicted as a new one."""
  wrong, samples = 0, 0
  for row, label in zip(scores, labels, strict=True):
    if label < num_old:
      samples += 1
      if best_class(row, range(len(row))) >= num_old:
        wrong += 1
  return wrong / samples


def error_new_as_old(scores, labels, num_old):
  """e(n, p): share of the samples of new classes that are predicted as an old one."""
  wrong, samples = 0, 0
  for row, label in zip(scores, labels, strict=True):
    if label >= num_old:
      samples += 1
      if best_class(row, range(len(row))) < num_old:
        wrong += 1
  return wrong / samples


def imbalance(scores, labels, num_old):
  """(e(p, n) + e(n, p)) / 2."""
  old_as_new = error_old_as_new(scores, labels, num_old)
  return (old_as_new + error_new_as_old(scores, labels, num_old)) / 2


def state_specific_top1(scores, labels, state_of_class):
  """Mean over the states of the accuracy when only that state's classes compete."""
  accuracies = []
  for state in sorted(set(state_of_class)):
    classes = [c for c in range(len(state_of_class)) if state_of_class[c] == state]
    correct, samples = 0, 0
    for row, label in zip(scores, labels, strict=True):
      if label in classes:
        samples += 1
        if best_class(row, classes) == label:
          correct += 1
    if samples:
      accuracies.append(correct / samples)
  return sum(accuracies) / len(accuracies)


def mean_score(logits, low, high):
  """Mean network output of the classes low, ..., high - 1 over all samples."""
  total, terms = 0.0, 0
  for row in logits:
    for c in range(low, high):
      total += float(row[c])
      terms += 1
  return total / terms


def state_confusion(scores, labels, state_of_class, num_states):
  """Samples by state of the true class (row) and of the predicted class (column)."""
  table = np.zeros((num_states, num_states), int)
  for row, label in zip(scores, labels, strict=True):
    predicted = best_class(row, range(len(row)))
    table[state_of_class[label], state_of_class[predicted]] += 1
  return table


# The losses.


def softmax_cross_entropy(scores, label, classes):
  """-log of the softmax of one sample's label among some classes, in float64."""
  largest = max(float(scores[j]) for j in classes)
  total = 0.0
  for j in classes:
    total += np.exp(float(scores[j]) - largest)
  return np.log(total) + largest - float(scores[label])


def softmax_cross_entropy_gradient(scores, label, classes):
  """Equation (2): p_j - 1{j = y} for the classes that compete, 0 for all others."""
  largest = max(float(scores[j]) for j in classes)
  total = 0.0
  for j in classes:
    total += np.exp(float(scores[j]) - largest)
  gradient = [0.0] * len(scores)
  for j in classes:
    gradient[j] = np.exp(float(scores[j]) - largest) / total - (1.0 if j == label else 0.0)
  return gradient


def own_group(label, num_old, num_seen):
  """Equation (3): P_t for a sample of an old class, N_t for one of a new class."""
  return range(num_old) if label < num_old else range(num_old, num_seen)
