"""Flag files, and what the scripts print of errors."""

import gc
import os
import subprocess
import sys
import types

import pytest
from absl import flags
from folders import ROOT

from ssil_jax.commands import command_line
from ssil_jax.errors import ConfigError, UserError


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


@pytest.mark.parametrize(
  ("contents", "what"),
  [
    (("--flagfile=b.cfg", "--flagfile=./a.cfg", ""), "./a.cfg in .*b.cfg includes itself"),
    # Each names the next one many times, as a "billion laughs" does.
    (("--flagfile=b.cfg\n" * 99, "--flagfile=c.cfg\n" * 99, ""), "is file 101"),
    (("#" * 2**20 + "\n#", "", ""), "larger than 1 MiB"),
  ],
)
def test_flag_files_that_do_not_end(tmp_path, contents, what):
  for name, content in zip("abc", contents, strict=True):
    (tmp_path / f"{name}.cfg").write_text(content)
  with pytest.raises(ConfigError, match=what):
    command_line.expand_flagfiles(["--flagfile=a.cfg"])


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


def flags_of(tmp_path, *lines):
  (tmp_path / "a.cfg").write_text("\n".join(lines))
  return command_line.expand_flagfiles([f"--flagfile={tmp_path / 'a.cfg'}"])


def test_a_line_is_one_flag(tmp_path):
  flags_by_line = {
    "--text=a b": "--text=a b",
    '--text="a b"': "--text=a b",
    "--text='a --number=3 # b'": "--text=a --number=3 # b",
    '--text="it\'s"': "--text=it's",
    "--text=it's me": "--text=it's me",
    "--text=a#b/c//d": "--text=a#b/c//d",
    "--text=a-b --": "--text=a-b --",
    "--text = x ": "--text=x",
    "--text=": "--text=",
    '--text=""': "--text=",
    "--text=a=b": "--text=a=b",
    "--notext\r": "--notext",
  }
  assert flags_of(tmp_path, *flags_by_line) == [*flags_by_line.values()]


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("--text=o/two --seed=3", "has a second flag, --seed: give each a line of its own"),
    ("--text=o/two\t-seed 3", "has a second flag, -seed"),
    ("--noverify_data --seed=3", "has a second flag, --seed"),
    ('--text="a" --seed="3"', "has a second flag, --seed"),
    ("--flagfile=b.cfg --seed=3", "has a second flag, --seed"),
    ("--seed=3 # the third", "ends in a comment: give it a line of its own"),
    ("--noverify_data  // quick", "ends in a comment"),
    ('--text="a" # b', "ends in a comment"),
    ("--seed 3", "is not a flag: flags are written --name=value"),
    ("seed=3", "is not a flag"),
    ("--text=o/two \u2013seed=3", "has a second flag, \u2013seed"),
    ("--text=o/two \u2014 second", "has a second flag, \u2014 second"),
    ("--text=o/two,--seed=3", "has a second flag, --seed"),
    ("--text=o/two seed=3", "has a second flag, seed"),
    ("--text=o/two# the second", "ends in a comment"),
    ("--text=o/two ; the second", "ends in a comment"),
    ('--text="a', "has quotes that are not around the whole value"),
    ("--text=a'", "has quotes that are not"),
    ('"--text=a"', "is not a flag"),
    ("--text=\u201ca\u201d", "has quotes that are not"),
    ('--text="a" "b"', "has quotes that are not"),
    ("--text=a \\", "ends in a backslash"),
  ],
)
def test_a_line_with_more_than_a_flag_is_refused(tmp_path, line, message):
  with pytest.raises(ConfigError) as caught:
    flags_of(tmp_path, "# note", line)
  start = f"--flagfile={tmp_path / 'a.cfg'}: line 2: {line!r} "
  assert str(caught.value).startswith(start + message)


def test_two_flags_in_one_argument_are_refused():
  with pytest.raises(ConfigError, match=r"--text=o/two --number=3 holds a second flag"):
    read("--text=o/two --number=3")
  assert read("--text=run --tree 3").text == "run --tree 3"


@pytest.mark.parametrize(
  "path",
  ["gs://bucket/run", "s3://b", "file:///data", "https://a.b/c"]
  + ["gs:/b", "C:/x", "C:\\x", "me@host:/x"],
)
def test_addresses_are_no_paths(path):
  for name in ("archives", "data_dir", "from_workdir", "output", "workdir"):
    flag_values = flags.FlagValues()
    flags.DEFINE_string(name, None, "", flag_values=flag_values)
    with pytest.raises(ConfigError) as caught:
      command_line.read_flags(flag_values, ["x.py", f"--{name}={path}"])
    assert str(caught.value).startswith(f"--{name}={path} is an address, and a folder of")


def test_paths_with_colons_are_paths():
  paths = ["./gs://b", "a b:c", "12:30/x", "/data/a:/b", "gs:", "run:/b"]
  flag_values = flags.FlagValues()
  flags.DEFINE_multi_string("workdir", [], "", flag_values=flag_values)
  command_line.read_flags(flag_values, ["x.py", *(f"--workdir={path}" for path in paths)])
  assert flag_values.workdir == paths


@pytest.mark.parametrize("is_enabled", [True, False])
def test_the_collector_spares_what_is_imported_and_then_goes_on(monkeypatch, is_enabled):
  frozen = []
  monkeypatch.setattr(gc, "freeze", lambda: frozen.append(True))
  before = gc.isenabled()
  (gc.enable if is_enabled else gc.disable)()
  try:
    with command_line.importing():
      assert not gc.isenabled()
    assert gc.isenabled() == is_enabled
    assert not frozen  # nothing was imported
    with command_line.importing():
      monkeypatch.setitem(sys.modules, "of_this_test", types.ModuleType("of_this_test"))
    assert frozen
  finally:
    (gc.enable if before else gc.disable)()


# The streams of a process.

EXECUTED = """
import contextlib, os, sys, types
from ssil_jax import commands

def main(argv):
  print("text")
  with open(argv[1], "w") as file, contextlib.suppress(OSError):
    file.write(str(file.fileno()))
    os.write(1, b"of a library")
  return int(argv[2])

sys.modules["ssil_jax.commands.probe"] = types.SimpleNamespace(main=main)
commands.execute("probe")
"""


def executed(tmp_path, redirections="", *, exit_code=0, stdout=subprocess.DEVNULL):
  """Runs main by a shell; returns the exit code and what it says on standard error."""
  script = tmp_path / "script.py"
  script.write_text(EXECUTED)
  command = f'exec "$0" {script} {tmp_path / "file"} {exit_code} {redirections}'
  done = subprocess.run(
    ["/bin/sh", "-c", command, sys.executable],
    env={"PYTHONPATH": str(ROOT)},
    stdout=stdout,
    stderr=subprocess.PIPE,
    text=True,
  )
  return done.returncode, done.stderr


@pytest.mark.parametrize("redirections", [">&-", ">&- 2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_closed_streams_swallow_what_is_printed(tmp_path, redirections):
  for exit_code in (0, 3):
    assert executed(tmp_path, redirections, exit_code=exit_code) == (exit_code, "")
    # No file has got the number of standard output.
    assert int((tmp_path / "file").read_text()) > 2


def test_a_stream_that_cannot_be_written_is_named(tmp_path):
  line = (
    "error: standard output cannot be written ({}): send it elsewhere, and "
    "rerun the command to resume\n"
  )
  full = executed(tmp_path, ">/dev/full")
  assert full == (2, line.format("No space left on device"))
  reader, writer = os.pipe()
  os.close(reader)
  unread = executed(tmp_path, stdout=writer)
  os.close(writer)
  assert unread == (141, "")  # as of `--help | head`
  assert executed(tmp_path, ">/dev/full 2>&1") == (2, "")  # nowhere to say it


def test_errors_drive_no_terminal(capsys):
  error = UserError("a\x1b[31m\u202e\n\nb \u5b9e\udcff\r")
  assert command_line.print_error(error) == 2
  assert capsys.readouterr().err == (
    "error: a\\x1b[31m\\u202e\nerror: b \u5b9e\\udcff\\r\n"
  )


def test_output_in_another_encoding_has_escapes(tmp_path):
  code = (
    "from ssil_jax.commands import command_line\n"
    "command_line.execute(lambda argv: print('\u5b9e \u00b1'))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    env={"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"},
    capture_output=True,
    check=True,
  )
  assert done.stdout == b"\\u5b9e \\xb1\n"
