"""Says which classes photos are of, by a trained model."""

import csv
import io
import json
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import flags

from ssil_jax.commands import command_line
from ssil_jax.errors import ConfigError, DataError, UserError
from ssil_jax.progress import ProgressBars

# Not the docstring, which `python -OO` leaves out.
_USAGE = """Says which classes photos are of, by a trained model.

  python experiments/predict.py --workdir=W PHOTO_OR_FOLDER...

A folder stands for all images in it and below it. W is the work directory of a
run; its training data are not needed. Exit code 2 if no photo could be read.
"""
_HELP = {
  "workdir": "work directory of a run, with its model",
  "state": "which of the model's states answers (default: the last)",
  "format": "table, json or csv (default: table)",
  "top": "how many classes to name for each photo (default: 5)",
  "batch_size": "photos that the network sees at a time (default: 64)",
  "method": "MODULE:NAME of a method of your own that the model was trained by",
}
_FORMATS = ("table", "json", "csv")


class Request(NamedTuple):
  """Holds what a command line asks for."""

  workdir: str
  paths: tuple[str, ...]
  state: int | None
  format: str
  top: int
  batch_size: int
  method: str | None


def help_text() -> str:
  """Returns all flags."""
  return command_line.help_of_flags(_USAGE, _HELP)


def parse(argv: Sequence[str]) -> Request:
  """Reads the command line; raises ConfigError."""
  values = flags.FlagValues()
  for name, default in (("workdir", None), ("method", None), ("format", "table")):
    flags.DEFINE_string(name, default, _HELP[name], flag_values=values)
  for name, default in (("state", None), ("top", 5), ("batch_size", 64)):
    flags.DEFINE_integer(name, default, _HELP[name], flag_values=values)
  paths = command_line.read_flags(values, argv, takes_paths=True)
  given = Request(paths=tuple(paths), **values.flag_values_dict())
  if not given.workdir:
    raise ConfigError("--workdir is missing: give the work directory of a run")
  if not given.paths:
    raise ConfigError("no photo is given: name photos, or folders of photos")
  for name in ("top", "batch_size"):
    if getattr(given, name) < 1:
      raise ConfigError(f"--{name}={getattr(given, name)} must be 1 or more")
  if given.format not in _FORMATS:
    raise ConfigError(
      f"--format={given.format} is unknown; choose from: {', '.join(_FORMATS)}"
    )
  return given


def main(argv: Sequence[str]) -> int:
  """Runs the command; returns the exit code."""
  if command_line.wants_help(argv):
    print(help_text())
    return 0
  # Only now: they take seconds to import, and help needs none of them.
  with command_line.importing():
    from rich.console import Console

    from ssil_jax.distributed.preemption import Interrupted, interrupts
    from ssil_jax.model.trained import load, paths_of
    from ssil_jax.training import compilation

  try:
    request = parse(argv)
    with interrupts() as check_interrupt, compilation.kept("", warn=_say):
      paths = list(paths_of(request.paths))
      model = load(
        request.workdir,
        state=request.state,
        method=request.method,
        warn=_say,
      )
      bad = []

      def on_bad(error):
        bad.append(error)
        _say(f"warning: {error}")

      # On standard error: what is printed may go to another program.
      console = Console(stderr=True, quiet=not sys.stderr.isatty())
      with ProgressBars(console, check_interrupt) as bars:
        predictions = model.predict(
          paths,
          top=request.top,
          batch_size=request.batch_size,
          on_bad=on_bad,
          advance=bars.add("predicting", len(paths), "photos"),
        )
  except UserError as error:
    return command_line.print_error(error)
  except Interrupted as interrupt:
    print("interrupted", file=sys.stderr)
    return interrupt.exit_code
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    return 128 + signal.SIGINT
  if predictions or request.format == "json":
    print(_FORMATTERS[request.format](predictions), end="")
  if not predictions:
    return command_line.print_error(DataError(f"none of {len(bad)} photos can be read"))
  if bad:
    _say(f"warning: {len(bad)} of {len(paths)} photos cannot be read and are left out")
  return 0


def _say(line: str) -> None:
  print(command_line.printable(line), file=sys.stderr)


def _table(predictions: Sequence[Any]) -> str:
  from rich.console import Console
  from rich.table import Column, Table
  from rich.text import Text

  def cell(text: str) -> Text:
    return Text(command_line.printable(text))  # a name may look like markup

  # Long names go on in the next line, whole.
  headers = ("photo", "class", "probability", "others")
  table = Table(*(Column(header, overflow="fold") for header in headers))
  for file, classes in predictions:
    best, *others = classes
    told = ", ".join(f"{name} {probability:.1%}" for name, probability in others)
    table.add_row(cell(file), cell(best.name), f"{best.probability:.1%}", cell(told))
  text = io.StringIO()
  width = None if sys.stdout.isatty() else 160
  Console(file=text, width=width, emoji=False, highlight=False).print(table)
  return text.getvalue()


def _json(predictions: Sequence[Any]) -> str:
  rows = [
    {"file": file, "classes": [pair._asdict() for pair in classes]}
    for file, classes in predictions
  ]
  return json.dumps(rows, indent=1) + "\n"


def _csv(predictions: Sequence[Any]) -> str:
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(["file", "rank", "class", "probability"])
  for file, classes in predictions:
    for rank, (name, probability) in enumerate(classes, start=1):
      writer.writerow([file, rank, name, f"{probability:.6g}"])
  return text.getvalue()


_FORMATTERS: dict[str, Callable[[Sequence[Any]], str]] = {
  "table": _table,
  "json": _json,
  "csv": _csv,
}
