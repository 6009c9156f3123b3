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

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

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
OFTEN = "--checkpoint_minutes=0.002"
EVALUATION, TRAINING, CHECKPOINT = MOMENTS = ("evaluation", "training", "checkpoint")
_STEPS_PER_KILL = 50
_STEPS_PER_EPOCH = 43  # of all states of SMALL_RUN together
# No two runs have the same.
_TIMES = (
  *("images_per_second", "input_wait", "train_seconds", "seconds", "programs"),
  *("peak_host_memory", "peak_device_memory"),
)
_LONGEST = 300.0  # seconds


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
  results = without_times(results)
  results["states"] = [without_times(row) for row in results["states"]]
  for name in ("started", "command"):
    del results["environment"][name]
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
def running(workdir, arguments, *, cache, log, script=ROOT / "experiments" / "run.py"):
  """A run in a process group of its own, which is gone afterwards."""
  environment = {
    "JAX_PLATFORMS": "cpu",
    # Compiling well would take longer than it saves; compiling once is enough.
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
    "JAX_COMPILATION_CACHE_DIR": str(cache),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  process = subprocess.Popen(
    [sys.executable, script, *arguments, f"--workdir={workdir}"],
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
  """Where a run that stands still is; its states end after the steps `ends`."""
  step, done = _last_step(workdir), _states_done(workdir)
  if done < len(ends) and step == ends[done]:
    return EVALUATION
  # Orbax renames a checkpoint's folder when it is whole.
  is_writing = any("tmp" in path.name for path in workdir.glob("checkpoints/*"))
  return CHECKPOINT if is_writing else TRAINING


def _stop_in(moment, process, workdir, step, ends, *, journal):
  """Stops a run after that step, in that moment; returns the moment it stands in.

  That is another one if the run is in its last fifth, and might end by itself. `journal` is
  the one of the run before.
  """
  deadline = time.monotonic() + _LONGEST
  while time.monotonic() < deadline:
    is_up = _journal(workdir) not in (None, journal)  # and has put its folder in order
    is_late = _last_step(workdir) > 0.8 * ends[-1]
    is_there = is_late or _moment(workdir, ends) == moment
    if is_up and _last_step(workdir) >= step and is_there:
      process.send_signal(signal.SIGSTOP)
      time.sleep(0.01)  # until all threads stand
      found = _moment(workdir, ends)
      if is_late or found == moment:
        return found
      process.send_signal(signal.SIGCONT)
    assert process.poll() is None, f"the run ended before it was in {moment}, step {step}"
    time.sleep(0.002)
  raise AssertionError(f"the run was never in {moment} after step {step}")


def compare(folder, arguments, numbers, *, seed, **options):
  """An undisturbed run, and one that is started again after each of these signals.

  Args:
    folder: where both are kept, with their output in `log`.
    arguments: of run.py.
    numbers: signals, spread over the run, in each moment in turn.
    seed: of the steps.
    **options: of `running`.

  Returns:
    How many hashes were compared, and the names of what differs.
  """
  undisturbed, disturbed = folder / "undisturbed", folder / "disturbed"
  rng = random.Random(seed)
  with open(folder / "log", "a") as log:
    options |= {"cache": folder / "cache", "log": log}
    with running(undisturbed, arguments, **options) as process:
      assert process.wait(2 * _LONGEST) == 0, f"see {folder / 'log'}"
    steps = collections.Counter()
    for row in json.loads((undisturbed / "schedule.json").read_text()):
      steps[row["state"]] += row["steps"]
    ends = np.cumsum(list(steps.values())).tolist()
    arguments = [*arguments, OFTEN]
    for place, (number, moment) in enumerate(
      zip(numbers, itertools.cycle(MOMENTS), strict=False)
    ):
      step = ends[-1] * (place + rng.random()) / (len(numbers) + 1)
      # Well before a state's end, for the run goes on until the moment is there.
      begin = max((end for end in ends if end <= step), default=0)
      step, before = int(begin + 0.6 * (step - begin)), _journal(disturbed)
      with running(disturbed, arguments, **options) as process:
        found = _stop_in(moment, process, disturbed, step, ends, journal=before)
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        code = process.wait(_LONGEST)
      # As the shell has it: 128 + n is the program's own exit, -n that of a killed one.
      assert code == (-number if number == signal.SIGKILL else 128 + number), code
      print(f"{number.name} in {found} after step {step}", flush=True)
    with running(disturbed, arguments, **options) as process:
      assert process.wait(_LONGEST) == 0
  return len(digests(undisturbed)), differences(undisturbed, disturbed)


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
    number, different = compare(
      folder,
      [*SMALL_RUN, *epochs_for(options.kills), *options.arguments],
      [signal.Signals[f"SIG{options.signal}"]] * options.kills,
      seed=options.seed,
    )
  print(f"{number} hashes, different: {different}")
  return 1 if different else 0


if __name__ == "__main__":
  sys.exit(main())
