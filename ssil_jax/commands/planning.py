"""Plans the runs of a sweep or of the paper: what each is, what it lends, what it costs.

Runs are planned before any is started: settings and data must go together in all of them,
and each takes the states that an earlier one trains just as it would.
"""

import functools
import graphlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ssil_jax import config as config_lib
from ssil_jax.commands import run
from ssil_jax.config import Config
from ssil_jax.errors import ConfigError, DataError, UserError
from ssil_jax.methods.source import source_hash
from ssil_jax.paths import real_path, run_mistakes
from ssil_jax.settings import fields_of

SET_BY_THE_PLAN = ("method", "seed", "workdir", "from_workdir")  # flags of run.py


class Job(NamedTuple):
  """Holds a run's arguments, and whose states it takes."""

  workdir: pathlib.Path
  config: Config
  arguments: list[str]  # of run.py
  ignored: tuple[str, ...] = ()  # settings of other methods
  lender: pathlib.Path | None = None  # the work directory that states are taken from
  num_lent: int = 0  # the states that are, from the first on


class PlannedJob(NamedTuple):
  """Holds a run and what its plan says of it."""

  job: Job
  num_epochs: int  # of all its states that it trains
  num_images: int  # that all its steps see, repetitions counted
  image_size: int
  is_finished: bool


def read_seeds(given: Sequence[str]) -> list[int]:
  """Returns the seeds of --seeds; raises ConfigError."""
  flag = f"--seeds={','.join(given)}"
  if not all(text.isdecimal() for text in given):
    raise ConfigError(f"{flag} must be whole numbers with commas between")
  seeds = [int(text) for text in given]
  if len(set(seeds)) < len(seeds):
    raise ConfigError(f"{flag} names a seed twice")
  return seeds


def read_output(given: str) -> pathlib.Path:
  """Returns the folder of --output; raises ConfigError if runs cannot lie in it."""
  if mistakes := run_mistakes("output", given):
    raise ConfigError("\n".join(mistakes))
  return real_path(given)


def make_job(
  workdir: pathlib.Path, arguments: Sequence[str], *, methods: Sequence[str]
) -> Job:
  """Returns the run of some arguments of run.py, but for --workdir.

  Args:
    workdir: of the run.
    arguments: they may hold settings of other methods, which have no effect.
    methods: whose settings are known, beside those of the package's own.

  Raises:
    ConfigError: as `run.parse`.
  """
  request = run.parse(["run.py", *arguments, f"--workdir={workdir}"], methods=methods)
  # Without the settings of other methods, which its process may not know.
  return Job(workdir, request.config, run.arguments_of(request.given), request.ignored)


def check_passed_on(
  arguments: Iterable[str], *, by: str, names: Iterable[str] = SET_BY_THE_PLAN
) -> None:
  """Raises ConfigError if what follows -- sets what the command itself does."""
  given = {argument.lstrip("-").split("=")[0] for argument in arguments}
  for name in names:
    if name in given:
      raise ConfigError(f"--{name} after -- is set by {by} itself: leave it out")


def with_lenders(jobs: Sequence[Job]) -> list[Job]:
  """Gives each the first of the earlier ones that trains as many states as possible alike.

  Returns:
    The jobs, a lender before those that borrow from it: those without a lender, then those
    that borrow from these, and so on, so that few wait in vain.
  """
  from ssil_jax.training import reuse

  saved = {
    job.workdir: {
      **config_lib.to_json(job.config),
      "method_source": source_hash(job.config.method),
    }
    for job in jobs
  }
  lent: list[Job] = []
  for job in jobs:
    most, lender = 0, None
    for other in filter(functools.partial(_may_lend, job), lent):
      shared = reuse.shared_states(job.config, saved[other.workdir])[0]
      if shared > most:
        most, lender = shared, other.workdir
      if most == job.config.num_states:
        break
    if most:
      arguments = [*job.arguments, f"--from_workdir={lender}"]
      job = job._replace(lender=lender, num_lent=most, arguments=arguments)
    lent.append(job)
  named = {job.workdir: job for job in lent}
  lenders = {job.workdir: [job.lender] if job.lender else [] for job in lent}
  return [named[name] for name in graphlib.TopologicalSorter(lenders).static_order()]


def _may_lend(job: Job, other: Job) -> bool:
  """Returns whether `reuse.shared_states`, which takes a while, need be asked."""
  ours, theirs = job.config, other.config
  deals = [(config.num_states, config.initial_classes) for config in (ours, theirs)]
  same_deal = deals[0] == deals[1] or ours.initial_classes == theirs.initial_classes != 0
  return same_deal and (ours.seed, ours.dataset) == (theirs.seed, theirs.dataset)


def examine(
  jobs: Sequence[Job],
  name: Callable[[Job], str] = lambda job: job.workdir.name,
  *,
  leave_out: Callable[[Job, DataError], None] | None = None,
) -> list[PlannedJob]:
  """Plans each on its data, before any training.

  Args:
    jobs: their data sets are opened one after the other, each once.
    name: what tells a job in errors.
    leave_out: called with a job, and why, for each data set that cannot be opened; jobs on
      it are left out.

  Raises:
    ConfigError: of what the data and a method rule out, a line each.
    DataError: a data set cannot be opened, without `leave_out`.
  """
  from ssil_jax.data import fingerprint
  from ssil_jax.data.opening import open_dataset
  from ssil_jax.training.plan import make_plan

  found: dict[pathlib.Path, PlannedJob] = {}
  mistakes: dict[str, None] = {}
  for group in _by_data(jobs):
    try:
      dataset = open_dataset(group[0].config)
    except DataError as error:
      if leave_out is None:
        raise
      leave_out(group[0], error)
      continue
    data = fingerprint.parts(dataset)
    for job in group:
      try:
        plan = make_plan(job.config, dataset)
      except UserError as error:
        mistakes |= dict.fromkeys(f"{name(job)}: {li}" for li in str(error).splitlines())
        continue
      phases = [phase for state, phase in plan.phases() if state.index > job.num_lent]
      found[job.workdir] = PlannedJob(
        job,
        num_epochs=sum(phase.epochs for phase in phases),
        num_images=sum(phase.num_images for phase in phases),
        image_size=dataset.image_size,
        is_finished=is_finished(job, data),
      )
  if mistakes:
    raise ConfigError("\n".join(mistakes))
  return [found[job.workdir] for job in jobs if job.workdir in found]


def _by_data(jobs: Sequence[Job]) -> list[list[Job]]:
  """Puts those together whose data are the same: the same images in the same order."""
  names = [
    field.name for field in fields_of(Config) if field.metadata["topic"] == "Data"
  ] + ["image_size", "num_classes", "classes", "class_order", "class_order_seed"]
  groups: dict[tuple, list[Job]] = {}
  for job in jobs:
    groups.setdefault(tuple(getattr(job.config, name) for name in names), []).append(job)
  return list(groups.values())


def is_finished(job: Job, data: dict[str, str | int]) -> bool:
  """Returns whether its work directory holds this very run, complete.

  Args:
    job: the run.
    data: `fingerprint.parts` of its data set.
  """
  from ssil_jax.data import fingerprint
  from ssil_jax.reports.results import load_run

  # What a run writes last; that of a path too long is none, and raises nothing.
  if not os.path.isfile(job.workdir / "model.json"):
    return False
  try:
    saved = json.loads((job.workdir / "config.json").read_bytes())
    results = load_run(job.workdir).results
    return (
      not config_lib.differences(job.config, saved)
      and saved["method_source"] == source_hash(job.config.method)
      and not fingerprint.differences(data, saved["data"])
      and len(results["states"]) == results["num_states"]
    )
  except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
    return False  # run.py says what is wrong with it
  except DataError:
    return False


def broken_results(workdir: pathlib.Path) -> str:
  """Returns what is wrong with the results.json of a work directory; "" if nothing is."""
  from ssil_jax.reports.results import load_run

  path = workdir / "results.json"
  if path.is_file():
    try:
      load_run(workdir)
    except DataError as error:
      if str(error).startswith(f"{path}: "):
        return str(error).rpartition("; ")[0]  # without what to do
  return ""


def shards(planned: Sequence[PlannedJob], count: int) -> list[list[Job]]:
  """Divides runs into parts of about the same cost, which need nothing of each other.

  Runs that lend to each other stay together as long as they are no more than a part's
  share; what is cut off trains its first states itself. The parts depend on the plan
  alone, and not on what is finished.

  Args:
    planned: all runs.
    count: how many parts.

  Returns:
    The parts, each with lenders of its own.
  """
  place = {one.job.workdir: number for number, one in enumerate(planned)}
  roots: dict[pathlib.Path, pathlib.Path] = {}
  families: dict[pathlib.Path, list[PlannedJob]] = {}
  for one in planned:  # lenders come first
    root = roots.get(one.job.lender, one.job.workdir)
    roots[one.job.workdir] = root
    families.setdefault(root, []).append(one)
  share = sum(one.num_images for one in planned) / count
  pieces: list[tuple[int, list[PlannedJob]]] = []
  for family in families.values():
    cost, piece = 0, []
    for one in family:
      if piece and cost + one.num_images > share:
        pieces.append((cost, piece))
        cost, piece = 0, []
      cost, piece = cost + one.num_images, [*piece, one]
    pieces.append((cost, piece))
  parts: list[list[PlannedJob]] = [[] for _ in range(count)]
  costs = [0] * count
  for cost, piece in sorted(pieces, key=lambda pair: -pair[0]):
    least = costs.index(min(costs))
    costs[least] += cost
    parts[least] += piece
  return [
    with_lenders(
      [_alone(one.job) for one in sorted(part, key=lambda one: place[one.job.workdir])]
    )
    for part in parts
  ]


def _alone(job: Job) -> Job:
  """Returns the job without its lender."""
  arguments = [text for text in job.arguments if not text.startswith("--from_workdir=")]
  return job._replace(lender=None, num_lent=0, arguments=arguments)
