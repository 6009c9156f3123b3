"""Puts together what the page of some runs says, as sections of tables and figures."""

import itertools
import json
from collections.abc import Sequence
from typing import Any

from ssil_jax.reports import aggregate, labels
from ssil_jax.reports.aggregate import Group
from ssil_jax.reports.blocks import Block, Cell, Figure, Section, Table, Terms, Text
from ssil_jax.reports.definitions import DEFINITIONS
from ssil_jax.reports.measures import (
  MEASURES,
  TESTED,
  Measure,
  class_names,
  top1_of_classes,
)
from ssil_jax.reports.plots import Plotter
from ssil_jax.reports.results import FRACTIONS, Run
from ssil_jax.reports.statistics import LEVEL, MIN_PAIRS, Summary, compare, holm, summarize
from ssil_jax.reports.tables import duration, origin_note
from ssil_jax.reports.tuning import tuning_note

_HIGHLIGHT = "ssil"  # the method in question, if none is named
_FEW = 4  # groups whose states are shown at once
_EXTREMES = 10  # classes, or confusions, that a table names
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
# What says nothing about how runs were trained, or what their labels say.
_NO_DIFFERENCE = {
  *("method", "method source", "folder", "states finished"),
  *(name.replace("_", " ") for name in aggregate.NO_SETTINGS),
}
_PLACES = ("dataset", "num_classes", "num_states", "memory_size")  # what a rival shares


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
    "classes": _class_tables(groups, highlight),
    "confusion": _pairs(groups, highlight),
  }
  sections = [
    Section("results", "Results", _results(runs, groups, highlight, skipped)),
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
    *_settings(runs, groups),
    Section("schedule", "Training schedule", list(_schedules(runs)), folded=len(runs) > 2),
    Section("definitions", "Definitions", [Terms(DEFINITIONS)]),
  ]
  return sections


def _values(runs: Sequence[Run], key: str) -> str:
  return ", ".join(dict.fromkeys(str(run.results[key]) for run in runs))


# Results --------------------------------------------------------------------------------


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
  tables = _result_tables(groups, highlight)
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


def _place(group: Group) -> tuple[Any, ...]:
  """Returns what groups share that can be ranked."""
  results = group.runs[0].results
  return *(results[name] for name in _PLACES), results.get("split") or "test"


def _parts(groups: Sequence[Group]) -> list[tuple[str, list[Group]]]:
  """Puts together what can be ranked together; with what sets it apart from others."""
  parts: dict[tuple[Any, ...], list[Group]] = {}
  for group in groups:
    parts.setdefault(_place(group), []).append(group)
  if len(parts) == 1 or all(len(part) == 1 for part in parts.values()):
    return [("", list(groups))]
  return [
    (f"{dataset}, {classes} classes, T = {states}, |M| = {memory}, {split} images. ", part)
    for (dataset, classes, states, memory, split), part in parts.items()
  ]


def _result_tables(groups: Sequence[Group], highlight: str | None) -> list[Table]:
  parts = _parts(groups)
  tables = []
  for number, (place, part) in enumerate(parts, start=1):
    suffix = f"_{number}" if number > 1 else ""
    same = len(set(map(_place, part))) == 1
    tables.append(_result_table(part, highlight, f"results{suffix}", place, ranked=same))
    if same:
      tables += _tests_table(part, highlight, f"tests{suffix}", place)
  return tables


def _result_table(
  groups: Sequence[Group], highlight: str | None, name: str, place: str, *, ranked: bool
) -> Table:
  columns = [_column(groups, measure, ranked=ranked) for measure in MEASURES]
  rows = [
    [group.label, Cell(str(len(group.runs)), len(group.runs)), *cells]
    for group, *cells in zip(groups, *columns, strict=True)
  ]
  several = any(len(group.runs) > 1 for group in groups)
  best = any(cell.best for column in columns for cell in column)
  significant = any(cell.significant for column in columns for cell in column)
  rivals = sum(group.is_ranked for group in groups)
  texts = ["In %, but for the time."]
  if best:
    texts.append(
      "Bold: the best of a column. e(p,n) and e(n,p) have none, as what lowers one "
      "raises the other; nor has time, which depends on the machine."
    )
  if any(group.method.startswith("joint") for group in groups) and best:
    texts.append("Joint trains on the images of all classes: a bound, which is not ranked.")
  if best and several and rivals > 1:
    texts.append(_test_note(groups, any_found=significant))
  caption = (
    "Mean \N{PLUS-MINUS SIGN} sample standard deviation over seeds of every method"
    if several
    else "Every method"
  )
  lit = [n for n, g in enumerate(groups) if highlight and g.method == highlight]
  return Table(
    name,
    place + caption,
    ("method", "seeds (n)", *(measure.title for measure in MEASURES)),
    rows,
    " ".join(texts),
    highlighted=lit if len(lit) < len(groups) else (),
  )


def _test_note(groups: Sequence[Group], *, any_found: bool) -> str:
  test = (
    "the difference to every other method is significant (paired t-test over the seeds "
    f"that both have, two-sided, adjusted for their number after Holm, p < {LEVEL})."
  )
  ranked = [group for group in groups if group.is_ranked]
  seeds = [{run.results["seed"] for run in group.runs} for group in ranked]
  shared = min(len(one & other) for one, other in itertools.combinations(seeds, 2))
  if shared < MIN_PAIRS:
    return (
      f"Nothing is tested where two methods share fewer than {MIN_PAIRS} seeds (here "
      f"{shared})."
    )
  return f"*: {test}" if any_found else f"A star would say that {test}"


def _column(groups: Sequence[Group], measure: Measure, *, ranked: bool) -> list[Cell]:
  """Returns a cell for each group, the best one marked."""
  values = [summarize([measure.value(run) for run in group.runs]) for group in groups]
  cells = [_summary_cell(value, is_time=measure.is_time) for value in values]
  rivals = [
    place
    for place, (group, value) in enumerate(zip(groups, values, strict=True))
    if group.is_ranked and value is not None
  ]
  if not (ranked and measure.better and len(rivals) > 1):
    return cells
  best = max(rivals, key=lambda place: measure.better * values[place].mean)
  if all(cells[place].text == cells[best].text for place in rivals):
    return cells  # nothing to choose
  for place in rivals:
    # Two of the same mean, to what is shown, are both the best.
    if round(values[place].mean, 1) == round(values[best].mean, 1):
      cells[place] = cells[place]._replace(best=True)
  tests = [
    compare(_by_seed(groups[best], measure), _by_seed(groups[place], measure))
    for place in rivals
    if place != best
  ]
  if all(test is not None and test.p is not None for test in tests):
    significant = all(p < LEVEL for p in holm([test.p for test in tests]))
    cells[best] = cells[best]._replace(significant=significant)
  return cells


def _by_seed(group: Group, measure: Measure) -> dict[int, float | None]:
  return {run.results["seed"]: measure.value(run) for run in group.runs}


def _summary_cell(value: Summary | None, *, is_time: bool = False) -> Cell:
  if value is None:
    return Cell("-")
  if is_time:
    text = duration(value.mean)
  else:
    text = f"{value.mean:z.1f}"
    if value.spread is not None:
      text += f" \N{PLUS-MINUS SIGN} {value.spread:.1f}"
  return Cell(text, value.mean, value.spread, value.count)


def _tests_table(
  groups: Sequence[Group], highlight: str | None, name: str, place: str
) -> list[Table]:
  """Compares every other method with the one in question, if there is just one such."""
  chosen = [group for group in groups if group.method == highlight and not group.left_out]
  others = [group for group in groups if group.method != highlight and not group.left_out]
  if len(chosen) != 1 or not others:
    return []
  (ours,) = chosen
  columns, shared = [], [0] * len(others)
  known = [
    m for m in TESTED if any(value is not None for value in _by_seed(ours, m).values())
  ]
  for measure in known:
    found = [compare(_by_seed(ours, measure), _by_seed(o, measure)) for o in others]
    tested = [n for n, test in enumerate(found) if test and test.p is not None]
    adjusted = dict(zip(tested, holm([found[n].p for n in tested]), strict=True))
    differences, p_values = [], []
    for number, test in enumerate(found):
      if test is None:
        differences.append(Cell("-"))
        p_values.append(Cell("-"))
        continue
      shared[number] = max(shared[number], test.count)
      text = f"{test.mean:+z.1f}"
      p = adjusted.get(number)
      if test.low is not None:
        text += f" [{test.low:+z.1f}, {test.high:+z.1f}]"
      is_better = p is not None and p < LEVEL and measure.better * test.mean > 0
      differences.append(Cell(text, test.mean, count=test.count, significant=is_better))
      p_values.append(Cell("-") if p is None else Cell(_p_text(p), p))
    columns += [differences, p_values]
  if max(shared) < 2:
    return []
  rows = [
    [other.label, Cell(str(count), count), *cells]
    for other, count, *cells in zip(others, shared, *columns, strict=True)
  ]
  names = [name for m in known for name in (f"{m.title}: difference", f"p, {m.title}")]
  return [
    Table(
      name,
      f"{place}{ours.label} less every other method, in points of per cent",
      ("other method", "shared seeds", *names),
      rows,
      "Mean difference over the seeds that both have, with its 95% confidence interval; p "
      f"of the paired t-test, adjusted after Holm for the {len(others)} rows of a column. "
      f"*: {ours.label} is better with p < {LEVEL}. No test with fewer than {MIN_PAIRS} "
      "seeds; with three, only large and steady differences pass it.",
    )
  ]


def _p_text(p: float) -> str:
  return "< 0.001" if p < 0.001 else f"{p:.3f}"


# Figures, and the tables beside them ----------------------------------------------------


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


def _chosen(groups: Sequence[Group], highlight: str | None) -> Group:
  """Returns the group in question, or the first one."""
  finished = [group for group in groups if not group.left_out] or list(groups)
  return next((group for group in finished if group.method == highlight), finished[0])


def _class_tables(groups: Sequence[Group], highlight: str | None) -> list[Table]:
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
      rows.append([name, Cell(str(state), state), _summary_cell(value)])
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


def _pairs(groups: Sequence[Group], highlight: str | None) -> list[Table]:
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


# States, runs, settings -----------------------------------------------------------------


def _states(groups: Sequence[Group]) -> list[Block]:
  columns = ("state", "classes", *(score.title for score in FRACTIONS), "ECE", "seconds")
  blocks: list[Block] = []
  for number, group in enumerate(groups, start=1):
    rows = []
    states = list(zip(*(run.results["states"] for run in group.runs), strict=True))
    for same in states:
      cells = [
        _summary_cell(summarize([_percent(row.get(name)) for row in same]))
        for name in (*(score.name for score in FRACTIONS), "ece")
      ]
      seconds = summarize([row["train_seconds"] for row in same])
      first = same[0]
      rows.append(
        [str(first["state"]), str(first["num_seen"]), *cells, _summary_cell(seconds)]
      )
    rows.append(_average_row(group, states))
    several = len(group.runs) > 1
    blocks.append(
      Table(
        f"states_{number}",
        group.label
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
    _summary_cell(summarize([mean(run, name) for run in group.runs]))
    for name in (*(score.name for score in FRACTIONS), "ece")
  ]
  seconds = [
    sum(row["train_seconds"] for row in run.results["states"]) / len(states)
    for run in group.runs
  ]
  return ["average", "", *cells, _summary_cell(summarize(seconds))]


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
      _summary_cell(summarize([measure.value(run)]), is_time=measure.is_time)
      for measure in MEASURES
    ]
    link = run.workdir and run.workdir / "results.json"
    seed = run.results["seed"]
    rows.append([label, Cell(str(seed), seed), Cell("results.json", link=link), *cells])
  columns = ("run", "seed", "file", *(measure.title for measure in MEASURES))
  return Table("runs", "Accuracies and errors of each run, in %", columns, rows)


_RESULTS_SETTINGS = {
  "data set": "dataset",
  "method": "method_title",
  "states T": "num_states",
  "classes": "num_classes",
  "exemplar memory |M|": "memory_size",
  "seed": "seed",
  "scored on": "split",
  "validation fraction": "validation_fraction",
  "files ignored": "ignored_files",
}


def _settings(runs: Sequence[Run], groups: Sequence[Group]) -> list[Section]:
  """Returns what differs between the runs, each run, all settings, and the environment."""
  names = labels.run_labels(runs)
  settings = [_settings_of(run) for run in runs]
  environments = [
    {key.replace("_", " "): value for key, value in run.results["environment"].items()}
    for run in runs
  ]
  common, differing = _compared(settings)
  shared, own = _compared(environments)
  of_runs = [_runs(runs)]
  for name, what, values in (
    ("run_settings", "Settings", differing),
    ("run_environments", "Environment", own),
  ):
    if values:
      rows = [list(row) for row in zip(names, *values.values(), strict=True)]
      caption = f"{what} of each run, where the runs differ"
      of_runs.append(Table(name, caption, ["run", *values], rows))
  setting, environment = (
    Table(name.lower(), f"{name}{_whose(runs)}", (name.lower(), "value"), rows)
    for name, rows in (("Settings", common), ("Environment", shared))
  )
  return [
    *_differences(groups),
    Section("runs", "Every run", of_runs, folded=len(runs) > 2),
    Section("settings", "Settings", [setting], folded=True),
    Section("environment", "Environment", [environment]),
  ]


def _differences(groups: Sequence[Group]) -> list[Section]:
  """Says what differs between the methods of a page, but for their own settings."""
  if len(groups) < 2:
    return []
  settings = [_settings_of(group.runs[0]) for group in groups]
  differing = {
    name: [_text(one.get(name)) for one in settings]
    for name in settings[0]
    if name not in _NO_DIFFERENCE and all(name in one for one in settings)
  }
  differing = {name: texts for name, texts in differing.items() if len(set(texts)) > 1}
  seeds = [", ".join(str(run.results["seed"]) for run in group.runs) for group in groups]
  if len(set(seeds)) > 1:
    differing["seeds"] = seeds
  titles = [group.title for group in groups]
  if not differing and len(set(titles)) == len(titles):
    block: Block = Text(
      "The method alone"
      + (
        " (with its own settings), beside the seed."
        if len(groups) < sum(len(group.runs) for group in groups)
        else " (with its own settings)."
      )
    )
    return [Section("differences", "What differs", [block])]
  if not differing:
    return []
  rows = [
    [group.label, *texts] for group, *texts in zip(groups, *differing.values(), strict=True)
  ]
  caption = "Settings in which the methods differ, but for their own"
  table = Table("differences", caption, ["method", *differing], rows)
  return [Section("differences", "What differs", [table])]


def _whose(runs: Sequence[Run]) -> str:
  return " of the run" if len(runs) == 1 else ": what is the same in all runs"


def _settings_of(run: Run) -> dict[str, Any]:
  """Returns name -> value of all that results.json and config.json say of a run."""
  results = {name: run.results.get(key) for name, key in _RESULTS_SETTINGS.items()}
  tuning = run.results.get("tuned_on")
  results["tuned on"] = tuning_note(tuning) if tuning else None
  skipped = run.results.get("skipped_records", {})
  for split, name in (("train", "training"), ("test", "test")):
    results[f"{name} images skipped"] = skipped.get(split)
  results["states finished"] = len(run.results["states"])
  results["folder"] = run.folder
  if tuning := run.results.get("tuned_on"):
    results["tuned on"] = tuning_note(tuning)
  # How it was started is among the environment.
  known = set(_RESULTS_SETTINGS.values()) | {"method", "started", "command"}
  saved = {
    name.replace("_", " "): value
    for name, value in (run.config or {}).items()
    if name not in known
  }
  return {**saved, **results}


def _compared(
  values: Sequence[dict[str, Any]],
) -> tuple[list[list[str]], dict[str, list[str]]]:
  """Returns rows of what is the same in all, and name -> values of what is not."""
  names = list(dict.fromkeys(name for one in values for name in one))
  common, differing = [], {}
  for name in names:
    texts = [_text(one.get(name)) for one in values]
    if len(set(texts)) > 1:
      differing[name] = texts
    elif texts[0] != "-":
      common.append([name, texts[0]])
  return common, differing


def _schedules(runs: Sequence[Run]) -> list[Block]:
  """Returns the training schedules, equal ones once."""
  shown: list[tuple[list[str], list[str], list[list[str]]]] = []
  for label, run in zip(labels.run_labels(runs), runs, strict=True):
    columns = list(dict.fromkeys(name for row in run.schedule for name in row))
    rows = [[_text(row.get(name)) for name in columns] for row in run.schedule]
    same = next((known for known, *table in shown if table == [columns, rows]), None)
    if same is None:
      shown.append(([label], columns, rows))
    else:
      same.append(label)
  return [
    Table(f"schedule_{number}", ", ".join(same), columns, rows)
    if rows
    else Text(f"{', '.join(same)}: the work directory holds no schedule.json.")
    for number, (same, columns, rows) in enumerate(shown, start=1)
  ]


def _text(value: Any) -> str:
  if value is None or value == "" or value == []:
    return "-"
  if isinstance(value, float):
    return f"{value:.6g}"
  if isinstance(value, (dict, list)):
    return json.dumps(value, ensure_ascii=False)
  return str(value)
