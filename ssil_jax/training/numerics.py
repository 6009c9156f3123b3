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

_WANTED = {
  (jax.config, "jax_enable_x64"): False,
  (jax.config, "jax_explicit_x64_dtypes"): "warn",
  (jax.config, "jax_default_dtype_bits"): "64",
  (jax.config, "jax_numpy_dtype_promotion"): "standard",
  (jax.config, "jax_default_prng_impl"): "threefry2x32",
  (jax.config, "jax_threefry_partitionable"): True,
  (jax.config, "jax_random_seed_offset"): 0,
  (jax.config, "jax_enable_custom_prng"): False,
  (flax.config, "flax_fix_rng_separator"): False,
  (flax.config, "flax_return_frozendict"): False,
}


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
  wanted = {**_WANTED, (jax.config, "jax_default_matmul_precision"): precision}
  # A setting that a version of jax does not have changes nothing there.
  before = {place: getattr(*place) for place in wanted if hasattr(*place)}
  changed = {
    place: there for place, there in before.items() if _plain(there) != wanted[place]
  }
  for (library, name), there in changed.items():
    if name != "jax_default_matmul_precision":
      value = wanted[library, name]
      warn(f"warning: {name}={_plain(there)} is put aside: runs have {value}")
    elif there not in (None, "default"):
      warn(
        f"warning: {name}={there} is put aside: --matmul_precision="
        f"{config.matmul_precision} decides that"
      )
  try:
    for library, name in changed:
      library.update(name, wanted[library, name])
    yield
  finally:
    for (library, name), there in changed.items():
      library.update(name, there)


def _plain(value: Any) -> Any:
  """Returns a setting as `update` takes it."""
  return value.name.lower() if isinstance(value, enum.Enum) else value
