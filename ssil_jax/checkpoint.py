"""Checkpoints: all that a run needs to go on, through orbax.

One is written at the end of every incremental state: device state, exemplars, and the
results so far. Orbax writes to a temporary folder and renames it, so that a kill leaves the
one before intact.
"""

import pathlib
from typing import Any, NamedTuple

import numpy as np
import orbax.checkpoint as ocp

from ssil_jax.memory import Memory
from ssil_jax.step import TrainState

_KEPT = 2


class Progress(NamedTuple):
  """A run between two incremental states; host arrays."""

  train_state: TrainState
  memory: Memory
  results: list[dict[str, Any]]  # of the states done, as in results.json


class Checkpoints:
  """The checkpoints of a work directory; a context manager."""

  def __init__(self, workdir: pathlib.Path):
    self._manager = ocp.CheckpointManager(
      workdir / "checkpoints",
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
      ),
    )

  def latest(self, *, otherwise: Progress) -> Progress:
    """The run as it was last saved, or `otherwise`, which also gives its structure."""
    number = self._manager.latest_step()
    if number is None:
      return otherwise
    saved = self._manager.restore(
      number,
      args=ocp.args.Composite(
        train_state=ocp.args.StandardRestore(otherwise.train_state),
        memory=ocp.args.StandardRestore(),
        results=ocp.args.JsonRestore(),
      ),
    )
    exemplars = Memory(**{name: np.asarray(x) for name, x in saved.memory.items()})
    return Progress(saved.train_state, exemplars, saved.results)
