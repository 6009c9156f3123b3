"""Signals that end a run between two steps, in all of its processes after the same one."""

import contextlib
import itertools
import os
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

# Jax wants questions about pre-emption to be numbered, upwards for as long as processes are
# together, perhaps for several runs.
_QUESTIONS = itertools.count(1)


class Interrupted(KeyboardInterrupt):
  """A signal asked the program to stop."""

  def __init__(self, number: signal.Signals):
    super().__init__(f"stopped by {number.name}")
    self.exit_code = 128 + number  # as a shell reports it


@contextlib.contextmanager
def interrupts(notice: str = "stopping after this step") -> Iterator[Callable[[], None]]:
  """Lets Ctrl-C and SIGTERM take effect where the program asks for them.

  SIGTERM is what a scheduler or a cloud sends before it takes the machine away.

  Python would raise KeyboardInterrupt wherever it stands: inside a library's callback it is
  lost, and inside XLA's compiler it ends in a crash. A second Ctrl-C is obeyed at once.

  Call it when the processes of the run have joined. Of several, each must ask as often as
  the others: a signal to one stops all after the same question.

  Args:
    notice: what is said when a signal arrives.

  Yields:
    A function to be called between two steps; it raises Interrupted after a signal.
  """
  # Then jax handles SIGTERM, and tells all processes of it; nothing else may.
  shared = jax.distributed.is_initialized()
  requested: list[signal.Signals] = []

  def handle(signum, frame) -> None:
    number = signal.Signals(signum)
    if requested and number == signal.SIGINT:
      raise KeyboardInterrupt  # not `Interrupted`: nothing is to be saved any more
    if requested:
      return  # a scheduler may repeat itself while the checkpoint is written
    requested.append(number)
    # Not print: the signal may have come in the middle of another one.
    os.write(2, f"{notice}; Ctrl-C again stops at once\n".encode())
    if shared:
      os.kill(os.getpid(), signal.SIGTERM)

  def check() -> None:
    if not shared:
      if requested:
        raise Interrupted(requested[0])
    elif multihost_utils.reached_preemption_sync_point(next(_QUESTIONS)):
      raise Interrupted(signal.SIGTERM)

  numbers = [signal.SIGINT] if shared else [signal.SIGINT, signal.SIGTERM]
  before = {number: signal.signal(number, handle) for number in numbers}
  try:
    yield check
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
