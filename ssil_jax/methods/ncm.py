"""NCM: the nearest class mean, on features that the first state learnt.

T. Mensink, J. Verbeek, F. Perronnin and G. Csurka, *Distance-Based Image Classification:
Generalizing to New Classes at Near-Zero Cost*, PAMI 2013, section 3.1: the class whose mean
feature is nearest. The first state is trained as FT's; after it the network is fixed, and a
state does no more than add the mean of all its training images to those of earlier ones,
which stay. Nothing is forgotten, and exemplars serve the probabilities alone. It is the
baseline that any method that goes on training has to beat.

Features and means have length 1, and images are not augmented, as for iCaRL's classifier
(`methods.icarl`), which differs by its means of few exemplars and its moving features; so
are its probabilities. The paper learns a metric over fixed features, too; here distances
are Euclidean.
"""

import numpy as np

from ssil_jax.methods.base import Method, normalized_features, one_phase
from ssil_jax.methods.ft import softmax_loss
from ssil_jax.methods.icarl import NEAREST_MEAN, fit_sharpness, sum_by_class, unit_rows
from ssil_jax.sampling import NEW_ONLY


def _class_means(state, config):
  """Adds the new classes' means, and the lengths of sums, to take exemplars out again."""
  means, lengths = (np.array(state.stats[name]) for name in ("means", "lengths"))
  new = slice(state.num_old, state.num_seen)
  features = state.extract(state.pool.new, normalized_features)
  sums = sum_by_class(features, state.labels[state.pool.new], len(means))[new]
  means[new], lengths[new] = unit_rows(sums), np.linalg.norm(sums, axis=-1)
  sharpness = fit_sharpness(
    state.extract(state.memory.records, normalized_features),
    state.memory.labels,
    (means * lengths[:, None])[: state.num_seen],
  )
  return {"means": means, "lengths": lengths, "sharpness": np.float32(sharpness)}


NCM = Method(
  title="NCM",
  phases=lambda config, t: one_phase(config, t, NEW_ONLY),
  loss=softmax_loss,
  fixed={"epochs": 0, "milestones": ()},
  init_stats=lambda sizes: {
    "means": np.zeros((sizes.num_classes, sizes.num_features), np.float32),
    "lengths": np.zeros(sizes.num_classes, np.float32),
    "sharpness": np.ones((), np.float32),
  },
  stats=_class_means,
  **NEAREST_MEAN,
)
