"""The methods, by the name that `--method` takes."""

from collections.abc import Mapping

from ssil_jax.errors import ConfigError
from ssil_jax.methods.base import Method, SeenClasses
from ssil_jax.methods.ft import FT
from ssil_jax.methods.ssil import SSIL

METHODS: Mapping[str, Method] = {"ssil": SSIL, "ft": FT}


def get_method(name: str) -> Method:
  """Raises ConfigError, with the known names, for one that is not among them."""
  if name not in METHODS:
    raise ConfigError(f"--method={name} is unknown; choose from: {', '.join(METHODS)}")
  return METHODS[name]


__all__ = ["METHODS", "SeenClasses", "Method", "get_method"]
