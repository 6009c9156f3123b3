"""Figures from results that can be checked by hand."""

import io
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image
from written_runs import measured_run, one_state, seed_run, write_run

from ssil_jax.reports import figures, labels, panels, plots
from ssil_jax.reports.aggregate import Group
from ssil_jax.reports.results import load_run

NAMES = ["accuracy", "state_specific", "errors", "confusion", "scores", "loss"]
MEASURED = [
  "forgetting",
  "forgetting_own",
  "classes",
  "calibration",
]  # by results of later versions


def drawn(workdirs, highlight=None):
  groups = labels.labelled_groups([load_run(workdir) for workdir in workdirs])
  plotter = plots.Plotter(
    groups, highlight=highlight, images="validation images", suffix="_2", on=" (birds)"
  )
  return [figure for part in plotter.draw_all().values() for figure in part]


def check_pictures(found):
  """The pictures have something on them, all of it within, and the same text in the SVG."""
  for figure in found:
    with Image.open(io.BytesIO(figure.png)) as image:
      pixels = np.asarray(image.convert("RGB"))
    ink = (pixels != 255).any(axis=-1)
    assert 0.005 < ink.mean() < 0.9
    # Text that is cut off would reach the edge of the picture.
    assert not np.concatenate([ink[0], ink[-1], ink[:, 0], ink[:, -1]]).any(), figure.name
    width = ElementTree.fromstring(figure.svg).get("width")
    assert float(width.removesuffix("pt")) == pytest.approx(len(ink[0]) * 72 / 160, abs=1)


def test_few_runs(tmp_path):
  found = drawn([measured_run(tmp_path / title, method_title=title) for title in "abc"])
  check_pictures(found)
  names = {figure.name for figure in found}
  assert names == {f"{name}_2" for name in (*NAMES, *MEASURED)}
  assert all(figure.title.endswith(" (birds)") for figure in found)
  assert "Share of the validation images" in found[0].caption
  assert "a 62.6%, b 62.6%, c 62.6%" in found[0].alt
  assert not any("seed" in figure.caption for figure in found)


def test_many_runs_with_several_seeds(tmp_path):
  # 8 methods, the first with three seeds of which one is not finished.
  titles = ["SS-IL", *(f"method number {number}" for number in range(7))]
  unfinished = one_state(method_title="SS-IL", seed=2)
  workdirs = [
    *(
      write_run(tmp_path / title, method=title[:6], method_title=title, seed=0)
      for title in titles
    ),
    write_run(tmp_path / "again", method="SS-IL", method_title="SS-IL", seed=1),
    write_run(tmp_path / "unfinished", results=unfinished),
  ]
  found = {figure.name[:-2]: figure for figure in drawn(workdirs, "SS-IL")}
  check_pictures(found.values())
  assert set(found) == {*NAMES, "accuracy_each", "errors_each"}
  for name, what in (
    ("accuracy", "bands reach from its lowest seed to its highest"),
    ("confusion", "all seeds are counted together"),
    ("scores", "means over the seeds"),
    ("loss", "Each seed has a line"),
  ):
    assert what in found[name].caption
  assert "SS-IL 62.6%, method number 0 62.6%" in found["accuracy"].alt
  assert "SS-IL (seed 2, 1 of 2 states) 90.0%" in found["accuracy"].alt


def test_what_cannot_be_drawn_is_left_out_and_named(tmp_path):
  one = write_run(tmp_path / "a", results=one_state(), metrics=None, method_title="FT")
  found = {figure.name: figure for figure in drawn([one, write_run(tmp_path / "b")])}
  left_out = "Not drawn, for want of values: FT (1 of 2 states)."
  assert left_out in found["errors_2"].caption
  assert "No metrics.jsonl, hence no curve: FT (1 of 2 states)." in found["loss_2"].caption


def test_heat_maps_hold_shares_of_rows(tmp_path):
  for confusions, shares in (
    ([[[70, 30], [0, 0]]], ["70", "30", "-", "-"]),
    # The images of several seeds are counted together.
    ([[[70, 30], [10, 90]], [[50, 50], [20, 80]]], ["60", "40", "15", "85"]),
  ):
    runs = [load_run(write_run(tmp_path)) for _ in confusions]
    for run, confusion in zip(runs, confusions, strict=True):
      run.results["states"][-1]["confusion"] = confusion
    ax = plots.heat_maps([Group("SS-IL", runs)]).axes[0]
    assert [text.get_text() for text in ax.texts] == shares
    alphas = [round(100 * color[3]) for color in ax.collections[0].get_facecolor()]
    assert alphas == [int(share) for share in shares if share != "-"]


def test_curves_follow_the_results(tmp_path):
  run = load_run(write_run(tmp_path / "a"))
  names = ["SS-IL", "_hidden", "FT"]
  figure = panels.curves([Group(n, [run]) for n in names], ["top1", "error_old_as_new"])
  first, second = figure.axes
  titles = ["Top-1 accuracy", "e(p,n): old classes taken for new"]
  assert [ax.get_title("left") or ax.get_title() for ax in figure.axes] == titles
  assert [ax.get_ylabel() for ax in figure.axes] == ["share of images (%)", ""]
  np.testing.assert_allclose(first.get_lines()[0].get_xydata(), [[2, 90], [4, 62.6]])
  np.testing.assert_allclose(second.get_lines()[0].get_xydata(), [[4, 30]])
  assert first.get_ylim() == second.get_ylim()
  for ax in figure.axes:
    assert {text.get_text() for text in ax.texts} == set(names)
    places = sorted(text.get_position()[1] for text in ax.texts)
    assert min(np.diff(places)) > 0.04  # a line of text, though all lines end together


def test_curve_of_several_seeds_is_their_mean_in_a_band(tmp_path):
  runs = [
    load_run(seed_run(tmp_path / f"{seed}", seed, last=last, imbalance=imbalance))
    for seed, (last, imbalance) in enumerate([(0.3, 0.1), (0.31, 0.2), (0.35, 0.6)])
  ]
  figure = panels.curves([Group("SS-IL", runs)], ["top1", "imbalance"])
  first, second = figure.axes
  (line,) = first.get_lines()
  np.testing.assert_allclose(line.get_xydata(), [[2, 90], [4, 32]])
  (band,) = first.collections
  assert corners(band) == {(2, 90), (4, 30), (4, 35)}
  (line,) = second.get_lines()  # null in state 1
  np.testing.assert_allclose(line.get_xydata(), [[4, 30]])
  assert corners(second.collections[0]) == {(4, 10), (4, 60)}
  run = load_run(write_run(tmp_path, results=one_state(num_states=1)))
  (ax,) = panels.curves([Group("Joint", [run, run])], ["imbalance"]).axes
  assert not ax.collections


def test_a_group_holds_means_and_nothing_of_a_single_seed(tmp_path):
  runs = [load_run(measured_run(tmp_path / f"{seed}", seed=seed)) for seed in range(3)]
  for run, ece, top1 in zip(runs, (0.1, 0.2, 0.6), (0.5, 0.6, 0.7), strict=True):
    run.results["states"][-1] |= {"ece": ece, "top1": top1}
  group = Group("SS-IL", runs)
  last = group.states[-1]
  assert (last["ece"], last["top1"]) == pytest.approx((0.3, 0.6))
  assert (last["state"], last["num_old"], last["num_seen"]) == (2, 2, 4)
  assert last["confusion"] == [[210, 90], [30, 270]]
  for name in ("top1_by_state", "top1_by_class", "class_confusion", "train_seconds"):
    assert name not in last
  (ax,) = panels.curves([group], ["ece"]).axes
  np.testing.assert_allclose(ax.get_lines()[0].get_xydata(), [[2, 5], [4, 30]])
  assert corners(ax.collections[0]) == {(2, 5), (4, 10), (4, 60)}
  # One run is no other kind of group; a seed of an earlier version has no such error.
  assert Group("SS-IL", runs[:1]).states[-1].keys() == last.keys()
  del runs[1].results["states"][-1]["ece"]
  assert group.states[-1]["ece"] is None


def corners(band):
  return {tuple(point) for path in band.get_paths() for point in path.vertices.round(6)}


def test_the_method_in_question_stands_out_among_many(tmp_path):
  run = load_run(write_run(tmp_path / "a", method="ft", method_title="FT"))
  ours = load_run(write_run(tmp_path / "b"))
  groups = [Group(f"a method with a name, {n}", [run]) for n in range(21)]
  groups.insert(3, Group("SS-IL", [ours]))
  with matplotlib.rc_context(figures.STYLE):
    figure = panels.curves(groups, ["top1", "top5"], highlight="ssil")
  figure.draw_without_rendering()
  muted, own = figures.COLORS["muted"], figures.color_of("SS-IL")
  for ax in figure.axes:
    colors = [line.get_color() for line in ax.get_lines()]
    assert colors == [own if number == 3 else muted for number in range(22)]
    assert ax.get_lines()[3].get_linewidth() > 2 * ax.get_lines()[0].get_linewidth()
    boxes = [Text.get_window_extent(text) for text in ax.texts]  # without its line
    boxes.sort(key=lambda box: box.y0)
    assert all(one.y1 <= two.y0 + 1 for one, two in zip(boxes, boxes[1:], strict=False))
    assert figure.bbox.x0 <= boxes[0].x0 < boxes[0].x1 <= figure.bbox.x1


def test_groups_of_one_method_share_its_colour_and_not_its_look(tmp_path):
  run = load_run(write_run(tmp_path / "a"))
  found = panels.looks([Group(f"SS-IL (|M|={m})", [run]) for m in (1, 2, 3)], None)
  assert {look.color for look in found} == {figures.color_of("SS-IL")}
  assert len({(look.marker, look.dash) for look in found}) == 3


def test_a_long_loss_curve_is_thinned_to_means(tmp_path):
  metrics = [
    {"state": 1, "phase": 1, "step": step, "loss": float(step % 3)}
    for step in range(1, 901)
  ]
  run = load_run(write_run(tmp_path, metrics=metrics))
  curve = plots.thinned(run.loss)
  assert len(curve.steps) == 225  # four records each
  np.testing.assert_allclose(curve.losses[:3], [1.0, 1.25, 0.75])
  assert curve.losses.mean() == pytest.approx(1.0)


def test_labels_move_as_little_as_can_be():
  apart = panels.spread_out([0.1, 0.5, 0.9], [0.1] * 3, limits=(0, 1))
  assert apart == pytest.approx([0.1, 0.5, 0.9])
  # Two of one place share what they must move; a taller one needs more.
  both = panels.spread_out([0.5, 0.5, 0.52], [0.1, 0.2, 0.1], limits=(0, 1))
  assert np.diff(both) == pytest.approx([0.15, 0.15])
  assert np.mean(both) == pytest.approx(np.mean([0.5, 0.5, 0.52]))
  low = panels.spread_out([0.0, 0.0, 0.0], [0.1] * 3, limits=(0, 1))
  assert low == pytest.approx([0.05, 0.15, 0.25])
  assert panels.spread_out([1.0], [0.1], limits=(0, 1)) == pytest.approx([0.95])
