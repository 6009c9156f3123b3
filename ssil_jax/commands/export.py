"""Writes a trained model for other programs."""

import signal
import sys
from collections.abc import Sequence
from typing import NamedTuple

from absl import flags

from ssil_jax.commands import command_line
from ssil_jax.errors import ConfigError, UserError

# Not the docstring, which `python -OO` leaves out.
_USAGE = """Writes a trained model for other programs.

  python experiments/export.py --workdir=W --format=onnx --output=DIR

W is the work directory of a run; its training data are not needed. DIR, a new
folder, gets the model's file and card.json; docs/models.md shows how to load
each format.
"""
_HELP = {
  "workdir": "work directory of a run, with its model",
  "format": "jax: jax.export, for CPU, CUDA and TPU; onnx (pip install 'ssil-jax[onnx]'); "
  "safetensors: parameters by the names of torchvision's ResNet-18 (default: jax)",
  "output": "a new folder, or an empty one",
  "state": "which of the model's states is written (default: the last)",
  "method": "MODULE:NAME of a method of your own that the model was trained by",
}
_FORMATS = ("jax", "onnx", "safetensors")


class Request(NamedTuple):
  """Holds what a command line asks for."""

  workdir: str
  format: str
  output: str
  state: int | None
  method: str | None


def help_text() -> str:
  """Returns all flags."""
  return command_line.help_of_flags(_USAGE, _HELP)


def parse(argv: Sequence[str]) -> Request:
  """Reads the command line; raises ConfigError."""
  values = flags.FlagValues()
  for name in ("workdir", "output", "method"):
    flags.DEFINE_string(name, None, _HELP[name], flag_values=values)
  flags.DEFINE_string("format", "jax", _HELP["format"], flag_values=values)
  flags.DEFINE_integer("state", None, _HELP["state"], flag_values=values)
  command_line.read_flags(values, argv)
  given = Request(**values.flag_values_dict())
  if not given.workdir:
    raise ConfigError("--workdir is missing: give the work directory of a run")
  if not given.output:
    raise ConfigError("--output is missing: name a new folder for the exported model")
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
  try:
    request = parse(argv)
    # Only now: they take seconds to import, and help needs none of them.
    from rich.filesize import decimal as as_bytes

    from ssil_jax.model.trained import load

    model = load(
      request.workdir,
      state=request.state,
      method=request.method,
      warn=lambda line: print(command_line.printable(line), file=sys.stderr),
    )
    written = model.export(request.output, format=request.format)
  except UserError as error:
    return command_line.print_error(error)
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    return 128 + signal.SIGINT
  for path, size in written.items():
    print(command_line.printable(f"{path} ({as_bytes(size)})"))
  return 0
