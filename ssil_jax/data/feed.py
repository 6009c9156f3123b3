"""Batches for the devices, made ahead of time by grain.

Element n of a grain source is batch n, so that grain only loads, decodes and prefetches;
which records a batch holds is decided by `sampling.py`, from counters alone.
"""

import os
from collections.abc import Callable, Iterator

import grain
import numpy as np

from ssil_jax.data import images
from ssil_jax.data.dataset import Dataset, Split
from ssil_jax.sampling import Key, Pool, Purpose, Sampling, device_shares
from ssil_jax.step import Batch

_TEST_MARGIN = 256 / 224  # test images: short side to 256, centre 224 (section 6.2)


class _Batches:
  """A grain random-access source whose element n is batch n."""

  def __init__(self, make_batch: Callable[[int], Batch], num_batches: int):
    self._make_batch = make_batch
    self._num_batches = num_batches

  def __len__(self) -> int:
    return self._num_batches

  def __getitem__(self, n: int) -> Batch:
    return self._make_batch(n)


def prefetched(
  make_batch: Callable[[int], Batch], num_batches: int, *, start: int = 0
) -> Iterator[Batch]:
  """Batches start, start + 1, ..., made by background threads in this order."""
  source = grain.MapDataset.source(_Batches(make_batch, num_batches))
  # A thread makes a whole batch; one that finds no room in the buffer is idle.
  threads = os.cpu_count() or 1
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(3, threads))
  return iter(source[start:].to_iter_dataset(options))


def train_batch_maker(
  dataset: Dataset,
  pool: Pool,
  sampling: Sampling,
  key: Key,
  *,
  batch_size_new: int,
  batch_size_memory: int,
  num_devices: int,
) -> Callable[[int], Batch]:
  """Step of a phase -> its batch, [num_devices, share, ...]; every share N_D : N_M."""
  sizes = sampling.group_sizes(pool, batch_size_new, batch_size_memory)
  positions = device_shares(sizes, num_devices)

  def make_batch(step: int) -> Batch:
    records = sampling.batch(pool, key, step, batch_size_new, batch_size_memory)
    records = records[positions]
    inputs = _inputs(
      dataset.train,
      records,
      lambda image, place: _training_pixels(
        image, dataset, key.rng(Purpose.CROP, step, place)
      ),
      positions,
    )
    return Batch(inputs, dataset.train.labels[records], positions)

  return make_batch


def eval_batch_maker(
  dataset: Dataset, records: np.ndarray, *, batch_size: int, num_devices: int
) -> tuple[Callable[[int], Batch], int]:
  """Test batches of equal shape, the last one padded with positions of -1.

  Returns:
    n -> batch n, and the number of batches.
  """
  share = -(-batch_size // num_devices)
  whole = share * num_devices
  num_batches = -(-len(records) // whole)

  def make_batch(n: int) -> Batch:
    chunk = records[n * whole : (n + 1) * whole]
    positions = np.arange(whole, dtype=np.int32)
    positions[len(chunk) :] = -1
    # Padding repeats the first record; its position keeps it out of every count.
    chunk = np.concatenate([chunk, np.full(whole - len(chunk), records[0])])
    chunk, positions = (x.reshape(num_devices, share) for x in (chunk, positions))
    inputs = _inputs(
      dataset.test,
      chunk,
      lambda image, _: images.central_square(
        image, dataset.image_size, margin=_TEST_MARGIN
      ),
      positions,
    )
    return Batch(inputs, dataset.test.labels[chunk], positions)

  return make_batch, num_batches


def _training_pixels(image, dataset: Dataset, rng: np.random.Generator) -> np.ndarray:
  if dataset.random_resized_crop:
    return images.random_resized_crop(image, dataset.image_size, rng)
  return images.central_square(image, dataset.image_size, margin=_TEST_MARGIN)


def _inputs(split: Split, records, to_pixels, positions) -> np.ndarray:
  """Record numbers for images on the device, else decoded images; shaped as records."""
  if split.on_device:
    return records.astype(np.int32)
  flat = [
    to_pixels(images.read_rgb(split.images[record]), place)
    for record, place in zip(records.ravel(), positions.ravel().tolist(), strict=True)
  ]
  return np.stack(flat).reshape(*records.shape, *flat[0].shape)
