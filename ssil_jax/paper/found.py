"""Holds what runs of the paper's cells have come to."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssil_jax.errors import DataError
from ssil_jax.paper.protocol import Cell
from ssil_jax.reports.results import Run, load_journal, load_run
from ssil_jax.reports.statistics import Summary, summarize


class Seed(NamedTuple):
  """Holds one finished run of a cell."""

  workdir: Path
  run: Run

  @property
  def states(self) -> list[dict[str, Any]]:
    """Returns the rows of results.json, one a state."""
    return self.run.results["states"]

  @property
  def number(self) -> int:
    """Returns the seed itself."""
    return self.run.results["seed"]


class Found(NamedTuple):
  """Holds the finished runs of each cell, and why others are left out."""

  seeds: Mapping[Cell, list[Seed]]
  left_out: list[str]

  def of(self, cell: Cell) -> list[Seed]:
    """Returns the finished runs of a cell, one a seed; empty if there is none."""
    return self.seeds.get(cell, [])

  def numbers(self, cell: Cell) -> list[int]:
    """Returns the seeds of a cell's finished runs, sorted."""
    return sorted(seed.number for seed in self.of(cell))

  def have_same_seeds(self, cells: Iterable[Cell]) -> bool:
    """Returns whether those of some cells that have runs have them of the same seeds."""
    return len({tuple(self.numbers(cell)) for cell in cells if self.of(cell)}) < 2

  def on_shared_seeds(self, cells: Sequence[Cell]) -> "Found":
    """Returns the runs of some cells with the seeds that all of them have, by seed.

    Means over different seeds differ by the seeds, too, and cannot be compared.
    """
    of_cells = {cell: {seed.number: seed for seed in self.of(cell)} for cell in cells}
    shared = sorted(set.intersection(*map(set, of_cells.values())))
    return Found(
      {cell: [seeds[number] for number in shared] for cell, seeds in of_cells.items()},
      self.left_out,
    )

  def summary(self, cell: Cell, name: str) -> Summary | None:
    """Returns mean and deviation, in per cent, of one of results.json's averages."""
    values = [seed.run.results["average"].get(name) for seed in self.of(cell)]
    found = summarize(values)
    if found is None:
      return None
    spread = None if found.spread is None else 100 * found.spread
    return Summary(100 * found.mean, spread, found.count)

  def mean(self, cell: Cell, name: str) -> float | None:
    """Returns the mean of `summary`."""
    found = self.summary(cell, name)
    return found and found.mean

  def curve(self, cell: Cell, name: str, *, scale: float = 100.0) -> np.ndarray:
    """Returns a score of each state, float [seeds, states]; null is NaN."""
    return self.values(cell, lambda row: row.get(name), scale=scale)

  def values(
    self,
    cell: Cell,
    value: Callable[[dict[str, Any]], float | None],
    *,
    scale: float = 1.0,
  ) -> np.ndarray:
    """Returns `value` of each state's row, float [seeds, states]; None is NaN."""
    rows = [[value(row) for row in seed.states] for seed in self.of(cell)]
    return scale * np.array(rows, np.float64)

  def statistic(self, cell: Cell, name: str) -> np.ndarray:
    """Returns a number of the method's own after each state, float [seeds, states]."""
    return self.values(cell, lambda row: row.get("statistics", {}).get(name))

  def error_gap(self, cell: Cell) -> np.ndarray:
    """Returns e(p,n) less e(n,p) after each state but the first, in points.

    Float [seeds, states - 1].
    """
    old, new = (self.curve(cell, f"error_{k}") for k in ("old_as_new", "new_as_old"))
    return (old - new)[:, 1:]

  def score_gap(self, cell: Cell) -> np.ndarray:
    """Returns the mean score of new less that of old classes, as `error_gap` does."""
    old, new = (self.curve(cell, name, scale=1.0) for name in ("score_old", "score_new"))
    return (new - old)[:, 1:]

  def classes(self, cell: Cell) -> list[int]:
    """Returns the classes seen after each state."""
    return [row["num_seen"] for row in self.of(cell)[0].states]

  def title(self, cell: Cell) -> str:
    """Returns the title of the cell's method."""
    return self.of(cell)[0].run.results["method_title"]

  def label(self, cell: Cell, beside: Sequence[Cell]) -> str:
    """Returns the method's title, with the number of seeds where others have other ones."""
    numbers = "" if self.have_same_seeds(beside) else f" (n = {len(self.of(cell))})"
    return self.title(cell) + numbers

  def training_top1(self, cell: Cell) -> np.ndarray:
    """Returns the top-1 of the training batches of each state's last epoch, in per cent.

    Float [seeds, states]: batches are augmented, and hold exemplars, too.
    """
    return 100 * np.array([_last_epochs(seed) for seed in self.of(cell)])


def _last_epochs(seed: Seed) -> list[float]:
  rows = load_journal(seed.workdir)
  means = []
  for state in (row["state"] for row in seed.states):
    of_state = [row for row in rows if row["state"] == state]
    last = max(row["epoch"] for row in of_state)
    means.append(float(np.mean([row["top1"] for row in of_state if row["epoch"] == last])))
  return means


def find(cells: Mapping[Path, Cell]) -> Found:
  """Reads the runs of some work directories; those that are broken are named and left out.

  Args:
    cells: work directory -> what it is in the paper.
  """
  seeds: dict[Cell, list[Seed]] = {}
  left_out = []
  for workdir, cell in cells.items():
    try:
      run = load_run(workdir)
    except DataError as error:
      left_out.append(f"{workdir.name} is left out: {error}")
      continue
    done, planned = len(run.results["states"]), run.results["num_states"]
    if done < planned:
      left_out.append(f"{workdir.name} is left out: {done} of {planned} states are done")
    else:
      seeds.setdefault(cell, []).append(Seed(workdir, run))
  return Found(seeds, left_out)


def present(found: Found, cells: Iterable[Cell]) -> list[Cell]:
  """Returns those of some cells that have a finished run, in their order."""
  return [cell for cell in cells if found.of(cell)]
