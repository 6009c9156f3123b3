"""The script that compares runs; its tables and its page: see tests/reports."""

import subprocess
import sys

import pytest
from folders import ROOT
from written_runs import SEED_ROW, SEED_RUNS, one_state, seed_run, write_run

from ssil_jax.commands import compare


def output_of(tmp_path, capsys, monkeypatch, *workdirs):
  """Lines on a terminal of 80 columns, without runs of spaces."""
  monkeypatch.setenv("COLUMNS", "80")
  flags = [f"--workdir={workdir}" for workdir in workdirs]
  assert compare.main(["compare.py", *flags, f"--output={tmp_path / 'page'}"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert max(len(line) for line in lines if "SS-IL" in line and "run" not in line) <= 80
  return [" ".join(line.split()) for line in lines]


def test_several_seeds_have_a_second_table(tmp_path, capsys, monkeypatch):
  seeds = [seed_run(tmp_path / f"{run['seed']}", **run) for run in SEED_RUNS]
  unfinished = write_run(tmp_path / "ft", results=one_state(method_title="FT"))
  lines = output_of(tmp_path, capsys, monkeypatch, *seeds, unfinished)
  assert lines.index("Comparison") < lines.index("Over seeds")
  assert lines.index("Over seeds") < lines.index(" ".join(SEED_ROW))
  assert "Left out of the means over seeds: FT (1 of 2 states), not finished." in lines


def test_a_script_that_runs_anywhere(tmp_path):
  write_run(tmp_path / "a")
  write_run(tmp_path / "b", method_title="FT", dataset="birds")
  done = subprocess.run(
    [sys.executable, ROOT / "experiments" / "compare.py"]
    + ["--workdir=a", "--workdir=b", "--output=pages"],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert "76.3" in done.stdout
  assert "not comparable" in done.stdout
  assert "Over seeds" not in done.stdout
  assert f"report: {tmp_path / 'pages' / 'report.html'}" in done.stdout
  assert (tmp_path / "pages" / "report.html").is_file()
  assert (tmp_path / "pages" / "figures" / "accuracy.png").is_file()


@pytest.mark.parametrize(
  ("argument", "what"), [("--workdirs=a", "workdirs"), ("a", "'a' is not a flag")]
)
def test_compare_fails_with_one_line(tmp_path, capsys, monkeypatch, argument, what):
  monkeypatch.chdir(tmp_path)
  assert compare.main(["compare.py", argument]) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ")
  assert what in error
  assert error.count("\n") == 1
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_compare_help_names_the_flags(capsys, flag):
  assert compare.main(["compare.py", flag]) == 0
  out, error = capsys.readouterr()
  assert error == ""
  assert "--workdir" in out
  assert "--output" in out
