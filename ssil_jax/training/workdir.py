"""The files of a work directory, other than checkpoints: config, schedule, results."""

import contextlib
import datetime
import json
import pathlib
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from rich.filesize import decimal as as_bytes

import ssil_jax
from ssil_jax import config as config_lib
from ssil_jax.config import Config
from ssil_jax.data import fingerprint
from ssil_jax.distributed import collectives
from ssil_jax.errors import WorkdirError
from ssil_jax.reports.results import has_finished_state
from ssil_jax.system import LockedError, locked, write_json

# What config.json has of the beginning of a run, which is no part of its identity.
_BEGINNING = ("started", "command")
_FILES = ("config.json", "schedule.json", "results.json", "metrics.jsonl")


class Origin(NamedTuple):
  """Holds what makes a run itself: without it, what was saved means nothing."""

  settings: Mapping[str, Any]  # of `config.to_json`
  method_source: str | None  # of `source_hash`; None of runs by earlier versions
  data: Mapping[str, str | int]  # of `fingerprint.parts`

  def to_json(self) -> dict[str, Any]:
    """Returns the contents of config.json."""
    return {
      **self.settings,
      "version": ssil_jax.__version__,
      "method_source": self.method_source,
      "data_fingerprint": fingerprint.fingerprint(self.data),
      "data": self.data,
    }

  def identity(self, config: Config) -> dict[str, Any]:
    """Returns what a checkpoint is compared by: name -> JSON types."""
    source = {"source of --method": self.method_source}
    return {**config_lib.identity(config), **source, **self.data}

  def comparable(self) -> dict[str, str]:
    """Returns what must be the same in all processes, as text."""
    own = ("process_id", "data_dir")  # may differ from process to process
    parts = {**self.settings, "source of --method": self.method_source, **self.data}
    return {name: str(value) for name, value in parts.items() if name not in own}

  def compare(self, there: "Origin") -> tuple[list[str], list[str]]:
    """Returns a line for each difference in the data, and what cannot be compared."""
    unknown = fingerprint.uncompared(self.data, there.data)
    if there.method_source is None:
      unknown.append("source of --method")
    return fingerprint.differences(self.data, there.data), unknown


@contextlib.contextmanager
def claimed(
  config: Config, origin: Origin, warn: Callable[[str], None]
) -> Iterator[pathlib.Path]:
  """Makes the work directory this run's while the context lasts.

  It is made, or found to hold this very run, and locked. The lock goes with the process,
  however it ends. A run of which nothing was ever saved leaves nothing to protect, and is
  replaced. With several processes, process 0 does this for all.

  Args:
    config: of the run.
    origin: of the run.
    warn: called with a line if the file system has no locks, or not all can be compared.

  Yields:
    Its absolute path, with `config.json` in it.

  Raises:
    WorkdirError: it cannot be written, another process uses it, or it holds a run with
      another configuration or on other data (each difference is named), or any run if
      `--resume=never`.
  """
  workdir = config_lib.workdir_path(config)
  with contextlib.ExitStack() as stack:
    if collectives.is_main():
      with writing(config, "name a folder that can be written"):
        workdir.mkdir(parents=True, exist_ok=True)
        stack.enter_context(locked_by_run(workdir, warn))
        for name in _FILES:  # what files.write_bytes left in a killed process
          for temporary in workdir.glob(f"{name}.*.tmp"):
            temporary.unlink()
        _claim(config, workdir, origin, warn)
    collectives.barrier()
    yield workdir


@contextlib.contextmanager
def writing(
  config: Config,
  remedy: str = "fix this and rerun the command to resume from the last checkpoint",
) -> Iterator[None]:
  """Raises WorkdirError for what the system says of the work directory."""
  try:
    yield
  except OSError as error:
    raise WorkdirError(
      f"--workdir={config.workdir} cannot be used: {error}; {remedy}"
    ) from error


@contextlib.contextmanager
def locked_by_run(workdir: pathlib.Path, warn: Callable[[str], None]) -> Iterator[None]:
  """Raises WorkdirError if another process has the lock."""
  remedy = "see to it that no other run uses it"
  try:
    with locked(
      workdir / "lock",
      lambda reason: warn(f"warning: {workdir} cannot be locked ({reason}): {remedy}"),
    ):
      yield
  except LockedError as error:
    raise WorkdirError(
      f"{workdir} is in use by another run ({error}): wait for its end, stop it, or use "
      "another --workdir"
    ) from error


def _claim(
  config: Config, workdir: pathlib.Path, origin: Origin, warn: Callable[[str], None]
) -> None:
  path, was_saved = workdir / "config.json", bool(saved(workdir, "checkpoints"))
  if not was_saved and has_finished_state(workdir):
    raise WorkdirError(
      f"{workdir} has results, but no checkpoints to go on from: use another --workdir, or "
      "put them back"
    )
  if was_saved and not path.exists():
    raise WorkdirError(
      f"{workdir} has checkpoints but no config.json: use another --workdir"
    )
  there = read_config(path) if path.exists() else None
  if (workdir / "learning").exists() or _has_learnt(workdir, there):
    raise WorkdirError(
      f"{workdir} has learnt more since, by learn.py, and its run is complete: use "
      "another --workdir, or learn.py"
    )
  now = {**origin.to_json(), **_beginning()}
  if there is not None and now == {**there, **{name: now[name] for name in _BEGINNING}}:
    now = there  # begun before, if nothing was saved yet
  # Of which nothing was saved, a run of this version leaves nothing to protect.
  if was_saved or (there is not None and not {"method_source", "data"} <= there.keys()):
    unknown = _check_same_run(config, origin, there, workdir)
    warn_uncompared(workdir, unknown, warn)
    # What is known only now is compared from the next time on.
    known = origin._replace(data={**there["data"], **origin.data}).to_json()
    names = ("method_source", "data_fingerprint", "data")
    now = {**there, **{name: known[name] for name in names}}
  if now != there:
    write_json(path, now)


def _beginning() -> dict[str, str]:
  """Returns the time, ISO 8601 in UTC, and this command in one line."""
  program, *arguments = sys.argv  # the first one may be "ssil-jax run"
  command = f"{program} {shlex.join(arguments)}"
  return {
    "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "command": "".join(char if char.isprintable() else " " for char in command),
  }


def beginning(workdir: pathlib.Path) -> dict[str, str | None]:
  """Returns when a run was first started, and how; None of those by earlier versions."""
  saved = read_config(workdir / "config.json")
  return {name: saved.get(name) for name in _BEGINNING}


def _has_learnt(workdir: pathlib.Path, saved: dict[str, Any] | None) -> bool:
  """Returns whether a model has states that its run, of this config.json, had not."""
  planned = (saved or {}).get("num_states")
  if not isinstance(planned, int):
    return False
  return (workdir / "model" / str(planned + 1) / "state.json").exists()


def warn_uncompared(
  workdir: pathlib.Path, unknown: list[str], warn: Callable[[str], None]
) -> None:
  """Says what of a run cannot be compared, if there is anything."""
  if unknown:
    warn(f"warning: not compared with the run in {workdir}: {', '.join(unknown)}")


def saved_environment(workdir: pathlib.Path) -> dict[str, Any]:
  """Returns where a run was computed last, from its results.json; {} if unknown."""
  try:
    found = json.loads((workdir / "results.json").read_text())["environment"]
  except (OSError, ValueError, KeyError, TypeError, RecursionError):
    return {}
  return found if isinstance(found, dict) else {}


def saved(workdir: pathlib.Path, kind: str) -> list[pathlib.Path]:
  """Returns the whole `checkpoints` or `networks`, not those being written."""
  return [path for path in workdir.glob(f"{kind}/*") if path.name.isdecimal()]


def read_config(path: pathlib.Path) -> dict[str, Any]:
  """Reads a config.json; raises WorkdirError if it holds none."""
  try:
    saved = json.loads(path.read_text())
  except (ValueError, RecursionError) as error:
    raise WorkdirError(
      f"{path} is not valid JSON ({error}): use another --workdir"
    ) from error
  if not isinstance(saved, dict):
    raise WorkdirError(f"{path} is not a configuration: use another --workdir")
  return saved


def _check_same_run(
  config: Config, origin: Origin, saved: dict[str, Any], workdir: pathlib.Path
) -> list[str]:
  """Returns what cannot be compared; raises WorkdirError if the run is another one."""
  if config.resume == "never":
    raise WorkdirError(
      f"{workdir} holds a run already and --resume=never: use another --workdir"
    )
  if different := config_lib.differences(config, saved):
    raise WorkdirError(
      f"{workdir} holds a run with another configuration; use another --workdir, or the "
      "same flags:\n" + "\n".join(different)
    )
  there = saved_origin(saved)
  if there is None:
    raise WorkdirError(
      f"{workdir} holds a run of an earlier version of this program: use another --workdir"
    )
  if there.method_source not in (None, origin.method_source):
    raise WorkdirError(
      f"{workdir} holds a run of --method={config.method}, whose source has changed since: "
      "use another --workdir, or put the source back"
    )
  different, unknown = origin.compare(there)
  if different:
    now = config_lib.to_json(config)
    # They are no part of a run's identity, but make other data.
    different += [
      f"--{name}: {saved.get(name)!r:.100} there, {now[name]!r} now"
      for name in ("classes", "class_order", "test_fraction")
      if saved.get(name, now[name]) != now[name]
    ]
    raise WorkdirError(
      f"{workdir} holds a run on other data than --data_dir={config.data_dir} has: use "
      "another --workdir, or that run's data\n" + "\n".join(different)
    )
  return unknown


def saved_origin(saved: Mapping[str, Any]) -> Origin | None:
  """Returns the origin in a config.json; None if it tells no data apart."""
  parts = saved.get("data")
  if not isinstance(parts, dict) or "classes" not in parts:
    return None
  return Origin(saved, saved.get("method_source"), parts)


def check_space(
  workdir: pathlib.Path,
  needed: int,
  remedy: str = "make room, use another --workdir, or lower --checkpoints_kept",
) -> None:
  """Raises WorkdirError if there is no room for so many bytes."""
  free = shutil.disk_usage(workdir).free
  if needed > free:
    raise WorkdirError(
      f"{workdir} has {as_bytes(free)} free, and checkpoints and networks of this run need "
      f"{as_bytes(needed)}: {remedy}"
    )
