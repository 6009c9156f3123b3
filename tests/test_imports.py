"""Imports go one way: each part of the package sees only what lies below it."""

import ast

from folders import ROOT

# From the ground up. Parts in one line do not see each other, except in the pure core.
FLOORS = [
  {"errors"},
  {"system", "paths", "progress", "settings"},
  {"config"},
  {"convolution", "losses", "memory", "metrics", "resnet", "sampling", "schedule"},
  {"data", "methods"},
  {"distributed", "reports"},
  {"training"},
  {"model"},
  {"paper"},
  {"server"},
  {"api", "commands"},
]
CORE = FLOORS[3]
NETWORK = {"convolution", "losses", "resnet"}  # which data must not know


def imported(path):
  """The parts of the package that a file imports."""
  for node in ast.walk(ast.parse(path.read_text())):
    names = []
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: imports are absolute"
      names = [f"{node.module}.{alias.name}" for alias in node.names]
    for name in names:
      package, *parts = name.split(".")
      if package == "ssil_jax" and parts:
        yield parts[0]


def test_imports_go_one_way():
  package = ROOT / "ssil_jax"
  floor_of = {part: number for number, floor in enumerate(FLOORS) for part in floor}
  wrong = []
  for path in package.rglob("*.py"):
    part, *_ = path.relative_to(package).with_suffix("").parts
    if part == "__init__":
      continue
    for other in set(imported(path)) - {part}:
      above = floor_of[other] > floor_of[part] - (part not in CORE)
      if above or (part == "data" and other in NETWORK):
        wrong.append(f"{path.relative_to(package)} imports {other}")
  assert not wrong
