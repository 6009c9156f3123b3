"""iCaRL with multi-class cross-entropies, and its nearest-mean-of-exemplars classifier.

S.-A. Rebuffi, A. Kolesnikov, G. Sperl and C. Lampert, *iCaRL: Incremental Classifier and
Representation Learning*, CVPR 2017: algorithm 1 for the classifier (NME), algorithm 4 for
herding (`--selection=herding`).

The paper trains with a sigmoid for every class. Here, as in the SS-IL paper (section 6.2),
the loss is a softmax cross-entropy over all classes seen and task-wise distillation, and
exemplars are random unless flags say otherwise. Common code differs in more: the authors'
for CIFAR adds mirrored exemplars to the means, and some leaves the features as long as
they are.
"""

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


def _class_means(state, config):
  """Returns the normalized mean of the normalized features of each class's exemplars."""
  features = state.extract(state.memory.records, normalized_features)
  means = np.zeros_like(state.stats["means"])
  np.add.at(means, state.memory.labels, features)
  length = np.linalg.norm(means, axis=-1, keepdims=True)
  return {"means": means / np.maximum(length, 1e-12)}


def _nearest_mean(outputs, context, config):
  """Minus the squared distance of the normalized feature to each normalized mean."""
  # Of vectors of length 1: -|a - b|^2 = 2 a.b - 2. Accelerators would round the product.
  cosines = jnp.matmul(
    unit(outputs.features, axis=-1), context.stats["means"].T, precision="highest"
  )
  return mask_unseen(outputs._replace(logits=2 * cosines - 2), context, config)


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
  has_teacher=True,
  init_stats=lambda sizes: {
    "means": np.zeros((sizes.num_classes, sizes.num_features), np.float32)
  },
  stats=_class_means,
)
