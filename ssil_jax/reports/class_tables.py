"""Names the classes that a method knows worst and best, and those that it confuses."""

from collections.abc import Sequence

from ssil_jax.reports.aggregate import Group
from ssil_jax.reports.blocks import Cell, Table
from ssil_jax.reports.measures import class_names, top1_of_classes
from ssil_jax.reports.ranking import summary_cell
from ssil_jax.reports.results import Run
from ssil_jax.reports.statistics import summarize

_EXTREMES = 10  # classes, or confusions, that a table names


def _chosen(groups: Sequence[Group], highlight: str | None) -> Group:
  """Returns the group in question, or the first one."""
  finished = [group for group in groups if not group.left_out] or list(groups)
  return next((group for group in finished if group.method == highlight), finished[0])


def class_tables(groups: Sequence[Group], highlight: str | None) -> list[Table]:
  """Names the hardest and the easiest classes of one method."""
  group = _chosen(groups, highlight)
  per_run = [top1_of_classes(run) for run in group.runs]
  names = [name for name in per_run[0] if all(name in one for one in per_run)]
  state_of = _states_of_classes(group.runs[0])
  rows = []
  for name in names:
    value = summarize([None if one[name] is None else 100 * one[name] for one in per_run])
    if value is not None:
      state = state_of[name]
      rows.append([name, Cell(str(state), state), summary_cell(value)])
  rows.sort(key=lambda row: row[2].value)
  columns = ("class", "added in state", f"top-1 of {group.label} (%)")
  if not rows:
    return []
  if len(rows) <= 2 * _EXTREMES:
    caption = "Classes from the hardest to the easiest, after the last finished state"
    return [Table("class_accuracy", caption, columns, rows)]
  return [
    Table(
      f"{word}_classes",
      f"The {len(part)} {word} classes of {group.label}, after the last finished state",
      columns,
      part,
    )
    for word, part in (
      ("hardest", rows[:_EXTREMES]),
      ("easiest", rows[: -_EXTREMES - 1 : -1]),
    )
  ]


def _states_of_classes(run: Run) -> dict[str, int]:
  names = class_names(run)
  return {
    name: row["state"]
    for row in run.results["states"]
    for name in names[row["num_old"] : row["num_seen"]]
  }


def confusion_tables(groups: Sequence[Group], highlight: str | None) -> list[Table]:
  """Names the classes that one method takes for others most often."""
  group = _chosen(groups, highlight)
  counts: dict[tuple[str, str], int] = {}
  images: dict[str, int] = {}
  for run in group.runs:
    names = class_names(run)
    for true, predicted, count in run.results["states"][-1].get("class_confusion") or []:
      pair = names[true], names[predicted]
      counts[pair] = counts.get(pair, 0) + count
      images[names[true]] = images.get(names[true], 0) + count
  wrong = sorted(
    ((pair, n) for pair, n in counts.items() if pair[0] != pair[1]),
    key=lambda item: -item[1],
  )
  if not wrong:
    return []
  state_of = _states_of_classes(group.runs[0])
  rows = [
    [
      true,
      predicted,
      Cell(
        f"{state_of.get(true, '-')} \N{RIGHTWARDS ARROW} {state_of.get(predicted, '-')}"
      ),
      Cell(str(count), count),
      Cell(f"{100 * count / images[true]:.1f}", 100 * count / images[true]),
    ]
    for (true, predicted), count in wrong[:_EXTREMES]
  ]
  return [
    Table(
      "confused_classes",
      f"What {group.label} confuses most, after the last finished state",
      ("true class", "predicted class", "their states", "images", "share of the class (%)"),
      rows,
      "Images of all seeds are counted together." if len(group.runs) > 1 else "",
    )
  ]
