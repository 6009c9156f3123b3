"""Keeps what was found out about data in the user's cache, not beside the data."""

import hashlib
import os
import pathlib

from ssil_jax.system import write_bytes


def home() -> pathlib.Path:
  """Returns this package's folder in the user's cache.

  Raises:
    OSError: the user has no home folder, and XDG_CACHE_HOME is not set.
  """
  try:
    base = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
  except RuntimeError as error:
    raise OSError(None, "no home folder", "~") from error
  return base / "ssil_jax"


def folder_of(directory: pathlib.Path) -> pathlib.Path:
  """Returns the cache of a folder of data; another one wherever the data lie.

  Raises:
    OSError: as `home`.
  """
  place = hashlib.blake2b(os.fsencode(directory.resolve()), digest_size=8).hexdigest()
  return home() / place


def write(directory: pathlib.Path, name: str, content: bytes) -> pathlib.Path:
  """Writes a file of the cache of a folder of data, and returns it; raises OSError."""
  path = folder_of(directory) / name
  path.parent.mkdir(parents=True, exist_ok=True)
  write_bytes(path, content)
  return path
