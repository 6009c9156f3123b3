"""Figures from results that can be checked by hand."""

import io

import numpy as np
from PIL import Image
from written_runs import one_state, seed_run, write_run

from ssil_jax.reports import figures
from ssil_jax.reports.aggregate import Group
from ssil_jax.reports.results import load_run

NAMES = ["accuracy", "errors", "confusion", "scores", "state_specific", "loss"]


def test_plots_of_few_runs_are_images_with_something_on_them(tmp_path):
  check_plots([write_run(tmp_path / title, method_title=title) for title in "abc"])


def test_plots_of_many_runs_with_several_seeds(tmp_path):
  # 8 methods, the first with three seeds of which one is not finished.
  titles = ["SS-IL", *(f"method number {number}" for number in range(7))]
  unfinished = one_state(method_title="SS-IL", seed=2)
  workdirs = [
    *(write_run(tmp_path / title, method_title=title, seed=0) for title in titles),
    write_run(tmp_path / "again", method_title="SS-IL", seed=1),
    write_run(tmp_path / "unfinished", results=unfinished),
  ]
  plots = check_plots(workdirs)
  bands = "bands reach from its lowest seed to its highest"
  notes = dict.fromkeys(NAMES, bands) | {
    "confusion": "all seeds of a method are counted together",
    "scores": "means over the seeds",
    "loss": "Each seed of a method has a line",
  }
  assert all(notes[plot.name] in plot.note for plot in plots)
  assert "SS-IL 62.6%, method number 0 62.6%" in plots[0].alt
  assert "SS-IL (seed 2, 1 of 2 states) 90.0%" in plots[0].alt


def check_plots(workdirs):
  plots = figures.draw_plots([load_run(workdir) for workdir in workdirs])
  assert [plot.name for plot in plots] == NAMES
  for plot in plots:
    with Image.open(io.BytesIO(plot.png)) as image:
      pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[1] >= 1000
    assert plot.width == pixels.shape[1] * 100 // 160
    ink = (pixels != 255).any(axis=-1)
    assert 0.005 < ink.mean() < 0.9
    # Text that is cut off would reach the edge of the picture.
    edges = np.concatenate([ink[0], ink[-1], ink[:, 0], ink[:, -1]])
    assert not edges.any()
  return plots


def test_heat_maps_hold_shares_of_rows(tmp_path):
  for confusions, shares in (
    ([[[70, 30], [0, 0]]], ["70", "30", "-", "-"]),
    # The images of several seeds are counted together.
    ([[[70, 30], [10, 90]], [[50, 50], [20, 80]]], ["60", "40", "15", "85"]),
  ):
    runs = [load_run(write_run(tmp_path)) for _ in confusions]
    for run, confusion in zip(runs, confusions, strict=True):
      run.results["states"][-1]["confusion"] = confusion
    ax = figures.heat_maps([Group("SS-IL", runs)]).axes[0]
    assert [text.get_text() for text in ax.texts] == shares


def test_curves_follow_the_results(tmp_path):
  run = load_run(write_run(tmp_path / "a"))
  labels = ["SS-IL", "_hidden", "FT"]
  groups = [Group(label, [run]) for label in labels]
  figure = figures.curves(groups, ["top1", "error_old_as_new"])
  assert [text.get_text() for text in figure.legends[0].get_texts()] == labels
  first, second = figure.axes
  titles = ["Top-1 accuracy", "e(p,n): old classes taken for new"]
  assert [ax.get_title("left") or ax.get_title() for ax in figure.axes] == titles
  assert [ax.get_ylabel() for ax in figure.axes] == ["share of images (%)", ""]
  np.testing.assert_allclose(first.get_lines()[0].get_xydata(), [[2, 90], [4, 62.6]])
  np.testing.assert_allclose(second.get_lines()[0].get_xydata(), [[4, 30]])
  assert first.get_ylim() == second.get_ylim()


def test_curve_of_several_seeds_is_their_mean_in_a_band(tmp_path):
  runs = [
    load_run(seed_run(tmp_path / f"{seed}", seed, last=last, imbalance=imbalance))
    for seed, (last, imbalance) in enumerate([(0.3, 0.1), (0.31, 0.2), (0.35, 0.6)])
  ]
  figure = figures.curves([Group("SS-IL", runs)], ["top1", "imbalance"])
  first, second = figure.axes
  (line,) = first.get_lines()
  np.testing.assert_allclose(line.get_xydata(), [[2, 90], [4, 32]])
  (band,) = first.collections
  assert corners(band) == {(2, 90), (4, 30), (4, 35)}
  (line,) = second.get_lines()  # null in state 1
  np.testing.assert_allclose(line.get_xydata(), [[4, 30]])
  assert corners(second.collections[0]) == {(4, 10), (4, 60)}
  run = load_run(write_run(tmp_path, results=one_state(num_states=1)))
  (ax,) = figures.curves([Group("Joint", [run, run])], ["imbalance"]).axes
  assert not corners(ax.collections[0])


def corners(band):
  return {tuple(point) for path in band.get_paths() for point in path.vertices.round(6)}


def test_many_curves_look_different_and_keep_their_room(tmp_path):
  run = load_run(write_run(tmp_path / "a"))
  groups = [Group(f"a method with a long name, {n}", [run]) for n in range(22)]
  with figures.matplotlib.rc_context(figures._STYLE):
    figure = figures.curves(groups, ["top1", "top5"])
  figure.draw_without_rendering()
  for ax in figure.axes:
    looks = {
      (line.get_color(), line.get_marker(), line.get_linestyle()) for line in ax.get_lines()
    }
    assert len(looks) == 22
    # A colour and a kind of line are one curve's only, whatever its markers.
    assert len({(color, style) for color, _, style in looks}) == 22
    assert ax.get_position().height * figure.get_figheight() > 3.5
  legend = figure.legends[0].get_window_extent()
  assert 0 <= legend.x0 < legend.x1 <= figure.bbox.x1
  assert all(legend.y0 > ax.get_window_extent().y1 for ax in figure.axes)


def test_what_cannot_be_drawn_is_named(tmp_path):
  run = load_run(write_run(tmp_path, results=one_state(), metrics=None, method_title="FT"))
  plots = figures.draw_plots([run])
  assert [plot.name for plot in plots if plot.png] == ["accuracy", "state_specific"]
  one_state_only = "Not drawn, with one state only: FT (1 of 2 states)."
  no_loss = "No metrics.jsonl, hence no curve: FT (1 of 2 states)."
  assert [plot.note for plot in plots] == ["", *[one_state_only] * 3, "", no_loss]
