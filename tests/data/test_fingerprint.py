"""What tells data sets apart, and how a difference is told."""

import hashlib
import shutil

import numpy as np
import pytest
from folders import config_of, folder_of, noise, open_folder, save

from ssil_jax.data import fingerprint
from ssil_jax.data.opening import open_dataset


@pytest.fixture(scope="module")
def digits():
  return open_dataset(config_of(dataset="digits", num_classes=4))


def changed(dataset, split, **fields):
  """Another data set, one split of which has other images or labels."""
  return dataset._replace(**{split: getattr(dataset, split)._replace(**fields)})


def different_parts(dataset, other):
  parts = fingerprint.parts(other), fingerprint.parts(dataset)
  return [line.split(":")[0] for line in fingerprint.differences(*parts)]


def test_numbers_are_told_and_the_rest_are_hashes(digits):
  parts = fingerprint.parts(digits)
  assert parts["classes"] == 4
  assert parts["image size"] == 8
  assert parts["training images"] == len(digits.train.labels)
  assert parts["test images"] == len(digits.test.labels)
  hashes = {name: part for name, part in parts.items() if isinstance(part, str)}
  assert set(hashes) == {
    "class names",
    "labels of training images",
    "labels of test images",
    "pixels of training images",
    "pixels of test images",
  }
  assert len(set(hashes.values())) == len(hashes)
  assert all(len(part) == 32 for part in hashes.values())


def test_the_same_data_have_the_same_parts(digits):
  again = open_dataset(config_of(dataset="digits", num_classes=4))
  # However the array lies in memory.
  again = changed(again, "train", images=np.asfortranarray(again.train.images))
  assert fingerprint.parts(again) == fingerprint.parts(digits)


@pytest.mark.parametrize("split", ["train", "test"])
def test_one_pixel_or_label_is_another_data_set(digits, split):
  name = {"train": "training", "test": "test"}[split]
  part = getattr(digits, split)
  images, labels = part.images.copy(), part.labels.copy()
  images[-1, -1, -1, -1] ^= 1
  labels[7] = (labels[7] + 1) % 4
  other = changed(digits, split, images=images, labels=labels)
  assert different_parts(digits, other) == [
    f"labels of {name} images",
    f"pixels of {name} images",
  ]
  other = digits._replace(class_names=tuple(reversed(digits.class_names)))
  assert different_parts(digits, other) == ["class names"]


def test_the_fingerprint_is_of_every_part(digits):
  parts = fingerprint.parts(digits)
  others = [{**parts, name: f"{part}0"} for name, part in parts.items()]
  assert len({fingerprint.fingerprint(x) for x in (parts, *others)}) == 1 + len(parts)


def test_differences_tell_numbers_and_hide_hashes():
  there = {"classes": 3, "test images": 20, "labels": "0a", "same": "f"}
  now = {"classes": 4, "test images": 20, "labels": "0b", "same": "f"}
  assert fingerprint.differences(now, there) == [
    "classes: 3 there, 4 now",
    "labels: different",
  ]
  assert fingerprint.differences(now, now) == []


def test_a_part_that_only_one_has_is_not_compared():
  one, both = {"a": 1}, {"a": 1, "contents": "0a"}
  for now, there in ((one, both), (both, one)):
    assert fingerprint.differences(now, there) == []
    assert fingerprint.uncompared(now, there) == ["contents"]
  assert fingerprint.uncompared(both, both) == []


def test_parts_of_earlier_versions_keep_their_names_and_values(root):
  images = open_folder(root, image_size=80).train.images
  names = b"0.png1.png" * 3
  digest = hashlib.blake2b(names)
  digest.update(np.arange(5, 31, 5).tobytes())
  expected = hashlib.blake2b(digest.digest(), digest_size=16)
  expected.update(images.numbers)
  # Else the photos of such a run could have got other names, and it would be gone on with.
  found = fingerprint.parts(open_folder(root, image_size=80))
  assert found["files of training images"] == expected.hexdigest()


@pytest.mark.parametrize("image_size", [8, 80])
def test_image_folders_are_told_apart_by_their_files(tmp_path, image_size):
  root = folder_of(tmp_path / "a")
  first = open_folder(root, image_size=image_size)
  shutil.copytree(root, tmp_path / "b")
  elsewhere = open_folder(tmp_path / "b", image_size=image_size)
  assert fingerprint.parts(elsewhere) == fingerprint.parts(first)
  image = tmp_path / "b" / "train" / "a" / "0.png"
  if image_size == 8:
    save(image, noise(8, 8, seed=99))
  else:  # streamed: known by the files
    image.write_bytes((root / "train" / "b" / "0.png").read_bytes())
  expected = {8: "pixels of training images", 80: "contents of training images"}
  other = open_folder(tmp_path / "b", image_size=image_size)
  assert different_parts(first, other) == [expected[image_size]]
  (tmp_path / "b" / "test" / "c" / "1.png").unlink()
  found = different_parts(first, open_folder(tmp_path / "b", image_size=image_size))
  assert "test images" in found
  assert "labels of test images" in found
