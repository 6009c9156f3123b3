r"""What a model loses by learning its classes in separate commands.

  python benchmarks/learn_chain.py --data_dir=CIFAR100 --seeds=0,1,2 -- --width=8 \
      --memory_size=240 --epochs_first=15 --epochs=8 --batch_size_new=64 \
      --batch_size_memory=32

CIFAR100 is an image folder with `train` and `test`. Of its first twelve classes, six are
learnt by `run.py`, three by `learn.py`, three more by `learn.py`, each from a folder that
is deleted before the next command; and all twelve by one `run.py` in states of 6, 3 and 3.
What follows `--` goes to `run.py` in both cases. Prints the accuracies, whether both keep
the same exemplars and test photos, byte for byte, and how far the networks are apart.
"""

import argparse
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

import numpy as np

import ssil_jax
from ssil_jax.training.model_files import arrays_of

GROUPS = (6, 3, 3)


def command(name: str, *arguments: str) -> None:
  script = ROOT / "experiments" / f"{name}.py"
  subprocess.run(
    [sys.executable, script, *arguments], check=True, stdout=subprocess.DEVNULL
  )


def copy(data: pathlib.Path, names: list[str], folder: pathlib.Path) -> pathlib.Path:
  for split in ("train", "test"):
    for name in names:
      shutil.copytree(data / split / name, folder / split / name)
  return folder


def chain(data, groups, place, flags):
  workdir, photos = place / "chain", place / "photos"
  for number, names in enumerate(groups):
    copy(data, names, photos)
    if number == 0:
      order = place / "first.txt"
      order.write_text("\n".join(names))
      command(
        "run",
        "--dataset=image_folder",
        f"--data_dir={photos}",
        f"--class_order={order}",
        "--num_states=1",
        f"--workdir={workdir}",
        *flags,
      )
    else:
      command("learn", f"--workdir={workdir}", f"--data_dir={photos}")
    shutil.rmtree(photos)
  return workdir


def single(data, groups, place, flags):
  workdir = place / "single"
  names = [name for group in groups for name in group]
  photos = copy(data, names, place / "photos")
  order = place / "all.txt"
  order.write_text("\n".join(names))
  command(
    "run",
    "--dataset=image_folder",
    f"--data_dir={photos}",
    f"--class_order={order}",
    f"--num_states={len(groups)}",
    f"--initial_classes={len(groups[0])}",
    f"--workdir={workdir}",
    *flags,
  )
  shutil.rmtree(photos)
  return workdir


def scores(workdir) -> list[float]:
  states = ssil_jax.load_run(workdir).results["states"]
  return [row["top1"] for row in states]


def same_photos(one, other) -> bool:
  names = ["3/exemplars.zip", *(f"{state}/test.zip" for state in (1, 2, 3))]
  return all(
    (one / "model" / name).read_bytes() == (other / "model" / name).read_bytes()
    for name in names
  )


def distance(one, other) -> float:
  """Returns the largest difference of a parameter after the first state's end."""
  models = [ssil_jax.load(workdir) for workdir in (one, other)]
  pairs = zip(*(arrays_of(model.variables).values() for model in models), strict=True)
  return max(float(np.abs(a - b).max()) for a, b in pairs)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--data_dir", type=pathlib.Path, required=True)
  parser.add_argument("--seeds", default="0,1,2")
  parser.add_argument("flags", nargs=argparse.REMAINDER)
  given = parser.parse_args()
  names = sorted(path.name for path in (given.data_dir / "train").iterdir())
  ends = np.cumsum(GROUPS)
  groups = [names[end - size : end] for end, size in zip(ends, GROUPS, strict=True)]
  lasts = {"chain": [], "single": []}
  for seed in given.seeds.split(","):
    with tempfile.TemporaryDirectory() as folder:
      place = pathlib.Path(folder)
      flags = [*given.flags[1:], f"--seed={seed}"]
      found = {f.__name__: f(given.data_dir, groups, place, flags) for f in (chain, single)}
      for name, workdir in found.items():
        shown = ", ".join(f"{100 * score:.2f}" for score in scores(workdir))
        print(f"seed {seed}: {name:6} top-1 after each state: {shown}", flush=True)
        lasts[name].append(100 * scores(workdir)[-1])
      print(
        f"seed {seed}: same exemplars and test photos: {same_photos(*found.values())}; "
        f"largest difference of a parameter: {distance(*found.values()):.3g}",
        flush=True,
      )
  for name, values in lasts.items():
    spread = statistics.stdev(values) if len(values) > 1 else 0
    print(f"{name:6} at the end: {statistics.mean(values):.2f} +- {spread:.2f}")


if __name__ == "__main__":
  main()
