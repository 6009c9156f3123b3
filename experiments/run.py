"""Trains a class-incremental model and reports its accuracy after every state."""

import dataclasses
import signal
import sys
from collections.abc import Sequence
from typing import Any

import command_line
from absl import flags
from rich.console import Console

from ssil_jax import config as config_lib
from ssil_jax.data.opening import check_dataset_name
from ssil_jax.distributed import collectives, launch
from ssil_jax.distributed.preemption import Interrupted, interrupts
from ssil_jax.errors import ConfigError, UserError
from ssil_jax.methods import METHODS, Method, get_method
from ssil_jax.reports import page, tables
from ssil_jax.training import devices, loop

# Not the docstring, which `python -OO` leaves out.
_USAGE = """Trains a class-incremental model and reports its accuracy after every state.

  python experiments/run.py --flagfile=quickstart.cfg --method=ft
  python experiments/run.py --flagfile=imagenet.cfg --data_dir=DIR
  python experiments/run.py --flagfile=imagenet.cfg --dataset=image_folder --data_dir=DIR

A flag file is looked up as given, then beside this script; later flags win. The same
command line again continues a run that was interrupted.
"""
_SCHEDULE = (
  "epochs_first",
  "epochs",
  "learning_rate",
  "learning_rate_by_state",
  "milestones_first",
  "milestones",
  "learning_rate_drop",
)


def define_flags(flag_values: flags.FlagValues) -> None:
  """A flag for each field of Config, None where it was not given."""
  for field in dataclasses.fields(config_lib.Config):
    define = {
      str: flags.DEFINE_string,
      int: flags.DEFINE_integer,
      float: flags.DEFINE_float,
      bool: flags.DEFINE_boolean,
    }.get(field.type, flags.DEFINE_list)
    define(field.name, None, field.metadata["help"], flag_values=flag_values)


def help_text() -> str:
  """All flags with their defaults."""
  lines = [_USAGE, "Flags:"]
  for field in dataclasses.fields(config_lib.Config):
    text = field.metadata["help"]
    if field.name in config_lib.DEFAULTS and "(default" not in text:
      default = config_lib.DEFAULTS[field.name]
      text += f" (default: {default if default != '' else 'none'})"
    lines.append(command_line.flag_help(field.name, text))
  lines += [
    "",
    "Methods, each with its defaults (ssil_jax/methods/ has their source):",
  ]
  for name, method in METHODS.items():
    text = f"{method.title}: {', '.join(_method_defaults(method))}"
    lines.append(command_line.flag_help(name, text, prefix=""))
  return "\n".join(lines)


def _method_defaults(method: Method) -> list[str]:
  """A method's schedule and what else it has of its own, each as text."""
  config = config_lib.make_config({}, method.defaults, method.fixed)
  names = dict.fromkeys((*_SCHEDULE, *method.defaults, *method.settings))
  texts = []
  for name in names:
    value = getattr(config, name)
    shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
    texts.append(f"{name} {shown}")
  return [*texts, *(f"always {name} {value}" for name, value in method.fixed.items())]


def parse(argv: Sequence[str]) -> config_lib.Config:
  """The command line as a Config; raises ConfigError."""
  flag_values = flags.FlagValues()
  define_flags(flag_values)
  command_line.read_flags(flag_values, argv)
  values: dict[str, Any] = flag_values.flag_values_dict()
  values = {
    field.name: values[field.name] for field in dataclasses.fields(config_lib.Config)
  }
  for name in ("milestones_first", "milestones"):
    values[name] = _whole_numbers(name, values[name])
  method = get_method(values["method"] or config_lib.DEFAULTS["method"])
  config = config_lib.make_config(values, method.defaults, method.fixed)
  check_dataset_name(config.dataset)
  return config


def _whole_numbers(name: str, items: list[str] | None) -> tuple[int, ...] | None:
  if items is None:
    return None
  try:
    return tuple(int(item) for item in items)
  except ValueError as error:
    raise ConfigError(
      f"--{name}={','.join(items)} must be whole numbers with commas between"
    ) from error


def main(argv: Sequence[str]) -> int:
  if command_line.wants_help(argv):
    print(help_text())
    return 0
  # A file or pipe has no width to fit into: let the tables keep their lines.
  width = None if sys.stdout.isatty() else 100
  # Paths may look like emoji codes.
  console = Console(highlight=False, emoji=False, width=width)
  try:
    config = parse(argv)
    devices.prepare_cpu_devices(config)
    with launch.connected(config), interrupts() as requests:
      console.quiet = not collectives.is_main()
      results = loop.run(config, console, check_interrupt=requests.check)
      workdir = config_lib.workdir_path(config)
      if collectives.is_main():
        path = page.write_report([workdir], workdir / "report.html")
  except UserError as error:
    return command_line.print_error(error)
  except Interrupted as interrupt:
    print(
      f"{interrupt}; the same command continues from the last checkpoint", file=sys.stderr
    )
    return interrupt.exit_code
  except KeyboardInterrupt:  # before the run began
    print("interrupted", file=sys.stderr)
    return 128 + signal.SIGINT
  if console.quiet:
    return 0
  console.print(tables.format_table(results))
  console.print(f"report: {path}", markup=False, soft_wrap=True)
  return 0


if __name__ == "__main__":
  command_line.execute(main)
