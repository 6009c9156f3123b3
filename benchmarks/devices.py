"""Images per second of the bare training step, by the number of devices.

  python benchmarks/devices.py --devices=1,2,4 --json=FILE -- --sizes=32 --width=16

What follows `--` goes to `step.py`, whose step is timed, without a peer: of 32 pixels and
in float32, unless it says otherwise. Each number of devices is measured in processes of its
own, in turn, `--rounds` times: of a CPU they are virtual devices, of which a process cannot
change the number.
"""

import argparse
import collections
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence

FOLDER = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

import measured
import numpy as np


def counts_of(text: str) -> list[int]:
  """Reads numbers of devices with commas between; raises ArgumentTypeError for others."""
  words = text.split(",")
  if not all(word.isdecimal() and int(word) for word in words):
    raise argparse.ArgumentTypeError(f"{text!r}: give whole numbers from 1 on, as in 1,2,4")
  return [int(word) for word in words]


def main(argv: Sequence[str]) -> None:
  place = argv.index("--") if "--" in argv else len(argv)
  own, words = argv[:place], argv[place + 1 :]
  parser = measured.parser(__doc__)
  parser.add_argument("--devices", type=counts_of, default="1,2,4")
  args = parser.parse_args(own)
  rates = collections.defaultdict(list)  # by size, precision and number of devices
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / "step.json"
    command = [sys.executable, FOLDER / "step.py", "--sizes=32", "--precisions=float32"]
    command += ["--torch=", *words, "--rounds=1", f"--json={file}"]
    for _ in range(args.rounds):
      for count in args.devices:
        done = subprocess.run([*command, f"--devices={count}"], stdout=subprocess.DEVNULL)
        if done.returncode:
          sys.exit(f"step.py --devices={count} ended with exit code {done.returncode}")
        found = json.loads(file.read_text())
        for row in found["rows"]:
          rates[row["px"], row["precision"], count].append(row["ssil_jax, img/s"])
  first, rows = args.devices[0], []
  for row in found["rows"]:
    for count in args.devices:
      kind = row["px"], row["precision"]
      turns, others = rates[*kind, count], rates[*kind, first]
      rows.append(
        {name: row[name] for name in ("px", "precision", "width", "batch")}
        | {"devices": count, "img/s": float(np.median(turns))}
        | {f"to {first}": measured.told(measured.ratio(turns, others)), "rates": turns}
      )
  environment = found["environment"] | {"num_devices": None}
  measured.show("The step by devices", rows, environment=environment, file=args.json)


if __name__ == "__main__":
  main(sys.argv[1:])
