"""Crops of images: where they lie, and how they come to the network's input size.

Conventions are those of torchvision's RandomResizedCrop, Resize and CenterCrop, which the
reference runs use. Resampling is bilinear with antialiasing, as Pillow's.
"""

import math
import threading

import cykooz_resizer
import numpy as np

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels

_AREA = (0.08, 1.0)
_LOG_ASPECT = (math.log(3 / 4), math.log(4 / 3))
_ATTEMPTS = 10
# Uniform numbers in [0, 1) that decide one random crop.
DRAWS_SHAPE = (_ATTEMPTS, 4)

_BILINEAR = cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.bilinear)
_THREAD = threading.local()  # a resizer keeps buffers, and serves one thread


def random_resized_box(width: int, height: int, draws: np.ndarray) -> Box:
  """Chooses a box of random area (8% to 100%) and aspect ratio (3/4 to 4/3).

  Nothing but `draws` decides: float64 `DRAWS_SHAPE`, uniform in [0, 1); area, aspect ratio,
  left, top for each attempt. Returns the first box that fits an image of these pixels;
  after ten misses, the largest central one of an allowed aspect ratio.
  """
  for area_draw, aspect_draw, left_draw, top_draw in draws.tolist():
    area = width * height * (_AREA[0] + area_draw * (_AREA[1] - _AREA[0]))
    low, high = _LOG_ASPECT
    aspect = math.exp(low + aspect_draw * (high - low))
    w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if 0 < w <= width and 0 < h <= height:
      left, top = int(left_draw * (width - w + 1)), int(top_draw * (height - h + 1))
      return left, top, left + w, top + h
  aspect = min(max(width / height, 3 / 4), 4 / 3)
  w = max(1, min(width, round(height * aspect)))
  h = max(1, min(height, round(width / aspect)))
  left, top = (width - w) // 2, (height - h) // 2
  return left, top, left + w, top + h


def central_square(pixels: np.ndarray, size: int, *, short_side: int) -> np.ndarray:
  """Cuts uint8 [S, S, 3] out of the middle of uint8 [H, W, 3]; no randomness.

  `short_side` is what the short side becomes before the cut; S or more.
  """
  height, width = pixels.shape[:2]
  if height == width == size == short_side:
    return pixels
  # Products before quotients: exact where the result is a whole number.
  long_side = int(short_side * max(height, width) / min(height, width))
  new_width = short_side if width <= height else long_side
  new_height = short_side if height <= width else long_side
  left, top = round((new_width - size) / 2), round((new_height - size) / 2)
  # Only the samples that the crop keeps are computed; back to pixels of the source.
  x, w = (place * width / new_width for place in (left, size))
  y, h = (place * height / new_height for place in (top, size))
  return resize(pixels, size, (x, y, w, h))


def resize(
  pixels: np.ndarray, size: int, box: tuple[float, float, float, float] | None = None
) -> np.ndarray:
  """Resizes uint8 [H, W, 3], or a box of it, to [S, S, 3], whatever its aspect ratio.

  The box is left, top, width, height in pixels, fractions allowed, inside the image; pixels
  outside count at its edges.
  """
  if not hasattr(_THREAD, "resizer"):
    _THREAD.resizer = cykooz_resizer.Resizer()
  rgb = cykooz_resizer.PixelType.U8x3
  height, width = pixels.shape[:2]
  source = cykooz_resizer.ImageData(width, height, rgb, pixels.tobytes())
  target = cykooz_resizer.ImageData(size, size, rgb)
  crop_box = cykooz_resizer.CropBox(*(box or (0, 0, width, height)))
  options = cykooz_resizer.ResizeOptions(_BILINEAR, crop_box=crop_box)
  _THREAD.resizer.resize(source, target, options)
  return np.frombuffer(target.get_buffer(), np.uint8).reshape(size, size, 3)
