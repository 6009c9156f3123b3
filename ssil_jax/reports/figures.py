"""Gives all figures one look, and writes them as PNG and SVG.

A colour means one thing wherever it is drawn: a method has its own, and so have old and new
classes, which differ in their lines, too. The page draws the same figures with the dark
colours in a dark theme.
"""

import io
import warnings
import zlib

import matplotlib
import matplotlib.figure
from cycler import cycler

from ssil_jax.reports.blocks import Figure

# Name -> colour on white, of at least 3:1. The names are CSS variables of the page.
COLORS = {
  "ink": "#1b1f27",
  "soft": "#515967",
  "muted": "#8b95a1",  # lines beside those in question
  "line": "#d8dde4",
  "old": "#0072b2",  # Okabe and Ito's blue and vermilion
  "new": "#d55e00",
  "heat": "#0b3c75",  # shares in heat maps, by opacity
  "on-heat": "#fefefe",
}
_DARK = {
  "ink": "#e8ebf0",
  "soft": "#a5aebb",
  "muted": "#76808d",
  "line": "#363e4a",
  "old": "#5db7fb",
  "new": "#ff9a4d",
  "heat": "#8fc4f7",
  "on-heat": "#000000",
}
# No 16 colours can be told apart by all readers: figures label their lines, too.
_METHODS = {
  "SS-IL": ("#c2003c", "#ff7d92"),
  "SS-IL + TKD": ("#ad007a", "#f77ac9"),
  "SS-IL, calibrated": ("#700085", "#d071e8"),
  "SS-IL + TKD, calibrated": ("#00708a", "#5cc4dd"),
  "FT": ("#701f00", "#de8366"),
  "FT w/ SS": ("#a36670", "#eba9b3"),
  "FT w/ RP": ("#8f6d00", "#d9b13b"),
  "EEIL": ("#008500", "#60cb5a"),
  "BiC": ("#5c3db8", "#a898ff"),
  "IL2M": ("#009985", "#4fd6bf"),
  "WA": ("#85853a", "#c9ca7a"),
  "LwF": ("#005214", "#6cb271"),
  "iCaRL": ("#2f3fc4", "#8f9dff"),
  "LUCIR": ("#a300d6", "#d88cfd"),
  "DER++": ("#b85cb8", "#f0a5f0"),
  "ER-ACE": ("#5d7a00", "#a9cf3c"),
  "ER": ("#996300", "#e0a84a"),
  "GEM": ("#00567a", "#6fb7e0"),
  "A-GEM": ("#3f87a6", "#9fd3ea"),
  "EWC": ("#7a4b8f", "#c9a2da"),
  "SI": ("#b84a8a", "#f29bc9"),
  "RWalk": ("#8a3ffc", "#be95ff"),
  "VCL": ("#a2485f", "#ee97ab"),
  "UCL": ("#38619c", "#8db6ee"),
  "PODNet": ("#007d48", "#42be65"),
  "GDumb": ("#6f6054", "#c7b7a8"),
  "NCM": ("#9c3d2e", "#f0917f"),
  "GD": ("#3a6ea5", "#8fbce6"),
  "FearNet": ("#2e6b5e", "#7fcdb8"),
  "cGAN features": ("#8c2f6b", "#e58cc6"),
  "DGR": ("#1f7a3a", "#7bd49a"),
  "Joint": ("#4a4f57", "#b9c0ca"),
  "Joint, all classes at once": ("#6b7079", "#9aa2ad"),
}
_OTHERS = (
  ("#a0522d", "#e69a6f"),
  ("#7474e6", "#b9bcff"),
  ("#a8005c", "#ff86bd"),
  ("#3f6f4f", "#93c9a4"),
)

# Lines about images or scores of old and of new classes, in every figure: e(p,n) is of old
# classes, whose images are taken for new ones.
SIDES = {
  "old": {"linestyle": "--", "marker": "s"},
  "new": {"linestyle": "-", "marker": "o"},
}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
DASHES = ("-", "--", ":", "-.")
WIDE = 9.6  # inches; 920 CSS pixels in the page
STYLE = {
  "axes.axisbelow": True,
  "axes.edgecolor": COLORS["soft"],
  "axes.facecolor": "none",
  "axes.grid": True,
  "axes.grid.axis": "y",
  "axes.labelcolor": COLORS["ink"],
  "axes.labelsize": 9.5,
  "axes.prop_cycle": cycler(color=[light for light, _ in (*_METHODS.values(), *_OTHERS)]),
  "axes.spines.right": False,
  "axes.spines.top": False,
  "axes.titlecolor": COLORS["ink"],
  "axes.titlelocation": "left",
  "axes.titlepad": 7,
  "axes.titlesize": 10.5,
  "axes.titleweight": "bold",
  "figure.constrained_layout.h_pad": 0.09,
  "figure.constrained_layout.w_pad": 0.09,
  "figure.dpi": 160,
  "figure.facecolor": "white",
  "grid.color": COLORS["line"],
  "grid.linewidth": 0.7,
  "legend.fontsize": 9.5,
  "legend.frameon": False,
  "lines.linewidth": 1.8,
  "lines.markersize": 5.5,
  "svg.fonttype": "none",  # text stays text
  "svg.hashsalt": "ssil_jax",  # the same figure, the same file
  "text.color": COLORS["ink"],
  "text.parse_math": False,  # labels come from files
  "xtick.color": COLORS["soft"],
  "xtick.labelcolor": COLORS["ink"],
  "xtick.labelsize": 9,
  "ytick.color": COLORS["soft"],
  "ytick.labelcolor": COLORS["ink"],
  "ytick.labelsize": 9,
}


def color_of(method_title: str) -> str:
  """Returns the colour of a method, by its title: always the same, also one unknown."""
  return _pair(method_title)[0]


def _pair(title: str) -> tuple[str, str]:
  return _METHODS.get(title) or _OTHERS[zlib.crc32(title.encode()) % len(_OTHERS)]


def theme(*, dark: bool) -> dict[str, str]:
  """Returns the CSS variables of all colours, name -> value, in one of two themes."""
  pairs = (*_METHODS.values(), *_OTHERS)
  methods = {f"m{number}": pair[dark] for number, pair in enumerate(pairs)}
  named = (_DARK if dark else COLORS) | methods
  return {f"--{name}": value for name, value in named.items()}


def variables() -> dict[str, str]:
  """Returns what stands for each colour of a file in the page: hex -> CSS value."""
  known = {value: f"var({name})" for name, value in theme(dark=False).items()}
  return known | {"#ffffff": "none", "#000000": "currentColor"}


def save(
  figure: matplotlib.figure.Figure, *, name: str, title: str, caption: str, alt: str
) -> Figure:
  """Renders a figure as SVG, with its text as text, and as PNG of 160 pixels an inch.

  Args:
    figure: drawn under `matplotlib.rc_context(STYLE)`.
    name: of its files, without ending: [a-z0-9_]+.
    title: of the figure, above it.
    caption: below it.
    alt: what it shows, for those who do not see it.
  """
  files = {}
  with matplotlib.rc_context(STYLE), warnings.catch_warnings():
    # A box stands for a character that the font lacks; the page has it as text.
    warnings.filterwarnings("ignore", "Glyph .* missing from font")
    for kind, metadata in (("svg", {"Date": None}), ("png", {})):
      buffer = io.BytesIO()
      figure.savefig(buffer, format=kind, metadata=metadata, dpi=STYLE["figure.dpi"])
      files[kind] = buffer.getvalue()
      figure.set_layout_engine("none")  # it is laid out, for which most of the time goes
  return Figure(name, title, caption, alt, **files)
