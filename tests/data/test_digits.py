"""The embedded digits: split, class order, sizes."""

import numpy as np
import pytest
from folders import config_of

from ssil_jax.data.dataset import records_of
from ssil_jax.data.images import crop
from ssil_jax.data.images.augment import Augmentation
from ssil_jax.data.opening import open_dataset


@pytest.fixture(scope="module")
def digits():
  return open_dataset(config_of(dataset="digits"))


def test_digits_are_1797_images(digits):
  assert digits.train.images.shape == (1433, 8, 8, 3)
  assert digits.test.images.shape == (364, 8, 8, 3)
  assert digits.train.images.dtype == np.uint8
  assert digits.train.images.max() == 255
  assert digits.image_size == 8
  assert digits.train.on_device
  assert digits.ignored_files == 0


def test_digits_are_split_evenly_by_class(digits):
  train, test = (np.bincount(split.labels) for split in (digits.train, digits.test))
  # Every fifth of each digit is for testing, rounded up.
  assert test.tolist() == [-(-n // 5) for n in (train + test).tolist()]
  train, test = (
    {x.tobytes() for x in split.images} for split in (digits.train, digits.test)
  )
  assert not train & test


def test_digits_of_another_size(digits):
  larger = open_dataset(config_of(dataset="digits", image_size=12)).test.images
  for pixels, small in zip(larger, digits.test.images, strict=True):
    assert np.array_equal(pixels, crop.central_square(small, 12, short_side=12))


def test_digits_labels_follow_the_class_order(digits):
  # numpy.random.RandomState(0).permutation(10)
  order = [2, 8, 4, 9, 1, 6, 7, 3, 0, 5]
  assert digits.class_names == tuple(map(str, order))
  other = open_dataset(config_of(dataset="digits", class_order_seed=1))
  for label, name in enumerate(digits.class_names):
    there = other.class_names.index(name)
    assert np.array_equal(
      digits.test.images[digits.test.labels == label],
      other.test.images[other.test.labels == there],
    )


@pytest.mark.parametrize(
  ("augment", "expected"),
  [
    ("auto", Augmentation(max_shift=1, flip=False)),  # a mirrored digit is none
    ("crop", Augmentation(max_shift=1, flip=False)),
    ("crop_flip", Augmentation(max_shift=1, flip=True)),
    ("none", Augmentation(max_shift=0, flip=False)),
  ],
)
def test_augmentation_of_digits(augment, expected):
  digits = open_dataset(config_of(dataset="digits", augment=augment))
  assert digits.augmentation == expected
  assert not digits.random_resized_crop


def test_records_of_a_range_of_classes():
  labels = np.array([2, 0, 1, 3, 1, 0])
  assert records_of(labels, 1, 3).tolist() == [0, 2, 4]
  assert records_of(labels, 3, 3).tolist() == []


def test_validation_digits_are_held_out_of_the_training_digits(digits):
  held = open_dataset(config_of(dataset="digits", validation_fraction=0.25))
  assert len(held.train.labels) + len(held.test.labels) == 1433
  assert len(held.test.labels) / 1433 == pytest.approx(0.25, abs=0.05)
  left, scored, test = (
    {x.tobytes() for x in split.images} for split in (held.train, held.test, digits.test)
  )
  assert left | scored == {x.tobytes() for x in digits.train.images}
  assert not scored & (left | test)
  assert {*held.test.labels} == {*range(10)}


def test_digits_are_those_of_scikit_learn(digits):
  from sklearn.datasets import load_digits

  expected = load_digits()
  pixels = [
    (int(digits.class_names[label]), image[..., 0].tobytes())
    for split in (digits.train, digits.test)
    for label, image in zip(split.labels, split.images, strict=True)
  ]
  gray = np.round(expected.images * (255 / 16)).astype(np.uint8)
  assert sorted(pixels) == sorted(
    (label, image.tobytes()) for label, image in zip(expected.target, gray, strict=True)
  )
