"""Runs every bad input of bad_inputs.py: its message, its exit code, what it leaves."""

import re
import shlex

import bad_inputs
import pytest
from folders import ROOT

from ssil_jax.commands import compare, prepare, run, sweep

MAINS = {
  "run.py": run.main,
  "compare.py": compare.main,
  "sweep.py": sweep.main,
  "prepare.py": prepare.main,
}
ROWS = [(kind, bad) for kind, rows in bad_inputs.KINDS.items() for bad in rows]
TABLE = ROOT / "docs" / "bad_inputs.md"


def contents(folder):
  """Path -> bytes of all files in a folder."""
  return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
  "bad", [bad for _, bad in ROWS], ids=[f"{kind}: {bad.what}" for kind, bad in ROWS]
)
def test_the_message_is_right_and_nothing_is_lost(bad, tmp_path, monkeypatch, capfd):
  monkeypatch.setattr(run.devices, "prepare_cpu_devices", lambda config: None)
  (tmp_path / "small.cfg").write_text(bad_inputs.SMALL)
  bad.arrange(tmp_path)
  monkeypatch.chdir(tmp_path)
  before = contents(tmp_path)
  script, *arguments = shlex.split(bad.command)
  capfd.readouterr()
  with bad.meanwhile(tmp_path):
    assert MAINS[script]([script, *arguments]) == bad.exit_code
  errors = capfd.readouterr().err.replace(str(tmp_path), "FOLDER")
  pattern = ".*".join(map(re.escape, bad.message.split("…"))) + "\n"
  if not re.fullmatch(pattern, errors):
    assert errors == bad.message + "\n"  # shows where they differ
  assert {path: path.read_bytes() for path in before} == before
  for line in errors.splitlines():
    assert line.startswith("error: ")


def test_there_are_rows_for_every_command():
  assert len(ROWS) >= 30
  assert {bad.command.split()[0] for _, bad in ROWS} == set(MAINS)


def test_the_table_is_up_to_date():
  assert TABLE.read_text(encoding="utf-8") == bad_inputs.table()
