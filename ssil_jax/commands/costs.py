"""Lists planned runs with what they cost, by steps that are measured on this machine."""

import concurrent.futures
import json
import multiprocessing
import os
import pathlib
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from ssil_jax import methods as methods_lib
from ssil_jax.commands import command_line, planning
from ssil_jax.commands.planning import PlannedJob
from ssil_jax.config import Config
from ssil_jax.system import cpu_name, keep_freed_memory, usable_cores, write_json

# Settings that the program of a step, or the place where it runs, depends on.
_SETTINGS = (
  *("dataset", "num_classes", "width", "precision", "matmul_precision", "augment"),
  *("num_devices", "input_processes"),
)
# Fields of a method that make its steps cost more than a loss does.
_COSTLY = (
  *("num_proxies", "stage_outputs", "penalty", "elastic", "parts", "carry"),
  *("init_own", "weights", "replay", "freezes_features", "unlabeled_dir"),
)
_SELECTING = ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES")  # which devices are used
_SECONDS = 3600  # in an hour


def measure_apart(config: Config) -> float:
  """Returns images per second, measured in a process of its own, like that of a run."""
  from ssil_jax.training import speed

  context = multiprocessing.get_context("spawn")
  pool = concurrent.futures.ProcessPoolExecutor(
    1, mp_context=context, initializer=keep_freed_memory
  )
  with pool:
    return pool.submit(speed.measure, config).result()


class Rates:
  """Knows the images per second of runs, of those whose steps are alike by one of them.

  They are kept in a file, each with the machine that it was measured on.
  """

  def __init__(self, path: pathlib.Path, planned: Sequence[PlannedJob]):
    """Takes the file, which need not exist, and all runs that it may be asked about."""
    self._path = path
    self._rows = _load(path)
    self._machine = _machine()
    kinds = [_kind(one) for one in planned if _is_measured(one)]
    unknown = [kind for kind in kinds if self._find(kind) is None]
    self._to_measure = len({json.dumps(kind) for kind in unknown})
    self._measured = 0

  def of(self, one: PlannedJob) -> float | None:
    """Returns the images per second of a run, measured now if they are not known.

    None if there is nothing to train, or nothing to measure it by.
    """
    if not _is_measured(one):
      return None
    kind = _kind(one)
    if (rate := self._find(kind)) is None:
      self._measured += 1
      print(
        f"measuring a step of {one.job.workdir.name} ({self._measured} of "
        f"{self._to_measure}) ...",
        file=sys.stderr,
        flush=True,
      )
      rate = measure_apart(one.job.config)
      row = {"machine": self._machine, "kind": kind, "images_per_second": rate}
      self._rows.append(row)
      self._path.parent.mkdir(parents=True, exist_ok=True)
      write_json(self._path, self._rows)
    return rate

  def _find(self, kind: dict[str, Any]) -> float | None:
    for row in self._rows:
      if (row["machine"], row["kind"]) == (self._machine, kind):
        return row["images_per_second"]
    return None


def _load(path: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the rows of a file of rates; none of a broken one, which is only a cache."""
  try:
    rows = json.loads(path.read_bytes())
    for row in rows:
      if not (row["machine"] and row["kind"] and row["images_per_second"] > 0):
        return []
    return rows
  except (OSError, ValueError, KeyError, TypeError, RecursionError):
    return []


def _machine() -> dict[str, Any]:
  """Returns what else than the program decides how fast a step is."""
  return {
    "node": platform.node(),
    "cpu": cpu_name(),
    "cores": usable_cores(),
    **{name: os.environ.get(name, "") for name in _SELECTING},
    **{name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")},
  }


def _kind(one: PlannedJob) -> dict[str, Any]:
  """Returns what the program of a run's steps depends on: losses cost next to nothing."""
  config, method = one.job.config, methods_lib.get_method(one.job.config.method)
  own = methods_lib.source_hash(config.method) if ":" in config.method else ""
  defaults = methods_lib.Method._field_defaults
  costly = [name for name in _COSTLY if getattr(method, name) is not defaults[name]]
  costly += [phase for phase in method.phases(config, 2) if phase.new_expert]
  return {
    **{name: getattr(config, name) for name in _SETTINGS},
    "image_size": one.image_size,
    "batch": [*one.batch],
    "teacher": method.has_teacher,
    "cosine_head": method.cosine_head,
    "own_method": own,
    # Of parts there may be one for each state.
    "costly": [method.title, config.num_states] if costly else [],
  }


def _is_measured(one: PlannedJob) -> bool:
  return one.has_data and not one.is_finished and one.num_images > 0


def print_plan(
  planned: Sequence[PlannedJob],
  output: pathlib.Path,
  *,
  shard: tuple[int, int] | None = None,
) -> None:
  """Prints a line for each run as soon as its cost is known, and what all come to.

  Args:
    planned: all runs.
    output: the folder where measured rates are kept, in `speed.json`.
    shard: number, from 1, and count of the shards, if only those of one are to be listed.
  """
  parts = planning.shards(planned, shard[1]) if shard else [planned]
  listed = parts[shard[0] - 1] if shard else planned
  everything = [one for part in parts for one in part]
  rates = Rates(output / "speed.json", everything)
  width = max((len(one.job.workdir.name) for one in listed), default=0)
  print(f"{'run':<{width}} {'epochs':>6} {'images':>15} {'hours':>9}")
  for one in listed:
    images = f"{one.num_images:,}" if one.images else "-"
    told = _told(one)
    line = (
      f"{one.job.workdir.name:<{width}} {one.num_epochs:>6} {images:>15} "
      f"{_hours(one, rates):>9}  {told}"
    )
    print(command_line.printable(line.rstrip()), flush=True)
  title = f"shard {shard[0]}/{shard[1]} to do" if shard else "to do"
  print(f"{title}: {_total(listed, rates)}")
  if shard:
    print(f"all shards to do: {_total(everything, rates)}", flush=True)


def _hours(one: PlannedJob, rates: Rates) -> str:
  if one.is_finished or not one.has_data:
    return "-"
  rate = rates.of(one)
  return f"{one.num_images / rate / _SECONDS if rate else 0:.2f}"


def _told(one: PlannedJob) -> str:
  if one.is_finished:
    return "finished"
  if not one.job.lender:
    return ""
  states = "state" if one.job.num_lent == 1 else "states"
  return f"takes {one.job.num_lent} {states} of {one.job.lender.name}"


def _total(planned: Sequence[PlannedJob], rates: Rates) -> str:
  """Returns what the unfinished ones of some runs come to, in words."""
  left = [one for one in planned if not one.is_finished]
  runs = f"{len(left)} run{'' if len(left) == 1 else 's'}"
  images = sum(one.num_images for one in left)
  seconds = sum(one.num_images / rate for one in left if (rate := rates.of(one)))
  without = sum(not one.has_data for one in left)
  if left and without == len(left):
    hours = "hours unknown without the data"
  else:
    hours = (
      f"{seconds / _SECONDS:.1f} hours of training on this machine, by measured steps "
      "(starting, reading and testing add to it)"
    )
    if without:
      hours += f", and those of {without} runs whose data are not there"
  unknown = sum(not one.images for one in left)
  more = f" and those of {unknown} runs on data of unknown size" if unknown else ""
  return f"{runs}, {images:,} images{more}, {hours}"
