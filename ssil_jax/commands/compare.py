"""Compares runs: tables on the terminal and a page with figures."""

import pathlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from absl import flags

from ssil_jax.commands import command_line
from ssil_jax.errors import ConfigError, UserError
from ssil_jax.reports.exports import KINDS
from ssil_jax.reports.results import Run, load_runs

# Not the docstring, which `python -OO` leaves out.
_USAGE = """Compares runs: tables on the terminal and a page with figures.

Runs that differ in nothing but the seed are also shown together, with their
mean and standard deviation. Of several work directories, one whose files are
wrong is named and left out.

Example:
  python experiments/compare.py --workdir=runs/digits-ft \\
      --workdir=runs/digits-ssil
"""
HELP = {
  "workdir": "work directory of a run; give the flag once for every run",
  "output": "where to write the page: a file ending in .html, or a folder that gets "
  "report.html; its figures are also saved as PNG and SVG files in the folder figures "
  "beside it, its tables as CSV files in the folder tables (default: report.html)",
  "highlight": "the method that stands out on the page and that the others are tested "
  "against, as --method names it (default: ssil, where it is among others)",
  "export": "further forms in which all tables of the page are saved in the folder tables: "
  f"{', '.join(KINDS)}; several with commas",
}


class Request(NamedTuple):
  """Holds what the command line asks for."""

  workdirs: list[pathlib.Path]
  output: pathlib.Path  # the page
  highlight: str | None
  exports: list[str]


def help_text() -> str:
  """Returns all flags."""
  return command_line.help_of_flags(_USAGE, HELP)


def parse(argv: Sequence[str]) -> Request:
  """Reads the command line; raises ConfigError."""
  flag_values = flags.FlagValues()
  flags.DEFINE_multi_string("workdir", [], HELP["workdir"], flag_values=flag_values)
  flags.DEFINE_string("output", "report.html", HELP["output"], flag_values=flag_values)
  flags.DEFINE_string("highlight", None, HELP["highlight"], flag_values=flag_values)
  flags.DEFINE_string("export", "", HELP["export"], flag_values=flag_values)
  command_line.read_flags(flag_values, argv)
  if not flag_values.workdir:
    raise ConfigError("--workdir is missing: give it once for every run to compare")
  exports = kinds_of(flag_values.export)
  output = pathlib.Path(flag_values.output).expanduser()
  return Request(
    [pathlib.Path(workdir).expanduser() for workdir in flag_values.workdir],
    output if output.suffix == ".html" else output / "report.html",
    flag_values.highlight,
    exports,
  )


def kinds_of(given: str) -> list[str]:
  """Returns the kinds that --export names; raises ConfigError."""
  kinds = list(filter(None, given.split(",")))
  for kind in kinds:
    if kind not in KINDS:
      raise ConfigError(f"--export={kind} is unknown; choose from: {', '.join(KINDS)}")
  return kinds


def main(argv: Sequence[str]) -> int:
  """Returns the exit code."""
  if command_line.wants_help(argv):
    print(help_text())
    return 0
  from rich.console import Console

  from ssil_jax.reports import labels, page, tables

  try:
    request = parse(argv)
    runs, skipped = load_runs(request.workdirs)
    _check_highlight(request.highlight, runs)
    page.write_study(
      runs,
      request.output,
      skipped=skipped,
      highlight=request.highlight,
      exports=request.exports,
    )
  except UserError as error:
    return command_line.print_error(error)
  for reason in skipped:
    print(f"warning: {command_line.printable(reason)}", file=sys.stderr)
  console = Console(emoji=False)  # paths may look like emoji codes
  console.print(tables.comparison_table(runs))
  notes = [labels.not_averaged_note(runs), labels.comparability_note(runs)]
  lines = [*notes, f"report: {request.output.resolve()}"]
  if over_seeds := labels.over_seeds(runs):
    console.print()
    console.print(tables.seed_table(over_seeds))
    lines.insert(0, over_seeds.note)
  for line in filter(None, lines):
    console.print(line, markup=False, highlight=False, soft_wrap=True)
  return 0


def _check_highlight(name: str | None, runs: Sequence[Run]) -> None:
  known = list(dict.fromkeys(str(run.results.get("method")) for run in runs))
  if name is not None and name not in known:
    raise ConfigError(
      f"--highlight={name} is no method of these runs; choose from: {', '.join(known)}"
    )
