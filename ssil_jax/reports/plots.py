"""Draws the figures of a study from groups of runs, and words what they show."""

import math
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ssil_jax.reports import figures
from ssil_jax.reports.aggregate import Group
from ssil_jax.reports.blocks import Figure as Drawn
from ssil_jax.reports.figures import COLORS, DASHES, MARKERS, NARROW, WIDE
from ssil_jax.reports.labels import shorten
from ssil_jax.reports.measures import accuracy_matrix, top1_of_classes
from ssil_jax.reports.results import SCORES, LossCurve

Groups = Sequence[Group]

_MANY = 7  # lines; above this, all but the one in question are grey
_MANY_CELLS = 20  # rows of a heat map; above this, it is an image
_NUMBERED = 10  # rows of a heat map; up to this, its cells hold numbers
_LOSS_POINTS = 240  # of a run; more cannot be told apart
_FEW_CLASSES = 24  # up to this, each has a column
_FAINT = "#3d86c6"  # heat of images, which a theme does not change: seen on white and black
_BANDS = (
  " Lines are means over the seeds of a method, bands reach from its lowest seed to its "
  "highest."
)


class Look(NamedTuple):
  """Says how the line of a group is drawn."""

  color: str
  marker: str
  dash: str
  width: float
  stands_out: bool


def looks(groups: Groups, highlight: str | None) -> list[Look]:
  """Returns how each group is drawn: by its method, and apart from others of it."""
  seen: Counter[str] = Counter()
  found = []
  for number, group in enumerate(groups):
    stands_out = bool(highlight) and group.method == highlight
    look = Look(
      figures.color_of(group.title),
      MARKERS[number % len(MARKERS)],
      DASHES[seen[group.title] % len(DASHES)],
      2.6 if stands_out else 1.6,
      stands_out,
    )
    seen[group.title] += 1
    found.append(look)
  return found


class Plotter:
  """Draws the figures of some groups that belong on the same axes."""

  def __init__(
    self, groups: Groups, *, highlight: str | None, images: str, suffix: str, on: str
  ):
    """Keeps what all figures have in common.

    Args:
      groups: on one data set.
      highlight: the method that stands out, if any does.
      images: what was scored, e.g. "test images".
      suffix: of the figures' names.
      on: end of the figures' titles.
    """
    self.groups = groups
    self.highlight = highlight
    self.images = images
    self.suffix = suffix
    self.on = on
    self.several = any(len(group.runs) > 1 for group in groups)

  def draw_all(self) -> dict[str, list[Drawn]]:
    """Returns the figures for which there is something to draw, by section."""
    with matplotlib.rc_context(figures.STYLE):
      return {
        "accuracy": self._accuracy(),
        "errors": self._errors(),
        "forgetting": self._forgetting(),
        "classes": self._classes(),
        "confusion": self._confusion(),
        "scores": self._scores(),
        "calibration": self._calibration(),
        "loss": self._loss(),
      }

  def _save(self, figure: Figure, name: str, title: str, caption: str, alt: str) -> Drawn:
    return figures.save(
      figure, name=name + self.suffix, title=title + self.on, caption=caption, alt=alt
    )

  def _accuracy(self) -> list[Drawn]:
    seeds = _BANDS if self.several else ""
    drawn = [
      self._save(
        curves(self.groups, ["top1", "top5"], top=100, highlight=self.highlight),
        "accuracy",
        "Accuracy",
        f"Share of the {self.images} of all classes seen so far whose class is the best "
        "prediction (top-1) or among the five best (top-5). Higher is better; it falls as "
        f"classes are added and earlier ones are forgotten.{seeds}",
        self._lasts("top1", "top5"),
      )
    ]
    if len(self.groups) > _MANY:
      drawn.append(
        self._save(
          _each(self.groups, self.highlight),
          "accuracy_each",
          "Top-1 accuracy, method by method",
          "Each method in its colour before all others in grey"
          + (", and beside the one in question." if self.highlight else "."),
          self._lasts("top1"),
        )
      )
    drawn.append(
      self._save(
        curves(self.groups, ["state_specific_top1"], top=100, highlight=self.highlight),
        "state_specific",
        "State-specific accuracy",
        "Accuracy when only the classes of the image's own state compete, averaged over "
        "the states. If it stays high while top-1 falls, the classes are still known and "
        f"the errors come from scores on different scales in different states.{seeds}",
        self._lasts("state_specific_top1"),
      )
    )
    return drawn

  def _errors(self) -> list[Drawn]:
    reached = [group for group in self.groups if len(group.states) > 1]
    if not reached:
      return []
    names = ["error_old_as_new", "error_new_as_old"]
    drawn = [
      self._save(
        curves(reached, names, highlight=self.highlight),
        "errors",
        "Confusion between old and new classes",
        f"e(p,n) is the share of old-class {self.images} predicted as a new class, e(n,p) "
        "the share of new-class images predicted as an old one. A method is balanced when "
        "both are equal; a high e(p,n) with a low e(n,p) is a bias towards the new "
        f"classes.{_BANDS if self.several else ''}{self._left_out(reached)}",
        self._lasts(*names),
      )
    ]
    if len(reached) > _MANY:
      figure = _panels(
        reached, _draw_errors, "classes seen", "share (%)", height=3.0, sharey=True
      )
      _legend(figure, [("e(p,n), old as new", "old"), ("e(n,p), new as old", "new")])
      drawn.append(
        self._save(
          figure,
          "errors_each",
          "Old and new classes, method by method",
          "The closer the two lines, the more balanced the method.",
          self._lasts(*names),
        )
      )
    return drawn

  def _forgetting(self) -> list[Drawn]:
    known = [
      group
      for group in self.groups
      if len(group.states) > 1 and all(accuracy_matrix(r) is not None for r in group.runs)
    ]
    if not known:
      return []

    def draw(ax: Axes, group: Group) -> None:
      matrices = np.array([accuracy_matrix(run) for run in group.runs])
      _heat_map(ax, 100 * matrices.mean(axis=0), small=len(known) > _MANY)

    figure = _panels(
      known,
      draw,
      "classes added in state",
      "after state",
      height=4.4,
      layout="compressed",
    )
    return [
      self._save(
        figure,
        "forgetting",
        "What becomes of each state's classes",
        "Top-1 accuracy (%) of the classes that one state added (column), after each state "
        "(row). Down a column, its classes are forgotten; the diagonal is how well they "
        f"were learnt.{' Means over the seeds.' if self.several else ''}"
        f"{self._left_out(known)}",
        "Heat maps of the accuracy of each state's classes after each state, one a method. "
        + "Forgetting, on average: "
        + _listed(
          (
            group.label,
            _mean(run.results["average"].get("forgetting") for run in group.runs),
          )
          for group in known
        ),
      )
    ]

  def _classes(self) -> list[Drawn]:
    known = [(group, _of_classes(group)) for group in self.groups]
    known = [(group, values) for group, values in known if values]
    if not known:
      return []
    groups = [group for group, _ in known]
    names = list(dict.fromkeys(name for _, values in known for name in values))
    if len(names) <= _FEW_CLASSES:
      shares = np.array([[v.get(name, np.nan) for name in names] for _, v in known])
      figure = _class_map(groups, names, 100 * shares)
      caption = "Top-1 accuracy (%) of each class after the last finished state."
    else:
      figure = _class_curves(known, self.highlight)
      caption = (
        "Top-1 accuracy of each class after the last finished state, for each method from "
        "its best class to its worst. A line that is at zero early has lost the rest of "
        "the classes."
      )
    return [
      self._save(
        figure,
        "classes",
        "Accuracy of each class",
        caption + (" Means over the seeds." if self.several else ""),
        "Accuracy of single classes. Lowest, by method: "
        + _listed((group.label, min(values.values())) for group, values in known),
      )
    ]

  def _confusion(self) -> list[Drawn]:
    reached = [group for group in self.groups if len(group.states) > 1]
    if not reached:
      return []
    return [
      self._save(
        heat_maps(reached),
        "confusion",
        "Confusion between states",
        f"After the last finished state: each row holds the {self.images} of the classes "
        "that one state added, each column the state of the predicted class, in per cent "
        "of the row. All on the diagonal is best; a full last column is a bias to new "
        "classes."
        + (" Images of all seeds are counted together." if self.several else "")
        + self._left_out(reached),
        "Heat maps of the state of the true class against that of the predicted class, one "
        "a method, after the last finished state. The counts are in results.json.",
      )
    ]

  def _scores(self) -> list[Drawn]:
    reached = [group for group in self.groups if len(group.states) > 1]
    if not reached:
      return []
    figure = _panels(
      reached, _draw_scores, "classes seen", "mean output (logit)", height=3.3, sharey=True
    )
    _legend(figure, [(SCORES[f"score_{kind}"].title, kind) for kind in ("new", "old")])
    gaps = ", ".join(
      f"{group.label} {last['score_new'] - last['score_old']:.2f}"
      for group in reached
      if (last := group.states[-1])["score_old"] is not None
    )
    return [
      self._save(
        figure,
        "scores",
        "Score gap",
        f"Network output averaged over all {self.images}, separately for the old and the "
        "new classes. The shaded gap shows how much the new classes are favoured; close "
        "together is balanced."
        + (" Lines are means over the seeds." if self.several else "")
        + self._left_out(reached),
        "Line charts of the mean network output of old and of new classes by number of "
        f"classes seen, one a method. Last gap, new minus old: {gaps or '-'}.",
      )
    ]

  def _calibration(self) -> list[Drawn]:
    known = [
      group
      for group in self.groups
      if any(row.get("ece") is not None for row in group.states)
    ]
    if not known:
      return []
    return [
      self._save(
        curves(known, ["ece"], highlight=self.highlight),
        "calibration",
        "Calibration",
        "Expected calibration error by the number of classes seen: how far, on average, "
        "the probability of the best prediction is from the share of images for which it "
        f"is right. Lower is better.{_BANDS if self.several else ''}",
        self._lasts("ece"),
      )
    ]

  def _loss(self) -> list[Drawn]:
    drawn = [
      Group(group.label, [run for run in group.runs if run.loss]) for group in self.groups
    ]
    drawn = [group for group in drawn if group.runs]
    if not drawn:
      return []
    without = [g.label for g in self.groups if g.label not in {d.label for d in drawn}]
    with matplotlib.rc_context({"axes.titlepad": 18}):  # room for the states' numbers
      figure = _panels(
        drawn,
        lambda ax, group: _draw_loss(ax, group, small=len(drawn) > _MANY),
        "optimizer step",
        "training loss",
        height=3.1,
      )
    return [
      self._save(
        figure,
        "loss",
        "Training loss",
        "Loss of the training batches over the optimizer steps; a vertical line marks the "
        "first point of a state. Losses of different methods have different terms, so "
        "compare their course, not their height."
        + (" Each seed has a line." if self.several else "")
        + (f" No metrics.jsonl, hence no curve: {', '.join(without)}." if without else ""),
        "Line charts of the training loss over the optimizer steps, one a method.",
      )
    ]

  def _lasts(self, *names: str) -> str:
    alt = "Line charts by number of classes seen."
    for name in names:
      values = ((group.label, group.states[-1].get(name)) for group in self.groups)
      alt += f" {_panel_title(name)}, last: {_listed(values)}."
    return alt

  def _left_out(self, shown: Groups) -> str:
    labels = [group.label for group in self.groups if group not in shown]
    return f" Not drawn, for want of values: {', '.join(labels)}." if labels else ""


def _listed(values) -> str:
  texts = [f"{label} {value:.1%}" for label, value in values if value is not None]
  return ", ".join(texts) or "-"


def _mean(values) -> float | None:
  known = [value for value in values if value is not None]
  return sum(known) / len(known) if known else None


def _of_classes(group: Group) -> dict[str, float]:
  """Returns name -> mean top-1 over the runs that know it."""
  values = [top1_of_classes(run) for run in group.runs]
  means = {
    name: _mean(one.get(name) for one in values)
    for name in {n: 0 for v in values for n in v}
  }
  return {name: mean for name, mean in means.items() if mean is not None}


def _panel_title(name: str) -> str:
  return SCORES[name].panel if name in SCORES else "Expected calibration error"


def curves(
  groups: Groups,
  names: Sequence[str],
  *,
  top: float | None = None,
  highlight: str | None = None,
) -> Figure:
  """Draws a panel for each score with a curve for each group, in per cent.

  The curve of several runs is their mean, in a band from their lowest to their highest. Of
  many, all but those of the highlighted method are grey. The vertical axis ends at `top`,
  or is chosen by the values.
  """
  many = len(groups) > _MANY
  labels = [shorten(group.label) for group in groups]
  direct = 1 < len(groups) <= 24 and max(map(len, labels)) <= 28
  height = 5.6 if many else 3.9
  figure = Figure((WIDE if len(names) > 1 else 7.6, height), layout="constrained")
  axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
  ends: list[list[tuple[float, float, str, str, bool]]] = [[] for _ in names]
  for ax, name, ending in zip(axes, names, ends, strict=True):
    for group, look, label in zip(groups, looks(groups, highlight), labels, strict=True):
      rows = [row for row in group.states if row.get(name) is not None]
      grey = many and bool(highlight) and not look.stands_out
      color = COLORS["muted"] if grey else look.color
      seen, values = [r["num_seen"] for r in rows], [100 * r[name] for r in rows]
      order = 3 if look.stands_out else 2
      ax.plot(
        seen,
        values,
        color=color,
        linestyle=look.dash,
        marker="" if grey and len(rows) > 1 else look.marker,
        linewidth=1.0 if grey else look.width,
        markersize=4 if many else 5.5,
        zorder=order,
      )
      if len(group.runs) > 1 and not grey:
        _band(ax, group, name, seen, color)
      if rows:
        ending.append((seen[-1], values[-1], label, color, look.stands_out))
    ax.set(title=_panel_title(name), xlabel="classes seen")
    ax.tick_params(labelleft=True)
    _class_ticks(ax, limit=20 // len(names))
  axes[0].set_ylabel("share of images (%)")
  top = top or max(5.0, *(ax.dataLim.y1 for ax in axes))
  axes[0].set_ylim(-0.03 * top, 1.04 * top)
  if direct:
    for ax, ending in zip(axes, ends, strict=True):
      _label_ends(ax, ending, height - 1.1)
  elif len(groups) > 1:
    _legend_of_lines(figure, axes[0], [group.label for group in groups])
  return figure


def _band(ax: Axes, group: Group, name: str, seen: list[int], color: str) -> None:
  values = np.array(
    [[row.get(name) for row in run.results["states"]] for run in group.runs], np.float64
  )
  values = 100 * values[:, ~np.isnan(values).any(axis=0)]  # null became NaN
  if values.shape[1] == len(seen):
    band = {"color": color, "alpha": 0.18, "linewidth": 0}
    ax.fill_between(seen, values.min(0), values.max(0), **band)


def _label_ends(
  ax: Axes, ends: Sequence[tuple[float, float, str, str, bool]], height: float
) -> None:
  """Writes labels at the ends of lines, apart from each other; height in inches."""
  low, high = ax.get_ylim()
  gap = 0.148 / height  # of a line of text, as a share of the axis
  order = sorted(ends, key=lambda end: end[1])
  places = [(end[1] - low) / (high - low) for end in order]
  # From below, each at least a gap above the one before; then back from the top.
  for number in range(1, len(places)):
    places[number] = max(places[number], places[number - 1] + gap)
  limit = max(1.0, gap * len(places))
  for number in reversed(range(len(places))):
    places[number] = min(places[number], limit)
    limit = places[number] - gap
  for (x, y, label, color, stands_out), place in zip(order, places, strict=True):
    ax.annotate(
      label,
      (x, y),
      (1.06, place),
      textcoords="axes fraction",
      va="center",
      fontsize=8.5,
      fontweight="bold" if stands_out else "normal",
      color=COLORS["soft"] if color == COLORS["muted"] else color,
      annotation_clip=False,
      arrowprops={
        "arrowstyle": "-",
        "color": color,
        "linewidth": 0.6,
        "shrinkA": 1,
        "shrinkB": 3,
      },
    )


def _each(groups: Groups, highlight: str | None) -> Figure:
  """Draws the top-1 accuracy of each group in a panel of its own, before all others."""
  found = looks(groups, highlight)
  lines = [
    ([row["num_seen"] for row in g.states], [100 * row["top1"] for row in g.states])
    for g in groups
  ]

  def draw(ax: Axes, group: Group) -> None:
    for other, look, line in zip(groups, found, lines, strict=True):
      if other is group:
        style = {"color": look.color, "linewidth": 2.2, "zorder": 3}
      elif look.stands_out:
        style = {"color": look.color, "linewidth": 1.0, "linestyle": "--", "zorder": 2}
      else:
        style = {"color": COLORS["line"], "linewidth": 0.8, "zorder": 1}
      ax.plot(*line, marker="", **{"linestyle": "-", **style})
      if other is group and len(group.runs) > 1:
        _band(ax, group, "top1", line[0], look.color)
    _class_ticks(ax, limit=5)
    ax.set_ylim(-3, 104)

  return _panels(groups, draw, "classes seen", "top-1 (%)", height=3.0, sharey=True)


def _draw_errors(ax: Axes, group: Group) -> None:
  for name, kind, dash in (
    ("error_old_as_new", "old", "--"),
    ("error_new_as_old", "new", "-"),
  ):
    rows = [row for row in group.states if row[name] is not None]
    seen = [row["num_seen"] for row in rows]
    ax.plot(
      seen, [100 * row[name] for row in rows], dash, color=COLORS[kind], marker="", lw=1.8
    )
    if len(group.runs) > 1:
      _band(ax, group, name, seen, COLORS[kind])
  _class_ticks(ax, limit=5)
  ax.set_ylim(-3, 104)


def _draw_scores(ax: Axes, group: Group) -> None:
  states = group.states
  seen = [row["num_seen"] for row in states]
  new, old = (
    np.array([row[name] for row in states], dtype=np.float64)  # null becomes NaN
    for name in ("score_new", "score_old")
  )
  ax.fill_between(seen, old, new, color=COLORS["muted"], alpha=0.25, linewidth=0)
  ax.plot(seen, new, "-o", color=COLORS["new"], markersize=4)
  ax.plot(seen, old, "--s", color=COLORS["old"], markersize=4)
  _class_ticks(ax, limit=5)


def heat_maps(groups: Groups) -> Figure:
  """Draws, for each group, where a state's images go, in per cent of them."""

  def draw(ax: Axes, group: Group) -> None:
    counts = np.array(group.states[-1]["confusion"], dtype=np.float64)
    images = counts.sum(axis=1, keepdims=True)
    shares = 100 * counts / np.where(images, images, np.nan)
    _heat_map(ax, shares, small=len(groups) > _MANY)

  words = ("state of the predicted class", "state of the true class")
  if len(groups) > _MANY:
    words = ("predicted state", "true state")
  return _panels(groups, draw, *words, height=4.4, layout="compressed")


def _heat_map(ax: Axes, shares: np.ndarray, *, small: bool) -> None:
  """Draws shares in per cent; NaN is left blank, above the diagonal, or a dash."""
  rows, columns = shares.shape
  if max(shares.shape) > _MANY_CELLS:
    rgba = np.empty((*shares.shape, 4))
    rgba[..., :3] = to_rgb(_FAINT)
    rgba[..., 3] = np.nan_to_num(shares) / 100
    ax.imshow(rgba, interpolation="nearest")
  else:
    color = to_rgb(COLORS["heat"])
    for (row, column), share in np.ndenumerate(shares):
      if not math.isnan(share):
        cell = (column - 0.48, row - 0.48), 0.96, 0.96
        ax.add_patch(
          matplotlib.patches.Rectangle(*cell, facecolor=(*color, share / 100), linewidth=0)
        )
  ax.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), aspect="equal")
  ax.grid(visible=False)
  for ticks, size in ((ax.set_xticks, columns), (ax.set_yticks, rows)):
    places = np.arange(0, size, 1 + (size - 1) // (5 if small else 10))
    ticks(places, places + 1)
  if max(shares.shape) <= _NUMBERED and not (small and max(shares.shape) > 6):
    font = 7.5 if small or max(shares.shape) > 7 else 9
    for (row, column), share in np.ndenumerate(shares):
      if not (math.isnan(share) and column > row):
        text = "-" if math.isnan(share) else f"{share:.0f}"
        color = COLORS["on-heat" if share > 62 else "ink"]
        ax.text(column, row, text, ha="center", va="center", fontsize=font, color=color)


def _class_map(groups: Groups, names: Sequence[str], shares: np.ndarray) -> Figure:
  """Draws the accuracy (%) of each class, a column, for each group, a row."""
  size = (max(4.5, min(WIDE, 2.4 + 0.42 * len(names))), 1.5 + 0.3 * len(groups))
  figure = Figure(size, layout="constrained")
  ax = figure.subplots()
  color = to_rgb(COLORS["heat"])
  for (row, column), share in np.ndenumerate(shares):
    if not math.isnan(share):
      cell = (column - 0.48, row - 0.46), 0.96, 0.92
      ax.add_patch(
        matplotlib.patches.Rectangle(*cell, facecolor=(*color, share / 100), linewidth=0)
      )
    text = "-" if math.isnan(share) else f"{share:.0f}"
    style = {"ha": "center", "va": "center", "fontsize": 8.5}
    ax.text(column, row, text, color=COLORS["on-heat" if share > 62 else "ink"], **style)
  ax.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(groups) - 0.5, -0.5))
  ax.set_yticks(range(len(groups)), [shorten(group.label) for group in groups])
  short = [textwrap.shorten(name, 18, placeholder="...") or name[:18] for name in names]
  turned = max(map(len, short)) > 4
  ax.set_xticks(
    range(len(names)),
    short,
    rotation=45 if turned else 0,
    ha="right" if turned else "center",
    rotation_mode="anchor" if turned else "default",
  )
  ax.tick_params(length=0)
  ax.grid(visible=False)
  ax.spines[:].set_visible(False)
  return figure


def _class_curves(
  known: Sequence[tuple[Group, dict[str, float]]], highlight: str | None
) -> Figure:
  """Draws the accuracy of each group's classes, sorted, over the share of the classes."""
  many = len(known) > _MANY
  height = 5.2 if many else 3.9
  figure = Figure((7.6, height), layout="constrained")
  ax = figure.subplots()
  groups = [group for group, _ in known]
  for (group, values), look in zip(known, looks(groups, highlight), strict=True):
    grey = many and bool(highlight) and not look.stands_out
    accuracies = 100 * np.sort(list(values.values()))[::-1]
    places = 100 * (np.arange(len(accuracies)) + 0.5) / len(accuracies)
    ax.plot(
      places,
      accuracies,
      color=COLORS["muted"] if grey else look.color,
      linestyle=look.dash,
      linewidth=0.9 if grey else look.width,
      label=group.label,
      zorder=3 if look.stands_out else 2,
    )
  ax.set(
    xlabel="classes, from the best to the worst of each method (%)",
    ylabel="top-1 of the class (%)",
    ylim=(-3, 104),
    xlim=(0, 100),
  )
  if 1 < len(groups) <= _MANY:
    _legend_of_lines(figure, ax, [group.label for group in groups])
  elif highlight:
    named = [
      line for line, g in zip(ax.get_lines(), groups, strict=True) if g.method == highlight
    ]
    figure.legend(
      [*named, ax.get_lines()[0]],
      [*(line.get_label() for line in named), "the other methods"],
      loc="outside upper left",
      ncols=2,
    )
  return figure


def _draw_loss(ax: Axes, group: Group, *, small: bool) -> None:
  for run in group.runs:
    curve = thinned(run.loss)
    marker = "o" if len(curve.steps) == 1 else ""
    width = 1.1 if len(group.runs) == 1 else 0.8
    color = figures.color_of(group.title)
    ax.plot(
      curve.steps, curve.losses, color=color, linewidth=width, marker=marker, alpha=0.85
    )
  steps, _, states = group.runs[-1].loss
  starts = [0, *(np.flatnonzero(np.diff(states)) + 1)]
  for start in starts:
    ax.axvline(steps[start], color=COLORS["muted"], linewidth=0.6, zorder=0)
    if len(starts) <= (5 if small else 10):
      # The word has room where panels are large and states few.
      word = not start and len(starts) <= 5 and not small
      text = f"state {states[start]}" if word else f"{states[start]}"
      above = ax.get_xaxis_transform()
      ax.text(steps[start], 1.015, text, transform=above, fontsize=8)
  ax.xaxis.set_major_locator(
    MaxNLocator(3 if small else 5, integer=True, steps=[1, 2, 5, 10])
  )
  ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))


def thinned(curve: LossCurve) -> LossCurve:
  """Returns means over equal numbers of records, where there are too many to draw."""
  size = math.ceil(len(curve.steps) / _LOSS_POINTS)
  if size == 1:
    return curve
  starts = np.arange(0, len(curve.steps), size)
  counts = np.diff([*starts, len(curve.steps)])
  return LossCurve(
    curve.steps[starts],
    np.add.reduceat(curve.losses.astype(np.float64), starts) / counts,
    curve.states[starts],
  )


def _panels(
  groups: Groups,
  draw: Callable[[Axes, Group], None],
  x_label: str,
  y_label: str,
  *,
  height: float,
  sharey: bool = False,
  layout: str = "constrained",
) -> Figure:
  """Fills a panel for each group by `draw`, two a row, or more if there are many.

  The height is a panel's where there are two.
  """
  count = len(groups)
  columns = min(2, count) if count <= _MANY else 4 if count <= 12 else 5
  height *= {4: 0.62, 5: 0.56}.get(columns, 1)
  rows = math.ceil(count / columns)
  figure = Figure((WIDE if columns > 1 else NARROW, height * rows), layout=layout)
  axes = list(figure.subplots(rows, columns, sharey=sharey, squeeze=False).flat)
  for ax in axes[count:]:
    ax.remove()
  width = {1: 60, 2: 46, 4: 24, 5: 20}[columns]
  for number, (ax, group) in enumerate(zip(axes, groups, strict=False)):
    draw(ax, group)
    title = textwrap.fill(shorten(group.label), width, break_on_hyphens=False)
    ax.set_title(title, fontsize=9 if columns > 2 else None)
    if columns <= 2 or number >= count - columns:
      ax.set_xlabel(x_label)
    if columns <= 2 or number % columns == 0:
      ax.set_ylabel(y_label)
    ax.tick_params(labelleft=columns <= 2 or number % columns == 0 or not sharey)
  return figure


def _class_ticks(ax: Axes, *, limit: int) -> None:
  """Puts ticks where states end, or at round numbers if those are more than `limit`."""
  seen = {number for line in ax.get_lines() for number in line.get_xdata()}
  if len(seen) <= limit:
    ax.set_xticks(sorted(seen))
  else:
    ax.xaxis.set_major_locator(MaxNLocator(limit, integer=True, steps=[1, 2, 5, 10]))


def _legend(figure: Figure, items: Sequence[tuple[str, str]]) -> None:
  """Puts a legend above the panels; items are labels and the names of colours."""
  lines = [
    matplotlib.lines.Line2D(
      [], [], color=COLORS[kind], linestyle="--" if kind == "old" else "-", marker=""
    )
    for _, kind in items
  ]
  labels = [label for label, _ in items]
  figure.legend(lines, labels, loc="outside upper left", ncols=len(items))


def _legend_of_lines(figure: Figure, ax: Axes, labels: Sequence[str]) -> None:
  """Puts a legend above the panels for the lines of one of them."""
  room = int(13 * figure.get_figwidth())  # characters of a line
  columns = max(1, min(len(labels), room // (max(map(len, labels)) + 6)))
  further_rows = math.ceil(len(labels) / columns) - 1
  figure.set_figheight(figure.get_figheight() + 0.2 * further_rows)
  figure.legend(ax.get_lines(), labels, loc="outside upper left", ncols=columns)
