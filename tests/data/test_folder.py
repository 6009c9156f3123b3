"""Folders of images: what is read, and each mistake by its name."""

import os
import pathlib

import numpy as np
import pytest
from folders import RED, config_of, encode, folder_of, noise, open_folder, save
from PIL import Image

from ssil_jax.data.encoded import EncodedImages
from ssil_jax.data.images.augment import Augmentation
from ssil_jax.data.opening import open_dataset
from ssil_jax.data.sources.folder import Files
from ssil_jax.errors import ConfigError, DataError


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


@pytest.mark.parametrize(
  ("suffix", "file_format"),
  [
    *(("png", name) for name in ("PNG", "JPEG")),  # the content tells, not the name
    *((name, "JPEG") for name in ("jpg", "jpeg", "JPG")),
    *((name, "WEBP") for name in ("webp", "WebP")),
  ],
)
def test_image_formats(root, suffix, file_format):
  save(root / "train" / "a" / f"9.{suffix}", (200, 100, 50), format=file_format)
  dataset = open_folder(root)
  pixels = dataset.train.images[2]  # after a/0.png and a/1.png
  assert len(dataset.train.images) == 7
  assert dataset.ignored_files == 0
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


# Bad input.


@pytest.mark.parametrize(
  ("name", "reason"),
  [
    ("", "needs --data_dir"),
    ("missing", "missing is not a folder"),
    ("file", "file is not a folder"),
  ],
)
def test_a_folder_must_be_given(tmp_path, name, reason):
  (tmp_path / "file").write_text("")
  with pytest.raises(DataError, match=reason):
    open_folder(tmp_path / name if name else "")


def test_both_splits_must_exist(tmp_path):
  with pytest.raises(DataError, match=f"{tmp_path / 'train'} is missing"):
    open_folder(tmp_path)
  save(tmp_path / "train" / "a" / "0.png", RED)
  with pytest.raises(DataError, match=f"{tmp_path / 'val'} is missing"):
    open_folder(tmp_path)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_must_have_classes(tmp_path, split):
  other = "test" if split == "train" else "train"
  save(tmp_path / other / "a" / "0.png", RED)
  save(tmp_path / split / "0.png", RED)  # not in a class folder
  with pytest.raises(DataError, match=f"{tmp_path / split} has no class folders"):
    open_folder(tmp_path)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_must_have_images(root, split):
  for path in (root / split / "b").iterdir():
    path.rename(path.with_suffix(".txt"))
  with pytest.raises(DataError, match=f"{root / split / 'b'} has no images"):
    open_folder(root)


@pytest.mark.parametrize(("has", "lacks"), [("train", "test"), ("test", "train")])
def test_both_splits_need_the_same_classes(root, has, lacks):
  save(root / has / "extra" / "0.png", RED)
  with pytest.raises(DataError, match=f"class extra .*{root / has} but not .*{lacks}"):
    open_folder(root)


def test_more_classes_than_there_are(root):
  with pytest.raises(ConfigError, match="--num_classes=4, .* only 3"):
    open_folder(root, num_classes=4, num_states=2)


def test_an_unknown_data_set():
  with pytest.raises(ConfigError, match="--dataset=mnist is unknown; .*digits, .*imagenet"):
    open_dataset(config_of(dataset="mnist"))


# Large images stay files.


@pytest.fixture
def large(tmp_path):
  """Images of 70 x 80 pixels, which 72 x 72 are cut out of."""
  root = tmp_path / "large"
  for split in ("train", "test"):
    for c, name in enumerate(("a", "b")):
      for i in range(2):
        pixels = noise(70, 80, seed=(split == "test", c, i))
        save(root / split / name / f"{i}.jpg", pixels)
  return root


def open_large(root, **values):
  return open_folder(root, image_size=72, num_states=2, **values)


def test_large_images_stay_file_names(large):
  dataset = open_large(large)
  assert not dataset.train.on_device
  names = [dataset.train.images.name(record) for record in range(4)]
  # numpy.random.RandomState(0).permutation(2) is 1, 0; records stay as they are found.
  assert dataset.class_names == ("b", "a")
  folder = large / "train"
  assert names == [
    str(folder / name) for name in ("a/0.jpg", "a/1.jpg", "b/0.jpg", "b/1.jpg")
  ]
  assert dataset.train.labels.tolist() == [1, 1, 0, 0]
  data = (folder / "b" / "0.jpg").read_bytes()
  assert dataset.train.images.open(2).data == data
  assert dataset.random_resized_crop
  assert dataset.augmentation == Augmentation(max_shift=0, flip=True)
  fewer = open_large(large, num_classes=1, memory_size=1).train.images
  assert [fewer.name(record) for record in range(2)] == names[2:]


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


# The store of file names.


def store_of(folders, directory="/data/train"):
  """A `Files` of {folder: [file names]}."""
  names = [os.fsencode(name) for found in folders.values() for name in found]
  return Files(
    pathlib.Path(directory),
    list(folders),
    np.repeat(np.arange(len(folders), dtype=np.int32), [*map(len, folders.values())]),
    b"".join(names),
    np.cumsum([len(name) for name in names]),
  )


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
  dataset = open_folder(tmp_path, image_size=72, num_states=3)
  expected = [
    os.path.join(tmp_path, "train", name, file_name)
    for name in sorted(folders)
    for file_name in sorted(folders[name])
  ]
  images = dataset.train.images
  assert [images.name(record) for record in range(len(images))] == expected
  for record, path in enumerate(expected):
    with open(path, "rb") as file:
      assert images.open(record).data == file.read()


def test_only_the_files_asked_for_are_checked(tmp_path):
  for name, content in (("0", encode(noise(9, 9))), ("1", b"text"), ("2", b"")):
    (tmp_path / name).write_bytes(content)
  store = store_of({tmp_path.name: ["0", "1", "2"]}, tmp_path.parent)
  assert store.sizes(np.array([2, 1])).tolist() == [0, 4]
  EncodedImages(store, np.array([0, 0])).check_headers()
  with pytest.raises(DataError, match=f"cannot read image {tmp_path / '1'}: not a JPEG"):
    EncodedImages(store, np.array([0, 1, 2])).check_headers()
  with pytest.raises(DataError, match=f"cannot read image {tmp_path / '2'}"):
    EncodedImages(store, np.array([0, 2, 1])).check_headers()


def test_stamps_tell_names_apart_and_files_that_are_not_there(tmp_path):
  (tmp_path / "0").write_bytes(b"text")
  (tmp_path / "1").hardlink_to(tmp_path / "0")  # the same size and times
  store = store_of({tmp_path.name: ["0", "1", "2"]}, tmp_path.parent)
  one, other, missing = store.stamps(np.arange(3)).tolist()
  assert one != other
  assert 0 not in (one, other)
  assert missing == 0
