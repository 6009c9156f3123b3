"""Folders of images: what is read, and each mistake by its name."""

import os
import pathlib
import pickle
import shutil

import numpy as np
import pytest
from folders import GREEN, RED, config_of, encode, folder_of, noise, open_folder, save
from PIL import Image

from ssil_jax.data import fingerprint
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


def test_val_may_stand_for_test(tmp_path):
  dataset = open_folder(folder_of(tmp_path, test="val"))
  assert len(dataset.test.labels) == 6


def test_test_wins_over_val(tmp_path):
  folder_of(tmp_path, each=2)
  folder_of(tmp_path, each=3, test="val")
  assert len(open_folder(tmp_path).test.labels) == 6


@pytest.mark.parametrize("suffix", ["png", "PNG", "jpg", "jpeg", "JPG", "webp", "WebP"])
def test_image_formats(root, suffix):
  file_format = "JPEG" if suffix.lower() == "jpg" else suffix.upper()
  save(root / "train" / "a" / f"9.{suffix}", (200, 100, 50), format=file_format)
  dataset = open_folder(root)
  pixels = dataset.train.images[2]  # after a/0.png and a/1.png
  assert len(dataset.train.images) == 7
  assert dataset.ignored_files == 0
  assert np.abs(pixels.astype(int) - (200, 100, 50)).max() <= 5  # JPEG and WebP lose


def test_the_format_is_told_by_the_content_not_by_the_name(root):
  save(root / "train" / "a" / "8.png", (200, 100, 50), format="JPEG")
  save(root / "train" / "a" / "9.jpg", (200, 100, 50), format="PNG")
  pixels = open_folder(root).train.images[2:4].astype(int)
  assert np.abs(pixels[0] - (200, 100, 50)).max() <= 5
  assert (pixels[1] == (200, 100, 50)).all()


def test_hidden_folders_are_no_classes(root):
  (root / "train" / ".cache").mkdir()
  (root / "test" / ".ipynb_checkpoints").mkdir()
  assert open_folder(root).class_names == ("c", "b", "a")


def test_other_files_and_folders_are_counted_and_not_read(root):
  for place in ("train/a/Thumbs.db", "train/b/notes.txt", "test/c/x.png.part"):
    (root / place).write_text("no image")
  (root / "train" / "a" / "folder").mkdir()
  dataset = open_folder(root)
  assert dataset.ignored_files == 4
  assert len(dataset.train.labels) == 6


def test_images_of_other_sizes_are_cut_to_the_middle_square(root):
  # The middle 10 of 20 columns, and what a resampled border may touch, are green.
  wide = np.full((10, 20, 3), RED, np.uint8)
  wide[:, 3:17] = GREEN
  save(root / "train" / "a" / "9.png", wide)
  save(root / "train" / "b" / "9.png", wide.swapaxes(0, 1))
  dataset = open_folder(root)
  assert dataset.train.images.shape == (8, 8, 8, 3)
  for record in (2, 5):
    assert (dataset.train.images[record] == GREEN).all()


def test_image_size_can_be_chosen(root):
  dataset = open_folder(root, image_size=16)
  assert dataset.train.images.shape == (6, 16, 16, 3)
  assert dataset.augmentation.max_shift == 2


def test_num_classes_of_a_folder(root):
  dataset = open_folder(root, num_classes=2, num_states=2)
  assert dataset.class_names == ("c", "b")
  assert dataset.train.labels.tolist() == [1, 1, 0, 0]
  assert np.array_equal(dataset.train.images[0], noise(8, 8, seed=(0, 1, 0)))


# Bad input.


def test_a_folder_must_be_given():
  with pytest.raises(DataError, match="needs --data_dir"):
    open_folder("")


@pytest.mark.parametrize("name", ["missing", "file"])
def test_the_folder_must_exist(tmp_path, name):
  (tmp_path / "file").write_text("")
  with pytest.raises(DataError, match=f"--data_dir={tmp_path / name} is not a folder"):
    open_folder(tmp_path / name)


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


@pytest.mark.parametrize(
  "damage",
  [lambda content: content[:-30], lambda content: b"", lambda content: b"text, not image"],
  ids=["truncated", "empty", "text"],
)
@pytest.mark.parametrize("place", ["train/a/0.png", "train/b/1.png", "test/c/0.png"])
def test_an_unreadable_image_is_named(root, place, damage):
  path = root / place
  path.write_bytes(damage(path.read_bytes()))
  with pytest.raises(DataError, match=f"cannot read image {path}"):
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


def test_large_images_have_224_pixels_unless_told(tmp_path):
  for split in ("train", "test"):
    save(tmp_path / split / "a" / "0.png", noise(65, 10))
  assert open_folder(tmp_path).image_size == 224
  assert open_folder(tmp_path, image_size=32).train.images.shape == (1, 32, 32, 3)


def test_num_classes_of_a_folder_of_large_images(large):
  dataset = open_large(large, num_classes=1, memory_size=1)
  assert dataset.class_names == ("b",)
  names = [dataset.train.images.name(record) for record in range(2)]
  assert names == [str(large / "train" / "b" / f"{i}.jpg") for i in range(2)]


@pytest.mark.parametrize(
  "damage",
  [lambda content: content[:150], lambda content: b"", lambda content: b"text, not image"],
  ids=["truncated", "empty", "text"],
)
def test_a_large_test_image_without_a_header_is_named_before_training(large, damage):
  path = large / "test" / "b" / "1.jpg"
  path.write_bytes(damage(path.read_bytes()))
  with pytest.raises(DataError, match=f"cannot read image {path}"):
    open_large(large)


def test_a_large_test_image_of_another_class_is_not_looked_at(large):
  (large / "test" / "a" / "1.jpg").write_bytes(b"")
  assert open_large(large, num_classes=1, memory_size=1).class_names == ("b",)


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
  assert len(open_large(large).test.labels) == 5
  (large / "test" / "a" / f"2.{suffix}").write_bytes(data[:50_000])
  with pytest.raises(DataError, match=f"cannot read image {large / 'test' / 'a' / '2'}"):
    open_large(large)


def test_a_file_that_is_gone_is_named(large):
  dataset = open_large(large)
  path = large / "train" / "a" / "1.jpg"
  path.unlink()
  with pytest.raises(DataError, match=f"cannot read image {path}: No such file"):
    dataset.train.images.open(1).read()


def test_a_large_truncated_image_is_named(large):
  dataset = open_large(large)
  path = large / "train" / "b" / "0.jpg"
  path.write_bytes(path.read_bytes()[:-30])
  with pytest.raises(DataError, match=f"cannot read image {path}: "):
    dataset.train.images.open(2).read()


def test_the_fingerprint_is_that_of_the_files_wherever_they_lie(large, tmp_path):
  here = fingerprint.parts(open_large(large))
  moved = tmp_path / "elsewhere" / "photos"
  shutil.copytree(large, moved)
  assert fingerprint.parts(open_large(moved)) == here
  assert fingerprint.parts(open_large(moved, class_order_seed=1)) != here
  (moved / "train" / "b" / "1.jpg").rename(moved / "train" / "b" / "2.jpg")
  assert fingerprint.parts(open_large(moved)) != here


def test_the_fingerprint_tells_classes_apart(large):
  for i in range(2):
    (large / "train" / "b" / f"{i}.jpg").rename(large / "train" / "b" / f"{i + 2}.jpg")
  here = fingerprint.parts(open_large(large))
  # The same file names one after another, but of other classes.
  (large / "train" / "b" / "2.jpg").rename(large / "train" / "a" / "2.jpg")
  assert fingerprint.parts(open_large(large)) != here


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


NAMES = {
  "n01": ["0.png", "a much longer name.JPEG", "b.jpg"],
  "\u732b": ["\u00e9t\u00e9.png", "z.webp"],
  "n03": ["\U0001f600.jpg"],
}


def test_names_are_those_of_the_files():
  store = store_of(NAMES)
  expected = [
    f"/data/train/{folder}/{name}" for folder, found in NAMES.items() for name in found
  ]
  assert [store.name(number) for number in range(6)] == expected
  # And in another order: first, last, middle.
  assert [store.name(n) for n in np.array([5, 0, 3])] == [expected[n] for n in (5, 0, 3)]


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


def test_a_store_of_many_files_is_small():
  # 10,000 names of 14 bytes: 140 kB, and 8 + 4 bytes each of where they end and belong.
  # A Python string of such a path takes 90 bytes alone, and a list 8 for each.
  store = store_of({str(c): [f"{c:04}_{i:04}.jpg" for i in range(100)] for c in range(100)})
  assert store.name(1234) == "/data/train/12/0012_0034.jpg"
  assert store.name(9999) == "/data/train/99/0099_0099.jpg"
  assert len(pickle.dumps(store)) < 10_000 * 27
  for value in vars(store).values():
    assert isinstance(value, bytes | np.ndarray | pathlib.Path) or len(value) == 100
  again = pickle.loads(pickle.dumps(store))
  assert [again.name(n) for n in (0, 5000)] == [store.name(n) for n in (0, 5000)]


def test_the_digest_is_that_of_the_names(tmp_path):
  def digest_of(folders):
    return store_of(folders, tmp_path).digest()

  digest = digest_of(NAMES)
  assert store_of(NAMES, "/mnt/x/train").digest() == digest
  (tmp_path / "n03").mkdir()
  (tmp_path / "n03" / "\U0001f600.jpg").write_bytes(b"abc")
  sizes = store_of(NAMES, tmp_path).sizes(np.array([5, 0]))
  assert sizes.tolist() == [3, -1]
  renamed = {**NAMES, "n03": ["other.jpg"]}
  assert digest_of(renamed) != digest
  # The same letters.
  cut_elsewhere = {
    **NAMES,
    "n01": ["0.pnga", " much longer name.JPEG", "b.jpg"],
  }
  assert digest_of(cut_elsewhere) != digest
  swapped = {**NAMES, "n01": NAMES["n01"][::-1]}
  assert digest_of(swapped) != digest


def test_only_the_files_asked_for_are_checked(tmp_path):
  for name, content in (("0", encode(noise(9, 9))), ("1", b"text"), ("2", b"")):
    (tmp_path / name).write_bytes(content)
  store = store_of({tmp_path.name: ["0", "1", "2"]}, tmp_path.parent)
  EncodedImages(store, np.array([0, 0])).check_headers()
  with pytest.raises(DataError, match=f"cannot read image {tmp_path / '1'}: not a JPEG"):
    EncodedImages(store, np.array([0, 1, 2])).check_headers()
  with pytest.raises(DataError, match=f"cannot read image {tmp_path / '2'}"):
    EncodedImages(store, np.array([0, 2, 1])).check_headers()
