"""The paper's command, with a script in the place of training."""

import functools
import sys

import pytest
from folders import ROOT
from written_runs import Page

from ssil_jax.commands import paper

# Stands in for run.py: writes the results of a run, or fails with the method that it is to.
STAND_IN = """
import copy, pathlib, sys
sys.path.insert(0, {tests!r})
from written_runs import RESULTS, write_run
flags = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:])
if flags["method"] == {failing!r}:
  sys.exit("error: no \\x1b room\\nerror: and more")
write_run(
  pathlib.Path(flags["workdir"]), method=flags["method"], method_title=flags["method"]
)
"""
FIGURE5 = ["paper.py", "figure5", "--scale=digits", "--output=o"]


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
  """Makes the runs those of a script; takes the method that fails."""

  def use(failing=""):
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN.format(tests=str(ROOT / "tests"), failing=failing))
    command = [sys.executable, str(script)]
    monkeypatch.setattr(paper, "Runner", functools.partial(paper.Runner, command=command))

  return use


def test_the_page_names_runs_that_failed_and_those_that_needed_them(
  stand_in, tmp_path, capsys
):
  stand_in("ft")
  assert paper.main(FIGURE5) == 1
  shown = Page(tmp_path / "o" / "report.html").text
  printed = capsys.readouterr().out
  # IL2M and SS-IL would take states of FT; iCaRL trains all of its own.
  for line in (
    "digits-ft-T5-M20-N8-0 failed (no \\x1b room): what needs it is missing",
    "digits-il2m-T5-M20-N8-0 was not run, as digits-ft-T5-M20-N8-0 is not done: what needs "
    "it is missing",
    "digits-ssil-T5-M20-N8-0 was not run, as digits-ft-T5-M20-N8-0 is not done: what needs "
    "it is missing",
  ):
    assert line in shown
    assert line in printed.splitlines()
  assert "digits-icarl-T5-M20-N8-0 was" not in shown


def test_where_every_run_fails_the_reasons_are_said(stand_in, capsys):
  stand_in("ft")
  assert paper.main(["paper.py", "figure1", "--scale=digits", "--output=o"]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("error: no run is finished yet, and there is nothing to show: ")
  assert "digits-ft-T5-M20-N8-0 failed (no \\x1b room)" in line


def test_broken_results_are_named_before_they_are_written_anew(stand_in, tmp_path, capsys):
  stand_in()
  # A shard writes no page, which takes its time.
  command = ["paper.py", "figure7", "--scale=digits", "--output=o", "--shard=1/1"]
  assert paper.main(command) == 0
  assert "written anew" not in capsys.readouterr().out
  path = tmp_path / "o" / "runs" / "digits-il2m-T5-M10-N8-0" / "results.json"
  path.write_text("{")
  assert paper.main(command) == 0
  first, *_ = capsys.readouterr().out.splitlines()
  assert first.startswith(f"note: {path}: is not valid JSON")
  assert first.endswith("; its run is resumed and writes it anew")
