"""Shows published numbers of a run's protocol beside the run's own."""

from collections.abc import Iterator, Sequence
from typing import Any

from ssil_jax.reports import published
from ssil_jax.reports.aggregate import Group
from ssil_jax.reports.blocks import Cell, Table
from ssil_jax.reports.published import Fact
from ssil_jax.reports.ranking import summary_cell
from ssil_jax.reports.results import Run
from ssil_jax.reports.statistics import summarize

# Data sets of which published runs learn all classes, with how many those are.
NUM_CLASSES = {
  "cifar100": 100,
  "imagenet": 1_000,
  "landmarks_v2/1k": 1_000,
  "landmarks_v2/10k": 10_000,
}
_TITLES = {
  "average_top1": "average top-1",
  "average_top5": "average top-5",
  "average_imbalance": "average imbalance",
  "average_error_old_as_new": "average e(p,n)",
  "average_error_new_as_old": "average e(n,p)",
  "last_top1": "last top-1",
  "last_top5": "last top-5",
}
_COLUMNS = (
  *("run", "measure", "ours", "published", "difference"),
  *("network", "epochs", "source", "how sure"),
)


def published_table(groups: Sequence[Group]) -> Table | None:
  """Returns every published number of a group's method on its protocol; None without any.

  The protocol is the data set with all of its classes, the number of states and the
  classes of the first, and the memory. Network, epochs, N_M and augmentation may differ
  from ours: the table has what the source says of the first two.
  """
  rows = [row for group in groups for row in _rows(group)]
  if not rows:
    return None
  return Table(
    "published",
    "Published numbers of the same data set, states and memory size, in %; the difference "
    "is ours less theirs",
    _COLUMNS,
    rows,
    note="Settings that are not named, such as augmentation and the order of classes, may "
    "differ. Numbers of a first author's file are of one seed.",
  )


def _rows(group: Group) -> Iterator[list[str | Cell]]:
  if group.left_out:
    return
  for fact in _of_protocol(group):
    of_runs = [_value(run, fact.measure) for run in group.runs]
    ours = summarize([None if one is None else 100 * one for one in of_runs])
    if ours is not None:
      difference = ours.mean - fact.value
      yield [
        group.label,
        _TITLES[fact.measure],
        summary_cell(ours),
        Cell(f"{fact.value:.1f}", fact.value),
        Cell(f"{difference:+.1f}", difference),
        fact.network or "-",
        Cell("-") if fact.epochs is None else Cell(str(fact.epochs), fact.epochs),
        fact.source,
        fact.certainty,
      ]


def _of_protocol(group: Group) -> list[Fact]:
  results = group.runs[0].results
  num_classes = NUM_CLASSES.get(results["dataset"])
  if num_classes is None or results["num_classes"] != num_classes:
    return []
  seen = [row["num_seen"] for row in results["states"]]
  equal = num_classes // results["num_states"]
  return [
    fact
    for fact in published.find(
      dataset=results["dataset"],
      method=group.method,
      num_states=results["num_states"],
      memory_size=results["memory_size"],
    )
    if seen[0] == (fact.initial_classes or equal)
  ]


def _value(run: Run, measure: str) -> float | None:
  """Returns a run's own number, a fraction; averages of errors are over states 2 to T."""
  results = run.results
  kind, name = measure.split("_", 1)
  if kind == "last":
    return results["states"][-1][name]
  if name in results["average"]:
    return results["average"][name]
  return _mean([row.get(name) for row in results["states"]])


def _mean(values: Sequence[Any]) -> float | None:
  known = [value for value in values if value is not None]
  return sum(known) / len(known) if known else None
