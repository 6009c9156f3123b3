"""The exemplar memory: a ring buffer with an equal share for every class seen.

Each class keeps a ranked list of records, of which only the first `floor(M / seen)` stay.
A memory that shrinks therefore keeps a subset of what it held: the buffers are nested.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from ssil_jax.sampling import Purpose


class Memory(NamedTuple):
  """Exemplars ordered by class, then by rank within the class (0 is kept longest)."""

  records: np.ndarray  # int64 [n], indices into the training split
  labels: np.ndarray  # int32 [n]
  ranks: np.ndarray  # int32 [n]


def empty() -> Memory:
  """Returns the memory before the first state."""
  return Memory(np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int32))


def quota(memory_size: int, num_seen: int) -> int:
  """Returns the exemplars of each class, floor(|M| / classes seen) (paper, section 3)."""
  return memory_size // num_seen


def random_order(num_records: int, *, seed: int, state: int) -> np.ndarray:
  """Draws the priority of each of a state's n new records, for `update`; float64 [n].

  It is uniform: a random subset of every class is kept (section 6.1).
  """
  return np.random.default_rng((seed, int(Purpose.EXEMPLARS), state)).random(num_records)


def update(
  memory: Memory,
  records: np.ndarray,
  labels: np.ndarray,
  priority: np.ndarray,
  *,
  memory_size: int,
  num_seen: int,
) -> Memory:
  """Adds the classes of a finished state and shrinks the others to the new quota.

  Args:
    memory: exemplars of the old classes.
    records: int64 [n], every training record of the new classes.
    labels: int32 [n], their classes, none of them in `memory` yet.
    priority: [n], sortable; within a class the smallest are kept.
    memory_size: |M|.
    num_seen: classes seen by now, the new ones included.

  Returns:
    The memory that the next state replays. A class with fewer records than its quota
    keeps them all.
  """
  new = Memory(records, labels, rank(labels, priority))
  both = Memory(*map(np.concatenate, zip(memory, new, strict=True)))
  by_class = np.lexsort((both.ranks, both.labels))
  kept = by_class[both.ranks[by_class] < quota(memory_size, num_seen)]
  return Memory(*(field[kept] for field in both))


def rank(labels: np.ndarray, priority: np.ndarray) -> np.ndarray:
  """Returns each record's place in its class by rising priority, from 0; int32 [n]."""
  order = np.lexsort((priority, labels))
  starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
  lengths = np.diff(starts, append=len(labels))
  ranks = np.empty(len(labels), np.int32)
  ranks[order] = np.arange(len(labels)) - np.repeat(starts, lengths)
  return ranks


def herding_order(features: np.ndarray, count: int) -> np.ndarray:
  """Chooses the records of a class that follow its mean best, iCaRL's algorithm 4.

  The k-th is the one with which the mean of the k chosen comes closest to the mean of all.

  Args:
    features: float [n, d] of one class, of length 1.
    count: how many to choose.

  Returns:
    int64 [min(count, n)]: places in `features`, in the order in which they are chosen;
    the first one wins where several are equally good.
  """
  features = features.astype(np.float64)
  mean = features.mean(axis=0)
  total = np.zeros_like(mean)
  left = np.ones(len(features), bool)
  chosen = np.zeros(min(count, len(features)), np.int64)
  lengths = (features**2).sum(axis=1)
  for k in range(len(chosen)):
    # |(total + f) / (k+1) - mean|^2, less what is the same for all f, times (k+1)^2.
    # Not by BLAS, which may round the same row differently from place to place.
    products = np.einsum("nd,d->n", features, total - (k + 1) * mean)
    distances = lengths + 2 * products
    chosen[k] = np.argmin(np.where(left, distances, np.inf))
    left[chosen[k]] = False
    total += features[chosen[k]]
  return chosen


def herding_priority(
  labels: np.ndarray,
  random: np.ndarray,
  features: Callable[[], np.ndarray],
  *,
  count: int,
) -> np.ndarray:
  """Returns the priority by herding within each class (iCaRL, algorithm 4): a selection.

  Those that herding does not reach keep their random priority, which is 0 or more.
  """
  all_features = features()
  priority = np.array(random, np.float64)
  for label in np.unique(labels):
    places = np.flatnonzero(labels == label)
    chosen = places[herding_order(all_features[places], count)]
    priority[chosen] = np.arange(-len(chosen), 0)
  return priority


# By the name that --selection takes. Each is (labels int [n] of the new records, random
# float64 [n], features: -> float [n, d] of length 1, count of each class that is kept) ->
# priority float64 [n] for `update`.
SELECTIONS: Mapping[str, Callable[..., np.ndarray]] = {
  "ring": lambda labels, random, features, *, count: random,
  "herding": herding_priority,
}
