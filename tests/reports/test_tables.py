"""Tables for the terminal from results that can be checked by hand."""

import io

from rich.console import Console
from written_runs import (
  COMPARISON_ROW,
  RESULTS,
  SEED_ROW,
  SEED_RUNS,
  STATE_ROWS,
  load_seed_runs,
  one_state,
  with_states,
  write_run,
)

from ssil_jax.reports import labels, study, tables
from ssil_jax.reports.results import load_run


def lines_of(table, width=80):
  """What a terminal of that width shows, without runs of spaces."""
  console = Console(width=width, file=io.StringIO())
  console.print(table)
  lines = console.file.getvalue().splitlines()
  assert all(len(line) <= width for line in lines)
  return [" ".join(line.split()) for line in lines]


def test_format_table_fits_a_terminal_of_80():
  title, header, _, *rows = lines_of(tables.format_table(RESULTS))
  assert title == "SS-IL on digits"
  assert header == "state classes top-1 top-5 e(p,n) e(n,p) imbalance own-state seconds"
  assert tables.state_rows(RESULTS) == STATE_ROWS
  for row in STATE_ROWS:
    assert " ".join(cell for cell in row if cell) in rows
  average = {"top1": 0.5, "top5": None, "imbalance": 0.25}  # as the file has it
  *_, row = tables.state_rows({**RESULTS, "average": average})
  assert row == ["average", "", "50.0", "-", "30.0", "10.0", "25.0", "87.5", "32.8"]


def test_comparison_table(tmp_path):
  runs = [
    load_run(write_run(tmp_path / "a")),
    load_run(
      write_run(tmp_path / "b", results=one_state(), method_title="FT", num_states=5)
    ),
  ]
  partial = ["FT (1 of 5 states)", "90.0", "100.0", "-", "90.0", "-", "-", "1m 00s"]
  assert tables.comparison_rows(runs) == [COMPARISON_ROW, partial]
  lines = lines_of(tables.comparison_table(runs))
  assert "average average average last last last training" in lines
  assert "run top-1 top-5 imbalance top-1 e(p,n) e(n,p) time" in lines
  assert {" ".join(COMPARISON_ROW), " ".join(partial)} <= set(lines)


def test_names_are_no_markup_on_the_terminal(tmp_path):
  workdir = write_run(tmp_path, method_title="[red]x[/red]\u001b[31m")
  text = "\n".join(lines_of(tables.comparison_table([load_run(workdir)]), width=120))
  assert "[red]x[/red]\ufffd[31m" in text


def test_seed_rows_in_order_of_first_appearance(tmp_path):
  first, second, third = SEED_RUNS
  ft = {"seed": 0, "method_title": "FT", "imbalance": None}
  wa = {"seed": 5, "method_title": "WA"}
  runs = load_seed_runs(tmp_path, ft, second, wa, first, {**ft, "seed": 1}, third)
  found = labels.over_seeds(runs)
  zero = " ± 0.0"
  rows = [
    ["FT", "2", f"70.0{zero}", f"90.0{zero}", "-", "-", f"60.0{zero}"],
    SEED_ROW,
    ["WA", "1", "70.0", "90.0", "20.0", "-", "60.0"],
  ]
  assert tables.seed_rows(found) == rows
  assert found.note == ""
  lines = lines_of(tables.seed_table(found))
  assert lines[:3] == [
    "Over seeds",
    "seeds average average average",
    "method (n) top-1 top-5 imbalance forgetting last top-1",
  ]
  assert {" ".join(row) for row in rows} <= set(lines)


def test_unfinished_and_repeated_runs_are_left_out_and_named(tmp_path):
  runs = load_seed_runs(tmp_path, *SEED_RUNS, {"seed": 1, "top1": 0.1})
  unfinished = write_run(tmp_path / "b", results=one_state(method_title="FT", seed=0))
  found = labels.over_seeds([load_run(unfinished), *runs])
  names = ["FT (1 of 2 states)", "SS-IL (seed 1, run3)"]
  assert tables.seed_rows(found) == [SEED_ROW]
  assert found.note == (
    f"Left out of the means over seeds: {names[0]}, not finished; {names[1]}, "
    "with a seed that is there already."
  )
  assert [group.label for group in found.left_out] == names


def test_origin_note():
  one, two = "State 1 was trained in /a", "State 2 was trained in /b"
  for origins, note in (
    ((None, None), ""),
    (("/a", None), f"{one} and taken from there."),
    (("/a", "/a"), "States 1 to 2 were trained in /a and taken from there."),
    (("/a", "/b"), f"{one} and taken from there. {two} and taken from there."),
  ):
    states = [{"from_workdir": origin} for origin in origins]
    assert tables.origin_note(with_states(*states)) == note
  assert tables.origin_note(RESULTS) == ""  # of an older file


def test_scores_of_validation_images_are_called_so(tmp_path):
  run = load_run(write_run(tmp_path, split="validation"))
  assert str(tables.format_table(run.results).title) == "SS-IL on digits, validation images"
  title, facts = study.heading([run])
  assert title == "SS-IL on digits (validation images)"
  assert facts.endswith("scored on validation images")
