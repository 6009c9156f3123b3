"""Figures from results that can be checked by hand."""

import io

import numpy as np
from PIL import Image
from test_results import one_state, write_run

from ssil_jax import figures
from ssil_jax.results import load_run

NAMES = ["accuracy", "errors", "confusion", "scores", "state_specific", "loss"]


def test_plots_are_images_with_something_on_them(tmp_path):
  workdirs = [write_run(tmp_path / f"run{seed}", seed=seed) for seed in range(3)]
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


def test_heat_maps_hold_shares_of_rows(tmp_path):
  run = load_run(write_run(tmp_path / "a"))
  run.results["states"][-1]["confusion"] = [[70, 30], [0, 0]]
  ax = figures.heat_maps([("SS-IL", run)]).axes[0]
  assert [text.get_text() for text in ax.texts] == ["70", "30", "-", "-"]


def test_curves_follow_the_results(tmp_path):
  run = load_run(write_run(tmp_path / "a"))
  panels = {"top1": "top-1", "error_old_as_new": "e(p,n)"}
  figure = figures.curves([("SS-IL", run)], panels, "%")
  first, second = figure.axes
  np.testing.assert_allclose(first.get_lines()[0].get_xydata(), [[2, 90], [4, 62.6]])
  np.testing.assert_allclose(second.get_lines()[0].get_xydata(), [[4, 30]])
  assert first.get_ylim() == second.get_ylim()


def test_legend_holds_the_labels_of_the_runs(tmp_path):
  run = load_run(write_run(tmp_path / "a"))
  runs = [("SS-IL", run), ("_hidden", run), ("FT", run)]
  figure = figures.curves(runs, {"top1": "top-1"}, "%")
  texts = [text.get_text() for text in figure.legends[0].get_texts()]
  assert texts == [label for label, _ in runs]


def test_first_state_alone_has_no_figures_of_old_classes(tmp_path):
  plots = figures.draw_plots([load_run(write_run(tmp_path / "a", results=one_state()))])
  drawn = [plot.name for plot in plots if plot.png]
  assert drawn == ["accuracy", "state_specific", "loss"]
  assert sum("with one state only: SS-IL" in plot.caption for plot in plots) == 3


def test_run_without_metrics_is_named(tmp_path):
  workdirs = [
    write_run(tmp_path / "a", metrics=None, method_title="FT"),
    write_run(tmp_path / "b"),
  ]
  loss = figures.draw_plots([load_run(workdir) for workdir in workdirs])[-1]
  assert "No metrics.jsonl, hence no curve: FT." in loss.caption
  assert loss.png
