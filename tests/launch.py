"""Runs a script as several processes on this machine."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

from folders import ROOT

LONGEST = 300.0  # seconds; what is stuck fails then


def free_port():
  with socket.socket() as unused:
    unused.bind(("127.0.0.1", 0))
    return unused.getsockname()[1]


@contextlib.contextmanager
def started(count, script, *arguments, log_folder, each=None):
  """`count` processes, which do not outlive the context; their output goes to files.

  Args:
    each: number of a process -> (its own flags, its environment); the default names them.
  """
  address = f"--coordinator_address=127.0.0.1:{free_port()}"
  each = each or (
    lambda number: ([address, f"--num_processes={count}", f"--process_id={number}"], {})
  )
  processes = []
  try:
    for number in range(count):
      flags, env = each(number)
      with open(log_folder / f"output{number}", "w") as log:
        process = subprocess.Popen(
          [sys.executable, ROOT / "tests" / script, *arguments, *flags],
          stdout=log,
          stderr=subprocess.STDOUT,
          start_new_session=True,
          # Compiling well would take longer than it saves.
          env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
            **env,
          },
        )
      processes.append(process)
    yield processes
  finally:
    for process in processes:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
      process.wait()


def ends(processes, seconds=LONGEST):
  """Waits for all; their exit codes."""
  deadline = time.monotonic() + seconds
  return [p.wait(max(deadline - time.monotonic(), 0.01)) for p in processes]


def output(log_folder, number):
  """What a process has said, less what gloo says of itself."""
  lines = (log_folder / f"output{number}").read_text().splitlines()
  return "\n".join(line for line in lines if "peer ranks" not in line)


def wait_until(true, processes, seconds=LONGEST):
  """Waits for a condition while all processes run."""
  deadline = time.monotonic() + seconds
  while not true():
    assert all(p.poll() is None for p in processes), "a process has ended"
    assert time.monotonic() < deadline, "it did not happen"
    time.sleep(0.01)
