"""The network as each state left it: `WORKDIR/networks/STATE`."""

import pathlib
from typing import Any

import orbax.checkpoint as ocp

from ssil_jax.errors import WorkdirError
from ssil_jax.training.run_state import TrainState
from ssil_jax.training.storage import open_manager, quiet_threads, reason_of


class Networks:
  """The networks of a work directory; a context manager."""

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
    try:
      with quiet_threads():
        saved = self._manager.restore(state, args=ocp.args.StandardRestore(_network(like)))
    except Exception as error:  # whatever a damaged file leads to
      raise WorkdirError(
        f"{self._folder / str(state)} is damaged or does not fit this run "
        f"({reason_of(error)}): leave --from_workdir out, or repeat that run"
      ) from error
    return like.replace(**saved)


def _network(train_state: TrainState) -> dict[str, Any]:
  names = ("step", "params", "batch_stats")
  return {name: getattr(train_state, name) for name in names}
