"""Photos that a model keeps: a ZIP archive of image files as they were, with an index.

Any program can unpack it. The index, `index.json`, is its first entry: columns with a value
for each photo, in the order in which they are stored.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np

from ssil_jax.data.dataset import Split
from ssil_jax.data.encoded import BadImage, EncodedImages
from ssil_jax.data.images import decode
from ssil_jax.data.sources.folder import MAX_BYTES
from ssil_jax.errors import DataError
from ssil_jax.system import replaced

_INDEX = "index.json"
_LONGEST_NAME = 50  # characters of a class in the name of an entry
_NOT_IN_NAMES = '/\\:*?"<>|'
_DATE = (1980, 1, 1, 0, 0, 0)  # the same photos make the same archive
_MAX_INDEX = 1 << 28  # bytes, ten for every photo


class Photos(NamedTuple):
  """An open archive; photo i is record i of `images`."""

  images: EncodedImages
  labels: np.ndarray  # int32 [n]
  ranks: np.ndarray  # int32 [n], within the class, 0 first


def write_photos(
  path: pathlib.Path,
  split: Split,
  records: np.ndarray,
  ranks: np.ndarray,
  class_names: Sequence[str],
) -> None:
  """Writes records (int64 [n]) of a split to an archive, whole or not at all.

  Raises BadImage if one can no longer be read, and OSError.
  """
  labels = split.labels[records]
  index = {"labels": labels.tolist(), "ranks": ranks.tolist()}
  with (
    replaced(path) as file,
    zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
  ):
    _add(archive, _INDEX, json.dumps(index).encode())
    for label, rank, record in zip(labels, ranks, records, strict=True):
      content = split.encoded(int(record))
      name = f"{label:05d} {_shown(class_names[label])}/{rank:05d}{decode.suffix(content)}"
      _add(archive, name, content)


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
  archive.writestr(zipfile.ZipInfo(name, _DATE), content)


def _shown(class_name: str) -> str:
  """Returns as much of a name as every file system takes."""
  name = class_name[:_LONGEST_NAME]
  return "".join(c if c.isprintable() and c not in _NOT_IN_NAMES else "_" for c in name)


def open_photos(path: pathlib.Path) -> Photos:
  """Opens an archive; raises DataError if it is damaged or cannot be read."""
  try:
    archive = Archive.open(path)
    index = json.loads(_content(archive.file, archive.file.getinfo(_INDEX), _MAX_INDEX))
    labels, ranks = (np.array(index[name], np.int32) for name in ("labels", "ranks"))
    if not labels.shape == ranks.shape == (len(archive.entries),) or (
      len(labels) and min(labels.min(), ranks.min()) < 0
    ):
      raise ValueError("the index does not fit the photos")
  except (OSError, ValueError, LookupError, TypeError, *_BAD_INDEX, *_DAMAGE) as error:
    reason = getattr(error, "strerror", None) or error
    raise DataError(
      f"{path} cannot be read ({reason}): put a good one back, or repeat the run"
    ) from error
  return Photos(EncodedImages(archive, np.arange(len(labels))), labels, ranks)


_BAD_INDEX = (OverflowError, RecursionError)
_DAMAGE = (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, RuntimeError)


def _content(
  file: zipfile.ZipFile, entry: zipfile.ZipInfo, most: int, num_bytes: int | None = None
) -> bytes:
  """Returns an entry, or its first bytes; raises ValueError if it has more than `most`."""
  size = entry.file_size
  if size > most:
    raise ValueError(f"{entry.filename} has {size} bytes, more than the {most} allowed")
  # It checks the checksum when it has read all, and closes nothing else. An archive from
  # elsewhere may unpack to more than it says, which a read without a number would do.
  with file.open(entry) as content:
    return content.read(size if num_bytes is None else num_bytes)


@dataclasses.dataclass(frozen=True)
class Archive:
  """A `Store` of the photos of one archive."""

  has_checksums: ClassVar[bool] = True
  was_verified: ClassVar[bool] = False  # the run may not have looked (--noverify_data)
  content: ClassVar[None] = None

  directory: pathlib.Path
  path: pathlib.Path
  file: zipfile.ZipFile
  entries: tuple[zipfile.ZipInfo, ...]

  @classmethod
  def open(cls, path: pathlib.Path) -> "Archive":
    """Opens it; raises OSError or BadZipFile."""
    file = zipfile.ZipFile(path)
    entries = tuple(entry for entry in file.infolist() if entry.filename != _INDEX)
    return cls(path.parent, path, file, entries)

  def __reduce__(self):
    return Archive.open, (self.path,)  # for worker processes

  def read(self, number: int, num_bytes: int | None = None) -> bytes:
    try:
      return _content(self.file, self.entries[number], MAX_BYTES, num_bytes)
    except (OSError, ValueError, *_DAMAGE) as error:
      raise BadImage(self.name(number), str(error)) from error

  def name(self, number: int) -> str:
    return os.path.join(self.path, self.entries[number].filename)

  def digest(self) -> bytes:
    names = "\n".join(entry.filename for entry in self.entries)
    return hashlib.blake2b(names.encode("utf-8", "surrogateescape")).digest()

  def sizes(self, numbers: np.ndarray) -> np.ndarray:
    return np.array([self.entries[n].file_size for n in numbers.tolist()], np.int64)

  def stamps(self, numbers: np.ndarray) -> np.ndarray:
    return np.zeros(len(numbers), np.uint64)


@dataclasses.dataclass(frozen=True)
class Joined:
  """A `Store` of the images of several others, one store's after another's."""

  content: ClassVar[None] = None

  stores: tuple
  ends: tuple[int, ...]  # the numbers at which the images of each store end

  @property
  def has_checksums(self) -> bool:
    return all(store.has_checksums for store in self.stores)

  @property
  def was_verified(self) -> bool:
    return all(store.was_verified for store in self.stores)

  @property
  def directory(self) -> pathlib.Path:
    return self.stores[-1].directory

  def _find(self, number: int):
    place = int(np.searchsorted(self.ends, number, side="right"))
    return self.stores[place], number - (self.ends[place - 1] if place else 0)

  def read(self, number: int, num_bytes: int | None = None) -> bytes:
    store, within = self._find(number)
    return store.read(within, num_bytes)

  def name(self, number: int) -> str:
    store, within = self._find(number)
    return store.name(within)

  def digest(self) -> bytes:
    return hashlib.blake2b(b"".join(store.digest() for store in self.stores)).digest()

  def stamps(self, numbers: np.ndarray) -> np.ndarray:
    return self._of_each(numbers, "stamps", np.uint64)

  def sizes(self, numbers: np.ndarray) -> np.ndarray:
    return self._of_each(numbers, "sizes", np.int64)

  def _of_each(self, numbers: np.ndarray, what: str, dtype) -> np.ndarray:
    result = np.zeros(len(numbers), dtype)
    places = np.searchsorted(self.ends, numbers, side="right")
    for place, (store, start) in enumerate(zip(self.stores, (0, *self.ends), strict=False)):
      of_store = places == place
      if of_store.any():
        result[of_store] = getattr(store, what)(numbers[of_store] - start)
    return result


def join(*parts: EncodedImages) -> EncodedImages:
  """Returns the images of several parts, one part's after another's."""
  parts = tuple(part for part in parts if len(part))
  if len(parts) == 1:
    return parts[0]
  sizes = [int(part.numbers.max()) + 1 for part in parts]
  ends = np.cumsum(sizes)
  numbers = [p.numbers + end - n for p, end, n in zip(parts, ends, sizes, strict=True)]
  store = Joined(tuple(part.store for part in parts), tuple(ends.tolist()))
  return EncodedImages(store, np.concatenate(numbers))
