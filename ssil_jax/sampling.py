"""Draws the records that make up batch n: pure functions of (seed, state, phase, step).

No iterator carries state, so a run resumes from a counter, and any host can work out its
own share of any batch.
"""

import enum
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ssil_jax.errors import ConfigError


class Purpose(enum.IntEnum):
  """Keeps the host's random streams apart: the second number of every seed tuple."""

  EPOCH = 1  # order of the records in an epoch
  REPLAY = 2  # exemplars drawn into a batch
  EXEMPLARS = 3  # records kept as exemplars
  CROP = 4  # random resized crops on the host
  UNLABELED = 5  # images without labels drawn into a batch


_NONE = np.zeros(0, np.int64)


class Pool(NamedTuple):
  """The training records that a state may draw from; any part may be empty."""

  new: np.ndarray  # int64 [n], records of the new classes: D_t
  memory: np.ndarray  # int64 [m], exemplars of the old classes: M
  # int32 [n] and [m]: the place of each record within its class in the order in which
  # exemplars are kept.
  new_ranks: np.ndarray = _NONE
  memory_ranks: np.ndarray = _NONE
  # int32 [n] and [m]: the class of each record.
  new_labels: np.ndarray = _NONE
  memory_labels: np.ndarray = _NONE
  # int64, every training record of the old classes: for joint training, which is no
  # class-incremental learning but its upper bound.
  old: np.ndarray = _NONE
  # int64, images without labels, whose numbers follow those of the training records.
  unlabeled: np.ndarray = _NONE

  @property
  def quota(self) -> int:
    """Exemplars of an old class, of the one that has most."""
    return int(self.memory_ranks.max(initial=-1)) + 1


class Key(NamedTuple):
  """Says where a phase's random streams start; `step` counts from 0 in the phase."""

  seed: int
  state: int
  phase: int

  def rng(self, purpose: Purpose, *counters: int) -> np.random.Generator:
    return np.random.default_rng(
      (self.seed, int(purpose), self.state, self.phase, *counters)
    )


class Sampling(NamedTuple):
  """One way to draw the batches of a phase.

  A batch is N_D of the records that an epoch goes through once, and `num_draws` times N_M
  exemplars, drawn with replacement, each time anew; without exemplars, the former alone.
  Images without labels may follow, N_D of them, drawn with replacement.
  """

  name: str  # in the schedule table
  epoch_records: Callable[[Pool], np.ndarray]  # Pool -> int64 [k]
  num_draws: int = 0
  needs_all_data: bool = False  # of the old classes, and not their exemplars alone
  draws_unlabeled: bool = False

  def records(self, pool: Pool) -> np.ndarray:
    """Returns every record with a label that a batch may hold, once; int64 [k]."""
    records = self.epoch_records(pool)
    return np.concatenate([records, pool.memory]) if self.num_draws else records

  def steps_per_epoch(self, pool: Pool, batch_size_new: int) -> int:
    """Returns the batches of an epoch; the last partial one is dropped (Algorithm 1)."""
    return len(self.epoch_records(pool)) // batch_size_new

  def group_sizes(
    self, pool: Pool, batch_size_new: int, batch_size_memory: int
  ) -> tuple[int, ...]:
    """Returns how many samples of each kind a batch concatenates."""
    draws = self.num_draws if len(pool.memory) else 0
    unlabeled = [batch_size_new] * self.draws_unlabeled
    return (batch_size_new, *[batch_size_memory] * draws, *unlabeled)

  def batch(
    self,
    pool: Pool,
    key: Key,
    step: int,
    batch_size_new: int,
    batch_size_memory: int,
    *,
    records: np.ndarray | None = None,
  ) -> np.ndarray:
    """Returns the records of a batch, int64 [sum(group_sizes)].

    `records` are `epoch_records(pool)`, where they are known already.
    """
    _, *draws = self.group_sizes(pool, batch_size_new, batch_size_memory)
    num_unlabeled = draws.pop() if self.draws_unlabeled else 0
    if records is None:
      records = self.epoch_records(pool)
    epoch, place = divmod(step, len(records) // batch_size_new)
    order = _epoch_order(key, epoch, len(records))
    batch = records[order[place * batch_size_new : (place + 1) * batch_size_new]]
    for purpose, candidates, count in (
      (Purpose.REPLAY, pool.memory, sum(draws)),
      (Purpose.UNLABELED, pool.unlabeled, num_unlabeled),
    ):
      if count:
        drawn = key.rng(purpose, step).integers(len(candidates), size=count)
        batch = np.concatenate([batch, candidates[drawn]])
    return batch


def _new(pool: Pool) -> np.ndarray:
  return pool.new


def _new_and_memory(pool: Pool) -> np.ndarray:
  return np.concatenate([pool.new, pool.memory])


def _new_and_old(pool: Pool) -> np.ndarray:
  return np.concatenate([pool.new, pool.old])


def _balanced(pool: Pool) -> np.ndarray:
  if not len(pool.memory):
    return pool.new
  return np.concatenate([pool.new[pool.new_ranks < pool.quota], pool.memory])


# SS-IL, section 5 and Algorithm 1.
RATIO_PRESERVING = Sampling("RP", _new, num_draws=1)
# DER++, algorithm 1: the memory is drawn from twice.
RATIO_PRESERVING_TWICE = Sampling("RP twice", _new, num_draws=2)
# Vanilla fine-tuning: D_t and M together.
SHUFFLED = Sampling("shuffled", _new_and_memory)
# Without a memory.
NEW_ONLY = Sampling("new only", _new)
# Joint training: D_t and all data of the earlier states.
EVERYTHING = Sampling("all data", _new_and_old, needs_all_data=True)
# EEIL, section 3: as many records of each new class as there are exemplars of an old one.
BALANCED = Sampling("balanced", _balanced)


def with_unlabeled(sampling: Sampling) -> Sampling:
  """Adds as many images without labels to a batch as an epoch's records are in it."""
  return sampling._replace(name=f"{sampling.name}, unlabeled", draws_unlabeled=True)


def held_out(pool: Pool, fraction: float) -> np.ndarray:
  """Returns the records of seen classes that BiC keeps from training (section 4).

  They are those of the lowest ranks, which stay in the memory longest. Where exemplars keep
  the ranks that they had as new records (`--selection=ring`), and the largest old class has
  as many as its share of the memory, what was held out of a new class is held out of it as
  an old one, until its share becomes smaller.

  Args:
    pool: with ranks and labels.
    fraction: of an old class's exemplars that is held out; at least one is. As many are
      held out of each class, or all but one of a class that has no more.

  Returns:
    int64 [k]; empty without exemplars.

  Raises:
    ConfigError: nothing can be held out of the new classes, or of the old ones.
  """
  new, replayed = _are_held_out(pool, fraction)
  return np.concatenate([pool.memory[replayed], pool.new[new]])


def without_held_out(fraction: float) -> Sampling:
  """Draws from D_t and M together, without what `held_out` takes."""

  def epoch_records(pool: Pool) -> np.ndarray:
    new, replayed = _are_held_out(pool, fraction)
    return np.concatenate([pool.new[~new], pool.memory[~replayed]])

  return Sampling("held-out", epoch_records)


def _are_held_out(pool: Pool, fraction: float) -> tuple[np.ndarray, np.ndarray]:
  """Returns whether each new record, and each exemplar, is held out: bool [n] and [m]."""
  if not len(pool.memory):
    return np.zeros(len(pool.new), bool), np.zeros(0, bool)
  count = max(1, math.floor(pool.quota * fraction + 1e-9))  # 0.29 * 100 is below 29

  def lowest(ranks: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return ranks < np.minimum(count, np.bincount(labels)[labels] - 1)

  new = lowest(pool.new_ranks, pool.new_labels)
  replayed = lowest(pool.memory_ranks, pool.memory_labels)
  if not replayed.any():
    raise ConfigError(
      "has one exemplar of each old class, to train on, and none to hold out, without "
      "which new scores cannot be corrected: raise --memory_size or, if these classes have "
      "one image each, add some"
    )
  if not new.any():
    raise ConfigError(
      "has one image of each new class, to train on, and none to hold out, without "
      "which new scores cannot be corrected: add some, or use fewer states"
    )
  return new, replayed


def left_out(records: np.ndarray, key: Key, epoch: int, batch_size: int) -> np.ndarray:
  """Returns the records that no batch of an epoch holds, fewer than a batch."""
  order = _epoch_order(key, epoch, len(records))
  return records[order[len(records) // batch_size * batch_size :]]


# Successive batches share an epoch; loader threads may stand on both sides of its end.
@functools.lru_cache(maxsize=4)
def _epoch_order(key: Key, epoch: int, size: int) -> np.ndarray:
  order = key.rng(Purpose.EPOCH, epoch).permutation(size)
  order.flags.writeable = False
  return order


def device_shares(group_sizes: tuple[int, ...], num_devices: int) -> np.ndarray:
  """Deals a batch out so that every device gets the same share of each kind of sample.

  Args:
    group_sizes: samples of each kind, in the order in which the batch concatenates them;
      each a multiple of `num_devices`.
    num_devices: devices of all hosts.

  Returns:
    int32 [num_devices, sum(group_sizes) / num_devices]: positions in the global batch.
  """
  ends = np.cumsum(group_sizes)
  kinds = np.split(np.arange(ends[-1], dtype=np.int32), ends[:-1])
  return np.concatenate([kind.reshape(num_devices, -1) for kind in kinds], axis=1)
