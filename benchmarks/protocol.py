"""A whole class-incremental run of SS-IL beside a plain PyTorch trainer, in seconds.

  python benchmarks/protocol.py --json=FILE
  python benchmarks/protocol.py --full

Both train every state on the same records in the same order, as `sampling.py` draws them,
with the same schedule, exemplars and network, and evaluate all classes seen after each
state. Neither writes files. Each round is another seed; first weights are the same, crops
are each trainer's own. Everything but reading the data is timed, compiling included; later
rounds find compiled programs where jax has a cache of them. What compiling takes is told
beside, and is not in the columns of training and evaluation. PyTorch is given all batches
of a state before its first step; ours are made meanwhile. Images are invented, unless
--data_dir names an image folder.
"""

import argparse
import functools
import pathlib
import statistics
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
from ssil_jax.data.dataset import records_of
from ssil_jax.sampling import Key
from ssil_jax.system import keep_freed_memory
from ssil_jax.training import devices, loop, torch_names
from ssil_jax.training.plan import Plan, make_plan
from ssil_jax.training.session import make_session

EVAL_BATCH = 1000
SMALL = {
  "num_classes": 20,
  "num_states": 4,
  "memory_size": 200,
  "image_size": 16,
  "width": 8,
  "batch_size_new": 64,
  "batch_size_memory": 16,
  "epochs_first": 4,
  "epochs": 2,
}
# CIFAR-100 in ten states, the protocol of experiments/cifar100.cfg.
FULL = {
  "num_classes": 100,
  "num_states": 10,
  "memory_size": 2000,
  "image_size": 32,
  "width": 64,
  "batch_size_new": 128,
  "batch_size_memory": 32,
  "epochs_first": 100,
  "epochs": 20,
}


def plan_of(args: argparse.Namespace, seed: int) -> Plan:
  settings = (FULL if args.full else SMALL) | {
    "seed": seed,
    "precision": args.precision,
    "learning_rate": 0.1,
    "batch_size_test": EVAL_BATCH,
  }
  if args.data_dir:
    return make_plan(
      ssil_jax.make_config(dataset="image_folder", data_dir=args.data_dir, **settings)
    )
  num_classes, size = settings.pop("num_classes"), settings["image_size"]
  dataset = measured.generated(
    num_classes=num_classes, train=500 if args.full else 200, test=100, size=size
  )
  return make_plan(ssil_jax.make_config(**settings), dataset)


def ours(plan: Plan) -> dict[str, Any]:
  """Returns seconds and accuracies of our run."""
  started = time.perf_counter()
  session = make_session(plan, devices.choose_devices(plan.config))
  with session.stopwatch.watching_compiler():
    finished = loop.train(session, session.start())
  seconds = time.perf_counter() - started
  rows = finished.results
  spent = {name: sum(row["seconds"][name] for row in rows) for name in rows[0]["seconds"]}
  return {
    "seconds": seconds,
    "training": spent["steps"] + spent["input"],
    "evaluation": spent["evaluation"],
    "compiling": spent["compiling"],
    "top1": float(np.mean([row["top1"] for row in rows])),
    "environment": session.devices.describe(),
  }


def theirs(plan: Plan, compiled: str | None) -> dict[str, Any]:
  """Returns seconds and accuracies of PyTorch's."""
  import torch
  import torch_peer

  config, dataset = plan.config, plan.dataset
  session = make_session(plan, devices.choose_devices(config))  # for its initial values
  variables = {
    "params": session.initial.params,
    "batch_stats": session.initial.batch_stats,
  }
  head = session.initial.params["head"]
  weights = torch_names.to_torch(variables, steps=0)
  weights |= {"fc.weight": np.transpose(head["kernel"]), "fc.bias": head["bias"]}
  del session
  started = time.perf_counter()
  trainer = torch_peer.Trainer(
    num_classes=len(dataset.class_names),
    width=config.width,
    size=dataset.image_size,
    bfloat16=config.precision == "bfloat16",
    compiled=compiled,
    images=dataset.train.images,
    pad=dataset.augmentation.max_shift,
    weights=weights,
    momentum=config.momentum,
    weight_decay=config.weight_decay,
  )
  labels = trainer.put(dataset.train.labels.astype(np.int64))
  test_labels = trainer.put(dataset.test.labels.astype(np.int64))
  test_images = trainer.put(dataset.test.images)
  compiling = 0.0
  if compiled:
    counts = {sum(phase.group_sizes) for _, phase in plan.phases()}
    batches = [trainer.put(np.arange(n) % len(dataset.train.labels)) for n in counts]
    scored = [records_of(dataset.test.labels, 0, state.num_seen) for state in plan.states]
    began = time.perf_counter()
    trainer.compile(batches, test_images, labels, scored)
    compiling = time.perf_counter() - began
  exemplars, top1, trained, evaluated = memory.empty(), [], 0.0, 0.0
  for state in plan.states:
    pool = plan.pool(state, exemplars)
    began = time.perf_counter()
    ends = torch.tensor([state.num_old, state.num_seen], device=trainer.device)
    for phase in state.phases:
      trainer.forget_momentum()
      key = Key(config.seed, state.index, phase.number)
      sizes = config.batch_size_new, config.batch_size_memory
      batches = [phase.sampling.batch(pool, key, n, *sizes) for n in range(phase.num_steps)]
      records = trainer.put(np.stack(batches))
      for n, batch in enumerate(records):
        if n % phase.steps_per_epoch == 0:
          trainer.set_learning_rate(phase.learning_rate_at(n // phase.steps_per_epoch))
        trainer.step(batch, labels[batch], ends)
    trainer.wait()
    trained += time.perf_counter() - began
    began = time.perf_counter()
    seen = records_of(dataset.test.labels, 0, state.num_seen)
    top1.append(trainer.accuracy(test_images, test_labels, seen, state.num_seen))
    evaluated += time.perf_counter() - began
    new = (pool.new, pool.new_labels, pool.new_ranks)
    sizes = {"memory_size": config.memory_size, "num_seen": state.num_seen}
    exemplars = memory.update(exemplars, *new, **sizes)
  seconds = time.perf_counter() - started
  return {
    "seconds": seconds,
    "training": trained,
    "evaluation": evaluated,
    "compiling": compiling,
    "top1": float(np.mean(top1)),
    "environment": measured.torch_environment(),
  }


def measure(args: argparse.Namespace) -> None:
  """Trains, and shows the rows of the table as they come."""
  rows, environment = [], {}
  for seed in range(args.rounds):
    plan = plan_of(args, seed)
    trained, scored = num_images(plan)
    trainers = {"ssil_jax": functools.partial(ours, plan)}
    for way in args.torch:
      compiled = None if way == "eager" else way
      trainers[f"PyTorch, {way}"] = functools.partial(theirs, plan, compiled)
    for name, train in trainers.items():
      found = train()
      environment |= found.pop("environment")
      row = {"seed": seed, "trainer": name} | found
      row["training, img/s"] = trained / found["training"]
      row["evaluation, img/s"] = scored / found["evaluation"]
      rows.append(row)
      first = next(row for row in rows if row["seed"] == seed)  # ours
      row["ssil_jax / it"] = row["seconds"] / first["seconds"]
      row["but for compiling"] = _but_for_compiling(row) / _but_for_compiling(first)
      # After each row: a later one may never end.
      measured.show(title(args), rows, environment=environment, file=args.json)
  if args.rounds > 1:
    file = args.json and args.json.with_stem(f"{args.json.stem}_medians")
    measured.show("Medians", medians(rows), environment=environment, file=file)


def _but_for_compiling(row: dict[str, Any]) -> float:
  return row["seconds"] - row["compiling"]


def num_images(plan: Plan) -> tuple[int, int]:
  """Returns how many images a run trains on, and how many it evaluates."""
  scored = [len(records_of(plan.dataset.test.labels, 0, s.num_seen)) for s in plan.states]
  return sum(phase.num_images for _, phase in plan.phases()), sum(scored)


def medians(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """Returns a row for each trainer: medians of its seeds, ratios by seeds."""
  by_trainer: dict[str, list[dict[str, Any]]] = {}
  for row in rows:
    by_trainer.setdefault(row["trainer"], []).append(row)
  mine = [row["seconds"] for row in by_trainer["ssil_jax"]]
  found = []
  for trainer, its_rows in by_trainer.items():
    theirs = [row["seconds"] for row in its_rows]
    top1 = [row["top1"] for row in its_rows]
    found.append(
      {
        "trainer": trainer,
        "seeds": len(its_rows),
        "seconds": statistics.median(theirs),
        "ssil_jax / it": measured.told(measured.ratio(theirs, mine)),
        "top1, mean": statistics.fmean(top1),
        "its deviation": statistics.stdev(top1) if len(top1) > 1 else None,
      }
    )
  return found


def title(args: argparse.Namespace) -> str:
  kind = "CIFAR-100's protocol" if args.full else "A small run"
  return f"{kind}, {args.precision}, {args.data_dir or 'invented images'}"


def main(argv: Sequence[str]) -> None:
  parser = measured.parser(__doc__, rounds=2)
  parser.add_argument("--full", action="store_true", help="CIFAR-100, for accelerators")
  precision = functools.partial(step_benchmark.one_of, step_benchmark.PRECISIONS)
  parser.add_argument("--precision", type=precision, default="float32")
  parser.add_argument("--data_dir", default="")
  step_benchmark.add_torch_flag(parser, "eager")
  args = parser.parse_args(argv)
  settings = FULL if args.full else SMALL
  sizes = {name: settings[name] for name in ("batch_size_new", "batch_size_memory")}
  keep_freed_memory()
  devices.prepare_cpu_devices(ssil_jax.make_config(**sizes))
  measure(args)


if __name__ == "__main__":
  main(sys.argv[1:])
