"""Batches: record numbers or decoded images, in order, from any step on."""

import math
import os
import threading
import types

import numpy as np
import pytest
from folders import encode, noise, open_folder, photo, save
from hypothesis import given
from hypothesis import strategies as st

from ssil_jax.data import loader
from ssil_jax.data.dataset import Batch
from ssil_jax.data.images import crop, jpeg
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


def train_batches(dataset, **changes):
  values = {
    "pool": POOL,
    "sampling": RATIO_PRESERVING,
    "key": Key(seed=0, state=2, phase=0),
    "batch_size_new": 4,
    "batch_size_memory": 2,
    "num_devices": 1,
    "num_steps": 5,
    **changes,
  }
  return loader.TrainBatches(dataset=dataset, **values)


def eval_batches(dataset, records, *, batch_size, num_devices):
  """`records`: which ones, or how many from the first on."""
  return loader.EvalBatches(
    split=dataset.test,
    image_size=dataset.image_size,
    records=np.arange(records) if isinstance(records, int) else records,
    batch_size=batch_size,
    num_devices=num_devices,
  )


# Batches of small images, which are on the device already.


def test_batches_of_small_images_are_record_numbers(root):
  dataset = open_folder(root)
  batch = train_batches(dataset, num_devices=2, num_steps=8)[7]
  assert batch.inputs.dtype == np.int32
  # Each device: two new samples, then one exemplar.
  assert batch.positions.tolist() == [[0, 1, 4], [2, 3, 5]]
  records = RATIO_PRESERVING.batch(POOL, Key(seed=0, state=2, phase=0), 7, 4, 2)
  assert batch.inputs.tolist() == records[[[0, 1, 4], [2, 3, 5]]].tolist()
  assert batch.records.tolist() == batch.inputs.tolist()
  assert np.array_equal(batch.labels, dataset.train.labels[batch.inputs])
  shuffled = train_batches(dataset, sampling=SHUFFLED, num_devices=2)[0]
  assert shuffled.positions.tolist() == [[0, 1], [2, 3]]
  records = SHUFFLED.batch(POOL, Key(seed=0, state=2, phase=0), 0, 4, 2)
  assert shuffled.inputs.tolist() == records.reshape(2, 2).tolist()
  batches = train_batches(dataset, num_steps=9)
  assert len(list(batches)) == len(batches) == 9
  for number in (-1, 9):
    with pytest.raises(IndexError, match=f"batch {number} of 9"):
      batches[number]


def test_the_last_test_batch_is_padded(root):
  dataset = open_folder(root)
  batches = eval_batches(dataset, 6, batch_size=4, num_devices=2)
  assert len(batches) == 2
  first, last = batches
  for number in (-1, 2):
    with pytest.raises(IndexError, match=f"batch {number} of 2"):
      batches[number]
  assert first.positions.tolist() == [[0, 1], [2, 3]]
  assert first.inputs.tolist() == [[0, 1], [2, 3]]
  assert first.inputs.dtype == np.int32
  assert last.positions.tolist() == [[0, 1], [-1, -1]]
  assert last.inputs.tolist() == [[4, 5], [4, 4]]
  assert np.array_equal(last.labels, dataset.test.labels[last.inputs])
  # The batch is rounded up to the devices.
  (batch,) = eval_batches(dataset, 5, batch_size=4, num_devices=3)
  assert batch.positions.tolist() == [[0, 1], [2, 3], [4, -1]]


def test_test_batches_are_of_the_records_asked_for(root):
  dataset = open_folder(root)
  records = np.array([5, 0, 3])
  batches = eval_batches(dataset, records, batch_size=2, num_devices=1)
  assert [batches[n].records.tolist() for n in (0, 1)] == [[[5, 0]], [[3, 3]]]
  assert [batches[n].inputs.tolist() for n in (0, 1)] == [[[5, 0]], [[3, 3]]]
  assert batches[0].labels.tolist() == [dataset.test.labels[[5, 0]].tolist()]
  assert batches[1].positions.tolist() == [[0, -1]]


# Batches of streamed images.


@pytest.fixture
def large(tmp_path):
  """Six training and five test images of unequal sizes, read as 72 x 72."""
  for split, each in (("train", 3), ("test", 2)):
    for c, name in enumerate("ab"):
      for i in range(each):
        seed = (split == "test", c, i)
        save(tmp_path / split / name / f"{i}.png", noise(80 + 9 * i, 100, seed=seed))
  save(tmp_path / "test" / "b" / "2.png", noise(72, 72))
  return open_folder(tmp_path, image_size=72, num_states=2)


def test_streamed_training_images_are_random_crops_of_their_records(large):
  key = Key(seed=0, state=2, phase=0)
  batch = train_batches(large, num_steps=6)[5]
  assert batch.inputs.dtype == np.uint8
  assert batch.inputs.shape == (1, 6, 72, 72, 3)
  draws = key.rng(Purpose.CROP, 5).random((6, *crop.DRAWS_SHAPE))
  for place, record in enumerate(RATIO_PRESERVING.batch(POOL, key, 5, 4, 2)):
    image = large.train.images.open(record).read()
    height, width, _ = image.shape
    left, top, right, bottom = crop.random_resized_box(width, height, draws[place])
    expected = crop.resize(image[top:bottom, left:right], 72)
    assert np.array_equal(batch.inputs[0, place], expected)
    assert batch.labels[0, place] == large.train.labels[record]


def test_streamed_images_that_are_not_augmented_are_central_squares(tmp_path, large):
  plain = open_folder(tmp_path, image_size=72, num_states=2, augment="none")
  tested = eval_batches(large, 5, batch_size=5, num_devices=1)[0]
  for split, batch in (("train", train_batches(plain)[0]), ("test", tested)):
    for record, pixels in zip(batch.records[0], batch.inputs[0], strict=True):
      image = getattr(large, split).images.open(record).read()
      # 72 * 256 / 224 = 82.3
      assert np.array_equal(pixels, crop.central_square(image, 72, short_side=82))


def test_crops_of_a_file_with_an_index_are_the_same(tmp_path):
  data = encode(photo(200, 300), restart_marker_rows=1)
  inputs = []
  for name, content in (("plain", data), ("indexed", jpeg.add_index(data))):
    for split in ("train", "test"):
      folder = tmp_path / name / split / "a"
      folder.mkdir(parents=True)
      (folder / "0.jpg").write_bytes(content)
    dataset = open_folder(tmp_path / name, image_size=72)
    assert (folder / "0.jpg").stat().st_size == len(content)
    pool = Pool(np.zeros(8, np.int64), np.zeros(0, np.int64))
    inputs.append(train_batches(dataset, pool=pool, batch_size_new=8)[0].inputs)
    inputs.append(eval_batches(dataset, 1, batch_size=1, num_devices=1)[0].inputs)
  assert len(jpeg.add_index(data)) > len(data)
  assert np.array_equal(inputs[0], inputs[2])
  assert np.array_equal(inputs[1], inputs[3])


@pytest.fixture
def one_image(tmp_path):
  """One training image, so that only the crop can differ."""
  for split in ("train", "test"):
    save(tmp_path / split / "a" / "0.png", noise(80, 80))
  return open_folder(tmp_path, image_size=72)


def crops(dataset, *, seed=0, state=1, phase=0, step=0, count=2, memory=0):
  """Of positions 0, 1, ...; those of `memory` exemplars are the last."""
  batches = train_batches(
    dataset,
    pool=Pool(np.zeros(count, np.int64), np.zeros(memory, np.int64)),
    key=Key(seed, state, phase),
    batch_size_new=count,
    batch_size_memory=max(memory, 1),
  )
  return batches[step].inputs[0]


def test_crops_depend_on_seed_state_phase_step_and_position(one_image):
  first = crops(one_image)
  assert np.array_equal(crops(one_image), first)
  assert not np.array_equal(first[0], first[1])  # positions 0 and 1
  for other in ({"seed": 1}, {"state": 2}, {"phase": 1}, {"step": 1}):
    different = crops(one_image, **other)
    assert not np.array_equal(different[0], first[0])
    assert not np.array_equal(different[1], first[1])
  # And not on what follows in the batch.
  assert np.array_equal(crops(one_image, count=7)[:2], first)
  assert np.array_equal(crops(one_image, count=1, memory=3)[:1], first[:1])


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


def shares_of(num_processes, num_devices):
  """The devices of each process."""
  size = num_devices // num_processes
  return [range(i * size, (i + 1) * size) for i in range(num_processes)]


layouts = st.tuples(st.integers(1, 5), st.integers(1, 3)).map(
  lambda x: (x[0], math.prod(x))
)


@given(
  layout=layouts,
  on_device=st.booleans(),
  sampling=st.sampled_from([RATIO_PRESERVING, RATIO_PRESERVING_TWICE, SHUFFLED]),
  each=st.tuples(st.integers(1, 3), st.integers(1, 2)),
  step=st.integers(0, 9),
)
def test_processes_share_training_batches(layout, on_device, sampling, each, step):
  num_processes, num_devices = layout
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
  shares = [batch(devices) for devices in shares_of(num_processes, num_devices)]
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
  num_processes, num_devices = layout
  split = numbered_split(on_device=on_device)
  records = np.random.default_rng(count).permutation(200)[:count]

  def batches(devices):
    return loader.EvalBatches(
      split=split,
      image_size=2,
      records=records,
      batch_size=batch_size,
      num_devices=num_devices,
      devices=devices,
    )

  whole = list(batches(None))
  split.images.decoded.clear()
  parts = [list(batches(d)) for d in shares_of(num_processes, num_devices)]
  # All have as many batches, or they would wait for each other.
  assert {len(part) for part in parts} == {len(whole)}
  joined = [together(shares) for shares in zip(*parts, strict=True)]
  assert_equal(joined, whole)
  # Every record once, in order, whatever is left over.
  counted = [batch.records[batch.positions >= 0] for batch in joined]
  assert np.concatenate(counted).tolist() == records.tolist()
  assert {batch.inputs.shape[:2] for batch in joined} == {whole[0].positions.shape}
  if not on_device:
    shown = np.concatenate([b.inputs[b.positions >= 0] for b in joined])
    assert (shown == records.astype(np.uint8)[:, None, None, None]).all()
    # And each is decoded once, but for one image that stands for padding.
    assert len(split.images.decoded) <= count + num_processes


# Prefetching.


def as_they_are(batch):
  return batch


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


@pytest.mark.parametrize("start", [0, 2, 5])
def test_prefetching_continues_exactly_where_it_is_told(large, start):
  batches = train_batches(large)
  rest = list(loader.prefetched(batches, as_they_are, start=start))
  assert_equal(rest, [batches[step] for step in range(start, 5)])


def test_batches_go_to_the_device_in_the_background_in_order():
  threads, sent = set(), []

  def to_device(number):
    threads.add(threading.current_thread())
    sent.append(number)
    return -number

  got = list(loader.prefetched(Numbers(50), to_device))
  assert got == [-number for number in range(50)]
  assert sent == list(range(50))
  assert len(threads) == 1
  assert threading.current_thread() not in threads


def test_only_a_few_batches_are_made_ahead():
  # One in use, two that wait on the device and one that finds no room among them; the
  # others wait on the host.
  most_on_device, most_on_host = 4, max(3, os.cpu_count() or 1)
  numbers, sent = Numbers(100), []

  def to_device(number):
    sent.append(number)
    return number

  batches = loader.prefetched(numbers, to_device)
  for used in range(5):
    assert next(batches) == used
    # Were there no bound, all hundred would be made meanwhile.
    threading.Event().wait(0.05)
    assert used < len(sent) <= used + most_on_device
    assert len(sent) <= len(numbers.made) <= used + most_on_device + most_on_host
  assert list(batches) == list(range(5, 100))


def test_work_begins_with_the_first_batch_and_ends_when_closed():
  numbers, before = Numbers(100_000), set(threading.enumerate())
  batches = loader.prefetched(numbers, as_they_are)
  assert numbers.made == []
  assert next(batches) == 0
  batches.close()
  for thread in set(threading.enumerate()) - before:
    thread.join(60)
    assert not thread.is_alive()
  assert len(numbers.made) < 1000


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
