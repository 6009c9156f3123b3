"""Reads flags and flag files, and prints help and errors, for all commands."""

import collections
import contextlib
import gc
import io
import itertools
import os
import pathlib
import re
import signal
import sys
import textwrap
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence

from absl import flags

from ssil_jax.errors import ConfigError, OutputError, UserError
from ssil_jax.paths import EXPERIMENTS, address_mistakes
from ssil_jax.settings import LARGEST

_MOST_FLAGFILES = 100  # read in all: files that name files may multiply
_FLAGFILE_BYTES = 1 << 20
_LONGEST = 4096  # characters of a flag; a path has no more
# What absl says of a value that it cannot read, and what it means.
_KINDS = {
  "invalid literal for int": "a whole number",
  "could not convert string to float": "a number",
  "Non-boolean argument": "true or false",
  "comma separated list": "values with commas between",
}

_PATHS = ("archives", "data_dir", "from_workdir", "output", "workdir")  # of all scripts
# What follows the value of a flag in a line of a flag file, and is no part of it.
_ANOTHER_FLAG = re.compile(r"[,;\s]((?:--?|[\u2013\u2014]\s?)[A-Za-z]\w*)|\s(\w+)=")
_COMMENT = re.compile(r"\s(#|//|;)|#\s")
_QUOTES = "\"'\u201c\u201d\u2018\u2019"  # also those that word processors write


def execute(main: Callable[[Sequence[str]], int]) -> None:
  """Runs the main function of a script with this process's arguments, and ends it."""
  sys.stdout = _Stream(sys.stdout, "standard output")
  sys.stderr = _Stream(sys.stderr, "standard error")
  try:
    exit_code = main(sys.argv)
    sys.stdout.flush()
  except OutputError as error:
    unread = isinstance(error.__cause__, BrokenPipeError)  # as by `--help | head`
    exit_code = 128 + signal.SIGPIPE if unread else print_error(error)
  if exit_code:
    with contextlib.suppress(OutputError):
      sys.stderr.flush()
    # Libraries would go on: XLA compiling, a process waiting for the others to end as well.
    os._exit(exit_code)


@contextlib.contextmanager
def importing() -> Iterator[None]:
  """Spares Python's collector what is imported while the context lasts.

  Jax and what stands on it are a quarter of a million objects, all of which stay: looking
  through them again and again, for garbage, takes a tenth of the time to a first step.
  """
  enabled, before = gc.isenabled(), len(sys.modules)
  gc.disable()
  try:
    yield
  finally:
    if len(sys.modules) > before:
      gc.freeze()
    if enabled:
      gc.enable()


class _Stream(io.TextIOWrapper):
  """A standard stream whose errors are told apart from those of files."""

  def __init__(self, stream: io.TextIOWrapper, title: str):
    # The other stream stays as it is, for loggers that were made with it.
    super().__init__(
      stream.buffer,
      encoding=stream.encoding,
      # Where the encoding lacks a character, as in the C locale, an escape stands for it.
      errors="backslashreplace",
      line_buffering=stream.line_buffering,
      write_through=stream.write_through,
    )
    self._title = title

  def write(self, text: str) -> int:
    with self._errors_named():
      return super().write(text)

  def flush(self) -> None:
    with self._errors_named():
      super().flush()

  @contextlib.contextmanager
  def _errors_named(self) -> Iterator[None]:
    try:
      yield
    except OSError as error:
      raise OutputError(
        f"{self._title} cannot be written ({error.strerror}): send it elsewhere, and "
        "rerun the command to resume"
      ) from error


def wants_help(argv: Sequence[str]) -> bool:
  """Returns whether one of the arguments asks for help."""
  return not {"-h", "-?", "-help", "--help"}.isdisjoint(argv[1:])


def flag_help(name: str, text: str, *, prefix: str = "--", indent: int = 0) -> str:
  """Returns the lines of the help on one flag, or on one choice of a flag."""
  filled = textwrap.fill(text, 74 - indent)
  return textwrap.indent(
    f"{prefix}{name}\n{textwrap.indent(filled, '    ')}", " " * (2 + indent)
  )


def help_of_flags(usage: str, helps: Mapping[str, str]) -> str:
  """Returns the help of a command from the texts on its flags."""
  return "\n".join([usage, "Flags:", *itertools.starmap(flag_help, helps.items())])


def flagfile_names() -> list[str]:
  """Returns the flag files that ship with the package."""
  return sorted(path.name for path in EXPERIMENTS.glob("*.cfg"))


def read_flags(
  flag_values: flags.FlagValues,
  argv: Sequence[str],
  *,
  hint: str = "",
  takes_paths: bool = False,
) -> list[str]:
  """Sets the flags from the command line and the flag files that it names.

  Returns:
    The arguments that are no flags: paths, if the command takes any.

  Raises:
    ConfigError: an argument is no flag, is unknown or has a wrong value, or a flag file
      cannot be read. `hint` follows what is said of an unknown flag that is like no other.
  """
  arguments = expand_flagfiles(argv[1:])
  for argument in arguments:
    _check_text(argument)
  try:
    rest = flag_values([argv[0], *arguments])
  except flags.IllegalFlagValueError as error:
    raise ConfigError(_of_wrong_kind(str(error))) from error
  except flags.UnrecognizedFlagError as error:
    more = "" if "Did you mean" in str(error) else hint
    raise ConfigError(f"{error} (--help lists them all){more}") from error
  except (flags.Error, ValueError) as error:
    what = " ".join(str(error).split())
    raise ConfigError(f"{what}: flags are written --name=value") from error
  if len(rest) > 1 and not takes_paths:
    raise ConfigError(f"{rest[1]!r} is not a flag: flags are written --name=value")
  for name, value in flag_values.flag_values_dict().items():
    for item in value if isinstance(value, list) else [value]:
      if isinstance(item, str):
        _check_string(name, item, flag_values)
      elif isinstance(item, int) and abs(item) > LARGEST:
        raise ConfigError(
          f"--{name}={_shortened(str(item))} is too large a number: use one up to 2**53"
        )
  return rest[1:]


def split_passed_on(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """Returns what stands before --, with the name of the program, and what follows."""
  argv = list(argv)
  cut = argv.index("--") if "--" in argv else len(argv)
  return argv[:cut], argv[cut + 1 :]


def expand_flagfiles(arguments: Sequence[str]) -> list[str]:
  """Puts the flags in place of each --flagfile=FILE, also of those inside such files.

  A file is looked up as given, then in `EXPERIMENTS`. Lines that are empty or begin
  with # or // are comments.

  Raises:
    ConfigError: a file is missing, no text, names itself, or holds what is no flag.
  """
  expanded: list[str] = []
  waiting = collections.deque((argument, ()) for argument in arguments)
  files_read = 0
  while waiting:
    argument, within = waiting.popleft()  # within: the flag files it comes from
    option, equals, name = argument.partition("=")
    if option not in ("--flagfile", "-flagfile"):
      expanded.append(argument)
      continue
    if not equals and waiting:
      name, _ = waiting.popleft()
    path = _find_flagfile(name, within)
    files_read += 1
    if path in within or files_read > _MOST_FLAGFILES:
      what = "includes itself" if path in within else f"is file {files_read} to be read"
      raise ConfigError(
        f"--flagfile={name} in {within[-1] if within else 'the command line'} {what}: "
        "take it out"
      )
    lines = _lines_of_flagfile(path)
    waiting.extendleft((line, (*within, path)) for line in reversed(lines))
  return expanded


def _find_flagfile(name: str, within: tuple[str, ...]) -> str:
  places = [os.path.expanduser(name), str(EXPERIMENTS / name)]
  path = next(filter(os.path.isfile, places), None)
  if path is None:
    where = f" (in {within[-1]})" if within else ""
    raise ConfigError(
      f"--flagfile={_shortened(name)}{where} was not found, neither here nor in "
      f"experiments/, which has: {', '.join(flagfile_names())}"
    )
  return os.path.realpath(path)


def _lines_of_flagfile(path: str) -> list[str]:
  """Returns the flags of a file, one a line."""
  try:
    with open(path, "rb") as file:
      text = file.read(_FLAGFILE_BYTES + 1).decode("utf-8-sig")
  except OSError as error:
    raise ConfigError(f"--flagfile={path} cannot be read: {error.strerror}") from error
  except UnicodeDecodeError as error:
    raise ConfigError(
      f"--flagfile={path} is not a text file: it needs a flag on each line, --name=value"
    ) from error
  if len(text) > _FLAGFILE_BYTES:
    raise ConfigError(f"--flagfile={path} is larger than 1 MiB: is it a flag file?")
  lines = []
  for number, line in enumerate(text.split("\n"), start=1):
    line = line.strip()
    if not line or line.startswith(("#", "//")):
      continue
    try:
      lines.append(_flag_of_line(line))
    except ConfigError as error:
      raise ConfigError(
        f"--flagfile={path}: line {number}: {_shortened(line)!r} {error}"
      ) from error
  return lines


def _flag_of_line(line: str) -> str:
  """Returns `--name=value`, without quotes around the value; raises ConfigError."""
  name, equals, value = (part.strip() for part in line.partition("="))
  if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
    inner = value[1:-1]
    if value[0] not in inner:
      return f"{name}={inner}"
  if found := _ANOTHER_FLAG.search(line):
    raise ConfigError(
      f"has a second flag, {found[1] or found[2]}: give each a line of its own, or put "
      "quotes around a value that it belongs to"
    )
  if _COMMENT.search(line):
    raise ConfigError(
      "ends in a comment: give it a line of its own, or put quotes around a value that it "
      "belongs to"
    )
  if line.endswith("\\"):
    raise ConfigError("ends in a backslash: no line goes on in the next one")
  if not name.startswith("-") or " " in name:
    raise ConfigError("is not a flag: flags are written --name=value")
  if value and (value[0] in _QUOTES or value[-1] in _QUOTES):
    raise ConfigError(
      "has quotes that are not around the whole value: take them out, or put other ones "
      "around it"
    )
  return f"{name}{equals}{value}"


def _shortened(text: str) -> str:
  return text if len(text) <= 80 else f"{text[:60]}..."


def _check_text(argument: str) -> None:
  """Raises ConfigError for what no path, name or number holds."""
  shown = _shortened(argument)
  if len(argument) > _LONGEST:
    raise ConfigError(
      f"{shown} has {len(argument)} characters: give a flag {_LONGEST} at most"
    )
  if any(unicodedata.category(char) in ("Cc", "Cs") for char in argument):
    raise ConfigError(
      f"{shown!r} has control characters or is not in UTF-8: write it without them"
    )


def _check_string(name: str, value: str, flag_values: flags.FlagValues) -> None:
  """Raises ConfigError for what is no path of this machine, or holds a second flag."""
  if name in _PATHS and (mistakes := address_mistakes(name, value)):
    raise ConfigError(mistakes[0])
  if value.startswith("~"):
    try:
      pathlib.Path(value).expanduser()
    except RuntimeError as error:
      raise ConfigError(
        f"--{name}={value}: there is no such user: give the folder itself"
      ) from error
  for found in re.finditer(r"\s(--?\w+)", value):  # as quotes in a shell make it
    other = found[1].lstrip("-")
    if other in flag_values or other.removeprefix("no") in flag_values:
      raise ConfigError(
        f"--{name}={_shortened(value)} holds a second flag, {found[1]}: give it as an "
        "argument of its own, or rename what has such a name"
      )


def _of_wrong_kind(message: str) -> str:
  """Returns absl's message on a value, in plain words where they are known."""
  message = " ".join(message.split())
  for fragment, kind in _KINDS.items():
    flag, found, _ = message.partition(fragment)
    if found:
      return f"{_shortened(flag.removeprefix('flag ').split(': ')[0])} must be {kind}"
  return message


def print_error(error: UserError) -> int:
  """Prints the lines of an error; returns the exit code."""
  with contextlib.suppress(OutputError):  # then there is nowhere left to say it
    for line in filter(None, str(error).split("\n")):
      print(f"error: {printable(line)}", file=sys.stderr)
  return error.exit_code


def printable(line: str) -> str:
  """Escapes what drives a terminal, which names of files may hold, too."""
  return "".join(
    c if c.isprintable() else c.encode("unicode_escape").decode() for c in line
  )
