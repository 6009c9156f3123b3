"""Small images: decoded once and for all, to live on the device as one array."""

from collections.abc import Callable

import numpy as np

from ssil_jax.data import crop, decode, verify
from ssil_jax.data.encoded import BadImage, EncodedImages
from ssil_jax.errors import DataError
from ssil_jax.resnet import SMALL_IMAGE

_LARGE_INPUT = 224


def input_size(images: EncodedImages) -> int:
  """Natural side of the network's input: that of the first image if it is small, or 224.

  Raises:
    DataError: none of the images can be read.
  """
  first_error = None
  for record in range(len(images)):
    try:
      longest = max(images.decode(record, decode.read_rgb).shape)
      return longest if longest <= SMALL_IMAGE else _LARGE_INPUT
    except BadImage as error:
      first_error = first_error or error
  raise DataError(
    f"none of {len(images)} training images can be read; the first one is "
    f"{first_error.name}: {first_error.reason}"
  )


def central_squares(
  images: EncodedImages | np.ndarray,
  size: int,
  check_interrupt: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, verify.Bad]:
  """Images of one size; those of another one are resized by their short side and cut.

  Args:
    images: encoded images, or uint8 [N, H, W, 3].
    size: S.
    check_interrupt: called often; it may raise KeyboardInterrupt.

  Returns:
    uint8 [N, S, S, 3], and the images that cannot be read: their pixels mean nothing.
  """
  pixels = np.empty((len(images), size, size, 3), np.uint8)

  def read(record: int) -> None:
    if isinstance(images, EncodedImages):
      image = images.decode(record, decode.read_rgb)
    else:
      image = images[record]
    pixels[record] = crop.central_square(image, size, short_side=size)

  records = np.arange(len(pixels))
  return pixels, verify.each(records, read, lambda chunk, bad: check_interrupt())
