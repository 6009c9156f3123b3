"""The commands: `ssil-jax COMMAND ...`, or `python experiments/COMMAND.py ...`."""

import importlib
import os
import sys

COMMANDS = {
  "run": "train a class-incremental model",
  "learn": "teach a trained model new classes",
  "predict": "say which classes photos are of",
  "export": "write a trained model for other programs",
  "serve": "answer on a page: name photos, learn new classes",
  "sweep": "run several methods with several seeds, and compare them",
  "paper": "reproduce tables and figures of the paper",
  "prepare": "prepare a data set from its official archives",
  "compare": "compare runs: tables, figures and a page",
}


def _open_closed_streams() -> None:
  """Opens what a shell has closed (`>&-`).

  Else the next file to be opened would get the number of standard output, and with it all
  that libraries print.
  """
  for number, name in enumerate(("stdin", "stdout", "stderr")):
    if getattr(sys, name) is None:
      null = os.open(os.devnull, os.O_RDWR)
      if null != number:
        os.dup2(null, number)
        os.close(null)
      os.set_inheritable(number, True)
      mode = "w" if number else "r"
      stream = open(number, mode, closefd=False)  # noqa: SIM115 - for good
      setattr(sys, name, stream)
      setattr(sys, f"__{name}__", stream)


def execute(command: str) -> None:
  """Runs a command with this process's arguments, and ends the process."""
  _open_closed_streams()  # before libraries open any file
  from ssil_jax.commands import command_line

  with command_line.importing():
    module = importlib.import_module(f"ssil_jax.commands.{command}")
  command_line.execute(module.main)


def main() -> None:
  """Runs `ssil-jax COMMAND ...`."""
  name, *arguments = sys.argv
  if arguments and arguments[0] in COMMANDS:
    command = arguments[0]
    sys.argv = [f"{name} {command}", *arguments[1:]]
    execute(command)
    return
  lines = [f"  {command:9}{text}" for command, text in COMMANDS.items()]
  usage = "\n".join(["Usage: ssil-jax COMMAND ... (COMMAND --help says more)", "", *lines])
  if not arguments or arguments[0] in ("-h", "--help"):
    print(usage)
    return
  _open_closed_streams()
  print(f"error: there is no command {arguments[0]!r}\n{usage}", file=sys.stderr)
  sys.exit(2)
