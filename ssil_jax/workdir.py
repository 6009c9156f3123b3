"""The files of a work directory, other than checkpoints: config, schedule, results."""

import json
import os
import pathlib
from typing import Any

from ssil_jax import config as config_lib
from ssil_jax.config import Config
from ssil_jax.errors import WorkdirError


def claim(config: Config) -> pathlib.Path:
  """Makes the work directory, or checks that the run in it is this one.

  Returns:
    Its absolute path, with `config.json` in it.

  Raises:
    WorkdirError: it cannot be written, or holds a run with another configuration (each
      difference is named), or any run if `--resume=never`.
  """
  workdir = config_lib.workdir_path(config)
  path = workdir / "config.json"
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if path.exists():
      _check_same_run(config, path)
    elif (workdir / "checkpoints").exists():
      raise WorkdirError(f"{workdir} has checkpoints but no config.json: use another")
    else:
      write_json(path, config_lib.to_json(config))
  except OSError as error:
    raise WorkdirError(f"--workdir={config.workdir} cannot be used: {error}") from error
  return workdir


def _check_same_run(config: Config, path: pathlib.Path) -> None:
  if config.resume == "never":
    raise WorkdirError(
      f"{path.parent} holds a run already and --resume=never: use another --workdir"
    )
  try:
    saved = json.loads(path.read_text())
  except ValueError as error:
    raise WorkdirError(
      f"{path} is not valid JSON ({error}): use another --workdir"
    ) from error
  if not isinstance(saved, dict):
    raise WorkdirError(f"{path} is not a configuration: use another --workdir")
  if different := config_lib.differences(config, saved):
    raise WorkdirError(
      f"{path.parent} holds a run with another configuration; use another --workdir, or "
      "the same flags:\n" + "\n".join(different)
    )


def write_json(path: pathlib.Path, value: Any) -> None:
  """Replaces a JSON file whole: a reader, or a kill, never meets half of it."""
  temporary = path.with_name(path.name + ".tmp")
  with open(temporary, "w") as file:
    json.dump(value, file, indent=1, allow_nan=False)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)
