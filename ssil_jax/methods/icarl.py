"""iCaRL with multi-class cross-entropies, and its nearest-mean-of-exemplars classifier.

S.-A. Rebuffi, A. Kolesnikov, G. Sperl and C. Lampert, *iCaRL: Incremental Classifier and
Representation Learning*, CVPR 2017: algorithm 1 for the classifier (NME), algorithm 4 for
herding (`--selection=herding`).

The paper trains with a sigmoid for every class. Here, as in the SS-IL paper (section 6.2),
the loss is a softmax cross-entropy over all classes seen and task-wise distillation, and
exemplars are random unless flags say otherwise. Common code differs in more: the authors'
for CIFAR adds mirrored exemplars to the means, and some leaves the features as long as
they are.

The SS-IL authors' released code, of which published figures come, takes the means of all
new images and of the old classes' exemplars, and does not normalize them again:
`--icarl_means=released`. There these images are augmented as in training, and here not.

The classifier gives distances and no probabilities. Here p(k) is proportional to
exp(-s |f - mu_k|^2), with the s of highest likelihood for the exemplars, each compared with
the mean of the others of its class: temperature scaling (C. Guo et al., *On Calibration of
Modern Neural Networks*, ICML 2017). The network was trained on them, so that s is too large
rather than too small.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
from ssil_jax.settings import setting

_SHARPEST = 1000.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Distillation):
  """iCaRL's own."""

  icarl_means: str = setting(
    "paper",
    "the means of classes; paper: of their exemplars, of length 1; released: of all images "
    "of the state's classes and of the exemplars of others, as long as they are",
    choices=("paper", "released"),
    changes="results",
  )


def _class_means(state, config):
  """Returns the mean of the normalized features of each class's exemplars or images."""
  labels = state.memory.labels
  features = state.extract(state.memory.records, normalized_features)
  num_classes = len(state.stats["means"])
  if config.method_settings.icarl_means == "released":
    records = np.concatenate([state.pool.new, state.pool.memory])
    of_images = state.labels[records]
    sums = sum_by_class(state.extract(records, normalized_features), of_images, num_classes)
    counts = np.bincount(of_images, minlength=num_classes)
    means = sums / np.maximum(counts, 1).astype(np.float32)[:, None]
    counts = counts[: state.num_seen]
  else:
    sums, counts = sum_by_class(features, labels, num_classes), None
    means = unit_rows(sums)
  sharpness = fit_sharpness(features, labels, sums[: state.num_seen], counts)
  return {"means": means, "sharpness": np.float32(sharpness)}


def sum_by_class(features, labels, num_classes):
  """Returns the sum of the features [n, d] of each class, float32 [C, d]."""
  sums = np.zeros((num_classes, features.shape[1]), np.float32)
  np.add.at(sums, labels, features)
  return sums


def unit_rows(rows):
  """Returns vectors at length 1; one of zeros stays as it is."""
  return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def fit_sharpness(features, labels, sums, counts=None):
  """Fits s of p(k) ~ exp(-s |f - mu_k|^2) to exemplars, each left out of its own mean.

  Args:
    features: float [m, d] of length 1.
    labels: int [m].
    sums: float [seen classes, d], of the features of each class, these and maybe others.
    counts: int [seen classes], of how many features the sums are, where the means are not
      normalized.

  Returns:
    The s of highest likelihood, from 0 to 1000; 1 if no class has two exemplars.
  """
  among_others = np.bincount(labels, minlength=len(sums))[labels] > 1
  features, labels = features[among_others].astype(np.float64), labels[among_others]
  if not len(labels):
    return 1.0
  from scipy import optimize, special  # only now: they take a second to import

  rows = np.arange(len(labels))
  if counts is None:
    distances = 2 - 2 * features @ unit_rows(sums.astype(np.float64)).T
    others = unit_rows(sums[labels] - features)
    distances[rows, labels] = 2 - 2 * np.einsum("md,md->m", features, others)
  else:
    means = sums.astype(np.float64) / counts[:, None]
    distances = 1 - 2 * features @ means.T + np.sum(means**2, axis=1)
    others = (sums[labels] - features) / (counts[labels] - 1)[:, None]
    distances[rows, labels] = np.sum((features - others) ** 2, axis=1)

  def loss(sharpness):
    log_p = special.log_softmax(-sharpness * distances, axis=1)
    return -log_p[rows, labels].mean()

  bounds = (0, _SHARPEST)
  return optimize.minimize_scalar(loss, method="bounded", bounds=bounds).x


def nearest_mean(outputs, context, config):
  """Minus the squared distance of the normalized feature to each normalized mean."""
  # Of vectors of length 1: -|a - b|^2 = 2 a.b - 2. Accelerators would round the product.
  cosines = jnp.matmul(
    unit(outputs.features, axis=-1), context.stats["means"].T, precision="highest"
  )
  return mask_unseen(outputs._replace(logits=2 * cosines - 2), context, config)


def _predict(outputs, context, config):
  scores = nearest_mean(outputs, context, config)
  if config.method_settings.icarl_means == "released":  # 2 a.b - 1 - |b|^2
    scores += 1 - jnp.sum(context.stats["means"] ** 2, axis=-1)[None, :]
  return scores


def _probabilities(scores, context, config):
  return jax.nn.softmax(context.stats["sharpness"] * scores, axis=-1)


_SCORES = "2 (f / |f|) . means[k] - 2 for each class k, with f the features, fc's input"
_SOFTMAX = "probabilities: the softmax of sharpness * scores"

# Fields of a `Method` that predicts by the means of its statistics, of length 1.
NEAREST_MEAN: Mapping[str, Any] = MappingProxyType(
  {
    "predict": nearest_mean,
    "probabilities": _probabilities,
    "prediction": f"scores: {_SCORES}; {_SOFTMAX}",
  }
)


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
  settings=Settings,
  predict=_predict,
  probabilities=_probabilities,
  prediction=(
    f"scores: {_SCORES}, plus, with icarl_means=released, 1 - |means[k]|^2; {_SOFTMAX}"
  ),
  has_teacher=True,
  init_stats=lambda sizes: {
    "means": np.zeros((sizes.num_classes, sizes.num_features), np.float32),
    "sharpness": np.ones((), np.float32),
  },
  stats=_class_means,
)
