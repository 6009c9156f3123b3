"""Results of runs as rows of text, and as tables for the terminal."""

from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from ssil_jax.results import Run

STATE_COLUMNS = (
  "state",
  "classes",
  "top-1",
  "top-5",
  "e(p,n)",
  "e(n,p)",
  "imbalance",
  "own-state",
  "seconds",
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
_FRACTIONS = (
  "top1",
  "top5",
  "error_old_as_new",
  "error_new_as_old",
  "imbalance",
  "state_specific_top1",
)
_DISTINCTIONS = {
  "dataset": "{}",
  "memory_size": "|M|={}",
  "num_states": "T={}",
  "seed": "seed {}",
}


def run_labels(runs: Sequence[Run]) -> list[str]:
  """A label for each run: the method's title and, where shared, what differs.

  Runs of one title are told apart by data set, |M|, T and seed, then by the name of the
  folder, then by a number. A run with states to come says how many it has done.
  """
  labels = []
  for results in (run.results for run in runs):
    title = results["method_title"]
    rivals = [run.results for run in runs if run.results["method_title"] == title]
    details = [
      form.format(_shorten(str(results[name])))
      for name, form in _DISTINCTIONS.items()
      if any(rival[name] != results[name] for rival in rivals)
    ]
    labels.append((_shorten(title), *details))
  folders = [_shorten(run.folder) for run in runs]
  for extras in (folders, [f"#{number}" for number in range(1, len(runs) + 1)]):
    counts = Counter(labels)
    labels = [
      (*label, extra) if counts[label] > 1 else label
      for label, extra in zip(labels, extras, strict=True)
    ]
  texts = []
  for run, (title, *details) in zip(runs, labels, strict=True):
    details += filter(None, [progress(run.results)])
    texts.append(f"{title} ({', '.join(details)})" if details else title)
  return texts


def progress(results: dict[str, Any]) -> str:
  """For a run with states to come, how many are done; else empty."""
  done, total = len(results["states"]), results["num_states"]
  return f"{done} of {total} states" if done < total else ""


def comparability_note(runs: Sequence[Run]) -> str:
  """One line on why the runs cannot be compared; empty if they can."""
  reasons = []
  for name, what in (("dataset", "data sets"), ("num_classes", "numbers of classes")):
    values = list(dict.fromkeys(str(run.results[name]) for run in runs))
    if len(values) > 1:
      reasons.append(f"{what} ({', '.join(values)})")
  if not reasons:
    return ""
  return f"These runs are not comparable: they have different {' and '.join(reasons)}."


def format_table(results: dict[str, Any]) -> Table:
  """The table of one run for the terminal: a row a state, then the averages.

  Args:
    results: the content of results.json; accuracies and errors are shown in per cent.
  """
  title = f"{results['method_title']} on {results['dataset']}"
  if done := progress(results):
    title += f" ({done})"
  caption = (
    "Accuracies and errors in %; own-state: top-1 among the classes\n"
    "of the image's own state; seconds: time of training."
  )
  *rows, average = state_rows(results)
  table = _rich_table(STATE_COLUMNS, rows, title, caption)
  table.add_section()
  table.add_row(*map(Text, average))
  return table


def comparison_table(runs: Sequence[Run]) -> Table:
  """The table of several runs for the terminal, a row a run, accuracies in per cent."""
  caption = "Accuracies and errors in %;\naverages and last values over finished states."
  return _rich_table(COMPARISON_COLUMNS, comparison_rows(runs), "Comparison", caption)


def state_rows(results: dict[str, Any]) -> list[list[str]]:
  """Cells under STATE_COLUMNS; the last row holds the averages over the states done."""
  states = results["states"]

  def mean(name: str) -> float | None:
    values = [row[name] for row in states if row[name] is not None]
    return fmean(values) if values else None

  rows = [(str(row["state"]), str(row["num_seen"]), row) for row in states]
  means = {name: mean(name) for name in (*_FRACTIONS, "train_seconds")}
  rows.append(("average", "", {**means, **results["average"]}))
  return [
    [
      state,
      classes,
      *(_percent(row[name]) for name in _FRACTIONS),
      f"{row['train_seconds']:.1f}",
    ]
    for state, classes, row in rows
  ]


def comparison_rows(runs: Sequence[Run]) -> list[list[str]]:
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


def _rich_table(
  columns: Sequence[str], rows: Sequence[Sequence[str]], title: str, caption: str
) -> Table:
  """A table in which only the first column, which may hold long names, gives way."""
  table = Table(
    title=Text(title),
    caption=caption,
    box=box.SIMPLE_HEAD,
    show_edge=False,
    pad_edge=False,
    padding=(0, 1, 0, 0),  # the nine columns of a run fit in a terminal of 80
  )
  table.add_column(columns[0], overflow="fold")
  for name, *cells in zip(columns[1:], *(row[1:] for row in rows), strict=True):
    words = [*name.split(), *cells]
    table.add_column(name, justify="right", width=max(map(len, words)))
  for row in rows:
    table.add_row(*map(Text, row))
  return table


def _shorten(text: str) -> str:
  return text if len(text) <= 40 else text[:39] + "\N{HORIZONTAL ELLIPSIS}"


def _percent(fraction: float | None) -> str:
  return "-" if fraction is None else f"{100 * fraction:.1f}"


def _duration(seconds: float) -> str:
  if seconds < 59.95:
    return f"{seconds:.1f}s"
  minutes, rest = divmod(round(seconds), 60)
  if minutes < 60:
    return f"{minutes}m {rest:02d}s"
  return f"{minutes // 60}h {minutes % 60:02d}m"
