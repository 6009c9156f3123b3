"""Keeps small images, as they were decoded, in the user's cache, for the next start.

A file there is of certain images alone, told by their stamps (`Store.stamps`: names, sizes,
times of change), of one size, and of what decoded them. It is never changed, only replaced
or deleted, so that runs may share it. Together they take no more than `MOST_BYTES`: those
used longest ago go first. The folder may be deleted at any time.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
import time
import zlib
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import NamedTuple

import numpy as np

from ssil_jax.data import cache, verify
from ssil_jax.data.dataset import LARGEST_RESIDENT
from ssil_jax.data.encoded import EncodedImages
from ssil_jax.data.images import crop
from ssil_jax.data.resident import central_squares, likely_size
from ssil_jax.system import write_bytes

MOST_BYTES = 4 << 30
_FOLDER = "decoded"
_CHECKSUM_BYTES = 4
_WRITTEN_FOR = 3600.0  # seconds; a file that is not whole by then was left by a killed run
_RULES = b"1"  # another one if the same files would become other pixels than before
# Another version may round differently.
_DECODERS = ("Pillow", "simplejpeg", "cykooz.resizer", "pillow-heif")


class Squares(NamedTuple):
  """Images as they live on a device, and what is to be said of them."""

  pixels: np.ndarray  # uint8 [N, S, S, 3]; those of a bad image mean nothing
  bad: verify.Bad
  sizes: np.ndarray  # int32 [N, 2], width and height as stored; 0 x 0 of a bad image
  notes: tuple[str, ...] = ()  # for the user


class LikelySquares:
  """Keeps squares of images while these are verified, so as not to decode them twice.

  How large squares are is known only then; most often it is as a few headers tell.
  """

  def __init__(self, splits: Mapping[str, EncodedImages], size: int | None = None):
    """Takes the images by split; those of `train` tell the likely size.

    If the size is known already, images are verified because it is too large for squares.
    What is larger than the cache may be is not kept here, either.
    """
    self._size = None if size else likely_size(splits["train"])
    self._squares: dict[str, Squares] = {}
    count = sum(map(len, splits.values()))
    if (
      self._size is not None
      and self._size <= LARGEST_RESIDENT
      and count * self._size**2 * 3 <= MOST_BYTES
    ):
      for name, images in splits.items():
        pixels = np.empty((len(images), self._size, self._size, 3), np.uint8)
        self._squares[name] = Squares(pixels, {}, np.zeros((len(images), 2), np.int32))

  def visit(self, name: str, record: int, image: np.ndarray) -> None:
    """Takes an image, uint8 [H, W, 3], of a split."""
    if name in self._squares:
      pixels, _, sizes, _ = self._squares[name]
      pixels[record] = crop.central_square(image, self._size, short_side=self._size)
      sizes[record] = image.shape[1::-1]

  def of(self, name: str, size: int, bad: verify.Bad) -> Squares | None:
    """Returns a split's squares of this size if all but the bad ones have been seen.

    None otherwise: they are then to be decoded.
    """
    if name not in self._squares or size != self._size:
      return None
    squares = self._squares[name]._replace(bad=bad)
    num_seen = np.count_nonzero(squares.sizes.all(axis=1))
    return squares if num_seen + len(bad) == len(squares.sizes) else None


def kept_squares(
  images: EncodedImages,
  size: int,
  check_interrupt: Callable[[], None] = lambda: None,
  *,
  stamps: np.ndarray | None = None,
  squares: Squares | None = None,
) -> Squares:
  """Returns what `central_squares` does, from the cache if it has these images.

  `stamps` are those of the images, uint64 [N], and `squares` what they are decoded to, if
  they were asked for already. Bad images are not remembered, but looked at every time.
  Where nothing can be kept, a note says so.
  """
  # Stamps before any image is read: one that changes meanwhile is then decoded again.
  if stamps is None:
    stamps = images.store.stamps(images.numbers)
  decode = functools.partial(central_squares, images, size, check_interrupt)
  if not stamps.any():  # nothing tells whether they changed
    return squares or Squares(*decode())
  found, path, notes = None, None, ()
  place = "the user's cache"
  try:
    place = _folder()
    path = place / _key(images.store.directory, stamps, size)
    found, notes = _read(path, len(stamps), size)
  except OSError as error:
    path, notes = None, (_not_kept(error, place),)
  if found is None:
    squares = squares or Squares(*decode())
    # Without a stamp there was no file.
    good = squares.sizes * (stamps != 0)[:, None]
    if path is not None:
      notes += _write(path, squares.pixels, good)
    return squares._replace(notes=notes)
  pixels, sizes = found
  unknown = np.flatnonzero(~sizes.all(axis=1))
  if not len(unknown):
    return Squares(pixels, {}, sizes)
  again, bad, sizes[unknown] = central_squares(images.take(unknown), size, check_interrupt)
  pixels[unknown] = again
  return Squares(pixels, {int(unknown[n]): why for n, why in bad.items()}, sizes)


def _folder() -> pathlib.Path:
  return cache.home() / _FOLDER


def _key(directory: pathlib.Path, stamps: np.ndarray, size: int) -> str:
  """Returns the name of the file of images of a folder, uint64 [N] their stamps."""
  digest = hashlib.blake2b(digest_size=16, person=_RULES)
  told = [os.fsencode(directory.resolve()), str(size).encode()]
  for name in _DECODERS:
    version = "none"
    with contextlib.suppress(metadata.PackageNotFoundError):
      version = metadata.version(name)
    told.append(f"{name} {version}".encode())
  for part in (*told, stamps.tobytes()):
    digest.update(len(part).to_bytes(8, "little") + part)
  return digest.hexdigest()


def _read(
  path: pathlib.Path, count: int, size: int
) -> tuple[tuple[np.ndarray, np.ndarray] | None, tuple[str, ...]]:
  """Returns pixels and sizes, if there is such a file, and a note if it is damaged.

  Raises OSError if it cannot be read.
  """
  try:
    content = np.fromfile(path, np.uint8)
  except FileNotFoundError:
    return None, ()
  shape = (count, size, size, 3)
  start = _CHECKSUM_BYTES + 8 * count
  checksum, body = content[:_CHECKSUM_BYTES].tobytes(), content[_CHECKSUM_BYTES:]
  if len(content) != start + np.prod(shape) or checksum != _checksum(body):
    return None, (f"note: {path} is damaged, and its images are decoded anew",)
  with contextlib.suppress(OSError):  # of a cache that can be read only
    os.utime(path)  # used just now
  sizes = content[_CHECKSUM_BYTES:start].view(np.int32).reshape(count, 2)
  return (content[start:].reshape(shape), sizes), ()


def _write(path: pathlib.Path, pixels: np.ndarray, sizes: np.ndarray) -> tuple[str, ...]:
  """Writes a file, unless it were too large; returns a line if it does not."""
  parts = (np.ascontiguousarray(sizes, np.int32), pixels)
  if sum(part.nbytes for part in parts) > MOST_BYTES:
    return (
      "note: the next run will decode every image again: they take more than the "
      f"{MOST_BYTES / 2**30:.0f} GiB of decoded images that are kept",
    )
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, _checksum(*parts), *(part.data for part in parts))
    _delete_oldest(path.parent, but=path)
  except OSError as error:
    return (_not_kept(error, path.parent),)
  return ()


def _delete_oldest(folder: pathlib.Path, *, but: pathlib.Path) -> None:
  """Deletes the files used longest ago, until the others take `MOST_BYTES` at most.

  Not `but`, nor what another run may be writing.
  """
  files = []
  for path in folder.iterdir():
    with contextlib.suppress(FileNotFoundError):  # by another run that deletes, too
      status = path.stat()
      is_written = path.suffix == ".tmp" and time.time() - status.st_mtime < _WRITTEN_FOR
      if path.is_file() and not is_written:
        files.append((status.st_mtime_ns, status.st_size, path))
  total = sum(size for _, size, _ in files)
  for _, size, path in sorted(files):
    if total <= MOST_BYTES:
      return
    if path != but:
      path.unlink(missing_ok=True)
      total -= size


def _checksum(*parts: np.ndarray) -> bytes:
  checksum = 0
  for part in parts:
    checksum = zlib.crc32(part, checksum)
  return checksum.to_bytes(_CHECKSUM_BYTES, "little")


def _not_kept(error: OSError, place: str | pathlib.Path) -> str:
  return (
    "the next run will decode every image again, for this one cannot keep them: "
    f"{place}: {error.strerror} (set XDG_CACHE_HOME to a folder that can be "
    "written)"
  )
