"""Small images: decoded once and for all, to live on the device as one array."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ssil_jax.data import crop, decode
from ssil_jax.data.encoded import EncodedImages
from ssil_jax.resnet import SMALL_IMAGE

_LARGE_INPUT = 224


def input_size(images: EncodedImages) -> int:
  """Natural side of the network's input: that of the first image if it is small, or 224.

  Raises:
    DataError: names the image if it has no readable header.
  """
  longest = max(images.decode(0, decode.size_of))
  return longest if longest <= SMALL_IMAGE else _LARGE_INPUT


def central_squares(images: EncodedImages | np.ndarray, size: int) -> np.ndarray:
  """Images of one size; those of another one are resized by their short side and cut.

  Args:
    images: encoded images, or uint8 [N, H, W, 3].
    size: S.

  Returns:
    uint8 [N, S, S, 3].

  Raises:
    DataError: names the first image that cannot be read.
  """
  pixels = np.empty((len(images), size, size, 3), np.uint8)

  def read(record: int) -> None:
    if isinstance(images, EncodedImages):
      image = images.decode(record, decode.read_rgb)
    else:
      image = images[record]
    pixels[record] = crop.central_square(image, size, short_side=size)

  with ThreadPoolExecutor() as threads:
    for _ in threads.map(read, range(len(pixels))):
      pass  # to raise what a thread raised
  return pixels
