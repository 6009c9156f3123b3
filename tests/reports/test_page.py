"""The page on runs; the script that writes it: see tests/commands/test_compare.py."""

import base64
import hashlib
import re

import pytest
from written_runs import (
  SEED_RUNS,
  STATE_ROWS,
  TUNING,
  Page,
  load_seed_runs,
  measured_run,
  one_state,
  with_states,
  write_run,
)

from ssil_jax.errors import DataError, UserError
from ssil_jax.reports import page as page_lib
from ssil_jax.reports import study
from ssil_jax.reports.blocks import Cell, Figure, Section, Table, Terms, Text

FIGURES = ("accuracy", "errors", "confusion", "scores", "state_specific", "loss")


@pytest.fixture
def no_figures(monkeypatch):
  """See test_plots.py for these, which take time."""
  monkeypatch.setattr(study, "_figures", lambda *arguments: {})


def page_of(tmp_path, *workdirs):
  return Page(page_lib.write_report(workdirs, tmp_path / "out" / "report.html"))


def test_page_holds_tables_and_settings_and_is_self_contained_and_accessible(tmp_path):
  page = page_of(
    tmp_path,
    write_run(tmp_path / "a"),
    write_run(tmp_path / "b", method="ft", method_title="FT", schedule=None),
  )
  for row in STATE_ROWS:
    shown = [*row[:-1], "-", row[-1]]  # the calibration error of older results
    assert shown in page.rows
  assert ["2", "ratio-preserving", "0.05"] in page.rows
  for name, value in {"data set": "digits", "states T": "2", "num devices": "2"}.items():
    assert [name, value] in page.rows
  assert ["SS-IL", "SS-IL", "a"] in page.rows  # what differs: method and folder
  assert "SS-IL, FT on digits" in page.text
  assert "scored on test images" in page.text
  assert "holds no schedule.json" in page.text
  absent = ("None", "not comparable", "Not finished", "±", "own statistics", "ssed over")
  assert not [words for words in (*absent, "taken from there") if words in page.text]
  assert "seeds" not in "".join(page.captions)

  assert ("html", {"lang": "en"}) in page.tags
  assert not {"link", "iframe", "object", "img"} & {tag for tag, _ in page.tags}
  drawn = [attributes for tag, attributes in page.tags if tag == "svg"]
  assert len(drawn) == len(FIGURES)
  words = [*page.captions, *(attributes["aria-label"] for attributes in drawn)]
  assert all(len(text) > 20 for text in words)
  assert all(a.get("scope") in ("row", "col") for tag, a in page.tags if tag == "th")
  assert not any("style" in attributes for _, attributes in page.tags)
  ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
  assert len(ids) == len(set(ids))
  # Every address is a place on the page, or a file beside it that is there.
  for address in (a.get("href", a.get("src")) for _, a in page.tags):
    if address is not None and address[0] == "#":
      assert address[1:] in ids
    elif address is not None:
      assert (tmp_path / "out" / address).is_file()
  source = (tmp_path / "out" / "report.html").read_text()
  assert not re.search(r"url\((?!#)|@import|https?://(?!www.w3.org/2000/svg)", source)
  policy = re.search('http-equiv="Content-Security-Policy" content="([^"]+)"', source)[1]
  for kind in ("style", "script"):
    text = re.search(f"<{kind}>(.*?)</{kind}>", source, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    assert f"{kind}-src 'sha256-{digest}';" in policy.replace("&#39;", "'")

  # Figures lie beside the page, and those of an earlier one go.
  folder = tmp_path / "out" / "figures"
  names = {f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")}
  assert {path.name for path in folder.iterdir()} == names
  (folder / "mine.png").write_text("")
  page_of(tmp_path, write_run(tmp_path / "a", results=one_state()))
  stems = {path.stem for path in folder.iterdir()}
  assert stems == {"accuracy", "state_specific", "loss", "mine"}


def test_names_are_escaped_and_drawn_literally(tmp_path):
  bad = "<script>alert(1)</script>$x^{$"
  dataset = "x\ud800y_<img src=x onerror=alert(1)>"
  workdir = measured_run(
    tmp_path / "javascript:a\udcff<",
    method_title=bad,
    dataset=dataset,
    class_names=["<i>", "b&amp;", bad, "d"],
    schedule=[{"<i>": "<script>"}],
  )
  other = with_states(
    {"statistics": {}, "from_workdir": bad},
    {"statistics": {"<i>alpha": 1.23456, "beta": None}, "from_workdir": bad},
    environment={"<b>key": '"><script>x</script>'},
  )
  other = write_run(tmp_path / "b", results=other, dataset=dataset)
  page = page_of(tmp_path, workdir, other)
  tags = [tag for tag, _ in page.tags]
  assert tags.count("script") == 1
  assert not {"b", "i", "img"} & set(tags)
  assert all("onerror" not in attributes for _, attributes in page.tags)
  assert f"{bad}, SS-IL on x\ufffdy_<img" in page.text
  assert f"States 1 to 2 were trained in {bad} and taken from there." in page.text
  assert "own statistics" in page.text
  assert ["<b>key", '"><script>x</script>'] in page.rows or any(
    '"><script>x</script>' in row for row in page.rows
  )
  for row in (["state", "<i>alpha", "beta"], ["1", "-", "-"], ["2", "1.235", "-"]):
    assert row in page.rows
  assert ["<i>", "1", "40.0"] in page.rows
  links = [a["href"] for tag, a in page.tags if tag == "a"]
  assert "../javascript%3Aa%FF%3C/results.json" in links


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
  assert "\nSchedule of SS-IL, WA\n" in page.text


@pytest.mark.usefixtures("no_figures")
def test_settings_are_said_once_unless_they_differ(tmp_path):
  configs = [{"epochs": 5, "width": 8, "data": {"x": 1}}, {"epochs": 6, "width": 8}]
  page = page_of(
    tmp_path,
    *(measured_run(tmp_path / f"r{n}", config=config) for n, config in enumerate(configs)),
  )
  assert ["run", "epochs", "data", "folder"] in page.rows
  assert ["SS-IL (r0)", "5", '{"x": 1}', "r0"] in page.rows
  assert ["width", "8"] in page.rows
  assert ["commit", "abc1234"] in page.rows
  assert not [row for row in page.rows if row[0] == "epochs"]


@pytest.mark.usefixtures("no_figures")
def test_runs_with_wrong_files_are_named_and_left_out(tmp_path):
  good, bad = write_run(tmp_path / "a"), write_run(tmp_path / "b")
  (bad / "results.json").write_text("{<b>")
  missing = tmp_path / "c"
  with pytest.warns(UserWarning, match="left out: ") as caught:
    page = page_of(tmp_path, bad, good, missing)
  assert len(caught) == 2
  assert f"Left out, as files are wrong: {bad / 'results.json'}: is not valid" in page.text
  assert f"{missing / 'results.json'} does not exist" in page.text
  assert "b" not in {tag for tag, _ in page.tags}
  with pytest.raises(DataError) as raised:
    page_of(tmp_path, bad, missing)
  assert [line.split(":")[0].split(" ")[0] for line in str(raised.value).split("\n")] == [
    f"{bad / 'results.json'}",
    f"{missing / 'results.json'}",
  ]


@pytest.mark.usefixtures("no_figures")
def test_write_report_needs_runs_and_a_place(tmp_path):
  with pytest.raises(UserError, match="at least one"):
    page_lib.write_report([], tmp_path / "report.html")
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="cannot be written"):
    page_lib.write_report([write_run(tmp_path / "a")], tmp_path / "file" / "report.html")


SVG = (
  b'<svg xmlns="http://www.w3.org/2000/svg" width="72pt" height="36pt" '
  b'viewBox="0 0 72 36"/>'
)


def test_any_sections_make_a_page(tmp_path):
  numbers = [["a", Cell("2 ± 1", 2.0, 1.0, 3, best=True, significant=True)], ["b", "-"]]
  table = Table("t_1", "caption", ("name", "value"), numbers, "note", highlighted=[0])
  figure = Figure("f", "Figure", "drawn", "alt", SVG, b"png")
  sections = [
    Section("one", "One", [Text("careful", warning=True), table], intro="first"),
    Section("two", "Two", [figure, Terms([("term", "meaning")])], folded=True),
  ]
  output = tmp_path / "new" / "page.html"
  assert page_lib.write_page(output, title="T", sections=sections, kicker="K") == output
  page = Page(output)
  for words in ("K\nT\n", "careful", "first", "note", "term\nmeaning", "Show two"):
    assert words in page.text
  assert ["a", "2 ± 1*"] in page.rows
  assert ("td", {"class": "n", "data-value": "2"}) in page.tags
  assert ("tr", {"class": "lit"}) in page.tags
  assert ("table", {"class": "sortable"}) in page.tags
  assert [a["href"] for tag, a in page.tags if tag == "a"][:2] == ["#one", "#two"]
  assert (tmp_path / "new" / "tables" / "t_1.csv").is_file()
  assert (tmp_path / "new" / "figures" / "f.svg").read_bytes() == SVG
  for bad in ([sections[0], sections[0]], [sections[0]._replace(name="../x")]):
    with pytest.raises(ValueError, match="names must be"):
      page_lib.write_page(output, title="T", sections=bad)
  # Files may name their columns so; a heading without text could not be read aloud.
  unnamed = sections[0]._replace(blocks=[table._replace(columns=(" ", "value"))])
  page_lib.write_page(output, title="T", sections=[unnamed])
  assert ["-", "value"] in Page(output).rows


def test_a_page_removes_nothing_through_a_link(tmp_path):
  precious, out = tmp_path / "precious", tmp_path / "out"
  precious.mkdir()
  (precious / "x.png").write_text("mine")
  out.mkdir()
  (out / "figures").symlink_to(precious)
  (out / "page.html").write_text('<a href="figures/x.png"> <a href="tables/../../y.csv">')
  page_lib.write_page(out / "page.html", title="T", sections=[])
  assert (precious / "x.png").read_text() == "mine"


# Means and tests over seeds ---------------------------------------------------------------


def results_rows(runs, highlight=None):
  """Title -> cell of each method, in the first table of the study."""
  (section, *_) = study.study_sections(runs, highlight=highlight)
  tables = [block for block in section.blocks if isinstance(block, Table)]
  columns = tables[0].columns
  rows = {row[0]: dict(zip(columns, row, strict=True)) for row in tables[0].rows}
  return rows, tables


@pytest.mark.usefixtures("no_figures")
def test_the_first_table_is_over_seeds(tmp_path):
  runs = load_seed_runs(tmp_path, *SEED_RUNS)
  rows, (table, *_) = results_rows(runs)
  shown = ["42.0 ± 2.0", "91.0 ± 1.7", "20.0 ± 10.0", "32.0 ± 2.6"]
  names = ("average top-1", "average top-5", "average imbalance", "last top-1")
  assert [rows["SS-IL"][name].text for name in names] == shown
  assert rows["SS-IL"]["seeds (n)"].value == 3
  assert rows["SS-IL"]["forgetting"].text == "-"
  cell = rows["SS-IL"]["average top-1"]
  assert (cell.value, cell.spread) == pytest.approx((42.0, 2.0))
  assert not any(c.best for c in rows["SS-IL"].values() if isinstance(c, Cell))
  assert not table.highlighted


@pytest.mark.usefixtures("no_figures")
def test_the_best_is_marked_and_whether_seeds_bear_it_out(tmp_path):
  ours = [{"seed": s, "top1": 0.5 + 0.01 * s, "imbalance": 0.2} for s in range(3)]
  # Paired differences 10.1, 9.9 and 10.0: t = 10 / (0.1 / sqrt(3)) = 173. Imbalance:
  # -10, 10 and -6, mean -2.
  ft = [
    {"seed": s, "top1": t, "imbalance": i, "method": "ft", "method_title": "FT"}
    for s, t, i in ((0, 0.399, 0.3), (1, 0.411, 0.1), (2, 0.42, 0.26))
  ]
  joint = [
    {"seed": s, "top1": 0.9, "method": "joint", "method_title": "Joint"} for s in range(3)
  ]
  runs = load_seed_runs(tmp_path, *ours, *ft, *joint)
  rows, tables = results_rows(runs)
  first, second = tables
  marks = {
    name: [(c.best, c.significant) for c in (r["average top-1"], r["average imbalance"])]
    for name, r in rows.items()
  }
  no = (False, False)
  assert marks == {
    "SS-IL": [(True, True), (True, False)],
    "FT": [no, no],
    "Joint": [no, no],
  }
  assert first.highlighted == [0]
  assert "*: the difference" in first.note
  assert "Joint" in first.note
  assert not any(r["last e(p,n)"].best or r["training time"].best for r in rows.values())
  row = dict(zip(second.columns, second.rows[0], strict=True))
  difference = row["average top-1: difference"]
  assert (row["other method"], row["shared seeds"].text) == ("FT", "3")
  # t(0.975; 2 degrees of freedom) = 4.303, times 0.1 / sqrt(3) = 0.248.
  assert difference.text == "+10.0 [+9.8, +10.2]"
  assert difference.significant
  assert row["p, average top-1"].value == pytest.approx(2 * 3.33e-5, rel=0.02)
  # The other way round, FT is in question.
  rows, (first, second) = results_rows(runs, "ft")
  assert first.highlighted == [1]
  assert not any(cell.significant for cell in second.rows[0] if isinstance(cell, Cell))
  # Too few seeds.
  rows, tables = results_rows(load_seed_runs(tmp_path, *ours[:2], *ft[:2]))
  assert rows["SS-IL"]["average top-1"].best
  assert not rows["SS-IL"]["average top-1"].significant
  assert "share fewer than 3 seeds (here 2)" in tables[0].note
  assert "[" not in tables[1].rows[0][2].text


@pytest.mark.usefixtures("no_figures")
def test_means_over_different_seeds_are_not_ranked(tmp_path):
  ft = {"method": "ft", "method_title": "FT"}
  ours, theirs = (0.6, 0.611, 0.621), (0.5, 0.51, 0.52, 0.99, 0.98, 0.97)
  runs = load_seed_runs(
    tmp_path,
    *({"seed": seed, "top1": top1, "last": 0.5} for seed, top1 in enumerate(ours)),
    *({"seed": seed, "top1": top1, **ft} for seed, top1 in enumerate(theirs)),
  )
  rows, (first, second) = results_rows(runs)
  # Where both have seeds, SS-IL is better in each; FT has the higher mean.
  cells = [rows[name]["average top-1"] for name in ("FT", "SS-IL")]
  assert [cell.text for cell in cells] == ["74.5 ± 25.8", "61.1 ± 1.1"]
  for row in rows.values():
    assert not any(c.best or c.significant for c in row.values() if isinstance(c, Cell))
  assert "No best is marked where methods have different seeds" in first.note
  assert "Bold" not in first.note
  assert second.rows[0][2].text.startswith("+10.1 [")
  assert second.rows[0][2].significant
  # Of one seed each, but not of the same.
  runs = load_seed_runs(tmp_path, {"seed": 0}, {"seed": 1, "top1": 0.1, **ft})
  rows, (first,) = results_rows(runs)
  assert not rows["SS-IL"]["average top-1"].best
  assert "different seeds" in first.note


@pytest.mark.usefixtures("no_figures")
def test_one_seed_has_neither_deviations_nor_stars(tmp_path):
  ft = {"method": "ft", "method_title": "FT", "top1": 0.1}
  rows, (first,) = results_rows(load_seed_runs(tmp_path, {}, ft))
  assert rows["SS-IL"]["average top-1"] == Cell("70.0", 70.0, None, 1, best=True)
  assert not any("\N{PLUS-MINUS SIGN}" in c.text for c in first.rows[0][1:])
  assert "seed" not in first.note + first.caption


@pytest.mark.usefixtures("no_figures")
def test_differences_that_are_all_the_same_are_not_tested(tmp_path):
  ft = {"method": "ft", "method_title": "FT"}
  runs = load_seed_runs(
    tmp_path,
    *({"seed": s, "top1": t + 0.1} for s, t in enumerate((0.3, 0.4, 0.6))),
    *({"seed": s, "top1": t, **ft} for s, t in enumerate((0.3, 0.4, 0.6))),
  )
  rows, (first, second) = results_rows(runs)
  assert rows["SS-IL"]["average top-1"].best
  assert not rows["SS-IL"]["average top-1"].significant
  row = dict(zip(second.columns, second.rows[0], strict=True))
  difference = row["average top-1: difference"]
  assert (difference.text, difference.significant) == ("+10.0", False)
  assert row["p, average top-1"].text == "-"
  assert "or where all differences are the same" in second.note


@pytest.mark.usefixtures("no_figures")
def test_only_what_is_alike_is_ranked(tmp_path):
  runs = load_seed_runs(
    tmp_path,
    *({"method_title": t, "memory_size": m} for t in ("SS-IL", "FT") for m in (40, 80)),
  )
  _, tables = results_rows(runs)
  captions = [table.caption for table in tables]
  assert [c.split(". ")[0] for c in captions] == [
    "digits, 4 classes, T = 2, |M| = 40, test images",
    "digits, 4 classes, T = 2, |M| = 80, test images",
  ]


@pytest.mark.usefixtures("no_figures")
def test_classes_have_names(tmp_path):
  page = page_of(tmp_path, measured_run(tmp_path / "a"))
  hardest = [row for row in page.rows if row[0] in ("ant", "bat", "cat", "bee")]
  assert hardest[:4] == [
    *(["ant", "1", "40.0"], ["bat", "1", "80.0"], ["cat", "2", "90.0"]),
    ["bee", "2", "100.0"],
  ]
  # Of 50 images of ant, 20 went to cat.
  assert hardest[4:] == [
    ["ant", "cat", "1 → 2", "20", "40.0"],
    *(["ant", "bat", "1 → 1", "10", "20.0"], ["bat", "bee", "1 → 2", "10", "20.0"]),
    ["cat", "ant", "2 → 1", "5", "10.0"],
  ]


@pytest.mark.usefixtures("no_figures")
def test_what_was_scored_is_said(tmp_path):
  page = page_of(tmp_path, measured_run(tmp_path / "a", split="validation"))
  assert "scored on validation images" in page.text
  page = page_of(tmp_path, measured_run(tmp_path / "b", tuned_on=TUNING))
  assert "tuned on validation images, 10% of the training images" in page.text
