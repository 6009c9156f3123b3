"""Seconds from the start of a process to its first training step, and to its help.

  python benchmarks/start.py --flagfile=quickstart.cfg
  python benchmarks/start.py --flagfile=cifar100.cfg --dataset=image_folder --data_dir=DIR

Takes the flags of experiments/run.py. Each of `ROUNDS` rounds begins with an empty cache
(XDG_CACHE_HOME), and starts the run twice, each time in a new work directory: the second
start finds programs and images. Prints medians, and when imports and data were done.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from ssil_jax.commands import COMMANDS

ROUNDS = int(os.environ.get("ROUNDS", "3"))
MARKS = ("imported", "open", "first step")
HELP = tuple(COMMANDS)


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

  def train(*args):
    mark("open")
    return begin(*args)

  def first(*args, **kwargs):
    add(*args, **kwargs)  # waits for it
    mark("first step")
    print(json.dumps(marks), file=sys.stderr, flush=True)
    os._exit(0)

  loop.train, StepMetrics.add = train, first
  command_line.execute(lambda _: run.main(argv))


def seconds_to_help(command: str) -> float:
  started = time.time()
  script = ROOT / "experiments" / f"{command}.py"
  subprocess.run([sys.executable, script, "--help"], check=True, capture_output=True)
  return time.time() - started


def start(argv: list[str], cache: str) -> dict[str, list[float]]:
  with tempfile.TemporaryDirectory() as workdir:
    told = {**os.environ, "XDG_CACHE_HOME": cache, "STARTED": str(time.time())}
    done = subprocess.run(
      [sys.executable, __file__, "--child", *argv, f"--workdir={workdir}/w"],
      check=True,
      capture_output=True,
      env=told,
      text=True,
    )
  return json.loads(done.stderr.splitlines()[-1])


def main(argv: list[str]) -> None:
  found = {"first": [], "second": []}
  helps = {command: [] for command in HELP}
  for _ in range(ROUNDS):
    with tempfile.TemporaryDirectory() as cache:
      for times in found.values():
        times.append(start(argv, cache))
    for command, times in helps.items():
      times.append(seconds_to_help(command))
  for title, times in found.items():
    for kind, what in enumerate(("wall", "CPU")):
      shown = [
        f"{name} {statistics.median(t[name][kind] for t in times):.2f}" for name in MARKS
      ]
      print(f"{title} start, s, {what}: {', '.join(shown)}", flush=True)
  shown = [f"{name} {statistics.median(times):.2f}" for name, times in helps.items()]
  print(f"--help, s: {', '.join(shown)}")


if __name__ == "__main__":
  if sys.argv[1:2] == ["--child"]:
    child(["run.py", *sys.argv[2:]])
  else:
    main(sys.argv[1:])
