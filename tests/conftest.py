"""Tests run strict, and on four virtual CPU devices whatever the machine has."""

import atexit
import os
import shutil
import tempfile
import time
from importlib import metadata

# Before jax is imported, which reads it: workers and the processes that tests start compile
# what one of them has compiled only once, and matplotlib lists the fonts once. This process
# is theirs all, and makes the folder.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  _kept = tempfile.mkdtemp(prefix="ssil_jax-compiled-")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _kept
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
  os.environ["MPLCONFIGDIR"] = _kept
  atexit.register(shutil.rmtree, _kept, ignore_errors=True)

# Small networks run a few steps: compiling them well would take longer than it saves. XLA's
# newer emitters take three times as long as its older ones, which jaxlib 0.12 has no flag
# for and ends at; and threads share little work. The processes that tests start are told
# the same: they have to round alike.
_QUICKLY = "--xla_cpu_parallel_codegen_split_count=1"
if metadata.version("jaxlib").startswith("0.10."):
  _QUICKLY += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", _QUICKLY)

import jax
import numpy as np
import pytest
from folders import folder_of

from ssil_jax import resnet
from ssil_jax.training import devices, session

jax.config.update("jax_platforms", "cpu")
devices.split_cpu(4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)


def pytest_collection_modifyitems(items):
  """Runs the longest files first: one at the end would keep a single worker busy."""
  items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture
def root(tmp_path):
  return folder_of(tmp_path / "images")


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory, monkeypatch):
  """What tests find out about their data goes nowhere near the user's cache."""
  folder = tmp_path_factory.mktemp("cache")
  monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
  return folder


@pytest.fixture(autouse=True, scope="session")
def initial_networks():
  """The networks that runs start with, each drawn once; tests of drawing them empty it.

  Else every run would trace and load the same program first.
  """
  drawn = {}

  def draw_once(model, *, image_size, seed):
    key = model.network, resnet.BasicBlock, image_size, seed
    if key not in drawn:
      drawn[key] = devices.initial_train_state(model, image_size=image_size, seed=seed)
    return jax.tree.map(np.copy, drawn[key])

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(session, "initial_train_state", draw_once)
    yield drawn


@pytest.fixture
def clock(monkeypatch):
  """A list whose only entry is the time in seconds, for what measures it."""
  now = [1000.0]
  monkeypatch.setattr(time, "monotonic", lambda: now[0])
  return now
