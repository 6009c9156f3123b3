"""Ranks methods in tables of means over seeds, and tests what differs.

What is said of the tests on the page is said here, beside them.
"""

import itertools
from collections.abc import Sequence
from typing import Any

from ssil_jax.reports.aggregate import Group
from ssil_jax.reports.blocks import Cell, Table
from ssil_jax.reports.measures import MEASURES, TESTED, Measure
from ssil_jax.reports.statistics import (
  LEVEL,
  MIN_PAIRS,
  Comparison,
  Summary,
  compare,
  holm,
  summarize,
)
from ssil_jax.reports.tables import duration

_PLACES = ("dataset", "num_classes", "num_states", "memory_size")  # what a rival shares


def _place(group: Group) -> tuple[Any, ...]:
  """Returns what groups share that can be ranked."""
  results = group.runs[0].results
  return *(results[name] for name in _PLACES), results.get("split") or "test"


def _parts(groups: Sequence[Group]) -> list[tuple[str, list[Group]]]:
  """Puts together what can be ranked together; with what sets it apart from others."""
  parts: dict[tuple[Any, ...], list[Group]] = {}
  for group in groups:
    parts.setdefault(_place(group), []).append(group)
  if len(parts) == 1 or all(len(part) == 1 for part in parts.values()):
    return [("", list(groups))]
  return [
    (f"{dataset}, {classes} classes, T = {states}, |M| = {memory}, {split} images. ", part)
    for (dataset, classes, states, memory, split), part in parts.items()
  ]


def result_tables(groups: Sequence[Group], highlight: str | None) -> list[Table]:
  """Returns, for what can be ranked together, all measures and the tests of differences.

  Args:
    groups: a row each.
    highlight: the method that the others are tested against.
  """
  parts = _parts(groups)
  tables = []
  for number, (place, part) in enumerate(parts, start=1):
    suffix = f"_{number}" if number > 1 else ""
    same = len(set(map(_place, part))) == 1
    tables.append(_result_table(part, highlight, f"results{suffix}", place, ranked=same))
    if same:
      tables += _tests_table(part, highlight, f"tests{suffix}", place)
  return tables


def _result_table(
  groups: Sequence[Group], highlight: str | None, name: str, place: str, *, ranked: bool
) -> Table:
  columns = [_column(groups, measure, ranked=ranked) for measure in MEASURES]
  rows = [
    [group.label, Cell(str(len(group.runs)), len(group.runs)), *cells]
    for group, *cells in zip(groups, *columns, strict=True)
  ]
  several = any(len(group.runs) > 1 for group in groups)
  best = any(cell.best for column in columns for cell in column)
  significant = any(cell.significant for column in columns for cell in column)
  rivals = [group for group in groups if group.is_ranked]
  texts = ["In %, but for time and memory."]
  if best:
    texts.append(
      "Bold: the best of a column. e(p,n) and e(n,p) have none, as what lowers one "
      "raises the other; nor has time, which depends on the machine."
    )
  if any(group.method.startswith("joint") for group in groups) and best:
    texts.append("Joint trains on the images of all classes: a bound, which is not ranked.")
  if best and several and len(rivals) > 1:
    texts.append(_test_note(rivals, any_found=significant))
  if ranked and not _have_same_seeds(rivals):
    texts.append(
      "No best is marked where methods have different seeds: their means differ by the "
      "seeds, too."
    )
  caption = (
    "Mean \N{PLUS-MINUS SIGN} sample standard deviation over seeds of every method"
    if several
    else "Every method"
  )
  lit = [n for n, g in enumerate(groups) if highlight and g.method == highlight]
  return Table(
    name,
    place + caption,
    ("method", "seeds (n)", *(measure.title for measure in MEASURES)),
    rows,
    " ".join(texts),
    highlighted=lit if len(lit) < len(groups) else (),
  )


def _seeds(group: Group) -> set[int]:
  return {run.results["seed"] for run in group.runs}


def _have_same_seeds(groups: Sequence[Group]) -> bool:
  return len({frozenset(_seeds(group)) for group in groups}) <= 1


def _test_note(ranked: Sequence[Group], *, any_found: bool) -> str:
  test = (
    "the difference to every other method is significant (paired t-test over the seeds "
    f"that both have, two-sided, adjusted for their number after Holm, p < {LEVEL})."
  )
  pairs = itertools.combinations(map(_seeds, ranked), 2)
  shared = min(len(one & other) for one, other in pairs)
  if shared < MIN_PAIRS:
    return (
      f"Nothing is tested where two methods share fewer than {MIN_PAIRS} seeds (here "
      f"{shared})."
    )
  return f"*: {test}" if any_found else f"A star would say that {test}"


def _column(groups: Sequence[Group], measure: Measure, *, ranked: bool) -> list[Cell]:
  """Returns a cell for each group, the best one marked if all have the same seeds."""
  values = [summarize([measure.value(run) for run in group.runs]) for group in groups]
  cells = [summary_cell(value, unit=measure.unit) for value in values]
  rivals = [
    place
    for place, (group, value) in enumerate(zip(groups, values, strict=True))
    if group.is_ranked and value is not None
  ]
  if not (ranked and measure.better and len(rivals) > 1):
    return cells
  if not _have_same_seeds([groups[place] for place in rivals]):
    return cells
  best = max(rivals, key=lambda place: measure.better * values[place].mean)
  if all(cells[place].text == cells[best].text for place in rivals):
    return cells  # nothing to choose
  for place in rivals:
    # Two of the same mean, to what is shown, are both the best.
    if round(values[place].mean, 1) == round(values[best].mean, 1):
      cells[place] = cells[place]._replace(best=True)
  tests = [
    compare(_by_seed(groups[best], measure), _by_seed(groups[place], measure))
    for place in rivals
    if place != best
  ]
  if all(test is not None and test.p is not None for test in tests):
    adjusted = holm([test.p for test in tests])
    significant = all(
      _is_better(test, p, measure) for test, p in zip(tests, adjusted, strict=True)
    )
    cells[best] = cells[best]._replace(significant=significant)
  return cells


def _is_better(test: Comparison, adjusted: float, measure: Measure) -> bool:
  """Returns whether the first of two methods is significantly better: in that direction."""
  return adjusted < LEVEL and measure.better * test.mean > 0


def _by_seed(group: Group, measure: Measure) -> dict[int, float | None]:
  return {run.results["seed"]: measure.value(run) for run in group.runs}


def summary_cell(value: Summary | None, *, unit: str = "%") -> Cell:
  """Returns a cell with mean and deviation, or a dash."""
  if value is None:
    return Cell("-")
  if unit == "s":
    text = duration(value.mean)
  elif unit == "bytes":
    text = f"{value.mean / 1e9:.2f} GB"
  else:
    text = f"{value.mean:z.1f}"
    if value.spread is not None:
      text += f" \N{PLUS-MINUS SIGN} {value.spread:.1f}"
  return Cell(text, value.mean, value.spread, value.count)


def _tests_table(
  groups: Sequence[Group], highlight: str | None, name: str, place: str
) -> list[Table]:
  """Compares every other method with the one in question, if there is just one such."""
  chosen = [group for group in groups if group.method == highlight and not group.left_out]
  others = [group for group in groups if group.method != highlight and not group.left_out]
  if len(chosen) != 1 or not others:
    return []
  (ours,) = chosen
  columns, shared = [], [0] * len(others)
  known = [
    m for m in TESTED if any(value is not None for value in _by_seed(ours, m).values())
  ]
  for measure in known:
    found = [compare(_by_seed(ours, measure), _by_seed(o, measure)) for o in others]
    tested = [n for n, test in enumerate(found) if test and test.p is not None]
    adjusted = dict(zip(tested, holm([found[n].p for n in tested]), strict=True))
    differences, p_values = [], []
    for number, test in enumerate(found):
      if test is None:
        differences.append(Cell("-"))
        p_values.append(Cell("-"))
        continue
      shared[number] = max(shared[number], test.count)
      text = f"{test.mean:+z.1f}"
      p = adjusted.get(number)
      if test.low is not None:
        text += f" [{test.low:+z.1f}, {test.high:+z.1f}]"
      is_better = p is not None and _is_better(test, p, measure)
      differences.append(Cell(text, test.mean, count=test.count, significant=is_better))
      p_values.append(Cell("-") if p is None else Cell(_p_text(p), p))
    columns += [differences, p_values]
  if max(shared) < 2:
    return []
  rows = [
    [other.label, Cell(str(count), count), *cells]
    for other, count, *cells in zip(others, shared, *columns, strict=True)
  ]
  names = [name for m in known for name in (f"{m.title}: difference", f"p, {m.title}")]
  return [
    Table(
      name,
      f"{place}{ours.label} less every other method, in points of per cent",
      ("other method", "shared seeds", *names),
      rows,
      "Mean difference over the seeds that both have, with its 95% confidence interval; p "
      f"of the paired t-test, adjusted after Holm for a column's rows ({len(others)}). "
      f"*: {ours.label} is better with p < {LEVEL}. No test with fewer than {MIN_PAIRS} "
      "seeds, or where all differences are the same; with three seeds, only large and "
      "steady ones pass it.",
    )
  ]


def _p_text(p: float) -> str:
  return "< 0.001" if p < 0.001 else f"{p:.3f}"
