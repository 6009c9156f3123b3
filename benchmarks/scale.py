"""Does the number of classes or of records cost a run anything?

  python benchmarks/scale.py --json=FILE

Classes, 100 to 10,000: the bare training step of `step.py` with a head of so many; and for
100 thousand records the seconds that the plan, with its class order, and choosing the first
state's exemplars take. Records, 10 thousand to 4 million, of one thousand classes: the
host's part of a step, which is choosing a batch's records, and the same seconds. None of
these makes or reads an image; how long a start from files takes is `startup.py`'s.
"""

import argparse
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import measured
import numpy as np
import step as step_benchmark

import ssil_jax
from ssil_jax import memory
from ssil_jax.memory import Memory
from ssil_jax.sampling import Key
from ssil_jax.training.plan import Plan, make_plan

CLASSES = 100, 1000, 10_000
RECORDS = 10_000, 100_000, 1_000_000, 4_000_000
RECORDS_OF_CLASSES = 100_000  # in all, whatever the number of classes
BATCHES = 50


def planned(num_classes: int, records: int) -> tuple[Plan, Memory, dict[str, float]]:
  """Returns a plan, the first state's exemplars, and the seconds that each takes."""
  dataset = measured.generated(
    num_classes=num_classes, train=records // num_classes, test=1, size=224
  )
  config = ssil_jax.make_config(
    num_states=10, memory_size=10 * num_classes, epochs_first=1, epochs=1
  )
  started = time.perf_counter()
  plan = make_plan(config, dataset)
  made = time.perf_counter()
  first = plan.states[0]
  pool = plan.pool(first, memory.empty())
  new = (pool.new, pool.new_labels, pool.new_ranks)
  sizes = {"memory_size": config.memory_size, "num_seen": first.num_seen}
  exemplars = memory.update(memory.empty(), *new, **sizes)
  chosen = time.perf_counter()
  return plan, exemplars, {"plan, s": made - started, "exemplars, s": chosen - made}


def of_classes(args: argparse.Namespace, count: int) -> tuple[dict, dict]:
  """Returns a row, plan and step with a head of so many classes; and the environment."""
  *_, seconds = planned(count, RECORDS_OF_CLASSES)
  options = argparse.Namespace(**vars(args) | {"classes": count})
  own = step_benchmark.ours(options, args.size, "float32")
  own.step()
  rates = [
    measured.rate(own.step, own.wait, seconds=args.seconds, images=own.images)
    for _ in range(args.rounds)
  ]
  row = {"classes": count, "img/s": float(np.median(rates))} | seconds | {"rates": rates}
  return row, own.session.devices.describe()


def of_records(args: argparse.Namespace, count: int) -> dict[str, Any]:
  """Returns a row: seconds of the plan, microseconds of a batch's records."""
  num_classes = min(1000, count // 100)
  plan, exemplars, of_plan = planned(num_classes, count)
  second = plan.states[1]
  pool, phase = plan.pool(second, exemplars), second.phases[0]
  seconds = []
  for n in range(BATCHES):
    started = time.perf_counter()
    phase.sampling.batch(pool, Key(0, 2, 0), n % phase.num_steps, args.new, args.memory)
    seconds.append(time.perf_counter() - started)
  return {"records": count, "classes": num_classes} | {
    **of_plan,
    "first batch, ms": 1e3 * seconds[0],
    "a later batch, us": 1e6 * float(np.median(seconds[1:])),
  }


def main(argv: Sequence[str]) -> None:
  parser = measured.parser(__doc__)
  parser.add_argument("--size", type=int, default=32)
  step_benchmark.add_flags(parser, width=16)
  args = parser.parse_args(argv)
  step_benchmark.prepare(args)
  by_records = [of_records(args, count) for count in RECORDS]
  classes_rows, environments = zip(*(of_classes(args, n) for n in CLASSES), strict=True)
  by_classes, environment = list(classes_rows), environments[-1]
  for title, rows in (("By records", by_records), ("By classes", by_classes)):
    file = args.json and args.json.with_stem(f"{args.json.stem}_{title.split()[1]}")
    measured.show(title, rows, environment=environment, file=file)


if __name__ == "__main__":
  main(sys.argv[1:])
