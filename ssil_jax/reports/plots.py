"""Draws the figures of a study from groups of runs, and words what they show."""

import math
import textwrap
from collections.abc import Iterable, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ssil_jax.reports import figures, panels
from ssil_jax.reports.aggregate import Group
from ssil_jax.reports.blocks import Figure as Drawn
from ssil_jax.reports.figures import COLORS, SIDES, WIDE
from ssil_jax.reports.labels import shorten
from ssil_jax.reports.measures import (
  FORGETTING,
  OWN_FORGETTING,
  Measure,
  accuracy_matrix,
  top1_of_classes,
)
from ssil_jax.reports.panels import MANY, Groups, curves
from ssil_jax.reports.results import SCORES, LossCurve

_LOSS_POINTS = 240  # of a run; more cannot be told apart
_FEW_CLASSES = 24  # up to this, each has a column
_BANDS = (
  " Lines are means over the seeds of a method, bands reach from its lowest seed to its "
  "highest."
)


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
    if len(self.groups) > MANY:
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
    if len(reached) > MANY:
      figure = panels.panels(
        reached,
        draw_errors,
        "classes seen",
        "share (%)",
        height=2.6,
        same_y=True,
        legend=[("e(p,n), old as new", "old"), ("e(n,p), new as old", "new")],
      )
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
    drawn = [
      self._matrices(
        "top1_by_state",
        "forgetting",
        "What becomes of each state's classes",
        "Top-1 accuracy (%) of the classes that one state added (column), after each state "
        "(row). Down a column, its classes are forgotten; the diagonal is how well they "
        "were learnt.",
        "accuracy of each state's classes",
        FORGETTING,
      ),
      self._matrices(
        "state_specific_top1_by_state",
        "forgetting_own",
        "What becomes of each state's classes among themselves",
        "The same where only the classes of the image's own state compete: what the "
        "network still knows of a state, whatever its scores are beside those of others.",
        "accuracy of each state's classes among themselves",
        OWN_FORGETTING,
      ),
    ]
    return [figure for figure in drawn if figure is not None]

  def _matrices(
    self, field: str, name: str, title: str, caption: str, shown: str, forgetting: Measure
  ) -> Drawn | None:
    """Draws an accuracy of each state's classes after each state; None if none has it."""
    known = [
      group
      for group in self.groups
      if len(group.states) > 1
      and all(accuracy_matrix(run, field) is not None for run in group.runs)
    ]
    if not known:
      return None

    def draw(ax: Axes, group: Group) -> None:
      matrices = np.array([accuracy_matrix(run, field) for run in group.runs])
      panels.heat_map(ax, 100 * matrices.mean(axis=0), small=len(known) > MANY)

    means = [_mean(forgetting.value(run) for run in group.runs) for group in known]
    forgotten = ", ".join(
      f"{group.label} {mean:.1f}%"
      for group, mean in zip(known, means, strict=True)
      if mean is not None
    )
    return self._save(
      panels.panels(known, draw, "classes added in state", "after state"),
      name,
      title,
      f"{caption}{' Means over the seeds.' if self.several else ''}{self._left_out(known)}",
      f"Heat maps of the {shown} after each state, one a method. "
      f"Forgetting, on average: {forgotten or '-'}.",
    )

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
    figure = panels.panels(
      reached,
      _draw_scores,
      "classes seen",
      "mean output (logit)",
      height=2.6,
      same_y=True,
      legend=[(SCORES[f"score_{kind}"].title, kind) for kind in ("new", "old")],
    )
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
      group for group in self.groups if any(row["ece"] is not None for row in group.states)
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
        f"is right. Lower is better.{_BANDS if self.several else ''}"
        f"{self._left_out(known)}",
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
    small = len(drawn) > MANY
    figure = panels.panels(
      drawn,
      lambda ax, group: _draw_loss(ax, group, small=small),
      "optimizer step",
      "training loss",
      height=2.4,
      above=0.16,  # room for the states' numbers
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
      values = ((group.label, group.states[-1][name]) for group in self.groups)
      alt += f" {panels.panel_title(name)}, last: {_listed(values)}."
    return alt

  def _left_out(self, shown: Groups) -> str:
    labels = [group.label for group in self.groups if group not in shown]
    return f" Not drawn, for want of values: {', '.join(labels)}." if labels else ""


def _listed(values: Iterable[tuple[str, float | None]]) -> str:
  texts = [f"{label} {value:.1%}" for label, value in values if value is not None]
  return ", ".join(texts) or "-"


def _mean(values: Iterable[float | None]) -> float | None:
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


def heat_maps(groups: Groups) -> Figure:
  """Draws, for each group, where a state's images go, in per cent of them."""

  def draw(ax: Axes, group: Group) -> None:
    counts = np.array(group.states[-1]["confusion"], dtype=np.float64)
    images = counts.sum(axis=1, keepdims=True)
    shares = 100 * counts / np.where(images, images, np.nan)
    panels.heat_map(ax, shares, small=len(groups) > MANY)

  words = ("state of the predicted class", "state of the true class")
  if len(groups) > MANY:
    words = ("predicted state", "true state")
  return panels.panels(groups, draw, *words)


def _each(groups: Groups, highlight: str | None) -> Figure:
  """Draws the top-1 accuracy of each group in a panel of its own, before all others."""
  lines = [
    ([row["num_seen"] for row in g.states], [100 * row["top1"] for row in g.states])
    for g in groups
  ]
  background = [np.column_stack(line) for line in lines]

  def draw(ax: Axes, group: Group) -> None:
    color = figures.color_of(group.title)
    grey = {"colors": COLORS["line"], "linewidths": 0.8, "zorder": 1}
    ax.add_collection(LineCollection(background, **grey))
    for other, line in zip(groups, lines, strict=True):
      if other is group:
        ax.plot(*line, color=color, marker="", linewidth=2.2, zorder=3)
      elif highlight and other.method == highlight:
        own = figures.color_of(other.title)
        ax.plot(*line, "--", color=own, marker="", linewidth=1.0, zorder=2)
    if len(group.runs) > 1:
      panels.band(ax, group, "top1", color)
    panels.class_ticks(ax, limit=5)
    ax.set(ylim=(-3, 104), yticks=(0, 50, 100))

  return panels.panels(groups, draw, "classes seen", "top-1 (%)", height=2.6, same_y=True)


def draw_errors(ax: Axes, group: Group) -> None:
  """Draws e(p,n), which is of old classes, and e(n,p), of new ones, over the states."""
  for name, kind in (("error_old_as_new", "old"), ("error_new_as_old", "new")):
    rows = [row for row in group.states if row[name] is not None]
    seen, values = [row["num_seen"] for row in rows], [100 * row[name] for row in rows]
    style = {**SIDES[kind], "marker": "", "linewidth": 1.8}
    ax.plot(seen, values, color=COLORS[kind], **style)
    if len(group.runs) > 1:
      panels.band(ax, group, name, COLORS[kind])
  panels.class_ticks(ax, limit=5)
  ax.set(ylim=(-3, 104), yticks=(0, 50, 100))


def _draw_scores(ax: Axes, group: Group) -> None:
  states = group.states
  seen = [row["num_seen"] for row in states]
  new, old = (
    np.array([row[name] for row in states], dtype=np.float64)  # null becomes NaN
    for name in ("score_new", "score_old")
  )
  ax.fill_between(seen, old, new, color=COLORS["muted"], alpha=0.25, linewidth=0)
  for kind, scores in (("new", new), ("old", old)):
    ax.plot(seen, scores, color=COLORS[kind], markersize=3.5, **SIDES[kind])
  panels.class_ticks(ax, limit=5)
  ax.ticklabel_format(axis="y", scilimits=(-3, 4))


def _class_map(groups: Groups, names: Sequence[str], shares: np.ndarray) -> Figure:
  """Draws the accuracy (%) of each class, a column, for each group, a row."""
  size = (max(4.5, min(WIDE, 2.4 + 0.42 * len(names))), 1.5 + 0.3 * len(groups))
  figure = Figure(size, layout="constrained")
  ax = figure.subplots()
  panels.cells(ax, shares)
  panels.numbers(ax, shares, fontsize=8.5)
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
  figure = Figure((7.6, 3.9), layout="constrained")
  ax = figure.subplots()
  groups = [group for group, _ in known]
  found = panels.looks(groups, highlight)
  for (_, values), look in zip(known, found, strict=True):
    accuracies = 100 * np.sort(list(values.values()))[::-1]
    places = 100 * (np.arange(len(accuracies)) + 0.5) / len(accuracies)
    ax.plot(
      places,
      accuracies,
      color=look.color,
      linestyle=look.dash,
      linewidth=look.width,
      zorder=3 if look.stands_out else 2,
    )
  ax.set(
    xlabel="classes, from the best to the worst of each method (%)",
    ylabel="top-1 of the class (%)",
    ylim=(-3, 104),
    xlim=(0, 100),
  )
  shown = {
    "the other methods" if look.color == COLORS["muted"] else shorten(group.label): line
    for group, look, line in zip(groups, found, ax.get_lines(), strict=True)
  }
  if len(groups) > 1 and shown:
    columns = max(1, int(95 / (max(map(len, shown)) + 6)))
    figure.set_figheight(3.9 + 0.2 * (math.ceil(len(shown) / columns) - 1))
    figure.legend(shown.values(), shown, loc="outside upper left", ncols=columns)
  return figure


def _draw_loss(ax: Axes, group: Group, *, small: bool) -> None:
  color = figures.color_of(group.title)
  for run in group.runs:
    curve = thinned(run.loss)
    marker = "o" if len(curve.steps) == 1 else ""
    width = 1.1 if len(group.runs) == 1 else 0.8
    ax.plot(curve.steps, curve.losses, color=color, linewidth=width, marker=marker)
  steps, _, states = group.runs[-1].loss
  starts = [0, *(np.flatnonzero(np.diff(states)) + 1)]
  ax.vlines(
    steps[starts],
    0,
    1,
    transform=ax.get_xaxis_transform(),
    colors=COLORS["muted"],
    linewidths=0.6,
    zorder=0,
  )
  for start in starts if len(starts) <= (5 if small else 10) else ():
    # The word has room where panels are large and states few.
    word = not start and len(starts) <= 5 and not small
    text = f"state {states[start]}" if word else f"{states[start]}"
    above = ax.get_xaxis_transform()
    ax.text(steps[start], 1.015, text, transform=above, fontsize=8)
  ax.xaxis.set_major_locator(
    MaxNLocator(3 if small else 5, integer=True, steps=[1, 2, 5, 10])
  )
  ax.ticklabel_format(axis="both", scilimits=(-3, 5))
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
