"""Which records make up batch n: pure functions of (seed, state, phase, step).

No iterator carries state, so a run resumes from a counter, and any host can work out its
own share of any batch.
"""

import enum
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Purpose(enum.IntEnum):
  """Keeps the host's random streams apart: the second number of every seed tuple."""

  EPOCH = 1  # order of the records in an epoch
  REPLAY = 2  # exemplars drawn into a batch
  EXEMPLARS = 3  # records kept as exemplars
  CROP = 4  # random resized crops on the host


class Pool(NamedTuple):
  """The training records that a state may draw from; either may be empty."""

  new: np.ndarray  # int64 [n], records of the new classes: D_t
  memory: np.ndarray  # int64 [m], exemplars of the old classes: M


class Key(NamedTuple):
  """Where a phase's random streams start; `step` counts from 0 in the phase."""

  seed: int
  state: int
  phase: int

  def rng(self, purpose: Purpose, *counters: int) -> np.random.Generator:
    return np.random.default_rng(
      (self.seed, int(purpose), self.state, self.phase, *counters)
    )


class Sampling(NamedTuple):
  """One way to draw the batches of a phase."""

  name: str  # in the schedule table
  # Pool -> int64 [k], the records that an epoch goes through once.
  epoch_records: Callable[[Pool], np.ndarray]
  # (Pool, N_D, N_M) -> how many samples of each kind a batch concatenates.
  group_sizes: Callable[[Pool, int, int], tuple[int, ...]]
  # (Pool, Key, step, N_D, N_M) -> int64 [sum(group_sizes)], records of the batch.
  batch: Callable[[Pool, Key, int, int, int], np.ndarray]

  def steps_per_epoch(self, pool: Pool, batch_size_new: int) -> int:
    """Batches of an epoch; the last partial one is dropped (Algorithm 1)."""
    return len(self.epoch_records(pool)) // batch_size_new


def _ratio_preserving_sizes(pool: Pool, batch_size_new: int, batch_size_memory: int):
  return (batch_size_new, batch_size_memory) if len(pool.memory) else (batch_size_new,)


def _ratio_preserving_batch(
  pool: Pool, key: Key, step: int, batch_size_new: int, batch_size_memory: int
) -> np.ndarray:
  new = _draw_from_epoch(pool.new, key, step, batch_size_new)
  if not len(pool.memory):
    return new
  drawn = key.rng(Purpose.REPLAY, step).integers(len(pool.memory), size=batch_size_memory)
  return np.concatenate([new, pool.memory[drawn]])


def _new_and_memory(pool: Pool) -> np.ndarray:
  return np.concatenate([pool.new, pool.memory])


def _shuffled_batch(
  pool: Pool, key: Key, step: int, batch_size_new: int, batch_size_memory: int
) -> np.ndarray:
  del batch_size_memory  # exemplars come as often as their share of D_t and M
  return _draw_from_epoch(_new_and_memory(pool), key, step, batch_size_new)


# SS-IL, section 5 and Algorithm 1: N_D records of D_t, drawn without replacement, and N_M
# of the memory, drawn with replacement.
RATIO_PRESERVING = Sampling(
  name="RP",
  epoch_records=lambda pool: pool.new,
  group_sizes=_ratio_preserving_sizes,
  batch=_ratio_preserving_batch,
)

# Vanilla fine-tuning: N_D records of D_t and M together, drawn without replacement.
SHUFFLED = Sampling(
  name="shuffled",
  epoch_records=_new_and_memory,
  group_sizes=lambda pool, batch_size_new, batch_size_memory: (batch_size_new,),
  batch=_shuffled_batch,
)


def _draw_from_epoch(
  records: np.ndarray, key: Key, step: int, batch_size: int
) -> np.ndarray:
  epoch, place = divmod(step, len(records) // batch_size)
  order = _epoch_order(key, epoch, len(records))
  return records[order[place * batch_size : (place + 1) * batch_size]]


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
  shares, start = [], 0
  for size in group_sizes:
    shares.append(np.arange(start, start + size).reshape(num_devices, -1))
    start += size
  return np.concatenate(shares, axis=1).astype(np.int32)
