"""Compiled programs are kept where they are asked to be, and nothing else changes."""

import contextlib

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from ssil_jax.training import compilation


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
  """An environment without a cache of its own, which that of the tests is."""
  there = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", None)
  compilation_cache.reset_cache()
  monkeypatch.setattr(compilation, "_SHORTEST", 0.0)
  yield
  jax.config.update("jax_compilation_cache_dir", there)
  compilation_cache.reset_cache()


def kept_files(place, folder, number):
  """What compiling a program leaves in a folder, and the warnings."""
  said = []
  with compilation.kept(place, warn=said.append):
    jax.jit(lambda x: jnp.sin(x) * number)(jnp.float32(1)).block_until_ready()
  assert jax.config.jax_compilation_cache_dir is None
  return {path.name for path in folder.rglob("*lambda*-cache")}, said


def test_programs_are_kept_and_found_again(tmp_path, cache_home):
  for place, folder in ((str(tmp_path / "c"), tmp_path / "c"), ("", cache_home)):
    first, said = kept_files(place, folder, 3)
    assert len(first) == 1
    jax.clear_caches()
    again, _ = kept_files(place, folder, 3)
    assert again == first
    another, _ = kept_files(place, folder, 4)
    assert another > first
    assert said == []


def test_nothing_is_kept_if_it_is_not_wanted_or_the_environment_has_a_cache(tmp_path):
  assert kept_files("none", tmp_path, 5) == (set(), [])
  jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
  with compilation.kept(str(tmp_path / "ours")):
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")
  assert not (tmp_path / "ours").exists()


def test_a_folder_that_cannot_be_made_is_named_and_the_run_goes_on(tmp_path):
  (tmp_path / "file").touch()
  with contextlib.chdir(tmp_path):
    found, (line,) = kept_files("file/c", tmp_path, 6)
  assert found == set()
  assert str(tmp_path / "file") in line
  assert "--compilation_cache=DIR" in line
