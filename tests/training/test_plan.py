"""What a run will do: phases in numbers, and shares that come out even."""

import numpy as np
import pytest
from folders import config_of

from ssil_jax.data.opening import open_dataset
from ssil_jax.errors import ConfigError, DataError
from ssil_jax.training.plan import check_shares, make_plan


def plan_of(method="ssil", **values):
  return make_plan(
    config_of(**{"method": method, "batch_size_new": 32, "batch_size_memory": 8, **values})
  )


def test_phases_of_ssil_in_numbers():
  # Digits, two new classes a state: 10 exemplars of 2 classes, then 8 of 4, 6 of 6, ...
  states, plans = zip(
    *plan_of(memory_size=10, epochs_first=3, epochs=2).phases(), strict=True
  )
  assert [state.index for state in states] == [1, 2, 3, 4, 5]
  assert [p.num_replayed for p in plans] == [0, 10, 8, 6, 8]
  assert [p.group_sizes for p in plans] == [(32,), *[(32, 8)] * 4]
  assert sum(p.num_new for p in plans) == 1433
  for state, p in zip(states, plans, strict=True):
    assert p.steps_per_epoch == p.num_new // 32
    assert p.num_steps == p.steps_per_epoch * (3 if state.index == 1 else 2)
    assert p.num_images == p.num_steps * sum(p.group_sizes)


def test_devices_must_share_every_kind_of_sample_equally():
  plan = plan_of()
  check_shares(plan, 8)
  with pytest.raises(ConfigError) as error:
    check_shares(plan, 16)
  (line,) = str(error.value).splitlines()
  assert line.startswith("--batch_size_memory=8 ")
  with pytest.raises(ConfigError) as error:
    check_shares(plan, 3)
  new, memory = str(error.value).splitlines()
  assert new.startswith("--batch_size_new=32 ")
  assert memory.startswith("--batch_size_memory=8 ")


def test_fine_tuning_has_no_share_of_exemplars():
  plan = plan_of("ft")
  check_shares(plan, 16)
  with pytest.raises(ConfigError, match="--batch_size_new=32"):
    check_shares(plan, 3)


def test_a_state_that_cannot_be_scored_is_named():
  config = config_of(batch_size_new=32, batch_size_memory=8)
  dataset = open_dataset(config)
  tested = np.flatnonzero(dataset.test.labels // 2 != 2)
  with pytest.raises(DataError, match="state 3 has no test images of its classes"):
    make_plan(config, dataset._replace(test=dataset.test.take(tested)))


def test_images_may_be_too_large_for_a_method():
  def plan_of_size(size):
    return plan_of("dgr", image_size=size)

  assert plan_of_size(64).dataset.image_size == 64
  with pytest.raises(ConfigError, match="--method=dgr is made for images of up to 64 "):
    plan_of_size(65)
