"""Every image is decoded once before training, so that a bad one is known by its name.

What was found is remembered in the user's cache, a hash of each image's bytes included, so
that photos replaced under the same names are known for other data: the next run looks at
sizes and times of change alone. What to do with bad images is the user's choice: to stop,
or to go on without.
"""

import hashlib
import io
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from ssil_jax.data import cache
from ssil_jax.data.dataset import Split
from ssil_jax.data.display import Display
from ssil_jax.data.encoded import STAMP, BadImage, EncodedImages
from ssil_jax.data.images import decode
from ssil_jax.errors import DataError
from ssil_jax.system import usable_cores, write_bytes

_CHUNK = 64  # images that a thread decodes at a time
_SECONDS_BETWEEN_SAVES = 60.0
_SHOWN = 500  # images; fewer take no time worth showing
_NAMED = 5  # bad images in a message
_LIST = "bad_images.txt"
_VERIFIED = "verified"
_DIGEST_BYTES = 16
_RULES = 2  # another number if other images are refused than before, or more is remembered
# What is remembered of an image: its stamp, a hash of its bytes, and its size in pixels, or
# 0 x 0 if it is bad.
_ENTRY = np.dtype([*STAMP.descr, ("content", np.uint64), ("size", np.int32, 2)])


class Reason(NamedTuple):
  """Why an image is bad."""

  text: str
  lasting: bool  # it lies in its bytes, and not in how they could be read just now


Bad = dict[int, Reason]  # by record


def each(
  records: np.ndarray,
  use: Callable[[int], Any],
  done: Callable[[np.ndarray, Bad], None] = lambda records, bad: None,
) -> Bad:
  """Calls `use` with every record in threads, and collects the bad ones.

  Args:
    records: int64 [n].
    use: what raises BadImage for a bad one.
    done: called with some of the records and the bad ones of them when they are finished;
      in this thread, so that it may raise KeyboardInterrupt.
  """

  def use_all(chunk: np.ndarray) -> Bad:
    bad = {}
    for record in chunk.tolist():
      try:
        use(record)
      except BadImage as error:
        lasting = isinstance(error.__cause__, decode.ImageError)
        bad[record] = Reason(error.reason, lasting)
    return bad

  found = {}
  chunks = [records[start : start + _CHUNK] for start in range(0, len(records), _CHUNK)]
  # No more than there are cores: each of them may hold a whole image.
  threads = ThreadPoolExecutor(usable_cores())
  try:
    for chunk, bad in zip(chunks, threads.map(use_all, chunks), strict=True):
      found |= bad
      done(chunk, bad)
  finally:
    threads.shutdown(cancel_futures=True)
  return found


class Verification(NamedTuple):
  """What a look at all images has found, by split."""

  bad: Mapping[str, Bad]
  contents: Mapping[str, np.ndarray]  # uint64 [N], a hash of each image's bytes
  sizes: Mapping[str, np.ndarray]  # int32 [N, 2], width and height; 0 x 0 of a bad one
  notes: tuple[str, ...]  # for the user


def verify(
  splits: Mapping[str, EncodedImages],
  check_interrupt: Callable[[], None] = lambda: None,
) -> Verification:
  """Decodes the images of which it is not known yet whether they are bad.

  Args:
    splits: their images.
    check_interrupt: called often; it may raise KeyboardInterrupt. What was found until then
      is remembered.
  """
  memories = {
    directory: _Memory(directory)
    for directory in {images.store.directory for images in splits.values()}
  }
  bad: dict[str, Bad] = {}
  entries: dict[str, np.ndarray] = {}
  unknown: dict[str, np.ndarray] = {}
  for name, images in splits.items():
    # Before any image is read: one that changes meanwhile is then looked at again.
    stamps = images.store.stamps(images.numbers)
    known, entries[name], bad[name] = memories[images.store.directory].recall(stamps)
    unknown[name] = np.flatnonzero(~known)
  total = sum(map(len, unknown.values()))
  if total:
    console = Console(stderr=True, quiet=total < _SHOWN)
    with Display(console, check_interrupt) as display:
      advance = display.bar("decoding every image, once", total, "images")
      for name, images in splits.items():
        memory = memories[images.store.directory]
        bad[name] |= _decode(images, unknown[name], entries[name], memory, advance)
  problems = [memory.problem for memory in memories.values() if memory.problem]
  return Verification(
    bad,
    {name: found["content"].copy() for name, found in entries.items()},
    {name: found["size"].copy() for name, found in entries.items()},
    tuple(problems[:1]),
  )


def _decode(
  images: EncodedImages,
  records: np.ndarray,
  entries: np.ndarray,
  memory: "_Memory",
  advance: Callable[[int], None],
) -> Bad:
  """The bad ones of some records, whose `_ENTRY`s, [N] of all records, it fills in."""
  pending: list[tuple[np.ndarray, Bad]] = []
  last_save = time.monotonic()

  def save() -> None:
    nonlocal last_save
    memory.add(entries, pending)
    pending.clear()
    memory.save()
    last_save = time.monotonic()

  def done(chunk: np.ndarray, bad: Bad) -> None:
    pending.append((chunk, bad))
    if time.monotonic() - last_save > _SECONDS_BETWEEN_SAVES:
      save()
    advance(len(chunk))

  def look(record: int) -> None:
    def decode_and_hash(data: bytes, **options: bool) -> None:
      entries["content"][record] = _hash(data)
      height, width, _ = decode.read_rgb(data, **options).shape
      entries["size"][record] = width, height

    images.decode(record, decode_and_hash)

  try:
    return each(records, look, done)
  finally:
    if pending:
      save()


def _hash(data: bytes) -> int:
  return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


class _Memory:
  """The `_ENTRY`s of the images of a folder that were decoded, and why some are bad.

  Attributes:
    problem: why they could not be saved, for the user.
  """

  def __init__(self, directory: pathlib.Path):
    """Reads what was saved; nothing, if it is damaged or follows other rules."""
    self.problem: str | None = None
    self._directory = directory
    self._entries = np.empty(0, _ENTRY)  # sorted by name
    self._reasons: dict[int, str] = {}  # by the name's hash
    try:
      content = self._path().read_bytes()
      if content[:_DIGEST_BYTES] != _digest(content[_DIGEST_BYTES:]):
        return
      with np.load(io.BytesIO(content[_DIGEST_BYTES:]), allow_pickle=False) as saved:
        rules, entries = int(saved["rules"]), saved["entries"]
        reasons = json.loads(saved["reasons"].tobytes())
    except (OSError, ValueError, KeyError):
      return
    if rules == _RULES and entries.dtype == _ENTRY:
      self._entries = entries
      self._reasons = {int(name): text for name, text in reasons.items()}

  def recall(self, stamps: np.ndarray) -> tuple[np.ndarray, np.ndarray, Bad]:
    """Finds the images that were decoded already.

    Args:
      stamps: `STAMP` [n].

    Returns:
      Which they are, bool [n]; the `_ENTRY` [n] of each image, of which those that were not
      decoded have the stamp alone; and those that are bad.
    """
    entries = np.zeros(len(stamps), _ENTRY)
    for field in STAMP.names:
      entries[field] = stamps[field]
    if not len(self._entries):
      return np.zeros(len(stamps), bool), entries, {}
    places = np.searchsorted(self._entries["name"], stamps["name"])
    remembered = self._entries[np.minimum(places, len(self._entries) - 1)]
    known = np.all([remembered[field] == stamps[field] for field in STAMP.names], axis=0)
    entries[known] = remembered[known]
    bad_names = np.array(list(self._reasons), np.uint64)
    bad = np.flatnonzero(known & np.isin(stamps["name"], bad_names))
    reasons = {
      record: Reason(self._reasons[int(stamps["name"][record])], lasting=True)
      for record in bad.tolist()
    }
    return known, entries, reasons

  def add(self, entries: np.ndarray, decoded: Iterable[tuple[np.ndarray, Bad]]) -> None:
    """Remembers what was found of some records; `entries` are those of all."""
    kept = []
    for records, bad in decoded:
      passing = [record for record, reason in bad.items() if not reason.lasting]
      chosen = entries[np.setdiff1d(records, passing)]
      kept.append(chosen[chosen["state"] != 0])
      for name in chosen["name"].tolist():
        self._reasons.pop(name, None)
      for record, reason in bad.items():
        if reason.lasting:
          self._reasons[int(entries["name"][record])] = reason.text
    merged = np.concatenate([*kept, self._entries])
    # Of two entries of an image, the first one is the new one.
    _, first = np.unique(merged["name"], return_index=True)
    self._entries = merged[first]

  def save(self) -> None:
    """Writes all to the cache, or says in `problem` why it cannot."""
    file = io.BytesIO()
    reasons = np.frombuffer(json.dumps(self._reasons).encode(), np.uint8)
    np.savez(file, rules=_RULES, entries=self._entries, reasons=reasons)
    try:
      path = self._path()
      path.parent.mkdir(parents=True, exist_ok=True)
      write_bytes(path, _digest(file.getvalue()) + file.getvalue())
    except OSError as error:
      self.problem = (
        "the next run will decode every image again, for this one cannot remember it: "
        f"{error.filename}: {error.strerror} (set XDG_CACHE_HOME to a folder that can be "
        "written)"
      )

  def _path(self) -> pathlib.Path:
    return cache.folder_of(self._directory) / _VERIFIED


def _digest(content: bytes) -> bytes:
  return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()


class Kept(NamedTuple):
  """Splits without bad images, by name."""

  splits: Mapping[str, Split]
  skipped: Mapping[str, int]  # how many images of each split were left out
  notes: tuple[str, ...]  # for the user


def without(
  splits: Mapping[str, Split],
  bad: Mapping[str, Bad],
  images: Mapping[str, EncodedImages],
  *,
  class_names: tuple[str, ...],
  skip: bool,
) -> Kept:
  """Leaves out the bad images.

  Args:
    splits: by name.
    bad: of every split.
    images: of every split that has bad ones, as they are stored.
    class_names: by label.
    skip: whether the user wants to go on without them.

  Raises:
    DataError: there are bad images and `skip` is false, or a class has no others.
  """
  skipped = {name: len(bad.get(name, ())) for name in splits}
  lines = [
    f"{images[name].name(record)}: {' '.join(reason.text.split())}"
    for name in splits
    for record, reason in sorted(bad.get(name, {}).items())
  ]
  if not lines:
    return Kept(splits, skipped, ())
  total = sum(len(split.labels) for split in splits.values())
  more = ""
  if len(lines) > _NAMED:
    first = next(images[name] for name in splits if skipped[name])
    path = _write_list(first.store.directory, lines)
    more = f"; and {len(lines) - _NAMED} more" + (f", all in {path}" if path else "")
  shown = "; ".join(lines[:_NAMED]) + more
  if not skip:
    if len(lines) == 1:
      raise DataError(
        f"cannot read image {lines[0]} (mend or remove it, or leave it out with "
        "--skip_bad_records)"
      )
    raise DataError(
      f"cannot read {len(lines)} of {total} images (mend or remove them, or leave them out "
      f"with --skip_bad_records): {shown}"
    )
  kept = {}
  for name, split in splits.items():
    kept[name] = split
    if skipped[name]:
      good = np.delete(np.arange(len(split.labels)), list(bad[name]))
      kept[name] = split.take(good)
      _check_classes(name, split, kept[name], class_names)
  return Kept(
    kept, skipped, (f"{len(lines)} of {total} images are left out as bad: {shown}",)
  )


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
      f"without images in {name}: none of its {before[lost[0]]} can be read; mend them, or "
      "remove the class"
    )


def _write_list(directory: pathlib.Path, lines: list[str]) -> pathlib.Path | None:
  """A file with all lines, or None if there is no place for it."""
  try:
    path = cache.folder_of(directory) / _LIST
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, os.fsencode("".join(f"{line}\n" for line in lines)))
  except OSError:
    return None
  return path
