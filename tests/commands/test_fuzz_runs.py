"""Random files of work directories, read and shown by compare.py; see fuzzing.py."""

import contextlib
import copy
import functools
import io
import itertools
import json
import pathlib
import re
import tempfile
import warnings

import bad_inputs
import markupsafe
import pytest
from fuzzing import HOSTILE, changed_bytes, clean, fuzz, result_or_message
from hypothesis import given
from hypothesis import strategies as st
from written_runs import Page

from ssil_jax.commands import compare
from ssil_jax.reports.page import write_report
from ssil_jax.reports.results import load_journal, load_run

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
def plain_page():
  """The page of two plain runs."""
  with written(run_files(), run_files()) as (root, folders):
    return Page(write_report(folders, root / "page.html"))


def attributes_of(page):
  return {name for _, attributes in page.tags for name in attributes}


def check_page(path):
  """Nothing of the input has become markup."""
  page, source = Page(path), path.read_text(encoding="utf-8")
  assert {tag for tag, _ in page.tags} <= {tag for tag, _ in plain_page().tags} | {"p"}
  assert attributes_of(page) <= attributes_of(plain_page())
  for _, attributes in page.tags:
    assert "src" not in attributes
    assert re.fullmatch(r"[#\w/.%-]+", attributes.get("href", "#"))
  assert source.lower().count("<script") == 1  # that of the page itself
  assert "<img src=x" not in source
  assert clean(source)


@fuzz(4)
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
    assert all(line.startswith("warning: ") for line in err.splitlines())


@pytest.mark.parametrize("first", range(0, len(HOSTILE), 10))
def test_a_name_is_text_wherever_it_is_shown(first):
  """Strings in all places of all files: in the tables, the page and the figures."""
  texts = itertools.cycle(HOSTILE[first : first + 10])

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
  results["split"] = "test"  # no name: nothing else is allowed there
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
  for text in HOSTILE[first : first + 10]:
    if clean(text) and len(text) < 1000:
      assert str(markupsafe.escape(text)) in page
