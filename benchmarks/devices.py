"""Images per second of the bare training step, by the number of devices.

  python benchmarks/devices.py --devices=1,2,4 --json=FILE -- --sizes=32 --width=16

What follows `--` goes to `step.py`, whose step is timed, without a peer. Each number of
devices is measured in processes of its own, in turn, `--rounds` times: of a CPU they are
virtual devices, of which a process cannot change the number.
"""

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


def main(argv: Sequence[str]) -> None:
  place = argv.index("--") if "--" in argv else len(argv)
  own, words = argv[:place], argv[place + 1 :]
  parser = measured.parser(__doc__)
  parser.add_argument("--devices", default="1,2,4")
  args = parser.parse_args(own)
  counts = [int(count) for count in args.devices.split(",")]
  rates = {count: [] for count in counts}
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / "step.json"
    for _ in range(args.rounds):
      for count in counts:
        command = [sys.executable, FOLDER / "step.py", "--precisions=float32", "--torch="]
        command += [
          "--rounds=1",
          f"--devices={count}",
          f"--json={file}",
          *words,
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found = json.loads(file.read_text())
        [row] = found["rows"]
        rates[count].append(row["ssil_jax, img/s"])
  rows = [
    {
      "devices": count,
      "px": row["px"],
      "width": row["width"],
      "batch": row["batch"],
      "img/s": float(np.median(rates[count])),
      f"to {counts[0]}": measured.told(measured.ratio(rates[count], rates[counts[0]])),
      "rates": rates[count],
    }
    for count in counts
  ]
  environment = found["environment"] | {"num_devices": None}
  measured.show("The step by devices", rows, environment=environment, file=args.json)


if __name__ == "__main__":
  main(sys.argv[1:])
