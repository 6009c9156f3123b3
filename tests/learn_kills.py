"""Kills `learn.py` again and again, asks the model after each, and compares the end.

  python tests/learn_kills.py --kills=20

A model of six digits learns two more. Each kill, a SIGKILL, comes at a random moment after
the command's start, up to a little more than it takes undisturbed. After each one the model
has to answer just as the old one or just as the new one does. Exit code 1 if anything
differs in the end, or if the model ever answered otherwise.
"""

import argparse
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import kills
import numpy as np
from folders import ROOT, save
from sklearn.datasets import load_digits

import ssil_jax

SETTINGS = [
  *("--dataset=image_folder", "--num_states=1", "--memory_size=40", "--width=4"),
  *("--batch_size_new=16", "--batch_size_memory=8", "--num_devices=2"),
  *("--epochs_first=2", "--epochs=20", "--batch_size_test=8", "--log_every=7"),
]


def photos(root):
  """Folders of the digits 0 to 5, and of 6 and 7."""
  digits = load_digits()
  pixels = np.repeat((digits.images * 15.9).astype(np.uint8)[..., None], 3, axis=-1)
  for place, (image, target) in enumerate(zip(pixels, digits.target, strict=True)):
    if target < 8:
      part = "old" if target < 6 else "new"
      save(root / part / str(target) / f"{place}.png", image)
  return pixels[:50]


def answers(workdir, asked):
  return ssil_jax.load(workdir).probabilities(list(asked))


def moment_of(workdir):
  """Where the command was when it was killed."""
  if not (workdir / "learning" / "request.json").exists():
    return "before it began" if not (workdir / "model" / "2").exists() else "after its end"
  if (workdir / "model" / "2").exists():
    return "in its commit"
  saved = list((workdir / "learning").glob("checkpoints/*"))
  return "in training" if saved else "before its first checkpoint"


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--kills", type=int, default=20)
  parser.add_argument("--seed", type=int, default=0)
  given = parser.parse_args()
  rng, experiments = random.Random(given.seed), ROOT / "experiments"
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)
    asked = photos(folder)
    log = open(folder / "log", "a")  # noqa: SIM115 - for as long as the process lives
    options = {"cache": folder / "cache", "log": log}
    start = folder / "start"
    arguments = [*SETTINGS, f"--data_dir={folder / 'old'}"]
    with kills.running(start, arguments, **options) as process:
      assert process.wait(600) == 0, (folder / "log").read_text()[-2000:]
    undisturbed, disturbed = folder / "undisturbed", folder / "disturbed"
    options["script"] = experiments / "learn.py"
    command = [f"--data_dir={folder / 'new'}"]
    for warm in (True, False):  # the second time, all is compiled
      shutil.rmtree(undisturbed, ignore_errors=True)
      shutil.copytree(start, undisturbed)
      begin = time.monotonic()
      with kills.running(undisturbed, command, **options) as process:
        assert process.wait(600) == 0, (folder / "log").read_text()[-2000:]
      seconds = time.monotonic() - begin
      print(f"undisturbed: {seconds:.1f} s" + (" with compiling" if warm else ""))
    shutil.copytree(start, disturbed)
    before, after = (answers(workdir, asked) for workdir in (start, undisturbed))
    wrong, done = [], 0
    while done < given.kills:
      with kills.running(disturbed, [*command, kills.OFTEN], **options) as process:
        try:
          process.wait(rng.uniform(0.3, 1.1) * seconds)
        except subprocess.TimeoutExpired:
          process.send_signal(signal.SIGKILL)
          process.wait()
          done += 1
          shown = f"kill {done} {moment_of(disturbed)}"
        else:
          shown = "it ended by itself, and begins again"
      found = answers(disturbed, asked)
      same = {
        "the old one": np.array_equal(found, before),
        "the new one": found.shape == after.shape and np.array_equal(found, after),
      }
      by = [name for name, is_same in same.items() if is_same]
      print(f"{shown}: answered by {by[0] if by else 'ANOTHER'}", flush=True)
      wrong += [] if by else [shown]
      if shown.startswith("it ended"):
        shutil.rmtree(disturbed)
        shutil.copytree(start, disturbed)
    with kills.running(disturbed, command, **options) as process:
      assert process.wait(600) == 0, (folder / "log").read_text()[-2000:]
    different = kills.differences(undisturbed, disturbed)
    names = [path.relative_to(undisturbed) for path in undisturbed.glob("model/*/*.*")]
    different += [
      str(name)
      for name in names
      if name.name != "state.json"  # which has the time
      and (undisturbed / name).read_bytes() != (disturbed / name).read_bytes()
    ]
    count = len(kills.digests(undisturbed)) + len(names)
    print(f"{count} hashes, different: {different}; wrong answers: {wrong}")
  return 1 if different or wrong else 0


if __name__ == "__main__":
  sys.exit(main())
