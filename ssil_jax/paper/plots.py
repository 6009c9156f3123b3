"""Draws the figures of the paper from our runs.

Lines are means over seeds, in bands from the lowest to the highest; where those of a figure
have different seeds, their labels have the number, n.
"""

from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from ssil_jax.paper import protocol, toy
from ssil_jax.paper.found import Found, present
from ssil_jax.paper.protocol import IMAGENET, Cell, Scale
from ssil_jax.reports.blocks import Figure
from ssil_jax.reports.figures import COLORS, MARKERS, SIDES, STYLE, WIDE, color_of, save
from ssil_jax.reports.panels import fill_range

_TOP1, _ERRORS = "top-1 accuracy (%)", "share of images (%)"
_PANEL_HEIGHT = 4.0  # inches
# Of figure 2's classes, old ones first: blues and oranges, as old and new are elsewhere.
_OLD_SHADES = ("#9ecae1", "#4292c6", "#08519c")
_NEW_SHADES = ("#fdbe85", "#fd8d3c", "#d94701")


def _draw(count: int, draw: Callable[[Sequence[Axes]], None], *, share: bool = False):
  """Returns a canvas of so many panels side by side, drawn in the house style."""
  with matplotlib.rc_context(STYLE):
    canvas = Canvas((WIDE if count > 1 else 6.4, _PANEL_HEIGHT), layout="constrained")
    axes = canvas.subplots(1, count, squeeze=False, sharey=share)[0]
    draw(axes)
  return canvas


def _line(
  ax: Axes, x: Sequence[float], values: np.ndarray, label: str, color: str, **style
) -> None:
  """Draws the mean of values [seeds, states], and a band of several."""
  known = ~np.isnan(values).any(axis=0)
  x, values = np.asarray(x)[known], values[:, known]
  if not values.size:
    return
  style = {"marker": "o", "markersize": 4, **style}
  ax.plot(x, values.mean(axis=0), color=color, label=label, **style)
  if len(values) > 1:
    fill_range(ax, x, values, color)


def _finish(ax: Axes, title: str, y_label: str, x_label: str = "classes seen") -> None:
  ax.set(title=title, xlabel=x_label, ylabel=y_label)
  ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
  if ax.get_legend_handles_labels()[0]:
    # Below: among the curves there is not always room.
    columns = 2 if len(ax.figure.axes) < 3 else 1
    ax.legend(loc="upper left", bbox_to_anchor=(0, -0.2), ncols=columns, borderaxespad=0)


def _lasts(found: Found, cells: Sequence[Cell], name: str) -> str:
  """Says where the curves of a score end."""
  ends = [
    f"{found.label(one, cells)} {found.curve(one, name)[:, -1].mean():.1f}%"
    for one in cells
  ]
  return ", ".join(ends)


def _curves(ax: Axes, found: Found, cells: Sequence[Cell], name: str) -> None:
  for number, one in enumerate(cells):
    _line(
      ax,
      found.classes(one),
      found.curve(one, name),
      found.label(one, cells),
      color_of(found.title(one)),
      marker=MARKERS[number % len(MARKERS)],
    )


def error_curves(ax: Axes, found: Found, cells: Sequence[Cell]) -> None:
  """Draws e(p,n), which is of old classes, and e(n,p), of new ones, for each method."""
  for one in cells:
    for name, words, kind in (
      ("error_old_as_new", "e(p,n)", "old"),
      ("error_new_as_old", "e(n,p)", "new"),
    ):
      _line(
        ax,
        found.classes(one),
        found.curve(one, name),
        f"{found.label(one, cells)} {words}",
        color_of(found.title(one)),
        **SIDES[kind],
      )


def figure1(found: Found, scale: Scale) -> list[Figure]:
  """Draws state-specific accuracy, and both error ratios, of FT and IL2M."""
  cells = present(found, protocol.figure1())
  if not cells:
    return []

  def draw(axes):
    _curves(axes[0], found, cells, "state_specific_top1")
    _finish(axes[0], "State-specific accuracy", _TOP1)
    axes[0].set_ylim(0, 100)
    error_curves(axes[1], found, cells)
    _finish(axes[1], "e(p,n) and e(n,p)", _ERRORS)

  return [
    save(
      _draw(2, draw),
      name="paper_figure1",
      title="FT and IL2M",
      caption="Left: accuracy when only the classes of the image's own state compete, "
      "averaged over the states. Right: share of old-class test images taken for new ones, "
      "e(p,n) (dashed), and of new-class images taken for old ones, e(n,p). FT and IL2M "
      "share the network; IL2M changes its predictions.",
      alt="Line charts by classes seen. State-specific accuracy ends at "
      f"{_lasts(found, cells, 'state_specific_top1')}; e(p,n) at "
      f"{_lasts(found, cells, 'error_old_as_new')}; e(n,p) at "
      f"{_lasts(found, cells, 'error_new_as_old')}.",
    )
  ]


def figure2() -> list[Figure]:
  """Draws the decision regions of three classifiers of the plane."""
  plane = toy.classify_plane()
  shades = ListedColormap([*_OLD_SHADES, *_NEW_SHADES])
  told = [
    f"{one.title}: {one.top1:.0%} right, e(p,n) {one.error_old_as_new:.0%}, e(n,p) "
    f"{one.error_new_as_old:.0%}"
    for one in plane.classifiers
  ]

  def draw(axes):
    is_new = plane.labels >= toy.NUM_OLD
    every = np.arange(len(plane.labels))
    for ax, one in zip(axes, plane.classifiers, strict=True):
      ax.pcolormesh(
        plane.axis,
        plane.axis,
        one.regions,
        cmap=shades,
        vmin=0,
        vmax=toy.NUM_CLASSES - 1,
        rasterized=True,
        shading="nearest",
      )
      is_trained = is_new | np.isin(every, plane.exemplars) | (one.title == "All data")
      for old, color in ((True, COLORS["old"]), (False, COLORS["new"])):
        shown = is_trained & (is_new != old)
        ax.scatter(
          *plane.points[shown][:: 1 if shown.sum() < 20 else 6].T,
          s=26 if shown.sum() < 20 else 5,
          color=color,
          edgecolor="white",
          linewidth=0.5,
        )
      ax.grid(visible=False)
      ax.set(title=one.title, aspect="equal", xticks=[], yticks=[])

  return [
    save(
      _draw(3, draw),
      name="paper_figure2",
      title="Classifiers of the plane",
      caption="Six classes of points around a circle: three old ones (blue), of which "
      "three exemplars each are left, and three new ones (orange). A small perceptron is "
      "trained on all data; then on the old classes first, and on new ones and exemplars "
      f"after that, as FT and as SS-IL do. On test points, {'; '.join(told)}. The paper's "
      "figure is an illustration; this one is trained by the package's losses and samplers "
      "(ssil_jax/paper/toy.py), seed 0.",
      alt=f"Three maps of the plane by predicted class. {'; '.join(told)}.",
    )
  ]


def figure3() -> list[Figure]:
  """Draws which scores a batch of FT and of SS-IL pushes, and how."""
  gradients = toy.score_gradients()
  height = max(len(one) for one in gradients.values())

  def draw(axes):
    for ax, (title, gradient) in zip(axes, gradients.items(), strict=True):
      image = ax.imshow(gradient, cmap="PuOr_r", vmin=-1, vmax=1)
      num_old = len(gradient) - 8
      for (row, column), value in np.ndenumerate(gradient):
        text = "0" if abs(value) < 5e-4 else f"{value:+.2f}"
        ink = "white" if value < -0.5 else "black"  # on a dark violet
        ax.text(column, row, text, ha="center", va="center", fontsize=7, color=ink)
      ax.axvline(3.5, color=COLORS["ink"], linewidth=1.2)
      ax.axhline(num_old - 0.5, color=COLORS["ink"], linewidth=1.2)
      ax.grid(visible=False)
      ax.set_ylim(height - 0.5, -0.5)
      ax.set(title=title, xlabel="score of class", ylabel="sample")
      ax.set_xticks(range(8), [*(f"old {n}" for n in range(1, 5)), *"abcd"], fontsize=7)
      names = ["old"] * num_old + ["new"] * 8
      ax.set_yticks(range(len(names)), names, fontsize=7)
    axes[-1].figure.colorbar(image, ax=list(axes), shrink=0.8, label="dL / ds")

  with matplotlib.rc_context(STYLE):
    canvas = Canvas((WIDE, 5.2), layout="constrained")
    draw(canvas.subplots(1, 2))
  sums = {title: gradient.sum(axis=0) for title, gradient in gradients.items()}
  return [
    save(
      canvas,
      name="paper_figure3",
      title="Gradients of scores in a batch",
      caption="The gradient of the loss with respect to each score (equations 2 and 3), "
      "for a batch at equal scores: 8 images of four new classes (a to d) and exemplars of "
      "four old ones. In FT's batch, every new image pushes every old score down, and one "
      f"exemplar is there to pull: summed over the batch, {sums['FT'][1]:+.2f} on an old "
      "class without an exemplar. In SS-IL's, a new image does nothing to an old score, "
      "and the sums are 0.",
      alt="Two heat maps of gradients, samples by classes. In SS-IL's the blocks of new "
      "samples and old classes, and of old samples and new classes, are exactly zero.",
    )
  ]


def figure4(found: Found, scale: Scale) -> list[Figure]:
  """Draws top-1 and top-5 by classes seen, for each data set."""
  drawn = []
  for dataset in scale.datasets:
    cells = present(found, protocol.figure4(dataset))
    if not cells:
      continue

    def draw(axes, cells=cells):
      for ax, name, title in zip(axes, ("top1", "top5"), ("Top-1", "Top-5"), strict=True):
        _curves(ax, found, cells, name)
        _finish(ax, title, f"{title.lower()} accuracy (%)")

    drawn.append(
      save(
        _draw(2, draw),
        name=f"paper_figure4_{dataset.lower().replace('-', '_')}",
        title=scale.label(dataset),
        caption="Accuracy on the test images of all classes seen, after each state.",
        alt="Line charts by classes seen. Top-1 ends at "
        f"{_lasts(found, cells, 'top1')}; top-5 at {_lasts(found, cells, 'top5')}.",
      )
    )
  return drawn


def figure5(found: Found, scale: Scale) -> list[Figure]:
  """Draws both error ratios of all methods."""
  cells = present(found, protocol.figure5())
  if not cells:
    return []

  def draw(axes):
    for ax, name, title in zip(
      axes,
      ("error_old_as_new", "error_new_as_old"),
      ("e(p,n): old taken for new", "e(n,p): new taken for old"),
      strict=True,
    ):
      _curves(ax, found, cells, name)
      _finish(ax, title, _ERRORS)

  return [
    save(
      _draw(2, draw, share=True),
      name="paper_figure5",
      title="e(p,n) and e(n,p)",
      caption="A method is balanced where both are equal.",
      alt="Line charts by classes seen. e(p,n) ends at "
      f"{_lasts(found, cells, 'error_old_as_new')}; e(n,p) at "
      f"{_lasts(found, cells, 'error_new_as_old')}.",
    )
  ]


def figure6(found: Found, scale: Scale) -> list[Figure]:
  """Draws SS-IL by epochs, the scores of FT and SS-IL, and the ablation."""
  of_epochs = {
    epochs: cell
    for epochs in protocol.FIGURE6_EPOCHS
    if found.of(cell := protocol.cell(IMAGENET, "ssil", epochs=epochs))
  }
  scores = present(found, [protocol.cell(IMAGENET, m) for m in protocol.FIGURE6_SCORES])
  ablation = present(found, [protocol.cell(IMAGENET, m) for m in protocol.FIGURE6_ABLATION])
  if not of_epochs or not scores:
    return []
  ours = [scale.epochs[epochs] for epochs in of_epochs]
  tested, trained = _by_epochs(found, [*of_epochs.values()])
  few = "" if found.have_same_seeds(of_epochs.values()) else f" (n = {len(tested)})"

  def draw(axes):
    style = {"linestyle": ":", "marker": "s"}
    _line(axes[0], ours, trained, f"training{few}", COLORS["muted"], **style)
    _line(axes[0], ours, tested, f"test{few}", color_of("SS-IL"))
    _finish(axes[0], "SS-IL by epochs", _TOP1, "epochs of a later state")
    for one in scores:
      for kind in ("new", "old"):
        _line(
          axes[1],
          found.classes(one),
          found.curve(one, f"score_{kind}", scale=1.0),
          f"{found.label(one, scores)}, {kind}",
          color_of(found.title(one)),
          **SIDES[kind],
        )
    _finish(axes[1], "Mean scores", "mean output (logit)")
    _curves(axes[2], found, ablation, "top1")
    _finish(axes[2], "Ablation", _TOP1)

  gaps = ", ".join(
    f"{found.label(one, scores)} {found.score_gap(one)[:, -1].mean():.2f}" for one in scores
  )
  by_epochs = [
    f"{count} epochs {test.mean():.1f}% (training {train.mean():.1f}%)"
    for count, test, train in zip(ours, tested.T, trained.T, strict=True)
    if len(test)
  ]
  return [
    save(
      _draw(3, draw),
      name="paper_figure6",
      title="SS-IL taken apart",
      caption="Left: average top-1 on test images, and on the augmented training batches "
      "of each state's last epoch, which hold exemplars, too. Center: network output "
      "averaged over all test images and the new, or old, classes. Right: FT with one "
      "of SS-IL's two parts each.",
      alt=f"Average top-1 by epochs: {', '.join(by_epochs) or '-'}. Last gap of "
      f"scores, new minus old: {gaps}. Ablation, last top-1: "
      f"{_lasts(found, ablation, 'top1')}.",
    )
  ]


def _by_epochs(found: Found, cells: Sequence[Cell]) -> tuple[np.ndarray, np.ndarray]:
  """Returns average top-1 on test images and on training batches, float [seeds, cells].

  Of the seeds that all cells have, which may be none.
  """
  shared = found.on_shared_seeds(cells)
  if not shared.of(cells[0]):
    return np.empty((0, len(cells))), np.empty((0, len(cells)))
  tested = [shared.curve(one, "top1").mean(axis=1) for one in cells]
  trained = [shared.training_top1(one).mean(axis=1) for one in cells]
  return np.stack(tested, axis=1), np.stack(trained, axis=1)


def figure7(found: Found, scale: Scale) -> list[Figure]:
  """Draws IL2M's rectification beside what it should exceed, and FT on its exemplars."""
  cells = present(found, protocol.figure7())
  if not cells:
    return []
  (one,) = cells
  seen = found.classes(one)

  def draw(axes):
    for name, label, style in (
      ("rectification", "R", {"color": color_of("IL2M")}),
      ("probability_ratio", "P_pred / P(C_i)", {"color": color_of("FT"), "marker": "s"}),
    ):
      _line(axes[0], seen, found.statistic(one, name), label, **style)
    _finish(axes[0], "Rectification of IL2M", "ratio")
    axes[0].set_yscale("log")
    axes[0].yaxis.set_major_formatter("{x:g}")  # the default one is written in TeX
    for name, label, style in (
      ("exemplar_top1", "training (exemplars)", {"marker": "s", "linestyle": ":"}),
      ("old_top1", "test", {}),
    ):
      values = 100 * found.statistic(one, name)
      _line(axes[1], seen, values, label, color=color_of("FT"), **style)
    _finish(axes[1], "FT on the old classes", _TOP1)

  last = {
    name: found.statistic(one, name)[:, -1].mean()
    for name in ("rectification", "probability_ratio", "exemplar_top1", "old_top1")
  }
  return [
    save(
      _draw(2, draw),
      name="paper_figure7",
      title="IL2M and what it rectifies",
      caption="Left: the factor R by which IL2M multiplies old probabilities, mean over up "
      "to 50 classes of the first state, and the mean ratio of the top probability to that "
      "of the true class (equation 4) over their test images, which R would have to "
      "exceed. Right: FT's top-1 on its exemplars and on test images of the old classes.",
      alt=f"At the end R is {last['rectification']:.1f} and the ratio "
      f"{last['probability_ratio']:.1f}; FT is right on {last['exemplar_top1']:.1%} of its "
      f"exemplars and {last['old_top1']:.1%} of the old classes' test images.",
    )
  ]
