"""Batches: record numbers or decoded images, in order, from any step on."""

import numpy as np
import pytest
from folders import noise, open_folder, save
from PIL import Image

from ssil_jax.data import Augmentation, feed, images
from ssil_jax.errors import DataError
from ssil_jax.sampling import RATIO_PRESERVING, Key, Pool, Purpose

# Batches: record numbers of small images, which are on the device already.


POOL = Pool(new=np.arange(4), memory=np.array([4, 5]))


def train_batches(dataset, *, seed=0, num_devices=1):
  return feed.train_batch_maker(
    dataset,
    POOL,
    RATIO_PRESERVING,
    Key(seed=seed, state=2, phase=0),
    batch_size_new=4,
    batch_size_memory=2,
    num_devices=num_devices,
  )


def test_batches_of_small_images_are_record_numbers(root):
  dataset = open_folder(root)
  batch = train_batches(dataset, num_devices=2)(7)
  assert batch.inputs.dtype == np.int32
  # Each device: two new samples, then one exemplar.
  assert batch.positions.tolist() == [[0, 1, 4], [2, 3, 5]]
  records = RATIO_PRESERVING.batch(POOL, Key(seed=0, state=2, phase=0), 7, 4, 2)
  assert batch.inputs.tolist() == records[[[0, 1, 4], [2, 3, 5]]].tolist()
  assert np.array_equal(batch.labels, dataset.train.labels[batch.inputs])


def test_the_last_test_batch_is_padded(root):
  dataset = open_folder(root)
  make_batch, num_batches = feed.eval_batch_maker(
    dataset, np.arange(6), batch_size=4, num_devices=2
  )
  assert num_batches == 2
  first, last = make_batch(0), make_batch(1)
  assert first.positions.tolist() == [[0, 1], [2, 3]]
  assert first.inputs.tolist() == [[0, 1], [2, 3]]
  assert last.positions.tolist() == [[0, 1], [-1, -1]]
  assert last.inputs.tolist()[0] == [4, 5]
  assert np.array_equal(last.labels, dataset.test.labels[last.inputs])


def test_a_test_batch_is_rounded_up_to_the_devices(root):
  make_batch, num_batches = feed.eval_batch_maker(
    open_folder(root), np.arange(5), batch_size=4, num_devices=3
  )
  assert num_batches == 1
  assert make_batch(0).positions.tolist() == [[0, 1], [2, 3], [4, -1]]


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


def test_large_images_stay_file_names(large):
  assert not large.train.on_device
  assert [path[-9:] for path in large.train.images[:3]] == [
    f"n/a/{i}.png" for i in range(3)
  ]
  assert large.random_resized_crop
  assert large.augmentation == Augmentation(max_shift=0, flip=True)


def test_large_images_have_224_pixels_unless_told(tmp_path):
  for split in ("train", "test"):
    save(tmp_path / split / "a" / "0.png", noise(65, 10))
  assert open_folder(tmp_path).image_size == 224
  assert open_folder(tmp_path, image_size=32).train.images.shape == (1, 32, 32, 3)


def test_streamed_batches_are_images(large):
  batch = train_batches(large, num_devices=2)(0)
  assert batch.inputs.shape == (2, 3, 72, 72, 3)
  assert batch.inputs.dtype == np.uint8
  assert batch.positions.tolist() == [[0, 1, 4], [2, 3, 5]]
  assert batch.labels.shape == (2, 3)
  make_batch, num_batches = feed.eval_batch_maker(
    large, np.arange(5), batch_size=4, num_devices=2
  )
  assert num_batches == 2
  last = make_batch(1)
  assert last.inputs.shape == (2, 2, 72, 72, 3)
  assert last.inputs.dtype == np.uint8
  assert last.positions.tolist() == [[0, -1], [-1, -1]]


def test_streamed_training_images_are_random_crops_of_their_records(large):
  key = Key(seed=0, state=2, phase=0)
  batch = train_batches(large)(5)
  for place, record in enumerate(RATIO_PRESERVING.batch(POOL, key, 5, 4, 2)):
    image = images.read_rgb(large.train.images[record])
    expected = images.random_resized_crop(image, 72, key.rng(Purpose.CROP, 5, place))
    assert np.array_equal(batch.inputs[0, place], expected)
    assert batch.labels[0, place] == large.train.labels[record]


def test_streamed_test_images_are_central_squares(large):
  make_batch, _ = feed.eval_batch_maker(large, np.arange(5), batch_size=5, num_devices=1)
  inputs = make_batch(0).inputs[0]
  for pixels, path in zip(inputs, large.test.images, strict=True):
    expected = images.central_square(images.read_rgb(path), 72, margin=256 / 224)
    assert np.array_equal(pixels, expected)


def test_crops_do_not_depend_on_the_devices(large):
  one, two = train_batches(large, num_devices=1), train_batches(large, num_devices=2)
  for step in (3, 0):
    whole, shares = one(step), two(step)
    assert whole.positions.tolist() == [[0, 1, 2, 3, 4, 5]]
    assert np.array_equal(shares.inputs, whole.inputs[0][shares.positions])
    assert np.array_equal(shares.labels, whole.labels[0][shares.positions])


def test_crops_depend_on_seed_and_step(tmp_path):
  # One training image, so that only the crop can differ.
  for split in ("train", "test"):
    save(tmp_path / split / "a" / "0.png", noise(80, 80))
  dataset = open_folder(tmp_path, image_size=72)

  def crops(seed, step):
    make_batch = feed.train_batch_maker(
      dataset,
      Pool(new=np.zeros(2, np.int64), memory=np.zeros(0, np.int64)),
      RATIO_PRESERVING,
      Key(seed, state=1, phase=0),
      batch_size_new=2,
      batch_size_memory=1,
      num_devices=1,
    )
    return make_batch(step).inputs[0]

  first = crops(0, 0)
  assert np.array_equal(crops(0, 0), first)
  assert not np.array_equal(first[0], first[1])  # positions 0 and 1
  assert not np.array_equal(crops(0, 1)[0], first[0])
  assert not np.array_equal(crops(1, 0)[0], first[0])


def test_without_augmentation_training_images_are_central_squares(tmp_path):
  for split in ("train", "test"):
    save(tmp_path / split / "a" / "0.png", noise(80, 90))
  dataset = open_folder(tmp_path, image_size=72, augment="none")
  pool = Pool(np.array([0]), np.zeros(0, np.int64))
  make_batch = feed.train_batch_maker(
    dataset,
    pool,
    RATIO_PRESERVING,
    Key(0, 1, 0),
    batch_size_new=1,
    batch_size_memory=1,
    num_devices=1,
  )
  expected = images.central_square(Image.fromarray(noise(80, 90)), 72, margin=256 / 224)
  assert np.array_equal(make_batch(0).inputs[0, 0], expected)


# Prefetching.


def test_prefetched_batches_come_in_order(large):
  make_batch = train_batches(large)
  made = list(feed.prefetched(make_batch, 5))
  assert len(made) == 5
  for step, batch in enumerate(made):
    for got, expected in zip(batch, make_batch(step), strict=True):
      assert np.array_equal(got, expected)


@pytest.mark.parametrize("start", [0, 2, 4, 5])
def test_prefetching_continues_exactly_where_it_is_told(large, start):
  make_batch = train_batches(large)
  rest = list(feed.prefetched(make_batch, 5, start=start))
  assert len(rest) == 5 - start
  for step, batch in enumerate(rest, start=start):
    assert np.array_equal(batch.inputs, make_batch(step).inputs)


def test_an_unreadable_streamed_image_reaches_the_caller(large):
  path = large.train.images[3]
  with open(path, "r+b") as file:
    file.truncate(100)
  with pytest.raises(DataError, match=f"cannot read image {path}"):
    list(feed.prefetched(train_batches(large), 4))
