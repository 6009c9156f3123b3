"""What is recorded while training goes on: metrics.jsonl and TensorBoard events."""

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


class Recorder:
  """Appends to `metrics.jsonl` and the TensorBoard events; a context manager.

  Of several processes, process 0 does so; the others' recorders write nothing.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    *,
    steps_done: int,
    steps_recorded: int,
    warn: Callable[[str], None] = lambda line: None,
  ):
    """Opens the records of a run that is begun or resumed.

    Args:
      workdir: its work directory.
      steps_done: of the whole run.
      steps_recorded: those of them that have a record. What is recorded of later ones is
        dropped, for they will be recorded again.
      warn: called with a line if there are no records any more.

    Raises:
      WorkdirError: a line is damaged, or records are missing.
    """
    self._file = None
    if not collectives.is_main():
      return
    path, kept = workdir / "metrics.jsonl", b""
    if path.exists():
      # The checkpoint has the metrics of the steps since then, to be recorded again.
      kept = _lines_until(path, steps_recorded)
    elif steps_done:
      warn(f"warning: {path} is gone; it begins again after step {steps_recorded}")
    write_bytes(path, kept)
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

  def __enter__(self) -> "Recorder":
    return self

  def __exit__(self, *exc_info) -> None:
    if self._file is not None:
      self._file.close()
      self._events.close()

  def add(self, record: dict[str, Any]) -> None:
    """Records the training steps from the last record up to `record["step"]`."""
    if self._file is None:
      return
    self._file.write(json.dumps(record) + "\n")
    self._file.flush()
    for name in ("loss", "top1", "learning_rate", "images_per_second", "input_wait"):
      self._show(f"train/{name}", record[name], record["step"])
    if time.monotonic() - self._shown_at > _SECONDS_BETWEEN_FLUSHES:
      self._flush_events()

  def add_scores(self, result: dict[str, Any], *, step: int, scored: str = "test") -> None:
    """Records the scores of a finished incremental state, of `scored` images."""
    if self._file is None:
      return
    for name, value in result.items():
      if isinstance(value, float):
        self._show(f"{scored}/{name}", value, step)
    self._flush_events()

  def _show(self, name: str, value: float, step: int) -> None:
    summary = scalar(name, value)
    self._events.write_event(Event(wall_time=time.time(), step=step, summary=summary))

  def _flush_events(self) -> None:
    self._events.flush()
    self._shown_at = time.monotonic()

  def sync(self) -> None:
    """Waits until all records are on the disk: a checkpoint must not know of more steps."""
    if self._file is not None:
      os.fsync(self._file.fileno())


def _lines_until(path: pathlib.Path, last_step: int) -> bytes:
  """Returns the records of no later steps; raises WorkdirError if they are damaged."""

  def damaged(what: str) -> WorkdirError:
    return WorkdirError(
      f"{path}{what}: put the file right, or delete it and records begin after step "
      f"{last_step}"
    )

  kept, last = [], 0
  *lines, _ = path.read_bytes().split(b"\n")
  for number, line in enumerate(lines, start=1):
    if last == last_step:
      break  # what follows was perhaps never wholly on the disk
    try:
      step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
      raise damaged(f": line {number} is no record") from error
    if type(step) is not int:
      raise damaged(f": line {number} has no step")
    if step > last_step:
      break
    if step <= last:
      raise damaged(f": line {number} is not in the order of steps")
    kept.append(line + b"\n")
    last = step
  # A file that was deleted begins later, and has no record of the steps before.
  if kept and last != last_step:
    raise damaged(f" ends with step {last}, not {last_step}")
  return b"".join(kept)
