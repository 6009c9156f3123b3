"""Draws the figures of the page with matplotlib, and words what they show."""

import base64
import functools
import io
import math
import textwrap
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ssil_jax.reports.aggregate import Group
from ssil_jax.reports.results import SCORES, Run
from ssil_jax.reports.tables import over_seeds, run_labels

Groups = Sequence[Group]

# Okabe and Ito's colours, which colour-blind readers can tell apart, less the yellow.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
_INK = "#222222"
_WIDE, _NARROW = 9.6, 6.4  # inches; 960 and 640 CSS pixels in the page
_MANY = 8  # above this, lines are thinner and panels smaller
_STYLE = {
  "axes.axisbelow": True,
  "axes.grid": True,
  "axes.grid.axis": "y",
  "axes.labelcolor": _INK,
  "axes.labelsize": 9.5,
  "axes.prop_cycle": (
    cycler(color=_COLORS * 8)
    + cycler(marker=_MARKERS * 7)
    + cycler(linestyle=[style for style in ("-", "--", ":", "-.") * 2 for _ in _COLORS])
  ),
  "axes.spines.right": False,
  "axes.spines.top": False,
  "axes.titlelocation": "left",
  "axes.titlepad": 7,
  "axes.titlesize": 10.5,
  "axes.titleweight": "bold",
  "figure.constrained_layout.h_pad": 0.09,
  "figure.constrained_layout.w_pad": 0.09,
  "figure.dpi": 160,
  "grid.color": "#dddddd",
  "grid.linewidth": 0.7,
  "legend.fontsize": 9.5,
  "legend.frameon": False,
  "lines.linewidth": 1.8,
  "lines.markersize": 5.5,
  "text.color": _INK,
  "text.parse_math": False,  # labels come from files
  "xtick.color": _INK,
  "xtick.labelsize": 9,
  "ytick.color": _INK,
  "ytick.labelsize": 9,
}


class Plot(NamedTuple):
  """A figure of the page, whose template has its title and caption."""

  name: str
  alt: str
  note: str  # on how these runs are shown
  png: bytes | None  # None when there is nothing to draw

  @property
  def uri(self) -> str:
    """The image as a data URI."""
    return "data:image/png;base64," + base64.b64encode(self.png or b"").decode("ascii")

  @property
  def width(self) -> int:
    """CSS pixels at which the text of the figure is as large as that of the page."""
    pixels = int.from_bytes((self.png or b"")[16:20], "big")  # of the PNG header
    return pixels * 5 // 8


def draw_plots(runs: Sequence[Run]) -> list[Plot]:
  """Draws the figures of the page in its order; runs that differ in the seed are one."""
  if found := over_seeds(runs):
    groups = [*found.groups, *found.left_out]
  else:
    labels = run_labels(runs)
    groups = [Group(label, [run]) for label, run in zip(labels, runs, strict=True)]
  reached = [group for group in groups if len(group.states) > 1]
  single = ", ".join(group.label for group in groups if len(group.states) == 1)
  not_drawn = f"Not drawn, with one state only: {single}." if single else ""
  lasts = [(group.label, group.states[-1]) for group in reached]
  gaps = ", ".join(
    f"{label} {last['score_new'] - last['score_old']:.2f}"
    for label, last in lasts
    if last["score_old"] is not None
  )
  with_loss = [Group(g.label, [run for run in g.runs if run.loss]) for g in groups]
  without = ", ".join(group.label for group in with_loss if not group.runs)
  with matplotlib.rc_context(_STYLE):
    return [
      _curve_plot("accuracy", groups, "top1", "top5", top=100),
      _curve_plot(
        "errors", reached, "error_old_as_new", "error_new_as_old", note=not_drawn
      ),
      _plot(
        "confusion",
        reached,
        heat_maps,
        "Heat maps of the state of the true class against that of the predicted class, one "
        "a run, after the last finished state. The counts are in results.json.",
        seeds="Images of all seeds of a method are counted together.",
        note=not_drawn,
      ),
      _plot(
        "scores",
        reached,
        _score_figure,
        "Line charts of the mean network output of old and of new classes by number of "
        "classes seen, one a run." + (f" Last gap, new minus old: {gaps}." if gaps else ""),
        seeds="Lines are means over the seeds of a method.",
        note=not_drawn,
      ),
      _curve_plot("state_specific", groups, "state_specific_top1", top=100),
      _plot(
        "loss",
        [group for group in with_loss if group.runs],
        _loss_figure,
        "Line charts of the training loss over the optimizer steps, one a run.",
        seeds="Each seed of a method has a line.",
        note=f"No metrics.jsonl, hence no curve: {without}." if without else "",
      ),
    ]


def _plot(
  name: str,
  groups: Groups,
  draw: Callable[[Groups], Figure],
  alt: str,
  *,
  seeds: str,
  note: str = "",
) -> Plot:
  """Draws the groups, if there are any; `seeds` says how several seeds are shown."""
  several = any(len(group.runs) > 1 for group in groups)
  notes = " ".join(text for text in (seeds if several else "", note) if text)
  if not groups:
    return Plot(name, alt, notes, None)
  buffer = io.BytesIO()
  with warnings.catch_warnings():
    # A box stands for a character that the font lacks; the page has it as text.
    warnings.filterwarnings("ignore", "Glyph .* missing from font")
    draw(groups).savefig(buffer, format="png")
  return Plot(name, alt, notes, buffer.getvalue())


def _curve_plot(
  name: str, groups: Groups, *scores: str, top: float | None = None, note: str = ""
) -> Plot:
  """Draws a panel of curves for each of the named scores."""
  alt = "Line charts by number of classes seen."
  for score in scores:
    lasts = [(group.label, group.states[-1][score]) for group in groups]
    values = [f"{label} {value:.1%}" for label, value in lasts if value is not None]
    alt += f" {SCORES[score].panel}, last: {', '.join(values) or '-'}."
  seeds = (
    "Lines are means over the seeds of a method, and bands reach from its lowest seed to "
    "its highest."
  )
  draw = functools.partial(curves, names=scores, top=top)
  return _plot(name, groups, draw, alt, seeds=seeds, note=note)


def curves(groups: Groups, names: Sequence[str], *, top: float | None = None) -> Figure:
  """Draws a panel for each score with a curve for each group, in per cent.

  The curve of several runs is their mean, in a band from their lowest to their highest.
  The vertical axis ends at `top`, or is chosen by the values.
  """
  many = len(groups) > _MANY
  size = (_WIDE if len(names) > 1 or many else 7.2, 5.4 if many else 4.2)
  figure = Figure(size, layout="constrained")
  axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
  for ax, name in zip(axes, names, strict=True):
    for group in groups:
      rows = [row for row in group.states if row[name] is not None]
      seen = [row["num_seen"] for row in rows]
      (line,) = ax.plot(seen, [100 * row[name] for row in rows])
      if many:
        line.set(linewidth=1.3, markersize=4)
      if len(group.runs) > 1:
        values = np.array(
          [[row[name] for row in run.results["states"]] for run in group.runs], np.float64
        )
        values = 100 * values[:, ~np.isnan(values).any(axis=0)]  # null became NaN
        band = {"color": line.get_color(), "alpha": 0.15, "linewidth": 0}
        ax.fill_between(seen, values.min(0), values.max(0), **band)
    ax.set(title=SCORES[name].panel, xlabel="classes seen")
    ax.tick_params(labelleft=True)
    _class_ticks(ax, limit=20 // len(names))
  axes[0].set_ylabel("share of images (%)")
  top = top or max(5.0, *(ax.dataLim.y1 for ax in axes))
  axes[0].set_ylim(-0.03 * top, 1.04 * top)
  _legend(figure, axes[0], [group.label for group in groups])
  return figure


def heat_maps(groups: Groups) -> Figure:
  """Draws, for each group, where a state's test images go, in per cent of them."""

  def draw(ax: Axes, group: Group) -> None:
    counts = np.array(group.states[-1]["confusion"], dtype=np.float64)
    images = counts.sum(axis=1, keepdims=True)
    shares = 100 * counts / np.where(images, images, np.nan)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    ax.grid(visible=False)
    size = len(counts)
    ticks = np.arange(0, size, 1 + (size - 1) // 10)
    ax.set_xticks(ticks, ticks + 1)
    ax.set_yticks(ticks, ticks + 1)
    font = 9 if len(groups) <= _MANY else 7
    if size <= 10:
      for (row, column), share in np.ndenumerate(shares):
        text = "-" if math.isnan(share) else f"{share:.0f}"
        color = "white" if share > 65 else _INK
        ax.text(column, row, text, ha="center", va="center", fontsize=font, color=color)

  words = ("state of the predicted class", "state of the true class")
  figure = _panels(groups, draw, *words, height=4.4, layout="compressed")
  axes = figure.axes[:3] if len(groups) > _MANY else figure.axes[:2]
  bar = figure.colorbar(axes[0].images[0], ax=axes, shrink=0.8, pad=0.02)
  bar.set_label("share of the row's images (%)")
  return figure


def _score_figure(groups: Groups) -> Figure:
  names = ("score_new", "score_old")

  def draw(ax: Axes, group: Group) -> None:
    states = group.states
    seen = [row["num_seen"] for row in states]
    new, old = (
      np.array([row[name] for row in states], dtype=np.float64)  # null becomes NaN
      for name in names
    )
    ax.fill_between(seen, old, new, color="#999999", alpha=0.25, linewidth=0)
    ax.plot(seen, new, "-o", color=_COLORS[1])
    ax.plot(seen, old, "--s", color=_COLORS[0])
    _class_ticks(ax, limit=8)

  words = ("classes seen", "mean output (logit)")
  figure = _panels(groups, draw, *words, height=3.3, sharey=True)
  _legend(figure, figure.axes[0], [SCORES[name].title for name in names])
  return figure


def _loss_figure(groups: Groups) -> Figure:
  def draw(ax: Axes, group: Group) -> None:
    for run in group.runs:
      steps, losses, states = run.loss
      marker = "o" if len(steps) == 1 else ""
      width = 1.1 if len(group.runs) == 1 else 0.8
      ax.plot(steps, losses, linestyle="-", linewidth=width, marker=marker)
    starts = [0, *(np.flatnonzero(np.diff(states)) + 1)]
    for start in starts:
      ax.axvline(steps[start], color="#888888", linewidth=0.8, zorder=0)
      if len(starts) <= 10:
        # The word has room where panels are large and states few.
        word = not start and len(starts) <= 5 and len(groups) <= _MANY
        text = f"state {states[start]}" if word else f"{states[start]}"
        above = ax.get_xaxis_transform()
        ax.text(steps[start], 1.015, text, transform=above, fontsize=8.5)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))

  with matplotlib.rc_context({"axes.titlepad": 18}):  # room for the states' numbers
    return _panels(groups, draw, "optimizer step", "training loss", height=3.1)


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
  """Fills a panel for each group by `draw`, two a row, or three if there are many.

  The height is a panel's where there are two.
  """
  columns = 3 if len(groups) > _MANY else min(2, len(groups))
  height *= 0.7 if columns == 3 else 1
  rows = math.ceil(len(groups) / columns)
  width = _WIDE if columns > 1 else _NARROW
  figure = Figure((width, height * rows), layout=layout)
  axes = list(figure.subplots(rows, columns, sharey=sharey, squeeze=False).flat)
  for ax in axes[len(groups) :]:
    ax.remove()
  for ax, group in zip(axes, groups, strict=False):
    draw(ax, group)
    title = textwrap.fill(group.label, 92 // max(2, columns), break_on_hyphens=False)
    ax.set(title=title, xlabel=x_label, ylabel=y_label)
    ax.tick_params(labelleft=True)
  return figure


def _class_ticks(ax: Axes, *, limit: int) -> None:
  """Puts ticks where states end, or at round numbers if those are more than `limit`."""
  seen = {number for line in ax.get_lines() for number in line.get_xdata()}
  if len(seen) <= limit:
    ax.set_xticks(sorted(seen))
  else:
    ax.xaxis.set_major_locator(MaxNLocator(limit, integer=True, steps=[1, 2, 5, 10]))


def _legend(figure: Figure, ax: Axes, labels: Sequence[str]) -> None:
  """Puts a legend above the panels for the lines of one of them."""
  room = int(13 * figure.get_figwidth())  # characters of a line
  columns = max(1, min(len(labels), room // (max(map(len, labels)) + 6)))
  further_rows = math.ceil(len(labels) / columns) - 1
  figure.set_figheight(figure.get_figheight() + 0.2 * further_rows)
  figure.legend(ax.get_lines(), labels, loc="outside upper left", ncols=columns)
