"""Encoded images that stay where they are stored until a batch needs them."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np
from absl import logging

from ssil_jax.data.images.decode import ImageError
from ssil_jax.errors import DataError

T = TypeVar("T")


class BadImage(DataError):
  """An image that cannot be read.

  Attributes:
    name: where it is, for a person.
    reason: why it cannot be read.
  """

  def __init__(self, name: str, reason: str):
    super().__init__(name, reason)  # so that it can be sent to another process
    self.name, self.reason = name, reason

  def __str__(self) -> str:
    return f"cannot read image {self.name}: {self.reason}"


# Tells whether an image is still the one that was looked at: hashes of what it is called in
# its store, and of its size in bytes and the times of its last change; 0 if they are not
# known.
STAMP = np.dtype([("name", np.uint64), ("state", np.uint64)])


def mixed(numbers: np.ndarray) -> np.ndarray:
  """A hash, uint64 [n], of every row of int64 [n, k]; close rows are far apart."""
  result = np.zeros(len(numbers), np.uint64)
  for column in numbers.astype(np.uint64).T:
    # SplitMix64: Steele et al., Fast splittable pseudorandom number generators, 2014.
    result = (result ^ column) + np.uint64(0x9E3779B97F4A7C15)
    result = (result ^ (result >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    result = (result ^ (result >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    result ^= result >> np.uint64(31)
  return result


class Store(Protocol):
  """Something that holds encoded images under numbers from 0; used by many threads.

  It keeps no Python object for each image, so that millions cost megabytes.

  Attributes:
    has_checksums: whether `read` gives the very bytes that were stored, or raises. What is
      odd about them then is how the image was published, and is no reason to stop.
    was_verified: whether every image was decoded before it was stored.
    content: a hash of all images, where it was noted when they were stored.
    directory: that holds the images.
  """

  has_checksums: bool
  was_verified: bool
  content: str | None
  directory: pathlib.Path

  def read(self, number: int) -> bytes:
    """The encoded image. Raises BadImage."""

  def size(self, number: int) -> tuple[int, int]:
    """Width and height in pixels of the upright image, from its header. Raises BadImage."""

  def name(self, number: int) -> str:
    """Where the image is, for a person."""

  def check(self, numbers: np.ndarray) -> None:
    """Raises BadImage, naming the first image of `numbers` (int64 [n]) of which it can be
    told without decoding that it is no image."""

  def stamps(self, numbers: np.ndarray) -> np.ndarray:
    """`STAMP` [n] of images `numbers` (int64 [n])."""

  def digest(self) -> bytes:
    """Differs if other images are held, or in another order; the same wherever it lies."""

  def sizes(self, numbers: np.ndarray) -> np.ndarray:
    """int64 [n]: bytes of images `numbers` (int64 [n]), or of the files they are in."""


@dataclasses.dataclass(frozen=True)
class EncodedImages:
  """The images of a split: record i is image `numbers[i]` of the store."""

  store: Store
  numbers: np.ndarray  # int64 [N]
  # uint64 [N], hashes of their bytes; None where nobody has read them.
  contents: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.numbers)

  def take(self, records: np.ndarray) -> "EncodedImages":
    """Those records (int64 [n]) alone, in that order."""
    contents = None if self.contents is None else self.contents[records]
    return EncodedImages(self.store, self.numbers[records], contents)

  def decode(self, record: int, how: Callable[..., T]) -> T:
    """`how` of a record's bytes, and of `strict=False` if it must be.

    Raises:
      BadImage: it cannot be decoded.
    """
    number = int(self.numbers[record])
    data = self.store.read(number)
    try:
      try:
        return how(data)
      except ImageError as error:
        if not (error.tolerable and self.store.has_checksums):
          raise
        _warn_once(self.name(record), str(error))
        return how(data, strict=False)
    except ImageError as error:
      raise BadImage(self.name(record), str(error)) from error

  def size(self, record: int) -> tuple[int, int]:
    """Width and height in pixels of the upright image, from its header. Raises BadImage."""
    return self.store.size(int(self.numbers[record]))

  def name(self, record: int) -> str:
    """Where a record's image is, for a person."""
    return self.store.name(int(self.numbers[record]))


@functools.lru_cache(maxsize=1000)
def _warn_once(name: str, reason: str) -> None:
  logging.warning("image %s is decoded although libjpeg warns: %s", name, reason)
