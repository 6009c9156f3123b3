"""Seconds from the start of a process to its first training step, and to its help.

  python benchmarks/start.py --json=FILE --flagfile=quickstart.cfg
  python benchmarks/start.py --flagfile=cifar100.cfg --dataset=image_folder --data_dir=DIR

Takes the flags of experiments/run.py, besides `--rounds` and `--json`. Each round begins
with an empty cache (XDG_CACHE_HOME), and starts the run twice, each time in a new work
directory: the second start finds programs and images. Medians, with smallest and largest.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from ssil_jax.commands import COMMANDS

MARKS = ("imported", "open", "first step")


def child(argv: list[str]) -> None:
  """Runs until the first step is done; prints the times of `MARKS`."""
  started = float(os.environ["STARTED"])
  marks = {}

  def mark(name: str) -> None:
    marks[name] = time.time() - started, time.process_time()

  from ssil_jax.commands import command_line

  with command_line.importing():  # as the command itself does
    from ssil_jax.commands import run
    from ssil_jax.training import loop
    from ssil_jax.training.step_metrics import StepMetrics

  mark("imported")
  begin, add = loop.train, StepMetrics.add
  sessions = []

  def train(session, *args):
    mark("open")
    sessions.append(session)
    return begin(session, *args)

  def first(*args, **kwargs):
    add(*args, **kwargs)  # waits for it
    mark("first step")
    environment = sessions[0].devices.describe()
    print(json.dumps([marks, environment]), file=sys.stderr, flush=True)
    os._exit(0)

  loop.train, StepMetrics.add = train, first
  command_line.execute(lambda _: run.main(argv))


def seconds_to_help(command: str) -> float:
  started = time.time()
  script = ROOT / "experiments" / f"{command}.py"
  subprocess.run([sys.executable, script, "--help"], check=True, capture_output=True)
  return time.time() - started


def start(argv: list[str], cache: str) -> tuple[dict[str, list[float]], dict]:
  """Returns seconds, wall and CPU, by mark; and the environment."""
  with tempfile.TemporaryDirectory() as workdir:
    told = {**os.environ, "XDG_CACHE_HOME": cache, "STARTED": str(time.time())}
    command = [sys.executable, __file__, "--child", *argv, f"--workdir={workdir}/w"]
    done = subprocess.run(command, capture_output=True, env=told, text=True)
  if done.returncode:
    raise SystemExit(done.stderr)
  return json.loads(done.stderr.splitlines()[-1])


def spread(values: Sequence[float]) -> str:
  return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main(argv: list[str]) -> None:
  import measured  # not in the child, whose imports are timed

  args, flags = measured.parse_beside_run(measured.parser(__doc__), argv)
  starts = {"empty cache": [], "again": []}
  helps = {command: [] for command in COMMANDS}
  for _ in range(args.rounds):
    with tempfile.TemporaryDirectory() as cache:
      for found in starts.values():
        marks, environment = start(flags[1:], cache)
        found.append(marks)
    for command, found in helps.items():
      found.append(seconds_to_help(command))
  rows = [
    {"start": title, "s": kind}
    | {mark: spread([marks[mark][column] for marks in found]) for mark in MARKS}
    for title, found in starts.items()
    for column, kind in enumerate(("wall", "CPU"))
  ]
  measured.show("From start to step", rows, environment=environment, file=args.json)
  rows = [{"--help of": name, "s": spread(found)} for name, found in helps.items()]
  file = args.json and args.json.with_stem(f"{args.json.stem}_help")
  measured.show("Help", rows, environment=environment, file=file)


if __name__ == "__main__":
  if sys.argv[1:2] == ["--child"]:
    child(["run.py", *sys.argv[2:]])
  else:
    main(sys.argv[1:])
