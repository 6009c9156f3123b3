"""Ends single processes of a run again and again, and compares with an undisturbed run.

  python benchmarks/processes.py --processes=4 --signals=6
  python benchmarks/processes.py --methods=all --signals=0

In turn SIGKILL and SIGTERM go to one of the processes, after a random step; then all are
started again. Exit code 1 if anything that the run leaves differs from what undisturbed
processes leave, or if its losses differ from those of one process with as many devices by
more than rounding. Times are seconds until the last of the others had ended.
"""

import argparse
import json
import pathlib
import random
import signal
import sys
import tempfile
import time

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent))
sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "tests"))

import numpy as np
from kills import digests
from launch import ends, output, started, wait_until

from ssil_jax.methods import METHODS

SCRIPT = "quick.py"  # of tests: a small network instead of ResNet-18
FLAGS = [
  "--dataset=digits",
  "--num_classes=6",
  "--num_states=3",
  "--memory_size=18",
  "--batch_size_new=32",
  "--batch_size_memory=8",
  "--epochs_first=10",
  "--epochs=10",
  "--width=4",
  "--learning_rate=1e-5",
  "--selection=herding",
  "--log_every=3",
]
OFTEN = "--checkpoint_minutes=0.001"
# What is too long, or too short, on so few images.
OWN = {
  "cgan_features": ["--cgan_steps=20"],
  "joint_full": ["--num_states=1"],
  # Balanced phases with a batch at least.
  "eeil": ["--memory_size=48"],
  "podnet": ["--memory_size=48"],
}


def run(count, workdir, *flags):
  """Runs processes to their end."""
  arguments = [*FLAGS, f"--workdir={workdir}", *flags]
  with started(count, SCRIPT, *arguments, log_folder=workdir.parent) as processes:
    codes = ends(processes, 1800)
  assert codes == [0] * count, output(workdir.parent, 0)


def disturb(count, workdir, number, total, rng, flags):
  """Starts the run, and ends one of its processes when it has done some of its rest."""
  done = len(losses(workdir))
  wanted = done + round(rng.uniform(0.1, 0.7) * (total - done))
  with started(
    *(count, SCRIPT, *FLAGS, f"--workdir={workdir}", OFTEN, *flags),
    log_folder=workdir.parent,
  ) as processes:
    wait_until(lambda: len(losses(workdir)) >= wanted, processes, 1800)
    chosen = rng.randrange(count)
    processes[chosen].send_signal(number)
    began = time.monotonic()
    codes = ends(processes, 600)
  last = output(workdir.parent, (chosen + 1) % count).splitlines()[-1:]
  print(
    f"{number.name} to process {chosen} at record {wanted} of {total}: exit codes {codes} "
    f"after {time.monotonic() - began:.1f} s; the next one said: {' '.join(last)[:50]}"
  )


def losses(workdir):
  path = workdir / "metrics.jsonl"
  lines = path.read_text().splitlines(keepends=True) if path.exists() else []
  return np.array([json.loads(line)["loss"] for line in lines if line.endswith("\n")])


def compare(folder, count, flags, signals, rng):
  """Returns whether processes, also ended ones, leave what they should."""
  run(1, folder / "one", f"--num_devices={count}", *flags)
  run(count, folder / "all", *flags)
  ratio = losses(folder / "all") / losses(folder / "one")
  print(f"largest difference of losses from one process: {abs(ratio - 1).max():.1e}")
  if abs(ratio - 1).max() > 1e-4:
    return False
  if not signals:
    return True
  for n in range(signals):
    number = (signal.SIGKILL, signal.SIGTERM)[n % 2]
    disturb(count, folder / "disturbed", number, len(ratio), rng, flags)
  run(count, folder / "disturbed", OFTEN, *flags)
  expected, found = digests(folder / "all"), digests(folder / "disturbed")
  different = [k for k in expected | found if expected.get(k) != found.get(k)]
  print(f"{count} processes, {len(expected)} hashes compared, different: {different}")
  return not different


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--processes", type=int, default=2)
  parser.add_argument("--methods", default="ssil", help="with commas, or all")
  parser.add_argument("--signals", type=int, default=4, help="for each method")
  parser.add_argument("--seed", type=int, default=0)
  options = parser.parse_args()
  rng, failed = random.Random(options.seed), []
  names = [*METHODS] if options.methods == "all" else options.methods.split(",")
  for name in names:
    print(name, end=": ", flush=True)
    flags = [f"--method={name}", *OWN.get(name, ())]
    with tempfile.TemporaryDirectory() as temporary:
      folder = pathlib.Path(temporary)
      if not compare(folder, options.processes, flags, options.signals, rng):
        failed.append(name)
  print("different:", failed)
  return 1 if failed else 0


if __name__ == "__main__":
  sys.exit(main())
