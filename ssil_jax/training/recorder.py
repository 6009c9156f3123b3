"""What is written while training goes on: metrics.jsonl and TensorBoard events."""

import json
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from ssil_jax.distributed import collectives
from ssil_jax.errors import WorkdirError
from ssil_jax.system import write_bytes

_SECONDS_BETWEEN_FLUSHES = 10.0  # of the TensorBoard events


class Journal:
  """Appends records to `metrics.jsonl` and the TensorBoard events; a context manager."""

  def __init__(
    self,
    workdir: pathlib.Path,
    *,
    steps_done: int,
    steps_recorded: int,
    warn: Callable[[str], None] = lambda line: None,
  ):
    """Opens the journal of a run that goes on.

    Args:
      workdir: its work directory.
      steps_done: of the whole run.
      steps_recorded: those of them that have a record. What is recorded of later ones is
        dropped, for they will be recorded again.
      warn: called with a line if there is no journal any more.

    Raises:
      WorkdirError: a line is damaged, or records are missing.
    """
    path = workdir / "metrics.jsonl"
    if steps_done and not path.exists():
      warn(f"warning: {path} is gone; it begins again after step {steps_recorded}")
    elif path.exists():
      # The checkpoint has the metrics of the steps since then, to be recorded again.
      kept = _lines_until(path, steps_recorded)
      _check_complete(kept, path, steps_recorded)
      write_bytes(path, b"".join(kept.values()))
    if not path.exists():
      write_bytes(path, b"")
    self._file = open(path, "a")  # noqa: SIM115, closed by __exit__
    folder = workdir / "tensorboard"
    folder.mkdir(exist_ok=True)
    # Not SummaryWriter, whose thread dies of a full disk, after which adding waits forever.
    self._events = EventsWriter(str(folder / "events"))
    # TensorBoard drops what it has of steps from here on.
    self._events.write_event(
      Event(step=steps_recorded + 1, session_log=SessionLog(status=SessionLog.START))
    )
    self._shown_at = time.monotonic()

  def __enter__(self) -> "Journal":
    return self

  def __exit__(self, *exc_info) -> None:
    self._file.close()
    self._events.close()

  def train(self, record: dict[str, Any]) -> None:
    """A stretch of training steps that ends with `record["step"]`."""
    self._file.write(json.dumps(record) + "\n")
    self._file.flush()
    for name in ("loss", "top1", "learning_rate", "images_per_second", "input_wait"):
      self._show(f"train/{name}", record[name], record["step"])
    if time.monotonic() - self._shown_at > _SECONDS_BETWEEN_FLUSHES:
      self._flush_events()

  def evaluation(self, result: dict[str, Any], *, step: int) -> None:
    """The scores of a finished incremental state."""
    for name, value in result.items():
      if isinstance(value, float):
        self._show(f"test/{name}", value, step)
    self._flush_events()

  def _show(self, name: str, value: float, step: int) -> None:
    summary = scalar(name, value)
    self._events.write_event(Event(wall_time=time.time(), step=step, summary=summary))

  def _flush_events(self) -> None:
    self._events.flush()
    self._shown_at = time.monotonic()

  def sync(self) -> None:
    """Until all records are on the disk: a checkpoint must not know of more steps."""
    os.fsync(self._file.fileno())


class _NoJournal(Journal):
  """The journal of a process that leaves writing to another one."""

  def __init__(self):
    """Opens nothing."""

  def __exit__(self, *exc_info) -> None:
    """Closes nothing."""

  def train(self, record: dict[str, Any]) -> None:
    """Writes nothing."""

  def evaluation(self, result: dict[str, Any], *, step: int) -> None:
    """Writes nothing."""

  def sync(self) -> None:
    """Waits for nothing."""


def open_journal(workdir: pathlib.Path, **kwargs: Any) -> Journal:
  """A `Journal` in process 0, and in the others one that does nothing."""
  return Journal(workdir, **kwargs) if collectives.is_main() else _NoJournal()


def _lines_until(path: pathlib.Path, last_step: int) -> dict[int, bytes]:
  """Step -> line with its end, of the records of no later steps."""
  kept = {}
  *lines, _ = path.read_bytes().split(b"\n")
  for number, line in enumerate(lines, start=1):
    if next(reversed(kept), 0) == last_step:
      break  # what follows was perhaps never wholly on the disk
    try:
      step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
      raise _damaged(f"{path}: line {number} is no record", last_step) from error
    if type(step) is not int:
      raise _damaged(f"{path}: line {number} has no step", last_step)
    if step > last_step:
      break
    if kept and step <= next(reversed(kept)):
      raise _damaged(f"{path}: line {number} is not in the order of steps", last_step)
    kept[step] = line + b"\n"
  return kept


def _check_complete(
  kept: dict[int, bytes], path: pathlib.Path, steps_recorded: int
) -> None:
  # A file that was deleted begins later, and has no record of the steps before.
  last = next(reversed(kept), None)
  if kept and last != steps_recorded:
    raise _damaged(f"{path} ends with step {last}, not {steps_recorded}", steps_recorded)


def _damaged(what: str, step: int) -> WorkdirError:
  return WorkdirError(
    f"{what}: put the file right, or delete it and records begin after step {step}"
  )
