"""iCaRL with multi-class cross-entropies, and its nearest-mean-of-exemplars classifier.

S.-A. Rebuffi, A. Kolesnikov, G. Sperl and C. Lampert, *iCaRL: Incremental Classifier and
Representation Learning*, CVPR 2017: algorithm 1 for the classifier (NME), algorithm 4 for
herding (`--selection=herding`).

The paper trains with a sigmoid for every class. Here, as in the SS-IL paper (section 6.2),
the loss is a softmax cross-entropy over all classes seen and task-wise distillation, and
exemplars are random unless flags say otherwise. Common code differs in more: the authors'
for CIFAR adds mirrored exemplars to the means, and some leaves the features as long as
they are.

The classifier gives distances and no probabilities. Here p(k) is proportional to
exp(-s |f - mu_k|^2), with the s of highest likelihood for the exemplars, each compared with
the mean of the others of its class: temperature scaling (C. Guo et al., *On Calibration of
Modern Neural Networks*, ICML 2017). The network was trained on them, so that s is too large
rather than too small.
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from ssil_jax.losses import task_wise_distillation
from ssil_jax.methods.base import (
  Distillation,
  Method,
  drops_at,
  mask_unseen,
  normalized_features,
  one_phase,
  with_distillation,
)
from ssil_jax.methods.ft import softmax_loss
from ssil_jax.resnet import unit
from ssil_jax.sampling import SHUFFLED

_SHARPEST = 1000.0


def _class_means(state, config):
  """Returns the normalized mean of the normalized features of each class's exemplars."""
  labels = state.memory.labels
  features = state.extract(state.memory.records, normalized_features)
  sums = np.zeros_like(state.stats["means"])
  np.add.at(sums, labels, features)
  sharpness = fit_sharpness(features, labels, sums[: state.num_seen])
  return {"means": _unit_rows(sums), "sharpness": np.float32(sharpness)}


def _unit_rows(rows):
  return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def fit_sharpness(features, labels, sums):
  """Fits s of p(k) ~ exp(-s |f - mu_k|^2) to exemplars, each left out of its own mean.

  Args:
    features: float [m, d] of length 1.
    labels: int [m].
    sums: float [seen classes, d], of the features of each class.

  Returns:
    The s of highest likelihood, from 0 to 1000; 1 if no class has two exemplars.
  """
  among_others = np.bincount(labels, minlength=len(sums))[labels] > 1
  features, labels = features[among_others].astype(np.float64), labels[among_others]
  if not len(labels):
    return 1.0
  rows = np.arange(len(labels))
  distances = 2 - 2 * features @ _unit_rows(sums.astype(np.float64)).T
  others = _unit_rows(sums[labels] - features)
  distances[rows, labels] = 2 - 2 * np.einsum("md,md->m", features, others)

  def loss(sharpness):
    log_p = scipy.special.log_softmax(-sharpness * distances, axis=1)
    return -log_p[rows, labels].mean()

  bounds = (0, _SHARPEST)
  from scipy import optimize  # only now: it takes a second to import

  return optimize.minimize_scalar(loss, method="bounded", bounds=bounds).x


def _nearest_mean(outputs, context, config):
  """Minus the squared distance of the normalized feature to each normalized mean."""
  # Of vectors of length 1: -|a - b|^2 = 2 a.b - 2. Accelerators would round the product.
  cosines = jnp.matmul(
    unit(outputs.features, axis=-1), context.stats["means"].T, precision="highest"
  )
  return mask_unseen(outputs._replace(logits=2 * cosines - 2), context, config)


def _probabilities(scores, context, config):
  return jax.nn.softmax(context.stats["sharpness"] * scores, axis=-1)


ICARL = Method(
  title="iCaRL",
  phases=lambda config, t: one_phase(config, t, SHUFFLED),
  loss=with_distillation(softmax_loss, task_wise_distillation),
  defaults={
    "epochs_first": 60,
    "epochs": 60,
    **drops_at("1/3", "1/2", "2/3", "5/6"),
    "learning_rate_by_state": "constant",
    "learning_rate_drop": 0.2,
  },
  settings=Distillation,
  predict=_nearest_mean,
  probabilities=_probabilities,
  prediction=(
    "scores: 2 (f / |f|) . means[k] - 2 for each class k, with f the features, fc's input; "
    "probabilities: the softmax of sharpness * scores"
  ),
  has_teacher=True,
  init_stats=lambda sizes: {
    "means": np.zeros((sizes.num_classes, sizes.num_features), np.float32),
    "sharpness": np.ones((), np.float32),
  },
  stats=_class_means,
)
