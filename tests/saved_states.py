"""Runs between two steps, to be saved and read back."""

import os

import jax
import ml_dtypes
import numpy as np
import pytest

from ssil_jax import memory
from ssil_jax.training.checkpoint import Checkpoints
from ssil_jax.training.run_state import NO_STEPS, Position, RunState, TrainState
from ssil_jax.training.step import make_optimizer


def run_of(step, *, seed=0, results=(), stats=None, position=None):
  """A run after so many steps; its arrays follow from `step` and `seed`."""
  rng = np.random.default_rng([step, seed])
  params = {
    "stem": {"kernel": rng.standard_normal((3, 3, 2), np.float32)},
    # Too large to be stored in an index, which has a checksum.
    "head": {"kernel": rng.standard_normal((16, 20), np.float32)},
  }
  optimizer = make_optimizer(momentum=0.9, weight_decay=1e-4)
  zeros = jax.device_get(optimizer.init(params))
  number = 3 * len(results)
  return RunState(
    train_state=TrainState(
      step=np.array(step, np.int32),
      params=params,
      batch_stats={"mean": rng.standard_normal(2).astype(ml_dtypes.bfloat16)},
      opt_state=jax.tree.map(lambda x: x + rng.standard_normal(x.shape, x.dtype), zeros),
    ),
    exemplars=memory.Memory(
      rng.integers(0, 1 << 40, number),
      np.arange(number, dtype=np.int32),
      np.zeros(number, np.int32),
    ),
    stats={} if stats is None else stats,
    results=list(results),
    position=position,
  )


def position_of(*, teacher=True, window=2):
  rng = np.random.default_rng(5)
  network, expert = (
    {"params": run.train_state.params, "batch_stats": run.train_state.batch_stats}
    for run in (run_of(90), run_of(91))
  )
  return Position(
    phase=1,
    steps_done=37,
    teacher=network if teacher else None,
    num_teacher_classes=6 if teacher else 0,
    expert=expert if teacher else None,
    new_ranks=rng.permutation(11),
    window=rng.random((window, 2), np.float32) if window else NO_STEPS,
    seconds=1 / 3,
  )


RESULTS = [
  {"state": 1, "top1": 0.1 + 0.2, "imbalance": None, "confusion": [[3, 0], [1, 2]]},
  {"state": 2, "top1": 1e-17, "imbalance": -0.0, "from_workdir": "a/ü b"},
]


STATS = {
  "logits": np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
  "row": np.zeros(0, np.int32),  # an array without an element
  "nested": {"alpha": np.float32(2.5), "flags": np.array([True, False])},
}


def beginning_of(run):
  """What a run of that kind begins with."""
  zeros = jax.tree.map(np.zeros_like, run.stats)
  return run_of(0, seed=9, stats=zeros)


def assert_same(got, wanted):
  """Structure, types, shapes and bits."""
  assert jax.tree.structure(got) == jax.tree.structure(wanted)
  for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
    if isinstance(theirs, np.ndarray | np.generic):
      assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
      assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
    else:
      assert (type(ours), repr(ours)) == (type(theirs), repr(theirs))


def save_all(folder, *runs, kept=3):
  with Checkpoints(folder, kept=kept) as checkpoints:
    for run in runs:
      checkpoints.save(run)
    checkpoints.wait()


def load(folder, *, like, warnings=None):
  """The run as it was saved last; without `warnings`, there must be none."""
  warn = (lambda line: pytest.fail(line)) if warnings is None else warnings.append
  with Checkpoints(folder, kept=3, warn=warn) as checkpoints:
    return checkpoints.latest(default=beginning_of(like))


def numbers_in(folder):
  return sorted(int(path.name) for path in folder.iterdir())


def largest(folder):
  return max(folder.rglob("d/*"), key=lambda path: path.stat().st_size)


def truncate(newest):
  os.truncate(largest(newest), largest(newest).stat().st_size // 2)
