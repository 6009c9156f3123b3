"""Tests run strict, and on four virtual CPU devices whatever the machine has."""

import jax
import pytest
from folders import folder_of

from ssil_jax import parallel

jax.config.update("jax_platforms", "cpu")
parallel.split_cpu(4)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Small networks run a few steps: compiling them well would take longer than it saves.
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def root(tmp_path):
  return folder_of(tmp_path / "images")


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory, monkeypatch):
  """What tests find out about their data goes nowhere near the user's cache."""
  folder = tmp_path_factory.mktemp("cache")
  monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
  return folder
