"""Turns the metrics of single steps into records, without making the devices wait."""

import itertools
import math
import time
from typing import Any

import jax
import numpy as np

from ssil_jax.errors import DivergedError
from ssil_jax.progress import ProgressDisplay
from ssil_jax.training import devices
from ssil_jax.training.plan import PhasePlan
from ssil_jax.training.recorder import Journal

_METRICS = ("loss", "top1")  # of a step, in this order in a checkpoint
NO_STEPS = np.zeros((0, len(_METRICS)), np.float32)


class Meter:
  """Collects the step metrics of one phase and reports them `log_every` steps at a time.

  Metrics stay on the devices, and are read when as many newer steps have been sent, so
  that reading them does not wait for the step just sent.
  """

  def __init__(
    self,
    plan: PhasePlan,
    *,
    phase: int,
    first_step: int,
    steps_done: int,
    window: np.ndarray,
    log_every: int,
    journal: Journal,
    display: ProgressDisplay,
  ):
    """Goes on with a phase.

    Args:
      plan: of the phase.
      phase: its number in its state, from 0.
      first_step: steps of the run before the phase.
      steps_done: steps of the phase that are done.
      window: float32 [k, 2], loss and top-1 of the last of them, without a record yet.
      log_every: steps of a record.
      journal: takes the records.
      display: shows them.
    """
    self._plan = plan
    self._phase = phase
    self._first_step = first_step
    self._log_every = log_every
    self._journal = journal
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

  def settle(self) -> np.ndarray:
    """Waits for the devices and reports what fills a record.

    Returns:
      float32 [k, 2], the `window` of a meter that goes on from here.

    Raises:
      DivergedError: the loss of one of these steps is not finite.
    """
    self._read(len(self._pending))
    self._check_finite()
    return np.array(self._window, np.float32).reshape(-1, len(_METRICS))

  def finish(self) -> None:
    """Reports what is left; waits for the devices."""
    self._read(len(self._pending))
    if self._window:
      self._write(len(self._window))

  def _read(self, num_steps: int) -> None:
    """Takes the oldest steps from the devices; when there are enough, writes a record."""
    if num_steps == len(self._pending):
      jax.block_until_ready(self._pending)
    self._read_clock()
    for metrics in devices.fetch(self._pending[:num_steps]):
      self._window.append(np.array([metrics[name] for name in _METRICS]))
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
    plan = self._plan
    window, self._window = self._window[:num_steps], self._window[num_steps:]
    self._reported += num_steps
    last_epoch = (self._reported - 1) // plan.steps_per_epoch
    batch_size = sum(plan.group_sizes)
    means = np.mean(window, axis=0)
    record = {
      "state": plan.state.index,
      "phase": self._phase,
      "epoch": last_epoch + 1,
      "step": self._first_step + self._reported,
      **{name: float(mean) for name, mean in zip(_METRICS, means, strict=True)},
      "learning_rate": plan.phase.learning_rate_at(last_epoch),
      "images_per_second": batch_size / self._seconds_per_step,
      "input_wait": self._input_share,
    }
    self._journal.train(record)
    self._display.update(record, epochs=plan.phase.epochs, images=num_steps * batch_size)

  def _check_finite(self) -> None:
    finite = np.isfinite([metrics[0] for metrics in self._window])
    if finite.all():
      return
    place = int(np.argmin(finite))
    done = self._reported + place  # steps of the phase before that one
    raise DivergedError(
      f"the loss became {self._window[place][0]} in state {self._plan.state.index}, epoch "
      f"{done // self._plan.steps_per_epoch + 1}, step {self._first_step + done + 1}"
    )
