"""Puts runs together that differ in nothing but the seed, and averages them."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from ssil_jax.config import Config
from ssil_jax.reports.results import SCORES, Run
from ssil_jax.settings import fields_of

_KEYS = ("dataset", "method_title", "memory_size", "num_states", "num_classes")
NO_SETTINGS = {
  *("seed", "data", "data_fingerprint", "version", "started", "command"),
} | {field.name for field in fields_of(Config) if field.metadata["changes"] == "nothing"}

_COUNTS = ("state", "num_old", "num_seen")  # of a state; those of a group's runs are equal
# Methods that train on all images of all classes seen: bounds for the others, no rivals.
_UPPER_BOUNDS = ("joint", "joint_full")


class Group(NamedTuple):
  """Holds a label, and the runs of one method that are shown as one under it."""

  label: str
  runs: list[Run]
  left_out: str = ""  # why it is not ranked and averaged with others, if it is not

  @property
  def title(self) -> str:
    """Returns the title of the method."""
    return self.runs[0].results["method_title"]

  @property
  def method(self) -> str:
    """Returns the method's name, as flags have it; empty in results that lack it."""
    name = self.runs[0].results.get("method")
    return name if isinstance(name, str) else ""

  @property
  def is_ranked(self) -> bool:
    """Returns whether it may be the best: no upper bound may, and no run not done."""
    return not self.left_out and self.method not in _UPPER_BOUNDS

  @property
  def states(self) -> list[dict[str, Any]]:
    """Returns a row for each state: what its runs share, mean scores, summed confusion.

    Other fields of results.json are those of a run, and are read from `runs`. A score that
    one of the runs lacks is None.
    """
    states = zip(*(run.results["states"] for run in self.runs), strict=True)
    return [
      {
        **{name: rows[0][name] for name in _COUNTS},
        **{name: mean([row.get(name) for row in rows]) for name in (*SCORES, "ece")},
        "confusion": sum(np.array(row["confusion"]) for row in rows).tolist(),
      }
      for rows in states
    ]


def group(runs: Sequence[Run]) -> tuple[list[list[int]], dict[int, str]]:
  """Puts finished runs together that differ in nothing but the seed.

  Returns:
    The groups, and the runs in none of them with the reason; each run by its number, from
    0, in the order of the runs.
  """
  groups, left_out = [], {}
  for number, run in enumerate(runs):
    if len(run.results["states"]) < run.results["num_states"]:
      left_out[number] = "not finished"
      continue
    # With all of a group, since a run without config.json is like several that differ.
    members = next((g for g in groups if all(alike(runs[other], run) for other in g)), None)
    if members is None:
      groups.append([number])
    elif run.results["seed"] in [runs[other].results["seed"] for other in members]:
      left_out[number] = "with a seed that is there already"
    else:
      members.append(number)
  return groups, left_out


def alike(run: Run, other: Run) -> bool:
  """Returns whether two runs differ in nothing but the seed, as far as their files tell."""
  return of_one_kind(run, other) and not differences(run, other)


def of_one_kind(run: Run, other: Run) -> bool:
  """Returns whether they are alike in what labels of runs show, the seed aside."""
  return all(run.results[key] == other.results[key] for key in _KEYS)


def differences(run: Run, other: Run) -> list[str]:
  """Returns names of what else keeps two runs from being averaged.

  A version of the program may know settings that another does not: what only one
  config.json has is not compared.
  """
  seen, other_seen = ([s["num_seen"] for s in r.results["states"]] for r in (run, other))
  names = [] if seen == other_seen else ["classes of the states"]
  for name in _differing(settings(run), settings(other)):
    names.append("source of the method" if name == "method_source" else name)
  configs = run.config or {}, other.config or {}
  data = [config.get("data") for config in configs]
  if all(data):
    return [*names, "data"] if _differing(*data) else names
  # Runs by earlier versions have one hash alone, or none.
  hashes = {c["data_fingerprint"] for c in configs if "data_fingerprint" in c}
  return [*names, "data"] if len(hashes) > 1 else names


def settings(run: Run) -> dict[str, Any]:
  """Returns what config.json says that makes a run another run, the seed aside.

  A key that is no field of `Config` is a setting of the method.
  """
  saved = run.config or {}
  return {name: saved[name] for name in saved if name not in NO_SETTINGS}


def _differing(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
  return [name for name in ours if name in theirs and ours[name] != theirs[name]]


def mean(values: Sequence[float | None]) -> float | None:
  """Returns the mean, or None where one of the values is None."""
  return None if None in values else fmean(values)
