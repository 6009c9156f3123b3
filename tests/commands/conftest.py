"""Commands run in this process, each in a folder of its own."""

import pathlib
import sys

import pytest

from ssil_jax.training import devices


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
  """Methods of that folder are forgotten afterwards; devices are those of the tests."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", [*sys.path])
  monkeypatch.setattr(sys, "dont_write_bytecode", True)  # of files edited in a second
  monkeypatch.setattr(devices, "prepare_cpu_devices", lambda config: None)
  yield
  for name, module in list(sys.modules.items()):
    file = getattr(module, "__file__", None)
    if file and pathlib.Path(file).is_relative_to(tmp_path):
      del sys.modules[name]
