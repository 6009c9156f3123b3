"""Compares finished runs: a table on the terminal and a page with figures.

Example:
  python experiments/compare.py --workdir=runs/digits-ft --workdir=runs/digits-ssil
"""

import pathlib
import sys

from absl import app, flags
from rich.console import Console

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from ssil_jax import report
from ssil_jax.errors import UserError

_WORKDIR = flags.DEFINE_multi_string(
  "workdir", None, "work directory of a run; give the flag once for every run"
)
_OUTPUT = flags.DEFINE_string(
  "output",
  "report.html",
  "where to write the page: a file ending in .html, or a folder that gets report.html; "
  "figures are also saved as PNG files in the folder figures beside it",
)


def main(argv: list[str]) -> int:
  """Returns the exit code."""
  try:
    output = _output_path(argv)
    workdirs = [pathlib.Path(workdir).expanduser() for workdir in _WORKDIR.value]
    runs = [report.load_run(workdir) for workdir in workdirs]
    report.write_report(workdirs, output)
  except UserError as error:
    return _fail(str(error), error.exit_code)
  console = Console()
  console.print(report.comparison_table(runs))
  for line in (report.comparability_note(runs), f"report: {output.resolve()}"):
    if line:
      console.print(line, markup=False, highlight=False, soft_wrap=True)
  return 0


def _output_path(argv: list[str]) -> pathlib.Path:
  """The page's path from the flags; raises UserError for what flags cannot say."""
  if argv[1:]:
    raise UserError(f"unexpected argument {argv[1]!r}: put --workdir= before a folder")
  if not _WORKDIR.value:
    raise UserError("--workdir is missing: give it once for every run to compare")
  output = pathlib.Path(_OUTPUT.value).expanduser()
  return output if output.suffix == ".html" else output / "report.html"


def _fail(message: str, exit_code: int) -> int:
  for line in message.splitlines():
    print(f"error: {line}", file=sys.stderr)
  return exit_code


def _parse_flags(argv: list[str]) -> list[str]:
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    sys.exit(_fail(" ".join(str(error).split()), UserError.exit_code))


if __name__ == "__main__":
  app.run(main, flags_parser=_parse_flags)
