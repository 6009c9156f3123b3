"""The README and the pages in docs/: their Python runs, their flags and files exist."""

import dataclasses
import importlib
import re

import numpy as np
import pytest
from folders import ROOT
from quick import quick_network

from ssil_jax.config import Config

PAGES = [
  ROOT / "README.md",
  ROOT / "CONTRIBUTING.md",
  *sorted((ROOT / "docs").glob("*.md")),
]
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
BLOCKS = [
  (name, block)
  for name, text in TEXTS.items()
  for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
]


# Of docs/bad_inputs.md flags may be wrong; see tests/commands/test_bad_inputs.py.
CHECKED = {name: text for name, text in TEXTS.items() if name != "docs/bad_inputs.md"}
# Flags of the example in examples/, of sbatch, gcloud, TFDS' own command and XLA.
FOREIGN_FLAGS = {"focal_gamma", "nodes", "ntasks", "gpus", "pty", "worker", "command"}
FOREIGN_FLAGS |= {"count", "file_format", "photos", "seeds", "xla_gpu_deterministic_ops"}


@pytest.mark.parametrize(("name", "block"), BLOCKS, ids=[name for name, _ in BLOCKS])
def test_every_python_block_runs(name, block, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  # A run of the same kind, but a small one of a network for tests.
  block = re.sub(r"\b(width|epochs|epochs_first)=\d+", r"\1=2", block)
  names = {}
  with quick_network():
    exec(block, names)
  if "ssil" in names:
    known = [np.log(1 + np.exp(-1)), np.log(np.exp(2) + 1)]
    np.testing.assert_allclose(names["ssil"], known, rtol=1e-6)
    assert np.all(names["ft"] > names["ssil"])


def test_python_blocks_are_found():
  assert [name for name, _ in BLOCKS].count("README.md") >= 2
  assert any("sampling.RATIO_PRESERVING" in block for _, block in BLOCKS)


def known_flags():
  import kills

  from ssil_jax.commands import COMMANDS

  known = {"flagfile", "help", *FOREIGN_FLAGS}
  known |= {f"no{field.name}" for field in dataclasses.fields(Config) if field.type is bool}
  for name in COMMANDS:
    command = importlib.import_module(f"ssil_jax.commands.{name}")
    known |= set(re.findall(r"^ +--(\w+)", command.help_text(), re.MULTILINE))
  return known | set(re.findall(r"^ +--(\w+)", kills.make_parser().format_help(), re.M))


def test_every_flag_named_exists():
  known = known_flags()
  for name, text in CHECKED.items():
    assert not set(re.findall(r"(?<![\w-])--(\w+)", text)) - known, name


def headings(text):
  """Anchors, as GitHub makes them of headings."""
  titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
  return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_link_leads_somewhere():
  for name, text in TEXTS.items():
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
      if link.startswith("https://"):
        continue
      path, _, anchor = link.partition("#")
      target = ((ROOT / name).parent / path).resolve() if path else ROOT / name
      assert target.is_file(), (name, link)
      assert not anchor or anchor in headings(target.read_text()), (name, link)


def test_every_file_named_exists():
  folders = ("ssil_jax", "experiments", "tests", "benchmarks", "docs", "examples")
  pattern = rf"\b(?:{'|'.join(folders)})/[\w/]+\.(?:py|sh|md|png)\b"
  for name, text in CHECKED.items():
    missing = {path for path in re.findall(pattern, text) if not (ROOT / path).is_file()}
    assert not missing, name
    for flagfile in re.findall(r"\b(\w+\.cfg)\b", text):
      shown = flagfile == "NAME.cfg"
      assert shown or list(ROOT.glob(f"*/**/{flagfile}")), (name, flagfile)


def test_readme_is_short():
  assert TEXTS["README.md"].count("\n") < 200
