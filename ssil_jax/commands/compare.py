"""Compares runs: tables on the terminal and a page with figures."""

import pathlib
from collections.abc import Sequence

from absl import flags
from rich.console import Console

from ssil_jax.commands import command_line
from ssil_jax.errors import ConfigError, UserError
from ssil_jax.reports import page, tables
from ssil_jax.reports.results import load_run

# Not the docstring, which `python -OO` leaves out.
_USAGE = """Compares runs: tables on the terminal and a page with figures.

Runs that differ in nothing but the seed are also shown together, with their
mean and standard deviation.

Example:
  python experiments/compare.py --workdir=runs/digits-ft \\
      --workdir=runs/digits-ssil
"""
_HELP = {
  "workdir": "work directory of a run; give the flag once for every run",
  "output": "where to write the page: a file ending in .html, or a folder that gets "
  "report.html; figures are also saved as PNG files in the folder figures beside it "
  "(default: report.html)",
}


def help_text() -> str:
  """Returns all flags."""
  return command_line.help_of_flags(_USAGE, _HELP)


def parse(argv: Sequence[str]) -> tuple[list[pathlib.Path], pathlib.Path]:
  """The work directories and the page from the command line; raises ConfigError."""
  flag_values = flags.FlagValues()
  flags.DEFINE_multi_string("workdir", [], _HELP["workdir"], flag_values=flag_values)
  flags.DEFINE_string("output", "report.html", _HELP["output"], flag_values=flag_values)
  command_line.read_flags(flag_values, argv)
  if not flag_values.workdir:
    raise ConfigError("--workdir is missing: give it once for every run to compare")
  workdirs = [pathlib.Path(workdir).expanduser() for workdir in flag_values.workdir]
  output = pathlib.Path(flag_values.output).expanduser()
  return workdirs, output if output.suffix == ".html" else output / "report.html"


def main(argv: Sequence[str]) -> int:
  """Returns the exit code."""
  if command_line.wants_help(argv):
    print(help_text())
    return 0
  try:
    workdirs, output = parse(argv)
    runs = [load_run(workdir) for workdir in workdirs]
    page.write_report(workdirs, output)
  except UserError as error:
    return command_line.print_error(error)
  console = Console(emoji=False)  # paths may look like emoji codes
  console.print(tables.comparison_table(runs))
  notes = [tables.not_averaged_note(runs), tables.comparability_note(runs)]
  lines = [*notes, f"report: {output.resolve()}"]
  if over_seeds := tables.over_seeds(runs):
    console.print()
    console.print(tables.seed_table(over_seeds))
    lines.insert(0, over_seeds.note)
  for line in filter(None, lines):
    console.print(line, markup=False, highlight=False, soft_wrap=True)
  return 0
