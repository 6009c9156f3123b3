"""Keeps compiled programs in the user's cache, so that the next run need not compile them.

The environment's own cache (JAX_COMPILATION_CACHE_DIR), if it has one, is used instead.
"""

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator

import jax
import jaxlib
from jax.experimental.compilation_cache import compilation_cache

from ssil_jax.data import cache
from ssil_jax.paths import real_path
from ssil_jax.system import cpu_name

NONE = "none"
_SHORTEST = 0.5  # seconds of compiling for which a file is worth while


@contextlib.contextmanager
def kept(place: str, *, warn: Callable[[str], None] = lambda line: None) -> Iterator[None]:
  """Keeps programs that are compiled while the context lasts, and takes those kept before.

  Args:
    place: a folder, "" for the user's cache, or "none".
    warn: called with a line if nothing can be kept.
  """
  if place == NONE or jax.config.jax_compilation_cache_dir:
    yield
    return
  try:
    folder = (real_path(place) if place else cache.home() / "compiled") / _of_machine()
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
      raise PermissionError(None, "Permission denied", str(folder))
  except OSError as error:
    warn(
      f"note: compiled programs are not kept ({error.filename}: {error.strerror}); set "
      "XDG_CACHE_HOME, or run.py's --compilation_cache=DIR, to a folder that can be written"
    )
    yield
    return
  wanted = {
    "jax_compilation_cache_dir": str(folder),
    "jax_persistent_cache_min_compile_time_secs": _SHORTEST,
  }
  before = {name: getattr(jax.config, name) for name in wanted}
  try:
    _update(wanted)
    yield
  finally:
    _update(before)


def _update(values: dict[str, object]) -> None:
  for name, value in values.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()  # else jax goes on with the folder it first asked for


def _of_machine() -> pathlib.Path:
  """Returns a folder's name for this kind of machine: programs for another may not run."""
  told = f"{cpu_name()} {jaxlib.__version__}"
  return pathlib.Path(hashlib.blake2b(told.encode(), digest_size=8).hexdigest())
