"""ImageNet, the 1000 classes of ILSVRC 2012."""

import io
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.io
import tensorflow_datasets as tfds

from ssil_jax.data.builders import tars
from ssil_jax.data.builders.base import ArchiveBuilder
from ssil_jax.data.builders.found import Archive, Contents, Deviations, Records
from ssil_jax.errors import DataError
from ssil_jax.progress import ProgressBars

_TRAIN = "ILSVRC2012_img_train.tar"
_VALIDATION = "ILSVRC2012_img_val.tar"
_DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
# In the devkit.
_GROUND_TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
_META = "ILSVRC2012_devkit_t12/data/meta.mat"

# https://image-net.org/challenges/LSVRC/2012/
_NUM_TRAIN = 1_281_167
_NUM_CLASSES = 1000
_FEWEST, _MOST = 732, 1300  # training images of a class
_NUM_VALIDATION = 50_000
_VALIDATION_PER_CLASS = 50
_VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


class Imagenet(ArchiveBuilder, skip_registration=True):
  """ImageNet (ILSVRC 2012): 1,281,167 training and 50,000 validation images, 1000 classes.

  Features and splits are those of TFDS' `imagenet2012`. Training images are in the order
  of classes and then of the archive, validation images in the order of their numbers.
  """

  HOMEPAGE = "https://image-net.org/"

  def _other_features(self) -> dict[str, Any]:
    return {"file_name": tfds.features.Text()}

  def _find(
    self, folder: pathlib.Path, deviations: Deviations, progress: ProgressBars
  ) -> Contents:
    archives = [Archive.file(folder, name) for name in (_TRAIN, _VALIDATION)]
    train_file, validation_file = archives
    truth = _shipped("validation_labels.txt")
    devkit_counts: dict[str, int] = {}
    if (folder / _DEVKIT).exists():
      archives.append(Archive.file(folder, _DEVKIT))
      devkit_truth, devkit_counts = _read_devkit(folder / _DEVKIT)
      if devkit_truth != truth:
        raise DataError(
          f"{folder / _DEVKIT} has other validation labels than tensorflow-datasets: it is "
          "not the official one; download it again, or remove it"
        )
    train, class_names = _find_train(train_file, progress)
    counts = dict(zip(class_names, np.bincount(train.label).tolist(), strict=True))
    _check_train(counts, devkit_counts, deviations)
    validation = _find_validation(validation_file, class_names, truth, deviations, progress)
    return Contents(
      archives=tuple(archives),
      class_names={"label": class_names},
      splits={"train": train, "validation": validation},
    )


def _shipped(name: str) -> list[str]:
  """Reads the wnids in a file of tensorflow-datasets."""
  return tfds.core.tfds_path(f"datasets/imagenet2012/{name}").read_text().split()


def _read_devkit(path: pathlib.Path) -> tuple[list[str], dict[str, int]]:
  """Reads each validation image's wnid, and the number of training images of each wnid."""
  try:
    # It checks the checksum first: SciPy may crash by damaged bytes.
    with tars.open_gzip(path.read_bytes()) as tar:
      ids = [int(line) for line in tars.read_member(tar, _GROUND_TRUTH).split()]
      synsets = _read_synsets(tars.read_member(tar, _META))
    wnids = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
    # The synsets after these are the inner nodes of the tree, which have no images.
    counts = {
      str(synset["WNID"]): int(synset["num_train_images"])
      for synset in synsets
      if synset["ILSVRC2012_ID"] <= _NUM_CLASSES
    }
    return [wnids[i] for i in ids], counts
  except (*tars.UNPACKING_ERRORS, LookupError, TypeError) as error:
    raise DataError(f"{path} is damaged ({error}): download it again") from error


def _read_synsets(content: bytes) -> np.ndarray:
  """Reads the synsets [n] of meta.mat; raises ValueError if it cannot be read."""
  try:
    meta = scipy.io.loadmat(io.BytesIO(content), squeeze_me=True)
    return np.atleast_1d(meta["synsets"])
  except Exception as error:  # there is no end to what SciPy raises for damaged bytes
    reason = " ".join(str(error).split()) or type(error).__name__
    raise ValueError(f"{_META} cannot be read: {reason}") from error


def _find_train(
  archive: Archive, progress: ProgressBars
) -> tuple[Records, tuple[str, ...]]:
  """Finds the training images, by class, and the wnids of the classes."""
  inner = sorted(
    member
    for member in tars.members(archive.path, lambda size: None)
    if member.name.endswith(".tar")
  )
  class_names = tuple(pathlib.PurePosixPath(member.name).stem for member in inner)
  if not inner or len(set(class_names)) < len(class_names):
    raise DataError(f"{archive.path} is not a tar of one tar for each class")
  advance = progress.add(f"looking through {archive.name}", sum(m.size for m in inner))
  tables = [tars.as_table(tars.members(archive.path, advance, inside=tar)) for tar in inner]
  counts = [len(table) for table in tables]
  if 0 in counts:
    raise DataError(f"{archive.path}: {inner[counts.index(0)].name} has no images")
  labels = np.repeat(np.arange(len(inner), dtype=np.int32), counts)
  return _as_records(archive, np.concatenate(tables), labels), class_names


def _check_train(
  counts: Mapping[str, int], devkit_counts: Mapping[str, int], deviations: Deviations
) -> None:
  """Compares the number of training images of every class with the official ones."""
  official = _shipped("labels.txt")
  for what, wrong in (
    ("lacks", [wnid for wnid in official if wnid not in counts]),
    ("should not have", sorted(set(counts) - set(official))),
  ):
    if wrong:
      deviations.add(f"{_TRAIN} {what} {len(wrong)} classes, first {wrong[0]}")
  total = sum(counts.values())
  if total != _NUM_TRAIN:
    deviations.add(f"{_TRAIN} has {total:,} images instead of {_NUM_TRAIN:,}")
  wrong = []
  for wnid, count in counts.items():
    if wnid in devkit_counts and count != devkit_counts[wnid]:
      wrong.append(f"class {wnid} has {count} images instead of {devkit_counts[wnid]}")
    elif not _FEWEST <= count <= _MOST:
      wrong.append(f"class {wnid} has {count} images instead of {_FEWEST} to {_MOST}")
  if wrong:
    deviations.add(f"{_TRAIN}: {wrong[0]} ({len(wrong)} such classes)")


def _find_validation(
  archive: Archive,
  class_names: tuple[str, ...],
  truth: list[str],
  deviations: Deviations,
  progress: ProgressBars,
) -> Records:
  """Finds the validation images, by number."""
  advance = progress.add(f"looking through {archive.name}", archive.size)
  labels = {wnid: label for label, wnid in enumerate(class_names)}
  chosen: dict[int, tars.Member] = {}
  num_images, strange = 0, []
  for member in tars.members(archive.path, advance):
    name = pathlib.PurePosixPath(member.name).name
    match = _VALIDATION_NAME.fullmatch(name)
    number = int(match[1]) if match else 0
    if not 1 <= number <= len(truth) or number in chosen:
      strange.append(name)
      deviations.left_out.add("not the name of a validation image", name)
      continue
    num_images += 1
    if truth[number - 1] in labels:
      chosen[number] = member
    else:
      deviations.left_out.add("class is not in the training archive", name)
  if strange:
    deviations.add(
      f"{archive.name} has {len(strange)} files that are no ILSVRC2012_val_NUMBER.JPEG, or "
      f"have a number twice, first {strange[0]}"
    )
  if num_images != _NUM_VALIDATION:
    deviations.add(
      f"{archive.name} has {num_images:,} images instead of {_NUM_VALIDATION:,}"
    )
  if not chosen:
    raise DataError(f"{archive.path} has no images of the classes in {_TRAIN}")
  numbers = sorted(chosen)
  found = np.array([labels[truth[number - 1]] for number in numbers], np.int32)
  deviations.compare_counts(archive, class_names, found, _VALIDATION_PER_CLASS)
  return _as_records(archive, tars.as_table(chosen[number] for number in numbers), found)


def _as_records(archive: Archive, files: np.ndarray, labels: np.ndarray) -> Records:
  names = [name.rpartition(b"/")[2] for name in files["name"].tolist()]
  return Records(labels, files, {"file_name": np.array(names, "S")}, (archive,))
