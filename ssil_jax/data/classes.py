"""Chooses the classes and their order: by a seed, or from files of names."""

import difflib
import os
import stat
from collections.abc import Sequence

import numpy as np

from ssil_jax.config import Config
from ssil_jax.errors import ConfigError
from ssil_jax.schedule import class_order

_MAX_BYTES = 1 << 24  # of a file of names


def choose_classes(class_names: Sequence[str], config: Config) -> np.ndarray:
  """Returns the classes that `config` asks for, in the order of learning.

  Args:
    class_names: of the data set, in its own order.
    config: its `classes`, `class_order`, `class_order_seed` and `num_classes` count.

  Returns:
    int64 [n], places in `class_names`.

  Raises:
    ConfigError: a file cannot be read, names a class that there is not or one twice, or
      lacks one; or there are fewer classes than `num_classes`.
  """
  available = np.arange(len(class_names))
  if config.classes:
    available = np.sort(_read(config.classes, "--classes", class_names))
  order = class_order(
    len(available), num_classes=config.num_classes, seed=config.class_order_seed
  )
  if not config.class_order:
    return available[order]
  named = _read(config.class_order, "--class_order", class_names)
  missing = np.setdiff1d(available, named)
  if len(missing):
    raise ConfigError(
      f"--class_order={config.class_order} lacks class {class_names[missing[0]]} "
      f"({len(missing)} in all): name every class, or give --classes={config.class_order} "
      "to use no others"
    )
  return named[np.isin(named, available)][: len(order)]


def _read(path: str, flag: str, class_names: Sequence[str]) -> np.ndarray:
  """Reads names, one a line; returns their places in `class_names`, int64 [n]."""
  place_of = {name: place for place, name in enumerate(class_names)}
  wanted = "give a file of class names, one a line"
  try:
    status = os.stat(os.path.expanduser(path))
    if not stat.S_ISREG(status.st_mode):  # a pipe may have no end
      raise ConfigError(f"{flag}={path} is a folder, pipe or device: {wanted}")
    if status.st_size > _MAX_BYTES:
      raise ConfigError(f"{flag}={path} has more than {_MAX_BYTES} bytes: {wanted}")
    with open(os.path.expanduser(path), "rb") as file:
      text = file.read().decode("utf-8-sig", "surrogateescape")
  except (OSError, ValueError) as error:
    reason = getattr(error, "strerror", None) or error
    raise ConfigError(f"{flag}={path} cannot be read ({reason}): {wanted}") from error
  line_of: dict[str, int] = {}
  for number, line in enumerate(text.split("\n"), start=1):
    line = line.removesuffix("\r")
    name = line if line in place_of else line.strip()
    if not name:
      continue
    if name in line_of:
      raise ConfigError(
        f"{flag}={path}: line {number} names class {name:.100}, as line {line_of[name]} "
        "does: name it once"
      )
    if name not in place_of:
      meant = difflib.get_close_matches(name[:100], class_names, n=1)
      hint = f"did you mean {meant[0]}?" if meant else f"its first one is {class_names[0]}"
      raise ConfigError(
        f"{flag}={path}: line {number}: the data set has no class {name:.100}; {hint}"
      )
    line_of[name] = number
  if not line_of:
    raise ConfigError(f"{flag}={path} has no names: give one class a line")
  return np.array([place_of[name] for name in line_of])
