"""Google Landmarks v2: its classes with most images."""

import array
import csv
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator

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
_ROWS_AT_ONCE = 100_000
# Of the test images. Changing it makes another data set: it needs a new version.
_SEED = 2


@dataclasses.dataclass(kw_only=True)
class LandmarksConfig(tfds.core.BuilderConfig):
  """A choice of classes."""

  num_classes: int = 0  # landmarks with most images
  test_per_class: int = 0  # images of each that are held out


class LandmarksV2(ArchiveBuilder, skip_registration=True):
  """Google Landmarks v2, the landmarks with most training images.

  Of landmarks with as many images, that with the smaller id is taken first. Classes are in
  the order of landmark ids. Test images are drawn at random, by a fixed seed, from those
  that train.csv lists for a class; records are in the order of classes, then archives.
  """

  HOMEPAGE = "https://github.com/cvdfoundation/google-landmark"
  BUILDER_CONFIGS = [
    LandmarksConfig(
      name=name,
      description=f"The {count:,} landmarks with most images, {held} of each for testing.",
      num_classes=count,
      test_per_class=held,
    )
    for name, count, held in (("1k", 1000, 50), ("10k", 10_000, 10))
  ]

  def _features(self) -> tfds.features.FeaturesDict:
    return tfds.features.FeaturesDict(
      {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(),
        "landmark_id": np.int64,
        "id": tfds.features.Text(),
      }
    )

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
    config = self.builder_config
    most_first = np.lexsort((landmarks, -counts))
    classes = np.sort(landmarks[most_first[: config.num_classes]])
    if len(classes) < config.num_classes:
      deviations.add(
        f"{csv_file.name} has {len(classes):,} landmarks, fewer than the "
        f"{config.num_classes:,} of {self.name}/{config.name}"
      )
    # By row of the csv: label int32, or -1 for landmarks that are not chosen.
    label = np.searchsorted(classes, landmark).astype(np.int32)
    label[classes[np.minimum(label, len(classes) - 1)] != landmark] = -1

    archives, files, rows = _find_images(folder, ids, label, deviations, progress)
    _check_all_there(csv_file, ids, label, rows, deviations)
    held_out = _hold_out(label, classes, config.test_per_class)
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
        f"{config.test_per_class} are held out for testing, and no other is in the archives"
      )
    if not len(splits["test"]):
      raise DataError(f"none of the test images is in the archives of {folder}")
    return Contents(
      archives=(csv_file, *archives),
      class_names={"label": tuple(map(str, classes.tolist()))},
      splits=splits,
    )


def _read_csv(archive: Archive, progress: ProgressBars) -> tuple[np.ndarray, np.ndarray]:
  """Reads ids (bytes [n], sorted) and landmarks (int64 [n]) of millions of rows.

  No row becomes a Python object that is kept.
  """
  advance = progress.add(f"reading {archive.name}", archive.size)
  ids, landmarks = bytearray(), array.array("q")
  line, position = 1, 0
  try:
    # Spreadsheets put a byte order mark before the header.
    with open(archive.path, newline="", encoding="utf-8-sig", errors="replace") as file:
      reader = csv.reader(file)
      header = next(reader, [])
      missing = {"id", "landmark_id"} - set(header)
      if missing:
        raise DataError(
          f"{archive.path} has no column {sorted(missing)[0]}, only "
          f"{', '.join(header) or 'an empty line'}: it is not the official train.csv"
        )
      id_column, landmark_column = header.index("id"), header.index("landmark_id")
      while True:
        line = reader.line_num + 1
        row = next(reader, None)
        if row is None:
          break
        if not row:  # an empty line, as some programs leave at the end
          continue
        ids += _as_id(row[id_column])
        landmarks.append(_as_landmark(row[landmark_column]))
        if len(landmarks) % _ROWS_AT_ONCE == 0:
          advance(file.buffer.tell() - position)
          position = file.buffer.tell()
  except OSError as error:
    raise DataError(f"{archive.path} cannot be read: {error.strerror}") from error
  except (csv.Error, ValueError, IndexError) as error:
    raise DataError(
      f"{archive.path} is damaged at line {line} ({error}): download it again"
    ) from error
  advance(archive.size - position)
  if not landmarks:
    raise DataError(f"{archive.path} lists no images: download it again")
  listed = np.frombuffer(ids, f"S{_ID_BYTES}")
  order = np.argsort(listed, kind="stable")
  listed = listed[order]
  twice = np.flatnonzero(listed[1:] == listed[:-1])
  if len(twice):
    raise DataError(f"{archive.path} lists {listed[twice[0]].decode()} twice")
  return listed, np.array(landmarks, np.int64)[order]


def _as_id(text: str) -> bytes:
  if not (0 < len(text) <= _ID_BYTES and text.isascii() and text.isprintable()):
    raise ValueError(f"{text[:40]!r} is not an image id")
  return text.encode().ljust(_ID_BYTES, b"\0")


def _as_landmark(text: str) -> int:
  if not 0 <= (landmark := int(text)) <= _LARGEST_LANDMARK:
    raise ValueError(f"{text[:40]!r} is not a landmark id")
  return landmark


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
      files["size"] = _file_sizes(archive.path, files["name"], progress)
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


def _file_sizes(root: pathlib.Path, names: np.ndarray, progress: ProgressBars) -> list[int]:
  advance = progress.add("looking up the sizes of files", len(names), "files")
  sizes = []
  try:
    for name in names:
      sizes.append((root / os.fsdecode(name)).stat().st_size)
      advance(1)
  except OSError as error:
    raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error
  return sizes


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
