"""Writes the page on runs: a self-contained HTML file with tables and figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from ssil_jax.errors import UserError
from ssil_jax.reports import tables
from ssil_jax.reports.figures import Plot, draw_plots
from ssil_jax.reports.results import Run, load_run
from ssil_jax.system import write_bytes

_SETTINGS = {
  "data set": "dataset",
  "method": "method_title",
  "states T": "num_states",
  "classes": "num_classes",
  "exemplar memory |M|": "memory_size",
  "seed": "seed",
  "files ignored": "ignored_files",
}

_MANY = 8  # runs; above this, settings have a row a run
_Table = tuple[str, list[str], list[list[str]]]  # heading, names of columns, rows


def write_report(workdirs: Sequence[Path], output: Path) -> Path:
  """Writes the page `output` and, in the folder `figures` beside it, its figures as PNG.

  Each file is replaced, even where it is a link: to what, someone else may have chosen.
  Runs are shown in the order of `workdirs`.

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
  plots = draw_plots(runs)
  page = _render(runs, plots)
  try:
    folder = output.parent / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for plot in plots:
      path = folder / f"{plot.name}.png"
      if plot.png is None:
        path.unlink(missing_ok=True)  # of an earlier report, which had that figure
      else:
        write_bytes(path, plot.png)
    write_bytes(output, page.encode())
  except OSError as error:
    place = error.filename2 or error.filename or output  # the second is what is replaced
    raise UserError(
      f"{place} cannot be written ({error.strerror}): choose another place for the report"
    ) from error
  return output


def _render(runs: Sequence[Run], plots: Sequence[Plot]) -> str:
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("ssil_jax.reports"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  labels = tables.run_labels(runs)
  labelled = list(zip(labels, runs, strict=True))
  titles, datasets = (
    ", ".join(dict.fromkeys(run.results[name] for run in runs))
    for name in ("method_title", "dataset")
  )
  return environment.get_template("report.html.jinja").render(
    tables=tables,
    runs=runs,
    labelled=labelled,
    plots=plots,
    title=f"{titles} on {datasets}",
    note=tables.comparability_note(runs),
    unfinished=[label for label, run in labelled if tables.progress(run.results)],
    settings=_settings_tables(labels, _settings_rows(runs)),
    over_seeds=tables.over_seeds(runs),
    not_averaged=tables.not_averaged_note(runs),
    schedules=_schedules(labels, runs),
  )


def _settings_rows(runs: Sequence[Run]) -> list[list[str]]:
  """Returns what was run and on what: a name, then the value of each run."""
  rows = [(name, [run.results[key] for run in runs]) for name, key in _SETTINGS.items()]
  skipped = [run.results.get("skipped_records", {}) for run in runs]
  for split, name in (("train", "training"), ("test", "test")):
    rows.append((f"{name} images skipped", [part.get(split) for part in skipped]))
  rows.append(("states finished", [len(run.results["states"]) for run in runs]))
  rows.append(("folder", [run.folder for run in runs]))
  environments = [run.results["environment"] for run in runs]
  for key in dict.fromkeys(key for one in environments for key in one):
    rows.append((key.replace("_", " "), [one.get(key) for one in environments]))
  return [[name, *map(_cell, values)] for name, values in rows]


def _settings_tables(labels: Sequence[str], rows: list[list[str]]) -> list[_Table]:
  """Gives each run a column; many runs a row each, for what differs."""
  if len(labels) <= _MANY:
    return [("Settings and environment of each run", ["setting", *labels], rows)]
  common = [row[:2] for row in rows if len(set(row[1:])) == 1]
  different = [row for row in rows if len(set(row[1:])) > 1]
  columns, *body = map(list, zip(["run", *labels], *different, strict=True))
  tables_of = [
    ("Settings and environment: the same in all runs", ["setting", "all runs"], common),
    ("Settings and environment: what differs", columns, body),
  ]
  return tables_of if different else tables_of[:1]


def _schedules(labels: Sequence[str], runs: Sequence[Run]) -> list[_Table]:
  """Returns labels, columns and rows of the training schedules, equal ones once."""
  shown: list[tuple[list[str], list[str], list[list[str]]]] = []
  for label, run in zip(labels, runs, strict=True):
    columns = list(dict.fromkeys(name for row in run.schedule for name in row))
    rows = [[_cell(row.get(name)) for name in columns] for row in run.schedule]
    same = next((known for known, *table in shown if table == [columns, rows]), None)
    if same is None:
      shown.append(([label], columns, rows))
    else:
      same.append(label)
  return [(", ".join(same), columns, rows) for same, columns, rows in shown]


def _cell(value: Any) -> str:
  if value is None or value == "":
    return "-"
  return f"{value:.6g}" if isinstance(value, float) else str(value)
