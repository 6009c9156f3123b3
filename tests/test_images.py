"""Image files to pixels: colors and crops."""

import numpy as np
import pytest
from folders import BLUE, GREEN, RED, noise, save
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ssil_jax.data import images

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
