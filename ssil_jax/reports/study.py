"""Puts together what the page of some runs says, as sections of tables and figures."""

from collections.abc import Sequence
from typing import Any

from ssil_jax.reports import labels
from ssil_jax.reports.aggregate import Group
from ssil_jax.reports.blocks import Block, Cell, Figure, Section, Table, Terms, Text
from ssil_jax.reports.class_tables import class_tables, confusion_tables
from ssil_jax.reports.definitions import DEFINITIONS
from ssil_jax.reports.literature import published_table
from ssil_jax.reports.measures import MEASURES
from ssil_jax.reports.plots import Plotter
from ssil_jax.reports.ranking import result_tables, summary_cell
from ssil_jax.reports.results import FRACTIONS, Run
from ssil_jax.reports.setups import schedules, settings_sections
from ssil_jax.reports.statistics import summarize
from ssil_jax.reports.tables import origin_note
from ssil_jax.reports.times import time_tables
from ssil_jax.reports.tuning import tuning_note

_HIGHLIGHT = "ssil"  # the method in question, if none is named
_FEW = 4  # groups whose states are shown at once
_TITLES = {
  "accuracy": "Accuracy",
  "errors": "Old and new classes",
  "forgetting": "Forgetting",
  "classes": "Single classes",
  "confusion": "Confusion",
  "scores": "Scores",
  "calibration": "Calibration",
  "loss": "Loss",
}


def heading(runs: Sequence[Run]) -> tuple[str, str]:
  """Returns the title of the page on some runs, and a line that says what they are."""
  titles = list(dict.fromkeys(run.results["method_title"] for run in runs))
  datasets = _values(runs, "dataset")
  methods = ", ".join(titles) if len(titles) <= 4 else f"{len(titles)} methods"
  seeds = _values(runs, "seed")
  several = f"{len(runs)} runs" if len(runs) > 1 else "one run"
  facts = [
    f"{datasets}, {_values(runs, 'num_classes')} classes in T = "
    f"{_values(runs, 'num_states')} states",
    f"|M| = {_values(runs, 'memory_size')} exemplars",
    f"{several}, {'seeds' if ',' in seeds else 'seed'} {seeds}",
    f"scored on {images_of(runs)}",
  ]
  title = f"{methods} on {datasets}"
  if "validation" in images_of(runs):
    title += f" ({images_of(runs)})"
  return title, " \N{MIDDLE DOT} ".join(facts)


def images_of(runs: Sequence[Run]) -> str:
  """Says what the runs were scored on."""
  splits = sorted({str(run.results.get("split") or "test") for run in runs})
  return f"{' and '.join(splits)} images"


def study_sections(
  runs: Sequence[Run], *, highlight: str | None = None, skipped: Sequence[str] = ()
) -> list[Section]:
  """Returns all of the page on some runs.

  Args:
    runs: at least one.
    highlight: the name of the method that stands out and that others are tested against;
      by default ssil, where there are others, too.
    skipped: why other work directories are left out.
  """
  groups = labels.labelled_groups(runs)
  if highlight is None and any(group.method != _HIGHLIGHT for group in groups):
    highlight = _HIGHLIGHT
  images = images_of(runs)
  figures = _figures(groups, highlight, images)
  tables = {
    "classes": class_tables(groups, highlight),
    "confusion": confusion_tables(groups, highlight),
  }
  published = published_table(groups)
  sections = [
    Section("results", "Results", _results(runs, groups, highlight, skipped)),
    *([Section("published", "Published numbers", [published])] if published else []),
    *(
      Section(name, title, blocks)
      for name, title in _TITLES.items()
      if (blocks := [*figures.get(name, []), *tables.get(name, [])])
    ),
    Section(
      "states",
      "Every state",
      list(_states(groups)),
      intro=f"Accuracies and errors in per cent, over the {images} of all classes seen.",
      folded=len(groups) > _FEW,
    ),
    *settings_sections(runs, groups, [_runs(runs), *time_tables(runs)]),
    Section("schedule", "Training schedule", list(schedules(runs)), folded=len(runs) > 2),
    Section("definitions", "Definitions", [Terms(DEFINITIONS)]),
  ]
  return sections


def _values(runs: Sequence[Run], key: str) -> str:
  return ", ".join(dict.fromkeys(str(run.results[key]) for run in runs))


def _results(
  runs: Sequence[Run],
  groups: Sequence[Group],
  highlight: str | None,
  skipped: Sequence[str],
) -> list[Block]:
  unfinished = [
    label
    for label, run in zip(labels.run_labels(runs), runs, strict=True)
    if labels.progress(run.results)
  ]
  warnings = [labels.comparability_note(runs)]
  if unfinished:
    warnings.append(
      f"Not finished: {', '.join(unfinished)}. Averages and last values are over the "
      "states done."
    )
  if skipped:
    warnings.append(f"Left out, as files are wrong: {'; '.join(skipped)}.")
  found = labels.over_seeds(runs)
  notes = [found.note if found else "", labels.not_averaged_note(runs), *_tunings(groups)]
  tables = result_tables(groups, highlight)
  return [
    *(Text(text, warning=True) for text in warnings if text),
    *tables,
    *(Text(text) for text in notes if text),
  ]


def _tunings(groups: Sequence[Group]) -> list[str]:
  """Says of each group, in one line, what its settings were tuned on, if they were."""
  found = [
    (group.label, tuning_note(tuning))
    for group in groups
    if (tuning := group.runs[0].results.get("tuned_on"))
  ]
  return [f"{label}: {note}." for label, note in found]


def _figures(
  groups: Sequence[Group], highlight: str | None, images: str
) -> dict[str, list[Figure]]:
  """Draws what is on one data set on the same axes; returns figures by section."""
  parts: dict[tuple[str, int], list[Group]] = {}
  for group in groups:
    results = group.runs[0].results
    parts.setdefault((results["dataset"], results["num_classes"]), []).append(group)
  drawn: dict[str, list[Figure]] = {}
  for number, ((dataset, classes), part) in enumerate(parts.items(), start=1):
    plotter = Plotter(
      part,
      highlight=highlight,
      images=images,
      suffix=f"_{number}" if number > 1 else "",
      on=f" ({labels.shorten(dataset)}, {classes} classes)" if len(parts) > 1 else "",
    )
    for name, figures in plotter.draw_all().items():
      drawn.setdefault(name, []).extend(figures)
  return drawn


def _states(groups: Sequence[Group]) -> list[Block]:
  columns = ("state", "classes", *(score.title for score in FRACTIONS), "ECE", "seconds")
  blocks: list[Block] = []
  for number, group in enumerate(groups, start=1):
    rows = []
    states = list(zip(*(run.results["states"] for run in group.runs), strict=True))
    for same in states:
      cells = [
        summary_cell(summarize([_percent(row.get(name)) for row in same]))
        for name in (*(score.name for score in FRACTIONS), "ece")
      ]
      seconds = summarize([row["train_seconds"] for row in same])
      first = same[0]
      rows.append(
        [str(first["state"]), str(first["num_seen"]), *cells, summary_cell(seconds)]
      )
    rows.append(_average_row(group, states))
    several = len(group.runs) > 1
    blocks.append(
      Table(
        f"states_{number}",
        f"{group.label}, state by state"
        + (
          f": mean \N{PLUS-MINUS SIGN} deviation over {len(group.runs)} seeds"
          if several
          else ""
        ),
        columns,
        rows,
        sortable=False,
      )
    )
    blocks += _statistics(group, number)
    origins = dict.fromkeys(filter(None, (origin_note(run.results) for run in group.runs)))
    if origins:
      blocks.append(Text(f"{group.label}: {' '.join(origins)}"))
  return blocks


def _average_row(group: Group, states: Sequence[Sequence[dict[str, Any]]]) -> list[Any]:
  def mean(run: Run, name: str) -> float | None:
    if name in run.results["average"]:
      return _percent(run.results["average"][name])
    values = [row.get(name) for row in run.results["states"]]
    known = [value for value in values if value is not None]
    return _percent(sum(known) / len(known)) if known else None

  cells = [
    summary_cell(summarize([mean(run, name) for run in group.runs]))
    for name in (*(score.name for score in FRACTIONS), "ece")
  ]
  seconds = [
    sum(row["train_seconds"] for row in run.results["states"]) / len(states)
    for run in group.runs
  ]
  return ["average", "", *cells, summary_cell(summarize(seconds))]


def _percent(fraction: float | None) -> float | None:
  return None if fraction is None else 100 * fraction


def _statistics(group: Group, number: int) -> list[Table]:
  """Shows a method's own numbers, a row a state, if it has any."""
  states = list(zip(*(run.results["states"] for run in group.runs), strict=True))
  names = list(
    dict.fromkeys(n for same in states for row in same for n in row.get("statistics", {}))
  )
  if not names:
    return []
  rows = []
  for same in states:
    found = [summarize([row.get("statistics", {}).get(n) for row in same]) for n in names]
    cells = [Cell("-") if f is None else Cell(f"{f.mean:.4g}", f.mean) for f in found]
    rows.append([str(same[0]["state"]), *cells])
  return [
    Table(
      f"statistics_{number}",
      f"{group.label}: the method's own statistics, after each state"
      + (", means over the seeds" if len(group.runs) > 1 else ""),
      ["state", *(name.replace("_", " ") for name in names)],
      rows,
      sortable=False,
    )
  ]


def _runs(runs: Sequence[Run]) -> Table:
  rows = []
  for label, run in zip(labels.run_labels(runs), runs, strict=True):
    cells = [
      summary_cell(summarize([measure.value(run)]), unit=measure.unit)
      for measure in MEASURES
    ]
    link = run.workdir and run.workdir / "results.json"
    seed = run.results["seed"]
    rows.append([label, Cell(str(seed), seed), Cell("results.json", link=link), *cells])
  columns = ("run", "seed", "file", *(measure.title for measure in MEASURES))
  return Table("runs", "Accuracies and errors of each run, in %", columns, rows)
