"""Defines what a report is made of: sections of tables, figures and paragraphs.

Pages, exports and other reports share these records; they hold what is shown, and nothing
of how.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

_NUMBER = re.compile(r"(?:[<>] ?)?[-+]?\d.*|-|", re.DOTALL)


class Cell(NamedTuple):
  """Holds one cell of a table."""

  text: str  # as shown, e.g. "37.6 ± 0.7"
  value: float | None = None  # what it is sorted by and what CSV has, in the text's unit
  spread: float | None = None  # sample standard deviation, same unit
  count: int | None = None  # seeds
  best: bool = False  # best of its column
  significant: bool = False  # better than the rival in a paired test over seeds
  link: Path | None = None  # a file, to which the page links from its own place


class Table(NamedTuple):
  """Holds a table; the first cell of a row is its heading."""

  name: str  # of its files, without ending, unique on the page: [a-z0-9_]+
  caption: str
  columns: Sequence[str]
  rows: Sequence[Sequence[str | Cell]]
  note: str = ""
  highlighted: Sequence[int] = ()  # rows that stand out, from 0
  sortable: bool = True  # where cells have values


class Figure(NamedTuple):
  """Holds a figure, drawn twice."""

  name: str  # as Table.name
  title: str
  caption: str
  alt: str  # what it shows, for those who do not see it
  svg: bytes
  png: bytes


class Text(NamedTuple):
  """Holds a paragraph."""

  text: str
  warning: bool = False  # stands out


class Terms(NamedTuple):
  """Holds a list of terms, each with what it means."""

  items: Sequence[tuple[str, str]]


Block = Table | Figure | Text | Terms


class Section(NamedTuple):
  """Holds a part of a page under one heading."""

  name: str  # its anchor: [a-z0-9_]+
  title: str
  blocks: Sequence[Block]
  intro: str = ""
  folded: bool = False  # shown on demand


def tables_of(sections: Sequence[Section]) -> Iterator[Table]:
  """Yields all tables in the order of the page."""
  for section in sections:
    yield from (block for block in section.blocks if isinstance(block, Table))


def as_cell(cell: str | Cell) -> Cell:
  """Returns the cell as a record."""
  return Cell(cell) if isinstance(cell, str) else cell


def number_columns(table: Table) -> set[int]:
  """Returns the places of the columns that hold numbers, or dashes for want of one."""
  return {
    place
    for place in range(1, len(table.columns))
    if all(_NUMBER.fullmatch(as_cell(row[place]).text) for row in table.rows)
  }
