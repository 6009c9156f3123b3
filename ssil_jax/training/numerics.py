"""The arithmetic of a run, whatever the environment asks jax and flax for.

Variables such as JAX_ENABLE_X64 or JAX_DEFAULT_PRNG_IMPL change types and random numbers,
and with them every score, but are no part of a run's identity. While a run lasts, such
settings have the values below, and `--matmul_precision` takes the place of jax's. What
changes the rounding alone (XLA_FLAGS, the hardware) stays as it is: see
`devices.describe`.
"""

import contextlib
import enum
from collections.abc import Callable, Iterator
from typing import Any

import flax
import jax

from ssil_jax.config import Config

# A setting that a version of jax does not have changes nothing there.
_JAX = {
  "jax_enable_x64": False,
  "jax_explicit_x64_dtypes": "warn",
  "jax_default_dtype_bits": "64",
  "jax_numpy_dtype_promotion": "standard",
  "jax_default_prng_impl": "threefry2x32",
  "jax_threefry_partitionable": True,
  "jax_random_seed_offset": 0,
  "jax_enable_custom_prng": False,
}
_FLAX = {"flax_fix_rng_separator": False, "flax_return_frozendict": False}


@contextlib.contextmanager
def standard(
  config: Config, *, warn: Callable[[str], None] = lambda line: None
) -> Iterator[None]:
  """Sets the arithmetic of a run while the context lasts, in all threads.

  Args:
    config: of the run.
    warn: called with a line for each setting of the environment that is put aside.
  """
  precision = None if config.matmul_precision == "default" else config.matmul_precision
  changed = []
  for library, settings in (
    (jax.config, {**_JAX, "jax_default_matmul_precision": precision}),
    (flax.config, _FLAX),
  ):
    for name, value in settings.items():
      if hasattr(library, name) and _plain(getattr(library, name)) != value:
        changed.append((library, name, getattr(library, name), value))
  for _, name, there, value in changed:
    if name != "jax_default_matmul_precision":
      warn(f"warning: {name}={_plain(there)} is put aside: runs have {value}")
    elif there not in (None, "default"):
      warn(
        f"warning: {name}={there} is put aside: --matmul_precision="
        f"{config.matmul_precision} decides that"
      )
  try:
    for library, name, _, value in changed:
      library.update(name, value)
    yield
  finally:
    for library, name, there, _ in changed:
      library.update(name, there)


def _plain(value: Any) -> Any:
  """Returns a setting as `update` takes it."""
  return value.name.lower() if isinstance(value, enum.Enum) else value
