"""Lists what archives hold: each split's images in record order, before any is read."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ssil_jax.errors import DataError

NAMES_KEPT = 100  # of the images left out for one reason


@dataclasses.dataclass(frozen=True)
class Options:
  """The flags of `experiments/prepare.py` that change what is written."""

  allow_partial: bool = False  # take what there is, and leave out what cannot be read
  resize: int | None = None  # short side of training images in pixels, None: as they are
  restart_markers: bool = False  # rewrite training images with restart markers


@dataclasses.dataclass(frozen=True)
class Archive:
  """A file that images are read from, or a folder of such files."""

  path: pathlib.Path
  name: str  # as it stands in messages and in `prepare.json`
  size: int  # bytes of the file, or of the images in the folder

  @classmethod
  def file(cls, folder: pathlib.Path, name: str) -> "Archive":
    """Returns an archive in the folder; raises DataError if it is missing or empty."""
    path = folder / name
    try:
      size = path.stat().st_size
    except OSError as error:
      raise DataError(f"{path} is missing: put the official {name} there") from error
    if not size:
      raise DataError(f"{path} is empty: download it again")
    return cls(path, name, size)


@dataclasses.dataclass(frozen=True)
class Records:
  """The images of a split, one entry each in record order; all arrays are [n]."""

  label: np.ndarray  # int32, the class
  files: np.ndarray  # of `tars.as_table`: where the images lie
  columns: Mapping[str, np.ndarray]  # the other features by name; bytes for text
  archives: tuple[Archive, ...]

  def __len__(self) -> int:
    return len(self.label)

  def read(self, record: int) -> bytes:
    """Reads the image file of a record; raises DataError if it cannot be read whole."""
    name, offset, size, archive = self.files[record].item()
    path = self.archives[archive].path
    if offset < 0:
      path, offset = path / os.fsdecode(name), 0
    try:
      with open(path, "rb", buffering=0) as file:
        data = os.pread(file.fileno(), size, offset)
    except OSError as error:
      raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) < size:
      raise DataError(f"{path} became shorter while it was read: start again")
    return data

  def where(self, record: int) -> str:
    """Returns archive and member, for messages."""
    file = self.files[record]
    return f"{self.archives[file['archive']].name}: {file['name'].decode(errors='replace')}"

  def features(self, record: int) -> dict[str, Any]:
    """Returns the features of a record but for its image."""
    values = {"label": self.label[record].item()}
    for name, column in self.columns.items():
      value = column[record].item()
      values[name] = value.decode() if isinstance(value, bytes) else value
    return values

  def digest(self) -> str:
    """Returns 16 hex digits that differ if anything about the records does."""
    state = hashlib.sha256()
    files = [self.files[name] for name in ("name", "archive", "offset", "size")]
    columns = [self.columns[name] for name in sorted(self.columns)]
    for array in (self.label, *files, *columns):
      state.update(np.ascontiguousarray(array))
    return state.hexdigest()[:16]


class Tally(dict[str, dict[str, Any]]):
  """Maps what is said of images to {"count": how many, "first": names of the first}."""

  def add(self, text: str, name: str) -> None:
    """Counts an image."""
    entry = self.setdefault(text, {"count": 0, "first": []})
    entry["count"] += 1
    if entry["count"] <= NAMES_KEPT:
      entry["first"].append(name)


class Deviations:
  """Collects what is wrong with archives: an error, unless partial data are allowed."""

  def __init__(self, options: Options):
    self._allow_partial = options.allow_partial
    self.lines: list[str] = []  # how this is not the official data set
    self.left_out = Tally()  # images of the archives that no split has

  def add(self, line: str) -> None:
    """Notes a difference from the official data set; raises DataError if it may not be."""
    if not self._allow_partial:
      raise DataError(f"{line}; --allow_partial takes what there is")
    self.lines.append(line)

  def compare_counts(
    self,
    archive: Archive,
    class_names: Sequence[str],
    labels: np.ndarray,
    official: int,
    where: str = "",
  ) -> None:
    """Notes classes without the official number of labels [n]; raises as `add` does."""
    counts = np.bincount(labels, minlength=len(class_names))
    wrong = np.flatnonzero(counts != official)
    if len(wrong):
      self.add(
        f"{archive.name}: class {class_names[wrong[0]]} has {counts[wrong[0]]} images"
        f"{where} instead of {official} ({len(wrong)} such classes)"
      )


class Contents(NamedTuple):
  """All that a builder needs to know of its archives."""

  archives: tuple[Archive, ...]  # all that were looked at
  class_names: Mapping[str, tuple[str, ...]]  # feature -> names by label; "label" is there
  splits: Mapping[str, Records]  # none of them empty; the training split first
