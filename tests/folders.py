"""Tiny folders of real image files, for the tests that read them."""

import io
import pathlib

import numpy as np
import pytest
from PIL import Image

from ssil_jax import config as config_lib
from ssil_jax.data.images import turbojpeg
from ssil_jax.data.opening import open_dataset
from ssil_jax.methods import get_method

ROOT = pathlib.Path(__file__).resolve().parents[1]
SAMPLE = ROOT.parent / "shared/data/imagenet-sample-300.zip"  # where there is one
# Where there is none, `make test` says so (tests/data/test_turbojpeg.py).
needs_turbojpeg = pytest.mark.skipif(
  turbojpeg.library() is None, reason=f"needs {turbojpeg.NEEDED}"
)
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def config_of(**values):
  return config_lib.make_config(values, get_method(values.get("method", "ssil")))


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


def encode(pixels, file_format="JPEG", mode=None, **options):
  """An image file's bytes; `pixels` is an array or an image."""
  image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
  file = io.BytesIO()
  (image.convert(mode) if mode else image).save(file, file_format, **options)
  return file.getvalue()


def photo(height, width, seed=0):
  """Like a photo: smooth shades, shapes with sharp edges, and a little noise."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:height, :width] / max(height, width)
  slopes = rng.uniform(-150, 150, (2, 3))
  image = 128 + (y - 0.5)[..., None] * slopes[0] + (x - 0.5)[..., None] * slopes[1]
  for _ in range(8):
    (top, left), radius = rng.random(2), rng.uniform(0.03, 0.3)
    image[(y - top) ** 2 + (x - left) ** 2 < radius**2] = rng.uniform(0, 255, 3)
  image += rng.normal(0, 4, image.shape)
  return image.clip(0, 255).astype(np.uint8)


def folder_of(
  root, classes=("a", "b", "c"), each=2, test="test", shape=(8, 8), suffix="png"
):
  """An image folder of `each` images per class and split, all of them different."""
  for split in ("train", test):
    for c, name in enumerate(classes):
      for i in range(each):
        pixels = noise(*shape, seed=(split == test, c, i))
        save(root / split / name / f"{i}.{suffix}", pixels)
  return root
