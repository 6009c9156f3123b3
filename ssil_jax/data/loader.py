"""Batches for the devices, made ahead of time by grain.

Element n of a grain source is batch n, so that grain only loads, decodes and prefetches;
which records a batch holds is decided by `sampling.py`, from counters alone.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from grain.experimental import ThreadPrefetchIterDataset

from ssil_jax.data import workers
from ssil_jax.data.dataset import Batch, Dataset, Split
from ssil_jax.data.encoded import EncodedImages
from ssil_jax.data.images import crop
from ssil_jax.sampling import Key, Pool, Purpose, Sampling, device_shares
from ssil_jax.system import usable_cores

RESIZED, CUT = 256, 224  # test images: short side, then centre (section 6.2)
_BATCHES_AHEAD = 3  # on the host
_BATCHES_ON_DEVICE = 2  # beside the one in use
LIGHT = 16  # batches of numbers, kilobytes each


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
  devices: range | None = None  # whose shares are made; None for all

  def __len__(self) -> int:
    return self.num_steps

  def __getitem__(self, step: int) -> Batch:
    """Makes arrays [devices, share, ...]; every share has N_D : N_M.

    Labels are those of the images that have one, and come first in the share.
    """
    if not 0 <= step < len(self):
      raise IndexError(f"batch {step} of {len(self)}")
    batch_sizes = self.batch_size_new, self.batch_size_memory
    records = self.sampling.batch(
      self.pool, self.key, step, *batch_sizes, records=self._epoch_records
    )
    sizes, positions, split = self._sizes, self._positions, self.dataset.train
    dealt = records[positions]
    numbers = inputs = dealt.astype(np.int32)
    unlabeled = sizes[-1] // self.num_devices if self.sampling.draws_unlabeled else 0
    labeled = dealt[:, : dealt.shape[1] - unlabeled]  # they come last in every share
    if not split.on_device:
      # Row by row, so that a position's numbers are the same in a batch of any size.
      draws = self.key.rng(Purpose.CROP, step).random((len(records), *crop.DRAWS_SHAPE))
      size, random = self.dataset.image_size, self.dataset.random_resized_crop
      # In the devices' order already: to reorder decoded images would copy them.
      images = [
        random_crop(*self._encoded(record), size, draws[position])
        if random
        else central_crop(*self._encoded(record), size)
        for record, position in zip(dealt.flat, positions.flat, strict=True)
      ]
      inputs = np.stack(images).reshape(*positions.shape, *images[0].shape)
    return Batch(inputs, split.labels[labeled], positions, numbers)

  @property
  def are_light(self) -> bool:
    """Says whether they are numbers alone."""
    return self.dataset.train.on_device

  # What all batches have in common; positions are one array, to be sent once.

  @functools.cached_property
  def _epoch_records(self) -> np.ndarray:
    return self.sampling.epoch_records(self.pool)

  @functools.cached_property
  def _sizes(self) -> tuple[int, ...]:
    return self.sampling.group_sizes(self.pool, self.batch_size_new, self.batch_size_memory)

  @functools.cached_property
  def _positions(self) -> np.ndarray:
    return _of_devices(device_shares(self._sizes, self.num_devices), self.devices)

  def _encoded(self, record: int) -> tuple[EncodedImages, int]:
    """Returns where a training record is, or an image without a label, and its number."""
    count = len(self.dataset.train.labels)
    if record < count:
      return self.dataset.train.images, record
    return self.dataset.unlabeled.images, record - count


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalBatches:
  """Batches that are not augmented, of equal shape; the last is padded, position -1."""

  split: Split
  image_size: int
  records: np.ndarray  # int64 [n], of the split
  batch_size: int  # rounded up to a multiple of the devices
  num_devices: int
  devices: range | None = None  # whose shares are made; None for all

  @property
  def are_light(self) -> bool:
    """Says whether they are numbers alone."""
    return self.split.on_device

  @property
  def _share(self) -> int:
    return -(-self.batch_size // self.num_devices)

  def __len__(self) -> int:
    return -(-len(self.records) // (self._share * self.num_devices))

  def __getitem__(self, n: int) -> Batch:
    """Makes arrays [devices, share, ...]."""
    if not 0 <= n < len(self):
      raise IndexError(f"batch {n} of {len(self)}")
    shape = (self.num_devices, self._share)
    chunk = self.records[n * math.prod(shape) : (n + 1) * math.prod(shape)]
    places = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
    places = _of_devices(places, self.devices)
    real = places < len(chunk)
    # Padding repeats the first record; its position keeps it out of every count.
    positions, records = np.where(real, places, -1), chunk[np.where(real, places, 0)]
    numbers = inputs = records.astype(np.int32)
    if not self.split.on_device:
      # Padding is read once.
      images = [
        central_crop(self.split.images, record, self.image_size)
        for record in records.ravel()[: np.count_nonzero(real) + 1].tolist()
      ]
      images += images[-1:] * (records.size - len(images))
      inputs = np.stack(images).reshape(*records.shape, *images[0].shape)
    return Batch(inputs, self.split.labels[records], positions, numbers)


def _of_devices(shares: np.ndarray, devices: range | None) -> np.ndarray:
  return shares if devices is None else shares[devices.start : devices.stop]


def prefetched(
  batches: Sequence[Batch],
  to_device: Callable[[Batch], Any],
  *,
  start: int = 0,
  num_processes: int = 0,
  at_once: int = 1,
) -> Iterator[Any]:
  """Makes batches start, start + 1, ... and sends them in the background.

  Work begins with the first one asked for; `close` of the iterator ends it.

  Args:
    to_device: Batch -> what the caller wants of it; called in one background thread.
    num_processes: worker processes that make the batches; with 0, threads of this one do,
      a whole batch each. Their decoding runs in parallel, their Python and resampling do
      not, which limits them on hosts with very many cores (benchmarks/README.md).
    at_once: batches that go from thread to thread together: `LIGHT` of those that are
      numbers alone, for which the way would take longer than the work.
  """
  threads = usable_cores()
  # A thread that finds no room in the buffer is idle.
  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=max(_BATCHES_AHEAD, threads)
  )
  source = grain.MapDataset.source(_Several(batches, start, at_once))
  made = source.to_iter_dataset(options)
  if num_processes:
    made = workers.in_processes(made, num_processes, ahead=_BATCHES_AHEAD)
  sent = ThreadPrefetchIterDataset(
    made.map(lambda several: [to_device(batch) for batch in several]),
    prefetch_buffer_size=_BATCHES_ON_DEVICE,
  )
  return _one_by_one(workers.watched(iter(sent), num_processes))


@dataclasses.dataclass(frozen=True)
class _Several:
  """Batches from `start` on, `at_once` of them in a list."""

  batches: Sequence[Batch]
  start: int
  at_once: int

  def __len__(self) -> int:
    return -(-(len(self.batches) - self.start) // self.at_once)

  def __getitem__(self, n: int) -> list[Batch]:
    first = self.start + n * self.at_once
    last = min(first + self.at_once, len(self.batches))
    return [self.batches[number] for number in range(first, last)]


def _one_by_one(several: Generator[list[Any], None, None]) -> Iterator[Any]:
  with contextlib.closing(several):
    for batches in several:
      yield from batches


def random_crop(
  images: EncodedImages, record: int, size: int, draws: np.ndarray
) -> np.ndarray:
  """Reads a random resized crop, uint8 [S, S, 3]; `draws` decide where it lies."""
  image = images.open(record)
  box = crop.random_resized_box(image.width, image.height, draws)
  return crop.resize(image.read(box), size)


def central_crop(images: EncodedImages, record: int, size: int) -> np.ndarray:
  """Reads the middle of an image, uint8 [S, S, 3]."""
  pixels = images.open(record).read()
  return crop.central_square(pixels, size, short_side=round(size * RESIZED / CUT))
