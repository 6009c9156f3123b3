"""Image files to uint8 RGB arrays on the host (Pillow)."""

import math
import pathlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, UnidentifiedImageError

from ssil_jax.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_FORMATS = ("PNG", "JPEG", "WEBP")  # whatever the name says, nothing else is decoded

# torchvision's RandomResizedCrop, which the paper's runs use.
_CROP_AREA = (0.08, 1.0)
_CROP_ASPECT = (3 / 4, 4 / 3)

# What Pillow raises for files that it cannot read.
_PILLOW_ERRORS = (
  UnidentifiedImageError,
  Image.DecompressionBombError,
  OSError,  # missing or truncated
  SyntaxError,  # a broken PNG chunk
  ValueError,  # a broken header
)


def read_rgb(path: str | pathlib.Path) -> Image.Image:
  """Decodes a file to RGB.

  16-bit grayscale is scaled to 8 bits; transparency is dropped; EXIF orientation is
  ignored, as in the reference runs.

  Raises:
    DataError: names the file if it is missing, truncated, no image, or absurdly large.
  """
  try:
    with Image.open(path, formats=_FORMATS) as image:
      if image.mode.startswith("I"):
        return _from_16_bits(image).convert("RGB")
      return image.convert("RGB")
  except _PILLOW_ERRORS as error:
    raise DataError(f"cannot read image {path}: {error}") from error


def _from_16_bits(image: Image.Image) -> Image.Image:
  return Image.fromarray((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8))


def size_of(path: str | pathlib.Path) -> tuple[int, int]:
  """(width, height) from the header. Raises DataError as `read_rgb` does."""
  try:
    with Image.open(path, formats=_FORMATS) as image:
      return image.size
  except _PILLOW_ERRORS as error:
    raise DataError(f"cannot read image {path}: {error}") from error


def check_headers(paths: Sequence[str]) -> None:
  """Raises DataError, naming the first file whose header is not that of an image."""
  with ThreadPoolExecutor() as threads:
    for _ in threads.map(size_of, paths):
      pass  # to raise what a thread raised


def central_squares(items: Sequence[str] | np.ndarray, size: int) -> np.ndarray:
  """Decodes files, or takes images, and resizes those of another size.

  Args:
    items: N file names, or uint8 [N, H, W, 3].
    size: S.

  Returns:
    uint8 [N, S, S, 3].

  Raises:
    DataError: names the first image that cannot be read.
  """
  pixels = np.empty((len(items), size, size, 3), np.uint8)

  def read(record: int) -> None:
    item = items[record]
    image = read_rgb(item) if isinstance(item, str) else Image.fromarray(item)
    pixels[record] = central_square(image, size, margin=1)

  with ThreadPoolExecutor() as threads:
    for _ in threads.map(read, range(len(pixels))):
      pass  # to raise what a thread raised
  return pixels


def central_square(image: Image.Image, size: int, *, margin: float) -> np.ndarray:
  """The middle of an image, without randomness.

  Args:
    image: RGB.
    size: S, side of the result in pixels.
    margin: side that the short side is resized to before the crop, in units of S.

  Returns:
    uint8 [S, S, 3]. An image that is S x S already is not resampled if margin is 1.
  """
  if image.size == (size, size) and margin == 1:
    return np.asarray(image)
  # In pixels of the source; exactly the short side if margin is 1.
  side = min(image.size) * (size / round(size * margin))
  left, top = (image.width - side) / 2, (image.height - side) / 2
  box = (left, top, left + side, top + side)
  return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


def random_resized_crop(
  image: Image.Image, size: int, rng: np.random.Generator
) -> np.ndarray:
  """A crop of random area (8% to 100%) and aspect ratio (3/4 to 4/3), resized.

  Args:
    image: RGB.
    size: S.
    rng: decides the crop; nothing else does.

  Returns:
    uint8 [S, S, 3].
  """
  box = random_crop_box(image.width, image.height, rng)
  return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


def random_crop_box(
  width: int, height: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
  """(left, top, right, bottom) in whole pixels; after ten misses, the largest central
  box of an allowed aspect ratio."""
  for _ in range(10):
    area = width * height * rng.uniform(*_CROP_AREA)
    aspect = math.exp(rng.uniform(*map(math.log, _CROP_ASPECT)))
    w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if 0 < w <= width and 0 < h <= height:
      left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
      return left, top, left + w, top + h
  aspect = min(max(width / height, _CROP_ASPECT[0]), _CROP_ASPECT[1])
  w = max(1, min(width, round(height * aspect)))
  h = max(1, min(height, round(width / aspect)))
  left, top = (width - w) // 2, (height - h) // 2
  return left, top, left + w, top + h
