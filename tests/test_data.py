"""Reading images: the digits, folders of real files, and the batches made of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ssil_jax import config as config_lib
from ssil_jax.data import Augmentation, feed, images, open_dataset, records_of
from ssil_jax.errors import ConfigError, DataError
from ssil_jax.methods import get_method
from ssil_jax.plan import make_plan
from ssil_jax.sampling import RATIO_PRESERVING, Key, Pool, Purpose

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def config_of(**values):
  method = get_method(values.get("method", "ssil"))
  return config_lib.make_config(values, method.defaults)


def open_folder(root, **values):
  return open_dataset(config_of(dataset="image_folder", data_dir=str(root), **values))


def save(path, pixels, mode=None, **options):
  """Writes an image; `pixels` is an array, or a color that fills 8 x 8."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if isinstance(pixels, tuple):
    pixels = np.full((8, 8, 3), pixels, np.uint8)
  image = Image.fromarray(pixels)
  (image.convert(mode) if mode else image).save(path, **options)


def noise(height, width, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def folder_of(root, classes=("a", "b", "c"), each=2, test="test"):
  """An image folder of `each` 8x8 images per class and split, all of them different."""
  for split in ("train", test):
    for c, name in enumerate(classes):
      for i in range(each):
        save(root / split / name / f"{i}.png", noise(8, 8, seed=(split == test, c, i)))
  return root


@pytest.fixture
def root(tmp_path):
  return folder_of(tmp_path / "images")


# Digits.


@pytest.fixture(scope="module")
def digits():
  return open_dataset(config_of(dataset="digits"))


def test_digits_are_1797_images(digits):
  assert digits.train.images.shape == (1433, 8, 8, 3)
  assert digits.test.images.shape == (364, 8, 8, 3)
  assert 1433 + 364 == 1797
  assert digits.train.images.dtype == np.uint8
  assert digits.train.images.max() == 255
  assert digits.image_size == 8
  assert digits.train.on_device
  assert digits.ignored_files == 0


def test_digits_are_split_evenly_by_class(digits):
  train, test = (np.bincount(split.labels) for split in (digits.train, digits.test))
  # Every fifth of each digit is for testing, rounded up.
  assert test.tolist() == [-(-n // 5) for n in (train + test).tolist()]


def test_digits_train_and_test_share_no_image(digits):
  train, test = (
    {x.tobytes() for x in split.images} for split in (digits.train, digits.test)
  )
  assert not train & test


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


def test_num_classes_takes_the_first_of_the_order():
  digits = open_dataset(config_of(dataset="digits", num_classes=3, num_states=3))
  assert digits.class_names == ("2", "8", "4")
  assert set(digits.train.labels.tolist()) == {0, 1, 2}
  assert set(digits.test.labels.tolist()) == {0, 1, 2}
  assert len(digits.train.images) == len(digits.train.labels)


def test_digits_may_be_enlarged():
  digits = open_dataset(config_of(dataset="digits", image_size=16))
  assert digits.train.images.shape == (1433, 16, 16, 3)
  assert digits.test.images.shape == (364, 16, 16, 3)
  assert digits.image_size == 16


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


@pytest.mark.parametrize("method", ["ssil", "ft"])
def test_a_state_with_less_than_one_batch_is_named(method):
  # Each digit has 139 to 146 training images.
  values = {"dataset": "digits", "method": method, "num_states": 10}
  make_plan(config_of(**values, batch_size_new=139))
  with pytest.raises(ConfigError, match="state 1 has 14. .*--batch_size_new=147"):
    make_plan(config_of(**values, batch_size_new=147))


# Image folders.


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


# Colors.


def test_gray_becomes_equal_channels(tmp_path):
  save(tmp_path / "x.png", np.full((2, 2), 77, np.uint8))
  assert (np.asarray(images.read_rgb(tmp_path / "x.png")) == 77).all()


def test_16_bit_gray_is_scaled(tmp_path):
  # 65535 / 257 = 255 and 32896 / 257 = 128.
  save(tmp_path / "x.png", np.array([[0, 257], [32896, 65535]], np.uint16))
  rgb = np.asarray(images.read_rgb(tmp_path / "x.png"))
  assert rgb.shape == (2, 2, 3)
  assert rgb[:, :, 1].tolist() == [[0, 1], [128, 255]]
  assert (rgb == rgb[:, :, :1]).all()


def test_black_and_white(tmp_path):
  save(tmp_path / "x.png", np.array([[False, True]]))
  assert np.asarray(images.read_rgb(tmp_path / "x.png"))[0].tolist() == [[0] * 3, [255] * 3]


def test_palette(tmp_path):
  save(tmp_path / "x.png", np.array([[RED, GREEN, BLUE]], np.uint8), mode="P")
  rgb = np.asarray(images.read_rgb(tmp_path / "x.png"))
  assert rgb[0].tolist() == [list(RED), list(GREEN), list(BLUE)]


def test_cmyk(tmp_path):
  # No ink is white; cyan ink alone takes all red away.
  for ink, expected in [((0, 0, 0, 0), (255, 255, 255)), ((255, 0, 0, 0), (0, 255, 255))]:
    Image.new("CMYK", (8, 8), ink).save(tmp_path / "x.jpg")
    rgb = np.asarray(images.read_rgb(tmp_path / "x.jpg")).astype(int)
    assert np.abs(rgb - expected).max() <= 5


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_dropped(tmp_path, mode):
  Image.new("RGBA", (2, 2), (90, 90, 90, 10)).convert(mode).save(tmp_path / "x.png")
  assert (np.asarray(images.read_rgb(tmp_path / "x.png")) == 90).all()


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


# Crops.


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
  width=st.integers(1, 600), height=st.integers(1, 600), seed=st.integers(0, 2**32 - 1)
)
def test_a_random_crop_keeps_within_its_limits(width, height, seed):
  box = images.random_crop_box(width, height, np.random.default_rng(seed))
  left, top, right, bottom = box
  assert 0 <= left < right <= width
  assert 0 <= top < bottom <= height
  w, h = right - left, bottom - top
  # Sides are whole pixels: half a pixel either way.
  assert (w - 0.5) / (h + 0.5) <= 4 / 3
  assert (w + 0.5) / (h - 0.5) >= 3 / 4
  # The largest box of an allowed aspect, when ten draws miss, may be less than 8% of an
  # image that is more than (4 / 3) / 0.08 = 16 times as long as wide.
  if max(width, height) <= 16 * min(width, height):
    assert (w + 0.5) * (h + 0.5) >= 0.08 * width * height
  assert images.random_crop_box(width, height, np.random.default_rng(seed)) == box


def test_the_crop_of_an_elongated_image_is_central():
  # No box of 8% of 300 x 3 has an aspect of 4 / 3 or less: 4 x 3 in the middle.
  box = images.random_crop_box(300, 3, np.random.default_rng(0))
  assert box == (148, 0, 152, 3)


def test_random_crops_differ_and_reach_everywhere():
  rng = np.random.default_rng(0)
  boxes = np.array([images.random_crop_box(100, 100, rng) for _ in range(500)])
  assert len(np.unique(boxes, axis=0)) > 490
  assert boxes[:, :2].min() == 0
  assert boxes[:, 2:].max() == 100
  areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 100**2
  assert areas.min() < 0.12
  assert areas.max() > 0.9


def test_a_random_crop_shows_its_box():
  # Every pixel tells where it is: columns in red, rows in green.
  place = np.zeros((100, 200, 3), np.uint8)
  place[..., 0], place[..., 1] = np.arange(200), np.arange(100)[:, None]
  image = Image.fromarray(place)
  crop = images.random_resized_crop(image, 16, np.random.default_rng(3))
  box = images.random_crop_box(200, 100, np.random.default_rng(3))
  left, top, right, bottom = box
  assert crop.shape == (16, 16, 3)
  assert left <= crop[..., 0].min() < left + (right - left) / 8
  assert right - (right - left) / 8 < crop[..., 0].max() + 1 <= right
  assert top <= crop[..., 1].min() < top + (bottom - top) / 8
  assert bottom - (bottom - top) / 8 < crop[..., 1].max() + 1 <= bottom


def test_a_square_of_the_right_size_is_not_resampled():
  pixels = noise(20, 20)
  assert np.array_equal(
    images.central_square(Image.fromarray(pixels), 20, margin=1), pixels
  )


def test_the_central_square_of_a_margin():
  # 32 = 28 * 8/7: the short side stays at 32 pixels, and the middle 28 are taken.
  pixels = noise(32, 40)
  square = images.central_square(Image.fromarray(pixels), 28, margin=8 / 7)
  assert np.array_equal(square, pixels[2:30, 6:34])


def test_central_squares_of_arrays_and_files(tmp_path):
  arrays = np.stack([noise(8, 8, seed=i) for i in range(3)])
  paths = []
  for i, pixels in enumerate(arrays):
    save(tmp_path / f"{i}.png", pixels)
    paths.append(str(tmp_path / f"{i}.png"))
  assert np.array_equal(images.central_squares(arrays, 8), arrays)
  assert np.array_equal(images.central_squares(paths, 8), arrays)


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
