"""The page of the paper's parts, from runs that are written by hand."""

import copy
import csv

import pytest
from written_runs import RESULTS, Page, write_run

from ssil_jax.errors import DataError
from ssil_jax.methods import METHODS
from ssil_jax.paper import claims, found, report, tables
from ssil_jax.paper.protocol import DIGITS, IMAGENET, LANDMARKS_10K, PAPER, cell


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
    write(tmp_path, ft, top1=0.40): ft,
    write(tmp_path, ssil, 0, top1=0.50): ssil,
    write(tmp_path, ssil, 1, top1=0.54): ssil,
  }
  top1, top5, _ = tables.table1(found.find(runs), DIGITS, IMAGENET)
  assert top1.columns[1] == "T=5 (paper: 10), |M|=10 (paper: 5,000)"
  rows = {row[0]: row for row in rows_of(top1)}
  # Mean 52, deviation sqrt((2² + 2²) / 1) = 2.8; table 1 has 52.6 and 37.9.
  assert rows["SS-IL"][1] == "52.0 ± 2.8"
  assert rows["SS-IL, paper"][1] == "52.6"
  assert rows["SS-IL, difference"][1] == "-0.6"
  assert [rows[name][1] for name in ("FT", "FT, paper", "FT, difference")] == [
    "40.0",
    "37.9",
    "+2.1",
  ]
  assert rows["iCaRL"][1:] == ["-"] * 5
  best = {row[0] for row in top1.rows for c in row[1:] if getattr(c, "best", False)}
  assert best == {"SS-IL", "SS-IL, paper"}
  assert rows_of(top5)[-2] == ["SS-IL, paper", "77.5", "80.4", "82.9", "76.3", "78.9"]


def test_table_2_marks_the_best_of_each_number_of_states():
  _, imbalance = tables.table2(found.Found({}, []), PAPER)
  assert imbalance.columns[1:] == ["N_M=16", "N_M=32", "N_M=64", "N_M=128"]
  lines = [row for row in imbalance.rows if row[0].endswith("paper")]
  best = [[c.text for c in row[1:] if c.best] for row in lines]
  assert best == [["21.7"], ["20.0"], ["24.3"]]


def test_every_number_of_tables_1_and_2_is_known():
  none = found.Found({}, [])
  shown = [*tables.table1(none, PAPER, IMAGENET), *tables.table2(none, PAPER)]
  for table in shown:
    papers = [row for row in rows_of(table) if row[0].endswith(", paper")]
    assert papers
    assert "-" not in sum(papers, [])
  top1, *_ = tables.table1(none, PAPER, LANDMARKS_10K)
  assert rows_of(top1)[1] == ["iCaRL, paper", *["-"] * 5]


def verdicts(runs):
  return {row[0][:30]: row[1] for row in claims.table(found.find(runs)).rows}


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
  found_now = verdicts(runs)
  assert found_now["SS-IL is more accurate than FT"] == "in 1 of 2"
  assert found_now["SS-IL is more accurate than IL2M"[:30]] == "in 1 of 2"
  assert found_now["IL2M gains little over FT (not half"[:30]] == "in 0 of 2"
  # FT 90 / 10, but IL2M 50 / 40.
  assert found_now["FT and IL2M lean to the new cla"[:30]] == "in 1 of 2"
  assert found_now["SS-IL's e(p,n) and e(n,p) are the"[:30]] == "in 2 of 2"  # no iCaRL
  assert found_now["IL2M's rectification R is small"[:30]] == "yes"
  # 90 on exemplars, 50 on test images.
  assert found_now["FT overfits its exemplars (at the end"[:30]] == "yes"
  # State-specific 90 to 85, top-1 90 to 62.6.
  assert found_now["FT still knows the classes of e"[:30]] == "yes"
  # Nothing is said where runs are missing.
  assert not any(
    text.startswith(("With more", "Many states", "Both")) for text in found_now
  )


def answer(runs, text):
  """What is said of the claim that begins so: the verdict, and what was found."""
  (row,) = (r for r in claims.table(found.find(runs)).rows if r[0].startswith(text))
  return tuple(row[1:3])


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
  assert "SS-IL is more accurate than IL2M"[:30] not in verdicts(runs)
  one = next(c for c in claims.CLAIMS if c.text.startswith("SS-IL is more accurate than I"))
  assert "SS-IL and IL2M lack a common seed" in sum(
    (each.wanting(found_now) for each in one.comparisons), []
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
  assert answer(runs, "SS-IL's e(p,n) and e(n,p) are the closest") == (
    "in 0 of 1",
    "SS-IL 40.0, FT 20.0; 2 of 3 comparisons not made: no iCaRL, no IL2M",
  )
  assert answer(runs, "SS-IL's scores of old and new") == ("no", "FT 1.00, SS-IL 5.00")


def test_a_claim_on_methods_of_which_some_are_missing_names_them(tmp_path):
  runs = write_all(tmp_path, (FT, {"top1": 0.5, "errors": (0.9, 0.1)}))
  assert answer(runs, "FT and IL2M lean to the new classes") == (
    "in 1 of 1",
    "FT 90.0 / 10.0; 1 of 2 comparisons not made: no IL2M",
  )


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
