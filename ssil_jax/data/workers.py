"""Batches made by worker processes of grain, which may die, and which must not stay behind.

grain notices that a worker died once it waits for its next batch. What passes between the
processes is shorter than a pipe takes at once, for arrays go through shared memory: no
worker that is killed leaves half a message, for which this process would wait for ever.
"""

import multiprocessing
import os
import re
import signal
import threading
from typing import Any

import grain
from absl import flags

from ssil_jax.errors import DataError

_DIED = re.compile(r"Worker process was terminated unexpectedly with exit code (-?\d+)")
_SECONDS_AFTER_SIGTERM = 30


def in_processes(
  batches: grain.IterDataset, num_processes: int, *, ahead: int
) -> grain.IterDataset:
  """Has other processes make the batches.

  Their iterators raise DataError when a worker process has died.

  Args:
    batches: of arrays.
    num_processes: how many.
    ahead: batches that each of them makes ahead.
  """
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # grain reads its own flags, and absl insists
  options = grain.MultiprocessingOptions(
    num_workers=num_processes, per_worker_buffer_size=ahead
  )
  return _Watched(batches.mp_prefetch(options, _begin_worker), num_processes)


def _begin_worker(number: int, num_processes: int) -> None:
  """Ends the worker when this process ends, and not when it is only interrupted."""
  del number, num_processes
  # A terminal and a scheduler send their signals to all processes, and the main process
  # may want some batches still before it stops the workers.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_SECONDS_AFTER_SIGTERM))
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  multiprocessing.parent_process().join()
  os._exit(1)


class _Watched(grain.IterDataset):
  """Batches of worker processes; it makes a DataError of the death of one of them."""

  def __init__(self, parent: grain.IterDataset, num_processes: int):
    super().__init__(parent)
    self._num_processes = num_processes

  def __iter__(self) -> grain.DatasetIterator:
    return _WatchedIterator(iter(self._parent), self._num_processes)


class _WatchedIterator(grain.DatasetIterator):
  def __init__(self, parent: grain.DatasetIterator, num_processes: int):
    super().__init__(parent)
    self._num_processes = num_processes

  def __next__(self) -> Any:
    try:
      return next(self._parent)
    except RuntimeError as error:
      died = _DIED.search(str(error))
      if died is None:
        raise
      raise DataError(
        f"a worker process of --input_processes={self._num_processes} "
        f"{_how_it_died(int(died[1]))}; rerun the command to resume, with fewer of them or "
        "--input_processes=0 if memory was short"
      ) from error

  def get_state(self) -> Any:
    return self._parent.get_state()

  def set_state(self, state: Any) -> None:
    self._parent.set_state(state)


def _how_it_died(exit_code: int) -> str:
  if exit_code >= 0:
    return f"ended with exit code {exit_code}"
  try:
    return f"was killed by {signal.Signals(-exit_code).name}"
  except ValueError:
    return f"was killed by signal {-exit_code}"
