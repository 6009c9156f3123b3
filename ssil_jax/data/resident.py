"""Small images: decoded once and for all, to live on the device as one array."""

import contextlib
from collections.abc import Callable, Mapping

import numpy as np

from ssil_jax.config import SMALLEST_IMAGE
from ssil_jax.data import verify
from ssil_jax.data.dataset import LARGEST_RESIDENT
from ssil_jax.data.encoded import EncodedImages
from ssil_jax.data.images import crop
from ssil_jax.errors import DataError

_LARGE_INPUT = 224
_SAMPLE = 100  # images
_RANGE = 2  # an image so many times smaller or larger is far from the others


def natural_size(sizes: np.ndarray) -> int:
  """Returns the side of the network's input in pixels: 224, or less for small images.

  It is then the median of their longer sides: a few odd images among many change nothing.
  Sizes are int [n, 2], widths and heights; 0 x 0 does not count. Raises DataError if they
  are too small for the network.
  """
  median = _median(sizes)
  if median < SMALLEST_IMAGE:
    raise DataError(
      f"half of the training images have no side of more than {median} pixels, and the "
      f"network needs {SMALLEST_IMAGE}: give --image_size={SMALLEST_IMAGE} or more to "
      "enlarge them"
    )
  return median if median <= LARGEST_RESIDENT else _LARGE_INPUT


def read_sizes(
  images: EncodedImages, check_interrupt: Callable[[], None] = lambda: None
) -> np.ndarray:
  """Reads widths and heights from headers, int32 [N, 2]; 0 x 0 of an image without one.

  Calls `check_interrupt` often; raises DataError if no image has a header.
  """
  sizes = np.zeros((len(images), 2), np.int32)

  def read(record: int) -> None:
    sizes[record] = images.size(record)

  all_bad = verify.read_each(np.arange(len(images)), read, lambda _: check_interrupt())
  if len(all_bad) == len(images):
    raise DataError(
      f"none of {len(images)} training images can be read; the first one is "
      f"{images.name(0)}: {all_bad[0]}"
    )
  return sizes


def likely_size(images: EncodedImages) -> int | None:
  """Returns what `natural_size` of some of the images is; None if that cannot be told."""
  # At random, not evenly: sizes may follow a pattern.
  rng = np.random.default_rng(0)
  some = images.take(rng.permutation(len(images))[:_SAMPLE])
  with contextlib.suppress(DataError):
    return natural_size(read_sizes(some))
  return None


def describe_sizes(
  images: Mapping[str, EncodedImages],
  sizes: Mapping[str, np.ndarray],
  size: int,
  scored: str = "test",
) -> tuple[str, ...]:
  """Returns lines on the sizes of images by split, with warnings of those far from others.

  Sizes are int [N, 2], widths and heights, 0 x 0 of an image that cannot be read; `size` is
  the side of the network's input, `scored` what the images are that are not trained on.
  """
  titles = {"train": "training", "test": scored}
  of_train = sizes["train"][sizes["train"].all(axis=1)]
  longer = of_train.max(axis=1)
  smallest, largest = (
    "x".join(map(str, of_train[place])) for place in (longer.argmin(), longer.argmax())
  )
  median = _median(of_train)
  lines = [
    f"training images have {smallest} to {largest} pixels, {median} in the median of the "
    f"longer sides; the network sees {size}x{size}"
  ]
  for name, found in sizes.items():
    longer = found.max(axis=1)
    far = {"less than half": (longer > 0) & (longer * _RANGE < median)}
    if size <= LARGEST_RESIDENT:  # else random crops of any size are taken
      far["more than twice"] = longer > median * _RANGE
    for what, chosen in far.items():
      if chosen.any():
        first = int(np.flatnonzero(chosen)[0])
        width, height = found[first]
        lines.append(
          f"warning: {np.count_nonzero(chosen)} of {len(found)} {titles[name]} images are "
          f"{what} as large as that, such as {images[name].name(first)} "
          f"({width}x{height}): take them out if that is not meant"
        )
  return tuple(lines)


def _median(sizes: np.ndarray) -> int:
  """Returns that of the longer sides; one of them, the lower one of two."""
  longer = np.sort(sizes[sizes.all(axis=1)].max(axis=1))
  return int(longer[(len(longer) - 1) // 2])


def central_squares(
  images: EncodedImages | np.ndarray,
  size: int,
  check_interrupt: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, verify.Bad, np.ndarray]:
  """Decodes images, or takes uint8 [N, H, W, 3]; resizes by the short side, and cuts.

  Calls `check_interrupt` often. Returns uint8 [N, S, S, 3]; the images that cannot be read,
  whose pixels mean nothing; and widths and heights of the images as they were,
  int32 [N, 2], 0 x 0 of a bad one.
  """
  pixels = np.empty((len(images), size, size, 3), np.uint8)
  sizes = np.zeros((len(images), 2), np.int32)

  def read(record: int) -> None:
    encoded = isinstance(images, EncodedImages)
    image = images.open(record).read() if encoded else images[record]
    pixels[record] = crop.central_square(image, size, short_side=size)
    sizes[record] = image.shape[1::-1]

  all_bad = verify.read_each(np.arange(len(images)), read, lambda _: check_interrupt())
  return pixels, all_bad, sizes
