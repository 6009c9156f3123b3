"""IL2M, iCaRL's classifier, LUCIR, ER-ACE and DER++ as loops in float64.

From the papers' equations, one sample and one class at a time, without anything of
ssil_jax. `logits`, `scores` and `features` are lists of rows.
"""

import math

import numpy as np
from reference import softmax_cross_entropy


def numeric_gradient(function, x, *, step=1e-5):
  """Central differences of a function of one float64 array."""
  x = np.array(x, np.float64)
  gradient = np.zeros_like(x)
  for place in np.ndindex(*x.shape):
    up, down = x.copy(), x.copy()
    up[place] += step
    down[place] -= step
    gradient[place] = (function(up) - function(down)) / (2 * step)
  return gradient


def length(vector):
  return math.sqrt(sum(float(v) * float(v) for v in vector))


def normalized(vector):
  size = length(vector)
  return [float(v) / size if size > 0 else 0.0 for v in vector]


def cosine(a, b):
  return sum(x * y for x, y in zip(normalized(a), normalized(b), strict=True))


def softmax_rows(logits, num_seen):
  """The probabilities of the classes seen; rows of length num_seen."""
  rows = []
  for row in logits:
    largest = max(float(row[c]) for c in range(num_seen))
    powers = [math.exp(float(row[c]) - largest) for c in range(num_seen)]
    rows.append([p / sum(powers) for p in powers])
  return rows


def logit_rows(logits, num_seen):
  return [[float(row[c]) for c in range(num_seen)] for row in logits]


# IL2M. `scores` have a number for each class seen.


def mean_own_score(scores, labels, label):
  """mu(c): the mean score of a class over its own images."""
  total, images = 0.0, 0
  for row, own in zip(scores, labels, strict=True):
    if own == label:
      total += row[label]
      images += 1
  return total / images


def mean_top_score(scores):
  """conf(M): the mean of the best score of each image."""
  total = 0.0
  for row in scores:
    total += max(row)
  return total / len(scores)


def il2m_row(row, num_old, then, conf_then, now, conf_now):
  """Equation 1; the statistics of class c are then[c], conf_then[c] and now[c]."""
  best = 0
  for c in range(len(row)):
    if row[c] > row[best]:
      best = c
  rectified = list(row)
  if best >= num_old:
    for c in range(num_old):
      rectified[c] = row[c] * (then[c] / now[c]) * (conf_now / conf_then[c])
  return rectified


# iCaRL, algorithm 1.


def exemplar_mean(features, labels, label):
  """The mean of a class's normalized features, normalized."""
  total = [0.0] * len(features[0])
  exemplars = 0
  for feature, own in zip(features, labels, strict=True):
    if own == label:
      total = [t + f for t, f in zip(total, normalized(feature), strict=True)]
      exemplars += 1
  return normalized([t / exemplars for t in total])


def squared_distance(a, b):
  return sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True))


def nearest_mean(feature, means):
  """argmin_c of |phi(x) - mu_c|."""
  best = 0
  for c in range(len(means)):
    if squared_distance(normalized(feature), means[c]) < squared_distance(
      normalized(feature), means[best]
    ):
      best = c
  return best


def softened(row, classes, temperature):
  powers = {c: math.exp(float(row[c]) / temperature) for c in classes}
  return {c: p / sum(powers.values()) for c, p in powers.items()}


def task_wise_kl(row, teacher_row, states, temperature):
  """T^2 sum over the old states, given as ranges of classes, of KL(teacher || network)."""
  total = 0.0
  for classes in states:
    p, q = softened(row, classes, temperature), softened(teacher_row, classes, temperature)
    for c in classes:
      total += q[c] * math.log(q[c] / p[c])
  return temperature**2 * total


# LUCIR.


def less_forget(feature, teacher_feature):
  """Equation 6."""
  return 1 - cosine(teacher_feature, feature)


def margin_ranking(cosines, label, num_old, num_seen, margin, num_negatives):
  """Equation 8 of one exemplar: the K new classes with the largest cosines."""
  left = list(range(num_old, num_seen))
  total = 0.0
  for _ in range(num_negatives):
    if left:
      hardest = left[0]
      for c in left:
        if cosines[c] > cosines[hardest]:
          hardest = c
      left.remove(hardest)
      total += max(0.0, margin - float(cosines[label]) + float(cosines[hardest]))
  return total


def lucir(
  cosines, scale, features, teacher_features, labels, num_old, num_seen, base, margin, k
):
  """Equation 9: a mean over the batch, and one over its exemplars."""
  of_all, of_exemplars, exemplars = 0.0, 0.0, 0
  for i, label in enumerate(labels):
    logits = [scale * float(c) for c in cosines[i]]
    of_all += softmax_cross_entropy(logits, label, range(num_seen))
    if num_old:
      weight = base * math.sqrt((num_seen - num_old) / num_old)
      of_all += weight * less_forget(features[i], teacher_features[i])
    if label < num_old:
      of_exemplars += margin_ranking(cosines[i], label, num_old, num_seen, margin, k)
      exemplars += 1
  loss = of_all / len(labels)
  return loss + of_exemplars / exemplars if exemplars else loss


# ER-ACE.


def er_ace(logits, labels, num_old, num_seen):
  """L_ce(X_bf; C_old + C_curr) + L_ce(X_in; C_curr), each a mean over its samples."""
  incoming, replayed, current = [], [], []
  for i, label in enumerate(labels):
    if label < num_old:
      replayed.append(i)
    else:
      incoming.append(i)
      if label not in current:
        current.append(label)
  loss = 0.0
  for i in replayed:
    loss += softmax_cross_entropy(logits[i], labels[i], range(num_seen)) / len(replayed)
  for i in incoming:
    loss += softmax_cross_entropy(logits[i], labels[i], current) / len(incoming)
  return loss


# DER++.


def der(new, first, second, num_seen, alpha, beta):
  """Equation 6, with a mean over classes as the squared distance.

  Args:
    new: list of (row of logits, label).
    first: list of (row of logits, stored row, classes known when it was stored).
    second: list of (row of logits, label).
    num_seen: classes seen.
    alpha: weight of the first draw.
    beta: weight of the second.
  """
  loss = 0.0
  for row, label in new:
    loss += softmax_cross_entropy(row, label, range(num_seen)) / len(new)
  for row, stored, known in first:
    total = 0.0
    for c in range(known):
      total += (float(stored[c]) - float(row[c])) ** 2
    loss += alpha * total / known / len(first)
  for row, label in second:
    loss += beta * softmax_cross_entropy(row, label, range(num_seen)) / len(second)
  return loss
