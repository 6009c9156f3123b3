"""Tables and labels from results that can be checked by hand."""

import io

import pytest
from rich.console import Console
from written_runs import (
  COMPARISON_ROW,
  RESULTS,
  SEED_ROW,
  SEED_RUNS,
  STATE_ROWS,
  one_state,
  results_with,
  seed_run,
  write_run,
)

from ssil_jax.reports import tables
from ssil_jax.reports.results import load_run


def table_cells(table):
  """Header and rows of a rich table, as lists of strings."""
  columns = [[str(cell) for cell in column.cells] for column in table.columns]
  rows = [list(row) for row in zip(*columns, strict=True)]
  return [[str(column.header) for column in table.columns], *rows]


def load_runs(tmp_path, *arguments):
  """Runs in the folders run0, run1, ...; keyword arguments of `seed_run` for each."""
  return [load_run(seed_run(tmp_path / f"run{i}", **a)) for i, a in enumerate(arguments)]


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


SEED_ROW.append("32.0 \u00b1 2.6")


def test_seed_rows_in_order_of_first_appearance(tmp_path):
  first, second, third = SEED_RUNS
  runs = load_runs(
    tmp_path,
    {"seed": 0, "method_title": "FT", "imbalance": None},
    second,
    {"seed": 5, "method_title": "WA"},
    first,
    {"seed": 1, "method_title": "FT"},
    third,
  )
  header, *rows = table_cells(tables.seed_table(tables.over_seeds(runs)))
  assert header == list(tables.SEED_COLUMNS)
  zero = " \u00b1 0.0"
  assert rows == [
    ["FT", "2", f"70.0{zero}", f"90.0{zero}", "-", f"60.0{zero}"],
    SEED_ROW,
    ["WA", "1", "70.0", "90.0", "20.0", "60.0"],
  ]


@pytest.mark.parametrize(
  ("others", "what"),
  [
    ([{"seed": 1}], "n is 2."),
    ([{"seed": 1}, {"seed": 0, "method_title": "FT"}], "n is 1 or 2, without a deviation"),
    (
      [{"seed": 1}, {"seed": 2}]
      + [{"seed": seed, "method_title": "FT"} for seed in range(2)]
      + [{"seed": 0, "method_title": "WA"}],
      "n is 1, 2 or 3, without a deviation where it is 1.",
    ),
  ],
)
def test_caption_over_seeds_says_what_the_deviation_is(tmp_path, others, what):
  caption = tables.over_seeds(load_runs(tmp_path, {"seed": 0}, *others)).caption
  assert caption.startswith("Mean \u00b1 sample standard deviation (divisor n - 1)")
  assert what in caption


@pytest.mark.parametrize(
  "changes",
  [
    {},  # the same seed again
    {"seed": 1, "dataset": "birds"},
    {"seed": 1, "method_title": "FT"},
    {"seed": 1, "memory_size": 80},
    {"seed": 1, "num_classes": 10},
    {"seed": 1, "num_states": 3},  # not finished
  ],
)
def test_nothing_over_seeds_of_runs_that_differ_otherwise(tmp_path, changes):
  assert tables.over_seeds(load_runs(tmp_path, {"seed": 0}, {"seed": 0, **changes})) is None


def test_runs_with_other_classes_in_a_state_are_no_seeds(tmp_path):
  runs = load_runs(tmp_path, {"seed": 0}, {"seed": 1})
  runs[1].results["states"][0]["num_seen"] = 3
  assert tables.over_seeds(runs) is None


@pytest.mark.parametrize(
  ("ours", "theirs", "alike"),
  [
    ({"epochs": 5}, {"epochs": 5}, True),
    ({"epochs": 5}, {"epochs": 6}, False),
    ({"class_order_seed": 0}, {"class_order_seed": 1}, False),
    ({"seed": 0, "workdir": "a"}, {"seed": 1, "workdir": "b"}, True),
    ({"data_dir": "a", "num_devices": 1}, {"data_dir": "b", "num_devices": 2}, True),
    ({"temperature": 2.0}, {}, True),  # what an older file lacks is the default
    ({"temperature": 3.0}, {}, False),
    ({"data_fingerprint": "x"}, {"data_fingerprint": "y"}, False),
    ({"data_fingerprint": "x"}, {}, True),
    ({"epochs": 5}, None, True),  # without config.json, results.json alone decides
  ],
)
def test_settings_in_config_json_part_groups(tmp_path, ours, theirs, alike):
  runs = load_runs(tmp_path, {"seed": 0, "config": ours}, {"seed": 1, "config": theirs})
  assert (tables.over_seeds(runs) is not None) == alike


def test_a_run_without_config_joins_one_group_only(tmp_path):
  runs = load_runs(
    tmp_path,
    {"seed": 0},
    {"seed": 1, "config": {"epochs": 5}},
    {"seed": 2, "config": {"epochs": 6}},
  )
  assert [len(group.runs) for group in tables.over_seeds(runs).groups] == [2, 1]


def test_groups_of_one_title_say_what_differs(tmp_path):
  runs = load_runs(
    tmp_path,
    *({"seed": seed, "config": {"epochs": 5, "width": 8}} for seed in (0, 1)),
    {"seed": 0, "config": {"epochs": 6, "width": 8}},
    {"seed": 0, "method_title": "FT", "config": {"epochs": 7}},
    {"seed": 0, "method_title": "WA", "memory_size": 80},
    {"seed": 0, "method_title": "WA", "memory_size": 90},
    {"seed": 0, "method_title": "BiC", "config": {"data_fingerprint": "x"}},
    {"seed": 0, "method_title": "BiC", "config": {"data_fingerprint": "y"}},
  )
  assert [group.label for group in tables.over_seeds(runs).groups] == [
    "SS-IL (epochs=5)",
    "SS-IL (epochs=6)",
    "FT",
    "WA (|M|=80)",
    "WA (|M|=90)",
    "BiC (#6)",
    "BiC (#7)",
  ]


def test_unfinished_and_repeated_runs_are_left_out_and_named(tmp_path):
  runs = load_runs(tmp_path, *SEED_RUNS, {"seed": 1, "top1": 0.1})
  unfinished = write_run(tmp_path / "b", results=one_state(method_title="FT", seed=0))
  found = tables.over_seeds([load_run(unfinished), *runs])
  assert tables.seed_rows(found) == [SEED_ROW]
  assert found.note == (
    "Left out of the means over seeds: FT (1 of 2 states), not finished; SS-IL (seed 1, "
    "run3), with a seed that is there already."
  )
  assert [group.label for group in found.left_out] == [
    "FT (1 of 2 states)",
    "SS-IL (seed 1, run3)",
  ]


def test_no_note_when_all_runs_are_in_a_group(tmp_path):
  assert tables.over_seeds(load_runs(tmp_path, *SEED_RUNS)).note == ""


def test_seed_table_fits_a_terminal_of_80_with_each_row_on_one_line(tmp_path):
  runs = load_runs(tmp_path, *SEED_RUNS)
  console = Console(width=80, file=io.StringIO())
  console.print(tables.seed_table(tables.over_seeds(runs)))
  lines = console.file.getvalue().splitlines()
  assert lines[0].strip() == "Over seeds"
  assert " ".join(SEED_ROW) in [" ".join(line.split()) for line in lines]
  assert all(len(line) <= 80 for line in lines)


def test_statistics_table():
  states = ({"statistics": {"a_b": 0.123456}}, {"statistics": {"c": None, "a_b": -2.0}})
  assert tables.statistics_table(results_with(*states)) == (
    ["state", "a b", "c"],
    [["1", "0.1235", "-"], ["2", "-2", "-"]],
  )


def test_no_statistics_table_without_statistics():
  for states in [({}, {}), ({"statistics": {}}, {"statistics": {}})]:
    assert tables.statistics_table(results_with(*states))[1] == []


@pytest.mark.parametrize(
  ("origins", "note"),
  [
    ((None, None), ""),
    (("/a", None), "State 1 was trained in /a and taken from there."),
    (("/a", "/a"), "States 1 to 2 were trained in /a and taken from there."),
    (
      ("/a", "/b"),
      "State 1 was trained in /a and taken from there. State 2 was trained in /b and "
      "taken from there.",
    ),
  ],
)
def test_origin_note(origins, note):
  states = [{"from_workdir": origin} for origin in origins]
  assert tables.origin_note(results_with(*states)) == note


def test_no_origin_note_for_older_files():
  assert tables.origin_note(RESULTS) == ""
