"""Turns the metrics of single steps into records, without making the devices wait."""

import itertools
import math
import time
from typing import Any

import jax
import numpy as np

from ssil_jax import parallel
from ssil_jax.errors import DivergedError
from ssil_jax.journal import Journal
from ssil_jax.plan import PhasePlan
from ssil_jax.progress import ProgressDisplay


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
    log_every: int,
    journal: Journal,
    display: ProgressDisplay,
  ):
    self._plan = plan
    self._phase = phase
    self._first_step = first_step
    self._log_every = log_every
    self._journal = journal
    self._display = display
    self._pending: list[dict[str, Any]] = []
    self._reported = 0
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
      self._report(self._log_every)

  def finish(self) -> None:
    """Reports what is left; waits for the devices."""
    self._report(len(self._pending))

  def _report(self, num_steps: int) -> None:
    """Writes the oldest steps, a record for every `log_every` of them."""
    if num_steps == len(self._pending):
      jax.block_until_ready(self._pending)
    self._read_clock()
    metrics = parallel.fetch(self._pending[:num_steps])
    del self._pending[:num_steps]
    for start in range(0, num_steps, self._log_every):
      self._write(metrics[start : start + self._log_every])

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

  def _write(self, window: list[dict[str, Any]]) -> None:
    plan = self._plan
    self._reported += len(window)
    last_epoch = (self._reported - 1) // plan.steps_per_epoch
    batch_size = sum(plan.group_sizes)
    record = {
      "state": plan.state.index,
      "phase": self._phase,
      "epoch": last_epoch + 1,
      "step": self._first_step + self._reported,
      "loss": float(np.mean([m["loss"] for m in window])),
      "top1": float(np.mean([m["top1"] for m in window])),
      "learning_rate": plan.phase.learning_rate_at(last_epoch),
      "images_per_second": batch_size / self._seconds_per_step,
      "input_wait": self._input_share,
    }
    if not math.isfinite(record["loss"]):
      raise DivergedError(
        f"the loss became {record['loss']} in state {record['state']}, epoch "
        f"{record['epoch']}, at or before step {record['step']}: lower "
        "--learning_rate; the states before this one are saved"
      )
    self._journal.train(record)
    self._display.update(record, epochs=plan.phase.epochs, images=len(window) * batch_size)
