"""Times the step of `step.py` and PyTorch's eager one, each in a process of its own.

  python benchmarks/step_apart.py --rounds=10 --json=FILE

In one process both would keep freed memory, or neither; here PyTorch is measured as it
comes, and with memory that is kept (`system.keep_freed_memory`), which ours has always. The
processes take turns of `--seconds`. CPU times are the least noisy on shared machines.
"""

import argparse
import contextlib
import multiprocessing
import pathlib
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import measured
import step as step_benchmark

KINDS = "PyTorch", "PyTorch, keeping memory", "ssil_jax"
SIZE, PRECISION = 32, "float32"


def serve(kind: str, args: argparse.Namespace, connection: Connection) -> None:
  """Sends the environment; then, for each number of steps, seconds a step.

  These are wall time, CPU time of the program, and CPU time of the system.
  """
  step_benchmark.prepare(args, keeps_memory=kind != KINDS[0])
  own = step_benchmark.ours(args, SIZE, PRECISION)
  step, wait = own.step, own.wait
  if kind != KINDS[-1]:
    [(step, wait)] = step_benchmark.peers(args, SIZE, PRECISION, own).values()
  for _ in range(2):  # compiles; warms up
    step()
    wait()
  environment = own.session.devices.describe()
  if kind != KINDS[-1]:
    environment |= measured.torch_environment()
  connection.send(environment)
  with contextlib.suppress(EOFError):  # who asks has ended
    while True:
      count = connection.recv()
      used, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
      for _ in range(count):
        step()
      wait()
      wall, now = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
      spent = wall, now.ru_utime - used.ru_utime, now.ru_stime - used.ru_stime
      connection.send([seconds / count for seconds in spent])


class Child(NamedTuple):
  """A process that serves, and what it is asked through."""

  kind: str
  process: SpawnProcess
  connection: Connection

  def answer(self) -> Any:
    """Returns what it sends next; ends this process if it has ended."""
    try:
      return self.connection.recv()
    except (EOFError, ConnectionResetError):
      self.process.join()
      code = self.process.exitcode
      raise SystemExit(f"the process of {self.kind} ended with exit code {code}") from None

  def seconds(self, count: int) -> list[float]:
    """Returns what so many steps take; see `serve`."""
    with contextlib.suppress(BrokenPipeError):  # `answer` says so
      self.connection.send(count)
    return self.answer()


def begun(kind: str, args: argparse.Namespace) -> Child:
  """Starts a process."""
  context = multiprocessing.get_context("spawn")
  ours, theirs = context.Pipe()
  process = context.Process(target=serve, args=(kind, args, theirs), daemon=True)
  process.start()
  theirs.close()  # so that the process alone keeps it open, and its end is noticed
  return Child(kind, process, ours)


def main(argv: Sequence[str]) -> None:
  parser = measured.parser(__doc__, rounds=10)
  step_benchmark.add_flags(parser, width=64)
  args = parser.parse_args(argv)
  args.classes, args.torch = 100, ["eager"]
  children, counts, environment = [], {}, {}
  for kind in KINDS:  # one after another, so that each compiles alone
    child = begun(kind, args)
    children.append(child)
    environment |= child.answer()
    counts[kind] = max(1, round(args.seconds / child.seconds(1)[0]))
  found = {kind: [] for kind in KINDS}
  for _ in range(args.rounds):
    for child in children:
      found[child.kind].append(child.seconds(counts[child.kind]))
  rows = []
  for kind, turns in found.items():
    wall, user, system = map(statistics.median, zip(*turns, strict=True))
    row = {"step": kind, "s": wall, "CPU s": user, "system's CPU s": system}
    for peer in KINDS[:2]:
      speeds = measured.ratio([t[0] for t in found[peer]], [t[0] for t in turns])
      row[f"speed / {peer}"] = measured.told(speeds)
    rows.append(row | {"turns": turns})
  measured.show("Steps in processes", rows, environment=environment, file=args.json)


if __name__ == "__main__":
  main(sys.argv[1:])
