"""Runs that differ in nothing but the seed, and their means."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from ssil_jax.config import DEFAULTS, Config
from ssil_jax.reports.results import Run
from ssil_jax.settings import fields_of

_KEYS = ("dataset", "method_title", "memory_size", "num_states", "num_classes")
_SETTINGS = tuple(
  field.name
  for field in fields_of(Config)
  if field.metadata["changes"] != "nothing" and field.name != "seed"
)
_MEANS = (
  "top1",
  "top5",
  "error_old_as_new",
  "error_new_as_old",
  "imbalance",
  "state_specific_top1",
  "score_old",
  "score_new",
)


class Group(NamedTuple):
  """Runs of one method that are shown as one, with its label."""

  label: str
  runs: list[Run]

  @property
  def states(self) -> list[dict[str, Any]]:
    """Of the run; of several, their means, and the sum of their confusion matrices."""
    if len(self.runs) == 1:
      return self.runs[0].results["states"]
    states = zip(*(run.results["states"] for run in self.runs), strict=True)
    return [
      {
        **rows[0],
        **{name: mean([row[name] for row in rows]) for name in _MEANS},
        "confusion": sum(np.array(row["confusion"]) for row in rows).tolist(),
      }
      for rows in states
    ]


class Grouped(NamedTuple):
  """Numbers of runs, from 0, in the order of the runs."""

  groups: list[list[int]]  # of runs that differ only in the seed
  unfinished: list[int]  # in no group
  repeated: list[int]  # in no group, as their group has one with their seed


def group(runs: Sequence[Run]) -> Grouped:
  """Puts finished runs that differ in nothing but the seed together."""
  found = Grouped([], [], [])
  for number, run in enumerate(runs):
    if len(run.results["states"]) < run.results["num_states"]:
      found.unfinished.append(number)
      continue
    # With all of a group, since a run without config.json is like several that differ.
    members = next(
      (g for g in found.groups if all(alike(runs[other], run) for other in g)), None
    )
    if members is None:
      found.groups.append([number])
    elif run.results["seed"] in [runs[other].results["seed"] for other in members]:
      found.repeated.append(number)
    else:
      members.append(number)
  return found


def alike(run: Run, other: Run) -> bool:
  """Whether two runs differ in nothing but the seed, as far as their files tell."""
  if any(run.results[key] != other.results[key] for key in _KEYS):
    return False
  seen, other_seen = ([s["num_seen"] for s in r.results["states"]] for r in (run, other))
  if seen != other_seen:
    return False
  if run.config is None or other.config is None:
    return True
  return settings(run) == settings(other) and not _on_other_data(run.config, other.config)


def _on_other_data(config: dict[str, Any], other: dict[str, Any]) -> bool:
  """Whether something that both config.json tell of their data differs."""
  ours, theirs = (saved.get("data") for saved in (config, other))
  if not ours or not theirs:  # runs by earlier versions have one hash alone
    ours, theirs = (
      {name: saved[name] for name in ("data_fingerprint",) if name in saved}
      for saved in (config, other)
    )
  return any(ours[name] != theirs[name] for name in ours.keys() & theirs.keys())


def settings(run: Run) -> dict[str, Any]:
  """What config.json says of what makes a run another run, other than the seed."""
  saved = {**DEFAULTS, **(run.config or {})}
  return {name: saved.get(name) for name in _SETTINGS}


def mean(values: Sequence[float | None]) -> float | None:
  """None where one of the values is."""
  return None if None in values else fmean(values)
