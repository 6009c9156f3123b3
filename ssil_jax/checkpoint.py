"""Checkpoints: all that a run needs to go on, and the network after every state.

Orbax writes both at the end of every incremental state, to a temporary folder that it
renames, so that a kill leaves the one before intact.
"""

import contextlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import orbax.checkpoint as ocp

from ssil_jax.errors import WorkdirError
from ssil_jax.memory import Memory
from ssil_jax.step import TrainState

_KEPT = 2


class Progress(NamedTuple):
  """A run between two incremental states; host arrays."""

  train_state: TrainState
  memory: Memory
  stats: Any  # of the method
  results: list[dict[str, Any]]  # of the states done, as in results.json


class Checkpoints:
  """The checkpoints of a work directory; a context manager."""

  def __init__(self, workdir: pathlib.Path):
    self._folder = workdir / "checkpoints"
    self._manager = ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=_KEPT, enable_async_checkpointing=False
      ),
    )

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *exc_info) -> None:
    self._manager.close()

  def save(self, progress: Progress) -> None:
    """Saves the run after its latest state, which is `len(progress.results)`."""
    self._manager.save(
      len(progress.results),
      args=ocp.args.Composite(
        train_state=ocp.args.StandardSave(progress.train_state),
        memory=ocp.args.StandardSave(progress.memory._asdict()),
        results=ocp.args.JsonSave(progress.results),
        **_stats_item(ocp.args.StandardSave, progress.stats),
      ),
    )

  def latest(self, *, otherwise: Progress) -> Progress:
    """The run as it was last saved, or `otherwise`, which also gives its structure."""
    number = self._manager.latest_step()
    if number is None:
      return otherwise
    args = ocp.args.Composite(
      train_state=ocp.args.StandardRestore(otherwise.train_state),
      memory=ocp.args.StandardRestore(),
      results=ocp.args.JsonRestore(),
      **_stats_item(ocp.args.StandardRestore, otherwise.stats),
    )
    advice = "delete it, and the run goes on from the one before it, or begins anew"
    with _damage_named(self._folder / str(number), advice):
      saved = self._manager.restore(number, args=args)
    exemplars = Memory(**{name: np.asarray(x) for name, x in saved.memory.items()})
    stats = saved.stats if otherwise.stats else otherwise.stats
    return Progress(saved.train_state, exemplars, stats, saved.results)


def _stats_item(args: Callable[[Any], Any], stats: dict[str, Any]) -> dict[str, Any]:
  """The argument for a method's statistics; none for none, which orbax refuses."""
  return {"stats": args(stats)} if stats else {}


@contextlib.contextmanager
def _damage_named(folder: pathlib.Path, advice: str) -> Iterator[None]:
  """Raises WorkdirError for what orbax raises where files are missing or damaged."""
  try:
    yield
  except (KeyError, OSError, TypeError, ValueError) as error:
    first_line, *_ = str(error).splitlines() or [type(error).__name__]
    raise WorkdirError(
      f"{folder} is damaged or does not fit this run ({first_line[:200]}): {advice}"
    ) from error


class Networks:
  """The network as each state left it, in `WORKDIR/networks`; a context manager."""

  def __init__(self, workdir: pathlib.Path):
    self._folder = workdir / "networks"
    self._manager = ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(enable_async_checkpointing=False),
    )

  def __enter__(self) -> "Networks":
    return self

  def __exit__(self, *exc_info) -> None:
    self._manager.close()

  def save(self, train_state: TrainState, *, state: int) -> None:
    """Saves parameters and BatchNorm statistics, host arrays."""
    # What a run that was killed before its checkpoint left, or one before that.
    for later in [s for s in self.states() if s >= state]:
      self._manager.delete(later)
    self._manager.save(state, args=ocp.args.StandardSave(_network(train_state)))

  def states(self) -> list[int]:
    """The states whose network is there."""
    return sorted(self._manager.all_steps())

  def load(self, state: int, *, like: TrainState) -> TrainState:
    """`like`, host arrays, with the steps done and the network of a state's end."""
    advice = "leave --from_workdir out, or repeat that run"
    with _damage_named(self._folder / str(state), advice):
      saved = self._manager.restore(state, args=ocp.args.StandardRestore(_network(like)))
    return like.replace(**saved)


def _network(train_state: TrainState) -> dict[str, Any]:
  names = ("step", "params", "batch_stats")
  return {name: getattr(train_state, name) for name in names}
