"""Batches for the devices, made ahead of time by grain.

Element n of a grain source is batch n, so that grain only loads, decodes and prefetches;
which records a batch holds is decided by `sampling.py`, from counters alone.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags
from grain.experimental import ThreadPrefetchIterDataset

from ssil_jax.data import crop, decode
from ssil_jax.data.dataset import Dataset, Split
from ssil_jax.host import usable_cores
from ssil_jax.sampling import Key, Pool, Purpose, Sampling, device_shares
from ssil_jax.step import Batch

_RESIZED, _CUT = 256, 224  # test images: short side, then centre (section 6.2)
_BATCHES_AHEAD = 3  # on the host
_BATCHES_ON_DEVICE = 2  # beside the one in use


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainBatches:
  """The batches of a phase; batch n is a function of n and these fields alone."""

  dataset: Dataset
  pool: Pool
  sampling: Sampling
  key: Key
  batch_size_new: int
  batch_size_memory: int
  num_devices: int
  num_steps: int

  def __len__(self) -> int:
    return self.num_steps

  def __getitem__(self, step: int) -> Batch:
    """Arrays [num_devices, share, ...]; every share has N_D : N_M."""
    if not 0 <= step < len(self):
      raise IndexError(f"batch {step} of {len(self)}")
    records = self.sampling.batch(
      self.pool, self.key, step, self.batch_size_new, self.batch_size_memory
    )
    sizes = self.sampling.group_sizes(
      self.pool, self.batch_size_new, self.batch_size_memory
    )
    positions = device_shares(sizes, self.num_devices)
    split, dealt = self.dataset.train, records[positions]
    if split.on_device:
      inputs = dealt.astype(np.int32)
    else:
      crops = self._crops(step, len(records))
      # In the devices' order already: to reorder decoded images would copy them.
      crops = [crops[position] for position in positions.ravel()]
      inputs = _decoded(split, dealt.ravel(), crops)
      inputs = inputs.reshape(*positions.shape, *inputs.shape[1:])
    return Batch(inputs, split.labels[dealt], positions, dealt.astype(np.int32))

  def _crops(self, step: int, batch_size: int) -> list[Callable[[bytes], np.ndarray]]:
    """How each position of a batch is cut out, by (seed, state, phase, step, position)."""
    size = self.dataset.image_size
    if not self.dataset.random_resized_crop:
      return [functools.partial(_central_crop, size=size)] * batch_size
    # Row by row, so that a position's numbers are the same in a batch of any size.
    draws = self.key.rng(Purpose.CROP, step).random((batch_size, *crop.DRAWS_SHAPE))
    return [functools.partial(_random_crop, size=size, draws=row) for row in draws]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalBatches:
  """Batches that are not augmented, of equal shape; the last is padded, position -1."""

  split: Split
  image_size: int
  records: np.ndarray  # int64 [n], of the split
  batch_size: int  # rounded up to a multiple of the devices
  num_devices: int

  @property
  def _share(self) -> int:
    return -(-self.batch_size // self.num_devices)

  def __len__(self) -> int:
    return -(-len(self.records) // (self._share * self.num_devices))

  def __getitem__(self, n: int) -> Batch:
    """Arrays [num_devices, share, ...]."""
    if not 0 <= n < len(self):
      raise IndexError(f"batch {n} of {len(self)}")
    whole = self._share * self.num_devices
    chunk = self.records[n * whole : (n + 1) * whole]
    padding = whole - len(chunk)
    positions = np.arange(whole, dtype=np.int32)
    positions[len(chunk) :] = -1
    if self.split.on_device:
      inputs = chunk.astype(np.int32)
    else:
      how = functools.partial(_central_crop, size=self.image_size)
      inputs = _decoded(self.split, chunk, [how] * len(chunk))
    # Padding repeats the first record; its position keeps it out of every count.
    inputs, labels, records = (
      np.concatenate([x, np.repeat(x[:1], padding, axis=0)])
      for x in (inputs, self.split.labels[chunk], chunk.astype(np.int32))
    )
    return Batch(
      *(
        x.reshape(self.num_devices, self._share, *x.shape[1:])
        for x in (inputs, labels, positions, records)
      )
    )


def prefetched(
  batches: Sequence[Batch],
  to_device: Callable[[Batch], Any],
  *,
  start: int = 0,
  num_processes: int = 0,
) -> grain.DatasetIterator:
  """`to_device` of batches start, start + 1, ..., made and sent in the background.

  Work begins with the first one asked for; `close` ends it.

  Args:
    batches: `TrainBatches` or `EvalBatches`.
    to_device: Batch -> what the caller wants of it; called in one background thread.
    start: first batch.
    num_processes: worker processes that make the batches; with 0, threads of this one do,
      a whole batch each. Their decoding runs in parallel, their Python and resampling do
      not, which limits them on hosts with very many cores (benchmarks/README.md).
  """
  threads = usable_cores()
  # A thread that finds no room in the buffer is idle.
  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=max(_BATCHES_AHEAD, threads)
  )
  made = grain.MapDataset.source(batches)[start:].to_iter_dataset(options)
  if num_processes:
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()  # grain reads its own flags, and absl insists
    made = made.mp_prefetch(
      grain.MultiprocessingOptions(
        num_workers=num_processes, per_worker_buffer_size=_BATCHES_AHEAD
      )
    )
  return iter(
    ThreadPrefetchIterDataset(made.map(to_device), prefetch_buffer_size=_BATCHES_ON_DEVICE)
  )


def _decoded(
  split: Split, records: np.ndarray, crops: Sequence[Callable[[bytes], np.ndarray]]
) -> np.ndarray:
  """uint8 [n, S, S, 3], a crop of each record."""
  return np.stack(
    [
      split.images.decode(record, how)
      for record, how in zip(records.tolist(), crops, strict=True)
    ]
  )


def _random_crop(
  data: bytes, *, size: int, draws: np.ndarray, strict: bool = True
) -> np.ndarray:
  pixels = decode.read_box(
    data,
    lambda width, height: crop.random_resized_box(width, height, draws),
    strict=strict,
  )
  return crop.resize(pixels, size)


def _central_crop(data: bytes, *, size: int, strict: bool = True) -> np.ndarray:
  pixels = decode.read_rgb(data, strict=strict)
  return crop.central_square(pixels, size, short_side=round(size * _RESIZED / _CUT))
