"""Makes tables 1 and 2 of the paper, and one for figure 6: ours beside the published."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ssil_jax.methods import METHODS
from ssil_jax.paper import protocol
from ssil_jax.paper.found import Found
from ssil_jax.paper.protocol import IMAGENET, PAPER, Cell, Scale
from ssil_jax.reports import published
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
PAPER_SOURCE = "arXiv:2003.13947"
AUTHOR_SOURCE = "First author's result files"
# What else gives the paper's cells, each with its label.
ELSEWHERE = {"first author's files": AUTHOR_SOURCE, "ICCV 2021": "SS-IL ICCV 2021"}
_DASH = Shown("-")


def published_value(
  cell: Cell, measure: str, *, source: str, where: str = ""
) -> float | None:
  """Returns a published number of a cell, in per cent; None where there is none.

  Args:
    cell: the paper's.
    measure: of `published.MEASURES`.
    source: part of the source's name.
    where: beginning of the place in it, such as "Table 1".
  """
  facts = published.find(
    dataset=PAPER.datasets[cell.dataset]["dataset"],
    method=cell.method,
    num_states=cell.num_states,
    memory_size=cell.memory_size,
    measure=measure,
  )
  for fact in facts:
    if (
      source in fact.source
      and fact.where.startswith(where)
      and fact.batch_size_memory in (None, cell.batch_size_memory)
      and (cell.epochs is None or fact.epochs == cell.epochs)
    ):
      return fact.value  # the first row is the main result, those after it are variants
  return None


def number(name: str, ours: int, theirs: int) -> str:
  """Returns a setting as it was run, with the paper's own number where that is another."""
  return f"{name}={ours:,}" + (f" (paper: {theirs:,})" if ours != theirs else "")


def table1(found: Found, scale: Scale, dataset: str) -> list[Table]:
  """Returns the tables of a data set: one for each measure, and as many of other sources.

  Those have what the first author's result files and the ICCV version say of the same
  cells.
  """
  columns = protocol.table1_columns(dataset)
  heads = [
    f"{number('T', scale.num_states[states], states)}, "
    f"{number('|M|', scale.memory_size[dataset][memory], memory)}"
    for states, memory in columns
  ]
  tables, others = [], []
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
        ["method", *heads],
        _rows(
          found,
          [(METHODS[method].title, cells) for method, cells in rows],
          name,
          lambda cell, fact=fact: published_value(
            cell, fact, source=PAPER_SOURCE, where="Table 1"
          ),
          higher=higher,
          ranked="columns",
        ),
        sortable=False,  # three rows belong together
      )
    )
    others.append(
      Table(
        f"table1_{_slug(dataset)}_{name}_elsewhere",
        f"{words} in % of the same cells in other sources, and ours less theirs",
        ["method, source", *heads],
        list(_elsewhere(found, rows, name, fact)),
        sortable=False,
      )
    )
  return [*tables, *others]


def _elsewhere(
  found: Found, rows: Sequence[tuple[str, Sequence[Cell]]], name: str, fact: str
) -> Iterator[list[str | Shown]]:
  """Yields two rows for each method and other source that has a number of it."""
  for method, cells in rows:
    ours = [found.summary(cell, name) for cell in cells]
    for label, source in ELSEWHERE.items():
      theirs = [published_value(cell, fact, source=source) for cell in cells]
      if any(value is not None for value in theirs):
        title = f"{METHODS[method].title}, {label}"
        yield [title, *(_theirs(value, best=False) for value in theirs)]
        yield [f"{title}, difference", *map(_difference, ours, theirs)]


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
        ["states", *heads],
        _rows(
          found,
          rows,
          name,
          lambda cell, fact=fact: published_value(
            cell, fact, source=PAPER_SOURCE, where="Table 2"
          ),
          higher=higher,
          ranked="rows",
        ),
        sortable=False,
      )
    )
  return tables


def figure6(found: Found, scale: Scale) -> Table:
  """Returns the averages behind figure 6's plots, beside the first author's files.

  The paper prints the plots alone.
  """
  of_epochs = [
    protocol.cell(IMAGENET, "ssil", epochs=epochs) for epochs in protocol.FIGURE6_EPOCHS
  ]
  cells = {
    f"SS-IL, {number('epochs', scale.epochs[epochs], epochs)}": cell
    for epochs, cell in zip(protocol.FIGURE6_EPOCHS, of_epochs, strict=True)
  }
  cells |= {
    METHODS[method].title: protocol.cell(IMAGENET, method)
    for method in protocol.FIGURE6_ABLATION
    if method != "ssil"
  }
  counted = not found.have_same_seeds(cells.values())
  rows: list[list[str | Shown]] = []
  for title, cell in cells.items():
    ours = found.summary(cell, "top1")
    theirs = published_value(cell, "average_top1", source=AUTHOR_SOURCE)
    rows.append(
      [
        title,
        _ours(ours, best=False, counted=counted),
        _theirs(theirs, best=False),
        _difference(ours, theirs),
      ]
    )
  return Table(
    "figure6",
    f"Figure 6, {scale.label(IMAGENET)}: average top-1 accuracy in %",
    ["run", "ours", "first author's files", "difference"],
    rows,
    sortable=False,
  )


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

  `ranked` says among what: the "rows" or the "columns" of the table. Among ours of
  different seeds none is the best.
  """
  grid = [cells for _, cells in rows]
  counted = not found.have_same_seeds([cell for cells in grid for cell in cells])
  ours = [[found.summary(cell, name) for cell in cells] for _, cells in rows]
  theirs = [[paper(cell) for cell in cells] for _, cells in rows]
  means = [[one and one.mean for one in line] for line in ours]
  best = _best(means, higher=higher, ranked=ranked)
  if ranked == "rows":
    best &= [[found.have_same_seeds(cells)] for cells in grid]
  else:
    best &= [found.have_same_seeds(cells) for cells in zip(*grid, strict=True)]
  best_there = _best(theirs, higher=higher, ranked=ranked)
  shown: list[list[str | Shown]] = []
  for row, (title, _) in enumerate(rows):
    pairs = list(enumerate(zip(ours[row], theirs[row], strict=True)))
    shown += [
      [
        title,
        *(
          _ours(one, best=best[row, column], counted=counted) for column, (one, _) in pairs
        ),
      ],
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


def _ours(one: Summary | None, *, best: bool, counted: bool) -> Shown:
  """Returns mean and deviation, with the number of seeds if that is to be said."""
  if one is None:
    return _DASH
  text = f"{one.mean:.1f}"
  if one.spread is not None:
    text += f" \N{PLUS-MINUS SIGN} {one.spread:.1f}"
  if counted:
    text += f" (n = {one.count})"
  return Shown(text, one.mean, one.spread, one.count, best=best)


def _theirs(value: float | None, *, best: bool) -> Shown:
  return _DASH if value is None else Shown(f"{value:.1f}", value, best=best)


def _difference(ours: Summary | None, theirs: float | None) -> Shown:
  if ours is None or theirs is None:
    return _DASH
  difference = ours.mean - theirs
  return Shown(f"{difference:+.1f}", difference)


def _slug(dataset: str) -> str:
  return dataset.lower().replace("-", "_")
