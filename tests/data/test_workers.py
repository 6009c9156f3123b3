"""Worker processes that die, and main processes that die before their workers."""

import contextlib
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from ssil_jax.data import loader, workers
from ssil_jax.errors import DataError


def numbers():
  """Batches that are their numbers."""

  class Numbers:  # of no module, so that workers need not import these tests
    def __len__(self):
      return 100_000

    def __getitem__(self, number):
      return np.full(1000, number)

  return Numbers()


def as_they_are(batch):
  return batch


def test_the_death_of_a_worker_is_an_error_at_once():
  batches = loader.prefetched(numbers(), as_they_are, num_processes=2)
  with contextlib.closing(batches):
    assert [next(batches)[0], next(batches)[0]] == [0, 1]  # one of each worker
    processes = multiprocessing.active_children()
    assert len(processes) == 2
    # What a terminal or a scheduler sends to all processes leaves them alone.
    for process in processes:
      os.kill(process.pid, signal.SIGINT)
      os.kill(process.pid, signal.SIGTERM)
    assert [next(batches)[0] for _ in range(30)] == list(range(2, 32))
    os.kill(processes[0].pid, signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(DataError) as caught:
      list(batches)
    assert time.monotonic() - started < 30  # it is 1; without an end it would be for ever
  assert str(caught.value) == (
    "a worker process of --input_processes=2 was killed by SIGKILL; rerun the command to "
    "resume, with fewer of them or --input_processes=0 if memory was short"
  )
  assert multiprocessing.active_children() == []


SCRIPT = """
import multiprocessing, time
import numpy as np
from ssil_jax.data import loader

class Numbers:
  def __len__(self): return 100_000
  def __getitem__(self, number): return np.full(1000, number)

if __name__ == "__main__":
  batches = loader.prefetched(Numbers(), lambda batch: batch, num_processes=2)
  next(batches), next(batches)
  print(*(p.pid for p in multiprocessing.active_children()), flush=True)
  time.sleep(600)
"""


def is_running(pid):
  try:
    state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
  except (FileNotFoundError, ProcessLookupError):
    return False
  return state != "Z"


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_workers_end_when_their_main_process_is_killed(tmp_path):
  script = tmp_path / "script.py"
  script.write_text(SCRIPT)
  environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
  with subprocess.Popen(
    [sys.executable, script],
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
    env=environment,
  ) as main:
    try:
      pids = [int(pid) for pid in main.stdout.readline().split()]
      assert len(pids) == 2
      assert all(map(is_running, pids))
    finally:
      main.kill()
  until = time.monotonic() + 30
  while any(map(is_running, pids)):
    assert time.monotonic() < until
    time.sleep(0.05)


@pytest.mark.parametrize(
  ("code", "expected"),
  [
    (-15, "was killed by SIGTERM"),
    (-63, "was killed by signal 63"),
    (1, "ended with exit code 1"),
  ],
)
def test_how_a_worker_died_is_said(code, expected):
  class Dying:
    closed = False

    def __iter__(self):
      yield 1
      raise RuntimeError(
        f"Worker process was terminated unexpectedly with exit code {code}"
      )

    def close(self):
      self.closed = True

  dying = Dying()
  with pytest.raises(DataError, match=f"of --input_processes=3 {expected}; rerun the"):
    list(workers.watched(dying, 3))
  assert dying.closed


def test_other_errors_stay_as_they_are():
  class Failing:
    def __len__(self):
      return 3

    def __getitem__(self, number):
      raise RuntimeError("out of wits")

  with pytest.raises(RuntimeError, match="out of wits"):
    list(loader.prefetched(Failing(), as_they_are, num_processes=1))
