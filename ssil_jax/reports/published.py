"""Reads published results, which ship as CSV files: one number a row, each with its source.

The files are `experiments/published/*.csv` of a checkout, `share/ssil_jax/published/` of an
installed package. Two sources that disagree have a row each; nothing is averaged here.
"""

import csv
import functools
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ssil_jax.errors import DataError
from ssil_jax.paths import EXPERIMENTS

FOLDER = EXPERIMENTS / "published"

# Means over all states, the first included, except that imbalance and its two errors need
# old classes and begin with state 2; `last_` is after the last state, on all classes.
MEASURES = (
  "average_top1",
  "average_top5",
  "average_imbalance",
  "average_error_old_as_new",
  "average_error_new_as_old",
  "last_top1",
  "last_top5",
)
CERTAINTIES = (
  "printed",
  "first author's result file",
  "survey",
)
_METHOD = re.compile(r"[a-z][a-z0-9_]*")


class Fact(NamedTuple):
  """Holds one published number; None stands for what its source does not say."""

  dataset: str  # as `--dataset` names it
  method: str  # as `--method` names it; methods that are not here by names of their own
  printed_as: str  # the method's name in the source
  network: str
  num_states: int
  initial_classes: int | None  # of the first state; 0: all states are equal
  memory_size: int | None  # exemplars in all; 0: none
  batch_size_memory: int | None
  epochs: int | None  # of a state after the first
  measure: str  # one of `MEASURES`
  value: float  # per cent
  source: str
  where: str  # in the source
  certainty: str  # one of `CERTAINTIES`
  note: str


_REQUIRED = {"dataset", "method", "num_states", "measure", "value", "source", "where"}
_COUNTS = {"num_states": 1, "initial_classes": 0, "memory_size": 0}  # with their least
_COUNTS |= {"batch_size_memory": 1, "epochs": 1}
# Two rows that differ in nothing else contradict each other, or say the same twice.
_SAID = {"value", "note"}


def find(**wanted: Any) -> list[Fact]:
  """Returns the facts whose fields have the wanted values, in the order of the files.

  Args:
    **wanted: fields of `Fact` by name, such as `dataset="imagenet", method="ssil",
      measure="average_top1", num_states=10`. None asks for what a source does not say.

  Raises:
    TypeError: there is no such field.
    DataError: the CSV files are missing or wrong.
  """
  if unknown := wanted.keys() - set(Fact._fields):
    raise TypeError(f"a fact has no {', '.join(sorted(unknown))}")
  return [
    fact
    for fact in read_facts(FOLDER)
    if all(getattr(fact, name) == value for name, value in wanted.items())
  ]


@functools.cache
def read_facts(folder: Path) -> tuple[Fact, ...]:
  """Reads and checks all CSV files of a folder, in the order of their names.

  Raises:
    DataError: there is none; or one cannot be read, has other columns, or a row that is no
      fact or is there twice. It names file and line.
  """
  paths = sorted(folder.glob("*.csv"))
  if not paths:
    raise DataError(f"{folder} has no CSV files of published results: install it again")
  facts: list[Fact] = []
  first_lines: dict[tuple[Any, ...], str] = {}
  for path in paths:
    for number, fact in _read_file(path):
      line = f"{path}: line {number}"
      key = tuple(v for k, v in fact._asdict().items() if k not in _SAID)
      if key in first_lines:
        raise DataError(f"{line} is about the same number as {first_lines[key]}")
      first_lines[key] = line
      facts.append(fact)
  return tuple(facts)


def _read_file(path: Path) -> Iterator[tuple[int, Fact]]:
  """Yields each fact with its line; raises DataError."""
  try:
    text = path.read_text(encoding="utf-8")
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    header = next(rows, [])
    if header != list(Fact._fields):
      raise DataError(f"{path}: line 1: the columns must be {','.join(Fact._fields)}")
    for cells in rows:
      try:
        yield rows.line_num, _fact(cells)
      except ValueError as error:
        raise DataError(f"{path}: line {rows.line_num}: {error}") from error
  except OSError as error:
    raise DataError(f"{path} cannot be read: {error.strerror}") from error
  except UnicodeDecodeError as error:
    raise DataError(f"{path} is not UTF-8 text: save it as UTF-8") from error
  except csv.Error as error:
    raise DataError(f"{path}: line {rows.line_num}: {error}") from error


def _fact(cells: list[str]) -> Fact:
  """Returns the fact of a row; raises ValueError, which says what is wrong."""
  if len(cells) != len(Fact._fields):
    raise ValueError(f"{len(cells)} cells in place of {len(Fact._fields)}")
  row = dict(zip(Fact._fields, cells, strict=True))
  for name, text in row.items():
    if name in _REQUIRED and not text.strip():
      raise ValueError(f"{name} is empty")
  if not _METHOD.fullmatch(row["method"]):
    raise ValueError(f"method {row['method']!r} must be of a-z, 0-9 and _")
  for name, known in (("measure", MEASURES), ("certainty", CERTAINTIES)):
    if row[name] not in known:
      raise ValueError(f"{name} {row[name]!r} must be one of: {', '.join(known)}")
  counts = {name: _count(name, row[name], least) for name, least in _COUNTS.items()}
  return Fact(**{**row, **counts, "value": _per_cent(row["value"])})


def _count(name: str, text: str, least: int) -> int | None:
  if not text:
    return None
  if not (text.isascii() and text.isdigit()) or int(text) < least:
    raise ValueError(f"{name} {text!r} must be a whole number, at least {least}")
  return int(text)


def _per_cent(text: str) -> float:
  try:
    value = float(text)
  except ValueError as error:
    raise ValueError(f"value {text!r} must be a number") from error
  if not 0 <= value <= 100:
    raise ValueError(f"value {text!r} must be per cent, from 0 to 100")
  return value
