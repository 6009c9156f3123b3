"""Commands run in this process, each in a folder of its own, on a network for tests."""

import sys

import pytest
from quick import quick_network

from ssil_jax.training import devices


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
  """Methods of that folder are forgotten afterwards; devices are those of the tests."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", [*sys.path])
  monkeypatch.setattr(sys, "dont_write_bytecode", True)  # of files edited in a second
  monkeypatch.setattr(devices, "prepare_cpu_devices", lambda config: None)
  before = {*sys.modules}
  with quick_network():
    yield
  for name in {*sys.modules} - before:
    if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
      del sys.modules[name]
