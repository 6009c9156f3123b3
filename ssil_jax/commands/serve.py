"""Serves a page and a REST interface of a trained model."""

import asyncio
import contextlib
import ipaddress
import os
import pathlib
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from absl import flags

from ssil_jax.commands import command_line
from ssil_jax.errors import ConfigError, UserError, WorkdirError
from ssil_jax.paths import UPLOADS, real_path
from ssil_jax.system import LockedError, locked

# Not the docstring, which `python -OO` leaves out.
_USAGE = """Serves a page and a REST interface of a trained model.

  python experiments/serve.py --workdir=W [-- FLAGS OF learn.py]

Drop a photo on the page to see its class, or photos of a new class to have it
learnt. The address /api describes how programs do the same. W is the work
directory of a run; its training data are not needed. Ctrl-C ends the server,
and what it is learning goes on when it is started again.
"""
_HELP = {
  "workdir": "work directory of a run, with its model",
  "host": "address to listen at; by default none but this machine's programs reach it",
  "port": "port to listen at; 0 takes a free one (default: 8000)",
  "allowed_hosts": "more names by which browsers may call it, with commas between, as of a "
  "proxy in front of it",
  "method": "MODULE:NAME of a method of your own that the model was trained by",
}
_MISSING = (
  "serve needs starlette, uvicorn and python-multipart: pip install 'ssil-jax[serve]'"
)


class Request(NamedTuple):
  """Holds what a command line asks for."""

  workdir: str
  host: str
  port: int
  allowed_hosts: list[str]
  method: str | None
  learn_flags: tuple[str, ...]


class Stopped(KeyboardInterrupt):
  """A signal ended the server."""

  def __init__(self, number: signal.Signals):
    super().__init__(f"stopped by {number.name}")
    self.exit_code = 128 + number


def help_text() -> str:
  """Returns all flags."""
  return command_line.help_of_flags(_USAGE, _HELP)


def parse(argv: Sequence[str]) -> Request:
  """Reads the command line; raises ConfigError."""
  argv = list(argv)
  split = argv.index("--") if "--" in argv else len(argv)
  own, learn_flags = argv[:split], tuple(argv[split + 1 :])
  values = flags.FlagValues()
  for name, default in (("workdir", None), ("host", "127.0.0.1"), ("method", None)):
    flags.DEFINE_string(name, default, _HELP[name], flag_values=values)
  flags.DEFINE_integer("port", 8000, _HELP["port"], flag_values=values)
  flags.DEFINE_list("allowed_hosts", [], _HELP["allowed_hosts"], flag_values=values)
  command_line.read_flags(values, own)
  given = Request(learn_flags=learn_flags, **values.flag_values_dict())
  if not given.workdir:
    raise ConfigError("--workdir is missing: give the work directory of a run")
  if not 0 <= given.port <= 65535:
    raise ConfigError(f"--port={given.port} must be from 0 to 65535")
  for flag in learn_flags:
    if not flag.startswith("--") or flag.startswith(("--workdir", "--data_dir")):
      raise ConfigError(
        f"{flag} behind -- cannot be passed on: give flags of learn.py, --name=value, but "
        "neither --workdir nor --data_dir"
      )
  return given


def main(argv: Sequence[str]) -> int:
  """Runs the command; returns the exit code."""
  if command_line.wants_help(argv):
    print(help_text())
    return 0

  def stop(signum, frame) -> None:
    raise Stopped(signal.Signals(signum))

  numbers = (signal.SIGINT, signal.SIGTERM)
  before = {number: signal.signal(number, stop) for number in numbers}
  try:
    return _serve(parse(argv))
  except UserError as error:
    return command_line.print_error(error)
  except Stopped as stopped:
    _say("stopped")
    return stopped.exit_code
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def _serve(request: Request) -> int:
  try:
    import python_multipart  # noqa: F401 - uploads.py needs it; an extra, like the others
    import starlette  # noqa: F401
    import uvicorn
  except ImportError as error:
    raise ConfigError(_MISSING) from error
  import jax

  from ssil_jax.server.answering import Answerer
  from ssil_jax.server.app import make_app
  from ssil_jax.server.learning import Learner
  from ssil_jax.training import compilation, model_files

  # Accelerators are for learning, which is a process of its own: a TPU serves one process,
  # and on a GPU this one would take the memory.
  jax.config.update("jax_platforms", "cpu")
  workdir = real_path(request.workdir)
  model_files.read_card(workdir)  # before anything is made there
  with (
    _listening(request) as listener,
    _claimed(workdir),
    compilation.kept("", warn=_say),
  ):
    own_method = [f"--method={request.method}"] if request.method else []
    answerer = Answerer(workdir, method=request.method, warn=_say)
    app = make_app(
      answerer,
      Learner(
        workdir,
        flags=[*own_method, *request.learn_flags],
        refresh=lambda: asyncio.to_thread(answerer.refresh),
        say=_say,
      ),
      hosts=[request.host, *request.allowed_hosts],
    )
    host, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(host)
    if not address.is_loopback:
      _say(
        f"warning: --host={request.host} is reached from other machines, and there is no "
        "login: whoever reaches it can ask the model and change it"
      )
    shown = f"[{host}]" if ":" in host else host
    if address.is_unspecified:  # all of this machine's
      shown = socket.gethostname()
    print(f"http://{shown}:{port}/ answers; Ctrl-C ends it", flush=True)
    server = uvicorn.Server(
      uvicorn.Config(
        app,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=3,  # s, for answers under way
        proxy_headers=False,
      )
    )
    # Signals that it gets it raises again when it has ended; see `stop`.
    asyncio.run(server.serve(sockets=[listener]))
  return 0


def _listening(request: Request) -> socket.socket:
  """Returns a socket that listens; raises ConfigError."""
  place = f"--host={request.host} --port={request.port}"
  try:
    family, _, _, _, address = socket.getaddrinfo(
      request.host, request.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    return socket.create_server(address, family=family, backlog=128)
  except (OSError, UnicodeError) as error:
    number = getattr(error, "errno", None) or 0
    # Of a name that is not found the number is negative, and no error of the system.
    reason = os.strerror(number) if number > 0 else getattr(error, "strerror", error)
    raise ConfigError(
      f"{place} cannot be listened at ({reason}): choose another one, or --port=0 for a "
      "free port"
    ) from error


@contextlib.contextmanager
def _claimed(workdir: pathlib.Path) -> Iterator[None]:
  """Holds a work directory for one server; raises WorkdirError if another has it."""
  with contextlib.ExitStack() as stack:
    try:
      (workdir / UPLOADS).mkdir(exist_ok=True)
      stack.enter_context(locked(workdir / UPLOADS / "lock", _say))
    except LockedError as error:
      raise WorkdirError(
        f"{workdir} is served already ({error}): use that server, or stop it"
      ) from error
    except OSError as error:
      raise WorkdirError(
        f"{workdir} cannot be written ({error.strerror}), and the server keeps photos "
        "there while it learns: make it writable, or copy it"
      ) from error
    yield


def _say(line: str) -> None:
  print(command_line.printable(line), file=sys.stderr)
