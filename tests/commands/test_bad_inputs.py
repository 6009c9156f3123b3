"""Runs every row of docs/bad_inputs.md: its message, its exit code, what it leaves."""

import contextlib
import re
import shlex

import bad_inputs
import pytest

from ssil_jax.commands import (
  compare,
  export,
  learn,
  paper,
  predict,
  prepare,
  run,
  serve,
  sweep,
)

COMMANDS = {
  "run.py": run,
  "predict.py": predict,
  "learn.py": learn,
  "serve.py": serve,
  "compare.py": compare,
  "sweep.py": sweep,
  "paper.py": paper,
  "prepare.py": prepare,
  "export.py": export,
}
ROWS = bad_inputs.rows()
# What libraries print of a machine that is too busy or not the one they compiled for, some
# of it long after the call: they begin a line with the place in their own source.
NATIVE = re.compile(
  r"(WARNING: All log messages before absl::InitializeLog\(\) is called are written to "
  r"STDERR|[IWEF]\d{4} .*(slow_operation_alarm|rendezvous|cpu_aot_loader|cpu_compiler)\.cc:"
  r".*|\*{32,}|\[Compiling module .*\] Very slow compile\?.*|"
  r"Matplotlib is building the font cache; this may take a moment\.)?"
)


def own_lines(errors):
  """What the program has said, without known lines of libraries."""
  return "".join(
    line for line in errors.splitlines(keepends=True) if not NATIVE.fullmatch(line.strip())
  )


def contents(folder):
  """Path -> bytes of all files in a folder."""
  return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("bad", ROWS, ids=[f"{bad.kind}: {bad.what}" for bad in ROWS])
def test_the_message_is_right_and_nothing_is_lost(bad, tmp_path, capfd):
  (tmp_path / "small.cfg").write_text(bad_inputs.SMALL)
  bad_inputs.ARRANGED.get(bad.kind, {}).get(bad.what, lambda folder: None)(tmp_path)
  before = contents(tmp_path)
  script, *arguments = shlex.split(bad.command)
  capfd.readouterr()
  with bad_inputs.MEANWHILE.get(bad.what, contextlib.nullcontext)(tmp_path):
    assert COMMANDS[script].main([script, *arguments]) == bad.exit_code
  errors = own_lines(capfd.readouterr().err).replace(str(tmp_path), "FOLDER")
  pattern = ".*".join(map(re.escape, bad.message.split("…"))) + "\n"
  if not re.fullmatch(pattern, errors):
    assert errors == bad.message + "\n"  # shows where they differ
  assert {path: path.read_bytes() for path in before} == before
  *_, last = lines = errors.splitlines()
  assert last.startswith("error: ")
  # Before it others, and in predict.py the photos that it goes on without.
  assert all(line.startswith(("error: ", "warning: cannot read image ")) for line in lines)


def test_there_are_rows_for_every_command_and_for_all_that_is_arranged():
  assert {bad.command.split()[0] for bad in ROWS} == set(COMMANDS)
  named = [(bad.kind, bad.what) for bad in ROWS]
  assert len(named) == len(set(named)) >= 130
  arranged = {(kind, what) for kind, rows in bad_inputs.ARRANGED.items() for what in rows}
  assert arranged <= set(named)
  assert set(bad_inputs.MEANWHILE) <= {bad.what for bad in ROWS}


def test_only_known_lines_of_libraries_are_left_out():
  error = "error: --seed=-1 must be 0 or more\n"
  noise = (
    "2026-01-02 03:04:05.678: not known\n",
    "E0102 03:04:05.678 12 rendezvous.cc:1] This thread has been waiting\n",
  )
  assert own_lines(f"{error}{noise[1]}") == error
  assert own_lines(f"{noise[0]}{error}warning: a\n") == f"{noise[0]}{error}warning: a\n"
