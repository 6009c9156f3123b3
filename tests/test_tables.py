"""Tables and labels from results that can be checked by hand."""

import io

import pytest
from rich.console import Console
from test_results import RESULTS, one_state, write_run

from ssil_jax import tables
from ssil_jax.results import load_run

STATE_ROWS = [
  ["1", "2", "90.0", "100.0", "-", "-", "-", "90.0", "60.0"],
  ["2", "4", "62.6", "96.0", "30.0", "10.0", "20.0", "85.0", "5.6"],
  ["average", "", "76.3", "98.0", "30.0", "10.0", "20.0", "87.5", "32.8"],
]
COMPARISON_ROW = ["SS-IL", "76.3", "98.0", "20.0", "62.6", "30.0", "10.0", "1m 06s"]


def table_cells(table):
  """Header and rows of a rich table, as lists of strings."""
  columns = [[str(cell) for cell in column.cells] for column in table.columns]
  rows = [list(row) for row in zip(*columns, strict=True)]
  return [[str(column.header) for column in table.columns], *rows]


def test_format_table():
  header, *rows = table_cells(tables.format_table(RESULTS))
  assert header == list(tables.STATE_COLUMNS)
  assert rows == STATE_ROWS


def test_format_table_fits_a_terminal_of_80_with_each_row_on_one_line():
  console = Console(width=80, file=io.StringIO())
  console.print(tables.format_table(RESULTS))
  title, header, _, *rows = console.file.getvalue().splitlines()
  assert title.strip() == "SS-IL on digits"
  assert header.split() == list(tables.STATE_COLUMNS)
  assert rows[1].split() == STATE_ROWS[1]


def test_comparison_table(tmp_path):
  runs = [
    load_run(write_run(tmp_path / "a")),
    load_run(
      write_run(tmp_path / "b", results=one_state(), method_title="FT", num_states=5)
    ),
  ]
  header, full, partial = table_cells(tables.comparison_table(runs))
  assert header == list(tables.COMPARISON_COLUMNS)
  assert full == COMPARISON_ROW
  partial_row = ["FT (1 of 5 states)", "90.0", "100.0", "-", "90.0", "-", "-", "1m 00s"]
  assert partial == partial_row


def test_names_are_no_markup_on_the_terminal(tmp_path):
  workdir = write_run(tmp_path / "a", method_title="[red]x[/red]\u001b[31m")
  table = tables.comparison_table([load_run(workdir)])
  console = Console(width=120, file=io.StringIO())
  console.print(table)
  assert "[red]x[/red]\ufffd[31m" in console.file.getvalue()


@pytest.mark.parametrize(
  ("changes", "labels"),
  [
    ([{}, {"method_title": "FT"}], ["SS-IL", "FT"]),
    ([{"seed": 1}, {"seed": 2}], ["SS-IL (seed 1)", "SS-IL (seed 2)"]),
    (
      [{"memory_size": 40}, {"memory_size": 80, "num_states": 3}],
      ["SS-IL (|M|=40, T=2)", "SS-IL (|M|=80, T=3, 2 of 3 states)"],
    ),
    ([{}, {}], ["SS-IL (run0)", "SS-IL (run1)"]),
    ([{}, {}, {"seed": 1}], [f"SS-IL (seed {n})" for n in ("7, run0", "7, run1", 1)]),
  ],
)
def test_run_labels_say_what_differs(tmp_path, changes, labels):
  workdirs = [write_run(tmp_path / f"run{i}", **c) for i, c in enumerate(changes)]
  assert tables.run_labels([load_run(path) for path in workdirs]) == labels


def test_run_labels_with_equal_folders(tmp_path):
  workdirs = [write_run(tmp_path / top / "run") for top in "ab"]
  runs = [load_run(path) for path in workdirs]
  assert tables.run_labels(runs) == ["SS-IL (run, #1)", "SS-IL (run, #2)"]


@pytest.mark.parametrize(
  ("changes", "reason"),
  [
    ({}, ""),
    ({"dataset": "birds"}, "different data sets (digits, birds)."),
    ({"num_classes": 10}, "different numbers of classes (4, 10)."),
  ],
)
def test_comparability_note(tmp_path, changes, reason):
  workdirs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", **changes)]
  note = tables.comparability_note([load_run(path) for path in workdirs])
  assert note.endswith(reason)
  assert bool(note) == bool(reason)
