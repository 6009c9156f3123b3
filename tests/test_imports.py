"""What no file may know: a method's or a data set's name, outside its own room."""

import re

import pytest
from folders import ROOT

from ssil_jax.data.opening import SOURCES
from ssil_jax.methods import METHODS

PACKAGE = ROOT / "ssil_jax"
# config.py has the default method and data set, and help for both.
FILES = sorted(
  path
  for path in PACKAGE.rglob("*.py")
  if "methods" not in path.parts and path.name != "config.py"
)
STRINGS = re.compile(r"""(["'])([\w/]+)\1""")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_method_is_asked_for_by_name(path):
  assert not {name for _, name in STRINGS.findall(path.read_text())} & set(METHODS)


@pytest.mark.parametrize(
  "name",
  [
    "loop",
    "incremental",
    "trainer",
    "step",
    "metrics",
    "plan",
    "reuse",
    "parallel",
    "memory",
  ],
)
def test_no_data_set_is_asked_for_by_name(name):
  found = {word for _, word in STRINGS.findall((PACKAGE / f"{name}.py").read_text())}
  assert not found & set(SOURCES)
