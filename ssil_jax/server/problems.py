"""Defines what the server answers to a request that it cannot serve."""

from collections.abc import Sequence
from typing import NamedTuple


class BadPhoto(NamedTuple):
  """A photo that cannot be read, by the name that its sender gave it."""

  file: str
  error: str


class Problem(Exception):
  """A request that cannot be served; the text says why, and what to do, in one line.

  Attributes:
    status: of the answer, in HTTP's numbers.
    photos: those that are to blame, if any are.
  """

  def __init__(self, text: str, status: int = 400, photos: Sequence[BadPhoto] = ()):
    super().__init__(text)
    self.status, self.photos = status, tuple(photos)
