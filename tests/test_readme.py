"""The Python in README.md runs, and says the truth."""

import dataclasses
import pathlib
import re

import numpy as np

from ssil_jax.config import Config

README = (pathlib.Path(__file__).parent.parent / "README.md").read_text()


def test_every_python_block_runs():
  blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
  assert len(blocks) == 2
  names = {}
  for block in blocks:
    exec(block, names)
  np.testing.assert_allclose(
    names["ssil"], [np.log(1 + np.exp(-1)), np.log(np.exp(2) + 1)], rtol=1e-6
  )
  assert np.all(names["ft"] > names["ssil"])


def test_every_flag_and_file_named_exists():
  root = pathlib.Path(__file__).parent.parent
  for flagfile in re.findall(r"--flagfile=([\w.]+)", README):
    assert (root / "experiments" / flagfile).is_file()
  for picture in re.findall(r"!\[.*?\]\((.*?)\)", README):
    assert (root / picture).is_file()
  import kills

  from ssil_jax.commands import prepare, run, sweep

  # Flags of TFDS' own command, gcloud, sbatch and XLA.
  known = {"flagfile", "help", "file_format", "worker", "command", "nodes"}
  known |= {"xla_gpu_deterministic_ops"}
  for text in (run.help_text(), prepare.help_text(), sweep.help_text()):
    known |= set(re.findall(r"^  --(\w+)$", text, re.MULTILINE))
  known |= set(re.findall(r"^  --(\w+)", kills.make_parser().format_help(), re.MULTILINE))
  known |= {f"no{field.name}" for field in dataclasses.fields(Config) if field.type is bool}
  assert set(re.findall(r"--(\w+)", README)) <= known
