"""Every image is decoded once before training, so that a bad one is known by its name.

The good ones are remembered in the user's cache with a hash of their bytes, so that the
next run looks at sizes and times of change alone, and knows photos that were replaced.
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from ssil_jax.data import cache
from ssil_jax.data.dataset import Split
from ssil_jax.data.encoded import BadImage, EncodedImages
from ssil_jax.errors import DataError
from ssil_jax.progress import ProgressBars
from ssil_jax.system import usable_cores

_CHUNK = 64  # images that a thread decodes at a time
_SECONDS_BETWEEN_SAVES = 60.0
_SHOWN = 500  # images; fewer take no time worth showing
_NAMED = 5  # bad images in a message
_LIST = "bad_images.txt"
_VERIFIED = "verified"
_DIGEST_BYTES = 16
_RULES = b"3"  # another one if other images are refused than before, or more is remembered
# What is remembered of a good image: stamp in the store, hash of its bytes, pixels.
_ENTRY = np.dtype([("stamp", np.uint64), ("content", np.uint64), ("size", np.int32, 2)])


Bad = dict[int, str]  # record -> why it is bad


def read_each(
  records: np.ndarray, read: Callable[[int], Any], advance: Callable[[int], None]
) -> Bad:
  """Calls `read`, which raises BadImage, for records (int64 [n]) in threads.

  Tells `advance`, in this thread, how many more are finished. Returns the bad ones.
  """

  def read_all(chunk: np.ndarray) -> Bad:
    bad = {}
    for record in chunk.tolist():
      try:
        read(record)
      except BadImage as error:
        bad[record] = error.reason
    return bad

  all_bad: Bad = {}
  chunks = [records[start : start + _CHUNK] for start in range(0, len(records), _CHUNK)]
  # No more than there are cores: each of them may hold a whole image.
  threads = ThreadPoolExecutor(usable_cores())
  try:
    for chunk, bad in zip(chunks, threads.map(read_all, chunks), strict=True):
      all_bad |= bad
      advance(len(chunk))
  finally:
    threads.shutdown(cancel_futures=True)
  return all_bad


class Verification(NamedTuple):
  """Holds what is known of all images once they were decoded, by split."""

  bad: Mapping[str, Bad]
  images: Mapping[str, EncodedImages]  # all of them, with their `contents`
  sizes: Mapping[str, np.ndarray]  # int32 [N, 2], width and height; 0 x 0 of a bad one
  stamps: Mapping[str, np.ndarray]  # uint64 [N], of the store, before any was read
  notes: tuple[str, ...]  # for the user


def verify(
  splits: Mapping[str, EncodedImages],
  check_interrupt: Callable[[], None] = lambda: None,
  *,
  visit: Callable[[str, int, np.ndarray], None] = lambda name, record, pixels: None,
) -> Verification:
  """Decodes the images, by split, of which it is not known yet that they are good.

  Args:
    splits: name -> all images.
    check_interrupt: called often; what was found until it raises is remembered.
    visit: called in threads with split, record and pixels of each that is decoded.
  """
  # Stamps before any image is read: one that changes meanwhile is then decoded again.
  entries = {
    name: _recall(images.store.directory, images.store.stamps(images.numbers))
    for name, images in splits.items()
  }
  unknown = {name: np.flatnonzero(~_are_good(found)) for name, found in entries.items()}
  bad: dict[str, Bad] = {name: {} for name in splits}
  problems: list[str] = []
  if total := sum(map(len, unknown.values())):
    console = Console(stderr=True, quiet=total < _SHOWN)
    with ProgressBars(console, check_interrupt) as bars:
      advance = bars.add("decoding every image, once", total, "images")
      for name, images in splits.items():
        see = functools.partial(visit, name)
        bad[name] = _decode(images, unknown[name], entries[name], see, advance, problems)
  return Verification(
    bad=bad,
    images={
      name: dataclasses.replace(images, contents=entries[name]["content"].copy())
      for name, images in splits.items()
    },
    sizes={name: found["size"].copy() for name, found in entries.items()},
    stamps={name: found["stamp"].copy() for name, found in entries.items()},
    notes=tuple(problems[:1]),
  )


def _decode(
  images: EncodedImages,
  records: np.ndarray,
  entries: np.ndarray,
  visit: Callable[[int, np.ndarray], None],
  advance: Callable[[int], None],
  problems: list[str],
) -> Bad:
  """Fills in the `_ENTRY`s, [N] of all, of some records; returns the bad ones.

  Adds to `problems` why the next run will not know of the others.
  """

  def read(record: int) -> None:
    image = images.open(record)
    digest = hashlib.blake2b(image.data, digest_size=8).digest()
    pixels = image.read()
    height, width, _ = pixels.shape
    entries["content"][record] = int.from_bytes(digest, "little")
    entries["size"][record] = width, height
    visit(record, pixels)

  def save_and_advance(count: int) -> None:
    nonlocal next_save
    if time.monotonic() > next_save:
      _remember(images.store.directory, entries)
      next_save = time.monotonic() + _SECONDS_BETWEEN_SAVES
    advance(count)

  next_save = time.monotonic() + _SECONDS_BETWEEN_SAVES
  try:
    return read_each(records, read, save_and_advance)
  finally:
    problems += _remember(images.store.directory, entries)


def _are_good(entries: np.ndarray) -> np.ndarray:
  """Returns bool [N]: whether an image was decoded, now or by an earlier run."""
  return entries["size"].all(axis=1)


def _recall(directory: pathlib.Path, stamps: np.ndarray) -> np.ndarray:
  """Returns the `_ENTRY`s, [N], of images with stamps uint64 [N]; 0 x 0 of unknown ones."""
  entries, saved = np.zeros(len(stamps), _ENTRY), _saved(directory)
  entries["stamp"] = stamps
  if len(saved):
    place = np.searchsorted(saved["stamp"], stamps)
    remembered = saved[np.minimum(place, len(saved) - 1)]
    known = remembered["stamp"] == stamps
    entries[known] = remembered[known]
  return entries


def _remember(directory: pathlib.Path, entries: np.ndarray) -> list[str]:
  """Saves the `_ENTRY`s of the good images among some; returns a line if it cannot.

  Those of photos that were replaced since stay, for they cost 24 bytes each.
  """
  good = entries[_are_good(entries) & (entries["stamp"] != 0)]
  entries = np.concatenate([_saved(directory), good])
  _, first = np.unique(entries["stamp"], return_index=True)
  content = entries[first].tobytes()
  try:
    cache.write(directory, _VERIFIED, _digest(content) + content)
  except OSError as error:
    return [
      "the next run will decode every image again, for this one cannot remember it: "
      f"{error.filename}: {error.strerror} (set XDG_CACHE_HOME to a folder that can be "
      "written)"
    ]
  return []


def _saved(directory: pathlib.Path) -> np.ndarray:
  """Returns the `_ENTRY`s of a folder, [n] by stamp; none if damaged or of other rules."""
  with contextlib.suppress(OSError):
    saved = (cache.folder_of(directory) / _VERIFIED).read_bytes()
    digest, content = saved[:_DIGEST_BYTES], saved[_DIGEST_BYTES:]
    if digest == _digest(content):
      return np.frombuffer(content, _ENTRY)
  return np.empty(0, _ENTRY)


def _digest(content: bytes) -> bytes:
  return hashlib.blake2b(content, digest_size=_DIGEST_BYTES, person=_RULES).digest()


def leave_out_bad(
  splits: Mapping[str, Split],
  bad: Mapping[str, Bad],
  images: Mapping[str, EncodedImages],
  *,
  class_names: tuple[str, ...],
  skip: bool,
) -> tuple[dict[str, Split], tuple[str, ...]]:
  """Leaves out the bad images; all mappings are by split.

  `images` are those of all splits as they are stored; `skip` says whether the user wants to
  go on without bad ones. Returns the others, and lines for the user. Raises DataError if
  not `skip`, or if a class has no others.
  """
  lines = [
    f"{images[name].name(record)}: {' '.join(reason.split())}"
    for name in splits
    for record, reason in sorted(bad[name].items())
  ]
  if not lines:
    return dict(splits), ()
  total = sum(len(split.labels) for split in splits.values())
  shown = "; ".join(lines[:_NAMED])
  if len(lines) > _NAMED:
    shown += f"; and {len(lines) - _NAMED} more"
    first = next(images[name] for name in splits if bad[name])
    with contextlib.suppress(OSError):
      everything = os.fsencode("".join(f"{line}\n" for line in lines))
      shown += f", all in {cache.write(first.store.directory, _LIST, everything)}"
  if not skip:
    if len(lines) == 1:
      raise DataError(
        f"cannot read image {lines[0]} (fix or remove it, or leave it out with "
        "--skip_bad_records)"
      )
    raise DataError(
      f"cannot read {len(lines)} of {total} images (fix or remove them, or leave them out "
      f"with --skip_bad_records): {shown}"
    )
  kept = {}
  for name, split in splits.items():
    kept[name] = split
    if bad[name]:
      good = np.delete(np.arange(len(split.labels)), list(bad[name]))
      kept[name] = split.take(good)
      lost = np.setdiff1d(split.labels, kept[name].labels)
      if len(lost):
        raise DataError(
          f"--skip_bad_records leaves class {class_names[lost[0]]} ({len(lost)} in all) "
          f"without images in {name}: none of its {np.sum(split.labels == lost[0])} can be "
          "read; fix them, or remove the class"
        )
  return kept, (f"{len(lines)} of {total} images are left out as bad: {shown}",)
