"""The page of the paper's parts, from runs that are written by hand."""

import copy
import csv
import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure as Canvas
from written_runs import RESULTS, Page, write_run

from ssil_jax.errors import DataError
from ssil_jax.methods import METHODS
from ssil_jax.paper import claims, found, protocol, report, tables
from ssil_jax.paper import plots as paper_plots
from ssil_jax.paper.protocol import DIGITS, IMAGENET, LANDMARKS_10K, PAPER, cell
from ssil_jax.reports import plots
from ssil_jax.reports.aggregate import Group
from ssil_jax.reports.results import Run


def write(folder, one, seed=0, *, top1, imbalance=0.2, errors=(0.3, 0.1), **changes):
  """Writes a run of a cell; `errors` are e(p,n) and e(n,p) of its last state."""
  results = copy.deepcopy(RESULTS)
  last = results["states"][-1]
  last["error_old_as_new"], last["error_new_as_old"] = errors
  for name in changes.keys() & last.keys():
    last[name] = changes[name]
  last["statistics"] = changes.get("statistics", {})
  workdir = folder / f"{one.method}-{one.num_states}-{one.memory_size}-{one.epochs}-{seed}"
  write_run(
    workdir,
    results=results,
    seed=seed,
    method=one.method,
    method_title=METHODS[one.method].title,
    average={"top1": top1, "top5": 0.9, "imbalance": imbalance},
  )
  return workdir


def rows_of(table):
  return [[getattr(c, "text", c) for c in row] for row in table.rows]


def test_table_1_has_ours_the_papers_and_the_difference(tmp_path):
  ft, ssil = cell(IMAGENET, "ft", 10, 5_000), cell(IMAGENET, "ssil", 10, 5_000)
  runs = {
    **{write(tmp_path, ft, seed, top1=0.40): ft for seed in (0, 1)},
    write(tmp_path, ssil, 0, top1=0.50): ssil,
    write(tmp_path, ssil, 1, top1=0.54): ssil,
  }
  top1, top5, _, elsewhere, *_ = tables.table1(found.find(runs), DIGITS, IMAGENET)
  assert top1.columns[1] == "T=5 (paper: 10), |M|=10 (paper: 5,000)"
  rows = {row[0]: row for row in rows_of(top1)}
  # Mean 52, deviation sqrt((2² + 2²) / 1) = 2.8; table 1 has 52.6 and 37.9.
  assert rows["SS-IL"][1] == "52.0 ± 2.8"
  assert rows["SS-IL, paper"][1] == "52.6"
  assert rows["SS-IL, difference"][1] == "-0.6"
  assert [rows[name][1] for name in ("FT", "FT, paper", "FT, difference")] == [
    "40.0 ± 0.0",
    "37.9",
    "+2.1",
  ]
  assert rows["iCaRL"][1:] == ["-"] * 5
  best = {row[0] for row in top1.rows for c in row[1:] if getattr(c, "best", False)}
  assert best == {"SS-IL", "SS-IL, paper"}
  assert rows_of(top5)[-2] == ["SS-IL, paper", "77.5", "80.4", "82.9", "76.3", "78.9"]
  others = {row[0]: row[1] for row in rows_of(elsewhere)}
  assert others["SS-IL, first author's files"] == "52.9"
  assert others["SS-IL, first author's files, difference"] == "-0.9"
  assert (others["FT, first author's files"], others["iCaRL, ICCV 2021"]) == (
    "38.5",
    "47.0",
  )


def test_table_1_says_how_many_seeds_where_they_differ_and_marks_no_best(tmp_path):
  ft, ssil = cell(IMAGENET, "ft", 10, 5_000), cell(IMAGENET, "ssil", 10, 5_000)
  other = cell(IMAGENET, "ft", 10, 10_000)
  runs = {write(tmp_path, ft, 0, top1=0.40): ft, write(tmp_path, other, 0, top1=0.5): other}
  runs |= {write(tmp_path, ssil, seed, top1=0.50): ssil for seed in (0, 1)}
  top1, *_ = tables.table1(found.find(runs), DIGITS, IMAGENET)
  rows = {row[0]: row for row in rows_of(top1)}
  assert rows["FT"][1:3] == ["40.0 (n = 1)", "50.0 (n = 1)"]
  assert rows["SS-IL"][1] == "50.0 ± 0.0 (n = 2)"
  assert not any(c.best for row in top1.rows[::3] for c in row[1:])


def test_table_2_marks_the_best_of_each_number_of_states():
  _, imbalance = tables.table2(found.Found({}, []), PAPER)
  assert imbalance.columns[1:] == ["N_M=16", "N_M=32", "N_M=64", "N_M=128"]
  lines = [row for row in imbalance.rows if row[0].endswith("paper")]
  best = [[c.text for c in row[1:] if c.best] for row in lines]
  assert best == [["21.7"], ["20.0"], ["24.3"]]


def test_every_number_of_tables_1_and_2_is_known():
  none = found.Found({}, [])
  shown = [*tables.table1(none, PAPER, IMAGENET)[:3], *tables.table2(none, PAPER)]
  for table in shown:
    papers = [row for row in rows_of(table) if row[0].endswith(", paper")]
    assert papers
    assert "-" not in sum(papers, [])
  top1, *_ = tables.table1(none, PAPER, LANDMARKS_10K)
  assert rows_of(top1)[1] == ["iCaRL, paper", *["-"] * 5]


def test_figure_6_has_the_first_authors_averages():
  rows = rows_of(tables.figure6(found.Found({}, []), PAPER))
  assert [row[2] for row in rows] == [
    "57.7",
    "56.9",
    "55.1",
    "51.0",
    "46.3",
    "47.4",
    "36.8",
  ]
  assert rows[3][0] == "SS-IL, epochs=50"


def answer(runs, text):
  """What is said of the claim that begins so: the verdict, and what was found."""
  return answer_of(claims.table(found.find(runs)), text)


def answer_of(table, text):
  (row,) = (row for row in table.rows if row[0].startswith(text))
  return tuple(row[1:3])


def test_claims_that_hold_and_that_do_not(tmp_path):
  runs = {}
  for size, ft, il2m, ssil in ((5_000, 0.3, 0.4, 0.5), (10_000, 0.5, 0.49, 0.4)):
    for method, top1 in (("ft", ft), ("il2m", il2m), ("ssil", ssil)):
      one = cell(IMAGENET, method, 10, size)
      errors = {"ft": (0.9, 0.1), "il2m": (0.5, 0.4), "ssil": (0.3, 0.35)}[method]
      statistics = {
        "rectification": 2.0,
        "probability_ratio": 5.0,
        "exemplar_top1": 0.9,
        "old_top1": 0.5,
      }
      path = write(
        tmp_path, one, top1=top1, errors=errors, statistics=statistics, score_new=3.5
      )
      runs[path] = one
  table = claims.table(found.find(runs))
  for text, verdict in {
    "SS-IL is more accurate than FT": "in 1 of 2",
    "SS-IL is more accurate than IL2M": "in 1 of 2",
    "IL2M gains little over FT": "in 0 of 2",
    "FT and IL2M lean to the new classes": "in 1 of 2",  # FT 90 / 10, but IL2M 50 / 40
    "SS-IL's e(p,n) and e(n,p) are the closest to each other at": "in 2 of 2",  # no iCaRL
    "IL2M's rectification R is smaller": "yes",
    "FT overfits its exemplars": "yes",  # 90 on exemplars, 50 on test images
    "FT still knows the classes": "yes",  # state-specific 90 to 85, top-1 90 to 62.6
  }.items():
    assert answer_of(table, text)[0] == verdict
  # Nothing is said where no comparison can be made.
  assert not any(
    row[0].startswith(("With the most", "Many states", "Both")) for row in table.rows
  )


def write_all(folder, *runs):
  """Writes runs: a cell, and keyword arguments of `write`."""
  return {write(folder, one, **changes): one for one, changes in runs}


def test_a_missing_run_does_not_pair_numbers_of_different_columns(tmp_path):
  runs = {}
  for size, top1 in (
    (5_000, {"ft": 0.3, "il2m": 0.36}),
    (10_000, {"ft": 0.4, "il2m": 0.42, "ssil": 0.5}),
  ):
    cells = {method: cell(IMAGENET, method, 10, size) for method in top1}
    runs |= write_all(tmp_path, *((cells[m], {"top1": top1[m]}) for m in top1))
  assert answer(runs, "IL2M gains little over FT") == (
    "in 1 of 1",
    "+2.0 (SS-IL +10.0); 4 of 5 comparisons not made: no SS-IL, no FT, no IL2M",
  )


FT, IL2M, SSIL = (cell(IMAGENET, method) for method in ("ft", "il2m", "ssil"))


def test_methods_are_compared_on_the_seeds_that_they_share(tmp_path):
  tops = {FT: {0: 0.5, 1: 0.52, 7: 0.99}, SSIL: {1: 0.62, 0: 0.6, 3: 0.1}, IL2M: {9: 0.1}}
  runs = write_all(
    tmp_path,
    *((one, {"seed": s, "top1": t}) for one, top1 in tops.items() for s, t in top1.items()),
  )
  wanting = "4 of 5 comparisons not made: no SS-IL, no FT"
  assert answer(runs, "SS-IL is more accurate than FT") == (
    "in 1 of 1",
    f"61.0 / 51.0 (n = 2); {wanting}",
  )
  found_now = found.find(runs)
  assert not found_now.have_same_seeds([FT, SSIL])
  assert found_now.have_same_seeds([FT, cell(IMAGENET, "icarl")])
  # None that IL2M has, too.
  texts = [row[0] for row in claims.table(found_now).rows]
  assert "SS-IL is more accurate than IL2M" not in texts
  one = next(c for c in claims.CLAIMS if c.text.startswith("SS-IL is more accurate than I"))
  assert "SS-IL and IL2M lack a common seed" in sum(
    (each.wanting(found_now) for each in one.comparisons), []
  )


def in_memory(states, average=None):
  """The only seed of a cell."""
  results = {"seed": 0, "average": average or {}, "states": states}
  return [found.Seed(Path(), Run("", results, [], None))]


def test_what_the_paper_says_appears_in_its_own_tables():
  seeds = {}
  source = {"source": tables.PAPER_SOURCE}
  for where, cells in (("Table 1", protocol.table1()), ("Table 2", protocol.table2())):
    for one in cells:
      average = {
        name: value / 100
        for name, fact, *_ in tables.MEASURES
        if (value := tables.published_value(one, fact, where=where, **source)) is not None
      }
      if one not in seeds:  # SS-IL's of table 1 are in table 2, without top-5
        seeds[one] = in_memory([{}, {}], average)
  rows = claims.table(found.Found(seeds, [])).rows
  assert {text: verdict for text, verdict, *_ in rows} == {
    "SS-IL is more accurate than FT": "in 14 of 15",
    "SS-IL is more accurate than IL2M": "in 14 of 15",
    "SS-IL is more accurate than iCaRL": "yes",
    "FT is more accurate than iCaRL": "in 7 of 10",
    "IL2M gains little over FT (not half of what SS-IL gains)": "in 14 of 15",
    "FT is worse balanced than iCaRL where the memory is smallest": "in 5 of 6",
    "The smaller the memory, the further is FT's imbalance above iCaRL's": "yes",
    "IL2M is better balanced than FT": "yes",
    "IL2M is not much better balanced than FT (not half of what SS-IL gains)": (
      "in 10 of 15"
    ),
    "SS-IL is better balanced than FT": "in 12 of 15",
    "SS-IL is better balanced than IL2M": "in 11 of 15",
    "SS-IL is better balanced than iCaRL": "in 9 of 10",
    "The larger the memory, the smaller the imbalance (over all sizes)": "in 10 of 11",
    "Many states want a smaller replay batch than few": "yes",
    "With many states, a replay batch as large as the new one (N_M = 128) is less accurate "
    "than any smaller one": "yes",
    "Where accuracy is higher, imbalance is lower (correlation along N_M)": "yes",
  }


def test_claims_on_the_course_over_the_states():
  names = "top1", "error_old_as_new", "error_new_as_old", "score_old", "score_new"
  states = {
    "ft": [(0.9, None, None, None, 1), (0.6, 0.3, 0.1, 0, 1), (0.4, 0.6, 0.1, 0, 3)],
    "ssil": [(0.9, None, None, None, 1), (0.7, 0.25, 0.2, 0, 1), (0.6, 0.3, 0.35, 1, 0)],
    "icarl": [(0.8, None, None, None, 1), (0.6, 0.2, 0.3, 0, 1), (0.55, 0.2, 0.24, 0, 1)],
    "ft_ss": [(0.9, None, None, None, 1), (0.7, 0.3, 0.1, 0, 1), (0.3, 0.6, 0.1, 0, 3)],
  }
  seeds = {
    cell(IMAGENET, method): in_memory([dict(zip(names, r, strict=True)) for r in rows])
    for method, rows in states.items()
  }
  table = claims.table(found.Found(seeds, []))
  no_il2m = "comparisons not made: no IL2M"
  for text, expected in {
    "SS-IL's lead in top-1": (
      "in 1 of 2",
      f"over iCaRL +10.0 to +5.0, over FT +10.0 to +20.0; 1 of 3 {no_il2m}",
    ),
    "iCaRL is less accurate than FT already": ("yes", "80.0 / 90.0"),
    "e(p,n) of FT and IL2M is larger": ("in 1 of 1", f"FT 30.0 to 60.0; 1 of 2 {no_il2m}"),
    "iCaRL's e(p,n) ends below FT's": (
      "in 2 of 2",
      f"iCaRL 20.0, FT 60.0, iCaRL 24.0, FT 10.0; 2 of 4 {no_il2m}",
    ),
    "SS-IL's e(p,n) ends": ("in 1 of 1", f"SS-IL 30.0, FT 60.0; 1 of 2 {no_il2m}"),
    # |e(p,n) - e(n,p)|: SS-IL 5, 5; FT 20, 50; iCaRL 10, 4.
    "SS-IL's e(p,n) and e(n,p) are the closest to each other in every": (
      "in 1 of 2",
      f"than iCaRL's in 1 of 2 states, than FT's in 2 of 2 states; 1 of 3 {no_il2m}",
    ),
    "FT's scores of old and new classes": ("yes", "1.00 to 3.00"),
    "SS-IL's scores of old and new classes are no": ("yes", "1.00 to 1.00"),
    "SS-IL's scores of old and new classes are closer": ("yes", "FT 3.00, SS-IL 1.00"),
    "The separated softmax alone ends below FT": ("yes", "FT w/ SS 30.0, FT 40.0"),
  }.items():
    assert answer_of(table, text) == expected


def test_the_fewest_epochs_are_compared_with_the_most(tmp_path):
  rates = dict.fromkeys(("loss", "learning_rate", "images_per_second", "input_wait"), 1.0)
  runs = {}
  for epochs, test, train in ((10, 0.5, 0.6), (50, 0.55, 0.9)):
    one = cell(IMAGENET, "ssil", epochs=epochs)
    runs |= write_all(tmp_path, (one, {"top1": test}))
    journal = [
      {"state": state, "epoch": epoch, "step": 1, "top1": top1, **rates}
      for state in (1, 2)
      for epoch, top1 in ((1, 0.1), (2, train))
    ]
    lines = "".join(json.dumps(row) + "\n" for row in journal)
    (tmp_path / f"ssil-10-10000-{epochs}-0" / "metrics.jsonl").write_text(lines)
  assert answer(runs, "With the most epochs") == (
    "in 1 of 2",
    "training 60.0 / 90.0, test 50.0 / 55.0",
  )
  # A second seed of the fewest counts for nothing; FT has two in its figures.
  few = cell(IMAGENET, "ssil", epochs=10)
  runs |= write_all(
    tmp_path,
    (few, {"top1": 0.9, "seed": 1}),
    (FT, {"top1": 0.5}),
    (FT, {"top1": 0.5, "seed": 1}),
    (SSIL, {"top1": 0.5}),
  )
  now = found.find(runs)
  label = now.label(FT, [FT, SSIL]), now.label(FT, [FT, IL2M])
  assert label == ("FT (n = 2)", "FT")
  assert answer_of(claims.table(now), "With the most epochs")[1] == (
    "training 60.0 / 90.0 (n = 1), test 50.0 / 55.0 (n = 1)"
  )


def test_equal_numbers_are_level(tmp_path):
  rp = cell(IMAGENET, "ft_rp")
  for top1, verdict in ((0.5 + 1e-9, "level"), (0.5 - 1e-9, "level"), (0.49, "yes")):
    runs = write_all(tmp_path, (FT, {"top1": 0.5}), (rp, {"top1": top1}))
    ending = " (level)" if verdict == "level" else ""
    told = f"{100 * top1:.1f} / 50.0{ending}"
    assert answer(runs, "Ratio-preserving batches alone") == (verdict, told)


def test_seeds_that_lean_to_different_sides_are_not_balanced(tmp_path):
  leans = [
    {"errors": (0.6, 0.2), "score_old": 0.0, "score_new": 5.0},
    {"errors": (0.2, 0.6), "score_old": 5.0, "score_new": 0.0},
  ]
  steady = {"errors": (0.5, 0.3), "score_old": 0.0, "score_new": 1.0}
  runs = write_all(
    tmp_path,
    *((SSIL, {"seed": seed, "top1": 0.5, **lean}) for seed, lean in enumerate(leans)),
    *((FT, {"seed": seed, "top1": 0.5, **steady}) for seed in range(2)),
  )
  assert answer(runs, "SS-IL's e(p,n) and e(n,p) are the closest to each other at") == (
    "in 0 of 1",
    "SS-IL 40.0, FT 20.0; 2 of 3 comparisons not made: no iCaRL, no IL2M",
  )
  assert answer(runs, "SS-IL's scores of old and new classes are closer") == (
    "no",
    "FT 1.00, SS-IL 5.00",
  )


def test_a_claim_on_methods_of_which_some_are_missing_names_them(tmp_path):
  runs = write_all(tmp_path, (FT, {"top1": 0.5, "errors": (0.9, 0.1)}))
  assert answer(runs, "FT and IL2M lean to the new classes") == (
    "in 1 of 1",
    "FT 90.0 / 10.0; 1 of 2 comparisons not made: no IL2M",
  )


def test_lines_of_old_and_of_new_classes_look_the_same_in_every_figure(tmp_path):
  runs = write_all(tmp_path, (FT, {"top1": 0.5, "errors": (0.9, 0.1)}))
  now = found.find(runs)
  ours, study = Canvas().subplots(1, 2)
  paper_plots.error_curves(ours, now, [FT])
  plots.draw_errors(study, Group("FT", [now.of(FT)[0].run]))
  for ax in (ours, study):
    styles = {round(ln.get_ydata()[-1]): ln.get_linestyle() for ln in ax.get_lines()}
    assert styles == {90: "--", 10: "-"}


def test_the_page_names_what_is_broken_and_shows_the_rest(tmp_path):
  good, broken, part = (cell(IMAGENET, m, 10, 10_000) for m in ("ft", "il2m", "icarl"))
  runs = {
    write(tmp_path, good, top1=0.4): good,
    write(tmp_path, broken, top1=0.4): broken,
    write(tmp_path, part, top1=0.4): part,
  }
  (tmp_path / "il2m-10-10000-None-0" / "results.json").write_text("{")
  write_run(tmp_path / "icarl-10-10000-None-0", num_states=3)
  lines = report.write(tmp_path, ["table1", "figure1", "figure2"], DIGITS, runs)
  text = Page(tmp_path / "report.html").text
  for reason in (
    "il2m-10-10000-None-0 is left out: ",
    "is left out: 2 of 3 states are done",
  ):
    assert any(reason in line for line in lines)
    assert reason in text
  assert lines[-1] == f"report: {tmp_path / 'report.html'}"
  assert "The published numbers are of ImageNet-1K" in text
  with open(tmp_path / "tables" / "table1_imagenet_1k_top1.csv", newline="") as file:
    rows = list(csv.reader(file))
  assert any("40" in cell for row in rows for cell in row)
  for name in ("paper_figure1", "paper_figure2"):
    assert (tmp_path / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_finished_run_there_is_nothing_to_show(tmp_path):
  with pytest.raises(DataError, match="no run is finished yet"):
    report.write(tmp_path, ["table1"], DIGITS, {})
