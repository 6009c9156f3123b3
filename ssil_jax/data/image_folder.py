"""A folder of images: `DIR/train/CLASS/*` and `DIR/test/CLASS/*` (or `DIR/val`)."""

import os
import pathlib

import numpy as np

from ssil_jax.config import Config
from ssil_jax.data import images
from ssil_jax.data.dataset import Source, Split
from ssil_jax.errors import DataError
from ssil_jax.resnet import SMALL_IMAGE

_LAYOUT = "an image folder is DIR/train/CLASS/* and DIR/test/CLASS/* (or DIR/val)"
_LARGE_INPUT = 224


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
  natural = max(images.size_of(train.images[0]))
  return Source(
    class_names=class_names,
    train=train,
    test=test,
    image_size=natural if natural <= SMALL_IMAGE else _LARGE_INPUT,
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
  return file_name.lower().endswith(images.SUFFIXES) and not file_name.startswith(".")


def _list_split(folder: pathlib.Path, class_names: tuple[str, ...]) -> tuple[Split, int]:
  """The split's file names and labels, and how many files were not taken for images."""
  paths, counts, ignored = [], [], 0
  for name in class_names:
    files = [entry for entry in os.scandir(folder / name) if entry.is_file()]
    found = sorted(entry.path for entry in files if _is_image(entry.name))
    if not found:
      raise DataError(
        f"{folder / name} has no images ({', '.join(images.SUFFIXES)}): add some or "
        "remove the class"
      )
    paths += found
    counts.append(len(found))
    ignored += len(files) - len(found)
  labels = np.repeat(np.arange(len(class_names), dtype=np.int32), counts)
  return Split(paths, labels), ignored
