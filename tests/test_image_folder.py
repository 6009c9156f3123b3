"""Folders of images: what is read, and each mistake by its name."""

import numpy as np
import pytest
from folders import GREEN, RED, config_of, folder_of, noise, open_folder, save
from PIL import Image

from ssil_jax.data import Augmentation, images, open_dataset
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


def test_hidden_folders_are_no_classes(root):
  (root / "train" / ".cache").mkdir()
  (root / "test" / ".ipynb_checkpoints").mkdir()
  assert open_folder(root).class_names == ("c", "b", "a")


def test_other_files_are_counted_and_not_read(root):
  for place in ("train/a/Thumbs.db", "train/b/notes.txt", "test/c/x.png.part"):
    (root / place).write_text("no image")
  (root / "train" / "a" / "folder.png").mkdir()
  dataset = open_folder(root)
  assert dataset.ignored_files == 3
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


@pytest.mark.parametrize("size", [8, 28, 32, 64])
def test_images_of_any_size_can_be_resized(size):
  failed = []
  for side in range(1, 200):
    try:
      square = images.central_square(Image.new("RGB", (side, side + 3)), size, margin=1)
      assert square.shape == (size, size, 3)
    except ValueError:
      failed.append(side)
  assert failed == []


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


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_a_truncated_image_is_named(tmp_path, file_format):
  path = tmp_path / "x.png"
  save(path, noise(32, 32), format=file_format)
  content = path.read_bytes()
  for kept in range(0, len(content) - 20, 97):
    path.write_bytes(content[:kept])
    with pytest.raises(DataError, match=f"cannot read image {path}"):
      images.read_rgb(path)


@pytest.mark.parametrize("read", [images.read_rgb, images.size_of])
def test_a_damaged_header_is_named(tmp_path, read):
  path = tmp_path / "x.png"
  save(path, RED)
  content = bytearray(path.read_bytes())
  content[11] = 5  # the header's length, which is 13
  path.write_bytes(content)
  with pytest.raises(DataError, match=f"cannot read image {path}"):
    read(path)


def test_a_missing_image_is_named(tmp_path):
  with pytest.raises(DataError, match=f"cannot read image {tmp_path / 'x.png'}"):
    images.read_rgb(tmp_path / "x.png")


def test_more_classes_than_there_are(root):
  with pytest.raises(ConfigError, match="--num_classes=4, .* only 3"):
    open_folder(root, num_classes=4, num_states=2)


def test_an_unknown_data_set():
  with pytest.raises(ConfigError, match="--dataset=mnist is unknown; .*digits"):
    open_dataset(config_of(dataset="mnist"))


def test_a_data_set_without_a_builder_says_what_to_do():
  with pytest.raises(ConfigError, match="--dataset=imagenet .*--dataset=image_folder"):
    open_dataset(config_of(dataset="imagenet"))
