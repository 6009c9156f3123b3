"""Shows what the time of runs was spent on, as their results tell."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ssil_jax.reports.blocks import Cell, Table
from ssil_jax.reports.labels import run_labels
from ssil_jax.reports.results import Run
from ssil_jax.reports.tables import duration

# Of `seconds` in results.json, which docs/measures.md defines -> title of its column.
PARTS = {
  "steps": "training steps",
  "input": "waiting for images",
  "compiling": "compiling",
  "evaluation": "evaluation",
  "state_changes": "changes of state",
  "checkpoints": "saving",
  "opening": "opening",
  "other": "other",
}
_ADDED = ("input", "evaluation", "state_changes", "checkpoints")


def total(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
  """Returns the seconds of each part over states; those of earlier versions have none."""
  known = [row["seconds"] for row in rows if "seconds" in row]
  return {part: round(sum(one.get(part, 0.0) for one in known), 3) for part in PARTS}


def added(seconds: Mapping[str, float]) -> float | None:
  """Returns how much longer than its steps a run takes, as a fraction of them.

  By waiting for images, evaluation, changes of state and saving; neither compiling nor
  opening, which do not grow with the training. None without steps.
  """
  if not seconds["steps"]:
    return None
  return sum(seconds[part] for part in _ADDED) / seconds["steps"]


def time_tables(runs: Sequence[Run]) -> list[Table]:
  """Returns a table with a row for each run whose states all tell their time, if any do."""
  rows = []
  for label, run in zip(run_labels(runs), runs, strict=True):
    states = run.results["states"]
    seconds = total(states)
    whole = sum(seconds.values())
    if not whole or any("seconds" not in row for row in states):
      continue
    # Its states come without the time of their steps.
    is_lent = any(row.get("from_workdir") for row in states)
    more = None if is_lent else added(seconds)
    shares = [_percent(seconds[part] / whole) for part in PARTS]
    rows.append([label, Cell(duration(whole), whole), *shares, _percent(more)])
  if not rows:
    return []
  titles = (f"{title} (%)" for title in PARTS.values())
  return [
    Table(
      "times",
      "What each run's time was spent on, until its last state was scored",
      ("run", "time", *titles, "added to the steps (%)"),
      rows,
      note="Added to the steps: waiting for images, evaluation, changes of state and "
      "saving, in per cent of the training steps. What processes lost that were killed is "
      "not in it.",
    )
  ]


def _percent(fraction: float | None) -> Cell:
  return Cell("-") if fraction is None else Cell(f"{100 * fraction:.1f}", 100 * fraction)
