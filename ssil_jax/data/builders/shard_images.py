"""The images of one shard: read, checked and recoded by threads, and given in order."""

import collections
import concurrent.futures
import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ssil_jax.data.builders import recode
from ssil_jax.data.builders.found import Records
from ssil_jax.data.builders.shards import Note, ShardReport
from ssil_jax.errors import DataError
from ssil_jax.system import usable_cores

_NAMED = 5  # corrupt images in an error
_THREADS = min(usable_cores(), 32)
_LOOK_AHEAD = 4 * _THREADS  # images in work or waiting for the writer: they fill the memory


@dataclasses.dataclass
class Shard:
  """A shard to be written."""

  name: str  # of its file
  records: Records  # of the whole split
  span: range  # those of the shard
  recode_image: Callable[[bytes], recode.Stored]  # raises CorruptImage
  allow_partial: bool
  report: ShardReport | None = None  # what became of them, once the shard is finished

  @property
  def num_records(self) -> int:
    return len(self.span) - len(self.report.left_out)

  def labels(self) -> np.ndarray:
    """Returns int32 [n]: those of what the finished shard holds."""
    return np.delete(
      self.records.label[self.span.start : self.span.stop],
      [note.record - self.span.start for note in self.report.left_out],
    )

  def examples(
    self, advance: Callable[[int], None] = lambda images: None
  ) -> Iterator[dict[str, Any]]:
    """Reads, checks and recodes the images in threads; yields features in their order.

    `advance` is called with the number of images that were dealt with. Raises DataError if
    images are corrupt and may not be left out, or no image is left.
    """
    report, content = ShardReport(), hashlib.blake2b(digest_size=16)
    for record, image in zip(self.span, self._recoded(), strict=True):
      advance(1)
      if isinstance(image, recode.CorruptImage):
        report.left_out.append(Note(record, str(image)))
        continue
      if image.remark:
        report.remarks.append(Note(record, image.remark))
      # With the length, so that no two lists of images give the same bytes.
      content.update(len(image.data).to_bytes(8, "little") + image.data)
      yield {"image": image.data, **self.records.features(record)}
    corrupt = report.left_out
    if corrupt and (len(corrupt) == len(self.span) or not self.allow_partial):
      named = "; ".join(
        f"{self.records.where(note.record)} ({note.reason})" for note in corrupt[:_NAMED]
      )
      remedy = "" if self.allow_partial else ", or --allow_partial leaves them out"
      raise DataError(
        f"{len(corrupt)} of the {len(self.span)} images for {self.name} cannot be decoded: "
        f"{named}{'; ...' if len(corrupt) > _NAMED else ''}: download the archive "
        f"again{remedy}"
      )
    report.content = content.hexdigest()
    self.report = report

  def _recoded(self) -> Iterator[recode.Stored | recode.CorruptImage]:
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
      for record in self.span:
        waiting.append(pool.submit(self._recode_one, record))
        if len(waiting) >= _LOOK_AHEAD:
          yield waiting.popleft().result()
      while waiting:
        yield waiting.popleft().result()

  def _recode_one(self, record: int) -> recode.Stored | recode.CorruptImage:
    try:
      return self.recode_image(self.records.read(record))
    except recode.CorruptImage as error:
      return error
