"""Files that are written whole or not at all."""

import json
import os
import pathlib
import platform
from typing import Any


def write_json(path: pathlib.Path, value: Any) -> None:
  """Replaces a JSON file as `write_bytes` does."""
  write_bytes(path, json.dumps(value, indent=1, allow_nan=False).encode())


def write_bytes(path: pathlib.Path, content: bytes) -> None:
  """Replaces a file whole: a reader, a kill or another writer never meets half of it."""
  temporary = _beside(path)
  try:
    with open(temporary, "wb") as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


def _beside(path: pathlib.Path) -> pathlib.Path:
  """A temporary file in the same folder, of the same name as far as there is room."""
  # Hosts that share a disk may write the same file at the same time.
  ending = f".{platform.node()}.{os.getpid()}.tmp"
  room = os.pathconf(path.parent, "PC_NAME_MAX") - len(os.fsencode(ending))
  # In bytes, which must not end within a character.
  start = os.fsencode(path.name)[:room].decode(errors="ignore")
  return path.with_name(start + ending)
