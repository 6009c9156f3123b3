"""Ctrl-C at a moment that suits the run."""

import signal
import sys


class Interrupts:
  """While it is open, Ctrl-C takes effect at the next `check`; a context manager.

  Python would raise KeyboardInterrupt wherever it stands: inside a library's callback it is
  lost, and inside XLA's compiler it ends in a crash. A second Ctrl-C is obeyed at once.
  """

  def __init__(self, notice: str = "stopping after this step"):
    """Says `notice` when Ctrl-C is pressed."""
    self._notice = notice
    self._requested = False

  def __enter__(self) -> "Interrupts":
    self._previous = signal.signal(signal.SIGINT, self._handle)
    return self

  def __exit__(self, *exc_info) -> None:
    signal.signal(signal.SIGINT, self._previous)

  def check(self) -> None:
    """Raises KeyboardInterrupt if Ctrl-C was pressed."""
    if self._requested:
      raise KeyboardInterrupt

  def _handle(self, signum, frame) -> None:
    if self._requested:
      raise KeyboardInterrupt
    self._requested = True
    print(f"{self._notice}; Ctrl-C again stops at once", file=sys.stderr)
