"""The page on runs; the script that writes it: see tests/experiments/test_compare.py."""

import pytest
from written_runs import (
  COMPARISON_ROW,
  SEED_ROW,
  SEED_RUNS,
  STATE_ROWS,
  Page,
  one_state,
  seed_run,
  with_states,
  write_run,
)

from ssil_jax.errors import UserError
from ssil_jax.reports import page as page_lib

FIGURES = ("accuracy", "errors", "confusion", "scores", "state_specific", "loss")


@pytest.fixture
def no_figures(monkeypatch):
  """See test_figures.py for these, which take time."""
  monkeypatch.setattr(page_lib, "draw_plots", lambda runs: [])


def page_of(tmp_path, *workdirs):
  return Page(page_lib.write_report(workdirs, tmp_path / "out" / "report.html"))


def test_page_holds_tables_and_settings_and_is_self_contained_and_accessible(tmp_path):
  page = page_of(
    tmp_path,
    write_run(tmp_path / "a"),
    write_run(tmp_path / "b", method="ft", method_title="FT", schedule=None),
  )
  assert COMPARISON_ROW in page.rows
  assert all(row in page.rows for row in STATE_ROWS)
  assert ["2", "ratio-preserving", "0.05"] in page.rows
  values = {"data set": "digits", "states T": "2", "classes": "4", "num devices": "2"}
  for name, value in (values | {"exemplar memory |M|": "40", "seed": "7"}).items():
    assert [name, value, value] in page.rows
  assert "SS-IL, FT on digits" in page.text
  assert "holds no schedule.json" in page.text
  absent = ("None", "not comparable", "Not finished", "Over seeds", "±", "own statistics")
  assert not [words for words in (*absent, "taken from there") if words in page.text]
  assert "seeds" not in "".join(page.captions)

  assert ("html", {"lang": "en"}) in page.tags
  assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
  images = [attributes for tag, attributes in page.tags if tag == "img"]
  assert len(images) == len(FIGURES)
  assert all(image["src"].startswith("data:image/png;base64,") for image in images)
  assert all(len(words) > 20 for words in (*page.captions, *(i["alt"] for i in images)))
  sources = [a.get("src") or a.get("href") for _, a in page.tags]
  assert all(source.startswith("data:") for source in sources if source)
  assert all(a.get("scope") in ("row", "col") for tag, a in page.tags if tag == "th")
  source = (tmp_path / "out" / "report.html").read_text()
  assert not [words for words in ("url(", "@import") if words in source]

  # Figures lie beside the page, and those of an earlier one go.
  folder = tmp_path / "out" / "figures"
  assert {path.stem for path in folder.iterdir()} == set(FIGURES)
  page = page_of(tmp_path, write_run(tmp_path / "a", results=one_state()))
  assert "Not drawn, with one state only" in page.captions[1]
  assert {path.stem for path in folder.iterdir()} == {FIGURES[0], *FIGURES[4:]}


def test_names_are_escaped_and_drawn_literally(tmp_path):
  bad = "<script>alert(1)</script>$x^{$"
  workdir = write_run(
    tmp_path / "a",
    method_title=bad,
    dataset="x\ud800y_<img src=x onerror=alert(1)>",
    environment={"<b>key": '"><script>x</script>'},
    schedule=[{"<i>": "<script>"}],
    results=with_states(
      {"statistics": {}, "from_workdir": bad},
      {"statistics": {"<i>alpha": 1.23456, "beta": None}, "from_workdir": bad},
    ),
  )
  page = page_of(tmp_path, workdir)
  assert not {"script", "b", "i"} & {tag for tag, _ in page.tags}
  assert all("onerror" not in attributes for _, attributes in page.tags)
  assert f"{bad} on x\ufffdy_<img" in page.text
  assert f"States 1 to 2 were trained in {bad} and taken from there." in page.text
  assert "own statistics" in page.text
  assert ["<b>key", '"><script>x</script>'] in page.rows
  for row in (["state", "<i>alpha", "beta"], ["1", "-", "-"], ["2", "1.235", "-"]):
    assert row in page.rows


@pytest.mark.usefixtures("no_figures")
def test_unfinished_and_incomparable_runs_are_named(tmp_path):
  other = write_run(tmp_path / "b", method_title="FT", num_states=5, dataset="birds")
  page = page_of(tmp_path, write_run(tmp_path / "a"), other)
  assert "not comparable: they have different data sets (digits, birds)." in page.text
  assert "Not finished: FT (2 of 5 states)." in page.text
  assert "FT (2 of 5 states)" in [row[0] for row in page.rows]


@pytest.mark.usefixtures("no_figures")
def test_equal_schedules_are_shown_once_with_the_columns_of_all_rows(tmp_path):
  other = [{"state": 1, "a": 0.1}, {"state": 2, "b": None}]
  page = page_of(
    tmp_path,
    write_run(tmp_path / "a"),
    write_run(tmp_path / "b", method_title="FT", schedule=other),
    write_run(tmp_path / "c", method_title="WA"),
  )
  assert page.rows.count(["2", "ratio-preserving", "0.05"]) == 1
  for row in (["state", "a", "b"], ["1", "0.1", "-"], ["2", "-", "-"]):
    assert page.rows.count(row) == 1
  assert "\nSS-IL, WA\n" in page.text


@pytest.mark.usefixtures("no_figures")
def test_page_shows_means_over_seeds(tmp_path):
  page = page_of(
    tmp_path,
    *(seed_run(tmp_path / str(run["seed"]), **run) for run in SEED_RUNS),
    write_run(tmp_path / "b", results=one_state(method_title="<i>FT")),
  )
  assert SEED_ROW in page.rows
  left_out = "Left out of the means over seeds: <i>FT (1 of 2 states), not finished."
  for words in ("Over seeds", "Mean ± sample standard deviation", "n is 3.", left_out):
    assert words in page.text


@pytest.mark.usefixtures("no_figures")
def test_settings_of_many_runs_have_a_row_a_run(tmp_path):
  runs = [write_run(tmp_path / f"run{n}", method_title=f"M{n}") for n in range(9)]
  page = page_of(tmp_path, *runs)
  assert ["data set", "digits"] in page.rows
  assert ["run", "method", "folder"] in page.rows
  assert ["M3", "M3", "run3"] in page.rows
  assert "what differs" not in page_of(tmp_path, *runs[:1] * 9).text


@pytest.mark.usefixtures("no_figures")
def test_write_report_needs_runs_and_a_place(tmp_path):
  with pytest.raises(UserError, match="at least one"):
    page_lib.write_report([], tmp_path / "report.html")
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="cannot be written"):
    page_lib.write_report([write_run(tmp_path / "a")], tmp_path / "file" / "report.html")
