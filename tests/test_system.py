"""Cores and open files."""

import os
import resource

import pytest

from ssil_jax import system
from ssil_jax.errors import DataError


def test_cores_are_those_the_process_may_use(monkeypatch):
  monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
  assert system.usable_cores() == 2
  monkeypatch.delattr(os, "sched_getaffinity")
  monkeypatch.setattr(os, "cpu_count", lambda: 7)
  assert system.usable_cores() == 7


@pytest.fixture
def limits(monkeypatch):
  """Sets what the system allows; returns the limits as the code under test sets them."""
  state = {}

  def allow(soft, hard):
    state["limits"] = (soft, hard)
    return state

  monkeypatch.setattr(resource, "getrlimit", lambda which: state["limits"])
  monkeypatch.setattr(
    resource, "setrlimit", lambda which, limits: state.update(limits=limits)
  )
  return allow


def test_the_limit_is_raised_as_far_as_needed(limits):
  state = limits(1024, 1_048_576)
  system.allow_open_files(2148)
  assert state["limits"] == (2348, 1_048_576)


def test_a_limit_that_suffices_is_left_alone(limits):
  for soft in (4096, resource.RLIM_INFINITY):
    state = limits(soft, 4096)
    system.allow_open_files(2148)
    assert state["limits"] == (soft, 4096)


def test_a_limit_that_cannot_be_raised_is_named(limits):
  limits(256, 1024)
  with pytest.raises(DataError, match="2348 open files.*1024.*ulimit -n 2348"):
    system.allow_open_files(2148)
