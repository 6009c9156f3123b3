"""Random input: flag files, files of work directories, image bytes.

Whatever they hold, the outcome is a result or a `UserError` (for images an `ImageError`),
never another exception, and what was there before stays as it is. A few hundred examples,
always the same, run with the other tests; more, and new ones, with

  FUZZ_EXAMPLES=5000 python -m pytest tests/test_fuzz.py

A failure prints the input. It becomes an `@example` below, or a row of bad_inputs.py.
"""

import contextlib
import copy
import dataclasses
import functools
import io
import itertools
import json
import os
import pathlib
import re
import struct
import subprocess
import sys
import tempfile
import warnings
import zlib

import bad_inputs
import markupsafe
import numpy as np
import pytest
from folders import encode, photo
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from written_runs import Page

from ssil_jax.commands import command_line, compare, run
from ssil_jax.config import Config, to_json
from ssil_jax.data.images import decode, jpeg
from ssil_jax.errors import UserError
from ssil_jax.methods import METHODS
from ssil_jax.reports.results import load_journal, load_run

EXAMPLES = os.environ.get("FUZZ_EXAMPLES")


def fuzz(few):
  """Settings of a target: `few` examples, always the same ones, or as many as asked for."""
  return settings(
    max_examples=int(EXAMPLES or few),
    derandomize=EXAMPLES is None,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
  )


HOSTILE = (
  "<script>alert(1)</script>",
  "\"><img src=x onerror=alert(1)>'",
  "{{ 7 * 7 }}{% raw %}",
  "$\\frac{",
  "$x^{$_",
  "_hidden",
  "[red]bold[/bold] [link=http://x]",
  "[/]",
  ":warning:",
  "\x1b]0;title\x07\x1b[31m",
  "a\r\nb\x0b\x85\u2028",
  "\x00\x7f\x9b",
  "\u202ertl\u2066\u200f",
  "\ud800\udfff",
  "\U0001f4a3 \u5b9e\u9a8c \u0e01\u0e33",
  "../../../etc/passwd",
  "%s%n{0.__class__}",
  "x" * 5000,
  "e\u0301" * 30,
  "",
)


def result_or_message(function, *args):
  """What a function returns, or None and the message of its UserError."""
  try:
    return function(*args), None
  except UserError as error:
    return None, str(error)


def clean(text):
  """Whether a terminal shows it as it is."""
  return all(line.isprintable() for line in text.split("\n"))


# Flag files -----------------------------------------------------------------------------

NAMES = [field.name for field in dataclasses.fields(Config)]
FILES = ("a.cfg", "b.cfg", "c.cfg")
VALUES = st.one_of(
  st.integers(-3, 300).map(str),
  st.integers(1, 5000).map(lambda n: "9" * n),
  st.floats().map(str),
  st.lists(st.integers(-1, 120), max_size=4).map(lambda ints: ",".join(map(str, ints))),
  st.sampled_from(
    [
      *METHODS,
      "digits",
      "true",
      "maybe",
      "1e999",
      "-1e-999",
      "0x1f",
      "1_0",
      "\u0663",
      "\u00b2",
    ]
    + ["~", "~nobody/x", "/dev/null/x", "a:1", "a:99999", ":1", '"', '"a"b', "nan", "NaN"]
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


@functools.cache
def flags_folder():
  return tempfile.TemporaryDirectory()


def shown_lines(message):
  """How many lines standard error gets of a message, each of which a terminal can show."""
  stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
  with contextlib.redirect_stderr(stream):
    assert command_line.print_error(UserError(message)) == 2
  stream.seek(0)
  lines = stream.read().splitlines()
  assert all(line.startswith("error: ") and clean(line) for line in lines)
  return len(lines)


def outcome_of_parsing(argv, files):
  """The lines of the error, or none; fails if anything else happens."""
  with contextlib.chdir(flags_folder().name):
    for name, content in files.items():
      pathlib.Path(name).write_bytes(content)
    config, message = result_or_message(run.parse, ["run.py", *argv])
    lines = message.split("\n") if message else []
    if message:
      assert shown_lines(message) == len(lines)
      assert all(
        re.search(r"--\w|'.+' (is not a flag|has control)", line) for line in lines
      )
      assert all(len(line) < 10_000 for line in lines)
    else:
      json.dumps(to_json(config), allow_nan=False).encode()
      assert clean("".join(map(str, to_json(config).values())))
    assert sorted(os.listdir()) == sorted(FILES)
    for name, content in files.items():
      assert pathlib.Path(name).read_bytes() == content
  return lines


@fuzz(300)
@given(st.lists(FLAGS, max_size=3), st.tuples(*[flag_files()] * len(FILES)), st.booleans())
@example(["--noreset_momentum=3"], (b"", b"", b""), False)
@example(["--coordinator_address=a:" + "1" * 4050], (b"", b"", b""), False)
def test_flag_files(arguments, contents, first):
  given_file = ["--flagfile=a.cfg"]
  argv = [*given_file, *arguments] if first else [*arguments, *given_file]
  if not {"-h", "--help"} & set(argv):
    outcome_of_parsing(argv, dict(zip(FILES, contents, strict=True)))


@pytest.mark.parametrize(
  ("contents", "what"),
  [
    ((b"--flagfile=a.cfg", b"", b""), "a.cfg includes itself"),
    ((b"--flagfile=b.cfg", b"--flagfile=c.cfg", b"--flagfile=a.cfg"), "includes itself"),
    # Each names the next one many times, as a "billion laughs" does.
    ((b"--flagfile=b.cfg\n" * 99, b"--flagfile=c.cfg\n" * 99, b""), "is file 101"),
    ((b"#" * 2**20 + b"\n#", b"", b""), "larger than 1 MiB"),
    ((b"--seed=1\nseed=2", b"", b""), "line 2: 'seed=2' is not a flag"),
    ((b"\xff\xfe-", b"", b""), "is not a text file"),
  ],
)
def test_flag_files_that_do_not_end_or_are_none(contents, what):
  files = dict(zip(FILES, contents, strict=True))
  (line,) = outcome_of_parsing(["--flagfile=a.cfg"], files)
  assert what in line
  assert ".cfg" in line


# Files of a work directory --------------------------------------------------------------

RUN_FILES = ("results.json", "schedule.json", "config.json", "metrics.jsonl")
NUMBERS = st.one_of(
  st.sampled_from([0, -1, 1, 2, 3.0, 0.5, -0.0, 1e-300, 1e30, 1e31, 2**53, 2**63, 10**400]),
  st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e308]),
  st.floats(),
  st.integers(-5, 50),
)
STRINGS = st.sampled_from(HOSTILE) | st.text(max_size=30)
JSON = st.recursive(
  st.none() | st.booleans() | NUMBERS | STRINGS,
  lambda inner: st.lists(inner, max_size=3) | st.dictionaries(STRINGS, inner, max_size=3),
  max_leaves=6,
)
DEEP = "[" * 400 + "]" * 400


def places(value, path=()):
  """The paths of all values inside a JSON value."""
  items = value.items() if isinstance(value, dict) else enumerate(value)
  for key, item in items:
    yield (*path, key)
    if isinstance(item, (dict, list)):
      yield from places(item, (*path, key))


def at(value, path):
  for key in path:
    value = value[key]
  return value


@st.composite
def changed_json(draw, value, *, gently):
  """JSON text: a value with some places changed; gently: strings and numbers in place."""
  value = copy.deepcopy(value)
  for _ in range(draw(st.integers(1, 4))):
    paths = list(places(value))
    if not paths:
      break
    *parent, key = draw(st.sampled_from(paths))
    parent = at(value, parent)
    old = parent[key]
    if gently:
      if isinstance(old, str):
        parent[key] = draw(STRINGS)
      elif isinstance(old, dict):
        old[draw(STRINGS)] = draw(STRINGS | st.integers(0, 9))
      elif isinstance(old, float):
        parent[key] = draw(st.floats(0, 1) | st.floats(-1e30, 1e30))
      elif old is None:
        parent[key] = draw(st.floats(0, 1) | STRINGS)
      continue
    change = draw(st.sampled_from(["delete", "replace", "swap", "wrap", "add", "repeat"]))
    if change == "delete":
      del parent[key]
    elif change == "replace":
      parent[key] = draw(JSON)
    elif change == "swap":
      *other, name = draw(st.sampled_from(paths))
      parent[key] = copy.deepcopy(at(value, [*other, name]))
    elif change == "wrap":
      parent[key] = draw(st.sampled_from([[old], {"x": old}, str(old)]))
    elif change == "add" and isinstance(parent, dict):
      parent[draw(STRINGS)] = draw(JSON)
    elif isinstance(parent, list):
      parent.insert(key, copy.deepcopy(old))
  text = json.dumps(value, ensure_ascii=draw(st.booleans()))
  if not gently and draw(st.integers(0, 9)) == 0:
    text = text.replace("null", DEEP, 1)
  return text.encode("utf-8", "surrogatepass")


@st.composite
def changed_bytes(draw, data, *, after=0):
  """Some bytes changed, put in, cut out, or cut off, the first ones left as they are."""
  data = bytearray(data)
  for _ in range(draw(st.integers(1, 4))):
    place = draw(st.integers(min(after, len(data)), len(data)))
    change = draw(st.sampled_from(["flip", "set", "insert", "delete", "cut", "copy"]))
    if change == "flip" and place < len(data):
      data[place] ^= 1 << draw(st.integers(0, 7))
    elif change == "set" and place < len(data):
      data[place] = draw(st.sampled_from([0, 1, 127, 128, 255, 10, 34]))
    elif change == "insert":
      data[place:place] = draw(st.binary(min_size=1, max_size=9))
    elif change == "delete":
      del data[place : place + draw(st.integers(1, 50))]
    elif change == "cut":
      del data[place:]
    elif change == "copy":
      start = draw(st.integers(0, len(data)))
      data[place:place] = data[start : start + draw(st.integers(1, 200))]
  return bytes(data)


@st.composite
def changed_file(draw, name, content, *, gently):
  if not gently and draw(st.integers(0, 3)) == 0:
    return draw(changed_bytes(content))
  if not name.endswith(".jsonl"):
    return draw(changed_json(json.loads(content), gently=gently))
  lines = content.splitlines(keepends=True)
  for _ in range(draw(st.integers(1, 2))):
    number = draw(st.integers(0, len(lines) - 1))
    changed = changed_json(json.loads(lines[number]), gently=gently)
    lines[number] = draw(changed) + b"\n"
    if not json.loads(lines[number]):
      break
  return b"".join(lines)


@functools.cache
def run_files():
  """The files of a real run: name -> bytes."""
  folder = bad_inputs.finished_run()
  return {name: (folder / name).read_bytes() for name in RUN_FILES}


@st.composite
def work_directories(draw, *, gently):
  """name -> bytes of a work directory's files, some of them changed."""
  files = dict(run_files())
  for name in draw(st.lists(st.sampled_from(RUN_FILES), min_size=1, max_size=2)):
    files[name] = draw(changed_file(name, run_files()[name], gently=gently))
  if draw(st.integers(0, 9)) == 0:
    del files[draw(st.sampled_from(RUN_FILES))]
  return files


@contextlib.contextmanager
def written(*directories):
  """Folders with these files; fails if one of the files is changed afterwards."""
  with tempfile.TemporaryDirectory() as root:
    folders = []
    for number, files in enumerate(directories):
      folder = pathlib.Path(root, f"run-{number}<b>$x$")
      folder.mkdir()
      for name, content in files.items():
        (folder / name).write_bytes(content)
      folders.append(folder)
    yield pathlib.Path(root), folders
    for folder, files in zip(folders, directories, strict=True):
      assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


@fuzz(60)
@given(st.data())
def test_files_of_a_run(data):
  files = data.draw(work_directories(gently=False))
  with written(files) as (_, (folder,)):
    for load in (load_run, load_journal):
      _, message = result_or_message(load, folder)
      if message:
        assert message.startswith(str(folder))
        assert "\n" not in message
        assert len(message) < 400 + len(str(folder))


def compared(*directories):
  """Exit code, standard output and error of compare.py, and the page if there is one."""
  out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
  with written(*directories) as (root, folders), warnings.catch_warnings():
    warnings.simplefilter("error")
    page = root / "a :smile: [b]" / "page.html"
    argv = [*(f"--workdir={folder}" for folder in folders), f"--output={page}"]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
      code = compare.main(["compare.py", *argv])
    assert page.exists() == (code == 0)
    found = page.read_text(encoding="utf-8") if code == 0 else None
    if found:
      check_page(page)
    texts = []
    for stream in (out, err):
      stream.seek(0)
      texts.append(stream.read())
  assert code or f"report: {page}\n" in texts[0]
  return code, *texts, found


@functools.cache
def tags_and_attributes():
  """What the page of two plain runs is made of."""
  with written(run_files(), run_files()) as (root, folders):
    page = root / "page.html"
    compare.report.write_report(folders, page)
    tags = Page(page).tags
  return {tag for tag, _ in tags}, {name for _, attributes in tags for name in attributes}


def check_page(path):
  """Nothing of the input has become markup."""
  page, source = Page(path), path.read_text(encoding="utf-8")
  known_tags, known_attributes = tags_and_attributes()
  assert {tag for tag, _ in page.tags} <= known_tags | {"p"}
  assert {name for _, found in page.tags for name in found} <= known_attributes
  for _, attributes in page.tags:
    assert attributes.get("src", "data:image/png;").startswith("data:image/png;")
  assert "<script" not in source.lower()
  assert "<img src=x" not in source
  assert clean(source)


@fuzz(7)
@given(st.data())
def test_pages(data):
  # Mostly what passes the checks, so that it reaches page, figures and terminal.
  directories = []
  for gently in data.draw(st.lists(st.sampled_from([True, True, True, False]), max_size=2)):
    directories.append(data.draw(work_directories(gently=gently)))
  directories.append(run_files())
  code, out, err, _ = compared(*directories)
  assert code in (0, 2)
  assert clean(out)
  assert clean(err)
  if code:
    assert out == ""
    assert re.fullmatch("error: .+\n", err)
  else:
    assert err == ""


@pytest.mark.parametrize("first", range(0, len(HOSTILE), 5))
def test_a_name_is_text_wherever_it_is_shown(first):
  """Strings in all places of all files: in the tables, the page and the figures."""
  texts = itertools.cycle(HOSTILE[first : first + 5])

  def with_texts(value):
    if isinstance(value, dict):
      return {key: with_texts(item) for key, item in value.items()}
    if isinstance(value, list):
      return [with_texts(item) for item in value]
    return next(texts) if isinstance(value, str) else value

  def as_json(value):
    return json.dumps(value).encode()

  files = {
    name: as_json(with_texts(json.loads(run_files()[name]))) for name in RUN_FILES[:3]
  }
  results = json.loads(files["results.json"])
  results["environment"] |= {next(texts): next(texts) for _ in range(3)}
  for state in results["states"]:
    state |= {"statistics": {next(texts): 1.5, next(texts): None}}
    state |= {"from_workdir": next(texts)}
  schedule = json.loads(files["schedule.json"])
  schedule[0] |= {next(texts): next(texts)}
  one, other_seed, third = (
    run_files()
    | files
    | {"results.json": as_json(results | changes), "schedule.json": as_json(schedule)}
    for changes in ({}, {"seed": 1}, {"seed": 2, "dataset": next(texts)})
  )
  code, out, err, page = compared(one, other_seed, third, run_files())
  assert (code, err) == (0, "")
  assert clean(out)
  for text in HOSTILE[first : first + 5]:
    if clean(text) and len(text) < 1000:
      assert str(markupsafe.escape(text)) in page


# Image bytes ----------------------------------------------------------------------------


def with_restart_index():
  return jpeg.add_index(encode(photo(40, 48), quality=80, restart_marker_blocks=3))


@functools.cache
def images():
  """Valid images of every kind that is read."""
  rgb = photo(24, 31)
  alpha = np.dstack([rgb, rgb[..., :1]])
  frames = [photo(24, 31, seed) for seed in (1, 2)]
  animated = {
    "save_all": True,
    "append_images": [Image.fromarray(frame) for frame in frames],
  }
  return (
    encode(rgb),
    encode(rgb, quality=30, subsampling="4:2:0"),
    encode(rgb, progressive=True),
    encode(rgb, mode="L"),
    encode(rgb, mode="CMYK"),
    with_restart_index(),
    encode(rgb, "PNG"),
    encode(rgb, "PNG", mode="P", transparency=3),
    encode(rgb, "PNG", mode="1"),
    encode(rgb, "PNG", mode="LA"),
    encode(alpha, "PNG"),
    encode(rgb.astype(np.uint16)[..., 0] * 257, "PNG"),
    encode(rgb, "PNG", **animated),
    encode(rgb, "WEBP"),
    encode(rgb, "WEBP", lossless=True),
    encode(alpha, "WEBP"),
    encode(rgb, "WEBP", **animated),
  )


def with_right_checksums(png):
  """A PNG whose chunks have the CRC of what they hold, so that it is looked at."""
  parts, offset = [png[:8]], 8
  while offset + 12 <= len(png):
    (length,) = struct.unpack_from(">I", png, offset)
    end = offset + 8 + length
    if end + 4 > len(png):
      break
    checksum = zlib.crc32(png[offset + 4 : end])
    parts.append(png[offset:end] + struct.pack(">I", checksum))
    offset = end + 4
  return b"".join(parts) + png[offset:]


def with_chunk(png, name, content):
  """A PNG with one more chunk after its header; the CRC is not right."""
  return png[:33] + struct.pack(">I", len(content)) + name + content + bytes(4) + png[33:]


@st.composite
def image_bytes(draw):
  data = draw(st.sampled_from(images()))
  change = draw(st.sampled_from(["bytes", "bytes", "header", "splice", "join", "exif"]))
  if change == "bytes":
    # Most changes of a header end in the header.
    after = draw(st.sampled_from([8, 40, len(data) // 4, len(data) // 2]))
    data = draw(changed_bytes(data, after=after))
  elif change == "header":
    head = draw(changed_bytes(data[:64]))
    data = head + data[64:]
  elif change == "splice":
    other = draw(st.sampled_from(images()))
    place = draw(st.integers(0, min(len(data), len(other))))
    data = data[:place] + other[place:]
  elif change == "join":
    data += draw(st.sampled_from(images()))
  else:
    exif = b"Exif\0\0" + draw(st.binary(max_size=60))
    if data.startswith(jpeg.MAGIC):
      segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
      data = data[:2] + segment + data[2:]
    elif data.startswith(b"\x89PNG"):
      name = draw(st.sampled_from([b"eXIf", b"iCCP", b"zTXt", b"iTXt", b"tRNS", b"gAMA"]))
      data = with_chunk(data, name, draw(st.binary(max_size=40)))
  if data.startswith(b"\x89PNG") and draw(st.booleans()):
    data = with_right_checksums(data)
  return data


def read_middle(data):
  image = decode.EncodedImage(data)
  left, top = image.width // 3, image.height // 3
  return image.read((left, top, left + (image.width + 1) // 2, top + 1))


@fuzz(1500)
@given(image_bytes())
@example(b"")
@example(b"\xff\xd8\xff")
def test_image_bytes(data):
  reads = (
    decode.size_of,
    decode.read_rgb,
    functools.partial(decode.read_rgb, strict=False),
    read_middle,
  )
  with warnings.catch_warnings(record=True) as caught:
    for read in reads:
      try:
        found = read(data)
      except decode.ImageError:
        continue
      if read is decode.size_of:
        width, height = found
        assert 0 < width * height <= decode.MAX_PIXELS
      else:
        assert found.dtype == np.uint8
        assert found.ndim == 3
        assert found.shape[2] == 3
  # pytest takes away the filter that decode.py sets; see the test below.
  assert not [warning for warning in caught if "PIL" not in warning.filename]


def test_pillow_is_silent():
  # An animation without frames, of which it would warn.
  png = with_right_checksums(with_chunk(encode(photo(8, 8), "PNG"), b"acTL", bytes(8)))
  code = f"from ssil_jax.data.images import decode; decode.read_rgb({png!r})"
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=command_line.ROOT, capture_output=True, check=True
  )
  assert (done.stdout, done.stderr) == (b"", b"")
