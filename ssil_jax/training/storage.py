"""Folders of numbered items that orbax writes, each to a temporary folder that it renames.

So a kill leaves what was there before intact.
"""

import contextlib
import errno
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import orbax.checkpoint as ocp

from ssil_jax.errors import WorkdirError
from ssil_jax.paths import Place


class _Manager(ocp.CheckpointManager):
  def reached_preemption(self, step: int) -> bool:
    # Jax finds the step at which all processes stop by the numbers that it is asked with.
    # They are those of `preemption`, and a checkpoint's own would spoil them.
    return False


def open_manager(folder: pathlib.Path, **options: Any) -> ocp.CheckpointManager:
  """Opens a folder; raises WorkdirError if a part of it has damaged metadata."""
  try:
    return _Manager(
      Place(folder),  # orbax looks for what it wrote by patterns
      options=ocp.CheckpointManagerOptions(
        lightweight_initialize=True,  # else one damaged checkpoint would hide the others
        **options,
      ),
    )
  except Exception as error:  # whatever a damaged file leads to
    raise WorkdirError(
      f"{folder} cannot be read ({reason_of(error)}): move what is damaged in it away, or "
      "use another work directory"
    ) from error


@contextlib.contextmanager
def quiet_threads() -> Iterator[None]:
  """Drops what tensorstore's threads print when a damaged file has ended a restore."""
  before = sys.unraisablehook

  def hook(unraisable):
    if str(unraisable.exc_value) != "Event loop is closed":
      before(unraisable)

  sys.unraisablehook = hook
  yield
  sys.unraisablehook = before  # not after a failure: threads print later than it


def reason_of(error: Exception) -> str:
  """Returns one line on an error of orbax or tensorstore."""
  if isinstance(error, OSError) and error.errno:
    return os.strerror(error.errno)
  if os.strerror(errno.ENOSPC) in str(error):
    return os.strerror(errno.ENOSPC)  # in tensorstore's words it takes five lines
  first_line, *_ = str(error).splitlines() or [type(error).__name__]
  return first_line[:200]
