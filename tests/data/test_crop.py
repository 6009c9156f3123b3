"""Crops: where they lie, and that their pixels are those of Pillow's."""

import io
import itertools
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from folders import SAMPLE, encode, noise, photo
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ssil_jax.data.images import crop, decode

ALMOST_ONE = 1 - 2**-53  # the largest number that a generator draws


# Where a random crop lies.


def box_inside(width, height, draws):
  """A random box, which lies inside the image and is not empty."""
  left, top, right, bottom = crop.random_resized_box(width, height, draws)
  assert 0 <= left < right <= width
  assert 0 <= top < bottom <= height
  return left, top, right, bottom


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
  width=st.integers(1, 600), height=st.integers(1, 600), seed=st.integers(0, 2**32 - 1)
)
def test_a_random_box_keeps_within_its_limits(width, height, seed):
  draws = np.random.default_rng(seed).random(crop.DRAWS_SHAPE)
  left, top, right, bottom = box_inside(width, height, draws)
  w, h = right - left, bottom - top
  # Sides are whole pixels: half a pixel either way.
  assert (w - 0.5) / (h + 0.5) <= 4 / 3
  assert (w + 0.5) / (h - 0.5) >= 3 / 4
  # The largest box of an allowed aspect, when ten draws miss, may be less than 8% of an
  # image that is more than (4 / 3) / 0.08 = 16 times as long as wide.
  if max(width, height) <= 16 * min(width, height):
    assert (w + 0.5) * (h + 0.5) >= 0.08 * width * height


@pytest.mark.parametrize("size", [(1, 1), (1, 600), (600, 1), (2, 3), (500, 375)])
def test_extreme_draws_stay_inside(size):
  ends = (0, 0.5, ALMOST_ONE)
  for area, aspect, place in itertools.product(ends, ends, (0, ALMOST_ONE)):
    box_inside(*size, np.full(crop.DRAWS_SHAPE, (area, aspect, place, place)))


def draw_of_area(area):
  return (area - 0.08) / (1 - 0.08)


MISS = (draw_of_area(1), 0, 0, 0)  # as large as the image, as tall as wide by 4 / 3
# Of 100 x 100 pixels: 25%, as wide as high, from (25, 12) on: 0.5 and 0.25 of 51 places.
SQUARE, SQUARE_BOX = (draw_of_area(0.25), 0.5, 0.5, 0.25), (25, 12, 75, 62)
# 48%, as tall as wide by 4 / 3: 60 x 80, of which 41 x 21 places are possible.
TALL, TALL_BOX = (draw_of_area(0.48), 0, ALMOST_ONE, ALMOST_ONE), (40, 20, 100, 100)
WIDE, WIDE_BOX = (draw_of_area(0.48), ALMOST_ONE, 0, 0), (0, 0, 80, 60)


@pytest.mark.parametrize(
  ("draws", "box"),
  [
    ([SQUARE], SQUARE_BOX),
    ([TALL], TALL_BOX),
    ([WIDE], WIDE_BOX),
    ([TALL, SQUARE], TALL_BOX),
    ([MISS, SQUARE, TALL], SQUARE_BOX),
    ([*[MISS] * 9, WIDE], WIDE_BOX),
  ],
)
def test_the_first_attempt_that_fits_is_taken(draws, box):
  # The attempts that follow would fit, too.
  draws = np.array([*draws, *[(0, 0.5, 0, 0)] * 10][:10], np.float64)
  assert crop.random_resized_box(100, 100, draws) == box


@pytest.mark.parametrize(
  ("size", "box"),
  [
    ((100, 100), (0, 0, 100, 100)),  # an allowed aspect: all of it
    ((200, 100), (33, 0, 166, 100)),  # 4 / 3: 133 columns, 33 before and 34 after them
    ((100, 200), (0, 33, 100, 166)),
    ((300, 3), (148, 0, 152, 3)),
    ((3, 300), (0, 148, 3, 152)),
  ],
)
def test_after_ten_misses_the_largest_central_box_is_taken(size, box):
  assert crop.random_resized_box(*size, np.full(crop.DRAWS_SHAPE, MISS)) == box


# What a crop shows. Pillow rounds in other places: a pixel may differ by one.


def pillow_resized(pixels, box, size):
  image = Image.fromarray(pixels).crop(box)
  return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def pillow_central(pixels, size, short_side):
  """torchvision's Resize(short_side) and CenterCrop(size)."""
  height, width = pixels.shape[:2]
  long_side = int(short_side * max(height, width) / min(height, width))
  new = (long_side, short_side) if width > height else (short_side, long_side)
  left, top = (round((side - size) / 2) for side in new)
  image = Image.fromarray(pixels).resize(new, Image.Resampling.BILINEAR)
  return np.asarray(image.crop((left, top, left + size, top + size)))


def largest_difference(a, b):
  return np.abs(a.astype(int) - b).max()


@pytest.mark.parametrize("shape", [(80, 100), (300, 200), (500, 375), (3, 300), (1, 1)])
def test_resized_as_by_pillow(shape):
  pixels, (height, width) = noise(*shape), shape
  expected = pillow_resized(pixels, (0, 0, width, height), 224)
  assert largest_difference(crop.resize(pixels, 224), expected) <= 1


def test_what_lies_beside_a_box_does_not_reach_into_it():
  pixels = noise(50, 60)
  box = pixels[10:40, 20:50]  # a view
  alone = crop.resize(box.copy(), 64)
  np.testing.assert_array_equal(crop.resize(box, 64), alone)
  assert largest_difference(alone, pillow_resized(pixels, (20, 10, 50, 40), 64)) <= 1


def test_many_threads_may_resize():
  images = [noise(40 + i, 50, seed=i) for i in range(60)]
  with ThreadPoolExecutor(8) as threads:
    results = list(threads.map(lambda pixels: crop.resize(pixels, 32), images))
  for pixels, result in zip(images, results, strict=True):
    np.testing.assert_array_equal(result, crop.resize(pixels, 32))


@pytest.mark.parametrize(
  "shape",
  [
    *[(80, 100), (300, 200), (375, 500), (224, 224), (30, 20), (256, 300), (50, 999)],
    # Half a pixel goes to the even side: 16.5 is 16, and 17.5 is 18.
    *[(256, 256), (256, 257), (259, 256)],
    # 256 * 147 / 49 = 768, but (256 / 49) * 147 = 767.99...
    *[(49, 147), (147, 49), (98, 196)],
  ],
)
def test_the_central_square_is_torchvisions(shape):
  square = crop.central_square(noise(*shape), 224, short_side=256)
  exact = min(shape) == 256  # it is not resized
  expected = pillow_central(noise(*shape), 224, 256)
  assert largest_difference(square, expected) <= (0 if exact else 1)


@pytest.mark.parametrize(("size", "short_side"), [(8, 8), (28, 28), (64, 64), (224, 256)])
def test_images_of_any_size_have_a_central_square(size, short_side):
  sides = [(side + more, side) for side in range(1, 200, 3) for more in (0, 3)]
  for width, height in [*sides, (1, 2000), (257, 255)]:
    for shape in ((width, height), (height, width)):
      pixels = np.full((*shape, 3), (10, 200, 90), np.uint8)
      square = crop.central_square(pixels, size, short_side=short_side)
      assert square.shape == (size, size, 3), shape
      assert (square == (10, 200, 90)).all(), shape


# Fidelity: the whole way from a file to the network's input, against Pillow's.


def psnr(a, b):
  """Decibels over the error's mean square, of 8-bit images."""
  error = np.square(a.astype(np.float64) - b).mean()
  return np.inf if error == 0 else 10 * np.log10(255**2 / error)


def compare(files, *, crops_each):
  """PSNR of random crops and of central squares."""
  rng, random_crops, central = np.random.default_rng(0), [], []
  for data in files:
    pillow = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    image = decode.EncodedImage(data)
    for _ in range(crops_each):
      draws = rng.random(crop.DRAWS_SHAPE)
      box = crop.random_resized_box(image.width, image.height, draws)
      ours = crop.resize(image.read(box), 224)
      random_crops.append(psnr(ours, pillow_resized(pillow, box, 224)))
    ours = crop.central_square(image.read(), 224, short_side=256)
    central.append(psnr(ours, pillow_central(pillow, 224, 256)))
  return random_crops, central


def photos():
  rng = np.random.default_rng(0)
  for i, subsampling in enumerate(["4:2:0", "4:4:4"] * 5):
    yield encode(photo(*rng.integers(150, 600, 2), seed=i), subsampling=subsampling)


def photos_of_imagenet():
  if not SAMPLE.exists():
    pytest.skip("the sample of ImageNet is not here")
  with zipfile.ZipFile(SAMPLE) as archive:
    names = sorted(name for name in archive.namelist() if name.endswith(".JPEG"))
    yield from map(archive.read, names[::15])


@pytest.mark.parametrize("files", [photos, photos_of_imagenet])
def test_crops_of_photos_are_those_of_pillow(files):
  for decibels in compare(files(), crops_each=3):
    assert len(decibels) >= 10
    assert np.mean(decibels) >= 50
    assert np.min(decibels) >= 45
