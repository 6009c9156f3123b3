"""Teaches a trained model new classes from a folder of photos."""

import contextlib
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from ssil_jax import methods as methods_lib
from ssil_jax.commands import command_line
from ssil_jax.commands.run import define_settings, given_settings
from ssil_jax.errors import ConfigError, UserError
from ssil_jax.system import keep_freed_memory

# Not the docstring, which `python -OO` leaves out.
_USAGE = """Teaches a trained model new classes from a folder of photos.

  python experiments/learn.py --workdir=W --data_dir=NEW

W is the work directory of a run that is complete; the photos that it was
trained on are not needed. NEW is NEW/CLASS/*, a share of which is kept for
testing, or NEW/train/CLASS/* and NEW/test/CLASS/*. Rerun the command to resume
what was interrupted; until the end, the model that answers is the old one.
"""
_HELP = {
  "workdir": "work directory of the model",
  "data_dir": "folder with a folder of photos for each new class",
  "more_of_known": "add photos of classes that are known, which are refused otherwise, to "
  "those that the exemplars of their class are chosen from (default: False)",
  "method": "MODULE:NAME of a method of your own that the model was trained by",
  "...": "any setting of run.py (run.py --help) that is to be another one for this state, "
  "such as --epochs=40, --batch_size_new=16, --learning_rate=0.05, --test_fraction=0.3, "
  "--keep_test=20, --memory_size=500 (default: those of the state before); they are kept "
  "in the model",
}


class Request(NamedTuple):
  """Holds what a command line asks for."""

  workdir: str
  data_dir: str
  more_of_known: bool
  method: str | None
  settings: Mapping[str, Any]


def help_text() -> str:
  """Returns all flags."""
  return command_line.help_of_flags(_USAGE, _HELP)


def parse(argv: Sequence[str]) -> Request:
  """Reads the command line; raises ConfigError."""
  names = flags.FlagValues()
  flags.DEFINE_string("method", None, "", flag_values=names)
  arguments = ["", *command_line.expand_flagfiles(argv[1:])]
  with contextlib.suppress(flags.Error):  # said when all flags are read
    names(arguments, known_only=True)
  own = names.method if names.method and ":" in names.method else None
  more = [methods_lib.get_method(own)] if own else []
  values = define_settings([*methods_lib.METHODS.values(), *more])
  help_ = _HELP["more_of_known"]
  flags.DEFINE_boolean("more_of_known", None, help_, flag_values=values)
  command_line.read_flags(values, argv)
  settings = given_settings(values)
  for name in ("workdir", "data_dir"):
    if not settings.get(name):
      raise ConfigError(f"--{name} is missing: {_HELP[name]}")
  return Request(
    settings.pop("workdir"),
    settings.pop("data_dir"),
    settings.pop("more_of_known", False),
    settings.pop("method", None),
    settings,
  )


def main(argv: Sequence[str]) -> int:
  """Runs the command; returns the exit code."""
  if command_line.wants_help(argv):
    print(help_text())
    return 0
  keep_freed_memory()  # before imports and photos start threads
  # Only now: they take seconds to import, and help needs none of them.
  with command_line.importing():
    from rich.console import Console

    from ssil_jax.distributed.preemption import Interrupted, interrupts
    from ssil_jax.model.learning import learn
    from ssil_jax.paths import real_path
    from ssil_jax.reports import tables
    from ssil_jax.reports.results import load_run

  width = None if sys.stdout.isatty() else 100
  # Paths may look like emoji codes.
  console = Console(highlight=False, emoji=False, width=width)
  try:
    request = parse(argv)
    with interrupts() as check_interrupt:
      learnt = learn(
        request.workdir,
        request.data_dir,
        more_of_known=request.more_of_known,
        method=request.method,
        console=console,
        check_interrupt=check_interrupt,
        settings=request.settings,
      )
    from ssil_jax.reports import page  # only now: matplotlib takes half a second

    workdir = real_path(request.workdir)
    path = page.write_report([workdir], workdir / "report.html")
    row = load_run(workdir).results["states"][-1]  # whose names drive no terminal
  except UserError as error:
    return command_line.print_error(error)
  except Interrupted as interrupt:
    print(
      f"{interrupt}; rerun the command to resume from the last checkpoint", file=sys.stderr
    )
    return interrupt.exit_code
  except KeyboardInterrupt:  # before the run began, or for the second time
    print("interrupted", file=sys.stderr)
    return 128 + signal.SIGINT
  if learnt.was_known:
    console.print(f"state {learnt.state} has learnt these photos already")
  console.print(tables.learnt_table(row))
  console.print(f"report: {path}", markup=False, soft_wrap=True)
  return 0
