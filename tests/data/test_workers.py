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
from folders import folder_of, open_folder

from ssil_jax.data import loader, workers
from ssil_jax.errors import DataError
from ssil_jax.sampling import RATIO_PRESERVING, Key, Pool


def streamed_batches(folder):
  folder_of(folder, ("a",), each=3, shape=(80, 90))
  return loader.TrainBatches(
    dataset=open_folder(folder, image_size=72),
    pool=Pool(new=np.array([0, 1]), memory=np.array([2])),
    sampling=RATIO_PRESERVING,
    key=Key(seed=0, state=2, phase=0),
    batch_size_new=2,
    batch_size_memory=1,
    num_devices=1,
    num_steps=100_000,
  )


def test_workers_make_the_same_batches_and_the_death_of_one_is_an_error_at_once(tmp_path):
  expected = streamed_batches(tmp_path)
  batches = loader.prefetched(expected, lambda batch: batch, num_processes=2)
  with contextlib.closing(batches):
    for step in range(30):  # more than are made ahead
      for got, wanted in zip(next(batches), expected[step], strict=True):
        assert got.dtype == wanted.dtype
        assert np.array_equal(got, wanted)
      if step == 2:
        processes = multiprocessing.active_children()
        assert len(processes) == 2
        # What a terminal or a scheduler sends to all processes leaves them alone.
        for process in processes:
          os.kill(process.pid, signal.SIGINT)
          os.kill(process.pid, signal.SIGTERM)
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
  batches = loader.prefetched(Numbers(), lambda batch: batch, num_processes=1)
  next(batches)
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
      worker = int(main.stdout.readline())
      assert is_running(worker)
    finally:
      main.kill()
  until = time.monotonic() + 30
  while is_running(worker):
    assert time.monotonic() < until
    time.sleep(0.05)


class Failing:
  """Batches that end with an error."""

  def __init__(self, message):
    self.message, self.closed = message, False

  def __iter__(self):
    yield 1
    raise RuntimeError(self.message)

  def close(self):
    self.closed = True


DIED = "Worker process was terminated unexpectedly with exit code"


@pytest.mark.parametrize(
  ("message", "error", "expected"),
  [
    (f"{DIED} -15", DataError, "of --input_processes=3 was killed by SIGTERM; rerun the"),
    (f"{DIED} -63", DataError, "of --input_processes=3 was killed by signal 63; rerun the"),
    (f"{DIED} 1", DataError, "of --input_processes=3 ended with exit code 1; rerun the"),
    ("out of wits", RuntimeError, "out of wits"),
  ],
)
def test_how_a_worker_died_is_said_and_other_errors_stay(message, error, expected):
  failing = Failing(message)
  with pytest.raises(error, match=expected):
    list(workers.watched(failing, 3))
  assert failing.closed
