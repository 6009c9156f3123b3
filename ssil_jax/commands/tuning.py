"""Chooses settings of a sweep on validation images, from a grid of values.

Each combination is trained without a share of the training images and scored on that share
alone; the final runs, with the best one, train on all of them and are the only ones that
see a test image.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from ssil_jax import methods as methods_lib
from ssil_jax.commands import planning, run
from ssil_jax.commands.planning import Job
from ssil_jax.config import Config
from ssil_jax.errors import ConfigError
from ssil_jax.settings import fields_of, owners_of
from ssil_jax.system import write_json

MEASURE = "average.top1"
_FRACTION = 0.1  # of the training images, if none is given
# Of the flags of run.py, those that a sweep with a grid sets itself.
SET_BY_THE_GRID = (*planning.SET_BY_THE_PLAN, "tuned_on")
_PART = re.compile(r"(\w+)=(.*)")
_PLAIN = re.compile(r"[\w.+-]{1,40}")  # what may stand in the name of a folder

Grid = Mapping[str, Sequence[str]]  # name of a setting -> values as they were given


class Combination(NamedTuple):
  """Holds the runs of a method with values of the grid, one for each seed."""

  method: str
  settings: dict[str, Any]  # as the runs have them
  flags: list[str]  # that set them
  jobs: list[Job]


@dataclasses.dataclass(frozen=True)
class Tuning:
  """Knows what is tried, for each method, and where it is kept."""

  output: pathlib.Path  # of the sweep
  passed_on: list[str]  # arguments of run.py that all runs have
  methods: list[str]
  seeds: list[int]
  grid: Grid

  @property
  def folder(self) -> pathlib.Path:
    """Names where the runs on part of the training images are, and what was chosen."""
    return self.output / "tuning"

  @functools.cached_property
  def fraction(self) -> float:
    """Returns the share of the training images that is held out."""
    arguments = ["run.py", *self.passed_on, f"--method={self.methods[0]}"]
    given = run.parse(arguments, methods=self.methods).config
    return given.validation_fraction or _FRACTION

  @functools.cached_property
  def combinations(self) -> list[Combination]:
    """Returns all that is tried; nothing of a method that has no setting of the grid.

    Raises:
      ConfigError: a value is wrong, or two of them make the same run.
    """
    found = []
    for method in self.methods:
      settings = methods_lib.get_method(method).settings
      known = {f.name for f in (*fields_of(Config), *fields_of(settings))}
      own = {name: values for name, values in self.grid.items() if name in known}
      if own:
        found += self._of_method(method, own)
    return found

  def _of_method(self, method: str, grid: Grid) -> list[Combination]:
    combinations: list[Combination] = []
    for values in itertools.product(*grid.values()):
      flags = [f"--{n}={v}" for n, v in zip(grid, values, strict=True)]
      arguments = [*flags, f"--validation_fraction={self.fraction}"]
      first = self._job(pathlib.Path("unused"), method, self.seeds[0], arguments)
      settings = {name: _value(first.config, name) for name in grid}
      for other in combinations:
        if other.settings == settings:
          raise ConfigError(
            f"--grid: {' '.join(flags)} and {' '.join(other.flags)} are the same run of "
            f"--method={method}: leave one out"
          )
      name = "-".join(f"{n}={_in_a_name(value)}" for n, value in settings.items())
      jobs = [
        self._job(
          self.folder / f"{_file_name(method)}-{name}-{seed}", method, seed, arguments
        )
        for seed in self.seeds
      ]
      combinations.append(Combination(method, settings, flags, jobs))
    return combinations

  def _job(
    self, workdir: pathlib.Path, method: str, seed: int, arguments: Sequence[str]
  ) -> Job:
    set_here = [f"--method={method}", f"--seed={seed}", *arguments]
    return planning.make_job(workdir, [*self.passed_on, *set_here], methods=self.methods)

  def jobs(self) -> list[Job]:
    """Returns the runs that are scored on validation images."""
    return planning.with_lenders([job for one in self.combinations for job in one.jobs])

  def final_jobs(self, chosen: Mapping[str, Combination]) -> list[Job]:
    """Returns the runs on all training images.

    Args:
      chosen: method -> the combination that it is trained with.
    """
    jobs = []
    for seed in self.seeds:
      for method in self.methods:
        arguments = ["--validation_fraction=0"]
        if method in chosen:
          arguments += [*chosen[method].flags, f"--tuned_on={self.path(method)}"]
        workdir = self.output / f"{_file_name(method)}-{seed}"
        jobs.append(self._job(workdir, method, seed, arguments))
    return planning.with_lenders(jobs)

  def first(self) -> dict[str, Combination]:
    """Returns method -> its first combination, before anything is known of any."""
    return {one.method: one for one in reversed(self.combinations)}

  def path(self, method: str) -> pathlib.Path:
    """Returns the file that says what was chosen for a method."""
    return self.folder / f"{_file_name(method)}.json"

  def choose(self) -> dict[str, Combination]:
    """Returns method -> the combination with the best mean over the seeds; the first of
    equal ones. Writes it down, too.

    Raises:
      DataError: a run's results are not there, or damaged.
    """
    from ssil_jax.reports.results import load_run

    chosen = {}
    for method, group in itertools.groupby(self.combinations, lambda one: one.method):
      combinations, rows = list(group), []
      for one in combinations:
        scores = [load_run(job.workdir).results["average"]["top1"] for job in one.jobs]
        runs = [
          {"folder": job.workdir.name, "seed": job.config.seed, "score": score}
          for job, score in zip(one.jobs, scores, strict=True)
        ]
        rows.append({"settings": one.settings, "mean": fmean(scores), "runs": runs})
      means = [row["mean"] for row in rows]
      best = chosen[method] = combinations[means.index(max(means))]
      _write_if_new(
        self.path(method),
        {
          "method": method,
          "measure": MEASURE,
          "validation_fraction": self.fraction,
          "grid": {
            name: list(dict.fromkeys(one.settings[name] for one in combinations))
            for name in best.settings
          },
          "chosen": best.settings,
          "scores": rows,
        },
      )
    return chosen


def read_grid(given: str, passed_on: Sequence[str], methods: Sequence[str]) -> Grid:
  """Reads `--grid`: NAME=VALUE,VALUE parts with spaces between.

  Args:
    given: the flag.
    passed_on: what follows --.
    methods: of the sweep.

  Raises:
    ConfigError: a part is none, or its setting cannot be tuned.
  """
  grid: dict[str, list[str]] = {}
  for part in given.split():
    match = _PART.fullmatch(part)
    if not match or not all(values := match[2].split(",")):
      raise ConfigError(
        f"--grid={given}: {part!r} must be NAME=VALUE,VALUE, with spaces between such parts"
      )
    name = match[1]
    if name in grid:
      raise ConfigError(f"--grid={given} names {name} twice")
    if len(set(values)) < len(values):
      raise ConfigError(f"--grid={given} has a value of {name} twice")
    _check_name(name, methods)
    grid[name] = values
  if not grid:
    raise ConfigError("--grid= is empty: give NAME=VALUE,VALUE, or leave the flag out")
  planning.check_passed_on(passed_on, by="--grid", names=grid)
  return grid


def _check_name(name: str, methods: Sequence[str]) -> None:
  """Raises ConfigError unless a setting of this name can be in a grid."""
  chosen = {method: methods_lib.get_method(method) for method in methods}
  fields = {
    field.name: field
    for settings in (Config, *(method.settings for method in chosen.values()))
    for field in fields_of(settings)
  }
  if name in (*SET_BY_THE_GRID, "validation_fraction"):
    raise ConfigError(f"--grid: {name} is set by the sweep itself: leave it out")
  if name not in fields:
    owners = owners_of(methods_lib.METHODS).get(name)
    if owners:
      raise ConfigError(
        f"--grid: {name} belongs to {', '.join(owners)}, and none of them is in --methods: "
        "leave it out"
      )
    raise ConfigError(f"--grid: there is no setting {name!r} (run.py --help lists them)")
  if fields[name].type not in (str, int, float, bool):
    raise ConfigError(f"--grid: {name} is a list, and only single values can be tried")
  if fields[name].metadata["changes"] == "nothing":
    raise ConfigError(f"--grid: {name} does not change what a run learns: leave it out")


def _value(config: Config, name: str) -> Any:
  owner = config if hasattr(config, name) else config.method_settings
  return getattr(owner, name)


def _in_a_name(value: Any) -> str:
  """Returns a value as part of a folder's name; a hash of what cannot be one."""
  text = str(value)
  if _PLAIN.fullmatch(text):
    return text
  return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def _file_name(method: str) -> str:
  return method.replace(":", "-")


def _write_if_new(path: pathlib.Path, content: dict[str, Any]) -> None:
  with contextlib.suppress(OSError, ValueError):  # then it is written anew
    if json.loads(path.read_bytes()) == content:
      return
  write_json(path, content)
