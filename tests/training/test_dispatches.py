"""Training steps that are sent to the devices together are those sent one by one."""

import itertools
import signal

import numpy as np
import pytest
from kills import differences
from quick import quick_network
from small_runs import small_config, untimed_records, watched_run

from ssil_jax.data.dataset import Batch
from ssil_jax.distributed.preemption import Interrupted
from ssil_jax.sampling import RATIO_PRESERVING
from ssil_jax.schedule import Phase
from ssil_jax.training import loop
from ssil_jax.training.devices import choose_devices
from ssil_jax.training.dispatches import Dispatches, dispatches, steps_together
from ssil_jax.training.plan import make_plan
from ssil_jax.training.session import make_session
from ssil_jax.training.speed import begin_second_state

SETTINGS = {
  "num_classes": 4,
  "num_states": 2,
  "memory_size": 16,
  "batch_size_new": 16,
  "learning_rate": 1e-3,
  "num_devices": 2,
  "checkpoint_minutes": 0.0,
  "log_every": 2,
}


class Numbered:
  """Batches of one image for each of two devices, which hold their own number."""

  devices = range(2)

  def __len__(self):
    return 7

  def __getitem__(self, step):
    number = np.full((2, 1), range(7)[step])
    return Batch(number, number, number, number)


def test_steps_of_a_dispatch_are_numbered_through_and_the_last_one_may_be_smaller():
  rates = np.array([0.5, 0.25], np.float32)
  made = Dispatches(
    batches=Numbered(), epoch_rates=rates, steps_per_epoch=4, first=2, size=3
  )
  assert len(made) == 2
  batch, learning_rates = made[0]
  np.testing.assert_array_equal(batch.inputs[:, :, 0], [[2, 3, 4]] * 2)
  np.testing.assert_array_equal(learning_rates, [[0.5, 0.5, 0.25]] * 2)
  batch, learning_rates = made[1]
  np.testing.assert_array_equal(batch.inputs[:, :, 0], [[5, 6]] * 2)
  np.testing.assert_array_equal(learning_rates, [[0.25, 0.25]] * 2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """Runs of a step at a time, of three, and of three that was interrupted on its way."""
  folder, questions = tmp_path_factory.mktemp("runs"), itertools.count()

  def ask():
    if next(questions) == 4:
      raise Interrupted(signal.SIGTERM)

  def config_of(name, **changes):
    return small_config(folder / name, **SETTINGS, **changes)

  with quick_network():
    for name, changes in {"one": {}, "three": {"steps_per_dispatch": 3}}.items():
      watched_run(config_of(name, **changes))
    config = config_of("interrupted", steps_per_dispatch=3)
    ended, calls = watched_run(config, ask=ask)
    assert isinstance(ended, Interrupted)
    assert [call.kind for call in calls].count("train") == 4
    watched_run(config)
  return folder


def test_run_in_groups_is_the_run_step_by_step_but_for_rounding(runs):
  one, three = (untimed_records(runs / name) for name in ("one", "three"))
  assert len(one) > 10
  for row, same in zip(one, three, strict=True):
    assert row == pytest.approx(same, rel=1e-4)


def test_run_that_goes_on_between_two_groups_is_the_same_to_the_bit(runs):
  assert differences(runs / "three", runs / "interrupted") == []


def lowered_step(workdir, **settings):
  """Lowers the training step of the second state, as jax hands it to XLA."""
  config = small_config(workdir, **(SETTINGS | settings))
  with quick_network():
    session = make_session(make_plan(config), choose_devices(config))
    state, phase, run = begin_second_state(session)
    batches, size = (
      loop.train_batches(session, state, phase, run),
      config.steps_per_dispatch,
    )
    sent = session.devices.shard(dispatches(batches, phase, first=0, size=size)[0])
    context = loop.training_context(session, state, phase, run)
    train_state, context = session.devices.replicate((run.train_state, context))
    batch, rates = sent
    return session.devices.lower_train_step(train_state, batch, context, rates, later=True)


@pytest.mark.parametrize(
  ("steps", "together"),
  [
    ([3900, *[780] * 9], 10),  # CIFAR-100: 39 steps an epoch; 6 and 10 are as near
    ([16, 40], 8),
    ([21], 7),
    ([9, 17], 8),  # none divides both
    ([0, 13], 13),
  ],
)
def test_all_dispatches_of_a_run_are_whole_if_they_can_be(steps, together):
  phase = Phase(RATIO_PRESERVING, epochs=1, learning_rate=0.1, milestones=(), drop=0.1)
  phases = [phase._replace(steps_per_epoch=count) for count in steps]
  assert steps_together(phases) == together


# Gradients of parts, statistics carried, parameters of its own, generated images.
@pytest.mark.parametrize("name", ["gem", "rwalk", "vcl", "dgr"])
def test_what_methods_carry_from_step_to_step_keeps_its_types(tmp_path, name):
  _, metrics = lowered_step(tmp_path, method=name, steps_per_dispatch=2).out_info
  assert metrics["loss"].shape == (2, 2)  # devices, steps


@pytest.mark.parametrize("name", ["ssil_tkd", "dgr"])
def test_runs_that_differ_in_their_seeds_share_a_program(tmp_path, name):
  seeds = {"seed": 2**32 - 1, "class_order_seed": 3}
  shared = {"method": name, "num_classes": 10, "steps_per_dispatch": 1}
  one, other = (lowered_step(tmp_path, **shared, **own).as_text() for own in ({}, seeds))
  assert one == other
