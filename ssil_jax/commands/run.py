"""Trains a class-incremental model and reports its accuracy after every state."""

import dataclasses
import pathlib
import signal
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from ssil_jax import config as config_lib
from ssil_jax import methods as methods_lib
from ssil_jax.commands import command_line
from ssil_jax.config import Config
from ssil_jax.errors import ConfigError, UserError
from ssil_jax.settings import fields_of, owners_of
from ssil_jax.system import keep_freed_memory

# Not the docstring, which `python -OO` leaves out.
_USAGE = """Trains a class-incremental model and reports its accuracy after every state.

  python experiments/run.py --flagfile=quickstart.cfg --method=ft
  python experiments/run.py --flagfile=imagenet.cfg --data_dir=DIR
  python experiments/run.py --dataset=image_folder --data_dir=DIR

A flag file is looked up as given, then in experiments/; later flags win. Rerun
the command to resume a run that was interrupted.
"""


_DEFINE = {
  str: flags.DEFINE_string,
  int: flags.DEFINE_integer,
  float: flags.DEFINE_float,
  bool: flags.DEFINE_boolean,
}


class Request(NamedTuple):
  """Holds what a command line asks for."""

  config: Config
  given: Mapping[str, Any]  # settings that are not left at their defaults
  ignored: tuple[str, ...]  # settings of other methods


def help_text(argv: Sequence[str] = ("run.py",)) -> str:
  """Returns all flags with their defaults: shared ones by topic, then each method's.

  Raises:
    ConfigError: the command line names a method of one's own that cannot be had.
  """
  chosen = _method_name(command_line.expand_flagfiles(argv[1:]))
  own = {chosen: methods_lib.get_method(chosen)} if ":" in chosen else {}
  names = ", ".join(command_line.flagfile_names())
  lines = [_USAGE, textwrap.fill(f"Flag files: {names}", 78)]
  by_topic: dict[str, list[str]] = {}
  for field in fields_of(Config):
    by_topic.setdefault(field.metadata["topic"], []).append(_field_help(field))
  for topic, helps in by_topic.items():
    lines += ["", f"{topic}:", *helps]
  lines += ["", "Methods, each with its own settings and the defaults of its paper:"]
  for name, method in {**methods_lib.METHODS, **own}.items():
    defaults = ", ".join(_method_defaults(method))
    lines.append(command_line.flag_help(name, f"{method.title}: {defaults}", prefix=""))
    lines += [_field_help(field, indent=4) for field in fields_of(method.settings)]
  return "\n".join(lines)


def _field_help(field: dataclasses.Field, *, indent: int = 0) -> str:
  text = field.metadata["help"]
  if field.default is not None and "(default" not in text:
    text += f" (default: {field.default if field.default != '' else 'none'})"
  return command_line.flag_help(field.name, text, indent=indent)


def _method_defaults(method: "methods_lib.Method") -> list[str]:
  """Returns a method's schedule and what else its paper gives it, each as text."""
  config = config_lib.make_config({}, method)
  schedule = (
    *("epochs_first", "epochs", "learning_rate", "learning_rate_by_state"),
    *("milestones_first", "milestones", "learning_rate_drop", "learning_rate_schedule"),
  )
  names = dict.fromkeys((*schedule, *method.defaults))
  texts = [f"{name} {_shown(getattr(config, name))}" for name in names]
  return [*texts, *(f"always {name} {value}" for name, value in method.fixed.items())]


def _shown(value: Any) -> str:
  return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def parse(argv: Sequence[str], *, methods: Sequence[str] = ()) -> Request:
  """Reads the command line.

  Args:
    argv: with the name of the program.
    methods: whose settings are known, too; those of the package always are.

  Raises:
    ConfigError: a flag is unknown or has a wrong value, or flags contradict.
  """
  from ssil_jax.data.opening import check_dataset_name

  arguments = command_line.expand_flagfiles(argv[1:])
  name = _method_name(arguments)
  method = methods_lib.get_method(name)
  methods_lib.source_hash(name)  # of the code that was just loaded, whatever is saved later
  others = {other: methods_lib.get_method(other) for other in methods}
  known = {**methods_lib.METHODS, **others, name: method}
  owners = owners_of(known)
  flag_values = define_settings(known.values())
  hint = "" if ":" in name else "; a setting of your own method needs --method=MODULE:NAME"
  command_line.read_flags(flag_values, [argv[0], *arguments], hint=hint)
  given = given_settings(flag_values)
  ignored = given.keys() & owners.keys() - owners_of({name: method}).keys()
  notes = tuple(
    f"--{name} ({', '.join(owners[name])})" for name in given if name in ignored
  )
  given = {name: value for name, value in given.items() if name not in ignored}
  config = config_lib.make_config(given, method)
  check_dataset_name(config.dataset)
  return Request(config, given, notes)


def define_settings(methods: Iterable["methods_lib.Method"]) -> flags.FlagValues:
  """Defines a flag for each shared setting, and for each of some methods."""
  flag_values = flags.FlagValues()
  for settings in (Config, *(method.settings for method in methods)):
    for field in fields_of(settings):
      if field.name not in flag_values:
        define = _DEFINE.get(field.type, flags.DEFINE_list)
        define(field.name, None, field.metadata["help"], flag_values=flag_values)
  return flag_values


def given_settings(flag_values: flags.FlagValues) -> dict[str, Any]:
  """Returns the settings that were given; raises ConfigError for bad lists of numbers."""
  return {
    name: _whole_numbers(name, value) if isinstance(value, list) else value
    for name, value in flag_values.flag_values_dict().items()
    if value is not None
  }


def _method_name(arguments: Sequence[str]) -> str:
  """Returns the last --method."""
  values = flags.FlagValues()
  flags.DEFINE_string("method", config_lib.DEFAULTS["method"], "", flag_values=values)
  try:
    values(["", *arguments], known_only=True)
  except flags.Error:
    return config_lib.DEFAULTS["method"]  # said when all flags are read
  return values.method


def _whole_numbers(name: str, items: list[str]) -> tuple[int, ...]:
  try:
    return tuple(int(item) for item in items)
  except ValueError as error:
    raise ConfigError(
      f"--{name}={','.join(items)} must be whole numbers with commas between"
    ) from error


def arguments_of(given: Mapping[str, Any]) -> list[str]:
  """Returns settings as they are written on a command line."""
  return [f"--{name}={_shown(value)}" for name, value in given.items()]


def main(argv: Sequence[str]) -> int:
  """Runs the command; returns the exit code."""
  if command_line.wants_help(argv):
    try:
      print(help_text(argv))
    except ConfigError as error:
      return command_line.print_error(error)
    return 0
  keep_freed_memory()  # before imports and photos start threads
  # Only now: they take seconds to import, and help needs none of them.
  with command_line.importing():
    from rich.console import Console

    from ssil_jax.distributed import collectives, launch
    from ssil_jax.distributed.preemption import Interrupted, interrupts
    from ssil_jax.reports import tables
    from ssil_jax.reports.tuning import tuning_note
    from ssil_jax.training import devices, loop

  # A file or pipe has no width to fit into: let the tables keep their lines.
  width = None if sys.stdout.isatty() else 100
  # Paths may look like emoji codes.
  console = Console(highlight=False, emoji=False, width=width)
  try:
    request = parse(argv)
    config = request.config
    devices.prepare_cpu_devices(config)
    with launch.connected(config), interrupts() as check_interrupt:
      console.quiet = not collectives.is_main()
      if request.ignored:
        console.print(
          f"no effect on --method={config.method}: {', '.join(request.ignored)}",
          markup=False,
          soft_wrap=True,
        )
      path = config_lib.workdir_path(config) / "report.html"

      def report(workdir: pathlib.Path) -> dict[str, bytes]:
        from ssil_jax.reports import page  # only now: matplotlib takes half a second

        page.write_report([workdir], path)
        return {p.stem: p.read_bytes() for p in sorted(workdir.glob("figures/*.png"))}

      results = loop.run(config, console, check_interrupt=check_interrupt, report=report)
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
  if console.quiet:
    return 0
  console.print(tables.format_table(results))
  if results["tuned_on"]:
    console.print(tuning_note(results["tuned_on"]), markup=False, soft_wrap=True)
  console.print(f"report: {path}", markup=False, soft_wrap=True)
  return 0
