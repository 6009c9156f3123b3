"""Folders of images: what is read, and each mistake by its name."""

import os
import shutil

import numpy as np
import pytest
from folders import RED, config_of, encode, folder_of, noise, open_folder, save
from PIL import Image

from ssil_jax.data.images.augment import Augmentation
from ssil_jax.data.sources.folder import open_image_folder
from ssil_jax.errors import DataError


def test_images_and_labels_of_a_folder(root):
  dataset = open_folder(root)
  # numpy.random.RandomState(0).permutation(3) is 2, 1, 0.
  assert dataset.class_names == ("c", "b", "a")
  assert dataset.train.labels.tolist() == [2, 2, 1, 1, 0, 0]
  assert dataset.image_size == 8
  for record, (c, i) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]):
    assert np.array_equal(dataset.train.images[record], noise(8, 8, seed=(0, c, i)))
    assert np.array_equal(dataset.test.images[record], noise(8, 8, seed=(1, c, i)))
  assert dataset.augmentation == Augmentation(max_shift=1, flip=True)
  assert not dataset.random_resized_crop
  assert dataset.normalization is None
  assert dataset.ignored_files == 0
  assert dataset.notes == (
    "training images have 8x8 to 8x8 pixels, 8 in the median of the longer sides; the "
    "network sees 8x8",
  )


def test_records_are_in_the_order_of_names_not_of_creation(tmp_path):
  for name, red in [("b", 20), ("10", 1), ("a", 10), ("9", 2), ("B", 5)]:
    save(tmp_path / "train" / "x" / f"{name}.png", (red, 0, 0))
  save(tmp_path / "test" / "x" / "0.png", RED)
  reds = open_folder(tmp_path).train.images[:, 0, 0, 0]
  assert reds.tolist() == [1, 2, 5, 10, 20]  # 10, 9, B, a, b


def test_val_may_stand_for_test_and_test_wins_over_val(tmp_path):
  assert len(open_folder(folder_of(tmp_path, each=3, test="val")).test.labels) == 9
  folder_of(tmp_path, each=2)
  assert len(open_folder(tmp_path).test.labels) == 6


def test_image_formats(root):
  # The content tells, not the name.
  formats = {"PNG": "JPEG", "jpeg": "JPEG", "JPG": "PNG", "webp": "WEBP", "WebP": "WEBP"}
  for suffix, file_format in formats.items():
    save(root / "train" / "a" / f"9.{suffix}", (200, 100, 50), format=file_format)
  dataset = open_folder(root)
  assert len(dataset.train.images) == 6 + len(formats)
  assert dataset.ignored_files == 0
  pixels = dataset.train.images[2 : 2 + len(formats)]  # after a/0.png and a/1.png
  assert np.abs(pixels.astype(int) - (200, 100, 50)).max() <= 5  # JPEG and WebP lose


def test_other_files_and_folders_are_counted_and_not_read(root):
  for place in ("train/a/Thumbs.db", "train/b/notes.txt", "test/c/x.png.part"):
    (root / place).write_text("no image")
  (root / "train" / ".cache").mkdir()
  (root / "test" / ".ipynb_checkpoints").mkdir()
  (root / "train" / "a" / "folder").mkdir()
  dataset = open_folder(root)
  assert dataset.ignored_files == 4
  assert len(dataset.train.labels) == 6


# Bad input; most of it is in docs/bad_inputs.md.


@pytest.mark.parametrize(("split", "other"), [("train", "test"), ("test", "train")])
def test_both_splits_have_the_same_classes_and_images_of_all(root, split, other):
  save(root / split / "extra" / "0.png", RED)
  with pytest.raises(DataError, match=f"class extra .*{root / split} but not .*{other}"):
    open_folder(root)
  shutil.rmtree(root / split / "extra")
  for path in (root / split / "b").iterdir():
    path.rename(path.with_suffix(".txt"))
  with pytest.raises(DataError, match=f"{root / split / 'b'} has no images"):
    open_folder(root)
  shutil.rmtree(root / split)
  save(root / split / "0.png", RED)  # not in a class folder
  with pytest.raises(DataError, match=f"{root / split} has no class folders"):
    open_folder(root)


# Large images stay files.


@pytest.fixture
def large(tmp_path):
  """Images that 72 x 72 pixels are cut out of."""
  return folder_of(tmp_path / "large", ("a", "b"), shape=(70, 80), suffix="jpg")


def open_large(root, **values):
  return open_folder(root, image_size=72, num_states=2, **values)


def test_large_images_stay_files(large):
  dataset = open_large(large)
  assert not dataset.train.on_device
  # numpy.random.RandomState(0).permutation(2) is 1, 0; records stay as they are found.
  assert dataset.class_names == ("b", "a")
  assert dataset.train.labels.tolist() == [1, 1, 0, 0]
  assert dataset.random_resized_crop
  assert dataset.augmentation == Augmentation(max_shift=0, flip=True)
  fewer = open_large(large, num_classes=1, memory_size=1).train.images
  assert [fewer.name(n) for n in range(2)] == [f"{large}/train/b/{n}.jpg" for n in range(2)]


def test_large_images_have_224_pixels_unless_told(tmp_path):
  for split in ("train", "test"):
    save(tmp_path / split / "a" / "0.png", noise(65, 10))
  assert open_folder(tmp_path).image_size == 224
  assert open_folder(tmp_path, image_size=32).train.images.shape == (1, 32, 32, 3)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_long_header_of_a_large_test_image_is_read_to_its_end(large, suffix):
  # Longer than what is read of each file at first, and more than one segment.
  file_format = "JPEG" if suffix == "jpg" else suffix.upper()
  exif = Image.Exif()
  exif[0x010E] = "x" * 40_000
  profile = np.random.default_rng(0).bytes(90_000)
  data = encode(noise(70, 80), file_format, exif=exif, icc_profile=profile)
  assert len(data) > 130_000
  (large / "test" / "a" / f"2.{suffix}").write_bytes(data)
  assert len(open_large(large, verify_data=False).test.labels) == 5
  (large / "test" / "a" / f"2.{suffix}").write_bytes(data[:50_000])
  with pytest.raises(DataError, match=f"cannot read image {large / 'test' / 'a' / '2'}"):
    open_large(large, verify_data=False)


def test_names_of_any_bytes_and_lengths_are_found_again(tmp_path):
  found = ["0.png", "\u00e9t\u00e9 \U0001f600.png", "x" * 200 + ".png"]
  # Linux takes other bytes than UTF-8, too.
  found.append(os.fsdecode(b"caf\xe9.png"))
  folders = {"\u00e4": found, "b": ["0.png"], "\u732b": found[:2]}
  for split in ("train", "test"):
    for c, (name, files) in enumerate(folders.items()):
      for i, file_name in enumerate(files):
        try:
          save(tmp_path / split / name / file_name, noise(70, 70, seed=(c, i)))
        except OSError:
          pytest.skip("this file system takes UTF-8 alone")
  images = open_folder(tmp_path, image_size=72, num_states=3).train.images
  expected = [
    os.path.join(tmp_path, "train", name, file_name)
    for name in sorted(folders)
    for file_name in sorted(folders[name])
  ]
  assert [images.name(record) for record in range(len(images))] == expected
  for record, path in enumerate(expected):
    with open(path, "rb") as file:
      assert images.open(record).data == file.read()


def test_stamps_sizes_and_headers_are_of_the_files_asked_for(tmp_path):
  (tmp_path / "test" / "a").mkdir(parents=True)
  folder = tmp_path / "train" / "a"
  save(folder / "0.png", noise(9, 9))
  (folder / "1.png").hardlink_to(folder / "0.png")  # the same size and times
  (folder / "2.png").write_bytes(b"text")
  (folder / "3.png").symlink_to("nowhere")
  shutil.copy(folder / "0.png", tmp_path / "test" / "a")
  images = open_image_folder(
    config_of(dataset="image_folder", data_dir=str(tmp_path))
  ).train.images
  one, other, text, missing = images.store.stamps(np.arange(4)).tolist()
  assert len({one, other, text, 0}) == 4
  assert missing == 0
  assert images.store.sizes(np.array([2, 3])).tolist() == [4, -1]
  images.take(np.array([0, 1, 0])).check_headers()
  for number, reason in ((2, "not a JPEG"), (3, "No such file")):
    with pytest.raises(
      DataError, match=f"cannot read image {folder}/{number}.png: {reason}"
    ):
      images.take(np.array([0, number, 1])).check_headers()
