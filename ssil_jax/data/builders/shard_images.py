"""The images of one shard: read, checked and recoded by threads, and given in order."""

import collections
import concurrent.futures
import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ssil_jax.data.builders import recode
from ssil_jax.data.builders.found import Records
from ssil_jax.data.builders.shards import Account, Note
from ssil_jax.errors import DataError
from ssil_jax.system import usable_cores

_NAMED = 5  # corrupt images in an error
_THREADS = min(usable_cores(), 32)
_LOOK_AHEAD = 4 * _THREADS  # images that are under way or wait for the writer


class ShardImages:
  """The images of a shard, called for its examples.

  Attributes:
    name: file name.
    records: of the whole split.
    span: the records of the shard.
    account: what became of them; None until the shard is finished.
  """

  def __init__(
    self,
    name: str,
    records: Records,
    span: range,
    recode: Callable[[bytes], recode.Stored],
    allow_partial: bool,
  ):
    self.name, self.records, self.span = name, records, span
    self.account: Account | None = None
    self._recode, self._allow_partial = recode, allow_partial

  @property
  def num_records(self) -> int:
    return len(self.span) - len(self.account.left_out)

  def __call__(
    self, advance: Callable[[int], None] = lambda images: None
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    """Reads, checks and recodes the images in threads; yields them in their order.

    Args:
      advance: called with the number of images that were dealt with.

    Yields:
      Position in the split, and features.

    Raises:
      DataError: images are corrupt and may not be left out, or no image is left.
    """
    account, content = Account(), hashlib.blake2b(digest_size=16)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
      for record, image in zip(
        self.span, _in_order(pool, self._stored, self.span), strict=True
      ):
        advance(1)
        if isinstance(image, recode.CorruptImage):
          account.left_out.append(Note(record, str(image)))
          continue
        if image.remark:
          account.remarks.append(Note(record, image.remark))
        # With the length, so that no two lists of images give the same bytes.
        content.update(len(image.data).to_bytes(8, "little") + image.data)
        yield record, {"image": image.data, **self.records.features(record)}
    corrupt = account.left_out
    if corrupt and (len(corrupt) == len(self.span) or not self._allow_partial):
      named = "; ".join(
        f"{self.records.where(note.record)} ({note.reason})" for note in corrupt[:_NAMED]
      )
      remedy = "" if self._allow_partial else ", or --allow_partial leaves them out"
      raise DataError(
        f"{len(corrupt)} of the {len(self.span)} images for {self.name} cannot be decoded: "
        f"{named}{'; ...' if len(corrupt) > _NAMED else ''}: download the archive "
        f"again{remedy}"
      )
    account.content = content.hexdigest()
    self.account = account

  def _stored(self, record: int) -> recode.Stored | recode.CorruptImage:
    try:
      return self._recode(self.records.read(record))
    except recode.CorruptImage as error:
      return error


def _in_order(
  pool: concurrent.futures.Executor,
  function: Callable[[int], Any],
  arguments: Iterable[int],
) -> Iterator[Any]:
  """Like `map` in a pool, but with few results waiting: images would fill the memory."""
  waiting: collections.deque[concurrent.futures.Future] = collections.deque()
  for argument in arguments:
    waiting.append(pool.submit(function, argument))
    if len(waiting) >= _LOOK_AHEAD:
      yield waiting.popleft().result()
  while waiting:
    yield waiting.popleft().result()
