"""The script that compares runs; its tables and its page: see tests/reports."""

import pytest
from written_runs import SEED_ROW, SEED_RUNS, Page, one_state, seed_run, write_run

from ssil_jax.commands import compare


def output_of(tmp_path, capsys, monkeypatch, *workdirs):
  """Lines on a terminal of 80 columns, without runs of spaces."""
  monkeypatch.setenv("COLUMNS", "80")
  flags = [f"--workdir={workdir}" for workdir in workdirs]
  assert compare.main(["compare.py", *flags, "--output=pages"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert max(len(line) for line in lines if "SS-IL" in line and "run" not in line) <= 80
  assert f"report: {tmp_path / 'pages' / 'report.html'}" in lines
  assert (tmp_path / "pages" / "report.html").is_file()
  assert (tmp_path / "pages" / "figures" / "accuracy.svg").is_file()
  assert (tmp_path / "pages" / "tables" / "results.csv").is_file()
  return [" ".join(line.split()) for line in lines]


def test_several_seeds_have_a_second_table(tmp_path, capsys, monkeypatch):
  seeds = [seed_run(tmp_path / f"{run['seed']}", **run) for run in SEED_RUNS]
  unfinished = write_run(tmp_path / "ft", results=one_state(method_title="FT"))
  lines = output_of(tmp_path, capsys, monkeypatch, *seeds, unfinished)
  assert lines.index("Comparison") < lines.index("Over seeds")
  assert lines.index("Over seeds") < lines.index(" ".join(SEED_ROW))
  assert "Left out of the means over seeds: FT (1 of 2 states), not finished." in lines


def test_runs_that_cannot_be_compared_are_shown_with_the_reason(
  tmp_path, capsys, monkeypatch
):
  write_run(tmp_path / "a")
  write_run(tmp_path / "b", method_title="FT", dataset="birds")
  text = "\n".join(output_of(tmp_path, capsys, monkeypatch, "a", "b"))
  assert "76.3" in text
  assert "not comparable" in text
  assert "Over seeds" not in text


def test_seeds_of_an_edited_method_are_not_averaged_and_the_reason_is_said(
  tmp_path, capsys, monkeypatch
):
  for seed, source in enumerate("ab"):
    seed_run(tmp_path / source, seed, config={"method_source": source})
  lines = output_of(tmp_path, capsys, monkeypatch, "a", "b")
  assert "Over seeds" not in lines
  note = "Not averaged over seeds, as they differ: SS-IL (source of the method)."
  assert note in lines
  assert note in Page(tmp_path / "pages" / "report.html").text


def test_a_broken_run_is_named_and_left_out_and_tables_are_exported(tmp_path, capsys):
  for name, title in (("ssil", "SS-IL"), ("ft", "FT")):
    write_run(tmp_path / name, method=name, method_title=title)
  broken = tmp_path / "broken"
  broken.mkdir()
  (broken / "results.json").write_text("{\u001b")
  flags = [f"--workdir={tmp_path / name}" for name in ("broken", "ssil", "ft")]
  output = ["--output=pages", "--highlight=ft", "--export=latex,markdown"]
  assert compare.main(["compare.py", *flags, *output]) == 0
  out, err = capsys.readouterr()
  assert err.startswith(f"warning: {broken / 'results.json'}: is not valid JSON")
  assert err.count("\n") == 1
  assert "SS-IL" in out
  page = Page(tmp_path / "pages" / "report.html")
  assert f"Left out, as files are wrong: {broken / 'results.json'}" in page.text
  names = {path.stem for path in (tmp_path / "pages" / "tables").iterdir()}
  assert {"results", "states_1", "states_2", "runs", "settings"} <= names
  for kind in ("csv", "tex", "md"):
    assert {p.stem for p in (tmp_path / "pages" / "tables").glob(f"*.{kind}")} == names
  lit = [number for number, (tag, a) in enumerate(page.tags) if a.get("class") == "lit"]
  assert len(lit) == 1
  assert page.rows[2][0] == "FT"  # below the names of columns and SS-IL


@pytest.mark.parametrize(
  ("argument", "what"), [("--workdirs=a", "workdirs"), ("a", "'a' is not a flag")]
)
def test_compare_fails_with_one_line(tmp_path, capsys, argument, what):
  assert compare.main(["compare.py", argument]) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ")
  assert what in error
  assert error.count("\n") == 1
  assert list(tmp_path.iterdir()) == []
