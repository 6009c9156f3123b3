"""Defines the measures of a run that tables compare, and reads them from its results."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ssil_jax.reports.results import Run


class Measure(NamedTuple):
  """Defines a number of a run."""

  title: str  # of its column
  value: Callable[[Run], float | None]
  better: int = 0  # 1: higher is better; -1: lower is; 0: neither, or not by itself
  unit: str = "%"  # or "s", or "bytes"


def _average(name: str) -> Callable[[Run], float | None]:
  return lambda run: _percent(run.results["average"].get(name))


def _over_states(name: str) -> Callable[[Run], float | None]:
  """Reads what results of earlier versions lack, or computes it from their accuracies."""

  def value(run: Run) -> float | None:
    average = run.results["average"]
    rows = [row.get("top1_by_state") for row in run.results["states"]]
    if name in average or None in rows:
      return _percent(average.get(name))
    from ssil_jax import metrics  # only now: it imports jax

    return _percent(getattr(metrics, name)(rows))

  return value


def _own_forgetting(run: Run) -> float | None:
  rows = [row.get("state_specific_top1_by_state") for row in run.results["states"]]
  if None in rows:
    return None
  from ssil_jax import metrics  # only now: it imports jax

  return _percent(metrics.forgetting(rows))


def _last(name: str) -> Callable[[Run], float | None]:
  return lambda run: _percent(run.results["states"][-1].get(name))


def _percent(fraction: float | None) -> float | None:
  return None if fraction is None else 100 * fraction


def _peak_memory(run: Run) -> float | None:
  """Reads that of a device, or of the host where devices have none of their own.

  A run that was resumed knows its processes' peaks by their last states.
  """
  for name in ("peak_device_memory", "peak_host_memory"):
    peaks = [row.get(name) for row in run.results["states"]]
    if None not in peaks:
      return max(peaks)
  return None


AVERAGE_TOP1 = Measure("average top-1", _average("top1"), 1)
LAST_TOP1 = Measure("last top-1", _last("top1"), 1)
IMBALANCE = Measure("average imbalance", _average("imbalance"), -1)
FORGETTING = Measure("forgetting", _over_states("forgetting"), -1)
OWN_FORGETTING = Measure("own-state forgetting", _own_forgetting, -1)
# What lowers one of e(p,n) and e(n,p) raises the other: a method that predicts new classes
# alone has the lowest e(n,p). The times of other machines are others.
MEASURES = (
  AVERAGE_TOP1,
  Measure("average top-5", _average("top5"), 1),
  IMBALANCE,
  Measure("average ECE", _average("ece"), -1),
  LAST_TOP1,
  Measure("last e(p,n)", _last("error_old_as_new")),
  Measure("last e(n,p)", _last("error_new_as_old")),
  Measure("last own-state", _last("state_specific_top1"), 1),
  FORGETTING,
  OWN_FORGETTING,
  Measure("backward transfer", _over_states("backward_transfer"), 1),
  Measure(
    "training time",
    lambda run: sum(row["train_seconds"] for row in run.results["states"]),
    unit="s",
  ),
  Measure("peak memory", _peak_memory, unit="bytes"),
)
TESTED = (AVERAGE_TOP1, LAST_TOP1, IMBALANCE, FORGETTING)  # against the method in question


def accuracy_matrix(run: Run, name: str = "top1_by_state") -> np.ndarray | None:
  """Returns R, float [t, t]: in row i an accuracy of each state's classes after state i.

  It is top-1 by default, or, as `state_specific_top1_by_state`, that where only the classes
  of one state compete. Fractions; NaN above the diagonal and for classes without images.
  None if the results, which may be older, do not have it.
  """
  rows = [row.get(name) for row in run.results["states"]]
  if None in rows:
    return None
  matrix = np.full((len(rows), len(rows)), np.nan)
  for number, row in enumerate(rows):
    matrix[number, : number + 1] = np.array(row, np.float64)  # null becomes NaN
  return matrix


def class_names(run: Run) -> list[str]:
  """Returns the names of the classes seen, in class order; numbers where there are none."""
  num_seen = run.results["states"][-1]["num_seen"]
  names = run.results.get("class_names")
  if names is None:
    return [f"class {number}" for number in range(1, num_seen + 1)]
  return names[:num_seen]


def top1_of_classes(run: Run) -> dict[str, float | None]:
  """Returns name -> top-1 (fraction) after the last finished state; empty if not known."""
  values = run.results["states"][-1].get("top1_by_class")
  return {} if values is None else dict(zip(class_names(run), values, strict=True))
