"""Batches made by worker processes of grain, which may die, and which must not stay behind.

grain notices that a worker died once it waits for its next batch. Arrays go through shared
memory, and the rest fits a pipe: a worker that is killed leaves no half message, for which
this process would wait for ever.
"""

import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Generator
from typing import Any

import grain
from absl import flags

from ssil_jax.errors import DataError

_DIED = re.compile(r"Worker process was terminated unexpectedly with exit code (-?\d+)")
_SECONDS_AFTER_SIGTERM = 30


def in_processes(
  batches: grain.IterDataset, num_processes: int, *, ahead: int
) -> grain.IterDataset:
  """Has other processes make the batches, of arrays; each of them makes some `ahead`."""
  flags.FLAGS.mark_as_parsed()  # grain reads its own flags, and absl insists
  options = grain.MultiprocessingOptions(
    num_workers=num_processes, per_worker_buffer_size=ahead
  )
  return batches.mp_prefetch(options, _begin_worker)


def watched(
  batches: grain.DatasetIterator, num_processes: int
) -> Generator[Any, None, None]:
  """Yields batches of `in_processes`, and closes them in the end.

  Raises DataError if a worker process has died.
  """
  try:
    yield from batches
  except RuntimeError as error:
    died = _DIED.search(str(error))
    if died is None:
      raise
    how, code = f"ended with exit code {died[1]}", int(died[1])
    if code < 0:
      names = {number.value: number.name for number in signal.Signals}
      how = f"was killed by {names.get(-code, f'signal {-code}')}"
    raise DataError(
      f"a worker process of --input_processes={num_processes} {how}; rerun the command to "
      "resume, with fewer of them or --input_processes=0 if memory was short"
    ) from error
  finally:
    batches.close()


def _begin_worker(*_: int) -> None:
  """Ends the worker when this process ends, and not when it is only interrupted."""
  # A terminal and a scheduler send their signals to all processes, and the main process
  # may want some batches still before it stops the workers.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_SECONDS_AFTER_SIGTERM))
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  multiprocessing.parent_process().join()
  os._exit(1)
