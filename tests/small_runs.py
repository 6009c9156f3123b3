"""Small real runs, and what they left."""

import json

from rich.console import Console

from ssil_jax import methods
from ssil_jax.config import make_config
from ssil_jax.training import loop


def small_config(workdir, **changes):
  values = {
    "dataset": "digits",
    "workdir": str(workdir),
    "num_classes": 6,
    "num_states": 3,
    "memory_size": 18,
    "batch_size_new": 32,
    "batch_size_memory": 8,
    "epochs_first": 1,
    "epochs": 1,
    "width": 4,
    # So small that a rounding error, where it flips a ReLU, does not grow into another run.
    "learning_rate": 1e-5,
    "log_every": 1,
    **changes,
  }
  method = methods.get_method(values.get("method", "ssil"))
  return make_config(values, method)


def run(workdir, **changes):
  return loop.run(small_config(workdir, **changes), Console(quiet=True))


def records(workdir):
  return [json.loads(line) for line in open(workdir / "metrics.jsonl")]


def last_checkpoint(workdir):
  """The folder of the newest one."""
  return max((workdir / "checkpoints").iterdir(), key=lambda path: int(path.name))
