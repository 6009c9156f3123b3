"""Draws curves, small panels and heat maps, laid out by hand, which takes little time."""

import math
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from ssil_jax.reports import figures
from ssil_jax.reports.aggregate import Group
from ssil_jax.reports.figures import COLORS, DASHES, MARKERS, SIDES, WIDE
from ssil_jax.reports.labels import shorten
from ssil_jax.reports.results import SCORES

Groups = Sequence[Group]

MANY = 7  # lines or panels; above this, all lines but those in question are grey
_MANY_CELLS = 20  # rows of a heat map; above this, it is an image
_NUMBERED = 10  # rows of a heat map; up to this, its cells hold numbers
_DARK_CELL = 62  # per cent; above this, the number in a cell is light
_FAINT = "#3d86c6"  # heat of images, which a theme does not change: seen on white and black
_LINE = 0.155  # inches, of a label
_CHARACTER = 0.083  # inches, of a label in a wide font
_LEGEND = 0.36  # inches


class Look(NamedTuple):
  """Says how the line of a group is drawn."""

  color: str
  marker: str
  dash: str
  width: float
  stands_out: bool


def looks(groups: Groups, highlight: str | None) -> list[Look]:
  """Returns how each group is drawn: by its method, and apart from others of it.

  Of many, all but those of the highlighted method are thin and grey.
  """
  seen: Counter[str] = Counter()
  mute = len(groups) > MANY and any(group.method == highlight for group in groups)
  found = []
  for number, group in enumerate(groups):
    stands_out = bool(highlight) and group.method == highlight
    grey = mute and not stands_out
    found.append(
      Look(
        COLORS["muted"] if grey else figures.color_of(group.title),
        "" if grey else MARKERS[number % len(MARKERS)],
        DASHES[seen[group.title] % len(DASHES)],
        1.0 if grey else 2.6 if stands_out else 1.6,
        stands_out,
      )
    )
    seen[group.title] += 1
  return found


def panel_title(name: str) -> str:
  """Returns the title of a panel with the curve of a score."""
  return SCORES[name].panel if name in SCORES else "Expected calibration error"


def curves(
  groups: Groups,
  names: Sequence[str],
  *,
  top: float | None = None,
  highlight: str | None = None,
) -> Figure:
  """Draws a panel for each score with a curve for each group, in per cent.

  The curve of several runs is their mean, in a band from their lowest to their highest.
  Labels are at the ends of the lines. The vertical axis ends at `top`, or is chosen by the
  values.
  """
  shown = [shorten(group.label) for group in groups] if len(groups) > 1 else []
  labels = [textwrap.fill(label, 24, break_on_hyphens=False) for label in shown]
  room = max((len(line) for label in labels for line in label.split("\n")), default=0)
  aside = 0.3 + _CHARACTER * room if labels else 0.0
  aside += 0.2 if len(names) == 1 else 0.45  # room for the numbers of the next panel
  lines = sum(label.count("\n") + 1 for label in labels)
  height = max(2.9, min(1.3 * lines * _LINE, 12.0))
  width = WIDE if len(names) > 1 else 5.2 + aside
  axes = _row(len(names), width, height, aside=aside)
  for ax, name in zip(axes, names, strict=True):
    for group, look in zip(groups, looks(groups, highlight), strict=True):
      rows = [row for row in group.states if row[name] is not None]
      seen = [row["num_seen"] for row in rows]
      ax.plot(
        seen,
        [100 * row[name] for row in rows],
        color=look.color,
        linestyle=look.dash,
        marker=look.marker if len(rows) > 1 else look.marker or "o",
        linewidth=look.width,
        markersize=4 if len(groups) > MANY else 5.5,
        markevery=max(1, len(rows) // 10),
        zorder=3 if look.stands_out else 2,
      )
      if len(group.runs) > 1 and look.marker:
        band(ax, group, name, look.color)
    ax.set(title=panel_title(name), xlabel="classes seen")
    class_ticks(ax, limit=20 // len(names))
  axes[0].set_ylabel("share of images (%)")
  top = top or max(5.0, *(ax.dataLim.y1 for ax in axes))
  for ax in axes:
    ax.set_ylim(-0.03 * top, 1.04 * top)
    if labels:
      _label_ends(ax, labels, looks(groups, highlight), height)
  return axes[0].figure


def _row(count: int, width: float, height: float, *, aside: float) -> list[Axes]:
  """Returns axes beside each other, each with room to its right; all in inches."""
  left, bottom, above = 0.62, 0.56, 0.38
  figure = Figure((width, height + bottom + above))
  total = figure.get_figheight()
  each = (width - left) / count
  return [
    figure.add_axes(
      (
        (left + number * each) / width,
        bottom / total,
        (each - aside) / width,
        height / total,
      )
    )
    for number in range(count)
  ]


def band(ax: Axes, group: Group, name: str, color: str) -> None:
  """Fills what lies between the lowest and the highest run of a group, in per cent."""
  values = np.array(
    [[row.get(name) for row in run.results["states"]] for run in group.runs], np.float64
  )
  known = ~np.isnan(values).any(axis=0)  # null became NaN
  seen = np.array([row["num_seen"] for row in group.states])[known]
  fill_range(ax, seen, 100 * values[:, known], color)


def fill_range(ax: Axes, x: np.ndarray, values: np.ndarray, color: str) -> None:
  """Fills what lies between the lowest and the highest of values [runs, len(x)].

  At a single place, which has no area, a bar stands for it.
  """
  if not len(x):
    return
  low, high = values.min(axis=0), values.max(axis=0)
  if len(x) == 1:
    ax.vlines(x, low, high, color=color, alpha=0.35, linewidth=4)
  else:
    ax.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)


def _label_ends(
  ax: Axes, labels: Sequence[str], looks_of: Sequence[Look], height: float
) -> None:
  """Writes the labels of lines at their ends, apart from each other; height in inches."""
  low, high = ax.get_ylim()
  left, right = ax.get_xlim()
  found = []
  for line, label, look in zip(ax.get_lines(), labels, looks_of, strict=True):
    if len(line.get_xdata()):
      x, y = line.get_xdata()[-1], line.get_ydata()[-1]
      end = (x - left) / (right - left), (y - low) / (high - low)
      found.append((end, label, look))
  found.sort(key=lambda item: item[0][1])
  sizes = [(label.count("\n") + 1) * _LINE / height for _, label, _ in found]
  places = spread_out([end[1] for end, _, _ in found], sizes, limits=(-0.08, 1.08))
  segments = []
  for (end, label, look), place in zip(found, places, strict=True):
    segments.append([(end[0] + 0.015, end[1]), (1.05, place)])
    ax.text(
      1.06,
      place,
      label,
      transform=ax.transAxes,
      va="center",
      fontsize=8.5,
      fontweight="bold" if look.stands_out else "normal",
      color=COLORS["soft"] if look.color == COLORS["muted"] else look.color,
    )
  ax.add_collection(
    LineCollection(
      segments,
      colors=[look.color for _, _, look in found],
      linewidths=0.6,
      transform=ax.transAxes,
      clip_on=False,
    ),
    autolim=False,
  )


def spread_out(
  wanted: Sequence[float], sizes: Sequence[float], *, limits: tuple[float, float]
) -> list[float]:
  """Moves the centres of labels, as little as can be, until none covers another.

  Labels that would overlap form a block about the mean of their wanted places, as in the
  pool-adjacent-violators algorithm.

  Args:
    wanted: centres, rising.
    sizes: heights in the same unit.
    limits: the lowest and the highest place that a label covers; if they do not fit, they
      start at the lowest.
  """
  offsets = [sum(sizes[:k]) + sizes[k] / 2 for k in range(len(sizes))]
  blocks: list[list[float]] = []  # of the places at which a block's labels have its start
  for place, offset in zip(wanted, offsets, strict=True):
    blocks.append([place - offset])
    while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
      last = blocks.pop()
      blocks[-1] += last
  low, high = limits[0], max(limits[0], limits[1] - sum(sizes))
  starts = [min(max(float(np.mean(block)), low), high) for block in blocks for _ in block]
  return [start + offset for start, offset in zip(starts, offsets, strict=True)]


def panels(
  groups: Groups,
  draw: Callable[[Axes, Group], None],
  x_label: str,
  y_label: str,
  *,
  height: float = 0.0,
  same_y: bool = False,
  legend: Sequence[tuple[str, str]] = (),
  above: float = 0.0,
) -> Figure:
  """Fills a panel for each group by `draw`, two a row, or more if there are many.

  Args:
    groups: in the order of their panels.
    draw: draws a group.
    x_label: of each column.
    y_label: of each row.
    height: inches of a panel where there are two a row; 0 for squares.
    same_y: whether all panels have one vertical axis.
    legend: labels, and of which classes each line is, old or new.
    above: inches between a panel and its title.
  """
  count = len(groups)
  many = count > MANY
  columns = min(2, count) if not many else 4 if count <= 12 else 5
  rows = math.ceil(count / columns)
  width = WIDE if columns > 1 else 6.4
  left, right = 0.74, 0.14
  across = 0.2 if many and same_y else 0.34 if many else 0.72
  panel = (width - left - right - across * (columns - 1)) / columns
  height = height * {1: 1, 2: 1, 4: 0.56, 5: 0.48}[columns] if height else min(panel, 4.0)
  letters = int((panel + across) / 0.09)
  titles = [
    textwrap.fill(shorten(group.label), letters, break_on_hyphens=False) for group in groups
  ]
  head = 0.18 + 0.18 * max(title.count("\n") + 1 for title in titles) + above
  below = 0.26 if many else 0.56
  top = _LEGEND if legend else 0.0
  total = top + rows * (head + height + below) + (0.26 if many else 0.0)
  figure = Figure((width, total))
  first: Axes | None = None
  for number, (group, title) in enumerate(zip(groups, titles, strict=True)):
    row, column = divmod(number, columns)
    down = top + head + row * (head + height + below)
    ax = figure.add_axes(
      (
        (left + column * (panel + across)) / width,
        1 - (down + height) / total,
        (height if not same_y and panel > height > 3.9 else panel) / width,
        height / total,
      ),
      sharey=first if same_y else None,
    )
    first = first or ax
    draw(ax, group)
    size = 9 if many else 10.5
    ax.set_title(title, fontsize=size, pad=5 + 72 * above)
    if not many or number >= count - columns:
      ax.set_xlabel(x_label)
    if not many or column == 0:
      ax.set_ylabel(y_label)
    ax.tick_params(
      labelleft=not same_y or not many or column == 0,
      left=not many,
      bottom=not many,
      labelsize=8 if many else 9,
    )
  if legend:
    lines = [
      Line2D([], [], color=COLORS[kind], **{**SIDES[kind], "marker": ""})
      for _, kind in legend
    ]
    figure.legend(
      lines,
      [label for label, _ in legend],
      loc="upper left",
      bbox_to_anchor=(0.04, 1 - 0.04 / total),
      ncols=len(legend),
    )
  return figure


def heat_map(ax: Axes, shares: np.ndarray, *, small: bool) -> None:
  """Draws shares in per cent; NaN is left blank above the diagonal, else a dash."""
  rows, columns = shares.shape
  if max(rows, columns) > _MANY_CELLS:
    rgba = np.empty((rows, columns, 4))
    rgba[..., :3] = to_rgb(_FAINT)
    rgba[..., 3] = np.nan_to_num(shares) / 100
    ax.imshow(rgba, interpolation="nearest")
  else:
    cells(ax, shares)
  ax.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
  ax.grid(visible=False)
  for ticks, size in ((ax.set_xticks, columns), (ax.set_yticks, rows)):
    places = np.arange(0, size, 1 + (size - 1) // (5 if small else 10))
    ticks(places, places + 1)
  if max(rows, columns) <= (6 if small else _NUMBERED):
    font = 7.5 if small or max(rows, columns) > 7 else 9
    numbers(ax, shares, fontsize=font, above_diagonal=False)


def cells(ax: Axes, shares: np.ndarray) -> None:
  """Fills a cell for each share by how large it is."""
  known = [place for place, share in np.ndenumerate(shares) if not math.isnan(share)]
  patches = [Rectangle((column - 0.48, row - 0.48), 0.96, 0.96) for row, column in known]
  color = to_rgb(COLORS["heat"])
  faces = [(*color, shares[place] / 100) for place in known]
  ax.add_collection(PatchCollection(patches, facecolors=faces, linewidths=0))


def numbers(
  ax: Axes, shares: np.ndarray, *, fontsize: float, above_diagonal: bool = True
) -> None:
  """Writes each share, and a dash where there is none, into its cell."""
  for (row, column), share in np.ndenumerate(shares):
    if not math.isnan(share) or above_diagonal or column <= row:
      text = "-" if math.isnan(share) else f"{share:.0f}"
      color = COLORS["on-heat" if share > _DARK_CELL else "ink"]
      ax.text(column, row, text, ha="center", va="center", fontsize=fontsize, color=color)


def class_ticks(ax: Axes, *, limit: int) -> None:
  """Puts ticks where states end, or at round numbers if those are more than `limit`."""
  seen = sorted({number for line in ax.get_lines() for number in line.get_xdata()})
  if len(seen) <= limit:
    ax.set_xticks(seen)
  else:
    low, high = ax.get_xlim()
    locator = MaxNLocator(limit, integer=True, steps=[1, 2, 5, 10])
    ax.set_xticks([tick for tick in locator.tick_values(low, high) if low <= tick <= high])
  ax.set_xlim(*ax.get_xlim())
