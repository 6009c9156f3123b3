"""The page and the script that compares runs."""

import subprocess
import sys

import pytest
from folders import ROOT
from written_runs import (
  COMPARISON_ROW,
  RESULTS,
  SEED_ROW,
  SEED_RUNS,
  STATE_ROWS,
  Page,
  one_state,
  results_with,
  seed_run,
  write_run,
)

from ssil_jax.errors import UserError
from ssil_jax.reports import page as page_lib

COMPARE = ROOT / "experiments" / "compare.py"
FIGURES = ("accuracy", "errors", "confusion", "scores", "state_specific", "loss")


def page_of(tmp_path, *workdirs):
  return Page(page_lib.write_report(workdirs, tmp_path / "out" / "report.html"))


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


def test_page_says_that_runs_are_not_comparable(tmp_path):
  other = write_run(tmp_path / "b", dataset="birds")
  page = page_of(tmp_path, write_run(tmp_path / "a"), other)
  assert "not comparable: they have different data sets (digits, birds)." in page.text
  assert len([tag for tag, _ in page.tags if tag == "img"]) == len(FIGURES)


def test_figures_lie_beside_the_page_and_old_ones_go(tmp_path):
  folder = tmp_path / "out" / "figures"
  page_of(tmp_path, write_run(tmp_path / "a"))
  assert {path.stem for path in folder.iterdir()} == set(FIGURES)
  page_of(tmp_path, write_run(tmp_path / "a", results=one_state()))
  assert {path.stem for path in folder.iterdir()} == {
    "accuracy",
    "state_specific",
    "loss",
  }


def test_schedule_has_the_columns_of_all_its_rows(tmp_path):
  schedule = [{"state": 1, "a": 0.1}, {"state": 2, "b": None}]
  page = page_of(tmp_path, write_run(tmp_path / "a", schedule=schedule))
  for row in (["state", "a", "b"], ["1", "0.1", "-"], ["2", "-", "-"]):
    assert row in page.rows


def test_equal_schedules_are_shown_once(tmp_path):
  other = [{"state": 1, "sampling": "everything"}]
  page = page_of(
    tmp_path,
    write_run(tmp_path / "a"),
    write_run(tmp_path / "b", method_title="FT", schedule=other),
    write_run(tmp_path / "c", method_title="WA"),
  )
  assert page.rows.count(["2", "ratio-preserving", "0.05"]) == 1
  assert page.rows.count(["1", "everything"]) == 1
  assert "\nSS-IL, WA\n" in page.text


def test_page_shows_means_over_seeds(tmp_path):
  page = page_of(
    tmp_path,
    *(seed_run(tmp_path / str(run["seed"]), **run) for run in SEED_RUNS),
    write_run(tmp_path / "b", results=one_state(method_title="<i>FT")),
  )
  assert SEED_ROW in page.rows
  assert "Over seeds" in page.text
  assert "Mean \u00b1 sample standard deviation" in page.text
  assert "n is 3." in page.text
  left_out = "Left out of the means over seeds: <i>FT (1 of 2 states), not finished."
  assert left_out in page.text
  assert "bands reach from its lowest seed" in page.captions[0]


def test_page_without_several_seeds_does_not_speak_of_them(tmp_path):
  other = write_run(tmp_path / "b", method_title="FT")
  page = page_of(tmp_path, write_run(tmp_path / "a"), other)
  assert "Over seeds" not in page.text
  assert "\u00b1" not in page.text
  assert "seeds" not in "".join(page.captions)


def test_page_shows_statistics_and_where_states_come_from(tmp_path):
  bad = '/runs/<b>"ft"'
  results = results_with(
    {"statistics": {}, "from_workdir": bad},
    {"statistics": {"<i>alpha": 1.23456, "beta": None}, "from_workdir": bad},
  )
  page = page_of(tmp_path, write_run(tmp_path / "a", results=results))
  for row in (["state", "<i>alpha", "beta"], ["1", "-", "-"], ["2", "1.235", "-"]):
    assert row in page.rows
  assert f"States 1 to 2 were trained in {bad} and taken from there." in page.text
  assert "own statistics" in page.text
  assert not {"b", "i"} & {tag for tag, _ in page.tags}


def test_page_of_a_run_without_statistics_has_no_table_of_them(tmp_path):
  page = page_of(tmp_path, write_run(tmp_path / "a", results=RESULTS))
  assert "own statistics" not in page.text
  assert "taken from there" not in page.text


def test_settings_of_many_runs_have_a_row_a_run(tmp_path, monkeypatch):
  monkeypatch.setattr(page_lib, "draw_plots", lambda runs: [])  # see test_figures
  runs = [write_run(tmp_path / f"run{n}", method_title=f"M{n}") for n in range(9)]
  page = page_of(tmp_path, *runs)
  assert ["data set", "digits"] in page.rows
  assert ["run", "method", "folder"] in page.rows
  assert ["M3", "M3", "run3"] in page.rows


def test_settings_of_many_runs_that_differ_in_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(page_lib, "draw_plots", lambda runs: [])
  runs = [write_run(tmp_path / str(n) / "run") for n in range(9)]
  page = page_of(tmp_path, *runs)
  assert ["folder", "run"] in page.rows
  assert "what differs" not in page.text


def test_write_report_needs_runs_and_a_place(tmp_path):
  with pytest.raises(UserError, match="at least one"):
    page_lib.write_report([], tmp_path / "report.html")
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="cannot be written"):
    page_lib.write_report([write_run(tmp_path / "a")], tmp_path / "file" / "report.html")


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
    (["a"], "'a' is not a flag"),
  ],
)
def test_compare_fails_with_one_line(tmp_path, arguments, what):
  done = compare(*arguments, cwd=tmp_path)
  assert done.returncode == 2
  assert done.stderr.startswith("error: ")
  assert what in done.stderr
  assert done.stderr.count("\n") == 1
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_compare_help_names_the_flags(tmp_path, flag):
  done = compare(flag, cwd=tmp_path)
  assert done.returncode == 0
  assert done.stderr == ""
  assert "--workdir" in done.stdout
  assert "--output" in done.stdout
