"""Labels of a TFDS directory, kept beside its shards so that no record need be read.

`labels.npy` holds the labels of every split, one after another, in record order;
`labels.json` says of which splits and which shards.
"""

import io
import json
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ssil_jax.errors import DataError
from ssil_jax.system import write_bytes, write_json

_ARRAY = "labels.npy"
_ORIGIN = "labels.json"
FILES = (_ARRAY, _ORIGIN)  # what `save` writes


def save(
  directory: pathlib.Path,
  labels: Mapping[str, np.ndarray],
  folder: pathlib.Path | None = None,
) -> None:
  """Writes split -> int32 [n], in record order, of a directory of complete shards.

  They go to `folder`, or to the directory itself.
  """
  folder = folder or directory
  joined = np.concatenate([np.asarray(part, np.int32) for part in labels.values()])
  file = io.BytesIO()
  np.save(file, joined)
  # The array first: labels.json vouches for it.
  write_bytes(folder / _ARRAY, file.getvalue())
  write_json(
    folder / _ORIGIN,
    {
      "splits": {split: len(part) for split, part in labels.items()},
      "shards": _shards(directory),
      "crc32": zlib.crc32(file.getvalue()),
    },
  )


def load(
  directory: pathlib.Path, folder: pathlib.Path | None = None
) -> dict[str, np.ndarray] | None:
  """Reads split -> int32 [n] as `save` wrote them; None if it never came to the end.

  Raises DataError if they are damaged, or not of the shards in `directory`.
  """
  folder = folder or directory
  path = folder / _ARRAY
  if not (folder / _ORIGIN).exists():
    return None
  try:
    content = path.read_bytes()
    origin = json.loads((folder / _ORIGIN).read_text())
    splits, shards = dict(origin["splits"]), dict(origin["shards"])
    length, intact = sum(splits.values()), origin["crc32"] == zlib.crc32(content)
    joined = np.load(io.BytesIO(content), allow_pickle=False) if intact else None
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
    raise DataError(
      f"{path} or {_ORIGIN} beside it cannot be read ({error}): {_remedy(folder)}"
    ) from error
  if not intact or (joined.shape, joined.dtype) != ((length,), np.int32):
    raise DataError(f"{path} is damaged or of another version: {_remedy(folder)}")
  if shards != (found := _shards(directory)):
    different = sorted(
      name for name in shards | found if shards.get(name) != found.get(name)
    )
    raise DataError(
      f"{path} was made for other shards than those in {directory} ({different[0]} "
      f"differs, {len(different)} in all): {_remedy(folder)}"
    )
  ends = np.cumsum(list(splits.values()))
  return dict(zip(splits, np.split(joined, ends[:-1]), strict=True))


def _remedy(folder: pathlib.Path) -> str:
  return (
    f"if the shards are as they should be, delete {_ARRAY} and {_ORIGIN} in {folder} and "
    "the labels are read from the shards again"
  )


def _shards(directory: pathlib.Path) -> dict[str, Any]:
  """Returns file name -> bytes, of every shard."""
  return {
    path.name: path.stat().st_size for path in sorted(directory.glob("*.array_record*"))
  }
