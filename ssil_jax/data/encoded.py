"""Encoded images that stay where they are stored until a batch needs them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np
from absl import logging

from ssil_jax.data.decode import ImageError
from ssil_jax.errors import DataError

T = TypeVar("T")


class Store(Protocol):
  """Something that holds encoded images under numbers from 0; used by many threads.

  It keeps no Python object for each image, so that millions cost megabytes.

  Attributes:
    has_checksums: whether `read` gives the very bytes that were stored, or raises. What is
      odd about them then is how the image was published, and is no reason to stop.
  """

  has_checksums: bool

  def read(self, number: int) -> bytes:
    """The encoded image. Raises DataError."""

  def name(self, number: int) -> str:
    """Where the image is, for a person."""

  def check(self, numbers: np.ndarray) -> None:
    """Raises DataError, naming the first image of `numbers` (int64 [n]) of which it can be
    told without decoding that it is no image."""

  def digest(self) -> bytes:
    """Differs if other images are held, or in another order; the same wherever it lies."""


@dataclasses.dataclass(frozen=True)
class EncodedImages:
  """The images of a split: record i is image `numbers[i]` of the store."""

  store: Store
  numbers: np.ndarray  # int64 [N]

  def __len__(self) -> int:
    return len(self.numbers)

  def take(self, records: np.ndarray) -> "EncodedImages":
    """Those records (int64 [n]) alone, in that order."""
    return EncodedImages(self.store, self.numbers[records])

  def decode(self, record: int, how: Callable[..., T]) -> T:
    """`how` of a record's bytes, and of `strict=False` if it must be.

    Raises:
      DataError: names the image that cannot be decoded.
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
      raise DataError(f"cannot read image {self.name(record)}: {error}") from error

  def name(self, record: int) -> str:
    """Where a record's image is, for a person."""
    return self.store.name(int(self.numbers[record]))


@functools.lru_cache(maxsize=1000)
def _warn_once(name: str, reason: str) -> None:
  logging.warning("image %s is decoded although libjpeg warns: %s", name, reason)
