"""Small images: decoded once and for all, to live on the device as one array."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ssil_jax.data import crop, decode
from ssil_jax.data.encoded import EncodedImages


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
