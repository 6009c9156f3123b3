"""Reproduces tables and figures of the paper; `--help` lists the flags."""

import pathlib
import sys

# So that the script runs without being installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from ssil_jax.commands import execute

if __name__ == "__main__":
  execute("paper")
