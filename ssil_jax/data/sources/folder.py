"""A folder of images: `DIR/train/CLASS/*` and `DIR/test/CLASS/*` (or `DIR/val`).

Or `DIR/CLASS/*`, a share of which is kept for testing.
"""

import collections
import dataclasses
import hashlib
import os
import pathlib
import re
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np

from ssil_jax.config import Config
from ssil_jax.data.dataset import Source, Split
from ssil_jax.data.encoded import BadImage, EncodedImages, hash_names, hash_rows
from ssil_jax.data.images import decode
from ssil_jax.errors import DataError

_LAYOUT = (
  "an image folder is DIR/train/CLASS/* and DIR/test/CLASS/* (or DIR/val), or DIR/CLASS/* "
  "with no class of these names"
)
# Photos in formats that are not read, HEIC aside.
_UNREAD = (".avif", ".bmp", ".gif", ".jp2", ".jxl", ".tif", ".tiff")
_KINDS = 10  # of ignored files, named in a note
MAX_BYTES = 1 << 30  # of a file; ten bytes for every pixel that an image may have
_CHUNK = 256  # files whose status a thread asks for at a time
_SLOW = 5e-5  # seconds for a file's status, which a local disk's takes a tenth of


def open_image_folder(config: Config) -> Source:
  """Lists the files of `--data_dir`; classes and files in the order of their names.

  Raises DataError, with the folder that is missing or empty, or the class that differs.
  """
  try:
    return _open(config)
  except OSError as error:
    raise DataError(f"{error.filename} cannot be listed: {error.strerror}") from error


def data_folder(config: Config, remedy: str) -> pathlib.Path:
  """Returns the folder that `--data_dir` names; raises DataError if there is none."""
  if not config.data_dir:
    raise DataError(f"--dataset={config.dataset} needs --data_dir=DIR: {remedy}")
  root = pathlib.Path(config.data_dir).expanduser()
  if not os.path.isdir(root):
    raise DataError(f"--data_dir={config.data_dir} is not a folder: {remedy}")
  return root


def _open(config: Config) -> Source:
  root = data_folder(config, _LAYOUT)
  train_dir = root / "train"
  test_dir = root / "test" if (root / "test").is_dir() else root / "val"
  if not train_dir.is_dir() and not test_dir.is_dir():
    class_names = _class_names(root)
    split, ignored = _list_split(root, class_names)
    # Photos beside the classes, put there by mistake perhaps.
    ignored.update(
      _kind(entry)
      for entry in os.scandir(root)
      if not entry.is_dir() or entry.name.startswith(".")
    )
    return _source(class_names, split, None, ignored)
  for folder in (train_dir, test_dir):
    if not folder.is_dir():
      raise DataError(f"{folder} is missing: {_LAYOUT}")
  names = {folder: _class_names(folder) for folder in (train_dir, test_dir)}
  for here, there in ((train_dir, test_dir), (test_dir, train_dir)):
    if missing := sorted(set(names[here]) - set(names[there])):
      raise DataError(
        f"class {missing[0]} ({len(missing)} in all) is in {here} but not in {there}: "
        "both need a folder for every class"
      )
  train, ignored_train = _list_split(train_dir, names[train_dir])
  test, ignored_test = _list_split(test_dir, names[train_dir])
  return _source(names[train_dir], train, test, ignored_train + ignored_test)


def _source(
  class_names: tuple[str, ...],
  train: Split,
  test: Split | None,
  ignored: collections.Counter[str],
) -> Source:
  """Returns the source, with a note on what was ignored: extension -> count."""
  notes = []
  if ignored:
    kinds = [f"{count} {kind}" for kind, count in sorted(ignored.most_common(_KINDS))]
    if len(ignored) > _KINDS:
      kinds.append(f"and {len(ignored) - _KINDS} other kinds")
    notes.append(
      f"{ignored.total()} files or folders beside the images are ignored: "
      f"{', '.join(kinds)}"
    )
    remedies = (
      (_UNREAD, "convert them to JPEG, PNG or WebP"),
      (decode.HEIC_SUFFIXES, "install pillow-heif (pip install 'ssil-jax[heic]')"),
    )
    notes += [
      f"warning: images in {', '.join(unread)} files are not read: {remedy}, if they are "
      "meant to be learnt"
      for suffixes, remedy in remedies
      if (unread := sorted(set(ignored) & set(suffixes)))
    ]
  return Source(
    class_names=class_names,
    train=train,
    test=test,
    image_size=None,
    flip=True,
    ignored_files=ignored.total(),
    notes=tuple(notes),
  )


def _kind(entry: os.DirEntry[str]) -> str:
  """Returns what a file is called by in a count: its extension, if it is one."""
  if entry.name.startswith("."):
    return "hidden"
  if entry.is_dir(follow_symlinks=False):
    return "folder"
  suffix = os.path.splitext(entry.name)[1].lower()
  return suffix if re.fullmatch(r"\.[a-z][a-z0-9]{0,7}", suffix) else "without extension"


def _class_names(folder: pathlib.Path) -> tuple[str, ...]:
  names = sorted(
    entry.name
    for entry in os.scandir(folder)
    if entry.is_dir() and not entry.name.startswith(".")
  )
  if not names:
    raise DataError(f"{folder} has no class folders: {_LAYOUT}")
  return tuple(names)


def _list_split(
  folder: pathlib.Path, class_names: tuple[str, ...]
) -> tuple[Split, collections.Counter[str]]:
  """Returns the files and labels, and how many entries of which kind are no images."""
  joined, lengths, counts, ignored = [], [], [], collections.Counter()
  for name in class_names:
    # Folders and broken links with the name of an image are taken for images, too, so that
    # they are complained of; not what macOS hides beside NAME.png, ._NAME.png.
    found = []
    for entry in os.scandir(folder / name):
      if entry.name.lower().endswith(decode.SUFFIXES) and not entry.name.startswith("."):
        found.append(entry.name)
      else:
        ignored[_kind(entry)] += 1
    found.sort()
    if not found:
      raise DataError(
        f"{folder / name} has no images ({', '.join(decode.SUFFIXES)}): add some or "
        "remove the class"
      )
    encoded = [os.fsencode(file_name) for file_name in found]
    joined.append(b"".join(encoded))
    lengths += map(len, encoded)
    counts.append(len(found))
  labels = np.repeat(np.arange(len(class_names), dtype=np.int32), counts)
  files = Files(folder, class_names, labels, b"".join(joined), np.cumsum(lengths))
  return Split(EncodedImages(files, np.arange(len(labels))), labels), ignored


def read_file(path: str, num_bytes: int | None = None) -> bytes:
  """Reads an image file, or its first bytes; raises BadImage."""
  try:
    # Without waiting for someone to write to a named pipe.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
      status = os.fstat(descriptor)
      if not stat.S_ISREG(status.st_mode):
        raise BadImage(path, "it is a folder, pipe or device, and not a file")
      if status.st_size > MAX_BYTES:
        raise BadImage(
          path, f"it has {status.st_size} bytes, more than the {MAX_BYTES} allowed"
        )
      with open(descriptor, "rb", closefd=False) as file:
        return file.read(num_bytes or status.st_size)
    finally:
      os.close(descriptor)
  except OSError as error:
    raise BadImage(path, error.strerror) from error


@dataclasses.dataclass(frozen=True)
class Files:
  """A `Store` of N image files in the folders of their classes."""

  has_checksums: ClassVar[bool] = False
  was_verified: ClassVar[bool] = False
  content: ClassVar[None] = None

  directory: pathlib.Path  # that holds the folders of the classes
  folders: tuple[str, ...]  # of the classes, by name; "" for the directory itself
  folder_of_file: np.ndarray  # int32 [N]
  names: bytes  # all file names, one after another, without separators
  name_ends: np.ndarray  # int64 [N], where each of them ends

  def read(self, number: int, num_bytes: int | None = None) -> bytes:
    return read_file(self.name(number), num_bytes)

  def name(self, number: int) -> str:
    (name,) = self._relative_names(np.array([number]))
    return os.path.join(self.directory, os.fsdecode(name))

  def digest(self) -> bytes:
    digest = hashlib.blake2b(self.names)
    digest.update(self.name_ends.tobytes())
    return digest.digest()

  def sizes(self, numbers: np.ndarray) -> np.ndarray:
    statuses = self._statuses(self._relative_names(numbers))
    return np.ascontiguousarray(statuses[:, 0])

  def stamps(self, numbers: np.ndarray) -> np.ndarray:
    names = self._relative_names(numbers)
    statuses = self._statuses(names)
    stamps = hash_rows(np.column_stack([hash_names(names), statuses]))
    return np.where(statuses[:, 0] < 0, 0, stamps)

  def _statuses(self, names: list[bytes]) -> np.ndarray:
    """Returns int64 [n, 3]: sizes and times of change, of contents and of anything, in ns.

    The last one no program can set, so that it changes with every replacement. -1 and
    zeros for a file that is not there.
    """
    result = np.zeros((len(names), 3), np.int64)
    directory = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)

    def read(start: int) -> None:
      found = []
      for name in names[start : start + _CHUNK]:
        try:
          status = os.stat(name, dir_fd=directory)
          found.append((status.st_size, status.st_mtime_ns, status.st_ctime_ns))
        except OSError:
          found.append((-1, 0, 0))
      result[start : start + _CHUNK] = found

    starts = iter(range(0, len(names), _CHUNK))
    try:
      # Threads help where each answer is waited for, as from another machine; here they
      # would wait for one another.
      for start in starts:
        before = time.monotonic()
        read(start)
        if time.monotonic() - before > _CHUNK * _SLOW:
          break
      with ThreadPoolExecutor() as threads:
        list(threads.map(read, starts))
    finally:
      os.close(directory)
    return result

  def _relative_names(self, numbers: np.ndarray) -> list[bytes]:
    """Returns CLASS/FILE of each, as the system has it."""
    ends = self.name_ends[numbers].tolist()
    starts = np.where(numbers > 0, self.name_ends[numbers - 1], 0).tolist()
    owners = self.folder_of_file[numbers].tolist()
    encoded = {owner: os.fsencode(self.folders[owner]) for owner in set(owners)}
    folders = (encoded[owner] for owner in owners)
    return [
      b"%b/%b" % (folder, self.names[start:end]) if folder else self.names[start:end]
      for start, end, folder in zip(starts, ends, folders, strict=True)
    ]
