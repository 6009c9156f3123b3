"""GDumb: what it trains on is the memory that its state leaves."""

import numpy as np
from finished_states import config_of
from small_runs import small_config

from ssil_jax import memory
from ssil_jax.config import to_json
from ssil_jax.methods import METHODS
from ssil_jax.sampling import Pool
from ssil_jax.training.plan import make_plan
from ssil_jax.training.reuse import shared_states


def sampling_of(memory_size):
  (phase,) = METHODS["gdumb"].phases(config_of("gdumb", memory_size=memory_size), 2)
  return phase.sampling


def test_the_pool_is_the_memory_after_the_state():
  # Two old classes with four and three exemplars, two new ones with four and two images.
  pool = Pool(
    new=np.array([20, 21, 22, 23, 30, 31]),
    memory=np.array([5, 3, 4, 7, 11, 12, 13]),
    new_ranks=np.array([2, 0, 3, 1, 1, 0]),
    memory_ranks=np.array([0, 1, 2, 3, 0, 1, 2]),
    new_labels=np.array([2, 2, 2, 2, 3, 3]),
    memory_labels=np.array([0, 0, 0, 0, 1, 1, 1]),
  )
  golden = {
    4: [21, 31, 5, 11],
    11: [21, 23, 30, 31, 5, 3, 11, 12],
    12: [20, 21, 23, 30, 31, 5, 3, 4, 11, 12, 13],
    99: [20, 21, 22, 23, 30, 31, 5, 3, 4, 7, 11, 12, 13],
  }
  for memory_size, expected in golden.items():
    assert sampling_of(memory_size).records(pool).tolist() == expected


def test_a_state_trains_on_what_it_keeps(tmp_path):
  # 30 images of each class in the first state, then 15, then 10; herding would choose by
  # features that the network does not have yet.
  config = small_config(
    tmp_path, method="gdumb", memory_size=60, batch_size_new=4, selection="herding"
  )
  assert config.selection == "ring"
  plan, exemplars = make_plan(config), memory.empty()
  for state in plan.states:
    pool = plan.pool(state, exemplars)
    exemplars = memory.update(
      exemplars,
      pool.new,
      pool.new_labels,
      memory.random_order(len(pool.new), seed=config.seed, state=state.index),
      memory_size=60,
      num_seen=state.num_seen,
    )
    (phase,) = state.phases
    assert sorted(phase.sampling.records(pool)) == sorted(exemplars.records)
    assert (phase.epoch_size, phase.steps_per_epoch) == (60, 15)


def test_its_first_state_is_its_own():
  # Also where the memory has room for all images.
  config = config_of("gdumb", epochs_first=20, learning_rate_by_state="inverse")
  theirs = to_json(config_of("ft", epochs_first=20)) | {
    name: getattr(config, name)
    for name in ("learning_rate", "batch_size_new", "weight_decay")
  }
  assert shared_states(config, theirs)[0] == 0
