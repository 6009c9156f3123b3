"""Does what the processes of a run do together, all at the same call."""

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ssil_jax.errors import ConfigError


def is_multiprocess() -> bool:
  """Returns whether the run has several processes."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def is_main() -> bool:
  """Returns whether this is the process that writes the results."""
  return not is_multiprocess() or jax.process_index() == 0


def broadcast_from_main(tree: Any) -> Any:
  """Returns process 0's arrays, on the host; all processes call it together."""
  if not is_multiprocess():
    return tree
  there = multihost_utils.broadcast_one_to_all(tree)  # without 64 bits
  return jax.tree.map(lambda own, x: np.asarray(x).astype(own.dtype), tree, there)


def check_same(values: Mapping[str, str]) -> None:
  """Checks that all processes have the same values; all call it together.

  Args:
    values: name ("flags") -> the value, or a hash of it.

  Raises:
    ConfigError: in all processes, with a line for each value that differs in some.
  """
  if not is_multiprocess():
    return
  own = [zlib.crc32(f"{name}={value}".encode()) for name, value in values.items()]
  sums = multihost_utils.process_allgather(np.array(own, np.uint32))
  mistakes = []
  for name, column in zip(values, sums.T, strict=True):
    others = np.flatnonzero(column != column[0])
    if len(others):
      mistakes.append(
        f"process {others[0]} has other {name} than process 0: start all with the same "
        "flags, and on the same data"
      )
  if mistakes:
    raise ConfigError("\n".join(mistakes))


def barrier() -> None:
  """Waits until all processes call it."""
  if is_multiprocess():
    multihost_utils.sync_global_devices("ssil_jax")
