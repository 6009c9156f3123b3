"""When a checkpoint is saved inside an incremental state, and when the run stops."""

import time
from collections.abc import Callable

from ssil_jax.distributed import collectives
from ssil_jax.distributed.preemption import Interrupted
from ssil_jax.training.checkpoint import Checkpoints, Progress
from ssil_jax.training.recorder import Journal

_AGREED_EVERY = 50  # calls


class Keeper:
  """Asked between steps whether to save, or to save and stop.

  With several processes all must save after the same step. A signal is agreed upon by
  `check_interrupt`. The time is told by one of them, now and then, for it costs the others
  a wait.
  """

  def __init__(
    self,
    checkpoints: Checkpoints,
    journal: Journal,
    *,
    minutes: float,
    check_interrupt: Callable[[], None],
  ):
    """Counts the time from now on.

    Args:
      checkpoints: where to save.
      journal: on the disk before every checkpoint.
      minutes: between two checkpoints; 0 for none inside a state.
      check_interrupt: raises Interrupted, after the same call in all processes.
    """
    self._checkpoints = checkpoints
    self._journal = journal
    self._seconds = 60 * minutes
    self._check_interrupt = check_interrupt
    self._calls = 0
    self._saved_at = time.monotonic()

  def check(self) -> None:
    """Raises Interrupted if the run is to stop."""
    self._check_interrupt()

  def visit(self, progress: Callable[[], Progress]) -> None:
    """Saves `progress()` if it is time to.

    Raises:
      Interrupted: the run is to stop, and is saved.
    """
    try:
      self.check()
    except Interrupted:
      self.save(progress())
      raise
    self._calls += 1
    if self._is_time():
      self.save(progress(), wait=False)

  def _is_time(self) -> bool:
    if not self._seconds:
      return False
    late = time.monotonic() - self._saved_at >= self._seconds
    if collectives.is_multiprocess():
      return self._calls % _AGREED_EVERY == 0 and collectives.broadcast_flag(late)
    return late

  def save(self, progress: Progress, *, wait: bool = True) -> None:
    """Saves a run; without `wait`, in the background."""
    self._journal.sync()
    self._checkpoints.save(progress)
    if wait:
      self._checkpoints.wait()
    self._saved_at = time.monotonic()
