"""The files of a work directory, other than checkpoints: config, schedule, results."""

import json
import os
import pathlib
import platform
from typing import Any

from ssil_jax import config as config_lib
from ssil_jax.config import Config
from ssil_jax.errors import WorkdirError


def claim(config: Config, *, data_fingerprint: str) -> pathlib.Path:
  """Makes the work directory, or checks that the run in it is this one.

  A run of which no state was ever saved leaves nothing to protect, and is replaced.

  Args:
    config: of the run.
    data_fingerprint: of the data set, see `data.fingerprint`.

  Returns:
    Its absolute path, with `config.json` in it.

  Raises:
    WorkdirError: it cannot be written, or holds a run with another configuration (each
      difference is named), or any run if `--resume=never`.
  """
  workdir = config_lib.workdir_path(config)
  path = workdir / "config.json"
  now = {**config_lib.to_json(config), "data_fingerprint": data_fingerprint}
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    saved_states = list(workdir.glob("checkpoints/[0-9]*"))
    if path.exists():
      saved = read_config(path)
      if saved_states or set(saved) != set(now):
        _check_same_run(config, saved, data_fingerprint, workdir)
      else:
        write_json(path, now)
    elif saved_states:
      raise WorkdirError(f"{workdir} has checkpoints but no config.json: use another")
    else:
      write_json(path, now)
  except OSError as error:
    raise WorkdirError(f"--workdir={config.workdir} cannot be used: {error}") from error
  return workdir


def read_config(path: pathlib.Path) -> dict[str, Any]:
  """The contents of a config.json; raises WorkdirError if it holds none."""
  try:
    saved = json.loads(path.read_text())
  except ValueError as error:
    raise WorkdirError(
      f"{path} is not valid JSON ({error}): use another --workdir"
    ) from error
  if not isinstance(saved, dict):
    raise WorkdirError(f"{path} is not a configuration: use another --workdir")
  return saved


def _check_same_run(
  config: Config, saved: dict[str, Any], data_fingerprint: str, workdir: pathlib.Path
) -> None:
  if config.resume == "never":
    raise WorkdirError(
      f"{workdir} holds a run already and --resume=never: use another --workdir"
    )
  if different := config_lib.differences(config, saved):
    raise WorkdirError(
      f"{workdir} holds a run with another configuration; use another --workdir, or the "
      "same flags:\n" + "\n".join(different)
    )
  if saved.get("data_fingerprint") != data_fingerprint:
    raise WorkdirError(
      f"{workdir} holds a run on other data (classes, labels or images differ from those "
      "of --data_dir): use another --workdir, or that run's data"
    )


def write_json(path: pathlib.Path, value: Any) -> None:
  """Replaces a JSON file as `write_bytes` does."""
  write_bytes(path, json.dumps(value, indent=1, allow_nan=False).encode())


def write_bytes(path: pathlib.Path, content: bytes) -> None:
  """Replaces a file whole: a reader, a kill or another writer never meets half of it."""
  # Hosts that share a disk may write the same file at the same time.
  temporary = path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}.tmp")
  with open(temporary, "wb") as file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)
