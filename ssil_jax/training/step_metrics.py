"""The metrics of the steps in training, read without waiting, and their records."""

import itertools
import math
import time
from typing import Any

import jax
import numpy as np

from ssil_jax.errors import DivergedError
from ssil_jax.schedule import IncrementalState, Phase
from ssil_jax.training.devices import fetch, wait_for_earlier
from ssil_jax.training.run_state import METRICS, RunState
from ssil_jax.training.session import Session


class StepMetrics:
  """Collects the metrics of a phase's steps, and records them `log_every` steps at a time.

  Metrics stay on the devices, and are read when as many newer steps have been sent, so
  that reading them does not wait for the step just sent.
  """

  def __init__(
    self, session: Session, state: IncrementalState, phase: Phase, run: RunState
  ):
    """Begins or resumes the phase that `run` is in, with its window of unrecorded steps."""
    steps_done, window = run.position.steps_done, run.position.window
    self._session, self._state, self._phase = session, state, phase
    self._log_every = session.plan.config.log_every
    self._steps_before = int(run.train_state.step) - steps_done  # the phase
    self._reported = steps_done - len(window)
    self._window = [*window]  # read from the devices
    # Of steps sent together, on the devices still, and how many those are.
    self._pending: list[tuple[dict[str, Any], int]] = []
    self._sent = 0
    self._timed_from = time.monotonic()
    self._done_then = 0  # steps
    self._input_seconds = 0.0  # waited for batches since then
    self._seconds_per_step = math.nan
    self._input_share = math.nan  # of the time

  def add(
    self, step_metrics: dict[str, Any], *, count: int = 1, input_seconds: float
  ) -> None:
    """Takes the steps just sent.

    Args:
      step_metrics: on the devices; `train_step` says which.
      count: how many steps were sent together.
      input_seconds: how long the loop waited for their batches.
    """
    self._pending.append((step_metrics, count))
    wait_for_earlier(self._pending, steps_each=count)
    is_first = not self._sent
    self._sent += count
    self._input_seconds += input_seconds
    if is_first:
      # Compiling makes the first step slow: it counts only while there is no other.
      jax.block_until_ready(step_metrics)
      self._read_clock()
    if sum(count for _, count in self._pending) >= 2 * self._log_every:
      self._read(self._count_oldest())

  def flush(self) -> np.ndarray:
    """Waits for the devices and writes the records that are complete.

    Returns:
      float32 [k, 2], the `window` of a position here.

    Raises:
      DivergedError: the loss of one of these steps is not finite.
    """
    self._read(len(self._pending))
    return np.array(self._window, np.float32).reshape(-1, len(METRICS))

  def finish(self) -> None:
    """Writes a record of what is left; waits for the devices."""
    if len(self.flush()):
      self._write(len(self._window))

  def _count_oldest(self) -> int:
    """Counts what holds the oldest `log_every` steps; never what was sent last."""
    steps = itertools.accumulate(count for _, count in self._pending[:-1])
    too_few = itertools.takewhile(lambda done: done < self._log_every, steps)
    return min(len(list(too_few)) + 1, len(self._pending) - 1)

  def _read(self, num_sent: int) -> None:
    """Takes the oldest steps from the devices; when there are enough, writes a record."""
    if num_sent == len(self._pending):
      jax.block_until_ready(self._pending)
    self._read_clock()
    for metrics in fetch([metrics for metrics, _ in self._pending[:num_sent]]):
      self._window.extend(np.stack([np.ravel(metrics[name]) for name in METRICS], axis=1))
    del self._pending[:num_sent]
    # Without a step there is no speed; those of an earlier process wait for the next one.
    while self._sent and len(self._window) >= self._log_every:
      self._write(self._log_every)
    self._check_finite(len(self._window))

  def _read_clock(self) -> None:
    """Sets the speed from the steps that were done since the last reading."""
    under_way = itertools.takewhile(
      lambda sent: not sent[0]["loss"].is_ready(), reversed(self._pending)
    )
    done, now = self._sent - sum(count for _, count in under_way), time.monotonic()
    if done == self._done_then:
      return
    self._seconds_per_step = (now - self._timed_from) / (done - self._done_then)
    self._input_share = self._input_seconds / (now - self._timed_from)
    self._done_then, self._timed_from, self._input_seconds = done, now, 0.0

  def _check_finite(self, num_steps: int) -> None:
    """Raises DivergedError if the loss of one of the first steps of the window is not."""
    finite = np.isfinite([metrics[0] for metrics in self._window[:num_steps]])
    if finite.all():
      return
    place = int(np.argmin(finite))
    done = self._reported + place  # steps of the phase before that one
    raise DivergedError(
      f"the loss became {self._window[place][0]} in state {self._state.index}, epoch "
      f"{done // self._phase.steps_per_epoch + 1}, step {self._steps_before + done + 1}"
    )

  def _write(self, num_steps: int) -> None:
    self._check_finite(num_steps)
    phase = self._phase
    window, self._window = self._window[:num_steps], self._window[num_steps:]
    self._reported += num_steps
    last_epoch = (self._reported - 1) // phase.steps_per_epoch
    means = np.mean(window, axis=0)
    record = {
      "state": self._state.index,
      "phase": phase.number,
      "epoch": last_epoch + 1,
      "step": self._steps_before + self._reported,
      **{name: float(mean) for name, mean in zip(METRICS, means, strict=True)},
      "learning_rate": phase.learning_rate_at(last_epoch),
      "images_per_second": phase.batch_size / self._seconds_per_step,
      "input_wait": self._input_share,
    }
    if self._session.recorder is not None:
      self._session.recorder.add(record)
    if self._session.display is not None:
      images = num_steps * phase.batch_size
      self._session.display.show(record, epochs=phase.epochs, images=images)
