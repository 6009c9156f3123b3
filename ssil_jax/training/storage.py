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

import jax
import numpy as np
import orbax.checkpoint as ocp

from ssil_jax.errors import WorkdirError
from ssil_jax.paths import Place
from ssil_jax.training.run_state import TrainState


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
  """Drops what tensorstore's threads print when an error has ended a save or restore."""
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
  for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
    if os.strerror(number) in str(error):
      return os.strerror(number)  # in tensorstore's words it takes five lines
  first_line, *_ = str(error).splitlines() or [type(error).__name__]
  return first_line[:200]


class Networks:
  """The network as each state left it, `WORKDIR/networks/STATE`; a context manager."""

  def __init__(self, workdir: pathlib.Path, *, own: bool = True):
    """Opens them; with `own` false, those of another run, in which nothing is changed."""
    self._folder = workdir / "networks"
    self._manager = open_manager(
      self._folder, cleanup_tmp_directories=own, enable_async_checkpointing=False
    )

  def __enter__(self) -> "Networks":
    return self

  def __exit__(self, *exc_info) -> None:
    self._manager.close()

  def save(self, train_state: TrainState, *, state: int) -> None:
    """Saves parameters and BatchNorm statistics, host arrays.

    Raises:
      WorkdirError: they cannot be written.
    """
    try:
      # What a run that was killed before its checkpoint left, or one before that.
      for later in [s for s in self.states() if s >= state]:
        self._manager.delete(later)
      with quiet_threads():
        self._manager.save(state, args=ocp.args.StandardSave(_network(train_state)))
    except Exception as error:  # orbax and tensorstore raise many kinds
      raise WorkdirError(
        f"network {self._folder / str(state)} cannot be written ({reason_of(error)}): "
        "fix this and rerun the command to resume"
      ) from error

  def states(self) -> list[int]:
    """Returns the states whose network is there."""
    return sorted(self._manager.all_steps())

  def load(self, state: int, *, like: TrainState) -> TrainState:
    """Returns `like`, host arrays, with the steps done and the network of a state's end."""
    saved = self._restore(
      state,
      ocp.args.StandardRestore(_network(like)),
      "leave --from_workdir out, or repeat that run",
    )
    return like.replace(**saved)

  def read(self, state: int) -> dict[str, Any]:
    """Returns step, params and batch_stats of a state's end as they are; host arrays."""
    saved = self._restore(
      state, ocp.args.StandardRestore(), "put a good one back, or repeat the run"
    )
    return jax.tree.map(np.asarray, saved)

  def _restore(self, state: int, args: Any, remedy: str) -> Any:
    try:
      with quiet_threads():
        return self._manager.restore(state, args=args)
    except Exception as error:  # whatever a damaged file leads to
      raise WorkdirError(
        f"{self._folder / str(state)} is damaged or does not fit this run "
        f"({reason_of(error)}): {remedy}"
      ) from error


def _network(train_state: TrainState) -> dict[str, Any]:
  names = ("step", "params", "batch_stats")
  return {name: getattr(train_state, name) for name in names}
