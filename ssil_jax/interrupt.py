"""Signals that end a run, at a moment that suits it."""

import os
import signal


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
        raise Interrupted(number)
      return  # a scheduler may repeat itself while the checkpoint is written
    self._requested = number
    # Not print: the signal may have come in the middle of another one.
    os.write(2, f"{self._notice}; Ctrl-C again stops at once\n".encode())
