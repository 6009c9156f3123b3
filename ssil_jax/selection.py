"""Which exemplars are kept, by the name that `--selection` takes.

Each is (records int64 [n] of the new classes, labels int [n], random float64 [n], survey,
count of each class that will be kept) -> priority [n] for `memory.update`.
"""

from collections.abc import Callable, Mapping

import numpy as np

from ssil_jax import memory
from ssil_jax.methods.base import Survey, normalized_features


def _ring(records, labels, random, survey, count):
  """A random subset of every class (SS-IL, section 6.1)."""
  del records, labels, survey, count
  return random


def _herding(records, labels, random, survey, count):
  """Those whose mean feature follows the class's best (iCaRL, algorithm 4)."""
  features = survey(records, normalized_features)
  return memory.herding_priority(features, labels, random, count=count)


SELECTIONS: Mapping[
  str, Callable[[np.ndarray, np.ndarray, np.ndarray, Survey, int], np.ndarray]
] = {"ring": _ring, "herding": _herding}
