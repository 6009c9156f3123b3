"""Encoded images that stay where they are stored until a batch needs them."""

import dataclasses
from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np

from ssil_jax.data.decode import ImageError
from ssil_jax.errors import DataError

T = TypeVar("T")


class Store(Protocol):
  """Something that holds encoded images under numbers from 0; used by many threads.

  It keeps no Python object for each image, so that millions cost megabytes.
  """

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

  def decode(self, record: int, how: Callable[[bytes], T]) -> T:
    """`how` of a record's bytes. Raises DataError, naming the image it is not able to."""
    number = int(self.numbers[record])
    data = self.store.read(number)
    try:
      return how(data)
    except ImageError as error:
      raise DataError(f"cannot read image {self.name(record)}: {error}") from error

  def name(self, record: int) -> str:
    """Where a record's image is, for a person."""
    return self.store.name(int(self.numbers[record]))
