"""Starts runs as processes, several at a time, and tells how each ended."""

import concurrent.futures
import contextlib
import enum
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from ssil_jax.commands import command_line
from ssil_jax.commands.planning import Job

# -P: without the current folder, which a method of one's own is looked up in last.
_RUN = (sys.executable, "-P", "-m", "ssil_jax.commands", "run")
INTERRUPTED = 128 + signal.SIGINT  # what a shell reports after Ctrl-C
_STOPPED = {  # exit codes of runs that saved first, and of those that could not
  code
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
  for code in (128 + number, -number)
}


class Outcome(enum.Enum):
  """Tells how a job ended."""

  DONE = enum.auto()
  STOPPED = enum.auto()  # by a signal
  FAILED = enum.auto()
  NOT_RUN = enum.auto()


class Ended(NamedTuple):
  """Says how a job ended and, where it failed or was not run, why."""

  outcome: Outcome
  reason: str = ""  # a line


def python_path() -> str:
  """Returns a PYTHONPATH by which a process finds this package, installed or not."""
  root = str(pathlib.Path(__file__).resolve().parents[2])
  return os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))


class Runner:
  """Runs jobs, several at a time, each on its share of the cores."""

  def __init__(self, num_jobs: int, command: Sequence[str] = _RUN):
    """Takes how many run at a time, and the command that takes a job's arguments."""
    self._num_jobs = num_jobs
    self._command = [*command]
    self._lock = threading.Lock()  # of the two below
    self._stopped = False
    self._processes: set[subprocess.Popen] = set()
    self._ended: dict[pathlib.Path, concurrent.futures.Future] = {}
    self._shares: queue.SimpleQueue = queue.SimpleQueue()
    if hasattr(os, "sched_getaffinity"):  # not on macOS
      cores = sorted(os.sched_getaffinity(0))
      for number in range(num_jobs):
        self._shares.put(cores[number::num_jobs])

  def run(
    self, jobs: Sequence[Job], *, finished: Collection[pathlib.Path] = ()
  ) -> list[Ended]:
    """Returns how each ended; on KeyboardInterrupt, interrupts the runs, too.

    Args:
      jobs: the runs, a lender before those that borrow from it.
      finished: work directories of those that are not started, as there is nothing to do.
    """
    with concurrent.futures.ThreadPoolExecutor(
      self._num_jobs, initializer=self._take_share
    ) as pool:
      try:
        for job in jobs:
          done = job.workdir in finished
          run = (lambda job: Ended(Outcome.DONE)) if done else self._run
          self._ended[job.workdir] = pool.submit(run, job)
        ended = [future.result() for future in self._ended.values()]
      except KeyboardInterrupt:
        self._stop(signal.SIGINT)
        print("the runs stop after their step; Ctrl-C again kills them", file=sys.stderr)
        try:
          concurrent.futures.wait(self._ended.values())
        except KeyboardInterrupt:
          self._stop(signal.SIGKILL)
        raise
    return ended

  def _stop(self, number: signal.Signals) -> None:
    """Starts nothing more, and sends a signal to what runs."""
    with self._lock:
      self._stopped = True
      for process in self._processes:
        process.send_signal(number)

  def _take_share(self) -> None:
    # Children inherit the cores of the thread that starts them.
    if not self._shares.empty():
      os.sched_setaffinity(0, self._shares.get())

  def _run(self, job: Job) -> Ended:
    """Returns how the job ended; its output goes to WORKDIR.log."""
    name = job.workdir.name
    # The lender was submitted earlier, so that it has been started.
    if job.lender and self._ended[job.lender].result().outcome is not Outcome.DONE:
      if not self._stopped:
        print(f"{name} needs {job.lender.name}, and is not run", flush=True)
      return Ended(Outcome.NOT_RUN, f"{job.lender.name} is not done")
    log = f"{job.workdir}.log"
    try:
      with self._lock:
        if self._stopped:
          return Ended(Outcome.NOT_RUN, "all was stopped")
        with open(log, "a", encoding="utf-8") as file:
          start = file.tell()
          print(f"{name} ...", flush=True)
          process = subprocess.Popen(
            [*self._command, *job.arguments],
            env={**os.environ, "PYTHONPATH": python_path()},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that Ctrl-C reaches it once, from here
          )
        self._processes.add(process)
      code = process.wait()
      with self._lock:
        self._processes.remove(process)
    except OSError as error:
      print(f"{name} cannot be run: {error}", flush=True)
      return Ended(Outcome.FAILED, command_line.printable(str(error)))
    if code == 0:
      print(f"{name} done", flush=True)
      return Ended(Outcome.DONE)
    if code in _STOPPED:
      print(f"{name} stopped", flush=True)
      return Ended(Outcome.STOPPED)
    reasons = _reasons(log, start)
    failed = f"{name} failed with exit code {code}, see {log}"
    # At once: other threads print, too.
    print("\n  ".join([f"{failed}:" if reasons else failed, *reasons]), flush=True)
    first = reasons[0].removeprefix("error: ") if reasons else f"exit code {code}"
    return Ended(Outcome.FAILED, first)


def _reasons(log: str, start: int) -> list[str]:
  """Returns the error lines after `start` in a log; if there are none, its last line."""
  try:
    with open(log, encoding="utf-8", errors="replace") as file:
      file.seek(start)
      lines = [line for line in file.read().split("\n") if line.strip()]
  except OSError:
    return []  # its name is said
  errors = [line for line in lines if line.startswith("error: ")]
  return [command_line.printable(line) for line in errors or lines[-1:]]


@contextlib.contextmanager
def signals_as_interrupts() -> Iterator[None]:
  """Makes SIGTERM and a closed terminal raise KeyboardInterrupt, as Ctrl-C does."""
  numbers = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]
  before = {number: signal.getsignal(number) for number in numbers}
  for number in numbers:
    # nohup ignores SIGHUP. A script's background job ignores SIGINT, and so would its runs.
    if number == signal.SIGINT or before[number] != signal.SIG_IGN:
      signal.signal(number, signal.default_int_handler)
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
