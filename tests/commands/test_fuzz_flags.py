"""Random command lines and flag files; see fuzzing.py."""

import contextlib
import io
import json
import os
import pathlib
import re
import tempfile

from fuzzing import HOSTILE, clean, fuzz, result_or_message
from hypothesis import example, given
from hypothesis import strategies as st

from ssil_jax.commands import command_line, run
from ssil_jax.config import Config, fields_of, to_json
from ssil_jax.errors import UserError
from ssil_jax.methods import METHODS

OWN = [field.name for m in METHODS.values() for field in fields_of(m.settings)]
NAMES = [*(field.name for field in fields_of(Config)), *OWN]
FILES = ("a.cfg", "b.cfg", "c.cfg")
VALUES = st.one_of(
  st.integers(-3, 300).map(str),
  st.integers(1, 5000).map(lambda n: "9" * n),
  st.floats().map(str),
  st.lists(st.integers(-1, 120), max_size=4).map(lambda ints: ",".join(map(str, ints))),
  st.sampled_from(
    [*METHODS, "nowhere:MINE", ":", "digits", "true", "maybe", "1e999", "-1e-999", "0x1f"]
    + ["1_0", "\u0663", "\u00b2", "~", "~nobody/x", "/dev/null/x", "a:1", "a:99999", ":1"]
    + ['"', '"a"b', "nan", "NaN"]
  ),
  st.sampled_from(HOSTILE),
  st.text(max_size=20),
)
FLAGS = st.one_of(
  st.builds("--{}={}".format, st.sampled_from(NAMES), VALUES),
  st.builds(
    "--{}{}{}".format,
    st.sampled_from(["no", "", "-"]),
    st.sampled_from(NAMES),
    st.sampled_from(["", "=1", " 1", "="]),
  ),
  st.builds(
    "--flagfile={}".format,
    st.sampled_from([*FILES, "quickstart.cfg", "none.cfg", ".", "/dev/zero", "", "a\0b"])
    | st.just("x" * 300),
  ),
  st.sampled_from(["--flagfile", "--undefok=foo", "--foo", "--", "-", "---seed=1", "seed"]),
)
LINES = st.one_of(
  FLAGS.map(lambda line: line.encode("utf-8", "surrogatepass")),
  st.sampled_from([b"", b"# note", b"  // note", b"\t", b"\xef\xbb\xbf--seed=1"]),
  st.binary(max_size=40),
)


@st.composite
def flag_files(draw):
  lines = draw(st.lists(LINES, max_size=6))
  # One that is always read lets the others matter.
  ends = draw(st.sampled_from([b"\n", b"\n", b"\r\n", b"\n\n", b"\r"]))
  return ends.join(lines) + draw(st.sampled_from([b"", ends]))


def shown_lines(message):
  """How many lines standard error gets of a message, each of which a terminal can show."""
  stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
  with contextlib.redirect_stderr(stream):
    assert command_line.print_error(UserError(message)) == 2
  stream.seek(0)
  lines = stream.read().splitlines()
  assert all(line.startswith("error: ") and clean(line) for line in lines)
  return len(lines)


def check_parsing(argv, files):
  """Fails if the outcome is neither a request nor an error of lines that name flags."""
  with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
    for name, content in files.items():
      pathlib.Path(name).write_bytes(content)
    request, message = result_or_message(run.parse, ["run.py", *argv])
    lines = message.split("\n") if message else []
    if message:
      assert shown_lines(message) == len(lines)
      assert all(
        re.search(r"--\w|'.+' (is not a flag|has control)", line) for line in lines
      )
      assert all(len(line) < 10_000 for line in lines)
    else:
      found = to_json(request.config)
      json.dumps(found, allow_nan=False).encode()
      assert clean("".join(map(str, found.values())))
      # As sweep.py writes it for a run of its own.
      again = run.parse(["run.py", *run.arguments_of(request.given)])
      assert (again.config, again.ignored) == (request.config, ())
    assert sorted(os.listdir()) == sorted(FILES)
    for name, content in files.items():
      assert pathlib.Path(name).read_bytes() == content


@fuzz(300)
@given(st.lists(FLAGS, max_size=3), st.tuples(*[flag_files()] * len(FILES)), st.booleans())
@example(["--noreset_momentum=3"], (b"", b"", b""), False)
@example(["--coordinator_address=a:" + "1" * 4050], (b"", b"", b""), False)
def test_flag_files(arguments, contents, first):
  given_file = ["--flagfile=a.cfg"]
  argv = [*given_file, *arguments] if first else [*arguments, *given_file]
  if not {"-h", "--help"} & set(argv):
    check_parsing(argv, dict(zip(FILES, contents, strict=True)))
