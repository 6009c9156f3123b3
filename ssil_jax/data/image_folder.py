"""A folder of images: `DIR/train/CLASS/*` and `DIR/test/CLASS/*` (or `DIR/val`)."""

import hashlib
import os
import pathlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ssil_jax.config import Config
from ssil_jax.data import decode
from ssil_jax.data.dataset import Source, Split
from ssil_jax.data.encoded import EncodedImages
from ssil_jax.data.small import input_size
from ssil_jax.errors import DataError

_LAYOUT = "an image folder is DIR/train/CLASS/* and DIR/test/CLASS/* (or DIR/val)"
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_HEAD_BYTES = 1 << 14  # enough for the header of most images


def open_image_folder(config: Config) -> Source:
  """Lists the files; classes and files in the order of their names.

  The natural input size is that of the first training image if it is small, else 224.

  Raises:
    DataError: names the folder that is missing or empty, or the class that differs.
  """
  try:
    return _open(config)
  except OSError as error:
    raise DataError(f"{error.filename} cannot be listed: {error.strerror}") from error


def _open(config: Config) -> Source:
  root = pathlib.Path(config.data_dir).expanduser()
  if not config.data_dir or not root.is_dir():
    raise DataError(
      f"--data_dir={config.data_dir} is not a folder: {_LAYOUT}"
      if config.data_dir
      else f"--dataset=image_folder needs --data_dir=DIR: {_LAYOUT}"
    )
  train_dir = root / "train"
  test_dir = root / "test" if (root / "test").is_dir() else root / "val"
  for folder in (train_dir, test_dir):
    if not folder.is_dir():
      raise DataError(f"{folder} is missing: {_LAYOUT}")
  class_names = _class_names(train_dir)
  _check_same_classes(train_dir, class_names, test_dir, _class_names(test_dir))
  train, ignored_train = _list_split(train_dir, class_names)
  test, ignored_test = _list_split(test_dir, class_names)
  return Source(
    class_names=class_names,
    train=train,
    test=test,
    image_size=input_size(train.images),
    flip=True,
    ignored_files=ignored_train + ignored_test,
  )


def _class_names(folder: pathlib.Path) -> tuple[str, ...]:
  names = sorted(
    entry.name
    for entry in os.scandir(folder)
    if entry.is_dir() and not entry.name.startswith(".")
  )
  if not names:
    raise DataError(f"{folder} has no class folders: {_LAYOUT}")
  return tuple(names)


def _check_same_classes(train_dir, train_names, test_dir, test_names) -> None:
  for here, names, there, others in (
    (train_dir, train_names, test_dir, test_names),
    (test_dir, test_names, train_dir, train_names),
  ):
    missing = sorted(set(names) - set(others))
    if missing:
      raise DataError(
        f"class {missing[0]} ({len(missing)} in all) is in {here} but not in {there}: "
        "both need a folder for every class"
      )


def _is_image(file_name: str) -> bool:
  # macOS leaves hidden ._NAME.png beside NAME.png, which are no images.
  return file_name.lower().endswith(_SUFFIXES) and not file_name.startswith(".")


def _list_split(folder: pathlib.Path, class_names: tuple[str, ...]) -> tuple[Split, int]:
  """The split's files and labels, and how many entries were not taken for images."""
  joined, counts, ends, ignored = [], [], [], 0
  for name in class_names:
    with os.scandir(folder / name) as entries:
      listed = [(entry.name, entry.is_file()) for entry in entries]
    found = sorted(name for name, is_file in listed if is_file and _is_image(name))
    if not found:
      raise DataError(
        f"{folder / name} has no images ({', '.join(_SUFFIXES)}): add some or "
        "remove the class"
      )
    encoded = [os.fsencode(file_name) for file_name in found]
    joined.append(b"".join(encoded))
    ends.append(np.cumsum([len(file_name) for file_name in encoded]))
    counts.append(len(found))
    ignored += len(listed) - len(found)
  labels = np.repeat(np.arange(len(class_names), dtype=np.int32), counts)
  starts_of_classes = np.cumsum([0, *map(len, joined)])
  files = Files(
    [str(folder / name) for name in class_names],
    labels,
    b"".join(joined),
    np.concatenate([e + s for e, s in zip(ends, starts_of_classes, strict=False)]),
  )
  return Split(EncodedImages(files, np.arange(len(labels))), labels), ignored


class Files:
  """A `Store` of image files in the folders of their classes."""

  has_checksums = False

  def __init__(
    self,
    folders: list[str],
    folder_of_file: np.ndarray,
    names: bytes,
    name_ends: np.ndarray,
  ):
    """Takes N files.

    Args:
      folders: of the classes.
      folder_of_file: int32 [N].
      names: all file names, one after another, without separators.
      name_ends: int64 [N], where each of them ends.
    """
    self._folders = folders
    self._folder_of_file = folder_of_file
    self._names = names
    self._name_ends = name_ends

  def read(self, number: int, num_bytes: int = -1) -> bytes:
    path = self.name(number)
    try:
      with open(path, "rb") as file:
        return file.read(num_bytes)
    except OSError as error:
      raise DataError(f"cannot read image {path}: {error.strerror}") from error

  def name(self, number: int) -> str:
    start = self._name_ends[number - 1] if number else 0
    file_name = os.fsdecode(self._names[start : self._name_ends[number]])
    return os.path.join(self._folders[self._folder_of_file[number]], file_name)

  def check(self, numbers: np.ndarray) -> None:
    with ThreadPoolExecutor() as threads:
      for _ in threads.map(self._check, numbers.tolist()):
        pass  # to raise what a thread raised

  def digest(self) -> bytes:
    digest = hashlib.blake2b(self._names)
    digest.update(self._name_ends.tobytes())
    return digest.digest()

  def _check(self, number: int) -> None:
    try:
      decode.size_of(self.read(number, _HEAD_BYTES))
    except decode.ImageError:
      # Its header may be longer than that.
      EncodedImages(self, np.array([number])).decode(0, decode.size_of)
