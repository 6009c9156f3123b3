"""Finds where the members of a tar lie, from its headers alone.

An official archive has up to millions of small members. Its headers say where each of them
begins, so that one image is read by one `os.pread`, and all of them are counted before
anything is written.
"""

import gzip
import io
import os
import pathlib
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from ssil_jax.errors import DataError

_BLOCK = tarfile.BLOCKSIZE
# What `open_gzip` and tarfile raise for what is damaged.
UNPACKING_ERRORS = (OSError, EOFError, tarfile.TarError, zlib.error, ValueError)
_MOST_UNPACKED = 1 << 30  # bytes; the official .tar.gz hold a sixth of that at most


class Member(NamedTuple):
  """A regular file in a tar."""

  name: str  # as in the tar, with its folders
  offset: int  # of its first byte in the file that holds the tar
  size: int  # bytes


def members(
  path: pathlib.Path,
  advance: Callable[[int], None],
  *,
  inside: Member | None = None,
) -> Iterator[Member]:
  """Yields the files of an uncompressed tar, in its order, hidden ones left out.

  The tar is a file, or the member `inside` of one. `advance` is called with the bytes that
  were passed since the last call. Raises DataError if the tar is cut off, damaged, or none,
  or has links or devices in it.
  """
  where = path.name if inside is None else f"{path.name}: {inside.name}"
  try:
    with open(path, "rb", buffering=0) as file:
      start, end = 0, os.fstat(file.fileno()).st_size
      if inside is not None:
        start, end = inside.offset, inside.offset + inside.size
      done = file.seek(start)
      with tarfile.open(fileobj=file, mode="r:") as tar:
        # What lies behind an inner tar is not its own, though it may look so.
        while (info := tar.next()) is not None and info.offset < end:
          tar.members.clear()  # it keeps every header otherwise
          if info.size < 0:
            raise ValueError(f"{info.name} has no size")
          if info.offset_data + info.size > end:
            raise ValueError(f"{info.name} ends behind the end of the file")
          advance(info.offset - done)
          done = info.offset
          # macOS adds hidden ._NAME files, which hold no images.
          hidden = info.name.rpartition("/")[2].startswith(".")
          if hidden or info.isdir():
            continue
          if not info.isreg():
            raise DataError(
              f"{where} has {info.name} as a link or device and not as a file, as no "
              "official archive has: download it again"
            )
          yield Member(info.name, info.offset_data, info.size)
        # tarfile takes whatever is no header for the end of a tar.
        place = info.offset if info else tar.offset
        file.seek(place)
        if place + _BLOCK > end or file.read(_BLOCK) != bytes(_BLOCK):
          raise ValueError(f"no end of the tar at byte {place - start}")
        advance(end - done)
  # Besides its own errors, tarfile lets through what damaged numbers lead to.
  except (tarfile.TarError, ValueError, OverflowError) as error:
    raise DataError(
      f"{where} is cut off or damaged ({error}): download it again"
    ) from error
  except OSError as error:
    raise DataError(f"{path} cannot be read: {error.strerror}") from error


def open_gzip(packed: bytes) -> tarfile.TarFile:
  """Unpacks a .tar.gz; raises one of UNPACKING_ERRORS if it is damaged or vast."""
  # Whole, for only that checks the checksum of the .gz.
  with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
    content = file.read(_MOST_UNPACKED + 1)
  if len(content) > _MOST_UNPACKED:
    raise OSError(f"it unpacks to more than {_MOST_UNPACKED} bytes")
  return tarfile.open(fileobj=io.BytesIO(content), mode="r:")


def read_member(tar: tarfile.TarFile, name: str) -> bytes:
  """Reads a member; raises ValueError if it is missing or no file."""
  try:
    file = tar.extractfile(name)
  except KeyError as error:
    raise ValueError(f"{name} is missing") from error
  if file is None:
    raise ValueError(f"{name} is not a file")
  return file.read()


def as_table(found: Iterable[Member], archive: int = 0) -> np.ndarray:
  """Returns members of the archive of that number as a structured array [n].

  Millions of them fit into it. The fields are those of a member, the name as bytes, and
  `archive`.
  """
  rows = [
    (name.encode(errors="surrogateescape"), offset, size, archive)
    for name, offset, size in found
  ]
  longest = max((len(row[0]) for row in rows), default=1)
  numbers = [("offset", np.int64), ("size", np.int64), ("archive", np.int16)]
  return np.array(rows, [("name", f"S{longest}"), *numbers])
