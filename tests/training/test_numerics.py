"""What the environment asks jax and flax for does not change a run."""

import io
import json

import flax
import jax
import numpy as np
import pytest
from kills import differences
from quick import quick_network
from rich.console import Console
from small_runs import run, small_config

from ssil_jax.training import loop, numerics

SETTINGS = {"num_states": 2, "num_classes": 4, "num_devices": 1}
OTHERWISE = {
  (jax.config, "jax_enable_x64"): True,
  (jax.config, "jax_numpy_dtype_promotion"): "strict",
  (jax.config, "jax_default_prng_impl"): "rbg",
  (jax.config, "jax_threefry_partitionable"): False,
  (jax.config, "jax_random_seed_offset"): 7,
  (jax.config, "jax_default_matmul_precision"): "highest",
  (flax.config, "flax_fix_rng_separator"): True,
  (flax.config, "flax_return_frozendict"): True,
}


@pytest.fixture(autouse=True, scope="module")
def _quickly():
  with quick_network():
    yield


@pytest.fixture
def otherwise():
  """All settings as no run has them."""
  before = {place: getattr(*place) for place in OTHERWISE}
  for (library, name), value in OTHERWISE.items():
    library.update(name, value)
  try:
    yield
  finally:
    for (library, name), value in before.items():
      library.update(name, value)


def settings():
  return {name: getattr(library, name) for library, name in OTHERWISE}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "plain"
  run(workdir, **SETTINGS)
  return workdir


def test_a_run_is_the_same_whatever_the_environment(
  plain, tmp_path, otherwise, initial_networks
):
  there = settings()
  initial_networks.clear()
  run(tmp_path, **SETTINGS)
  assert differences(tmp_path, plain) == []
  assert settings() == there  # as they were, for whoever called


def test_what_is_put_aside_is_said(tmp_path, otherwise):
  warnings = []
  with numerics.standard(small_config(tmp_path), warn=warnings.append):
    assert jax.numpy.arange(3).dtype == np.int32
  assert warnings == [
    "warning: jax_enable_x64=True is put aside: runs have False",
    "warning: jax_numpy_dtype_promotion=strict is put aside: runs have standard",
    "warning: jax_default_prng_impl=rbg is put aside: runs have threefry2x32",
    "warning: jax_threefry_partitionable=False is put aside: runs have True",
    "warning: jax_random_seed_offset=7 is put aside: runs have 0",
    "warning: flax_fix_rng_separator=True is put aside: runs have False",
    "warning: flax_return_frozendict=True is put aside: runs have False",
    "warning: jax_default_matmul_precision=highest is put aside: "
    "--matmul_precision=default decides that",
  ]


@pytest.mark.parametrize("precision", ["default", "high", "highest"])
def test_the_precision_of_products_is_a_flag(tmp_path, precision):
  config = small_config(tmp_path, matmul_precision=precision)
  with numerics.standard(config, warn=pytest.fail):  # for an ordinary environment
    text = (
      jax.jit(jax.numpy.dot).lower(np.eye(2, dtype="f"), np.eye(2, dtype="f")).as_text()
    )
  assert f"precision = [{precision.upper()}, {precision.upper()}]" in text
  assert jax.config.jax_default_matmul_precision is None


def test_another_environment_of_what_is_there_is_said(plain, tmp_path, monkeypatch):
  monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
  # What rounds nothing, and what an earlier version did not note, is not said.
  path = plain / "results.json"
  results = json.loads(path.read_text())
  results["environment"] |= {"commit": "another", "python": "3.11.0"}
  for name in ("cpu", "jaxlib", "flax", "optax"):
    del results["environment"][name]
  path.write_text(json.dumps(results))
  # The second one puts it in the place of what was there.
  for workdir, lender in ((tmp_path, str(plain)), (plain, "")):
    config = small_config(workdir, **SETTINGS, from_workdir=lender)
    console = Console(record=True, file=io.StringIO(), width=400)
    loop.run(config, console)
    line = (
      f"note: what {plain} has was computed in another environment, and numbers may be "
      "rounded differently (NVIDIA_TF32_OVERRIDE: None there, 0 now)"
    )
    assert line in console.export_text()
