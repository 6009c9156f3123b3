"""Small images: decoded once and for all, to live on the device as one array."""

from collections.abc import Callable

import numpy as np

from ssil_jax.config import SMALLEST_IMAGE
from ssil_jax.data import crop, decode, verify
from ssil_jax.data.encoded import EncodedImages
from ssil_jax.errors import DataError
from ssil_jax.resnet import SMALL_IMAGE

_LARGE_INPUT = 224
_RANGE = 2  # an image that is enlarged or shrunk more than that is far from the others


def natural_size(sizes: np.ndarray) -> int:
  """The side of the network's input that fits images best, in pixels.

  It is the median of their longer sides if that is small, and 224 if it is not: a few odd
  images among many change nothing.

  Args:
    sizes: int [n, 2], widths and heights of at least one image.

  Raises:
    DataError: the images are too small for the network.
  """
  median = _median(sizes)
  if median < SMALLEST_IMAGE:
    raise DataError(
      f"half of the training images have no side of more than {median} pixels, and the "
      f"network needs {SMALLEST_IMAGE}: give --image_size={SMALLEST_IMAGE} or more to "
      "enlarge them"
    )
  return median if median <= SMALL_IMAGE else _LARGE_INPUT


def read_sizes(images: EncodedImages) -> tuple[EncodedImages, np.ndarray]:
  """Reads the headers of images, and leaves out those that have none.

  Returns:
    The others, and their widths and heights, int32 [n, 2].

  Raises:
    DataError: there are no others.
  """
  sizes = np.zeros((len(images), 2), np.int32)

  def look(record: int) -> None:
    sizes[record] = images.size(record)

  bad = verify.each(np.arange(len(images)), look)
  if len(bad) == len(images):
    raise DataError(
      f"none of {len(images)} training images can be read; the first one is "
      f"{images.name(0)}: {bad[0].text}"
    )
  good = np.delete(np.arange(len(images)), list(bad))
  return images.take(good), sizes[good]


def describe_sizes(images: EncodedImages, sizes: np.ndarray, size: int) -> tuple[str, ...]:
  """Lines on the training images' sizes, for the user, and a warning if they differ much.

  Args:
    images: at least one.
    sizes: int [n, 2], their widths and heights.
    size: side of the network's input.
  """
  longer = sizes.max(axis=1)
  smallest, largest = (
    "x".join(map(str, sizes[i])) for i in (longer.argmin(), longer.argmax())
  )
  lines = [
    f"training images have {smallest} to {largest} pixels, {_median(sizes)} in the median "
    f"of the longer sides; the network sees {size}x{size}"
  ]
  # Of large images a crop of any size is taken: only to enlarge them adds nothing.
  shorter = sizes.min(axis=1)
  far = {
    "enlarged": (shorter * _RANGE < size, shorter.argmin()),
    "shrunk": ((shorter > size * _RANGE) & (size <= SMALL_IMAGE), shorter.argmax()),
  }
  for what, (chosen, most) in far.items():
    if chosen.any():
      lines.append(
        f"warning: {chosen.sum()} of {len(sizes)} training images are {what} more than "
        f"{_RANGE} times, most of all {images.name(int(most))} of "
        f"{sizes[most][0]}x{sizes[most][1]}: if that is not meant, take them out, or "
        "choose another --image_size"
      )
  return tuple(lines)


def _median(sizes: np.ndarray) -> int:
  """Of the longer sides; one of them, the lower one of two."""
  longer = np.sort(sizes.max(axis=1))
  return int(longer[(len(longer) - 1) // 2])


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
