"""Checkpoints: all that a run needs to be resumed, written while training goes on."""

import contextlib
import copy
import errno
import itertools
import json
import os
import pathlib
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from ssil_jax.distributed import collectives
from ssil_jax.errors import DivergedError, UserError, WorkdirError
from ssil_jax.memory import Memory
from ssil_jax.training.run_state import Position, RunState
from ssil_jax.training.storage import open_manager, quiet_threads, reason_of

_NETWORK = (
  *("step", "params", "batch_stats", "opt_state"),
  *("carried", "own", "own_opt_state"),
)
# Name in a checkpoint -> field of `Position`.
_NUMBERS = {
  "phase": "phase",
  "steps_done": "steps_done",
  "num_taught": "num_teacher_classes",
  "seconds": "seconds",
}


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
    self._manager = open_manager(
      self._folder,
      cleanup_tmp_directories=True,
      max_to_keep=kept,
      # Else, where a folder cannot be made, threads wait for it for five minutes.
      async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
    )

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, error_type, *exc_info) -> None:
    expected = error_type is None or issubclass(error_type, (UserError, KeyboardInterrupt))
    if collectives.is_multiprocess() and not expected:
      return  # it could wait forever, for a process that is no more
    # Closing would raise once more what kept a checkpoint from being written.
    with contextlib.suppress(*([] if error_type is None else [Exception])):
      self._manager.close()

  def close(self) -> None:
    """Waits for what is being written; nothing is saved or read afterwards."""
    self._manager.close()

  @property
  def last(self) -> pathlib.Path | None:
    return None if self._whole is None else self._folder / str(self._whole)

  def save(self, run: RunState, *, spent: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Begins to save a run; returns when orbax has copied the arrays.

    Args:
      run: what is saved.
      spent: in a state, what its time was spent on, of `Stopwatch.so_far`.

    Raises:
      DivergedError: a parameter is not finite, and nothing is saved.
      WorkdirError: this checkpoint, or the one before it, cannot be written.
    """
    number = run.number
    if number == self._written:
      return
    self.wait()
    arrays = _arrays(run)
    _check_finite(arrays, step=int(run.train_state.step))
    # Orbax refuses arrays without an element.
    stored = {name: array for name, array in arrays.items() if array.size}
    rest = {
      "origin": self._origin,
      "results": run.results,
      "underway": run.position
      and {
        **({"spent": dict(spent)} if spent else {}),
        **{name: getattr(run.position, field) for name, field in _NUMBERS.items()},
      },
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
    """Waits until the checkpoint begun last is whole; WorkdirError if it cannot be."""
    if self._written == self._whole:
      return
    with self._errors_named(self._written):
      self._manager.wait_until_finished()
      self._manager.check_for_errors()
    self._whole = self._written

  @contextlib.contextmanager
  def _errors_named(self, number: int) -> Iterator[None]:
    try:
      with quiet_threads():
        yield
    except Exception as error:  # orbax and tensorstore raise many kinds
      raise WorkdirError(
        f"checkpoint {self._folder / str(number)} cannot be written ({reason_of(error)}); "
        + (f"the last good one is {self.last}: " if self.last else "there is no other: ")
        + "fix this and rerun the command to resume"
      ) from error

  def latest(self, *, default: RunState) -> RunState:
    """Reads the run as it was last saved, or returns `default`, of the same structure.

    Damaged checkpoints are put aside, each with a warning, if there is a good one.

    Raises:
      WorkdirError: there are checkpoints, and all are damaged, or the last good one is of
        another origin.
    """
    reasons = {}
    for number in sorted(self._manager.all_steps(), reverse=True):
      try:
        run, origin = self._read(number, default)
      except Exception as error:  # whatever a damaged file leads to
        reasons[number] = reason_of(error)
      else:
        # A name that only one of them has is a flag of another version.
        different = [n for n in origin if self._origin.get(n, origin[n]) != origin[n]]
        if different:
          raise WorkdirError(
            f"checkpoint {self._folder / str(number)} is of another run (different: "
            f"{', '.join(different)}): put this run's own back, or use another --workdir"
          )
        self._put_aside(reasons, instead=number)
        self._written = self._whole = number
        return run
    if reasons:
      number, reason = next(iter(reasons.items()))
      raise WorkdirError(
        f"no checkpoint in {self._folder} can be read ({number}: {reason}): use another "
        "--workdir, or put a good one back"
      )
    return default

  def _read(self, number: int, like: RunState) -> tuple[RunState, dict[str, Any]]:
    """Reads a run and its origin; raises all kinds of errors if it is damaged."""
    with quiet_threads():
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
    return _run_state(arrays, rest, like), dict(rest["origin"])

  def _put_aside(self, reasons: Mapping[int, str], *, instead: int) -> None:
    """Moves damaged checkpoints away, for their numbers will be written again."""
    for number, reason in reasons.items():
      names = itertools.chain(
        [str(number)], (f"{number}-{attempt}" for attempt in itertools.count(2))
      )
      there = next(self._aside / n for n in names if not (self._aside / n).exists())
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


def _arrays(run: RunState) -> dict[str, np.ndarray]:
  """Returns every array of a run by its name in a checkpoint.

  The names are a file format: they stay when an attribute is renamed.
  """
  parts = {
    **{f"train_state.{name}": getattr(run.train_state, name) for name in _NETWORK},
    **{f"memory.{name}": getattr(run.exemplars, name) for name in Memory._fields},
    "stats": run.stats,
  }
  if run.position is not None:
    within = ("teacher", "expert", "new_ranks", "window")
    parts |= {f"underway.{name}": getattr(run.position, name) for name in within}
  return {
    _join(name, path): np.asarray(leaf)
    for name, part in parts.items()
    for path, leaf in jax.tree_util.tree_leaves_with_path(part)
  }


def _run_state(
  arrays: Mapping[str, np.ndarray], rest: Mapping[str, Any], like: RunState
) -> RunState:
  """Returns the run that a checkpoint holds; raises ValueError or KeyError."""
  network = {name: getattr(like.train_state, name) for name in _NETWORK}
  numbers, position = rest["underway"], None
  if numbers is not None:
    like_teacher = {name: network[name] for name in ("params", "batch_stats")}

    def teacher_of(prefix):
      is_there = any(name.startswith(prefix) for name in arrays)
      return _rebuilt(prefix, like_teacher, arrays) if is_there else None

    position = Position(
      teacher=teacher_of("underway.teacher"),
      expert=teacher_of("underway.expert"),
      new_ranks=arrays["underway.new_ranks"],
      window=arrays["underway.window"],
      spent=numbers.get("spent"),  # those of earlier versions have none
      **{field: numbers[name] for name, field in _NUMBERS.items()},
    )
  return RunState(
    train_state=like.train_state.replace(
      **{name: _rebuilt(f"train_state.{name}", network[name], arrays) for name in network}
    ),
    exemplars=Memory(**{name: arrays[f"memory.{name}"] for name in Memory._fields}),
    stats=_rebuilt("stats", like.stats, arrays),
    results=rest["results"],
    position=position,
  )


def _rebuilt(prefix: str, like: Any, arrays: Mapping[str, np.ndarray]) -> Any:
  """Returns the part of a run with the structure, shapes and types of `like`."""

  def find(path, leaf):
    name = _join(prefix, path)
    array = arrays[name]
    if (array.shape, array.dtype) != (np.shape(leaf), np.asarray(leaf).dtype):
      raise ValueError(f"{name} is {array.dtype}{list(array.shape)}")
    return array

  return jax.tree_util.tree_map_with_path(find, like)


def _join(name: str, path) -> str:
  within = jax.tree_util.keystr(path, simple=True, separator=".")
  return f"{name}.{within}" if within else name


def _signature(array: np.ndarray) -> list[Any]:
  """Returns type, shape and checksum: tensorstore's files have none of their contents."""
  checksum = zlib.crc32(np.ascontiguousarray(array).tobytes())
  return [str(array.dtype), list(array.shape), checksum]


def _checksum(value: Any) -> int:
  """Returns a checksum of what JSON holds."""
  return zlib.crc32(json.dumps(value, sort_keys=True).encode())


_FINITE = tuple(f"train_state.{name}" for name in ("params", "batch_stats", "own."))


def _check_finite(arrays: Mapping[str, np.ndarray], *, step: int) -> None:
  for name, array in arrays.items():
    is_network = name.startswith(_FINITE)
    if is_network and not np.isfinite(array).all():
      raise DivergedError(
        f"parameter {name.removeprefix('train_state.')} is not finite after step {step}"
      )
