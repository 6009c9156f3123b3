"""The methods' equations as plain loops over one sample at a time, in float64.

Slow and literal on purpose, and without anything of ssil_jax: the tests compare the
package with these. `scores` and `teacher` are rows, one number per class; `groups` are
lists of classes, one for each state.
"""

import math
from typing import NamedTuple

import numpy as np
from reference import own_group, softmax_cross_entropy

# Distillation and softmax losses.


def log_softmax(scores, classes):
  """Class -> log(exp(s_c) / sum_j exp(s_j)), with j running over some classes."""
  largest = max((float(scores[j]) for j in classes), default=0.0)
  total = 0.0
  for j in classes:
    total += np.exp(float(scores[j]) - largest)
  return {c: float(scores[c]) - largest - np.log(total) for c in classes}


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


def task_wise_cross_entropy(scores, teacher, groups, num_teacher_classes, temperature):
  """LwF, equations 2 and 3; EEIL, equation 3: a softmax for each state apart."""
  total = 0.0
  for group in groups:
    if max(group) < num_teacher_classes:
      total += softened_cross_entropy(scores, teacher, group, temperature)
  return total


def task_wise_distillation(scores, teacher, groups, num_teacher_classes, temperature):
  """TKD: T^2 sum_s KL(q || p)."""
  total = 0.0
  for group in groups:
    if max(group) < num_teacher_classes:
      total += temperature**2 * softened_divergence(scores, teacher, group, temperature)
  return total


def log_sum(scores):
  """log of the sum of exp(s)."""
  largest = max(float(s) for s in scores)
  total = 0.0
  for s in scores:
    total += np.exp(float(s) - largest)
  return np.log(total) + largest


def lone_class(score, old_scores, *, is_new):
  """-log p of a new sample, -log(1 - p) of an old one, p = e^s / (e^s + sum_old e^s_j)."""
  both = log_sum([score, *old_scores])
  return both - float(score) if is_new else both - log_sum(old_scores)


# The methods' losses of a batch.


class Batch(NamedTuple):
  """Rows of samples, new ones first; then what was replayed, in one or two draws."""

  logits: list
  features: list
  scale: float  # of a cosine head
  teacher: list  # its logits
  teacher_features: list
  labels: list
  num_old: int
  num_seen: int
  num_teacher_classes: int
  groups: list
  num_new: int
  num_drawn: int
  stored: list  # DER++: logits of the samples as exemplars
  line: tuple  # BiC: first and last class, alpha and beta of the teacher's correction
  constant: list  # the logits again, where no gradient flows through them
  constant_scale: float
  stages: list  # PODNet: arrays [samples, h, w, c], the outputs of stages
  teacher_stages: list
  expert: list | None  # logits of a second teacher
  phase: int  # from 0
  class_images: list  # GD: images of each class seen that the phase trains on
  drawn_logits: list = ()  # of the feature that is drawn beside each sample
  drawn_labels: list = ()
  pixels: list = ()
  replayed: tuple = ()  # rows of generated images: pixels, logits, the teacher's logits
  generator: dict | None = None


def ft(batch, i, own=None):
  """Equation 2 of SS-IL."""
  return softmax_cross_entropy(batch.logits[i], batch.labels[i], range(batch.num_seen))


def ssil(batch, i, own):
  """Equation 3: an old sample among P_t, a new one among N_t.

  And the class that is new alone against the old ones, whose scores are constants.
  """
  label, num_old = batch.labels[i], batch.num_old
  group = own_group(label, num_old, batch.num_seen)
  loss = softmax_cross_entropy(batch.logits[i], label, group)
  if num_old and batch.num_seen == num_old + 1:
    old = batch.constant[i][:num_old]
    loss += lone_class(batch.logits[i][num_old], old, is_new=label == num_old)
  return loss


def lwf_new(batch, i, own):
  """Equation 1, of a sample of a new class."""
  new = range(batch.num_old, batch.num_seen)
  return softmax_cross_entropy(batch.logits[i], batch.labels[i], new)


def penalized(batch, i, own):
  """EWC and its kin, without the penalty: among the new classes, or all with replay."""
  return ft(batch, i) if own.replay else lwf_new(batch, i, own)


def replaying_features(batch, i, own):
  """The share of new classes times a sample's loss, and of old ones times the drawn one's.

  That is of a feature of an old class.
  """
  new = (batch.num_seen - batch.num_old) / batch.num_seen
  drawn = softmax_cross_entropy(
    batch.drawn_logits[i], batch.drawn_labels[i], range(batch.num_seen)
  )
  return new * ft(batch, i) + (1 - new) * drawn


def with_distillation(loss, distance):
  """A loss of a sample, and a distance to the teacher."""

  def total(batch, i, own):
    taught = batch.groups, batch.num_teacher_classes
    distilled = distance(batch.logits[i], batch.teacher[i], *taught, own.temperature)
    return loss(batch, i, own) + distilled

  return total


def wa(batch, i, own):
  """(1 - lambda) L_CE + lambda L_KD, lambda = old / seen classes."""
  if not batch.num_old:
    return ft(batch, i)
  share = batch.num_old / batch.num_seen
  distilled = softened_cross_entropy(
    batch.logits[i], batch.teacher[i], range(batch.num_old), own.temperature
  )
  return (1 - share) * ft(batch, i) + share * distilled


def bic(batch, i, own):
  """As WA, with the corrected teacher."""
  low, high, alpha, beta = batch.line
  teacher = [corrected(row, range(low, high), alpha, beta) for row in batch.teacher]
  return wa(batch._replace(teacher=teacher), i, own)


def eeil(batch, i, own):
  """The paper's; or, as released, T^2 as strong, and of the new classes in phase two."""
  if own.eeil_distillation == "paper":
    return with_distillation(ft, task_wise_cross_entropy)(batch, i, own)
  loss, temperature = ft(batch, i), own.temperature
  scores, teacher, known = batch.logits[i], batch.teacher[i], batch.num_teacher_classes
  if known > batch.num_old:
    new = range(batch.num_old, known)
    return loss + temperature**2 * softened_divergence(scores, teacher, new, temperature)
  return loss + task_wise_distillation(scores, teacher, batch.groups, known, temperature)


def mean_of(loss):
  def of_batch(batch, own):
    total = 0.0
    for i in range(len(batch.labels)):
      total += loss(batch, i, own)
    return total / len(batch.labels)

  return of_batch


def numerical_gradient(function, x, *, step=1e-5):
  """Central differences of a function of one float64 array."""
  x = np.array(x, np.float64)
  gradient = np.zeros_like(x)
  for place in np.ndindex(*x.shape):
    up, down = x.copy(), x.copy()
    up[place] += step
    down[place] -= step
    gradient[place] = (function(up) - function(down)) / (2 * step)
  return gradient


# BiC's second stage, WA's alignment, herding.


def corrected(scores, classes, alpha, beta):
  """alpha o_k + beta for some classes k, the others as they are."""
  return [
    alpha * float(s) + beta if k in classes else float(s) for k, s in enumerate(scores)
  ]


def correction_losses(pair, logits, labels, num_old):
  """The cross-entropies of images with corrected scores, BiC's equation 5."""
  alpha, beta = pair
  losses = []
  for scores, label in zip(logits, labels, strict=True):
    num_seen = len(scores)
    scores = corrected(scores, range(num_old, num_seen), alpha, beta)
    losses.append(softmax_cross_entropy(scores, label, range(num_seen)))
  return losses


def correction_loss(pair, logits, labels, num_old):
  """BiC, a mean over the held-out images, plus the authors' 0.1 beta^2 / 2."""
  losses = correction_losses(pair, logits, labels, num_old)
  return sum(losses) / len(labels) + 0.1 * pair[1] ** 2 / 2


def calibration_loss(pair, logits, labels, num_old):
  """Calibrated SS-IL: the mean over classes of the mean loss of a class's images."""
  losses = correction_losses(pair, logits, labels, num_old)
  of_classes = []
  for label in sorted(set(labels)):
    of_class = [loss for loss, y in zip(losses, labels, strict=True) if y == label]
    of_classes.append(sum(of_class) / len(of_class))
  return sum(of_classes) / len(of_classes)


def length(vector):
  return math.sqrt(sum(float(x) ** 2 for x in vector))


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


def lucir(batch, own):
  """Equation 9: a mean over the batch, and one over its exemplars; or as released."""
  released = own.lucir_weighting == "released"
  num_old, num_seen = batch.num_old, batch.num_seen
  of_all, of_exemplars, exemplars = 0.0, 0.0, 0
  for i, label in enumerate(batch.labels):
    of_all += ft(batch, i)
    if num_old:
      ratio = (num_seen - num_old) / num_old
      weight = own.lucir_lambda * math.sqrt(1 / ratio if released else ratio)
      of_all += weight * less_forget(batch.features[i], batch.teacher_features[i])
    if label < num_old:
      cosines = [float(x) / batch.scale for x in batch.logits[i]]
      negatives = own.lucir_negatives
      total = margin_ranking(cosines, label, num_old, num_seen, own.lucir_margin, negatives)
      of_exemplars += total / min(negatives, num_seen - num_old) if released else total
      exemplars += 1
  loss = of_all / len(batch.labels)
  return loss + of_exemplars / exemplars if exemplars else loss


# PODNet.


def pooled(stage):
  """The sums of squares over each row, and over each column, of a map [h, w, c]."""
  height, width, channels = np.shape(stage)
  sums = []
  for c in range(channels):
    for h in range(height):
      sums.append(sum(float(stage[h][w][c]) ** 2 for w in range(width)))
    for w in range(width):
      sums.append(sum(float(stage[h][w][c]) ** 2 for h in range(height)))
  return normalized(sums)


def pod_spatial(stages, teacher_stages):
  """The mean over the stages of the distance between what is pooled of both."""
  total = 0.0
  for stage, known in zip(stages, teacher_stages, strict=True):
    total += math.sqrt(squared_distance(pooled(stage), pooled(known)))
  return total / len(stages)


def local_similarity(scores, label, num_seen, scale, margin):
  """max(0, -log(exp(eta (y_c - delta)) / sum_{i != c} exp(eta y_i))), scores eta y."""
  others = [scores[c] for c in range(num_seen) if c != label]
  if not others:
    return 0.0
  return max(0.0, log_sum(others) - (float(scores[label]) - scale * margin))


def released_similarity(scores, label, num_seen):
  """log(sum_i exp(z_i - max)) - (z_c - max), where z_c itself counts as the max."""
  seen = [float(scores[c]) for c in range(num_seen)]
  top = max(seen)
  terms = [0.0 if c == label else seen[c] - top for c in range(num_seen)]
  return log_sum(terms) - (seen[label] - top)


def merged_similarity(feature, proxies):
  """sum_k s_k cos(theta_k, f) over a class's proxies, s the softmax of the cosines."""
  cosines = [cosine(feature, proxy) for proxy in proxies]
  total = sum(math.exp(x) for x in cosines)
  return sum(math.exp(x) / total * x for x in cosines)


def podnet(batch, i, own):
  """L_LSC, and in phase one of later states both distances to the teacher."""
  num_old, num_seen = batch.num_old, batch.num_seen
  scored = batch.logits[i], batch.labels[i], num_seen
  if own.podnet_loss == "released":
    loss = released_similarity(*scored)
  else:
    loss = local_similarity(*scored, batch.constant_scale, own.podnet_margin)
  if num_old and batch.num_teacher_classes == num_old:
    stages, known = (
      [stage[i] for stage in s] for s in (batch.stages, batch.teacher_stages)
    )
    spatial = own.podnet_spatial * pod_spatial(stages, known)
    flat = own.podnet_flat * less_forget(batch.features[i], batch.teacher_features[i])
    loss += math.sqrt(num_seen / (num_seen - num_old)) * (spatial + flat)
  return loss


# ER-ACE.


def er_ace(batch, own=None):
  """L_ce(X_bf; C_old + C_curr) + L_ce(X_in; C_curr), each a mean over its samples."""
  incoming, replayed, current = [], [], []
  for i, label in enumerate(batch.labels):
    if label < batch.num_old:
      replayed.append(i)
    else:
      incoming.append(i)
      if label not in current:
        current.append(label)
  loss = 0.0
  for i in replayed:
    loss += ft(batch, i) / len(replayed)
  for i in incoming:
    entropy = softmax_cross_entropy(batch.logits[i], batch.labels[i], current)
    loss += entropy / len(incoming)
  return loss


# DER++.


def der(batch, own):
  """Equation 6, with a mean over the classes known then as the squared distance."""
  loss = 0.0
  for i, label in enumerate(batch.labels):
    if i < batch.num_new:
      loss += ft(batch, i) / batch.num_new
    elif i < batch.num_new + batch.num_drawn:
      (group,) = [group for group in batch.groups if label in group]
      known = max(group) + 1
      total = 0.0
      for c in range(known):
        total += (float(batch.stored[i][c]) - float(batch.logits[i][c])) ** 2
      loss += own.der_alpha * total / known / batch.num_drawn
    else:
      loss += own.der_beta * ft(batch, i) / batch.num_drawn
  return loss


# GD.


def undecided(scores, classes):
  """KL(uniform || p) = sum_k 1/m log((1/m) / p_k)."""
  log_p, share = log_softmax(scores, classes), 1 / len(classes)
  return sum(share * (math.log(share) - log_p[k]) for k in classes)


def balancing_weight(label, images, classes):
  """n / (m n_k) of an image of class k, one of m classes of n images together, else 1."""
  if label not in classes:
    return 1.0
  return sum(images[k] for k in classes) / (len(classes) * images[label])


def ensemble(old_scores, new_scores):
  """Q: the class that P holds most probable, the other old ones, the new ones of C."""
  (p,), (c,) = (softmax_rows([row], len(row)) for row in (old_scores, new_scores))
  best = p.index(max(p))
  # What is left is the same for each of the others, were P and C uniform among them.
  left, num_others = 1 - p[best], len(p) + len(c) - 1
  of_old, of_new = (left * count / num_others for count in (len(p) - 1, len(c)))
  q = [of_old * share / left if left else 0.0 for share in p]
  q[best] = p[best]
  return q + [of_new * share for share in c]


def gd(batch, own):
  """Phase one: means over new images and over exemplars; then one over the batch."""
  old, new = range(batch.num_old), range(batch.num_old, batch.num_seen)
  seen, images = range(batch.num_seen), batch.class_images
  if batch.expert is None:
    of_new, of_exemplars = [], []
    for label, scores in zip(batch.labels, batch.logits, strict=True):
      if label in new:
        of_new.append(softmax_cross_entropy(scores, label, new))
      else:
        of_exemplars.append(own.gd_confidence * undecided(scores, new))
    means = [sum(part) / len(part) for part in (of_new, of_exemplars) if part]
    return sum(means)
  loss = 0.0
  for i, label in enumerate(batch.labels):
    parts = [
      (seen, softmax_cross_entropy(batch.logits[i], label, seen)),
      *[
        (
          classes,
          own.temperature**2
          * softened_cross_entropy(batch.logits[i], teacher[i], classes, own.temperature)
          * (len(classes) / batch.num_seen),
        )
        for classes, teacher in ((old, batch.teacher), (new, batch.expert))
      ],
    ]
    for classes, part in parts:
      weight = balancing_weight(label, images, classes) if batch.phase == 2 else 1
      loss += weight * part
  return loss / len(batch.labels)


# DGR.


def layers_of(part, x, label):
  """Two hidden layers of ReLUs; a class is a row that is added to the first."""
  weights = [
    {name: np.float64(w) for name, w in part[f"layer{n}"].items()} for n in range(3)
  ]
  x = [float(value) for value in np.ravel(x)]
  for number, layer in enumerate(weights):
    outputs = []
    for unit, bias in enumerate(layer["bias"]):
      total = bias + float(np.dot(x, layer["kernel"][:, unit]))
      if number == 0:
        total += float(part["classes"][label][unit])
      outputs.append(max(total, 0.0) if number < 2 else total)
    x = outputs
  return x


def negative_elbo(params, pixels, label, noise, deviation):
  """Kingma and Welling, equation 10, given the class; divided by the number of pixels."""
  posterior = layers_of(params["encoder"], pixels, label)
  half = len(posterior) // 2
  code, divergence = [], 0.0
  for mean, log_variance, own in zip(
    posterior[:half], posterior[half:], noise, strict=True
  ):
    code.append(mean + math.exp(log_variance / 2) * float(own))
    divergence -= (1 + log_variance - mean**2 - math.exp(log_variance)) / 2
  squares, values = 0.0, np.ravel(pixels)
  drawn = layers_of(params["decoder"], code, label)
  for value, other in zip(values, drawn, strict=True):
    squares += (float(value) - other) ** 2
  return (squares / (2 * deviation**2) + divergence) / len(values)


def dgr(batch, i, own):
  """Equation 1 of Shin et al., and the same of the generator's loss, without noise."""
  shares = (batch.num_seen - batch.num_old) / batch.num_seen, batch.num_old / batch.num_seen
  images = [(batch.pixels[i], batch.logits[i], batch.labels[i])]
  if batch.num_old:
    pixels, logits, teacher = (rows[i] for rows in batch.replayed)
    label = max(range(batch.num_old), key=lambda c: teacher[c])
    images.append((pixels, logits, label))
  total = 0.0
  for share, (pixels, logits, label) in zip(shares, images, strict=False):
    total += share * softmax_cross_entropy(logits, label, range(batch.num_seen))
    total += share * negative_elbo(
      batch.generator, pixels, label, [0.0] * own.dgr_latent, own.dgr_deviation
    )
  return total


# (Batch, the method's own settings) -> what a step of training minimizes.
LOSSES = {
  **dict.fromkeys(
    ("ft", "ft_rp", "il2m", "joint", "joint_full", "er", "gem", "agem", "gdumb", "ncm"),
    mean_of(ft),
  ),
  **dict.fromkeys(("ssil", "ssil_cal", "ft_ss"), mean_of(ssil)),
  **dict.fromkeys(
    ("ssil_tkd", "ssil_tkd_cal"), mean_of(with_distillation(ssil, task_wise_distillation))
  ),
  **dict.fromkeys(("ewc", "si", "rwalk", "vcl", "ucl"), mean_of(penalized)),
  "fearnet": mean_of(replaying_features),
  "cgan_features": mean_of(replaying_features),
  "icarl": mean_of(with_distillation(ft, task_wise_distillation)),
  "lwf": mean_of(with_distillation(lwf_new, task_wise_cross_entropy)),
  "eeil": mean_of(eeil),
  "wa": mean_of(wa),
  "bic": mean_of(bic),
  "lucir": lucir,
  "podnet": mean_of(podnet),
  "gd": gd,
  "er_ace": er_ace,
  "der": der,
  "dgr": mean_of(dgr),
}
