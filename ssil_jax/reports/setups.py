"""Says how runs were made: settings, environment, schedules, and what differs in them."""

import json
from collections.abc import Sequence
from typing import Any

from ssil_jax.reports import aggregate, labels
from ssil_jax.reports.aggregate import Group
from ssil_jax.reports.blocks import Block, Section, Table, Text
from ssil_jax.reports.results import Run
from ssil_jax.reports.tuning import tuning_note

# What says nothing about how runs were trained, or what their labels say.
_NO_DIFFERENCE = {
  *("method", "method source", "folder", "states finished"),
  *(name.replace("_", " ") for name in aggregate.NO_SETTINGS),
}
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


def settings_sections(
  runs: Sequence[Run], groups: Sequence[Group], of_each: Sequence[Table]
) -> list[Section]:
  """Returns what differs between the runs, each run, all settings, and the environment."""
  names = labels.run_labels(runs)
  settings = [_settings_of(run) for run in runs]
  environments = [
    {key.replace("_", " "): value for key, value in run.results["environment"].items()}
    for run in runs
  ]
  common, differing = _compared(settings)
  shared, own = _compared(environments)
  of_runs = [*of_each]
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


def schedules(runs: Sequence[Run]) -> list[Block]:
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
    Table(f"schedule_{number}", f"Schedule of {', '.join(same)}", columns, rows)
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
