"""Signals that end a run of several processes, all after the same step."""

import os
import signal

from ssil_jax import parallel
from ssil_jax.interrupt import Interrupted, Interrupts


class SharedInterrupts:
  """As `Interrupts`, where jax takes SIGTERM and tells all processes; a context manager."""

  def __init__(self, notice: str = "all processes stop after this step"):
    """Says `notice` at Ctrl-C."""
    self._notice = notice
    self._asked = False
    self._calls = 0

  def __enter__(self) -> "SharedInterrupts":
    self._before = signal.signal(signal.SIGINT, self._handle)
    return self

  def __exit__(self, *exc_info) -> None:
    signal.signal(signal.SIGINT, self._before)

  def check(self) -> None:
    """Raises Interrupted in all processes at the same call, soon after a signal to one."""
    self._calls += 1
    if parallel.stop_reached(self._calls):
      raise Interrupted(signal.SIGTERM)

  def _handle(self, signum, frame) -> None:
    if self._asked:
      raise Interrupted(signal.Signals(signum))
    self._asked = True
    os.write(2, f"{self._notice}; Ctrl-C again stops at once\n".encode())
    parallel.ask_to_stop()


def interrupts() -> Interrupts | SharedInterrupts:
  """What suits the run; after the processes have found each other."""
  return SharedInterrupts() if parallel.stops_together() else Interrupts()
