"""Kills a run again and again, and compares what it leaves with an undisturbed one.

  python tests/kills.py --kills=30 --signal=KILL -- --method=eeil

Kills are spread over the whole run, and come in turn in training, while a checkpoint is
written, and while a finished state is evaluated. Each of them has to find the run alive.
What follows -- goes to run.py. Exit code 1 if anything differs.
"""

import argparse
import collections
import contextlib
import hashlib
import itertools
import json
import math
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import numpy as np
import orbax.checkpoint as ocp
from folders import ROOT

SMALL_RUN = [
  "--dataset=digits",
  "--num_states=5",
  "--memory_size=20",
  "--batch_size_new=32",
  "--batch_size_memory=8",
  "--batch_size_test=2",  # so that an evaluation takes a while
  "--width=4",
  "--learning_rate=0.01",
  "--log_every=7",
  "--num_devices=2",
]
OFTEN = "--checkpoint_minutes=0.01"
TRAINING, CHECKPOINT, EVALUATION = MOMENTS = ("training", "checkpoint", "evaluation")
_STEPS_PER_KILL = 50
_STEPS_PER_EPOCH = 43  # of all states of SMALL_RUN together
_TIMES = ("images_per_second", "input_wait", "train_seconds")  # no two runs have the same
_LONGEST = 300.0  # seconds


class Kill(NamedTuple):
  """Sent when the run is where it should be."""

  step: int  # not before a record of that step
  moment: str
  number: signal.Signals


def epochs_for(kills):
  """The flags of a SMALL_RUN that is long enough for so many kills."""
  epochs = math.ceil(kills * _STEPS_PER_KILL / _STEPS_PER_EPOCH)
  return [f"--epochs_first={epochs}", f"--epochs={epochs}"]


def without_times(row):
  """A record or a state of results.json, less what a clock told."""
  return {name: value for name, value in row.items() if name not in _TIMES}


def digests(workdir, *, hidden="FOLDER"):
  """What a run has left, by name: hashes of all but times, and of a folder's own name."""
  results = json.loads((workdir / "results.json").read_text().replace(hidden, "FOLDER"))
  results["states"] = [without_times(row) for row in results["states"]]
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  found = {
    "results.json": _hash(json.dumps(results)),
    "metrics.jsonl": _hash(json.dumps([without_times(json.loads(x)) for x in lines])),
  }
  with ocp.CheckpointManager(workdir / "checkpoints") as manager:
    last = manager.latest_step()
    arrays = ocp.args.StandardRestore()
    saved = manager.restore(last, args=ocp.args.Composite(arrays=arrays)).arrays
  found["number of the last checkpoint"] = _hash(str(last))
  found |= {f"last checkpoint: {name}": _hash(array) for name, array in saved.items()}
  with ocp.CheckpointManager(workdir / "networks") as manager:
    for state in manager.all_steps():
      saved = manager.restore(state, args=ocp.args.StandardRestore())
      for path, leaf in ocp.tree.to_flat_dict(saved).items():
        found[f"network {state}: {'.'.join(path)}"] = _hash(leaf)
  return found


def differences(workdir, other):
  """The names of what two runs have left differently."""
  ours, theirs = digests(workdir), digests(other)
  return sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name))


def _hash(content):
  if isinstance(content, str):
    content = content.encode()
  else:
    array = np.asarray(content)
    content = f"{array.dtype}{array.shape}".encode() + array.tobytes()
  return hashlib.blake2b(content, digest_size=16).hexdigest()


@contextlib.contextmanager
def running(workdir, arguments, *, cache, log):
  """A run in a process group of its own, which is gone afterwards."""
  environment = {
    "JAX_PLATFORMS": "cpu",
    # Compiling well would take longer than it saves; compiling once is enough.
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
    "JAX_COMPILATION_CACHE_DIR": str(cache),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  process = subprocess.Popen(
    [sys.executable, ROOT / "experiments" / "run.py", *arguments, f"--workdir={workdir}"],
    stdout=log,
    stderr=subprocess.STDOUT,
    start_new_session=True,
    env=os.environ | environment,
  )
  try:
    yield process
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_step(workdir):
  """Of the last whole record."""
  with contextlib.suppress(OSError):
    *lines, _ = (workdir / "metrics.jsonl").read_text().split("\n")
    return json.loads(lines[-1])["step"] if lines else 0
  return 0


def _journal(workdir):
  """Tells the journal that a run writes from the one that the run before it left."""
  with contextlib.suppress(OSError):
    return (workdir / "metrics.jsonl").stat().st_ino
  return None


def _states_done(workdir):
  with contextlib.suppress(OSError):
    return len(json.loads((workdir / "results.json").read_text())["states"])
  return 0


def _moment(workdir, ends):
  """Where a run that stands still is.

  Args:
    workdir: of the run.
    ends: steps of the whole run at which states end.
  """
  step, done = _last_step(workdir), _states_done(workdir)
  if done < len(ends) and step == ends[done]:
    return EVALUATION
  # Orbax renames a checkpoint's folder when it is whole.
  is_writing = any("tmp" in path.name for path in workdir.glob("checkpoints/*"))
  return CHECKPOINT if is_writing else TRAINING


def make_kills(numbers, ends, rng):
  """A kill for each of these signals, in the order of steps."""
  kills, last = [], len(numbers)
  state_ends = itertools.cycle(ends)
  for place, (number, moment) in enumerate(
    zip(numbers, itertools.cycle(MOMENTS), strict=False)
  ):
    step = ends[-1] * (place + rng.random()) / (last + 1)
    # Well before a state's end, for the run goes on until the moment is there.
    begin = max((end for end in ends if end <= step), default=0)
    step = int(begin + 0.6 * (step - begin))
    kills.append(Kill(next(state_ends) if moment == EVALUATION else step, moment, number))
  return sorted(kills)


def _stop_at(process, workdir, kill, ends, *, journal):
  """Lets the run go until it is where the kill is due, and stops it there.

  Args:
    process: the run.
    workdir: of the run.
    kill: what is due.
    ends: as in `_moment`.
    journal: the one of the run before, which shows where that one was.

  Returns:
    The moment in which it stands still. Another one than that of the kill if the run has
    passed that by: a state's evaluation comes once.
  """
  deadline = time.monotonic() + _LONGEST
  passed = kill.moment == EVALUATION and ends.index(kill.step) + 1
  while time.monotonic() < deadline:
    is_up = _journal(workdir) not in (None, journal)  # and has put its folder in order
    is_past = passed and _states_done(workdir) >= passed
    is_there = is_past or _moment(workdir, ends) == kill.moment
    if is_up and is_there and _last_step(workdir) >= kill.step:
      process.send_signal(signal.SIGSTOP)
      time.sleep(0.01)  # until all threads stand
      found = _moment(workdir, ends)
      if is_past or found == kill.moment:
        return found
      process.send_signal(signal.SIGCONT)
    assert process.poll() is None, f"the run ended by itself before {kill}"
    time.sleep(0.002)
  raise AssertionError(f"the run was never where it could get {kill}")


def disturb(workdir, arguments, kills, ends, *, cache, log, say=print):
  """Starts a run again after every kill, and lets it end after the last one.

  Returns:
    moment -> how many kills found the run in it.
  """
  counts = collections.Counter()
  for count, kill in enumerate(kills, start=1):
    before = _journal(workdir)
    with running(workdir, [*arguments, OFTEN], cache=cache, log=log) as process:
      found = _stop_at(process, workdir, kill, ends, journal=before)
      assert process.poll() is None, f"the run had ended before {kill}"
      process.send_signal(kill.number)
      process.send_signal(signal.SIGCONT)
      code = process.wait(_LONGEST)
    # As the shell has it: 128 + n is the program's own exit, -n that of a killed one.
    is_obeyed = kill.number != signal.SIGKILL
    assert code == (128 + kill.number if is_obeyed else -kill.number), (kill, code)
    counts[found] += 1
    saved = sorted(path.name for path in workdir.glob("checkpoints/*"))
    say(
      f"{count} {kill.number.name} after step {kill.step}: found in {found}, "
      f"{_last_step(workdir)} steps recorded, checkpoints: {' '.join(saved)}"
    )
  with running(workdir, [*arguments, OFTEN], cache=cache, log=log) as process:
    assert process.wait(_LONGEST) == 0
  return counts


def compare(folder, arguments, numbers, *, seed, say=print):
  """An undisturbed run, and one that gets these signals.

  Args:
    folder: where both are kept, with their output in `log`.
    arguments: of run.py.
    numbers: signals, one for each kill.
    seed: of the moments.
    say: called with a line for every kill.

  Returns:
    moment -> how many kills found the run in it; hashes compared; names of what differs.
  """
  undisturbed, disturbed = folder / "undisturbed", folder / "disturbed"
  with open(folder / "log", "a") as log:
    files = {"cache": folder / "cache", "log": log}
    with running(undisturbed, arguments, **files) as process:
      assert process.wait(2 * _LONGEST) == 0, f"see {folder / 'log'}"
    steps = collections.Counter()
    for row in json.loads((undisturbed / "schedule.json").read_text()):
      steps[row["state"]] += row["steps"]
    ends = np.cumsum(list(steps.values())).tolist()
    kills = make_kills(numbers, ends, random.Random(seed))
    counts = disturb(disturbed, arguments, kills, ends, **files, say=say)
  return counts, len(digests(undisturbed)), differences(undisturbed, disturbed)


def make_parser():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--kills", type=int, default=30)
  parser.add_argument("--signal", default="KILL", choices=["KILL", "TERM", "INT"])
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--folder", help="where both runs are kept (default: none are)")
  parser.add_argument("arguments", nargs="*", help="of run.py, after --")
  return parser


def main():
  options = make_parser().parse_args()
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(options.folder or temporary)
    folder.mkdir(parents=True, exist_ok=True)
    counts, number, different = compare(
      folder,
      [*SMALL_RUN, *epochs_for(options.kills), *options.arguments],
      [signal.Signals[f"SIG{options.signal}"]] * options.kills,
      seed=options.seed,
    )
  print(f"kills by moment: {dict(counts)}; {number} hashes, different: {different}")
  return 1 if different else 0


if __name__ == "__main__":
  sys.exit(main())
