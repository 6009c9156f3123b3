"""Folders without test images: a share of each class is held out, by content alone."""

import hashlib
import os
import shutil

import numpy as np
import pytest
from folders import RED, folder_of, noise, open_folder, save
from PIL import Image

from ssil_jax.errors import ConfigError, DataError


@pytest.fixture
def plain(tmp_path):
  """DIR/CLASS/*, 40 images of each of two classes."""
  for c, name in enumerate(("a", "b")):
    for number in range(40):
      save(tmp_path / "plain" / name / f"{number}.png", noise(8, 8, seed=(c, number)))
  return tmp_path / "plain"


def held_out(root, **values):
  """The first pixels of the test images, and of the training images."""
  dataset = open_folder(root, num_states=1, **values)
  return tuple(
    {tuple(pixels) for pixels in split.images[:, 0, 0].tolist()}
    for split in (dataset.test, dataset.train)
  )


def test_the_hash_of_an_image_tells_its_side(plain):
  expected = ([], [])
  for path in sorted(plain.rglob("*.png")):
    digest = hashlib.blake2b(path.read_bytes(), digest_size=8).digest()
    is_train = int.from_bytes(digest, "little") >= 0.3 * 2**64
    c, number = "ab".index(path.parent.name), int(path.stem)
    expected[is_train].append((c, noise(8, 8, seed=(c, number))))
  dataset = open_folder(plain, num_states=1, test_fraction=0.3)
  for split, images in ((dataset.test, expected[0]), (dataset.train, expected[1])):
    # In the order of names, in which 10.png comes before 2.png.
    assert len(images) == len(split.labels)
    found = {
      (dataset.class_names[label], p.tobytes())
      for label, p in zip(split.labels, split.images, strict=True)
    }
    assert found == {("ab"[c], pixels.tobytes()) for c, pixels in images}
  assert 10 < len(dataset.test.labels) < 40
  assert dataset.notes[0] == (
    f"{len(dataset.test.labels)} of 80 images are kept for testing, chosen by a hash of "
    "their content (--test_fraction=0.3)"
  )


def test_an_image_stays_on_its_side_whatever_is_added_or_renamed(plain):
  test, train = held_out(plain)
  for number in range(40, 80):
    save(plain / "a" / f"{number}.png", noise(8, 8, seed=(0, number)))
  os.rename(plain / "b" / "7.png", plain / "b" / "new.png")
  shutil.copy(plain / "a" / "3.png", plain / "a" / "copy.png")
  more_test, more_train = held_out(plain)
  assert more_test > test
  assert more_train > train
  assert not more_test & more_train


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_every_class_has_images_on_both_sides(plain, fraction):
  dataset = open_folder(plain, num_states=1, test_fraction=fraction)
  few, many = sorted((dataset.test, dataset.train), key=lambda split: len(split.labels))
  assert sorted(few.labels.tolist()) == [0, 1]
  assert len(many.labels) == 78


def test_a_class_with_copies_of_one_image_is_named(plain):
  shutil.rmtree(plain / "b")
  for number in range(3):
    save(plain / "b" / f"{number}.png", RED)
  with pytest.raises(DataError, match="class b has 3 files and 1 different images"):
    open_folder(plain)


def test_classes_that_are_not_used_do_not_matter(plain):
  save(plain / "c" / "0.png", RED)  # the only one
  (plain / "names.txt").write_text("a\nb\n")
  values = {"num_states": 1, "classes": str(plain / "names.txt")}
  dataset = open_folder(plain, **values)
  assert len(dataset.train.labels) + len(dataset.test.labels) == 80
  assert f"{len(dataset.test.labels)} of 80 images are kept" in dataset.notes[1]


def test_bad_images_are_named_before_their_class(plain):
  for number in range(1, 40):
    (plain / "b" / f"{number}.png").write_bytes(b"no image")
  with pytest.raises(DataError, match="cannot read 39 of 80 images"):
    open_folder(plain, num_states=1)
  with pytest.raises(DataError, match="class b has 40 files and 1 different images that"):
    open_folder(plain, num_states=1, skip_bad_records=True)


def test_bad_images_are_named_or_counted_as_elsewhere(plain):
  (plain / "a" / "5.png").write_bytes(b"no image")
  with pytest.raises(DataError, match=r"plain/a/5.png: not a JPEG"):
    open_folder(plain, num_states=1)
  dataset = open_folder(plain, num_states=1, skip_bad_records=True)
  assert dataset.skipped_records == {"train": 1, "test": 0}


def test_what_is_no_image_is_counted_by_extension(plain):
  for name in ("a/x.TIFF", "a/y.tif", "b/notes.txt", "b/LICENSE", "loose.jpg", "a/._0.png"):
    (plain / name).write_text("no image")
  (plain / "a" / "folder").mkdir()
  dataset = open_folder(plain, num_states=1)
  assert dataset.ignored_files == 7
  assert dataset.notes[:2] == (
    "7 files or folders beside the images are ignored: 1 .jpg, 1 .tif, 1 .tiff, 1 .txt, 1 "
    "folder, 1 hidden, 1 without extension",
    "warning: images in .tif, .tiff files are not read: convert them to JPEG, PNG or WebP, "
    "if they are meant to be learnt",
  )


def test_very_many_kinds_of_files_are_told_in_a_short_line(plain):
  for number in range(30):
    (plain / "a" / f"IMG.{number:04}").write_text("")
    (plain / "a" / f"x.k{number}").write_text("")
  (plain / "a" / "odd.\x1b[31m").write_text("")
  (note,) = (n for n in open_folder(plain, num_states=1).notes if "ignored" in n)
  assert note.startswith("61 files or folders beside the images are ignored: ")
  assert note.endswith("31 without extension, and 21 other kinds")


@pytest.mark.parametrize("image_size", [0, 8, 72])
def test_test_images_that_are_training_images_are_told(tmp_path, image_size):
  shape = (70, 80) if image_size == 72 else (8, 8)
  root = folder_of(tmp_path, shape=shape)
  values = {"image_size": image_size, "num_states": 1}
  assert not any("are training images, too" in n for n in open_folder(root, **values).notes)
  shutil.copy(root / "train" / "a" / "0.png", root / "test" / "a" / "1.png")
  os.link(root / "train" / "b" / "1.png", root / "test" / "b" / "9.png")
  (root / "test" / "a" / "0.png").write_bytes(b"bad")
  dataset = open_folder(root, skip_bad_records=True, **values)
  assert dataset.notes[-1] == (
    f"warning: 2 of 6 test images are training images, too, such as {root}/test/a/1.png: "
    "accuracy on them says nothing of new images; take them out of one side"
  )
  assert np.bincount(dataset.test.labels).tolist() == [2, 3, 1]


# Validation images -----------------------------------------------------------------------


def sides_of(root, split, fraction):
  """(class, pixels) of those held out and of the others, by the hash read backwards."""
  sides = (set(), set())
  for path in sorted((root / split).rglob("*.png")):
    digest = hashlib.blake2b(path.read_bytes(), digest_size=8).digest()
    is_left = int.from_bytes(digest, "big") >= fraction * 2**64
    with Image.open(path) as image:
      sides[is_left].add((path.parent.name, np.asarray(image).tobytes()))
  return sides


def images_of(dataset, split):
  """(class, pixels) of a split."""
  pixels = split.images
  if not split.on_device:
    pixels = [split.images.open(record).read() for record in range(len(split.labels))]
  return {
    (dataset.class_names[label], image.tobytes())
    for label, image in zip(split.labels, pixels, strict=True)
  }


@pytest.mark.parametrize(("image_size", "shape"), [(8, (8, 8)), (72, (70, 80))])
def test_validation_images_are_training_images_and_the_test_split_is_not_opened(
  tmp_path, image_size, shape
):
  root = folder_of(tmp_path, each=20, shape=shape)
  for path in (root / "test").rglob("*.png"):
    path.write_bytes(b"no image")
  shutil.copy(root / "train" / "a" / "3.png", root / "train" / "a" / "copy.png")
  dataset = open_folder(root, num_states=1, image_size=image_size, validation_fraction=0.3)
  held_out, left = sides_of(root, "train", 0.3)
  assert images_of(dataset, dataset.test) == held_out
  assert images_of(dataset, dataset.train) == left
  assert 5 < len(held_out) < 30
  total = len(dataset.test.labels) + len(dataset.train.labels)
  assert total == 61  # the copy is counted on the side of its original
  assert dataset.notes[0] == (
    f"{len(dataset.test.labels)} of 61 training images are held out, chosen by a hash of "
    "their content (--validation_fraction=0.3): all scores are of these validation images, "
    "none of test images"
  )


def test_validation_images_of_a_plain_folder_are_none_of_its_test_images(plain):
  test, rest = held_out(plain, test_fraction=0.4)
  validation, train = held_out(plain, test_fraction=0.4, validation_fraction=0.4)
  assert validation | train == rest
  assert not validation & (train | test)
  # The hash that has chosen test images says nothing of the share of what is left.
  assert 0.2 < len(validation) / len(rest) < 0.6
  more, _ = held_out(plain, test_fraction=0.4, validation_fraction=0.6)
  assert more > validation


def test_a_class_that_cannot_be_validated_is_named(tmp_path):
  root = folder_of(tmp_path, each=1)
  with pytest.raises(DataError, match="class a has 1 files .* to train on and to validate"):
    open_folder(
      root, num_states=1, class_order=names_file(tmp_path), validation_fraction=0.1
    )


def names_file(folder):
  """A class order, so that the first class is a."""
  path = folder / "names.txt"
  path.write_text("a\nb\nc\n")
  return str(path)


def test_which_images_are_validation_images_is_not_known_unless_they_are_read(tmp_path):
  root = folder_of(tmp_path)
  with pytest.raises(
    ConfigError, match="--noverify_data and --validation_fraction=0.1: wh"
  ):
    open_folder(root, num_states=1, verify_data=False, validation_fraction=0.1)
