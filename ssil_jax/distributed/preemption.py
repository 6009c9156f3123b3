"""Signals that end a run between two steps, in all of its processes after the same one."""

import os
import signal

import jax
from jax.experimental import multihost_utils


class Interrupted(KeyboardInterrupt):
  """A signal asked the program to stop."""

  def __init__(self, number: signal.Signals):
    super().__init__(f"stopped by {number.name}")
    self.exit_code = 128 + number  # as a shell reports it


class Interrupts:
  """Lets Ctrl-C and SIGTERM take effect at the next `check`; a context manager.

  SIGTERM is what a scheduler or a cloud sends before it takes the machine away.

  Python would raise KeyboardInterrupt wherever it stands: inside a library's callback it is
  lost, and inside XLA's compiler it ends in a crash. A second Ctrl-C is obeyed at once.
  """

  def __init__(self, notice: str = "stopping after this step"):
    """Says `notice` when a signal arrives."""
    self._notice = notice
    self._requested: signal.Signals | None = None

  def __enter__(self) -> "Interrupts":
    self._before = {
      number: signal.signal(number, self._handle)
      for number in (signal.SIGINT, signal.SIGTERM)
    }
    return self

  def __exit__(self, *exc_info) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def check(self) -> None:
    """Raises Interrupted if a signal has arrived."""
    if self._requested is not None:
      raise Interrupted(self._requested)

  def _handle(self, signum, frame) -> None:
    number = signal.Signals(signum)
    if self._requested is not None:
      if number == signal.SIGINT:
        raise KeyboardInterrupt  # not `Interrupted`: nothing is to be saved any more
      return  # a scheduler may repeat itself while the checkpoint is written
    self._requested = number
    # Not print: the signal may have come in the middle of another one.
    os.write(2, f"{self._notice}; Ctrl-C again stops at once\n".encode())


def stops_together() -> bool:
  """Returns whether jax handles SIGTERM, for `stop_reached`; nothing else may then."""
  return jax.distributed.is_initialized()


def ask_to_stop() -> None:
  """Makes `stop_reached` return true soon, in all processes."""
  os.kill(os.getpid(), signal.SIGTERM)


def stop_reached(step: int) -> bool:
  """Returns whether all processes stop before this step, because one received SIGTERM.

  Args:
    step: steps done in the whole run; every process asks before every step.
  """
  return multihost_utils.reached_preemption_sync_point(step)


class SharedInterrupts:
  """Like `Interrupts`, where jax handles SIGTERM and tells all processes of it."""

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
    if stop_reached(self._calls):
      raise Interrupted(signal.SIGTERM)

  def _handle(self, signum, frame) -> None:
    if self._asked:
      raise KeyboardInterrupt
    self._asked = True
    os.write(2, f"{self._notice}; Ctrl-C again stops at once\n".encode())
    ask_to_stop()


def interrupts() -> Interrupts | SharedInterrupts:
  """Returns the one that fits the run; call it when the processes have joined."""
  return SharedInterrupts() if stops_together() else Interrupts()
