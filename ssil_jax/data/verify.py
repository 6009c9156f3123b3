"""Every image is decoded once before training, so that a bad one is known by its name.

The good ones are remembered in the user's cache, by a hash of their bytes, so that photos
replaced under the same names are recognized as other data: the next run looks at sizes and
times of change alone. Bad images stop the run, or are left out of it.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
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
# What is remembered of a good image: its stamp in the store, a hash of its bytes, and its
# size in pixels.
_ENTRY = np.dtype([("stamp", np.uint64), ("content", np.uint64), ("size", np.int32, 2)])


Bad = dict[int, str]  # record -> why it is bad


def read_each(
  records: np.ndarray, read: Callable[[int], Any]
) -> Iterator[tuple[np.ndarray, Bad]]:
  """Calls `read`, which raises BadImage, for records (int64 [n]) in threads.

  Yields some of the records when they are finished, and the bad ones among them.
  """

  def read_all(chunk: np.ndarray) -> Bad:
    bad = {}
    for record in chunk.tolist():
      try:
        read(record)
      except BadImage as error:
        bad[record] = error.reason
    return bad

  chunks = [records[start : start + _CHUNK] for start in range(0, len(records), _CHUNK)]
  # No more than there are cores: each of them may hold a whole image.
  threads = ThreadPoolExecutor(usable_cores())
  try:
    yield from zip(chunks, threads.map(read_all, chunks), strict=True)
  finally:
    threads.shutdown(cancel_futures=True)


class Verification(NamedTuple):
  """What is known of all images once they were decoded, by split."""

  bad: Mapping[str, Bad]
  images: Mapping[str, EncodedImages]  # all of them, with their `contents`
  sizes: Mapping[str, np.ndarray]  # int32 [N, 2], width and height; 0 x 0 of a bad one
  notes: tuple[str, ...]  # for the user


def verify(
  splits: Mapping[str, EncodedImages],
  check_interrupt: Callable[[], None] = lambda: None,
) -> Verification:
  """Decodes the images, by split, of which it is not known yet that they are good.

  `check_interrupt` is called often; what was found until it raises is remembered.
  """
  memories = {
    directory: _Memory(directory)
    for directory in {images.store.directory for images in splits.values()}
  }
  entries: dict[str, np.ndarray] = {}
  unknown: dict[str, np.ndarray] = {}
  for name, images in splits.items():
    # Before any image is read: one that changes meanwhile is then decoded again.
    stamps = images.store.stamps(images.numbers)
    memory = memories[images.store.directory]
    entries[name], unknown[name] = memory.recall(stamps)
  bad: dict[str, Bad] = {name: {} for name in splits}
  if total := sum(map(len, unknown.values())):
    console = Console(stderr=True, quiet=total < _SHOWN)
    with ProgressBars(console, check_interrupt) as bars:
      advance = bars.add("decoding every image, once", total, "images")
      for name, images in splits.items():
        memory = memories[images.store.directory]
        bad[name] = _decode(images, unknown[name], entries[name], memory, advance)
  problems = [memory.problem for memory in memories.values() if memory.problem]
  return Verification(
    bad=bad,
    images={
      name: dataclasses.replace(images, contents=entries[name]["content"].copy())
      for name, images in splits.items()
    },
    sizes={name: found["size"].copy() for name, found in entries.items()},
    notes=tuple(problems[:1]),
  )


def _decode(
  images: EncodedImages,
  records: np.ndarray,
  entries: np.ndarray,
  memory: "_Memory",
  advance: Callable[[int], None],
) -> Bad:
  """Decodes some records, fills in their `_ENTRY`s, [N] of all; returns the bad ones."""

  def read(record: int) -> None:
    image = images.open(record)
    digest = hashlib.blake2b(image.data, digest_size=8).digest()
    entries["content"][record] = int.from_bytes(digest, "little")
    height, width, _ = image.read().shape
    entries["size"][record] = width, height

  all_bad, last_save = {}, time.monotonic()
  try:
    for chunk, bad in read_each(records, read):
      all_bad |= bad
      memory.add(entries[np.setdiff1d(chunk, [*bad])])
      if time.monotonic() - last_save > _SECONDS_BETWEEN_SAVES:
        memory.save()
        last_save = time.monotonic()
      advance(len(chunk))
  finally:
    memory.save()
  return all_bad


class _Memory:
  """The `_ENTRY`s of the images of a folder that were decoded and found good.

  Those of photos that were replaced since stay, for they cost 24 bytes each.
  """

  def __init__(self, directory: pathlib.Path):
    """Reads what was saved; nothing, if it is damaged or follows other rules."""
    self.problem: str | None = None
    self._directory = directory
    self._entries = np.empty(0, _ENTRY)  # sorted by stamp
    self._new: list[np.ndarray] = []  # more of them
    with contextlib.suppress(OSError):
      saved = (cache.folder_of(directory) / _VERIFIED).read_bytes()
      digest, content = saved[:_DIGEST_BYTES], saved[_DIGEST_BYTES:]
      if digest == _digest(content):
        self._entries = np.frombuffer(content, _ENTRY)

  def recall(self, stamps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Looks up images by their stamps, uint64 [N].

    Returns `_ENTRY` [N], and int64 [n], the places of those that are not known.
    """
    entries = np.zeros(len(stamps), _ENTRY)
    entries["stamp"] = stamps
    if not len(self._entries):
      return entries, np.arange(len(stamps))
    place = np.searchsorted(self._entries["stamp"], stamps)
    remembered = self._entries[np.minimum(place, len(self._entries) - 1)]
    known = remembered["stamp"] == stamps
    entries[known] = remembered[known]
    return entries, np.flatnonzero(~known)

  def add(self, entries: np.ndarray) -> None:
    """Remembers the `_ENTRY`s of more images."""
    self._new.append(entries[entries["stamp"] != 0])

  def save(self) -> None:
    """Writes all to the cache, or says in `problem` why it cannot."""
    entries = np.concatenate([self._entries, *self._new])
    _, first = np.unique(entries["stamp"], return_index=True)
    self._entries, self._new = entries[first], []
    content = self._entries.tobytes()
    try:
      cache.write(self._directory, _VERIFIED, _digest(content) + content)
    except OSError as error:
      self.problem = (
        "the next run will decode every image again, for this one cannot remember it: "
        f"{error.filename}: {error.strerror} (set XDG_CACHE_HOME to a folder that can be "
        "written)"
      )


def _digest(content: bytes) -> bytes:
  return hashlib.blake2b(content, digest_size=_DIGEST_BYTES, person=_RULES).digest()


class Readable(NamedTuple):
  """Splits without bad images, by name."""

  splits: Mapping[str, Split]
  skipped: Mapping[str, int]  # how many images of each split were left out
  notes: tuple[str, ...] = ()  # for the user


def leave_out_bad(
  splits: Mapping[str, Split],
  bad: Mapping[str, Bad],
  images: Mapping[str, EncodedImages],
  *,
  class_names: tuple[str, ...],
  skip: bool,
) -> Readable:
  """Leaves out the bad images; all mappings are by split.

  `images` are those of splits with bad ones, as they are stored; `skip` says whether the
  user wants to go on without them. Raises DataError if not, or if a class has no others.
  """
  skipped = {name: len(bad[name]) for name in splits}
  lines = [
    f"{images[name].name(record)}: {' '.join(reason.split())}"
    for name in splits
    for record, reason in sorted(bad[name].items())
  ]
  if not lines:
    return Readable(splits, skipped)
  total = sum(len(split.labels) for split in splits.values())
  shown = "; ".join(lines[:_NAMED])
  if len(lines) > _NAMED:
    shown += f"; and {len(lines) - _NAMED} more"
    first = next(images[name] for name in splits if skipped[name])
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
    if skipped[name]:
      good = np.delete(np.arange(len(split.labels)), list(bad[name]))
      kept[name] = split.take(good)
      _check_classes(name, split, kept[name], class_names)
  note = f"{len(lines)} of {total} images are left out as bad: {shown}"
  return Readable(kept, skipped, (note,))


def _check_classes(
  name: str, split: Split, kept: Split, class_names: tuple[str, ...]
) -> None:
  before, after = (
    np.bincount(labels, minlength=len(class_names))
    for labels in (split.labels, kept.labels)
  )
  lost = np.flatnonzero((before > 0) & (after == 0))
  if len(lost):
    raise DataError(
      f"--skip_bad_records leaves class {class_names[lost[0]]} ({len(lost)} in all) "
      f"without images in {name}: none of its {before[lost[0]]} can be read; fix them, or "
      "remove the class"
    )
