"""Checkpoints: all that a run needs to go on, and the network after every state.

Orbax writes both, to a temporary folder that it renames, so that a kill leaves the one
before intact. Checkpoints are written in the background, while training goes on.
"""

import contextlib
import copy
import errno
import json
import os
import pathlib
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from ssil_jax.distributed import collectives
from ssil_jax.errors import DivergedError, UserError, WorkdirError
from ssil_jax.memory import Memory
from ssil_jax.paths import Place
from ssil_jax.training.step import TrainState


class Underway(NamedTuple):
  """An incremental state in training; host arrays."""

  phase: int  # the phase begun last, from 0
  steps_done: int  # of that phase, perhaps all
  teacher: Any  # as in `Given`, in that phase
  num_taught: int  # the same
  new_ranks: np.ndarray  # of the state's pool
  window: np.ndarray  # float32 [k, metrics], the last steps, not yet in metrics.jsonl
  seconds: float  # trained so far


class Progress(NamedTuple):
  """A run between two steps; host arrays."""

  train_state: TrainState
  memory: Memory
  stats: Any  # of the method
  results: list[dict[str, Any]]  # of the states done, as in results.json
  underway: Underway | None = None  # None between two incremental states

  @property
  def number(self) -> int:
    """Of its checkpoint; rises with every step and with every finished state."""
    return int(self.train_state.step) + len(self.results)


class Checkpoints:
  """The checkpoints of a work directory; a context manager.

  Attributes:
    damaged: those that could not be read, where they are now.
    last: the last one that is known to be whole, None without any.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    *,
    kept: int,
    origin: Mapping[str, Any] = MappingProxyType({}),
    warn: Callable[[str], None] = lambda line: None,
  ):
    """Opens the checkpoints.

    Args:
      workdir: their work directory.
      kept: how many of the last ones are kept.
      origin: name -> JSON types, of the flags and data without which a checkpoint means
        nothing; saved in each.
      warn: called with a line for every damaged one.
    """
    self._folder = workdir / "checkpoints"
    self._aside = workdir / "damaged"
    self._origin = dict(origin)
    self._warn = warn
    self.damaged: list[pathlib.Path] = []
    self._written: int | None = None  # perhaps not to the end yet
    self._whole: int | None = None
    self._manager = _open(self._folder, cleanup_tmp_directories=True, max_to_keep=kept)

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, error_type, *exc_info) -> None:
    expected = error_type is None or issubclass(error_type, (UserError, KeyboardInterrupt))
    if collectives.is_multiprocess() and not expected:
      return  # it could wait forever, for a process that is no more
    # Closing would raise once more what kept a checkpoint from being written.
    with contextlib.suppress(*([] if error_type is None else [Exception])):
      self._manager.close()

  @property
  def last(self) -> pathlib.Path | None:
    return None if self._whole is None else self._folder / str(self._whole)

  def save(self, progress: Progress) -> None:
    """Begins to save a run; returns when orbax has copied the arrays.

    Raises:
      DivergedError: a parameter is not finite, and nothing is saved.
      WorkdirError: this checkpoint, or the one before it, cannot be written.
    """
    number = progress.number
    if number == self._written:
      return
    self.wait()
    arrays = _arrays(progress)
    _check_finite(arrays, step=int(progress.train_state.step))
    # Orbax refuses arrays without an element.
    stored = {name: array for name, array in arrays.items() if array.size}
    rest = {
      "origin": self._origin,
      "results": progress.results,
      "underway": _numbers(progress.underway),
      "arrays": {name: _signature(array) for name, array in arrays.items()},
    }
    with self._errors_named(number):
      # Before orbax fails, which it does with thousands of lines.
      needed = sum(array.nbytes for array in stored.values())
      if needed > shutil.disk_usage(self._folder).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
      self._manager.save(
        number,
        args=ocp.args.Composite(
          arrays=ocp.args.StandardSave(stored),
          # A copy, too: it is written later.
          rest=ocp.args.JsonSave({**copy.deepcopy(rest), "checksum": _checksum(rest)}),
        ),
      )
    self._written = number

  def wait(self) -> None:
    """Until the checkpoint begun last is whole. Raises WorkdirError if it cannot be."""
    if self._written == self._whole:
      return
    with self._errors_named(self._written):
      self._manager.wait_until_finished()
      self._manager.check_for_errors()
    self._whole = self._written

  @contextlib.contextmanager
  def _errors_named(self, number: int) -> Iterator[None]:
    try:
      yield
    except Exception as error:  # orbax and tensorstore raise many kinds
      raise WorkdirError(
        f"checkpoint {self._folder / str(number)} cannot be written ({_reason(error)}); "
        + (f"the last good one is {self.last}: " if self.last else "there is no other: ")
        + "mend that, and the same command continues"
      ) from error

  def latest(self, *, otherwise: Progress) -> Progress:
    """The run as it was last saved, or `otherwise`, which also gives its structure.

    Damaged checkpoints are put aside, each with a warning, if there is a good one.

    Raises:
      WorkdirError: there are checkpoints, and all are damaged, or the last good one is of
        another origin.
    """
    reasons = {}
    for number in sorted(self._manager.all_steps(), reverse=True):
      try:
        progress, origin = self._read(number, otherwise)
      except Exception as error:  # whatever a damaged file leads to
        reasons[number] = _reason(error)
      else:
        self._check_origin(number, origin)
        self._put_aside(reasons, instead=number)
        self._written = self._whole = number
        return progress
    if reasons:
      number, reason = next(iter(reasons.items()))
      raise WorkdirError(
        f"no checkpoint in {self._folder} can be read ({number}: {reason}): use another "
        "--workdir, or put a good one back"
      )
    return otherwise

  def _check_origin(self, number: int, origin: Mapping[str, Any]) -> None:
    # A name that only one of them has is a flag of another version.
    names = [n for n in origin if self._origin.get(n, origin[n]) != origin[n]]
    if names:
      raise WorkdirError(
        f"checkpoint {self._folder / str(number)} is of another run (different: "
        f"{', '.join(names)}): put this run's own back, or use another --workdir"
      )

  def _read(self, number: int, like: Progress) -> tuple[Progress, dict[str, Any]]:
    """The run and its origin; raises all kinds of errors if it is damaged."""
    with _quiet_threads():
      saved = self._manager.restore(
        number,
        args=ocp.args.Composite(
          arrays=ocp.args.StandardRestore(), rest=ocp.args.JsonRestore()
        ),
      )
    rest = {name: value for name, value in saved.rest.items() if name != "checksum"}
    if saved.rest["checksum"] != _checksum(rest):
      raise ValueError("the results are not what was saved")
    arrays = {name: np.asarray(array) for name, array in saved.arrays.items()}
    for name, signature in rest["arrays"].items():
      dtype, shape, _ = signature
      if 0 in shape:  # not in the files, for it has no element
        arrays[name] = np.zeros(shape, dtype)
      if _signature(arrays[name]) != signature:
        raise ValueError(f"{name} is not what was saved")
    underway = rest["underway"]
    if underway is not None:
      network = {
        "params": like.train_state.params,
        "batch_stats": like.train_state.batch_stats,
      }
      has_teacher = any(name.startswith("underway.teacher") for name in arrays)
      underway = Underway(
        teacher=_rebuilt("underway.teacher", network, arrays) if has_teacher else None,
        new_ranks=arrays["underway.new_ranks"],
        window=arrays["underway.window"],
        **underway,
      )
    progress = Progress(
      train_state=_rebuilt("train_state", like.train_state, arrays),
      memory=Memory(**{name: arrays[f"memory.{name}"] for name in Memory._fields}),
      stats=_rebuilt("stats", like.stats, arrays),
      results=rest["results"],
      underway=underway,
    )
    return progress, dict(rest["origin"])

  def _put_aside(self, reasons: Mapping[int, str], *, instead: int) -> None:
    """Moves damaged checkpoints away, for their numbers will be written again."""
    for number, reason in reasons.items():
      there = _free_name(self._aside / str(number))
      if collectives.is_main():
        self._aside.mkdir(exist_ok=True)
        os.rename(self._folder / str(number), there)
      self.damaged.append(there)
      self._warn(
        f"warning: checkpoint {number} is damaged ({reason}); it is now {there}, and the "
        f"run goes on from checkpoint {instead}"
      )
    if reasons:
      collectives.barrier()
      self._manager.reload()


class _Manager(ocp.CheckpointManager):
  def reached_preemption(self, step: int) -> bool:
    # Jax finds the step at which all processes stop by the numbers that it is asked with.
    # They are those of `shared_interrupt`, and a checkpoint's own would spoil them.
    return False


def _open(folder: pathlib.Path, **options: Any) -> ocp.CheckpointManager:
  """Raises WorkdirError if a part of the folder has damaged metadata."""
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
      f"{folder} cannot be read ({_reason(error)}): move what is damaged in it away, or "
      "use another work directory"
    ) from error


@contextlib.contextmanager
def _quiet_threads() -> Iterator[None]:
  """Drops what tensorstore's threads print when a damaged file has ended a restore."""
  before = sys.unraisablehook

  def hook(unraisable):
    if str(unraisable.exc_value) != "Event loop is closed":
      before(unraisable)

  sys.unraisablehook = hook
  yield
  sys.unraisablehook = before  # not after a failure: threads print later than it


def _arrays(progress: Progress) -> dict[str, np.ndarray]:
  """Every array of a run, by a name that tells its place."""
  tree = {
    "train_state": progress.train_state,
    "memory": progress.memory,
    "stats": progress.stats,
  }
  if progress.underway is not None:
    names = ("teacher", "new_ranks", "window")
    tree["underway"] = {name: getattr(progress.underway, name) for name in names}
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {_name(path): np.asarray(leaf) for path, leaf in leaves}


def _rebuilt(prefix: str, like: Any, arrays: Mapping[str, np.ndarray]) -> Any:
  """The part of a run that has the structure, shapes and types of `like`."""

  def find(path, leaf):
    name = ".".join(filter(None, [prefix, _name(path)]))
    array = arrays[name]
    if (array.shape, array.dtype) != (np.shape(leaf), np.asarray(leaf).dtype):
      raise ValueError(f"{name} is {array.dtype}{list(array.shape)}")
    return array

  return jax.tree_util.tree_map_with_path(find, like)


def _name(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator=".")


def _numbers(underway: Underway | None) -> dict[str, Any] | None:
  """What is no array."""
  names = ("phase", "steps_done", "num_taught", "seconds")
  return underway and {name: getattr(underway, name) for name in names}


def _signature(array: np.ndarray) -> list[Any]:
  """Type, shape and checksum, for tensorstore's files have none of their contents."""
  checksum = zlib.crc32(np.ascontiguousarray(array).tobytes())
  return [str(array.dtype), list(array.shape), checksum]


def _checksum(value: Any) -> int:
  """Of what JSON holds."""
  return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _check_finite(arrays: Mapping[str, np.ndarray], *, step: int) -> None:
  for name, array in arrays.items():
    is_network = name.startswith(("train_state.params", "train_state.batch_stats"))
    if is_network and not np.isfinite(array).all():
      raise DivergedError(
        f"parameter {name.removeprefix('train_state.')} is not finite after step {step}"
      )


def _free_name(path: pathlib.Path) -> pathlib.Path:
  """The path itself, or with a number behind it if there is one already."""
  number, free = 1, path
  while free.exists():
    number += 1
    free = path.with_name(f"{path.name}-{number}")
  return free


def _reason(error: Exception) -> str:
  """One line on an error."""
  if isinstance(error, OSError) and error.errno:
    return os.strerror(error.errno)
  if os.strerror(errno.ENOSPC) in str(error):
    return os.strerror(errno.ENOSPC)  # in tensorstore's words it takes five lines
  first_line, *_ = str(error).splitlines() or [type(error).__name__]
  return first_line[:200]


class Networks:
  """The network as each state left it, in `WORKDIR/networks`; a context manager."""

  def __init__(self, workdir: pathlib.Path, *, own: bool = True):
    """Opens them; with `own` false, those of another run, in which nothing is changed."""
    self._folder = workdir / "networks"
    self._manager = _open(
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
        f"network {self._folder / str(state)} cannot be written ({_reason(error)}): mend "
        "that, and the same command continues"
      ) from error

  def states(self) -> list[int]:
    """The states whose network is there."""
    return sorted(self._manager.all_steps())

  def load(self, state: int, *, like: TrainState) -> TrainState:
    """`like`, host arrays, with the steps done and the network of a state's end."""
    try:
      with _quiet_threads():
        saved = self._manager.restore(state, args=ocp.args.StandardRestore(_network(like)))
    except Exception as error:  # whatever a damaged file leads to
      raise WorkdirError(
        f"{self._folder / str(state)} is damaged or does not fit this run "
        f"({_reason(error)}): leave --from_workdir out, or repeat that run"
      ) from error
    return like.replace(**saved)


def _network(train_state: TrainState) -> dict[str, Any]:
  names = ("step", "params", "batch_stats")
  return {name: getattr(train_state, name) for name in names}
