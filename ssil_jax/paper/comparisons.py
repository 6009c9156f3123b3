"""Compares runs of the paper's cells with each other, for what the paper claims of them.

Runs are compared on the seeds that all cells of a comparison have. Numbers that are less
than half a unit of the last shown place apart are level: neither above nor below.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ssil_jax.methods import METHODS
from ssil_jax.paper.found import Found
from ssil_jax.paper.protocol import Cell

PERCENT = 0.05  # numbers of one decimal that are closer than this are level
SCORE = 0.005  # and of two

Number = float | np.ndarray  # an array has a value for each state


class Outcome(NamedTuple):
  """Holds what came of a comparison."""

  holds: bool | None  # None: level
  told: str


class Comparison(NamedTuple):
  """Holds what is compared, and how."""

  cells: Sequence[Cell]
  values: Callable[[Found], Sequence[Number | None]]  # means over the seeds
  holds: Callable[..., bool | None]  # of the values
  told: Callable[..., str]  # of the values

  def outcome(self, found: Found) -> Outcome | None:
    """Returns what the runs say; None if they do not say it, for want of runs or values."""
    shared = found.on_shared_seeds(self.cells)
    if not all(shared.of(cell) for cell in self.cells):
      return None
    values = self.values(shared)
    if any(value is None or np.isnan(value).any() for value in values):
      return None
    holds, told = self.holds(*values), self.told(*values)
    if holds is None:
      told += " (level)"
    if not found.have_same_seeds(self.cells):
      told += f" (n = {len(shared.of(self.cells[0]))})"
    return Outcome(holds, told)

  def wanting(self, found: Found) -> list[str]:
    """Returns what keeps it from an outcome, in words."""
    missing = [f"no {title(cell)}" for cell in self.cells if not found.of(cell)]
    if missing:
      return missing
    shared = found.on_shared_seeds(self.cells)
    names = " and ".join(dict.fromkeys(map(title, self.cells)))
    lack = "a value" if shared.of(self.cells[0]) else "a common seed"
    return [f"{names} lack {lack}"]


def title(cell: Cell) -> str:
  """Returns the title of a cell's method."""
  return METHODS[cell.method].title


def above(one: float, other: float, within: float = PERCENT) -> bool | None:
  """Returns whether one number is above another; None if they are level."""
  return None if abs(one - other) < within else bool(one > other)


def below(one: float, other: float, within: float = PERCENT) -> bool | None:
  """Returns whether one number is below another; None if they are level."""
  return above(other, one, within)


def every(holds: Iterable[bool | None]) -> bool | None:
  """Returns whether all hold: False if one does not, else None if one is level."""
  found = list(holds)
  if False in found:
    return False
  return None if None in found else True


def falling(values: Sequence[float]) -> bool | None:
  """Returns whether each number is below the one before."""
  return every(above(one, following) for one, following in pairwise(values))


def told(*values: float) -> str:
  """Returns numbers with one decimal, parted by strokes."""
  return " / ".join(f"{value:.1f}" for value in values)


def averages(cells: Sequence[Cell], name: str) -> Callable[[Found], list[float | None]]:
  """Returns what reads one of results.json's averages, in per cent, of some cells."""
  return lambda found: [found.mean(cell, name) for cell in cells]


def curve(found: Found, cell: Cell, name: str) -> np.ndarray:
  """Returns a score by state, in per cent, mean over seeds: float [states]."""
  return found.curve(cell, name).mean(axis=0)


def at(name: str, state: int, *cells: Cell) -> Callable[[Found], list[float]]:
  """Returns what reads a score, in per cent, of a state; counted from 0, or from -1."""
  return lambda found: [curve(found, cell, name)[state] for cell in cells]


def average_is(sign: int, name: str, ours: Cell, theirs: Cell) -> Comparison:
  """Compares an average of two cells; `sign` is 1 for above and -1 for below."""
  cells = ours, theirs
  compare = above if sign > 0 else below
  return Comparison(cells, averages(cells, name), compare, told)


def last_is(sign: int, name: str, ours: Cell, theirs: Cell) -> Comparison:
  """Compares a score, in per cent, of two cells after the last state."""
  return Comparison(
    (ours, theirs),
    at(name, -1, ours, theirs),
    above if sign > 0 else below,
    lambda one, other: f"{title(ours)} {one:.1f}, {title(theirs)} {other:.1f}",
  )


def rises(name: str, cell: Cell) -> Comparison:
  """Compares a score, in per cent, after the last state with that after the second."""

  def values(found: Found) -> list[float]:
    _, *later = curve(found, cell, name)
    return [later[0], later[-1]]

  return Comparison(
    (cell,),
    values,
    below,
    lambda first, last: f"{title(cell)} {first:.1f} to {last:.1f}",
  )


def lead_grows(name: str, ours: Cell, theirs: Cell) -> Comparison:
  """Compares the lead in a score after the last state with that after the second."""

  def values(found: Found) -> list[float]:
    _, *lead = curve(found, ours, name) - curve(found, theirs, name)
    return [lead[0], lead[-1]]

  return Comparison(
    (ours, theirs),
    values,
    below,
    lambda first, last: f"over {title(theirs)} {first:+.1f} to {last:+.1f}",
  )
