"""FearNet, reduced to its class statistics: a Gaussian of each old class's features.

R. Kemker and C. Kanan, *FearNet: Brain-Inspired Model for Incremental Learning*, ICLR 2018,
arXiv:1711.10563, section 4: the mean and the covariance of each class are stored instead of
images, and old classes are rehearsed by what is drawn from these Gaussians.

What is left out. FearNet's Gaussians are those of an autoencoder's codes, which its decoder
turns into features, and the autoencoder's own classifier, the long-term memory (mPFC), is
what is rehearsed; new classes are at first held, with their features, by a probabilistic
network, the short-term memory (HC), and move over in sleep phases every few states; a third
network (BLA) tells which of the two to ask. Its features come from a ResNet-50 trained on
other images. Here features are the network's own, as the first state leaves it, the
Gaussians are of these, and each state trains the head at once: see `feature_replay`.

A full covariance of 512 features of 1,000 classes is 1 GB, on every device and in each
checkpoint. So a class keeps its `--fearnet_rank` directions of largest variance, and the
variance of what remains of each feature, by itself: whatever the rank, what is drawn has
the class's own variance of each feature. With 0 it is the diagonal of the covariance, with
the number of features, or one less than that of images, all of it.
"""

import dataclasses

import jax
import numpy as np

from ssil_jax.methods.base import Method
from ssil_jax.methods.feature_replay import (
  REPLAYS_FEATURES,
  features_themselves,
  keeping,
  replaying,
)
from ssil_jax.settings import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """FearNet's own."""

  fearnet_rank: int = setting(
    32,
    "directions of each class's covariance that are stored; 0 for variances alone, as many "
    "as there are features for all of it",
    at_least=0,
    changes="later_states",
  )


def gaussian_of(features, rank):
  """Fits a Gaussian: directions are principal axes, as long as their standard deviation.

  Args:
    features: float [n, d].
    rank: of the covariance that is stored, r.

  Returns:
    mean float32 [d], directions float32 [r, d], and the standard deviations of what they
    leave, float32 [d]: the covariance is directions^T directions + diag(deviations^2).
  """
  mean = features.mean(axis=0, dtype=np.float64)
  centred = (features - mean) / np.sqrt(len(features))
  directions = np.zeros((rank, len(mean)))
  if rank:
    _, lengths, axes = np.linalg.svd(centred, full_matrices=False)
    axes *= np.sign(axes.sum(axis=1, keepdims=True))  # either sign would do
    found = lengths[:rank, None] * axes[:rank]
    directions[: len(found)] = found
  rest = np.sum(centred**2, axis=0) - np.sum(directions**2, axis=0)
  return tuple(map(np.float32, (mean, directions, np.sqrt(np.maximum(rest, 0)))))


def draw(keys, labels, stats):
  """Draws a feature for each label from its class's Gaussian; float32 [B, d]."""
  rank, num_features = stats["directions"].shape[1:]

  def of_class(key, label):
    noise = jax.random.normal(key, (rank + num_features,))
    along, beside = noise[:rank], noise[rank:]
    spread = along @ stats["directions"][label] + beside * stats["deviations"][label]
    return stats["means"][label] + spread

  return jax.vmap(of_class)(keys, labels)


def _init_stats(sizes):
  rank = min(sizes.config.method_settings.fearnet_rank, sizes.num_features)
  shape = sizes.num_classes, sizes.num_features
  return {
    "means": np.zeros(shape, np.float32),
    "directions": np.zeros((shape[0], rank, shape[1]), np.float32),
    "deviations": np.zeros(shape, np.float32),
  }


def _stats(state, config):
  """Adds the Gaussians of the new classes, of all their images, not augmented."""
  stats = {name: array.copy() for name, array in state.stats.items()}
  features = state.extract(state.pool.new, features_themselves)
  labels = state.labels[state.pool.new]
  for label in range(state.num_old, state.num_seen):
    gaussian = gaussian_of(features[labels == label], stats["directions"].shape[1])
    for name, value in zip(("means", "directions", "deviations"), gaussian, strict=True):
      stats[name][label] = value
  return stats


FEARNET = Method(
  title="FearNet",
  loss=replaying(draw),
  settings=Settings,
  init_stats=_init_stats,
  stats=_stats,
  grow_stats=keeping("fearnet_rank"),
  **REPLAYS_FEATURES,
)
