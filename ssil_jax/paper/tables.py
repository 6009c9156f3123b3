"""Makes tables 1 and 2 of the paper: ours, the published number, the difference."""

from collections.abc import Callable, Sequence

import numpy as np

from ssil_jax.methods import METHODS
from ssil_jax.paper import protocol, published
from ssil_jax.paper.found import Found
from ssil_jax.paper.protocol import PAPER, Cell, Scale
from ssil_jax.reports.blocks import Cell as Shown
from ssil_jax.reports.blocks import Table
from ssil_jax.reports.statistics import Summary

# Of results.json's averages: its name, that of the published facts, in words, and whether
# higher is better.
MEASURES = (
  ("top1", "average_top1", "Average top-1 accuracy", True),
  ("top5", "average_top5", "Average top-5 accuracy", True),
  ("imbalance", "average_imbalance", "Average imbalance", False),
)
_DASH = Shown("-")


def published_value(cell: Cell, measure: str, table: str) -> float | None:
  """Returns a number that the paper prints, in per cent.

  Args:
    cell: the paper's.
    measure: of `published.MEASURES`.
    table: "Table 1" or "Table 2", which differ in whether they say N_M.
  """
  wanted = {
    "dataset": PAPER.datasets[cell.dataset]["dataset"],
    "method": cell.method,
    "num_states": cell.num_states,
    "memory_size": cell.memory_size,
    "measure": measure,
    "certainty": "printed",
    "where": table,
  }
  if table == "Table 2":
    wanted["batch_size_memory"] = cell.batch_size_memory
  facts = [one for one in published.find(**wanted) if "2003.13947" in one.source]
  return facts[0].value if facts else None


def number(name: str, ours: int, theirs: int) -> str:
  """Returns a setting as it was run, with the paper's own number where that is another."""
  return f"{name}={ours:,}" + (f" (paper: {theirs:,})" if ours != theirs else "")


def table1(found: Found, scale: Scale, dataset: str) -> list[Table]:
  """Returns a table for each measure of table 1 on a data set."""
  columns = protocol.table1_columns(dataset)
  heads = [
    f"{number('T', scale.num_states[states], states)}, "
    f"{number('|M|', scale.memory_size[dataset][memory], memory)}"
    for states, memory in columns
  ]
  tables = []
  for name, fact, words, higher in MEASURES:
    rows = [
      (method, [protocol.cell(dataset, method, *column) for column in columns])
      for method in protocol.COMPARED
    ]
    tables.append(
      Table(
        f"table1_{_slug(dataset)}_{name}",
        f"Table 1, {scale.label(dataset)}: {words.lower()} in % "
        f"({'higher' if higher else 'lower'} is better)",
        ["", *heads],
        _rows(
          found,
          [(METHODS[method].title, cells) for method, cells in rows],
          name,
          lambda cell, fact=fact: published_value(cell, fact, "Table 1"),
          higher=higher,
          ranked="columns",
        ),
      )
    )
  return tables


def table2(found: Found, scale: Scale) -> list[Table]:
  """Returns a table for each measure of table 2."""
  heads = [
    number("N_M", scale.batch_size_memory[replayed], replayed)
    for replayed in protocol.TABLE2_REPLAYED
  ]
  tables = []
  for name, fact, words, higher in (MEASURES[0], MEASURES[2]):
    rows = [
      (
        number("T", scale.num_states[states], states),
        [
          protocol.cell(
            protocol.IMAGENET, "ssil", states, 5_000, batch_size_memory=replayed
          )
          for replayed in protocol.TABLE2_REPLAYED
        ],
      )
      for states in protocol.TABLE2_STATES
    ]
    tables.append(
      Table(
        f"table2_{name}",
        f"Table 2, {scale.label(protocol.IMAGENET)}, SS-IL: {words.lower()} in % by states "
        f"T and replay batch N_M ({'higher' if higher else 'lower'} is better)",
        ["", *heads],
        _rows(
          found,
          rows,
          name,
          lambda cell, fact=fact: published_value(cell, fact, "Table 2"),
          higher=higher,
          ranked="rows",
        ),
      )
    )
  return tables


def _rows(
  found: Found,
  rows: Sequence[tuple[str, Sequence[Cell]]],
  name: str,
  paper: Callable[[Cell], float | None],
  *,
  higher: bool,
  ranked: str,
) -> list[list[str | Shown]]:
  """Returns three rows for each: ours, the paper's, the difference; the best is marked.

  `ranked` says among what: the "rows" or the "columns" of the table.
  """
  ours = [[found.summary(cell, name) for cell in cells] for _, cells in rows]
  theirs = [[paper(cell) for cell in cells] for _, cells in rows]
  means = [[one and one.mean for one in line] for line in ours]
  best = _best(means, higher=higher, ranked=ranked)
  best_there = _best(theirs, higher=higher, ranked=ranked)
  shown: list[list[str | Shown]] = []
  for row, (title, _) in enumerate(rows):
    pairs = list(enumerate(zip(ours[row], theirs[row], strict=True)))
    shown += [
      [title, *(_ours(one, best=best[row, column]) for column, (one, _) in pairs)],
      [
        f"{title}, paper",
        *(_theirs(one, best=best_there[row, column]) for column, (_, one) in pairs),
      ],
      [f"{title}, difference", *(_difference(*pair) for _, pair in pairs)],
    ]
  return shown


def _best(
  grid: Sequence[Sequence[float | None]], *, higher: bool, ranked: str
) -> np.ndarray:
  """Returns which numbers are the best of at least two in their row, or column."""
  values = np.array(grid, np.float64) * (1 if higher else -1)  # None becomes NaN
  axis = 1 if ranked == "rows" else 0
  highest = np.fmax.reduce(values, axis=axis, keepdims=True)
  several = (~np.isnan(values)).sum(axis=axis, keepdims=True) > 1
  return (values == highest) & several


def _ours(one: Summary | None, *, best: bool) -> Shown:
  if one is None:
    return _DASH
  spread = "" if one.spread is None else f" \N{PLUS-MINUS SIGN} {one.spread:.1f}"
  return Shown(f"{one.mean:.1f}{spread}", one.mean, one.spread, one.count, best=best)


def _theirs(value: float | None, *, best: bool) -> Shown:
  return _DASH if value is None else Shown(f"{value:.1f}", value, best=best)


def _difference(ours: Summary | None, theirs: float | None) -> Shown:
  if ours is None or theirs is None:
    return _DASH
  difference = ours.mean - theirs
  return Shown(f"{difference:+.1f}", difference)


def _slug(dataset: str) -> str:
  return dataset.lower().replace("-", "_")
