"""The exemplar memory: a ring buffer with an equal share for every class seen.

Each class keeps a ranked list of records, of which only the first `floor(M / seen)` stay.
A memory that shrinks therefore keeps a subset of what it held: the buffers are nested.
"""

from typing import NamedTuple

import numpy as np

from ssil_jax.sampling import Purpose


class Memory(NamedTuple):
  """Exemplars ordered by class, then by rank within the class (0 is kept longest)."""

  records: np.ndarray  # int64 [n], indices into the training split
  labels: np.ndarray  # int32 [n]
  ranks: np.ndarray  # int32 [n]


def empty() -> Memory:
  """The memory before the first state."""
  return Memory(np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int32))


def quota(memory_size: int, num_seen: int) -> int:
  """Exemplars of each class, floor(|M| / classes seen) (paper, section 3)."""
  return memory_size // num_seen


def random_order(num_records: int, *, seed: int, state: int) -> np.ndarray:
  """The priority of each of a state's new records, for `update`.

  Args:
    num_records: n.
    seed: of the run.
    state: index of the state, from 1.

  Returns:
    float64 [n], uniform: a random subset of every class is kept (section 6.1).
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
  order = np.lexsort((priority, labels))
  new = Memory(records[order], labels[order], _ranks(labels[order]))
  keep_old = memory.ranks < quota(memory_size, num_seen)
  keep_new = new.ranks < quota(memory_size, num_seen)
  both = Memory(
    *(np.concatenate([a[keep_old], b[keep_new]]) for a, b in zip(memory, new, strict=True))
  )
  by_class = np.lexsort((both.ranks, both.labels))
  return Memory(*(field[by_class] for field in both))


def _ranks(sorted_labels: np.ndarray) -> np.ndarray:
  """int32 [n]: 0, 1, 2, ... anew in every run of equal labels."""
  starts = np.flatnonzero(np.diff(sorted_labels, prepend=-1))
  lengths = np.diff(starts, append=len(sorted_labels))
  return (np.arange(len(sorted_labels)) - np.repeat(starts, lengths)).astype(np.int32)
