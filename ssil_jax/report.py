"""Results of one or several runs as tables, figures and one self-contained HTML page.

Reads what a run left in its work directory and needs neither JAX nor the data set. The
files may come from elsewhere, so everything in them is checked before it is used.
"""

import base64
import io
import json
import math
import reprlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import jinja2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from rich import box
from rich.table import Table
from rich.text import Text

from ssil_jax.errors import DataError, UserError

STATE_COLUMNS = (
  "state",
  "classes seen",
  "top-1",
  "top-5",
  "e(p,n)",
  "e(n,p)",
  "imbalance",
  "state-specific top-1",
  "training (s)",
)
COMPARISON_COLUMNS = (
  "run",
  "average top-1",
  "average top-5",
  "average imbalance",
  "last top-1",
  "last e(p,n)",
  "last e(n,p)",
  "training time",
)


class LossCurve(NamedTuple):
  """The training loss over the optimizer steps of a run."""

  steps: np.ndarray  # int64 [N], rising, counted over all states
  losses: np.ndarray  # float64 [N], NaN where the loss was not finite
  states: np.ndarray  # int64 [N], the state (from 1) of each step


class Run(NamedTuple):
  """What one work directory holds, checked."""

  workdir: Path
  results: dict[str, Any]  # results.json
  schedule: list[dict[str, Any]]  # schedule.json, empty if there is none
  loss: LossCurve | None  # from metrics.jsonl


class Plot(NamedTuple):
  """A figure of the page; `png` is None when there is nothing to draw."""

  name: str
  title: str
  alt: str
  caption: str
  png: bytes | None

  @property
  def uri(self) -> str:
    """The image as a data URI."""
    return "data:image/png;base64," + base64.b64encode(self.png or b"").decode("ascii")

  @property
  def width(self) -> int:
    """CSS pixels at which the text of the figure is as large as that of the page."""
    pixels = int.from_bytes((self.png or b"")[16:20], "big")  # of the PNG header
    return pixels * 5 // 8


# Reading ------------------------------------------------------------------------------

_REMEDY = "repeat the run, or leave this work directory out"
_LARGEST = float(np.finfo(np.float32).max)
_FRACTIONS = ("top1", "top5", "state_specific_top1")
_FRACTIONS_OR_NULL = ("error_old_as_new", "error_new_as_old", "imbalance")


def load_run(workdir: Path) -> Run:
  """Reads and checks the files of a work directory.

  Raises:
    DataError: one line that names the file, what is wrong in it and what to do.
  """
  workdir = Path(workdir)
  path = workdir / "results.json"
  if not path.is_file():
    raise DataError(
      f"{path} does not exist: give the work directory of a run that has finished at "
      "least one state"
    )
  results = _read_json(path)
  _check_results(path, results)
  return Run(workdir, results, _load_schedule(workdir), _load_loss(workdir))


def _wrong(path: Path, what: str) -> DataError:
  return DataError(f"{path}: {what}; {_REMEDY}")


def _read_text(path: Path) -> str:
  try:
    return path.read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
    raise _wrong(path, f"cannot be read ({reason})") from error


def _parse(text: str) -> Any:
  """JSON to Python; ValueError or RecursionError if it is none, NaN included."""

  def refuse(name: str):
    raise ValueError(f"{name} is no JSON number")

  return _printable(json.loads(text, parse_constant=refuse))


def _printable(value: Any) -> Any:
  """Replaces what could drive a terminal or break an encoding in all strings."""
  if isinstance(value, str):
    return "".join(char if char.isprintable() else "\ufffd" for char in value)
  if isinstance(value, list):
    return [_printable(item) for item in value]
  if isinstance(value, dict):
    return {_printable(key): _printable(item) for key, item in value.items()}
  return value


def _read_json(path: Path) -> Any:
  text = _read_text(path)
  try:
    return _parse(text)
  except (ValueError, RecursionError) as error:
    raise _wrong(path, f"is not valid JSON ({error})") from error


def _check_results(path: Path, results: Any) -> None:
  if not isinstance(results, dict):
    raise _wrong(path, "must hold a JSON object with the results of a run")
  for name in ("dataset", "method"):
    _check_text(path, results, name)
  if "method_title" in results:
    _check_text(path, results, "method_title")
  _check_number(path, results, "num_states", low=1, whole=True)
  for name in ("memory_size", "seed"):
    _check_number(path, results, name, low=0, whole=True)
  for name in ("num_classes", "ignored_files"):
    if name in results:
      _check_number(path, results, name, low=0, whole=True)
  _check_scalars(path, "environment", results.get("environment", {}))

  states = results.get("states")
  if not isinstance(states, list) or not states:
    raise _wrong(path, '"states" must be a list with at least one finished state')
  done, total = len(states), results["num_states"]
  if done > total:
    raise _wrong(path, f'"states" has {done} entries, but "num_states" is {total}')
  seen = 0
  for position, row in enumerate(states):
    _check_state(path, row, position, seen)
    seen = row["num_seen"]

  if not isinstance(results.get("average"), dict):
    raise _wrong(path, '"average" must be an object')
  for name in ("top1", "top5"):
    _check_number(path, results["average"], name, high=1, low=0, where="average.")
  _check_number(
    path, results["average"], "imbalance", high=1, low=0, where="average.", null=True
  )


def _check_state(path: Path, row: Any, position: int, seen: int) -> None:
  """Checks the row of one state; `seen`: classes seen in the state before."""
  where = f"states[{position}]"
  if not isinstance(row, dict):
    raise _wrong(path, f"{where} must be an object")
  for name in ("state", "num_old", "num_seen"):
    _check_number(path, row, name, low=0, whole=True, where=f"{where}.")
  if row["state"] != position + 1:
    raise _wrong(path, f"{where}.state is {row['state']}, must be {position + 1}")
  if row["num_old"] != seen or row["num_seen"] <= seen:
    raise _wrong(
      path,
      f"{where} must go from {seen} old classes to more, not from {row['num_old']} to "
      f"{row['num_seen']}",
    )
  for name in _FRACTIONS + _FRACTIONS_OR_NULL:
    null = name in _FRACTIONS_OR_NULL
    _check_number(path, row, name, low=0, high=1, where=f"{where}.", null=null)
  _check_number(path, row, "score_old", where=f"{where}.", null=True)
  _check_number(path, row, "score_new", where=f"{where}.")
  _check_number(path, row, "train_seconds", low=0, where=f"{where}.")
  if row.get("confusion") is not None:
    _check_confusion(path, row, f"{where}.")


def _check_confusion(path: Path, row: dict[str, Any], where: str) -> None:
  size, counts = row["state"], row["confusion"]
  lines = [counts, *counts] if isinstance(counts, list) else [None]
  if not all(isinstance(line, list) and len(line) == size for line in lines):
    raise _wrong(path, f"{where}confusion must be {size} lists of {size} counts")
  for line in counts:
    for column in range(size):
      cell = {"confusion": line[column]}
      _check_number(path, cell, "confusion", low=0, whole=True, where=where)


def _check_text(path: Path, row: dict[str, Any], name: str) -> None:
  if name not in row:
    raise _wrong(path, f'"{name}" is missing')
  if not isinstance(row[name], str):
    raise _wrong(path, f'"{name}" is {reprlib.repr(row[name])}, must be a string')


def _check_number(
  path: Path,
  row: dict[str, Any],
  name: str,
  *,
  low: float = -_LARGEST,
  high: float = _LARGEST,
  whole: bool = False,
  null: bool = False,
  where: str = "",
) -> None:
  """Raises DataError unless row[name] is a number in [low, high] or a null allowed."""
  if name not in row:
    raise _wrong(path, f'"{where}{name}" is missing')
  value = row[name]
  if value is None and null:
    return
  high = min(high, 2**53) if whole else high
  kinds = int if whole else (int, float)
  typed = isinstance(value, kinds) and not isinstance(value, bool)
  if typed and low <= value <= high:
    return
  wanted = "a whole number" if whole else "a number"
  if high == 1:
    wanted += f" from {low} to {high}"
  elif low >= 0:
    wanted += f", {low} or more"
  raise _wrong(path, f'"{where}{name}" is {reprlib.repr(value)}, must be {wanted}')


def _check_scalars(path: Path, where: str, row: Any) -> None:
  if not isinstance(row, dict):
    raise _wrong(path, f'"{where}" must be an object')
  for name, value in row.items():
    if not isinstance(value, str | int | float | None):
      raise _wrong(path, f'"{where}.{name}" must be a string or a number')


def _load_schedule(workdir: Path) -> list[dict[str, Any]]:
  path = workdir / "schedule.json"
  if not path.is_file():
    return []
  schedule = _read_json(path)
  if not isinstance(schedule, list):
    raise _wrong(path, "must hold a list with one object a state")
  for position, row in enumerate(schedule):
    _check_scalars(path, f"[{position}]", row)
    if row.keys() != schedule[0].keys():
      raise _wrong(path, f"[{position}] has other keys than [0]")
  return schedule


def _load_loss(workdir: Path) -> LossCurve | None:
  path = workdir / "metrics.jsonl"
  if not path.is_file():
    return None
  *lines, unfinished = _read_text(path).split("\n")
  # A resumed run writes the steps after its checkpoint again: the later line counts.
  by_step = {}
  for number, line in enumerate([*lines, unfinished], start=1):
    try:
      row = json.loads(line) if line.strip() else None
    except (ValueError, RecursionError) as error:
      if number > len(lines):  # cut off when the run was killed
        break
      raise _wrong(path, f"line {number} is not valid JSON") from error
    if row is None:
      continue
    if not isinstance(row, dict):
      raise _wrong(path, f"line {number} must be an object")
    for name in ("state", "step"):
      _check_number(path, row, name, low=0, whole=True, where=f"line {number}: ")
    by_step[row["step"]] = (row["state"], _finite_loss(path, row, number))
  if not by_step:
    return None
  steps = sorted(by_step)
  states, losses = zip(*(by_step[step] for step in steps), strict=True)
  return LossCurve(np.array(steps), np.array(losses), np.array(states))


def _finite_loss(path: Path, row: dict[str, Any], number: int) -> float:
  """The loss of a line; NaN if it is not finite, as in a run that diverged."""
  loss = row.get("loss")
  if isinstance(loss, float) and not abs(loss) <= _LARGEST:
    return math.nan
  _check_number(path, row, "loss", where=f"line {number}: ")
  return float(loss)


# Words and tables ---------------------------------------------------------------------


def run_labels(runs: Sequence[Run]) -> list[str]:
  """A label for each run: the method's title and, where shared, what differs.

  Runs of one title are told apart by data set, |M|, T and seed, then by the name of the
  folder, then by a number. A run with states to come says how many it has done.
  """
  titles = [_shorten(_title(run.results)) for run in runs]
  details: list[list[str]] = [[] for _ in runs]
  forms = {
    "dataset": "{}",
    "memory_size": "|M|={}",
    "num_states": "T={}",
    "seed": "seed {}",
  }
  for title in dict.fromkeys(titles):
    group = [i for i, other in enumerate(titles) if other == title]
    for name, form in forms.items():
      if len({runs[i].results[name] for i in group}) > 1:
        for i in group:
          details[i].append(form.format(_shorten(str(runs[i].results[name]))))
  for extra in (lambda i: _folder(runs[i]), lambda i: f"#{i + 1}"):
    keys = [(title, *detail) for title, detail in zip(titles, details, strict=True)]
    counts = Counter(keys)
    for i, key in enumerate(keys):
      if counts[key] > 1:
        details[i].append(extra(i))
  for run, detail in zip(runs, details, strict=True):
    if progress := _progress(run.results):
      detail.append(progress)
  return [
    f"{title} ({', '.join(detail)})" if detail else title
    for title, detail in zip(titles, details, strict=True)
  ]


def comparability_note(runs: Sequence[Run]) -> str:
  """One line on why the runs cannot be compared; empty if they can."""
  reasons = []
  datasets = list(dict.fromkeys(run.results["dataset"] for run in runs))
  if len(datasets) > 1:
    reasons.append(f"data sets ({', '.join(datasets)})")
  classes = [_num_classes(run.results) for run in runs]
  known = list(dict.fromkeys(number for number in classes if number is not None))
  if len(known) > 1:
    reasons.append(f"numbers of classes ({', '.join(map(str, known))})")
  if not reasons:
    return ""
  return f"These runs are not comparable: they have different {' and '.join(reasons)}."


def format_table(results: dict[str, Any]) -> Table:
  """The table of one run for the terminal: a row a state, then the averages.

  Args:
    results: the content of results.json; accuracies and errors are shown in per cent.
  """
  title = f"{_title(results)} on {results['dataset']}"
  if progress := _progress(results):
    title += f" ({progress})"
  *rows, average = _state_rows(results)
  table = _rich_table(STATE_COLUMNS, rows, title, "Accuracies and errors in %.")
  table.add_section()
  table.add_row(*(Text(cell) for cell in average))
  return table


def comparison_table(runs: Sequence[Run]) -> Table:
  """The table of several runs for the terminal, a row a run, accuracies in per cent."""
  caption = "Accuracies and errors in %; averages and last values over finished states."
  return _rich_table(COMPARISON_COLUMNS, _comparison_rows(runs), "Comparison", caption)


def _rich_table(
  columns: Sequence[str], rows: Sequence[Sequence[str]], title: str, caption: str
) -> Table:
  """A table in which only the first column, which may hold long names, gives way."""
  table = Table(
    title=Text(title),
    caption=caption,
    box=box.SIMPLE_HEAD,
    show_edge=False,
    padding=0,  # the nine columns of a run fit in a terminal of 80
  )
  table.add_column(columns[0], overflow="fold")
  for position, name in enumerate(columns[1:], start=1):
    words = [*name.split(), *(row[position] for row in rows)]
    table.add_column(name, justify="right", width=max(map(len, words)))
  for row in rows:
    table.add_row(*(Text(cell) for cell in row))
  return table


def _state_rows(results: dict[str, Any]) -> list[list[str]]:
  """Cells under STATE_COLUMNS; the last row holds the averages over the states done."""
  states, average = results["states"], results["average"]

  def mean(name: str) -> float | None:
    values = [row[name] for row in states if row[name] is not None]
    return fmean(values) if values else None

  rows = [
    [
      str(row["state"]),
      str(row["num_seen"]),
      *(_percent(row[name]) for name in ("top1", "top5")),
      *(_percent(row[name]) for name in _FRACTIONS_OR_NULL),
      _percent(row["state_specific_top1"]),
      f"{row['train_seconds']:.1f}",
    ]
    for row in states
  ]
  last = [
    "average",
    "",
    *(_percent(average[name]) for name in ("top1", "top5")),
    *(_percent(mean(name)) for name in ("error_old_as_new", "error_new_as_old")),
    _percent(average["imbalance"]),
    _percent(mean("state_specific_top1")),
    f"{mean('train_seconds'):.1f}",
  ]
  return [*rows, last]


def _comparison_rows(runs: Sequence[Run]) -> list[list[str]]:
  """Cells under COMPARISON_COLUMNS."""
  rows = []
  for run, label in zip(runs, run_labels(runs), strict=True):
    average, last = run.results["average"], run.results["states"][-1]
    rows.append(
      [
        label,
        *(_percent(average[name]) for name in ("top1", "top5", "imbalance")),
        *(_percent(last[n]) for n in ("top1", "error_old_as_new", "error_new_as_old")),
        _duration(sum(row["train_seconds"] for row in run.results["states"])),
      ]
    )
  return rows


def _facts(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
  """What was run: (name, value of each run), for the first table of the page."""

  def fact(name: str, value: Callable[[Run], Any]) -> tuple[str, list[str]]:
    return name, [_cell(value(run)) for run in runs]

  facts = [
    fact("data set", lambda run: run.results["dataset"]),
    fact("method", lambda run: _title(run.results)),
    fact("states T", lambda run: run.results["num_states"]),
    fact("states finished", lambda run: len(run.results["states"])),
    fact("classes", lambda run: _num_classes(run.results)),
    fact("exemplar memory |M|", lambda run: run.results["memory_size"]),
    fact("seed", lambda run: run.results["seed"]),
    fact("folder", _folder),
  ]
  if any("ignored_files" in run.results for run in runs):
    facts.append(fact("files ignored", lambda run: run.results.get("ignored_files")))
  names = [name for run in runs for name in run.results.get("environment", {})]
  for name in dict.fromkeys(names):
    values = [run.results.get("environment", {}).get(name) for run in runs]
    facts.append((name.replace("_", " "), [_cell(value) for value in values]))
  return facts


def _title(results: dict[str, Any]) -> str:
  return results.get("method_title") or results["method"]


def _progress(results: dict[str, Any]) -> str:
  """For a run with states to come, how many are done; else empty."""
  done, total = len(results["states"]), results["num_states"]
  return f"{done} of {total} states" if done < total else ""


def _num_classes(results: dict[str, Any]) -> int | None:
  """Classes of the whole run; None if an unfinished run does not say."""
  if "num_classes" in results:
    return results["num_classes"]
  return None if _progress(results) else results["states"][-1]["num_seen"]


def _folder(run: Run) -> str:
  return _shorten(_printable(run.workdir.resolve().name))


def _shorten(text: str) -> str:
  return text if len(text) <= 40 else text[:39] + "\N{HORIZONTAL ELLIPSIS}"


def _percent(fraction: float | None) -> str:
  return "-" if fraction is None else f"{100 * fraction:.1f}"


def _cell(value: Any) -> str:
  if value is None or value == "":
    return "-"
  return f"{value:.6g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
  if seconds < 59.95:
    return f"{seconds:.1f}s"
  minutes, rest = divmod(round(seconds), 60)
  if minutes < 60:
    return f"{minutes}m {rest:02d}s"
  return f"{minutes // 60}h {minutes % 60:02d}m"


# Figures ------------------------------------------------------------------------------

# Okabe and Ito's colours, which colour-blind readers can tell apart, less the yellow.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
_INK = "#222222"
_PAPER_WIDTH = 9.6  # inches; 960 CSS pixels in the page


def _plots(runs: Sequence[Run]) -> list[Plot]:
  """All figures of the page, in its order."""
  labels = run_labels(runs)
  return [
    _accuracy_plot(runs, labels),
    _errors_plot(runs, labels),
    _confusion_plot(runs, labels),
    _scores_plot(runs, labels),
    _state_specific_plot(runs, labels),
    _loss_plot(runs, labels),
  ]


def _with_old_classes(
  runs: Sequence[Run], labels: Sequence[str]
) -> tuple[list[tuple[str, Run]], str]:
  """Runs that reached state 2, with their labels, and a sentence on the others."""
  pairs = list(zip(labels, runs, strict=True))
  reached = [(label, run) for label, run in pairs if len(run.results["states"]) > 1]
  others = [label for label, run in pairs if len(run.results["states"]) == 1]
  left_out = f" Not drawn, with one state only: {', '.join(others)}." if others else ""
  return reached, left_out


def _accuracy_plot(runs: Sequence[Run], labels: Sequence[str]) -> Plot:
  panels = {"top1": "Top-1 accuracy", "top5": "Top-5 accuracy"}
  return Plot(
    "accuracy",
    "Accuracy",
    "Two line charts of top-1 and top-5 accuracy by number of classes seen. "
    + _last_values(runs, labels, "top1", "Last top-1"),
    "Share of the test images of all classes seen so far whose class is the best "
    "prediction (top-1) or among the five best (top-5). Higher is better; it falls as "
    "classes are added and earlier ones are forgotten.",
    _png(_curves(runs, labels, panels, "accuracy (%)", accuracy=True)),
  )


def _errors_plot(runs: Sequence[Run], labels: Sequence[str]) -> Plot:
  panels = {
    "error_old_as_new": "e(p,n): old classes taken for new",
    "error_new_as_old": "e(n,p): new classes taken for old",
  }
  caption = (
    "e(p,n) is the share of old-class test images predicted as a new class, e(n,p) the "
    "share of new-class images predicted as an old one. A method is balanced when both "
    "are equal; a high e(p,n) with a low e(n,p) is a bias towards the new classes."
  )
  reached, left_out = _with_old_classes(runs, labels)
  figure = _curves(runs, labels, panels, "share of images (%)") if reached else None
  return Plot(
    "errors",
    "Confusion between old and new classes",
    "Two line charts of e(p,n) and e(n,p) by number of classes seen. "
    + _last_values(runs, labels, "error_old_as_new", "Last e(p,n)")
    + " "
    + _last_values(runs, labels, "error_new_as_old", "Last e(n,p)"),
    caption + left_out,
    _png(figure),
  )


def _state_specific_plot(runs: Sequence[Run], labels: Sequence[str]) -> Plot:
  panels = {"state_specific_top1": "State-specific top-1 accuracy"}
  return Plot(
    "state_specific",
    "State-specific accuracy",
    "Line chart of state-specific top-1 accuracy by number of classes seen. "
    + _last_values(runs, labels, "state_specific_top1", "Last value"),
    "Accuracy when only the classes of the image's own state compete, averaged over "
    "the states. If it stays high while top-1 falls, the classes are still known and "
    "the errors come from scores on different scales in different states.",
    _png(_curves(runs, labels, panels, "accuracy (%)", accuracy=True)),
  )


def _confusion_plot(runs: Sequence[Run], labels: Sequence[str]) -> Plot:
  reached, left_out = _with_old_classes(runs, labels)
  shown, absent = [], []
  for label, run in reached:
    counts = run.results["states"][-1].get("confusion")
    if counts is None:
      absent.append(label)
    else:
      shown.append((label, np.array(counts, dtype=np.float64)))
  caption = (
    "After the last finished state: each row holds the test images of the classes that "
    "one state added, each column the state of the predicted class, in per cent of the "
    "row. All on the diagonal is best; a dark last column is a bias to new classes."
  )
  caption += left_out
  if absent:
    caption += f" Not drawn, for want of confusion counts: {', '.join(absent)}."
  return Plot(
    "confusion",
    "Confusion between states",
    "Heat maps of the state of the true class against that of the predicted class, one "
    "a run, after the last finished state. The counts are in results.json.",
    caption,
    _png(_confusion_figure(shown) if shown else None),
  )


def _confusion_figure(panels: Sequence[tuple[str, np.ndarray]]) -> Figure:
  figure, axes = _grid(len(panels), width=4.8, height=4.4, square=True)
  for ax, (label, counts) in zip(axes, panels, strict=True):
    images = counts.sum(axis=1, keepdims=True)
    shares = 100 * counts / np.where(images, images, np.nan)
    heat = ax.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    _frame(ax, label, "state of the predicted class", "state of the true class")
    size = len(counts)
    ticks = np.arange(0, size, 1 + (size - 1) // 10)
    ax.set_xticks(ticks, ticks + 1)
    ax.set_yticks(ticks, ticks + 1)
    if size <= 10:
      for (row, column), share in np.ndenumerate(shares):
        text = "-" if math.isnan(share) else f"{share:.0f}"
        color = "white" if share > 65 else _INK
        ax.text(column, row, text, ha="center", va="center", fontsize=9, color=color)
  bar = figure.colorbar(heat, ax=axes[:2], shrink=0.8, pad=0.02)
  bar.set_label("share of the row's images (%)", fontsize=9.5, color=_INK)
  bar.ax.tick_params(labelsize=9, colors=_INK)
  return figure


def _scores_plot(runs: Sequence[Run], labels: Sequence[str]) -> Plot:
  reached, left_out = _with_old_classes(runs, labels)
  caption = (
    "Network output averaged over all test images, separately for the old and the new "
    "classes. The shaded gap shows how much the new classes are favoured; close "
    "together is balanced."
  )
  return Plot(
    "scores",
    "Score gap",
    "Line charts of the mean network output of old and of new classes by number of "
    "classes seen, one a run. " + _last_gaps(runs, labels),
    caption + left_out,
    _png(_scores_figure(reached) if reached else None),
  )


def _scores_figure(panels: Sequence[tuple[str, Run]]) -> Figure:
  figure, axes = _grid(
    len(panels), width=4.8, height=3.3, single_width=6.4, sharey=True
  )
  for ax, (label, run) in zip(axes, panels, strict=True):
    states = run.results["states"]
    seen = [row["num_seen"] for row in states]
    old, new = (
      np.array([row[name] for row in states], dtype=np.float64)  # null becomes NaN
      for name in ("score_old", "score_new")
    )
    ax.fill_between(seen, old, new, color="#999999", alpha=0.25, linewidth=0)
    style = {"linewidth": 1.8, "markersize": 5.5}
    ax.plot(seen, new, "-o", color=_COLORS[1], label="new classes", **style)
    ax.plot(seen, old, "--s", color=_COLORS[0], label="old classes", **style)
    _frame(ax, label, "classes seen", "mean output (logit)")
    _class_ticks(ax, seen, limit=8)
  _legend(figure, *axes[0].get_legend_handles_labels())
  return figure


def _loss_plot(runs: Sequence[Run], labels: Sequence[str]) -> Plot:
  pairs = list(zip(labels, runs, strict=True))
  shown = [(label, run.loss) for label, run in pairs if run.loss]
  absent = [label for label, run in pairs if not run.loss]
  caption = (
    "Loss of the training batches over the optimizer steps; a vertical line marks the "
    "first step of a state. Losses of different methods have different terms, so "
    "compare their course, not their height."
  )
  if absent:
    caption += f" No metrics.jsonl, hence no curve: {', '.join(absent)}."
  return Plot(
    "loss",
    "Training loss",
    "Line charts of the training loss over the optimizer steps, one a run.",
    caption,
    _png(_loss_figure(shown) if shown else None),
  )


def _loss_figure(curves: Sequence[tuple[str, LossCurve]]) -> Figure:
  figure, axes = _grid(len(curves), width=4.8, height=3.1, single_width=_PAPER_WIDTH)
  for ax, (label, loss) in zip(axes, curves, strict=True):
    marker = "o" if len(loss.steps) == 1 else ""
    ax.plot(loss.steps, loss.losses, color=_COLORS[0], linewidth=1.1, marker=marker)
    starts = [0, *(np.flatnonzero(np.diff(loss.states)) + 1)]
    for start in starts:
      step, state = loss.steps[start], loss.states[start]
      ax.axvline(step, color="#888888", linewidth=0.8, zorder=0)
      if len(starts) <= 10:
        name = str(state) if start else f"state {state}"
        above = ax.get_xaxis_transform()
        ax.text(step, 1.015, name, transform=above, fontsize=8.5, color=_INK)
    _frame(ax, label, "optimizer step", "training loss", title_pad=18)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
  return figure


def _curves(
  runs: Sequence[Run],
  labels: Sequence[str],
  panels: dict[str, str],
  y_label: str,
  *,
  accuracy: bool = False,
) -> Figure:
  """One panel a measure (name -> title), one curve a run, in per cent."""
  width = _PAPER_WIDTH if len(panels) > 1 else 7.2
  figure = _figure(width, 4.2)
  axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
  highest, seen = 0.0, set()
  for ax, (name, title) in zip(axes, panels.items(), strict=True):
    for i, run in enumerate(runs):
      rows = [row for row in run.results["states"] if row[name] is not None]
      values = [100 * row[name] for row in rows]
      highest = max([highest, *values])
      classes = [row["num_seen"] for row in rows]
      seen.update(classes)
      ax.plot(
        classes,
        values,
        color=_COLORS[i % len(_COLORS)],
        marker=_MARKERS[i % len(_MARKERS)],
        markersize=5.5,
        linewidth=1.8,
      )
    _frame(ax, title, "classes seen", y_label if ax is axes[0] else "")
    _class_ticks(ax, seen, limit=10 if len(panels) > 1 else 20)
  top = 100.0 if accuracy else min(100.0, max(5.0, highest))
  axes[0].set_ylim(-0.03 * top, 1.04 * top)
  _legend(figure, axes[0].get_lines(), labels)
  return figure


def _figure(width: float, height: float, *, square: bool = False) -> Figure:
  """An empty figure, sizes in inches; `square`: its panels keep their aspect ratio."""
  engine = ConstrainedLayoutEngine(h_pad=0.09, w_pad=0.09, compress=square)
  return Figure(figsize=(width, height), dpi=160, layout=engine)


def _grid(
  count: int,
  *,
  width: float,
  height: float,
  single_width: float | None = None,
  sharey: bool = False,
  square: bool = False,
) -> tuple[Figure, list[Axes]]:
  """A figure of `count` panels, two a row; sizes of a panel are in inches."""
  columns = min(2, count)
  rows = math.ceil(count / columns)
  wide = single_width if count == 1 and single_width else width * columns
  figure = _figure(wide, height * rows, square=square)
  axes = list(figure.subplots(rows, columns, sharey=sharey, squeeze=False).flat)
  for ax in axes[count:]:
    ax.remove()
  return figure, axes[:count]


def _frame(
  ax: Axes, title: str, x_label: str, y_label: str, *, title_pad: float = 7
) -> None:
  style = {"fontsize": 10.5, "fontweight": "bold", "color": _INK}
  ax.set_title(_wrapped(title), loc="left", pad=title_pad, **style)
  ax.set_xlabel(x_label, fontsize=9.5, color=_INK)
  ax.set_ylabel(y_label, fontsize=9.5, color=_INK)
  ax.tick_params(labelsize=9, colors=_INK, labelleft=True)
  ax.spines[["top", "right"]].set_visible(False)
  if not ax.images:
    ax.grid(axis="y", color="#dddddd", linewidth=0.7)
    ax.set_axisbelow(True)


def _class_ticks(ax: Axes, seen: Collection[int], *, limit: int) -> None:
  """Ticks where states end, or round numbers if those are more than `limit`."""
  if len(seen) <= limit:
    ax.set_xticks(sorted(seen))
  else:
    ax.xaxis.set_major_locator(MaxNLocator(limit, integer=True, steps=[1, 2, 5, 10]))


def _legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
  longest = max(len(label) for label in labels)
  room = int(13 * figure.get_figwidth())  # characters of a line
  figure.legend(
    handles,
    [_literal(label) for label in labels],
    loc="outside upper left",
    ncols=max(1, min(len(labels), room // (longest + 6))),
    frameon=False,
    fontsize=9.5,
    labelcolor=_INK,
  )


def _wrapped(title: str) -> str:
  """A panel's title in lines short enough for a panel of half the page."""
  lines = [""]
  for word in title.split(" "):
    if lines[-1] and len(lines[-1]) + 1 + len(word) > 46:
      lines.append(word)
    else:
      lines[-1] = f"{lines[-1]} {word}".strip()
  return _literal("\n".join(lines))


def _literal(text: str) -> str:
  """Text that matplotlib draws as it is: no formulas, no hidden legend entries."""
  text = text.replace("$", r"\$")
  return f" {text}" if text.startswith("_") else text


def _last_values(
  runs: Sequence[Run], labels: Sequence[str], name: str, what: str
) -> str:
  values = [
    f"{label} {_percent(run.results['states'][-1][name])} %"
    for run, label in zip(runs, labels, strict=True)
    if run.results["states"][-1][name] is not None
  ]
  return f"{what}: {', '.join(values)}." if values else ""


def _last_gaps(runs: Sequence[Run], labels: Sequence[str]) -> str:
  gaps = []
  for run, label in zip(runs, labels, strict=True):
    last = run.results["states"][-1]
    if last["score_old"] is not None:
      gaps.append(f"{label} {last['score_new'] - last['score_old']:.2f}")
  return f"Last gap, new minus old: {', '.join(gaps)}." if gaps else ""


def _png(figure: Figure | None) -> bytes | None:
  if figure is None:
    return None
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", facecolor="white")
  return buffer.getvalue()


# Page ---------------------------------------------------------------------------------


def write_report(workdirs: Sequence[Path], output: Path) -> Path:
  """Writes the page and, next to it, its figures as PNG files.

  Args:
    workdirs: work directories of runs, in the order in which they are shown.
    output: the HTML file; figures go to the folder `figures` beside it.

  Returns:
    `output`.

  Raises:
    DataError: a file of a work directory is missing or wrong.
    UserError: there is no work directory, or the page cannot be written.
  """
  output = Path(output)
  if not workdirs:
    raise UserError("there is nothing to report: give at least one work directory")
  runs = [load_run(workdir) for workdir in workdirs]
  plots = _plots(runs)
  page = _render(runs, plots)
  try:
    folder = output.parent / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for plot in plots:
      path = folder / f"{plot.name}.png"
      if plot.png is None:
        path.unlink(missing_ok=True)  # of an earlier report, which had that figure
      else:
        path.write_bytes(plot.png)
    output.write_text(page, encoding="utf-8")
  except OSError as error:
    raise UserError(
      f"{error.filename or output} cannot be written ({error.strerror}): choose "
      "another place for the report"
    ) from error
  return output


def _render(runs: Sequence[Run], plots: Sequence[Plot]) -> str:
  labels = run_labels(runs)
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("ssil_jax"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  return environment.get_template("report.html.jinja").render(
    title=_page_title(runs),
    note=comparability_note(runs),
    unfinished=[
      label for run, label in zip(runs, labels, strict=True) if _progress(run.results)
    ],
    labels=labels,
    facts=_facts(runs),
    comparison_columns=COMPARISON_COLUMNS,
    comparison_rows=_comparison_rows(runs),
    plots=plots,
    state_columns=STATE_COLUMNS,
    state_tables=[_state_rows(run.results) for run in runs],
    schedules=[
      [[_cell(value) for value in row.values()] for row in run.schedule] for run in runs
    ],
    schedule_columns=[list(run.schedule[0]) if run.schedule else [] for run in runs],
  )


def _page_title(runs: Sequence[Run]) -> str:
  titles = ", ".join(dict.fromkeys(_title(run.results) for run in runs))
  datasets = ", ".join(dict.fromkeys(run.results["dataset"] for run in runs))
  return f"{titles} on {datasets}"
