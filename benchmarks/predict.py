"""How fast a trained model answers for photos.

  python benchmarks/predict.py --workdir=W PHOTO_OR_FOLDER...

Takes the first 1,000 photos (of fewer, each several times). Prints, as medians of `ROUNDS`
processes, the seconds to import, to load the model, to the first answer for one photo with
compiling, and the photos a second for all of them: in the first pass, which compiles the
program of a batch, and in the second.
"""

import argparse
import itertools
import json
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

ROUNDS = 3
PHOTOS = 1000


def measure(workdir: str, given: list[str]) -> dict[str, float]:
  """Returns what one process takes."""
  times = [time.perf_counter()]
  from ssil_jax.model.trained import load, paths_of

  paths = list(itertools.islice(itertools.cycle(list(paths_of(given))), PHOTOS))
  times.append(time.perf_counter())
  model = load(workdir)
  times.append(time.perf_counter())
  model.predict(paths[0])
  times.append(time.perf_counter())
  for _ in range(2):
    model.predict(paths)
    times.append(time.perf_counter())
  imported, loaded, first, cold, warm = (b - a for a, b in itertools.pairwise(times))
  return {
    "import, s": imported,
    "load, s": loaded,
    "first answer, s": first,
    "start to first answer, s": imported + loaded + first,
    "photos/s, first pass": PHOTOS / cold,
    "photos/s, second pass": PHOTOS / warm,
  }


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--once", action="store_true", help="measure this process, as JSON")
  parser.add_argument("photos", nargs="+")
  given = parser.parse_args()
  if given.once:
    print(json.dumps(measure(given.workdir, given.photos)))
    return
  command = [
    sys.executable,
    __file__,
    "--once",
    f"--workdir={given.workdir}",
    *given.photos,
  ]
  rounds = [
    json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    for _ in range(ROUNDS)
  ]
  for name in rounds[0]:
    values = [found[name] for found in rounds]
    print(
      f"{name}: {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
    )


if __name__ == "__main__":
  main()
