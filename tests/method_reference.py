"""The methods' equations as plain loops over one sample at a time, in float64.

Slow and literal on purpose, and without anything of ssil_jax: the tests compare the
package with these. `scores` and `teacher` are rows, one number per class; `groups` are
lists of classes, one for each state.
"""

import numpy as np

# Distillation and softmax losses.


def log_softmax(scores, classes):
  """Class -> log(exp(s_c) / sum_j exp(s_j)), with j running over some classes."""
  largest = max(float(scores[j]) for j in classes)
  total = 0.0
  for j in classes:
    total += np.exp(float(scores[j]) - largest)
  return {c: float(scores[c]) - largest - np.log(total) for c in classes}


def cross_entropy(scores, label, classes):
  """-log p_y, with p the softmax over some classes."""
  return -log_softmax(scores, classes)[label]


def softened(scores, temperature):
  return [float(s) / temperature for s in scores]


def softened_cross_entropy(scores, teacher, classes, temperature):
  """-sum_k q_k log p_k over some classes, q of the teacher and p of the student at T."""
  log_p = log_softmax(softened(scores, temperature), classes)
  log_q = log_softmax(softened(teacher, temperature), classes)
  total = 0.0
  for k in classes:
    total -= np.exp(log_q[k]) * log_p[k]
  return total


def softened_divergence(scores, teacher, classes, temperature):
  """sum_k q_k log(q_k / p_k) over some classes."""
  log_p = log_softmax(softened(scores, temperature), classes)
  log_q = log_softmax(softened(teacher, temperature), classes)
  total = 0.0
  for k in classes:
    total += np.exp(log_q[k]) * (log_q[k] - log_p[k])
  return total


def taught_groups(groups, num_teacher_classes):
  """The groups of which the teacher knows the classes: all or none of each."""
  return [group for group in groups if max(group) < num_teacher_classes]


def task_wise_cross_entropy(scores, teacher, groups, num_teacher_classes, temperature):
  """LwF, equations 2 and 3; EEIL, equation 3: a softmax for each state apart."""
  total = 0.0
  for group in taught_groups(groups, num_teacher_classes):
    total += softened_cross_entropy(scores, teacher, group, temperature)
  return total


def task_wise_distillation(scores, teacher, groups, num_teacher_classes, temperature):
  """TKD: T^2 sum_s KL(q || p)."""
  total = 0.0
  for group in taught_groups(groups, num_teacher_classes):
    total += temperature**2 * softened_divergence(scores, teacher, group, temperature)
  return total


def softmax(scores, label, num_seen):
  """FT, equation 2 of SS-IL."""
  return cross_entropy(scores, label, range(num_seen))


def separated_softmax(scores, label, num_old, num_seen):
  """SS-IL, equation 3: an old sample among P_t, a new one among N_t."""
  if label < num_old:
    return cross_entropy(scores, label, range(num_old))
  return cross_entropy(scores, label, range(num_old, num_seen))


# Each method's loss: (scores, teacher, label, num_old, num_seen, num_teacher_classes,
# groups, temperature) -> a number.


def _ssil(
  scores, teacher, label, num_old, num_seen, num_teacher_classes, groups, temperature
):
  return separated_softmax(scores, label, num_old, num_seen)


def _ft(
  scores, teacher, label, num_old, num_seen, num_teacher_classes, groups, temperature
):
  return softmax(scores, label, num_seen)


def _ssil_tkd(
  scores, teacher, label, num_old, num_seen, num_teacher_classes, groups, temperature
):
  distilled = task_wise_distillation(
    scores, teacher, groups, num_teacher_classes, temperature
  )
  return separated_softmax(scores, label, num_old, num_seen) + distilled


def _icarl(
  scores, teacher, label, num_old, num_seen, num_teacher_classes, groups, temperature
):
  distilled = task_wise_distillation(
    scores, teacher, groups, num_teacher_classes, temperature
  )
  return softmax(scores, label, num_seen) + distilled


def _lwf(
  scores, teacher, label, num_old, num_seen, num_teacher_classes, groups, temperature
):
  """L_new + L_old, of a sample of a new class."""
  new = cross_entropy(scores, label, range(num_old, num_seen))
  old = task_wise_cross_entropy(scores, teacher, groups, num_teacher_classes, temperature)
  return new + old


def _eeil(
  scores, teacher, label, num_old, num_seen, num_teacher_classes, groups, temperature
):
  distilled = task_wise_cross_entropy(
    scores, teacher, groups, num_teacher_classes, temperature
  )
  return softmax(scores, label, num_seen) + distilled


def _wa(
  scores, teacher, label, num_old, num_seen, num_teacher_classes, groups, temperature
):
  """(1 - lambda) L_CE + lambda L_KD, lambda = old / seen classes; BiC with its teacher."""
  if num_teacher_classes == 0:
    return softmax(scores, label, num_seen)
  share = num_old / num_seen
  distilled = softened_cross_entropy(scores, teacher, range(num_old), temperature)
  return (1 - share) * softmax(scores, label, num_seen) + share * distilled


LOSSES = {
  "ssil": _ssil,
  "ft": _ft,
  "ft_ss": _ssil,
  "ft_rp": _ft,
  "joint": _ft,
  "ssil_tkd": _ssil_tkd,
  "icarl": _icarl,
  "lwf": _lwf,
  "eeil": _eeil,
  "wa": _wa,
  "bic": _wa,
}


def numerical_gradient(function, point, step=1e-5):
  """Central differences of a function of a list of numbers."""
  gradient = []
  for j in range(len(point)):
    up, down = [float(x) for x in point], [float(x) for x in point]
    up[j] += step
    down[j] -= step
    gradient.append((function(up) - function(down)) / (2 * step))
  return gradient


# BiC's second stage, WA's alignment, herding.


def corrected(scores, classes, alpha, beta):
  """alpha o_k + beta for some classes k, the others as they are."""
  return [
    alpha * float(s) + beta if k in classes else float(s) for k, s in enumerate(scores)
  ]


def correction_loss(pair, logits, labels, num_old):
  """BiC, equation 5, a mean over the held-out images, plus the authors' 0.1 beta^2 / 2."""
  alpha, beta = pair
  total = 0.0
  for scores, label in zip(logits, labels, strict=True):
    num_seen = len(scores)
    scores = corrected(scores, range(num_old, num_seen), alpha, beta)
    total += cross_entropy(scores, label, range(num_seen))
  return total / len(labels) + 0.1 * beta**2 / 2


def length(vector):
  total = 0.0
  for x in vector:
    total += float(x) ** 2
  return total**0.5


def alignment_factor(kernel, num_old, num_seen):
  """WA: gamma, the mean length of the old classes' weights over that of the new ones."""
  old, new = 0.0, 0.0
  for c in range(num_old):
    old += length(kernel[:, c]) / num_old
  for c in range(num_old, num_seen):
    new += length(kernel[:, c]) / (num_seen - num_old)
  return old / new


def herding(features, count):
  """iCaRL, algorithm 4: places in the order of choice.

  p_k = argmin_x || mu - (phi(x) + sum_{j<k} phi(p_j)) / k ||; the first of equals.
  """
  features = [[float(x) for x in row] for row in features]
  n, d = len(features), len(features[0])
  mean = [sum(row[i] for row in features) / n for i in range(d)]
  chosen = []
  for k in range(1, min(count, n) + 1):
    best, best_distance = None, None
    for x in range(n):
      if x in chosen:
        continue
      difference = []
      for i in range(d):
        total = features[x][i] + sum(features[p][i] for p in chosen)
        difference.append(mean[i] - total / k)
      distance = length(difference)
      if best is None or distance < best_distance:
        best, best_distance = x, distance
    chosen.append(best)
  return chosen
