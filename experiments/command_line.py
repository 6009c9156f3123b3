"""What the scripts of this folder share: help, flags and errors on the command line."""

import pathlib
import sys
import textwrap
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that the scripts run without being installed

from absl import flags

from ssil_jax.errors import ConfigError, UserError


def wants_help(argv: Sequence[str]) -> bool:
  """Whether one of the arguments asks for help."""
  return not {"-h", "-?", "-help", "--help"}.isdisjoint(argv[1:])


def flag_help(name: str, text: str, *, prefix: str = "--") -> str:
  """The lines of the help on one flag, or on one choice of a flag."""
  return f"  {prefix}{name}\n{textwrap.indent(textwrap.fill(text, 76), ' ' * 6)}"


def read_flags(flag_values: flags.FlagValues, argv: Sequence[str]) -> None:
  """Sets the flags from the command line.

  Raises:
    ConfigError: an argument is no flag, is unknown or has a wrong value.
  """
  try:
    rest = flag_values(argv)
  except flags.Error as error:
    raise ConfigError(" ".join(str(error).split())) from error
  except UnicodeDecodeError as error:
    raise ConfigError(f"--flagfile is not a text file: {error}") from error
  if len(rest) > 1:
    raise ConfigError(f"{rest[1]!r} is not a flag: flags are written --name=value")


def print_error(error: UserError) -> int:
  """Prints the lines of an error; returns the exit code."""
  for line in str(error).splitlines():
    print(f"error: {line}", file=sys.stderr)
  return error.exit_code
