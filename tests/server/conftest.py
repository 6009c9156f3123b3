"""A small model that was trained, for the tests of its server."""

import shutil

import pytest
import served
from quick import quick_network


@pytest.fixture(autouse=True)
def _network():
  with quick_network():
    yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
  """A work directory; not to be changed."""
  return served.train(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def workdir(trained, tmp_path):
  """A copy of that work directory."""
  return shutil.copytree(trained, tmp_path / "run")
