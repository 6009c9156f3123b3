"""Batches: record numbers or decoded images, in order, from any step on."""

import math
import os
import threading
import types

import numpy as np
import pytest
from folders import encode, noise, open_folder, save
from hypothesis import given
from hypothesis import strategies as st

from ssil_jax.data import loader
from ssil_jax.data.dataset import Batch
from ssil_jax.data.images import crop, jpeg_layout
from ssil_jax.errors import DataError
from ssil_jax.sampling import (
  RATIO_PRESERVING,
  RATIO_PRESERVING_TWICE,
  SHUFFLED,
  Key,
  Pool,
  Purpose,
)

POOL = Pool(new=np.arange(4), memory=np.array([4, 5]))
KEY = Key(seed=0, state=2, phase=0)


def train_batches(dataset, **changes):
  values = {
    "pool": POOL,
    "sampling": RATIO_PRESERVING,
    "key": KEY,
    "batch_size_new": 4,
    "batch_size_memory": 2,
    "num_devices": 1,
    "num_steps": 9,
    **changes,
  }
  return loader.TrainBatches(dataset=dataset, **values)


def eval_batches(dataset, records, **sizes):
  return loader.EvalBatches(
    split=dataset.test, image_size=dataset.image_size, records=np.array(records), **sizes
  )


# Batches of small images, which are on the device already.


def test_batches_of_small_images_are_record_numbers(root):
  dataset = open_folder(root)
  batches = train_batches(dataset, num_devices=2)
  assert batches[7].inputs.dtype == np.int32
  # Each device: two new samples, then one exemplar.
  assert batches[7].positions.tolist() == [[0, 1, 4], [2, 3, 5]]
  records = RATIO_PRESERVING.batch(POOL, KEY, 7, 4, 2)
  assert batches[7].inputs.tolist() == records[[[0, 1, 4], [2, 3, 5]]].tolist()
  assert batches[7].records.tolist() == batches[7].inputs.tolist()
  assert np.array_equal(batches[7].labels, dataset.train.labels[batches[7].inputs])
  shuffled = train_batches(dataset, sampling=SHUFFLED, num_devices=2)[0]
  assert shuffled.positions.tolist() == [[0, 1], [2, 3]]
  records = SHUFFLED.batch(POOL, KEY, 0, 4, 2)
  assert shuffled.inputs.tolist() == records.reshape(2, 2).tolist()
  assert len(list(batches)) == len(batches) == 9
  for number in (-1, 9):
    with pytest.raises(IndexError, match=f"batch {number} of 9"):
      batches[number]


def test_the_last_test_batch_is_padded(root):
  dataset = open_folder(root)
  batches = eval_batches(dataset, [5, 0, 3, 1, 2, 4], batch_size=4, num_devices=2)
  first, last = batches
  for number in (-1, 2):
    with pytest.raises(IndexError, match=f"batch {number} of 2"):
      batches[number]
  assert first.positions.tolist() == [[0, 1], [2, 3]]
  assert first.inputs.tolist() == first.records.tolist() == [[5, 0], [3, 1]]
  assert first.inputs.dtype == np.int32
  assert last.positions.tolist() == [[0, 1], [-1, -1]]
  assert last.inputs.tolist() == last.records.tolist() == [[2, 4], [2, 2]]
  assert np.array_equal(last.labels, dataset.test.labels[last.inputs])
  # The batch is rounded up to the devices.
  (batch,) = eval_batches(dataset, range(5), batch_size=4, num_devices=3)
  assert batch.positions.tolist() == [[0, 1], [2, 3], [4, -1]]


# Batches of streamed images.


@pytest.fixture
def large(tmp_path):
  """Images of unequal sizes that are read as 72 x 72; some can be cut without decoding."""
  for split in ("train", "test"):
    for c, name in enumerate("ab"):
      for i in range(3):
        pixels = noise(80 + 9 * i, 100, seed=(split == "test", c, i))
        path = tmp_path / split / name / f"{i}.png"
        save(path, pixels)
        if i:
          path.write_bytes(jpeg_layout.add_index(encode(pixels, restart_marker_blocks=1)))
  return open_folder(tmp_path, image_size=72, num_states=2)


def test_streamed_training_images_are_random_crops_of_their_records(large):
  batch = train_batches(large)[5]
  assert batch.inputs.dtype == np.uint8
  assert batch.inputs.shape == (1, 6, 72, 72, 3)
  draws = KEY.rng(Purpose.CROP, 5).random((6, *crop.DRAWS_SHAPE))
  for place, record in enumerate(RATIO_PRESERVING.batch(POOL, KEY, 5, 4, 2)):
    image = large.train.images.open(record).read()
    height, width, _ = image.shape
    left, top, right, bottom = crop.random_resized_box(width, height, draws[place])
    expected = crop.resize(image[top:bottom, left:right], 72)
    assert np.array_equal(batch.inputs[0, place], expected)
    assert batch.labels[0, place] == large.train.labels[record]


def test_streamed_images_that_are_not_augmented_are_central_squares(tmp_path, large):
  plain = open_folder(tmp_path, image_size=72, num_states=2, augment="none")
  tested = eval_batches(large, range(5), batch_size=5, num_devices=1)[0]
  for split, batch in (("train", train_batches(plain)[0]), ("test", tested)):
    for record, pixels in zip(batch.records[0], batch.inputs[0], strict=True):
      image = getattr(large, split).images.open(record).read()
      # 72 * 256 / 224 = 82.3
      assert np.array_equal(pixels, crop.central_square(image, 72, short_side=82))


def crops(dataset, *, seed=0, state=1, phase=0, step=0, count=2, memory=0):
  """Of one image only, at positions 0, 1, ...; those of `memory` exemplars are the last."""
  batches = train_batches(
    dataset,
    pool=Pool(np.zeros(count, np.int64), np.zeros(memory, np.int64)),
    key=Key(seed, state, phase),
    batch_size_new=count,
    batch_size_memory=max(memory, 1),
  )
  return batches[step].inputs[0]


def test_crops_depend_on_seed_state_phase_step_and_position(large):
  first = crops(large)
  assert np.array_equal(crops(large), first)
  assert not np.array_equal(first[0], first[1])  # positions 0 and 1
  for other in ({"seed": 1}, {"state": 2}, {"phase": 1}, {"step": 1}):
    different = crops(large, **other)
    assert not np.array_equal(different[0], first[0])
    assert not np.array_equal(different[1], first[1])
  # And not on what follows in the batch.
  assert np.array_equal(crops(large, count=7)[:2], first)
  assert np.array_equal(crops(large, count=1, memory=3)[:1], first[:1])


# Shares of several processes.


class Numbered:
  """Images that show their record's number; remembers which were decoded."""

  def __init__(self):
    self.decoded = []

  def open(self, record):
    self.decoded.append(record)
    return types.SimpleNamespace(
      width=2, height=2, read=lambda box=None: np.full((2, 2, 3), record, np.uint8)
    )


def numbered_split(*, on_device):
  labels = np.arange(200, dtype=np.int32) % 7
  return types.SimpleNamespace(images=Numbered(), labels=labels, on_device=on_device)


def together(shares):
  """The batch whose parts several processes made."""
  return Batch(*(np.concatenate(field) for field in zip(*shares, strict=True)))


def shares_of(num_processes, size):
  """The devices of each process."""
  return [range(i * size, (i + 1) * size) for i in range(num_processes)]


# Processes, and devices of each of them.
layouts = st.tuples(st.integers(1, 5), st.integers(1, 3))


@given(
  layout=layouts,
  on_device=st.booleans(),
  sampling=st.sampled_from([RATIO_PRESERVING, RATIO_PRESERVING_TWICE, SHUFFLED]),
  each=st.tuples(st.integers(1, 3), st.integers(1, 2)),
  step=st.integers(0, 9),
)
def test_processes_share_training_batches(layout, on_device, sampling, each, step):
  num_devices = math.prod(layout)
  dataset = types.SimpleNamespace(
    train=numbered_split(on_device=on_device), random_resized_crop=True, image_size=2
  )

  def batch(devices):
    return train_batches(
      dataset,
      pool=Pool(new=np.arange(150), memory=np.arange(150, 180)),
      sampling=sampling,
      batch_size_new=each[0] * num_devices,
      batch_size_memory=each[1] * num_devices,
      num_devices=num_devices,
      num_steps=10,
      devices=devices,
    )[step]

  whole = batch(None)
  dataset.train.images.decoded.clear()
  shares = [batch(devices) for devices in shares_of(*layout)]
  assert_equal([together(shares)], [whole])
  # Nothing is decoded that another process needs.
  expected = [] if on_device else whole.records.ravel().tolist()
  assert dataset.train.images.decoded == expected


@given(
  layout=layouts,
  on_device=st.booleans(),
  batch_size=st.integers(1, 40),
  count=st.integers(1, 100),
)
def test_processes_share_test_batches(layout, on_device, batch_size, count):
  num_devices = math.prod(layout)
  split = numbered_split(on_device=on_device)
  records = np.random.default_rng(count).permutation(200)[:count]

  dataset = types.SimpleNamespace(test=split, image_size=2)
  sizes = {"batch_size": batch_size, "num_devices": num_devices}
  whole = list(eval_batches(dataset, records, **sizes))
  split.images.decoded.clear()
  parts = [
    list(eval_batches(dataset, records, **sizes, devices=devices))
    for devices in shares_of(*layout)
  ]
  # All have as many batches, or they would wait for each other.
  assert {len(part) for part in parts} == {len(whole)}
  joined = [together(shares) for shares in zip(*parts, strict=True)]
  assert_equal(joined, whole)
  # Every record once, in order, whatever is left over.
  counted = np.concatenate([batch.records[batch.positions >= 0] for batch in joined])
  assert counted.tolist() == records.tolist()
  assert {batch.inputs.shape[:2] for batch in joined} == {whole[0].positions.shape}
  if not on_device:
    shown = np.concatenate([b.inputs[b.positions >= 0] for b in joined])
    assert (shown == records.astype(np.uint8)[:, None, None, None]).all()
    # And each is decoded once, but for one image that stands for padding.
    assert len(split.images.decoded) <= count + layout[0]


# Prefetching.


class Numbers:
  """Batches that are their numbers, and remember which were made."""

  def __init__(self, count):
    self.count = count
    self.made = []

  def __len__(self):
    return self.count

  def __getitem__(self, number):
    self.made.append(number)
    return number


def assert_equal(batches, expected):
  for batch, other in zip(batches, expected, strict=True):
    assert type(batch) is type(other)
    for got, wanted in zip(batch, other, strict=True):
      assert got.dtype == wanted.dtype
      assert np.array_equal(got, wanted)


@pytest.mark.parametrize("start", [0, 2, 9])
def test_prefetching_continues_exactly_where_it_is_told(large, start):
  batches = train_batches(large)
  rest = loader.prefetched(batches, lambda batch: batch, start=start)
  assert_equal(rest, [batches[step] for step in range(start, 9)])


def test_batches_are_made_in_the_background_and_only_a_few_ahead():
  # One in use, two that wait on the device and one that finds no room among them; the
  # others wait on the host.
  most_on_device, most_on_host = 4, max(3, os.cpu_count() or 1)
  numbers, sent, senders = Numbers(100_000), [], set()
  before = set(threading.enumerate())

  def to_device(number):
    sent.append(number)
    senders.add(threading.current_thread())
    return -number

  batches = loader.prefetched(numbers, to_device)
  assert numbers.made == []
  for used in range(20):
    assert next(batches) == -used
    # Were there no bound, hundreds would be made meanwhile.
    threading.Event().wait(0.01)
    assert used < len(sent) <= used + most_on_device
    assert len(sent) <= len(numbers.made) <= used + most_on_device + most_on_host
  assert sent == list(range(len(sent)))
  (sender,) = senders
  assert sender is not threading.current_thread()
  batches.close()
  for thread in set(threading.enumerate()) - before:
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.parametrize("on_the_way", [False, True])
def test_a_failure_reaches_the_caller_after_the_batches_before_it(on_the_way):
  class Failing(Numbers):
    def __getitem__(self, number):
      return number if on_the_way else to_device(number)

  def to_device(number):
    if number == 3:
      raise DataError("number 3")
    return number

  batches = loader.prefetched(Failing(9), to_device)
  assert [next(batches) for _ in range(3)] == [0, 1, 2]
  with pytest.raises(DataError) as info:
    next(batches)
  assert str(info.value) == "number 3"  # one line, as it was raised
