"""Encoded images that stay where they are stored until a batch needs them."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from absl import logging

from ssil_jax.data.images import decode
from ssil_jax.data.images.crop import Box
from ssil_jax.errors import DataError

_HEAD_BYTES = 1 << 14  # enough for the header of most images


class BadImage(DataError):
  """An image that cannot be read: its name, for a person, and why."""

  def __init__(self, name: str, reason: str):
    super().__init__(name, reason)  # so that it can be sent to another process
    self.name, self.reason = name, reason

  def __str__(self) -> str:
    return f"cannot read image {self.name}: {self.reason}"


def hash_rows(numbers: np.ndarray) -> np.ndarray:
  """Returns a hash, uint64 [n], of every row of int64 [n, k]; close rows are far apart."""
  result = np.zeros(len(numbers), np.uint64)
  for column in numbers.astype(np.uint64).T:
    # SplitMix64: Steele et al., Fast splittable pseudorandom number generators, 2014.
    result = (result ^ column) + np.uint64(0x9E3779B97F4A7C15)
    result = (result ^ (result >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    result = (result ^ (result >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    result ^= result >> np.uint64(31)
  return result


def hash_names(names: Iterable[bytes]) -> np.ndarray:
  """Returns a hash, int64 [n], of each name."""
  hashes = [hashlib.blake2b(name, digest_size=8).digest() for name in names]
  return np.frombuffer(b"".join(hashes), np.int64)


class Store(Protocol):
  """Something that holds encoded images under numbers from 0; used by many threads.

  It keeps no Python object for each image, so that millions cost megabytes.
  """

  # Whether `read` gives the very bytes that were stored, or raises. What is odd about them
  # then is how the image was published, and is no reason to stop.
  has_checksums: bool
  was_verified: bool  # whether every image was decoded before it was stored
  content: str | None  # a hash of all images, where it was noted when they were stored
  directory: pathlib.Path  # that holds the images

  def read(self, number: int, num_bytes: int | None = None) -> bytes:
    """Reads an encoded image, or its first bytes at least. Raises BadImage."""

  def name(self, number: int) -> str:
    """Returns where the image is, for a person."""

  def stamps(self, numbers: np.ndarray) -> np.ndarray:
    """Returns uint64 [n], hashes of the names, sizes and times of change of images.

    0 if there is none; numbers are int64 [n].
    """

  def digest(self) -> bytes:
    """Returns a hash of the names of all images in their order, wherever the store lies."""

  def sizes(self, numbers: np.ndarray) -> np.ndarray:
    """Returns int64 [n]: bytes of images `numbers`, or of the files that they are in."""


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
    """Returns those records (int64 [n]) alone, in that order."""
    contents = None if self.contents is None else self.contents[records]
    return EncodedImages(self.store, self.numbers[records], contents)

  def open(self, record: int) -> "StoredImage":
    """Reads a record; raises BadImage."""
    return StoredImage(self.store, int(self.numbers[record]))

  def size(self, record: int) -> tuple[int, int]:
    """Reads width and height of the upright image from its header; raises BadImage."""
    try:
      head = self.store.read(int(self.numbers[record]), _HEAD_BYTES)
      image = decode.EncodedImage(head)
    except decode.ImageError:
      image = self.open(record)  # the header may be longer
    return image.width, image.height

  def check_headers(self) -> None:
    """Raises BadImage for the first image without a header of one."""
    with ThreadPoolExecutor() as threads:
      list(threads.map(self.size, range(len(self))))

  def name(self, record: int) -> str:
    """Returns where a record's image is, for a person."""
    return self.store.name(int(self.numbers[record]))


class StoredImage(decode.EncodedImage):
  """An image of a store, read but not decoded; errors tell its name."""

  def __init__(self, store: Store, number: int):
    """Raises BadImage."""
    self._store, self._number = store, number
    try:
      super().__init__(store.read(number))
    except decode.ImageError as error:
      raise BadImage(store.name(number), str(error)) from error

  def read(self, box: Box | None = None, *, strict: bool = True) -> np.ndarray:
    """Decodes it, as `EncodedImage` does; raises BadImage.

    What libjpeg only warns of is no reason to stop if the store has checksums.
    """
    try:
      return super().read(box, strict=strict)
    except decode.ImageError as error:
      name = self._store.name(self._number)
      if strict and error.tolerable and self._store.has_checksums:
        _warn_once(name, str(error))
        return self.read(box, strict=False)
      raise BadImage(name, str(error)) from error


@functools.lru_cache(maxsize=1000)
def _warn_once(name: str, reason: str) -> None:
  logging.warning("image %s is decoded although libjpeg warns: %s", name, reason)
