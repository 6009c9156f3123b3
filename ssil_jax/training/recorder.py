"""What is recorded while training goes on: metrics.jsonl, TensorBoard events, progress."""

import itertools
import json
import math
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from ssil_jax.distributed import collectives
from ssil_jax.errors import DivergedError, WorkdirError
from ssil_jax.progress import ProgressDisplay
from ssil_jax.schedule import IncrementalState, Phase
from ssil_jax.system import write_bytes
from ssil_jax.training.devices import fetch
from ssil_jax.training.run_state import METRICS, RunState

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

  def add_scores(self, result: dict[str, Any], *, step: int) -> None:
    """Records the scores of a finished incremental state."""
    if self._file is None:
      return
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
    """Waits until all records are on the disk: a checkpoint must not know of more steps."""
    if self._file is not None:
      os.fsync(self._file.fileno())


def _lines_until(path: pathlib.Path, last_step: int) -> dict[int, bytes]:
  """Returns step -> line with its end, of the records of no later steps."""
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


class StepMetrics:
  """Collects the metrics of a phase's steps, and records them `log_every` steps at a time.

  Metrics stay on the devices, and are read when as many newer steps have been sent, so
  that reading them does not wait for the step just sent.
  """

  def __init__(
    self,
    state: IncrementalState,
    phase: Phase,
    run: RunState,
    *,
    log_every: int,
    recorder: Recorder | None,
    display: ProgressDisplay | None,
  ):
    """Begins or resumes a phase.

    Args:
      state: of the phase.
      phase: the phase.
      run: where it begins or is resumed; its position's `window` are the last steps that
        have no record yet.
      log_every: steps of a record.
      recorder: takes the records, if any does.
      display: shows them, if any does.
    """
    steps_done, window = run.position.steps_done, run.position.window
    self._state = state
    self._phase = phase
    self._first_step = (
      int(run.train_state.step) - steps_done
    )  # of the run, before the phase
    self._log_every = log_every
    self._recorder = recorder
    self._display = display
    self._reported = steps_done - len(window)
    self._window = [*window]  # read from the devices
    self._pending: list[dict[str, Any]] = []  # on the devices still
    self._sent = 0
    self._timed_from = time.monotonic()
    self._done_then = 0  # steps
    self._input_seconds = 0.0  # waited for batches since then
    self._seconds_per_step = math.nan
    self._input_share = math.nan  # of the time

  def add(self, step_metrics: dict[str, Any], *, input_seconds: float) -> None:
    """Takes the step just sent.

    Args:
      step_metrics: on the devices; `train_step` says which.
      input_seconds: how long the loop waited for the step's batch.
    """
    self._pending.append(step_metrics)
    self._sent += 1
    self._input_seconds += input_seconds
    if self._sent == 1:
      # Compiling makes the first step slow: it counts only while there is no other.
      jax.block_until_ready(step_metrics)
      self._read_clock()
    if len(self._pending) == 2 * self._log_every:
      self._read(self._log_every)

  def flush(self) -> np.ndarray:
    """Waits for the devices and writes the records that are complete.

    Returns:
      float32 [k, 2], the `window` of a position here.

    Raises:
      DivergedError: the loss of one of these steps is not finite.
    """
    self._read(len(self._pending))
    self._check_finite()
    return np.array(self._window, np.float32).reshape(-1, len(METRICS))

  def finish(self) -> None:
    """Writes a record of what is left; waits for the devices."""
    self._read(len(self._pending))
    if self._window:
      self._write(len(self._window))

  def _read(self, num_steps: int) -> None:
    """Takes the oldest steps from the devices; when there are enough, writes a record."""
    if num_steps == len(self._pending):
      jax.block_until_ready(self._pending)
    self._read_clock()
    for metrics in fetch(self._pending[:num_steps]):
      self._window.append(np.array([metrics[name] for name in METRICS]))
    del self._pending[:num_steps]
    # Without a step there is no speed; those of an earlier process wait for the next one.
    while self._sent and len(self._window) >= self._log_every:
      self._write(self._log_every)

  def _read_clock(self) -> None:
    """Sets the speed from the steps that were done since the last reading."""
    under_way = itertools.takewhile(
      lambda step_metrics: not step_metrics["loss"].is_ready(), reversed(self._pending)
    )
    done, now = self._sent - len(list(under_way)), time.monotonic()
    if done == self._done_then:
      return
    self._seconds_per_step = (now - self._timed_from) / (done - self._done_then)
    self._input_share = self._input_seconds / (now - self._timed_from)
    self._done_then, self._timed_from, self._input_seconds = done, now, 0.0

  def _write(self, num_steps: int) -> None:
    self._check_finite()
    phase = self._phase
    window, self._window = self._window[:num_steps], self._window[num_steps:]
    self._reported += num_steps
    last_epoch = (self._reported - 1) // phase.steps_per_epoch
    means = np.mean(window, axis=0)
    record = {
      "state": self._state.index,
      "phase": phase.number,
      "epoch": last_epoch + 1,
      "step": self._first_step + self._reported,
      **{name: float(mean) for name, mean in zip(METRICS, means, strict=True)},
      "learning_rate": phase.learning_rate_at(last_epoch),
      "images_per_second": phase.batch_size / self._seconds_per_step,
      "input_wait": self._input_share,
    }
    if self._recorder is not None:
      self._recorder.add(record)
    if self._display is not None:
      images = num_steps * phase.batch_size
      self._display.show(record, epochs=phase.epochs, images=images)

  def _check_finite(self) -> None:
    finite = np.isfinite([metrics[0] for metrics in self._window])
    if finite.all():
      return
    place = int(np.argmin(finite))
    done = self._reported + place  # steps of the phase before that one
    raise DivergedError(
      f"the loss became {self._window[place][0]} in state {self._state.index}, epoch "
      f"{done // self._phase.steps_per_epoch + 1}, step {self._first_step + done + 1}"
    )
