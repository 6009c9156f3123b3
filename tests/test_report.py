"""Tables, figures and the page from results that can be checked by hand."""

import copy
import html.parser
import io
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ssil_jax import report
from ssil_jax.errors import DataError, UserError

COMPARE = pathlib.Path(__file__).parents[1] / "experiments" / "compare.py"
FIGURES = ("accuracy", "errors", "confusion", "scores", "state_specific", "loss")

# Two states of 2 classes and 100 test images each. State 2: 100 old images, of which 30
# go to the new classes; 100 new ones, of which 10 go to the old classes.
RESULTS = {
  "dataset": "digits",
  "method": "ssil",
  "method_title": "SS-IL",
  "num_states": 2,
  "num_classes": 4,
  "memory_size": 40,
  "seed": 7,
  "environment": {"device": "cpu", "num_devices": 2},
  "states": [
    {
      "state": 1,
      "num_old": 0,
      "num_seen": 2,
      "top1": 0.9,
      "top5": 1.0,
      "error_old_as_new": None,
      "error_new_as_old": None,
      "imbalance": None,
      "state_specific_top1": 0.9,
      "score_old": None,
      "score_new": 1.5,
      "train_seconds": 60.0,
      "confusion": [[100]],
    },
    {
      "state": 2,
      "num_old": 2,
      "num_seen": 4,
      "top1": 0.626,
      "top5": 0.96,
      "error_old_as_new": 0.3,
      "error_new_as_old": 0.1,
      "imbalance": 0.2,
      "state_specific_top1": 0.85,
      "score_old": -0.5,
      "score_new": 1.25,
      "train_seconds": 5.6,
      "confusion": [[70, 30], [10, 90]],
    },
  ],
  "average": {"top1": 0.763, "top5": 0.98, "imbalance": 0.2},
}
STATE_ROWS = [
  ["1", "2", "90.0", "100.0", "-", "-", "-", "90.0", "60.0"],
  ["2", "4", "62.6", "96.0", "30.0", "10.0", "20.0", "85.0", "5.6"],
  ["average", "", "76.3", "98.0", "30.0", "10.0", "20.0", "87.5", "32.8"],
]
COMPARISON_ROW = ["SS-IL", "76.3", "98.0", "20.0", "62.6", "30.0", "10.0", "1m 06s"]
SCHEDULE = [
  {"state": 1, "sampling": "new only", "learning rate": 0.1},
  {"state": 2, "sampling": "ratio-preserving", "learning rate": 0.05},
]
METRICS = [
  {"state": 1, "phase": 1, "epoch": 1, "step": 10, "loss": 2.0},
  {"state": 1, "phase": 1, "epoch": 2, "step": 20, "loss": 1.0},
  {"state": 2, "phase": 1, "epoch": 1, "step": 30, "loss": 1.5},
]


def write_run(workdir, *, results=None, schedule=SCHEDULE, metrics=METRICS, **changes):
  """A work directory with the files of a run; `changes` are top-level results keys."""
  workdir.mkdir(parents=True, exist_ok=True)
  content = {**(RESULTS if results is None else results), **changes}
  (workdir / "results.json").write_text(json.dumps(content))
  if schedule is not None:
    (workdir / "schedule.json").write_text(json.dumps(schedule))
  if metrics is not None:
    lines = "".join(json.dumps(row) + "\n" for row in metrics)
    (workdir / "metrics.jsonl").write_text(lines)
  return workdir


def one_state(**changes):
  """Results of a run that has done one of its states."""
  average = {"top1": 0.9, "top5": 1.0, "imbalance": None}
  return {**RESULTS, "states": RESULTS["states"][:1], "average": average, **changes}


def table_cells(table):
  """Header and rows of a rich table, as lists of strings."""
  columns = [[str(cell) for cell in column.cells] for column in table.columns]
  rows = [list(row) for row in zip(*columns, strict=True)]
  return [[str(column.header) for column in table.columns], *rows]


class Page(html.parser.HTMLParser):
  """What a browser would see: tags with attributes, text, rows of tables, captions."""

  def __init__(self, path):
    super().__init__()
    self.tags, self.rows, self.captions, self.text = [], [], [], ""
    self._open = []
    self.feed(path.read_text(encoding="utf-8"))

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))
    if tag not in ("meta", "img", "link", "br"):
      self._open.append(tag)
    if tag == "tr":
      self.rows.append([])
    if tag in ("td", "th"):
      self.rows[-1].append("")
    if tag == "figcaption":
      self.captions.append("")

  def handle_endtag(self, tag):
    assert self._open.pop() == tag

  def handle_data(self, data):
    if "style" in self._open:
      return
    self.text += data
    if {"td", "th"} & set(self._open):
      self.rows[-1][-1] += data
    if "figcaption" in self._open:
      self.captions[-1] += data


def page_of(tmp_path, *workdirs):
  return Page(report.write_report(workdirs, tmp_path / "out" / "report.html"))


def test_load_run_reads_all_three_files(tmp_path):
  run = report.load_run(write_run(tmp_path / "a"))
  assert run.results == RESULTS
  assert run.schedule == SCHEDULE
  np.testing.assert_array_equal(run.loss.steps, [10, 20, 30])
  np.testing.assert_array_equal(run.loss.losses, [2.0, 1.0, 1.5])
  np.testing.assert_array_equal(run.loss.states, [1, 1, 2])


def test_load_run_needs_only_the_results(tmp_path):
  run = report.load_run(write_run(tmp_path / "a", schedule=None, metrics=None))
  assert run.schedule == []
  assert run.loss is None


def test_metrics_of_a_killed_and_resumed_run(tmp_path):
  again = [{**METRICS[1], "loss": 0.5}, {**METRICS[2], "loss": float("nan")}]
  workdir = write_run(tmp_path / "a", metrics=[*METRICS, *again])
  with (workdir / "metrics.jsonl").open("a") as file:
    file.write('{"state": 2, "ste')
  loss = report.load_run(workdir).loss
  np.testing.assert_array_equal(loss.steps, [10, 20, 30])
  np.testing.assert_array_equal(loss.losses, [2.0, 0.5, np.nan])


def test_format_table():
  header, *rows = table_cells(report.format_table(RESULTS))
  assert header == list(report.STATE_COLUMNS)
  assert rows == STATE_ROWS


def test_format_table_fits_a_terminal_of_80_and_shows_all_columns():
  console = Console(width=80, file=io.StringIO())
  console.print(report.format_table(RESULTS))
  lines = console.file.getvalue().splitlines()
  assert any("62.6" in line and line.rstrip().endswith("5.6") for line in lines)
  assert "SS-IL on digits" in lines[0]


def test_comparison_table(tmp_path):
  runs = [
    report.load_run(write_run(tmp_path / "a")),
    report.load_run(
      write_run(tmp_path / "b", results=one_state(), method_title="FT", num_states=5)
    ),
  ]
  header, full, partial = table_cells(report.comparison_table(runs))
  assert header == list(report.COMPARISON_COLUMNS)
  assert full == COMPARISON_ROW
  partial_row = ["FT (1 of 5 states)", "90.0", "100.0", "-", "90.0", "-", "-", "1m 00s"]
  assert partial == partial_row


def test_names_are_no_markup_on_the_terminal(tmp_path):
  workdir = write_run(tmp_path / "a", method_title="[red]x[/red]\u001b[31m")
  table = report.comparison_table([report.load_run(workdir)])
  console = Console(width=120, file=io.StringIO())
  console.print(table)
  assert "[red]x[/red]\ufffd[31m" in console.file.getvalue()


@pytest.mark.parametrize(
  ("changes", "labels"),
  [
    ([{}, {"method_title": "FT"}], ["SS-IL", "FT"]),
    ([{"seed": 1}, {"seed": 2}], ["SS-IL (seed 1)", "SS-IL (seed 2)"]),
    (
      [{"memory_size": 40}, {"memory_size": 80, "num_states": 3}],
      ["SS-IL (|M|=40, T=2)", "SS-IL (|M|=80, T=3, 2 of 3 states)"],
    ),
    ([{}, {}], ["SS-IL (run0)", "SS-IL (run1)"]),
    ([{}, {}, {"seed": 1}], [f"SS-IL (seed {n})" for n in ("7, run0", "7, run1", 1)]),
  ],
)
def test_run_labels_say_what_differs(tmp_path, changes, labels):
  workdirs = [write_run(tmp_path / f"run{i}", **c) for i, c in enumerate(changes)]
  assert report.run_labels([report.load_run(path) for path in workdirs]) == labels


def test_run_labels_without_method_title_and_with_equal_folders(tmp_path):
  results = {name: RESULTS[name] for name in RESULTS if name != "method_title"}
  workdirs = [write_run(tmp_path / top / "run", results=results) for top in "ab"]
  runs = [report.load_run(path) for path in workdirs]
  assert report.run_labels(runs) == ["ssil (run, #1)", "ssil (run, #2)"]


def test_page_holds_tables_and_settings(tmp_path):
  page = page_of(
    tmp_path,
    write_run(tmp_path / "a"),
    write_run(tmp_path / "b", method="ft", method_title="FT", schedule=None),
  )
  assert COMPARISON_ROW in page.rows
  assert all(row in page.rows for row in STATE_ROWS)
  assert ["2", "ratio-preserving", "0.05"] in page.rows
  for name, value in (
    ("data set", "digits"),
    ("states T", "2"),
    ("classes", "4"),
    ("exemplar memory |M|", "40"),
    ("seed", "7"),
    ("num devices", "2"),
  ):
    assert [name, value, value] in page.rows
  assert "SS-IL, FT on digits" in page.text
  assert "None" not in page.text
  assert "not comparable" not in page.text
  assert "Not finished" not in page.text
  assert "holds no schedule.json" in page.text


def test_page_is_self_contained_and_accessible(tmp_path):
  page = page_of(tmp_path, write_run(tmp_path / "a"))
  assert ("html", {"lang": "en"}) in page.tags
  assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
  images = [attributes for tag, attributes in page.tags if tag == "img"]
  assert len(images) == len(FIGURES)
  for image in images:
    assert image["src"].startswith("data:image/png;base64,")
    assert len(image["alt"]) > 20
  sources = [a.get("src") or a.get("href") for _, a in page.tags]
  assert all(source.startswith("data:") for source in sources if source)
  assert all(a.get("scope") in ("row", "col") for tag, a in page.tags if tag == "th")
  source = (tmp_path / "out" / "report.html").read_text()
  assert "url(" not in source
  assert "@import" not in source


def test_figures_are_images_with_something_on_them(tmp_path):
  page_of(tmp_path, write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=8))
  folder = tmp_path / "out" / "figures"
  assert {path.name for path in folder.iterdir()} == {f"{name}.png" for name in FIGURES}
  for path in folder.iterdir():
    with Image.open(path) as image:
      pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[1] >= 1000
    ink = (pixels != 255).any(axis=-1)
    assert 0.005 < ink.mean() < 0.9
    # Text that is cut off would reach the edge of the picture.
    edges = np.concatenate([ink[0], ink[-1], ink[:, 0], ink[:, -1]])
    assert not edges.any()


def test_confusion_cells_are_shares_of_rows():
  figure = report._confusion_figure([("SS-IL", np.array([[70, 30], [0, 0]]))])
  texts = [text.get_text() for text in figure.axes[0].texts]
  assert texts == ["70", "30", "-", "-"]


def test_curves_follow_the_results(tmp_path):
  run = report.load_run(write_run(tmp_path / "a"))
  panels = {"top1": "top-1", "error_old_as_new": "e(p,n)"}
  first, second = report._curves([run], ["SS-IL"], panels, "%").axes
  np.testing.assert_allclose(first.get_lines()[0].get_xydata(), [[2, 90], [4, 62.6]])
  np.testing.assert_allclose(second.get_lines()[0].get_xydata(), [[4, 30]])


def test_names_are_escaped_and_drawn_literally(tmp_path):
  bad = "<script>alert(1)</script>$x^{$"
  workdir = write_run(
    tmp_path / "a",
    method_title=bad,
    dataset="_<img src=x onerror=alert(1)>",
    environment={"<b>key": '"><script>x</script>'},
    schedule=[{"<i>": "<script>"}],
  )
  page = page_of(tmp_path, workdir)
  assert not {"script", "b", "i"} & {tag for tag, _ in page.tags}
  assert all("onerror" not in attributes for _, attributes in page.tags)
  assert bad in page.text
  assert ["<b>key", '"><script>x</script>'] in page.rows


def test_strings_that_utf8_cannot_hold(tmp_path):
  page = page_of(tmp_path, write_run(tmp_path / "a", dataset="x\ud800y"))
  assert "x\ufffdy" in page.text


def test_unfinished_run_is_labelled(tmp_path):
  page = page_of(
    tmp_path,
    write_run(tmp_path / "a"),
    write_run(tmp_path / "b", method_title="FT", num_states=5),
  )
  assert "Not finished: FT (2 of 5 states)." in page.text
  assert "FT (2 of 5 states)" in [row[0] for row in page.rows]


def test_first_state_alone_has_no_figures_of_old_classes(tmp_path):
  folder = tmp_path / "out" / "figures"
  page_of(tmp_path, write_run(tmp_path / "a"))
  assert (folder / "errors.png").exists()
  page = page_of(tmp_path, write_run(tmp_path / "a", results=one_state()))
  drawn = {path.name for path in folder.iterdir()}
  assert drawn == {"accuracy.png", "state_specific.png", "loss.png"}
  assert sum("with one state only: SS-IL" in caption for caption in page.captions) == 3


def test_results_without_confusion_or_metrics(tmp_path):
  results = copy.deepcopy(RESULTS)
  for row in results["states"]:
    del row["confusion"]
  plain = write_run(tmp_path / "a", results=results, metrics=None, method_title="FT")
  page = page_of(tmp_path, plain, write_run(tmp_path / "b"))
  assert "for want of confusion counts: FT." in page.captions[2]
  assert "No metrics.jsonl, hence no curve: FT." in page.captions[5]
  assert len([tag for tag, _ in page.tags if tag == "img"]) == 6


@pytest.mark.parametrize(
  ("changes", "reason"),
  [
    ({}, ""),
    ({"dataset": "birds"}, "different data sets (digits, birds)."),
    ({"num_classes": 10}, "different numbers of classes (4, 10)."),
  ],
)
def test_comparability_note(tmp_path, changes, reason):
  workdirs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", **changes)]
  note = report.comparability_note([report.load_run(path) for path in workdirs])
  assert note.endswith(reason)
  assert bool(note) == bool(reason)


def test_page_says_that_runs_are_not_comparable(tmp_path):
  other = write_run(tmp_path / "b", dataset="birds")
  page = page_of(tmp_path, write_run(tmp_path / "a"), other)
  assert "not comparable: they have different data sets (digits, birds)." in page.text
  assert len([tag for tag, _ in page.tags if tag == "img"]) == len(FIGURES)


def without(*keys):
  """RESULTS as JSON with the value at a path of keys taken out."""
  results = copy.deepcopy(RESULTS)
  place = results
  for key in keys[:-1]:
    place = place[key]
  del place[keys[-1]]
  return json.dumps(results)


def with_value(value, *keys):
  """RESULTS as JSON with another value at a path of keys."""
  results = copy.deepcopy(RESULTS)
  place = results
  for key in keys[:-1]:
    place = place[key]
  place[keys[-1]] = value
  return json.dumps(results)


@pytest.mark.parametrize(
  ("text", "what"),
  [
    ("{", "not valid JSON"),
    ("", "not valid JSON"),
    ("[" * 100_000, "not valid JSON"),
    ("[]", "JSON object"),
    (without("states"), "states"),
    (with_value([], "states"), "at least one finished state"),
    (with_value({}, "states"), "states"),
    (with_value(["x"], "states"), "states[0]"),
    (without("states", 1, "top1"), "states[1].top1"),
    (with_value("0.5", "states", 1, "top1"), "states[1].top1"),
    (with_value(True, "states", 1, "top1"), "states[1].top1"),
    (with_value(None, "states", 1, "top1"), "states[1].top1"),
    (with_value(62.5, "states", 1, "top1"), "states[1].top1"),
    (with_value(float("nan"), "states", 1, "top1"), "NaN"),
    (with_value(float("inf"), "states", 1, "score_new"), "Infinity"),
    (with_value("1e999", "states", 1, "score_new").replace('"1e999"', "1e999"), "inf"),
    (with_value("x", "states", 1, "error_old_as_new"), "error_old_as_new"),
    (with_value(-1.0, "states", 0, "train_seconds"), "train_seconds"),
    (with_value(3, "states", 1, "state"), "states[1].state"),
    (with_value(1, "states", 1, "num_old"), "states[1]"),
    (with_value(1, "num_states"), "num_states"),
    (with_value(10**400, "seed"), "seed"),
    (with_value(2.5, "memory_size"), "memory_size"),
    (with_value(3, "method"), "method"),
    (with_value(["x"], "method_title"), "method_title"),
    (with_value([1], "environment"), "environment"),
    (with_value({"a": []}, "environment"), "environment.a"),
    (with_value([[1]], "states", 1, "confusion"), "states[1].confusion"),
    (with_value([[1, 2], [3, -4]], "states", 1, "confusion"), "states[1].confusion"),
    (without("average"), "average"),
    (without("average", "top5"), "average.top5"),
  ],
)
def test_bad_results_are_named_in_one_line(tmp_path, text, what):
  (tmp_path / "results.json").write_text(text)
  with pytest.raises(DataError) as caught:
    report.load_run(tmp_path)
  message = str(caught.value)
  assert message.startswith(f"{tmp_path / 'results.json'}: ")
  assert what in message
  assert "\n" not in message
  assert len(message) < 300 + len(str(tmp_path))


def test_results_that_are_missing_or_not_text(tmp_path):
  path = tmp_path / "results.json"
  with pytest.raises(DataError, match="results.json does not exist: give the work"):
    report.load_run(tmp_path)
  path.write_bytes(b"\xff\xfe")
  with pytest.raises(DataError, match="results.json: cannot be read .not UTF-8 text"):
    report.load_run(tmp_path)


@pytest.mark.parametrize(
  ("name", "text", "what"),
  [
    ("schedule.json", "{}", "must hold a list"),
    ("schedule.json", "[1]", '"[0]" must be an object'),
    ("schedule.json", '[{"a": [1]}]', "[0].a"),
    ("schedule.json", '[{"a": 1}, {"b": 1}]', "other keys"),
    ("metrics.jsonl", '{"state": 1\n{"state": 1}\n', "line 1 is not valid JSON"),
    ("metrics.jsonl", "[]\n", "line 1 must be an object"),
    ("metrics.jsonl", '{"state": 1, "step": 1}\n', "loss"),
    ("metrics.jsonl", '{"state": 1, "step": "1", "loss": 1.0}\n', "step"),
  ],
)
def test_bad_optional_files_are_named(tmp_path, name, text, what):
  write_run(tmp_path)
  (tmp_path / name).write_text(text)
  with pytest.raises(DataError) as caught:
    report.load_run(tmp_path)
  assert str(caught.value).startswith(f"{tmp_path / name}: ")
  assert what in str(caught.value)


def test_write_report_needs_runs_and_a_place(tmp_path):
  with pytest.raises(UserError, match="at least one"):
    report.write_report([], tmp_path / "report.html")
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="cannot be written"):
    report.write_report([write_run(tmp_path / "a")], tmp_path / "file" / "report.html")


def compare(*arguments, cwd):
  """Runs the script where the package is not on the path."""
  return subprocess.run(
    [sys.executable, str(COMPARE), *arguments],
    cwd=cwd,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )


def test_compare_prints_the_table_and_writes_the_page(tmp_path):
  write_run(tmp_path / "a")
  write_run(tmp_path / "b", method_title="FT", dataset="birds")
  done = compare("--workdir=a", "--workdir=b", "--output=pages", cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  assert "76.3" in done.stdout
  assert "not comparable" in done.stdout
  assert f"report: {tmp_path / 'pages' / 'report.html'}" in done.stdout
  assert (tmp_path / "pages" / "report.html").is_file()
  assert (tmp_path / "pages" / "figures" / "accuracy.png").is_file()


@pytest.mark.parametrize(
  ("arguments", "what"),
  [
    (["--workdir=nowhere"], "results.json does not exist"),
    ([], "--workdir is missing"),
    (["--workdirs=a"], "workdirs"),
    (["a"], "unexpected argument 'a'"),
  ],
)
def test_compare_fails_with_one_line(tmp_path, arguments, what):
  done = compare(*arguments, cwd=tmp_path)
  assert done.returncode == 2
  assert done.stderr.startswith("error: ")
  assert what in done.stderr
  assert done.stderr.count("\n") == 1
  assert list(tmp_path.iterdir()) == []
