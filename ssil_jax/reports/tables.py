"""Turns results of runs into rows of text, and into tables for the terminal."""

import itertools
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from ssil_jax.reports import aggregate
from ssil_jax.reports.labels import OverSeeds, progress, run_labels, shorten
from ssil_jax.reports.results import AVERAGES, FRACTIONS, SCORES, Run

_LASTS = tuple(SCORES[name] for name in ("top1", "error_old_as_new", "error_new_as_old"))
_AVERAGES = tuple(f"average {score.title}" for score in AVERAGES)
STATE_COLUMNS = ("state", "classes", *(score.title for score in FRACTIONS), "seconds")
COMPARISON_COLUMNS = (
  "run",
  *_AVERAGES,
  *(f"last {score.title}" for score in _LASTS),
  "training time",
)
SEED_COLUMNS = (
  "method",
  "seeds (n)",
  *_AVERAGES,
  "forgetting",
  f"last {_LASTS[0].title}",
)


def format_table(results: dict[str, Any]) -> Table:
  """Returns the table of one run for the terminal: a row a state, then the averages.

  Args:
    results: the content of results.json; accuracies and errors are shown in per cent.
  """
  title = f"{results['method_title']} on {results['dataset']}"
  if results.get("split") == "validation":
    title += ", validation images"
  if done := progress(results):
    title += f" ({done})"
  caption = (
    "Accuracies and errors in %; own-state: top-1 among the classes\n"
    "of the image's own state; seconds: time of training."
  )
  forgetting, transfer = (
    results["average"].get(name) for name in ("forgetting", "backward_transfer")
  )
  if forgetting is not None:
    caption += (
      f"\nforgetting: {_percent(forgetting)}; backward transfer: {_percent(transfer)}"
    )
  *rows, average = state_rows(results)
  table = _rich_table(STATE_COLUMNS, rows, title, caption)
  table.add_section()
  table.add_row(*map(Text, average))
  return table


def comparison_table(runs: Sequence[Run]) -> Table:
  """Returns the table of several runs for the terminal, a row a run, in per cent."""
  caption = "Accuracies and errors in %;\naverages and last values over finished states."
  return _rich_table(COMPARISON_COLUMNS, comparison_rows(runs), "Comparison", caption)


def seed_table(found: OverSeeds) -> Table:
  """Returns the table over seeds for the terminal, a row a group, in per cent."""
  return _rich_table(SEED_COLUMNS, seed_rows(found), "Over seeds", found.caption)


def state_rows(results: dict[str, Any]) -> list[list[str]]:
  """Returns cells under STATE_COLUMNS, last the averages over the states done."""
  states = results["states"]

  def mean(name: str) -> float | None:
    values = [row[name] for row in states if row[name] is not None]
    return fmean(values) if values else None

  means = {name: mean(name) for name in (*SCORES, "train_seconds")}
  average = {"state": "average", "num_seen": "", **means, **results["average"]}
  return [
    [
      str(row["state"]),
      str(row["num_seen"]),
      *(_percent(row[score.name]) for score in FRACTIONS),
      f"{row['train_seconds']:.1f}",
    ]
    for row in (*states, average)
  ]


def comparison_rows(runs: Sequence[Run]) -> list[list[str]]:
  """Returns cells under COMPARISON_COLUMNS."""
  rows = []
  for run, label in zip(runs, run_labels(runs), strict=True):
    average, last = run.results["average"], run.results["states"][-1]
    rows.append(
      [
        label,
        *(_percent(average[score.name]) for score in AVERAGES),
        *(_percent(last[score.name]) for score in _LASTS),
        duration(sum(row["train_seconds"] for row in run.results["states"])),
      ]
    )
  return rows


def seed_rows(found: OverSeeds) -> list[list[str]]:
  """Returns cells under SEED_COLUMNS."""
  rows = []
  for label, runs, _ in found.groups:
    averages = [run.results["average"] for run in runs]
    names = (*(score.name for score in AVERAGES), "forgetting")
    columns = [[average.get(name) for average in averages] for name in names]
    columns.append([run.results["states"][-1][_LASTS[0].name] for run in runs])
    rows.append([label, str(len(runs)), *map(_spread, columns)])
  return rows


LEARNT_COLUMNS = ("classes of", "test photos", "before", "after", "change")


def learnt_rows(result: dict[str, Any]) -> list[list[str]]:
  """Returns cells under LEARNT_COLUMNS of a state that `learn` has added.

  A row for the classes of each state, then for all old ones, and for all.
  """
  learnt, counts = result["learnt"], [sum(row) for row in result["confusion"]]
  *earlier, _ = counts
  before = learnt["top1_by_state_before"] or [None] * len(earlier)
  rows = [
    (f"state {number}", count, old, new)
    for number, (count, old, new) in enumerate(
      zip(counts, (*before, None), result["top1_by_state"], strict=True), start=1
    )
  ]
  rows.append(("all before", sum(earlier), learnt["top1_old_before"], learnt["top1_old"]))
  rows.append(("all now", sum(counts), None, result["top1"]))
  return [
    [name, str(count), _percent(old), _percent(new), _change(old, new)]
    for name, count, old, new in rows
  ]


def _change(before: float | None, after: float | None) -> str:
  if before is None or after is None:
    return "-"
  return f"{100 * (after - before):+.1f}"


def learnt_table(result: dict[str, Any]) -> Table:
  """Returns what new classes cost the old ones, from the row of results.json."""
  names = ", ".join(result["learnt"]["new_classes"])
  errors = ", ".join(
    f"{SCORES[name].title} {_percent(result[name])}"
    for name in ("error_old_as_new", "error_new_as_old")
  )
  return _rich_table(
    LEARNT_COLUMNS,
    learnt_rows(result),
    f"learnt in state {result['state']}: {shorten(names)}",
    f"Top-1 accuracy in %;\n{errors}:\nold classes taken for new, and new for old.",
  )


def origin_note(results: dict[str, Any]) -> str:
  """Says which states' training was taken from other runs; empty without any."""
  origins = [(row["state"], row.get("from_workdir")) for row in results["states"]]
  sentences = []
  for origin, group in itertools.groupby(origins, key=lambda pair: pair[1]):
    first, *others = [state for state, _ in group]
    which = f"States {first} to {others[-1]} were" if others else f"State {first} was"
    if origin:
      sentences.append(f"{which} trained in {origin} and taken from there.")
  return " ".join(sentences)


def _rich_table(
  columns: Sequence[str], rows: Sequence[Sequence[str]], title: str, caption: str
) -> Table:
  """Makes a table in which only the first column, which may hold long names, is folded."""
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


def _percent(fraction: float | None) -> str:
  return "-" if fraction is None else f"{100 * fraction:.1f}"


def _spread(fractions: Sequence[float | None]) -> str:
  """Returns the mean and, of several, their sample standard deviation."""
  text = _percent(aggregate.mean(fractions))
  if len(fractions) == 1 or None in fractions:
    return text
  return f"{text} \N{PLUS-MINUS SIGN} {100 * stdev(fractions):.1f}"


def duration(seconds: float) -> str:
  """Returns a time in the units that suit it."""
  if seconds < 59.95:
    return f"{seconds:.1f}s"
  minutes, rest = divmod(round(seconds), 60)
  if minutes < 60:
    return f"{minutes}m {rest:02d}s"
  return f"{minutes // 60}h {minutes % 60:02d}m"


def schedule_table(
  rows: Sequence[dict[str, Any]], *, title: str, drop: float, settings: dict[str, Any]
) -> Table:
  """Returns the schedule as it is printed before training, from rows of schedule.json.

  `drop` is the factor of the learning rate at each drop; `settings` is what else the method
  trains with.
  """
  table = Table(
    title=title,
    caption="classes: old + new; images: those of them that are trained on;\n"
    "batch: new + exemplars, or both together; RP: ratio-preserving;\n"
    f"drops: epochs after which the rate is multiplied by {drop:g}\n"
    + ", ".join(f"{name} {value}" for name, value in settings.items() if value != ""),
    box=None,
    padding=(0, 1, 0, 0),  # fits a terminal of 80 columns
  )
  for name in rows[0]:
    table.add_column(name, justify="right", no_wrap=True)
  for row in rows:
    table.add_row(*map(str, row.values()))
  return table
