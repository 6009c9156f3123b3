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
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ssil_jax import config as config_lib
from ssil_jax import methods as methods_lib
from ssil_jax.commands import run
from ssil_jax.config import Config
from ssil_jax.errors import ConfigError, DataError, UserError
from ssil_jax.paths import real_path, run_mistakes
from ssil_jax.settings import fields_of

if TYPE_CHECKING:  # the rest of the data imports jax, and help needs none of it
  from ssil_jax.data.dataset import Dataset

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
  epochs: tuple[int, ...]  # of each state, whether it is trained or taken
  images: tuple[int, ...]  # that a state's steps see, repetitions counted; () if unknown
  batch: tuple[int, ...]  # images of each kind in the batches that most steps have
  image_size: int
  is_finished: bool
  has_data: bool = True  # else images are those of the data set's usual size, or none

  @property
  def num_epochs(self) -> int:
    """Returns the epochs of all states that it trains."""
    return sum(self.epochs[self.job.num_lent :])

  @property
  def num_images(self) -> int:
    """Returns the images that all its steps see, repetitions counted."""
    return sum(self.images[self.job.num_lent :])


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
      "method_source": methods_lib.source_hash(job.config.method),
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
  size_of: Callable[[Job], tuple[int, int] | None] | None = None,
) -> list[PlannedJob]:
  """Plans each on its data, before any training.

  Args:
    jobs: their data sets are opened one after the other, each once.
    name: what tells a job in errors.
    leave_out: called with a job, and why, for each data set that cannot be opened; jobs on
      it are left out.
    size_of: with it, they are planned all the same, by the classes and training images that
      it returns for a job's data set, or without images where it returns None.

  Raises:
    ConfigError: of what the data and a method rule out, a line each.
    DataError: a data set cannot be opened, without `leave_out`.
  """
  from ssil_jax.data import fingerprint
  from ssil_jax.data.opening import open_dataset

  found: dict[pathlib.Path, PlannedJob] = {}
  mistakes: dict[str, None] = {}
  for group in _by_data(jobs):
    try:
      dataset = open_dataset(group[0].config)
      data = fingerprint.parts(dataset)
    except DataError as error:
      if leave_out is None:
        raise
      leave_out(group[0], error)
      if size_of is None:
        continue
      size, data = size_of(group[0]), None
      dataset = size and _empty_dataset(*size, group[0].config)
    for job in group:
      try:
        found[job.workdir] = _planned(job, dataset, data)
      except UserError as error:
        mistakes |= dict.fromkeys(f"{name(job)}: {li}" for li in str(error).splitlines())
  if mistakes:
    raise ConfigError("\n".join(mistakes))
  return [found[job.workdir] for job in jobs if job.workdir in found]


def _planned(
  job: Job, dataset: "Dataset | None", data: dict[str, str | int] | None
) -> PlannedJob:
  """Plans a job on a data set, or on none; `data` tells whether it is that itself."""
  from ssil_jax.training.plan import make_plan

  config, batch, images = job.config, (), ()
  if dataset:
    phases = [state.phases for state in make_plan(config, dataset).states]
    batch = phases[min(1, len(phases) - 1)][0].group_sizes
    images = tuple(sum(phase.num_images for phase in group) for group in phases)
  else:
    of_state = methods_lib.get_method(config.method).phases
    phases = [of_state(config, t) for t in range(1, config.num_states + 1)]
  return PlannedJob(
    job,
    epochs=tuple(sum(phase.epochs for phase in group) for group in phases),
    images=images,
    batch=batch,
    image_size=dataset.image_size if dataset else 0,
    is_finished=data is not None and is_finished(job, data),
    has_data=data is not None,
  )


def _empty_dataset(num_classes: int, num_images: int, config: Config) -> "Dataset":
  """Returns a data set without a pixel, of classes of the same size."""
  from ssil_jax.data.dataset import Dataset, Split
  from ssil_jax.data.images.augment import Augmentation

  num_chosen = config.num_classes or num_classes

  def split(count: int) -> Split:
    labels = np.arange(count, dtype=np.int32) % num_classes
    labels = labels[labels < num_chosen]
    return Split(np.empty((len(labels), 0, 0, 3), np.uint8), labels)

  return Dataset(
    class_names=tuple(map(str, range(num_chosen))),
    train=split(num_images),
    test=split(num_classes),
    image_size=config.image_size,
    flip=False,
    augmentation=Augmentation(max_shift=0, flip=False),
    random_resized_crop=False,
    normalization=None,
    ignored_files=0,
    skipped_records={},
    notes=(),
  )


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
      and saved["method_source"] == methods_lib.source_hash(job.config.method)
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


class _Unit(NamedTuple):
  """Holds runs that stay together: one, and those that take all of its states."""

  members: list[PlannedJob]
  family: pathlib.Path  # whose units train the same first state, once if they are together
  first: int  # images of that state
  rest: int  # images of all others


def shards(planned: Sequence[PlannedJob], count: int) -> list[list[PlannedJob]]:
  """Divides runs into parts of about the same cost, which need nothing of each other.

  A run that takes all states of another one is in its part. Of those that share their first
  state alone, one in each part trains it. The parts depend on the plan alone, and not on
  what is finished.

  Args:
    planned: all runs.
    count: how many parts.

  Returns:
    The parts, each with lenders of its own.
  """
  place = {one.job.workdir: number for number, one in enumerate(planned)}
  parts: list[list[_Unit]] = [[] for _ in range(count)]
  # The longest first, each to where it ends first; then what is better elsewhere moves.
  for unit in sorted(_units(planned), key=lambda unit: -unit.rest):
    min(parts, key=lambda part: _cost([*part, unit])).append(unit)
  while better := _exchange(parts):
    for number, part in better.items():
      parts[number] = part
  shared = []
  for part in parts:
    members = {one.job.workdir: one for unit in part for one in unit.members}
    in_order = sorted(members, key=place.get)
    jobs = with_lenders([_alone(members[workdir].job) for workdir in in_order])
    shared.append([members[job.workdir]._replace(job=job) for job in jobs])
  return shared


def _units(planned: Sequence[PlannedJob]) -> list[_Unit]:
  units: dict[pathlib.Path, _Unit] = {}
  unit_of: dict[pathlib.Path, pathlib.Path] = {}
  for one in planned:  # lenders come first
    job = one.job
    lender = unit_of.get(job.lender)
    if lender and job.num_lent == len(one.epochs):
      unit_of[job.workdir] = lender
      units[lender].members.append(one)
    else:
      unit_of[job.workdir] = job.workdir
      family = units[lender].family if lender else job.workdir
      first, *rest = one.images or (0,)
      units[job.workdir] = _Unit([one], family, first, sum(rest))
  return [*units.values()]


def _cost(part: Sequence[_Unit]) -> int:
  """Returns the images that the units of a part train on, a family's first state once."""
  firsts = {unit.family: unit.first for unit in part}
  return sum(firsts.values()) + sum(unit.rest for unit in part)


def _exchange(parts: Sequence[Sequence[_Unit]]) -> dict[int, list[_Unit]]:
  """Returns two parts anew: a unit of the longest moves, or changes places with another.

  They are those whose longer one is shortest; none if the longest cannot be shortened so.
  """
  costs = [_cost(part) for part in parts]
  longest = costs.index(max(costs))
  best, found = costs[longest], {}
  for number, part in enumerate(parts):
    if number == longest:
      continue
    for unit in parts[longest]:
      for other in (None, *part):
        left = [one for one in parts[longest] if one is not unit]
        right = [one for one in part if one is not other]
        if other:
          left.append(other)
        right.append(unit)
        cost = max(_cost(left), _cost(right))
        if cost < best:
          best, found = cost, {longest: left, number: right}
  return found


def _alone(job: Job) -> Job:
  """Returns the job without its lender."""
  arguments = [text for text in job.arguments if not text.startswith("--from_workdir=")]
  return job._replace(lender=None, num_lent=0, arguments=arguments)
