"""Google Landmarks v2: its classes with most images."""

import csv
import dataclasses
import os
import pathlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from ssil_jax.data.builders import tars
from ssil_jax.data.builders.base import ArchiveBuilder
from ssil_jax.data.builders.found import Archive, Contents, Deviations, Records
from ssil_jax.data.builders.tars import Member
from ssil_jax.errors import DataError
from ssil_jax.progress import ProgressBars

_CSV = "train.csv"
_TARS = "images_*.tar"
# Where downloads put images_*.tar, or unpacking them the folders 0 to f.
_PLACES = ("", "train")
_SUFFIX = ".jpg"

# https://github.com/cvdfoundation/google-landmark
_NUM_IMAGES = 4_132_914
_NUM_LANDMARKS = 203_094
_NUM_TARS = 500

_ID_BYTES = 16
_LARGEST_LANDMARK = 2**32 - 1  # a larger one could not seed the choice of test images
_UNKNOWN = "not in train.csv"
# Of the test images. Changing it makes another data set: it needs a new version.
_SEED = 2


# Classes, which have most images, and images of each that are held out.
CHOICES = {"1k": (1000, 50), "10k": (10_000, 10)}


class LandmarksV2(ArchiveBuilder, skip_registration=True):
  """Google Landmarks v2, the landmarks with most training images.

  Of landmarks with as many images, that with the smaller id is taken first. Classes are in
  the order of landmark ids. Test images are drawn at random, by a fixed seed, from those
  that train.csv lists for a class; records are in the order of classes, then archives.
  """

  HOMEPAGE = "https://github.com/cvdfoundation/google-landmark"
  BUILDER_CONFIGS = [
    tfds.core.BuilderConfig(
      name=name,
      description=f"The {count:,} landmarks with most images, {held} of each for testing.",
    )
    for name, (count, held) in CHOICES.items()
  ]

  def _other_features(self) -> dict[str, Any]:
    return {"landmark_id": np.int64, "id": tfds.features.Text()}

  def _find(
    self, folder: pathlib.Path, deviations: Deviations, progress: ProgressBars
  ) -> Contents:
    csv_file = Archive.file(folder, _CSV)
    ids, landmark = _read_csv(csv_file, progress)
    landmarks, counts = np.unique(landmark, return_counts=True)
    if (len(ids), len(landmarks)) != (_NUM_IMAGES, _NUM_LANDMARKS):
      deviations.add(
        f"{csv_file.name} lists {len(ids):,} images of {len(landmarks):,} landmarks "
        f"instead of {_NUM_IMAGES:,} of {_NUM_LANDMARKS:,}"
      )
    num_classes, test_per_class = CHOICES[self.builder_config.name]
    most_first = np.lexsort((landmarks, -counts))
    classes = np.sort(landmarks[most_first[:num_classes]])
    if len(classes) < num_classes:
      deviations.add(
        f"{csv_file.name} has {len(classes):,} landmarks, fewer than the "
        f"{num_classes:,} of {self.name}/{self.builder_config.name}"
      )
    # By row of the csv: label int32, or -1 for landmarks that are not chosen.
    label = np.searchsorted(classes, landmark).astype(np.int32)
    label[classes[np.minimum(label, len(classes) - 1)] != landmark] = -1

    archives, files, rows = _find_images(folder, ids, label, deviations, progress)
    _check_all_there(csv_file, ids, label, rows, deviations)
    held_out = _hold_out(label, classes, test_per_class)
    by_class = np.argsort(label[rows], kind="stable")  # and then as in the archives
    splits = {}
    for split, wanted in (("train", ~held_out), ("test", held_out)):
      places = by_class[wanted[rows[by_class]]]
      row = rows[places]
      columns = {"landmark_id": landmark[row], "id": ids[row]}
      splits[split] = Records(label[row], files[places], columns, archives)
    train_counts = np.bincount(splits["train"].label, minlength=len(classes))
    empty = np.flatnonzero(train_counts == 0)
    if len(empty):
      raise DataError(
        f"landmark {classes[empty[0]]} ({len(empty)} in all) keeps no training image: "
        f"{test_per_class} are held out for testing, and no other is in the archives"
      )
    if not len(splits["test"]):
      raise DataError(f"none of the test images is in the archives of {folder}")
    return Contents(
      archives=(csv_file, *archives),
      class_names={"label": tuple(map(str, classes.tolist()))},
      splits=splits,
    )


def _read_csv(archive: Archive, progress: ProgressBars) -> tuple[np.ndarray, np.ndarray]:
  """Reads image ids (bytes [n], sorted) and their landmarks (int64 [n])."""
  advance = progress.add(f"reading {archive.name}", 1)
  try:
    # Spreadsheets put a byte order mark before the header.
    with open(archive.path, newline="", encoding="utf-8-sig", errors="replace") as file:
      header = next(csv.reader([file.readline()]), [])
      if missing := {"id", "landmark_id"} - set(header):
        raise DataError(
          f"{archive.path} has no column {min(missing)}, only "
          f"{', '.join(header) or 'an empty line'}: it is not the official train.csv"
        )
      with warnings.catch_warnings(action="ignore"):  # NumPy warns of no rows
        rows = np.loadtxt(
          file,
          # One more byte tells of ids that are too long.
          [("id", f"S{_ID_BYTES + 1}"), ("landmark", np.int64)],
          comments=None,
          delimiter=",",
          quotechar='"',
          usecols=(header.index("id"), header.index("landmark_id")),
          ndmin=1,
        )
    if not len(rows):
      raise DataError(f"{archive.path} lists no images: download it again")
    rows.sort(order="id", kind="stable")
    ids, landmarks = np.ascontiguousarray(rows["id"]), rows["landmark"].copy()
    codes = ids.view(np.uint8).reshape(len(ids), -1)
    is_id = (codes[:, 0] > 0) & (codes[:, -1] == 0)
    is_id &= ((codes == 0) | ((codes >= 32) & (codes < 127))).all(axis=1)
    if not is_id.all():
      raise ValueError(f"{ids[~is_id][0]} is not an image id")
    is_landmark = (landmarks >= 0) & (landmarks <= _LARGEST_LANDMARK)
    if not is_landmark.all():
      raise ValueError(f"{landmarks[~is_landmark][0]} is not a landmark id")
  except OSError as error:
    raise DataError(f"{archive.path} cannot be read: {error.strerror}") from error
  except (csv.Error, ValueError) as error:
    raise DataError(f"{archive.path} is damaged ({error}): download it again") from error
  twice = np.flatnonzero(ids[1:] == ids[:-1])
  if len(twice):
    raise DataError(f"{archive.path} lists {ids[twice[0]].decode()} twice")
  advance(1)
  return ids.astype(f"S{_ID_BYTES}"), landmarks


def _find_images(
  folder: pathlib.Path,
  ids: np.ndarray,
  label: np.ndarray,
  deviations: Deviations,
  progress: ProgressBars,
) -> tuple[tuple[Archive, ...], np.ndarray, np.ndarray]:
  """Looks for the images of the chosen landmarks in tars and unpacked folders.

  Returns:
    The archives; the images in their order [n], as `tars.as_table` has them; and which of
    the ids each is, int64 [n].
  """
  archives, tables, rows = [], [], []
  seen = np.zeros(len(ids), bool)
  for archive, files in _sources(folder, progress):
    stems = (name.rpartition(b"/")[2] for name in files["name"].tolist())
    found = np.array([stem.removesuffix(_SUFFIX.encode()) for stem in stems], "S")
    row = np.minimum(np.searchsorted(ids, found), len(ids) - 1)
    known = ids[row] == found
    for name in found[~known].tolist():
      deviations.left_out.add(_UNKNOWN, name.decode(errors="replace"))
    files, row = files[known], row[known]
    # An image may be there both in its tar and unpacked.
    fresh = np.zeros(len(row), bool)
    fresh[np.unique(row, return_index=True)[1]] = True
    fresh &= ~seen[row]
    for name in files["name"][~fresh].tolist():
      deviations.left_out.add(
        "there already", f"{archive.name}: {name.decode(errors='replace')}"
      )
    seen[row] = True
    taken = fresh & (label[row] >= 0)
    files = files[taken]
    if archive.path.is_dir():
      advance = progress.add("looking up the sizes of files", len(files), "files")
      for file in files:
        advance(1)
        try:
          file["size"] = (archive.path / os.fsdecode(file["name"])).stat().st_size
        except OSError as error:
          raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error
      archive = dataclasses.replace(archive, size=int(files["size"].sum()))
    files["archive"] = len(archives)
    archives.append(archive)
    tables.append(files)
    rows.append(row[taken])
  if not archives:
    raise DataError(
      f"{folder} has no {_TARS}, nor images in folders 0 to f: put the {_NUM_TARS} "
      "official archives there"
    )
  return tuple(archives), np.concatenate(tables), np.concatenate(rows)


def _sources(
  folder: pathlib.Path, progress: ProgressBars
) -> Iterator[tuple[Archive, np.ndarray]]:
  """Yields tars, then unpacked folders, and what they have, in the order of names."""
  files = [
    Archive.file(folder, path.relative_to(folder).as_posix())
    for place in _PLACES
    for path in sorted((folder / place).glob(_TARS))
  ]
  if files:
    advance = progress.add(
      f"looking through {len(files)} of {_NUM_TARS} tars", sum(file.size for file in files)
    )
  for file in files:
    found = tars.members(file.path, advance)
    yield file, tars.as_table(m for m in found if m.name.endswith(_SUFFIX))
  for place in _PLACES:
    root = folder / place
    tops = sorted(path.name for path in root.glob("[0-9a-f]") if path.is_dir())
    if tops:
      text = f"looking through the folders {tops[0]} to {tops[-1]} of {root}"
      advance = progress.add(text, len(tops))
      names = (name for top in tops for name in _unpacked(root, top, advance))
      table = tars.as_table(Member(name, -1, 0) for name in names)
      yield Archive(root, f"{place or '.'}/", 0), table


def _unpacked(
  root: pathlib.Path, top: str, advance: Callable[[int], None]
) -> Iterator[str]:
  """Yields paths of images below a folder, from the root on; the folder is one step."""
  for parent, folders, names in os.walk(root / top):
    advance(0)  # there are thousands of folders
    folders.sort()
    below = os.path.relpath(parent, root)
    for name in sorted(names):
      if name.endswith(_SUFFIX) and not name.startswith("."):
        yield f"{below}/{name}"
  advance(1)


def _check_all_there(
  csv_file: Archive,
  ids: np.ndarray,
  label: np.ndarray,
  rows: np.ndarray,
  deviations: Deviations,
) -> None:
  """Notes images that are listed and not there, or there and not listed."""
  wanted = label >= 0
  missing = wanted.copy()
  missing[rows] = False
  lines = []
  for name in ids[missing].tolist():
    deviations.left_out.add("not in the archives", name.decode())
  if missing.any():
    lines.append(
      f"{missing.sum():,} of the {wanted.sum():,} images that {csv_file.name} lists for "
      f"the chosen landmarks are in no archive, first {ids[missing][0].decode()}"
    )
  if unknown := deviations.left_out.get(_UNKNOWN):
    lines.append(
      f"{unknown['count']:,} images of the archives are not in {csv_file.name}, first "
      f"{unknown['first'][0]}"
    )
  if lines:
    deviations.add("; ".join(lines))


def _hold_out(label: np.ndarray, classes: np.ndarray, count: int) -> np.ndarray:
  """Draws which of the listed images, sorted by id, are for testing: bool [n]."""
  held_out = np.zeros(len(label), bool)
  by_class = np.argsort(label, kind="stable")
  starts = np.searchsorted(label[by_class], np.arange(len(classes) + 1))
  for i, landmark in enumerate(classes.tolist()):
    rows = by_class[starts[i] : starts[i + 1]]
    # RandomState, for its numbers are promised never to change.
    drawn = np.random.RandomState([_SEED, landmark]).permutation(len(rows))[:count]
    held_out[rows[drawn]] = True
  return held_out
