"""What this process asks of the system: cores, open files, files written whole."""

import json
import os
import pathlib
import platform
import resource
from typing import Any

from ssil_jax.errors import DataError

_SPARE_FILES = 200  # descriptors that everything but data shards needs


def usable_cores() -> int:
  """Returns how many CPU cores the process may run on, perhaps a part of them."""
  if hasattr(os, "sched_getaffinity"):  # not on macOS
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def allow_open_files(number: int) -> None:
  """Lets the process have so many files open, as far as it may decide that itself.

  Raises:
    DataError: the limit is lower, and only the system's administrator can raise it.
  """
  wanted = number + _SPARE_FILES
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if soft == resource.RLIM_INFINITY or soft >= wanted:
    return
  if hard != resource.RLIM_INFINITY and hard < wanted:
    raise DataError(
      f"the data need {wanted} open files, and this system allows a process {hard}: raise "
      f"its limit (ulimit -n {wanted}, or LimitNOFILE)"
    )
  resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


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
  """Returns a temporary file in the same folder, named alike as far as there is room."""
  # Hosts that share a disk may write the same file at the same time.
  ending = f".{platform.node()}.{os.getpid()}.tmp"
  room = os.pathconf(path.parent, "PC_NAME_MAX") - len(os.fsencode(ending))
  # In bytes, which must not end within a character.
  start = os.fsencode(path.name)[:room].decode(errors="ignore")
  return path.with_name(start + ending)
