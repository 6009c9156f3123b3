"""Training steps that are sent to the devices together are those sent one by one."""

import itertools
import signal

import numpy as np
import pytest
from kills import differences
from quick import quick_network
from small_runs import run, small_config, watched_run

from ssil_jax.data.dataset import Batch
from ssil_jax.distributed.preemption import Interrupted
from ssil_jax.training.dispatches import Dispatches

SETTINGS = {
  "num_classes": 4,
  "num_states": 2,
  "memory_size": 16,
  "batch_size_new": 16,
  "learning_rate": 1e-2,
  "num_devices": 2,
  "checkpoint_minutes": 0.0,
}


class Numbered:
  """Batches of one image for each of two devices, which hold their own number."""

  def __len__(self):
    return 7

  def __getitem__(self, step):
    number = np.full((2, 1), range(7)[step])
    return Batch(number, number, number, number)


def test_steps_of_a_dispatch_are_numbered_through_and_the_last_may_be_missing():
  rates = np.array([0.5, 0.25], np.float32)
  made = Dispatches(
    batches=Numbered(), epoch_rates=rates, steps_per_epoch=4, first=2, size=3
  )
  assert len(made) == 2
  batch, learning_rates = made[0]
  np.testing.assert_array_equal(batch.inputs[:, :, 0], [[2, 3, 4]] * 2)
  np.testing.assert_array_equal(learning_rates.values, [[0.5, 0.5, 0.25]] * 2)
  np.testing.assert_array_equal(learning_rates.count, [3, 3])
  batch, learning_rates = made[1]
  np.testing.assert_array_equal(batch.inputs[:, :, 0], [[5, 6, 6]] * 2)
  np.testing.assert_array_equal(learning_rates.count, [2, 2])


@pytest.mark.parametrize("log_every", [1, 4])
def test_run_in_groups_is_the_run_step_by_step_also_if_it_is_interrupted(
  tmp_path, log_every
):
  one, many = tmp_path / "one", tmp_path / "many"
  settings = SETTINGS | {"log_every": log_every}
  questions = itertools.count()

  def ask():
    if next(questions) == 4:
      raise Interrupted(signal.SIGTERM)

  with quick_network():
    run(one, **settings)
    config = small_config(many, **settings, steps_per_dispatch=3)
    ended, calls = watched_run(config, ask=ask)
    assert isinstance(ended, Interrupted)
    assert [call.kind for call in calls].count("train") == 4  # of three steps each
    run(many, **settings, steps_per_dispatch=2)
  assert differences(one, many) == []
