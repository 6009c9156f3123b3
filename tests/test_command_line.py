"""Flag files, and what the scripts print of errors."""

import subprocess
import sys

import command_line
import pytest
from absl import flags

from ssil_jax.errors import ConfigError, UserError


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)


def test_flags_of_a_file_take_its_place(tmp_path):
  (tmp_path / "a.cfg").write_text("# note\n\n--a=1\n  --flagfile=b.cfg\n// note\n--c=3")
  (tmp_path / "b.cfg").write_bytes(b"\xef\xbb\xbf--b=2\r\n\r\n")
  arguments = ["--x", "--flagfile=a.cfg", "-flagfile", "b.cfg", "--y=--flagfile=b.cfg"]
  assert command_line.expand_flagfiles(arguments) == [
    *("--x", "--a=1", "--b=2", "--c=3", "--b=2", "--y=--flagfile=b.cfg")
  ]


def test_a_file_may_name_one_of_experiments(tmp_path):
  (tmp_path / "mine.cfg").write_text("--flagfile=quickstart.cfg\n--seed=1\n")
  expanded = command_line.expand_flagfiles(["--flagfile=mine.cfg"])
  assert "--epochs_first=20" in expanded
  assert expanded[-1] == "--seed=1"


def test_a_file_may_be_named_twice_but_not_by_itself(tmp_path):
  (tmp_path / "a.cfg").write_text("--a=1\n")
  (tmp_path / "b.cfg").write_text("--flagfile=a.cfg\n--flagfile=a.cfg\n--flagfile=./b.cfg")
  with pytest.raises(ConfigError, match=r"--flagfile=./b.cfg in .*b.cfg includes itself"):
    command_line.expand_flagfiles(["--flagfile=a.cfg", "--flagfile=b.cfg"])


def read(*arguments):
  flag_values = flags.FlagValues()
  flags.DEFINE_string("text", "", "", flag_values=flag_values)
  flags.DEFINE_integer("number", 0, "", flag_values=flag_values)
  flags.DEFINE_multi_string("texts", [], "", flag_values=flag_values)
  command_line.read_flags(flag_values, ["x.py", *arguments])
  return flag_values


def test_values_that_are_kept(monkeypatch):
  monkeypatch.setenv("HOME", "/home/me")
  values = read("--text=~/\u5b9e\u9a8c\u3000\u00a0", f"--number={-(2**53)}", "--texts=~")
  assert values.text == "~/\u5b9e\u9a8c\u3000\u00a0"
  assert values.number == -(2**53)
  assert values.texts == ["~"]


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    (f"--number={2**53 + 1}", "--number=9007199254740993 is too large"),
    ("--text=" + "x" * 4090, "has 4097 characters"),
    ("--text=a\nb", "has control characters"),
    ("--text=\udcff", "is not in UTF-8"),
    ("--text=~nobody-here", "--text=~nobody-here: there is no such user"),
    ("--texts=~nobody-here/x", "--texts=~nobody-here/x: there is no such user"),
    ("--number=1.5", "--number=1.5 must be a whole number"),
    ("--nmber=1", "Did you mean: number"),
  ],
)
def test_values_that_are_refused(argument, message):
  with pytest.raises(ConfigError) as caught:
    read(argument)
  assert message in str(caught.value)


def test_errors_drive_no_terminal(capsys):
  error = UserError("a\x1b[31m\u202e\n\nb \u5b9e\udcff\r")
  assert command_line.print_error(error) == 2
  assert capsys.readouterr().err == (
    "error: a\\x1b[31m\\u202e\nerror: b \u5b9e\\udcff\\r\n"
  )


def test_output_in_another_encoding_has_escapes(tmp_path):
  code = "import command_line; command_line.execute(lambda argv: print('\u5b9e \u00b1'))"
  done = subprocess.run(
    [sys.executable, "-c", code],
    env={"PYTHONPATH": str(command_line.ROOT / "experiments"), "PYTHONIOENCODING": "ascii"},
    capture_output=True,
    check=True,
  )
  assert done.stdout == b"\\u5b9e \\xb1\n"
