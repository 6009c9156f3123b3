"""Which records make up a batch, and what BiC holds out.

Pools here: new records from 0, exemplars from 1000, which begin the records of the old
classes.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssil_jax.errors import ConfigError
from ssil_jax.sampling import (
  BALANCED,
  EVERYTHING,
  NEW_ONLY,
  RATIO_PRESERVING,
  RATIO_PRESERVING_TWICE,
  SHUFFLED,
  Key,
  Pool,
  device_shares,
  held_out,
  without_held_out,
)

KEY = Key(seed=0, state=2, phase=0)
OLD = 1000

# Two new classes, of records 0 to 3 and 4 to 7, two old ones with exemplars 1000 to 1002
# and 1003 to 1005, and four more records of the old classes.
SMALL = Pool(
  new=np.arange(8),
  memory=OLD + np.arange(6),
  new_ranks=np.asarray([3, 1, 0, 2, 2, 0, 3, 1], np.int32),
  memory_ranks=np.asarray([0, 1, 2, 0, 1, 2], np.int32),
  new_labels=np.repeat(np.asarray([2, 3], np.int32), 4),
  memory_labels=np.repeat(np.asarray([0, 1], np.int32), 3),
  old=OLD + np.arange(10),
)
NEW_AND_MEMORY = [*range(8), *range(1000, 1006)]
# (sampling, records of an epoch, records of all batches, the first batches). A change of
# the batches changes every run made with a seed.
SAMPLINGS = {
  "RP": (
    RATIO_PRESERVING,
    range(8),
    NEW_AND_MEMORY,
    [
      [3, 0, 6, 7, 1001, 1005],
      [5, 1, 2, 4, 1001, 1001],
      [0, 5, 3, 4, 1005, 1003],
      [7, 1, 6, 2, 1005, 1003],
    ],
  ),
  "RP twice": (
    RATIO_PRESERVING_TWICE,
    range(8),
    NEW_AND_MEMORY,
    [
      [3, 0, 6, 7, 1001, 1005, 1003, 1002],
      [5, 1, 2, 4, 1001, 1001, 1000, 1001],
      [0, 5, 3, 4, 1005, 1003, 1002, 1004],
      [7, 1, 6, 2, 1005, 1003, 1000, 1002],
    ],
  ),
  "shuffled": (
    SHUFFLED,
    NEW_AND_MEMORY,
    NEW_AND_MEMORY,
    [[3, 1004, 1005, 7], [1000, 1003, 5, 1002], [0, 1, 1001, 6], [1000, 0, 5, 1004]],
  ),
  "new only": (
    NEW_ONLY,
    range(8),
    range(8),
    [[3, 0, 6, 7], [5, 1, 2, 4], [0, 5, 3, 4], [7, 1, 6, 2]],
  ),
  "all data": (
    EVERYTHING,
    [*range(8), *range(1000, 1010)],
    [*range(8), *range(1000, 1010)],
    [[1002, 1005, 1007, 1008], [1009, 1003, 3, 5], [1000, 7, 1004, 0], [1006, 1, 1001, 6]],
  ),
  "balanced": (  # ranks 0, 1, 2 of each new class
    BALANCED,
    [1, 2, 3, 4, 5, 7, *range(1000, 1006)],
    [1, 2, 3, 4, 5, 7, *range(1000, 1006)],
    [[7, 1004, 4, 1005], [1001, 1, 1003, 1002], [2, 1000, 3, 5], [1, 7, 4, 1004]],
  ),
  "held-out": (  # a third of 3: without the records of rank 0
    without_held_out(0.34),
    [0, 1, 3, 4, 6, 7, 1001, 1002, 1004, 1005],
    [0, 1, 3, 4, 6, 7, 1001, 1002, 1004, 1005],
    [[4, 1005, 0, 1004], [7, 1002, 1, 1001], [0, 7, 4, 6], [1005, 1, 1001, 1004]],
  ),
}
every_sampling = pytest.mark.parametrize("sampling", [row[0] for row in SAMPLINGS.values()])


def pool_of_classes(old, new, *, seed=0):
  """A pool with that many exemplars of each old class, and images of each new one."""
  rng = np.random.default_rng(seed)

  def ranks(sizes):
    return np.concatenate([rng.permutation(size) for size in sizes] or [[]]).astype("int32")

  return Pool(
    new=np.arange(sum(new)),
    memory=OLD + np.arange(sum(old)),
    new_ranks=ranks(new),
    memory_ranks=ranks(old),
    new_labels=np.repeat(len(old) + np.arange(len(new)), new),
    memory_labels=np.repeat(np.arange(len(old)), old),
    old=OLD + np.arange(2 * sum(old)),
  )


POOL = pool_of_classes([10] * 4, [20] * 3)
FIRST_STATE = pool_of_classes([], [6] * 3)


def batches(sampling, pool, steps, *, n_d=4, n_m=2, key=KEY):
  return [sampling.batch(pool, key, step, n_d, n_m).tolist() for step in steps]


def count_of_classes(pool, records):
  """The number of records of each class."""
  labels = np.concatenate([pool.new_labels, pool.memory_labels])
  chosen = np.isin(np.concatenate([pool.new, pool.memory]), records)
  return np.bincount(labels[chosen], minlength=labels.max() + 1).tolist()


@pytest.mark.parametrize("name", SAMPLINGS)
def test_small_pool(name):
  sampling, epoch_records, all_records, golden = SAMPLINGS[name]
  assert sampling.name == name  # in the schedule table
  assert sorted(sampling.epoch_records(SMALL).tolist()) == [*epoch_records]
  assert sampling.steps_per_epoch(SMALL, 4) == len([*epoch_records]) // 4
  assert sorted(sampling.records(SMALL).tolist()) == [*all_records]
  drawn = batches(sampling, SMALL, range(40))
  assert drawn[:4] == golden
  assert np.unique(drawn).tolist() == [*all_records]


@pytest.mark.parametrize("n_d", [1, 7, 8])
@every_sampling
def test_an_epoch_holds_each_record_at_most_once(sampling, n_d):
  chosen = set(sampling.epoch_records(POOL).tolist())
  steps = sampling.steps_per_epoch(POOL, n_d)
  assert len(chosen) - n_d < steps * n_d <= len(chosen)
  orders = []
  for epoch in range(3):
    epoch_steps = range(epoch * steps, (epoch + 1) * steps)
    drawn = np.asarray(batches(sampling, POOL, epoch_steps, n_d=n_d))[:, :n_d]
    orders.append(drawn.ravel().tolist())
    assert len(set(orders[-1])) == steps * n_d
    assert set(orders[-1]) <= chosen
  assert orders[0] != orders[1] != orders[2]


def test_the_records_that_are_left_out_differ_between_epochs():
  pool = pool_of_classes([], [5])  # one batch of 4: each epoch leaves one record out
  left_out = [set(range(5)) - set(b) for b in batches(RATIO_PRESERVING, pool, range(40))]
  assert set.union(*left_out) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("other", [Key(1, 2, 0), Key(0, 3, 0), Key(0, 2, 1)])
@every_sampling
def test_seed_state_and_phase_change_the_batches(sampling, other):
  ours = batches(sampling, POOL, range(3), n_d=10, n_m=10)
  theirs = batches(sampling, POOL, range(3), n_d=10, n_m=10, key=other)
  for a, b in zip(ours, theirs, strict=True):
    assert a[:10] != b[:10]
    assert not a[10:] or a[10:] != b[10:]


@every_sampling
def test_a_batch_depends_on_its_step_alone_and_may_be_written_to(sampling):
  steps = list(range(40))  # many epochs: more than any cache holds
  in_order = batches(sampling, POOL, steps, n_d=20)
  sampling.batch(POOL, KEY, 39, 20, 2)[:] = -1
  assert batches(sampling, POOL, steps[::-1], n_d=20)[::-1] == in_order


@every_sampling
def test_without_exemplars_batches_are_new_records_only(sampling):
  assert sampling.group_sizes(FIRST_STATE, 6, 2) == (6,)
  assert sampling.steps_per_epoch(FIRST_STATE, 6) == 3
  assert sorted(np.ravel(batches(sampling, FIRST_STATE, range(3), n_d=6))) == [*range(18)]


@settings(derandomize=True, deadline=None, max_examples=50)
@given(
  num_new=st.integers(1, 60),
  num_memory=st.integers(1, 20),
  n_d=st.integers(1, 16),
  n_m=st.integers(1, 40),
  key=st.builds(Key, st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(0, 2)),
  step=st.integers(0, 10**6),
)
def test_ratio_is_kept_in_every_batch(num_new, num_memory, n_d, n_m, key, step):
  pool = pool_of_classes([num_memory], [max(num_new, n_d)])
  for num_draws, sampling in ((1, RATIO_PRESERVING), (2, RATIO_PRESERVING_TWICE)):
    assert sampling.group_sizes(pool, n_d, n_m) == (n_d, *[n_m] * num_draws)
    batch = sampling.batch(pool, key, step, n_d, n_m)
    assert len(batch) == n_d + num_draws * n_m
    assert set(batch[:n_d]) <= set(pool.new)
    assert set(batch[n_d:]) <= set(pool.memory)


def test_replay_is_uniform_and_independent():
  # 40 exemplars, 2,000 times: 50 of each in expectation, with a standard deviation of 7.
  drawn = batches(RATIO_PRESERVING_TWICE, POOL, range(2000), n_d=1, n_m=1)
  same = sum(first == second for _, first, second in drawn)
  assert 50 - 4 * 7 < same < 50 + 4 * 7
  for place in (1, 2):
    times = np.bincount([batch[place] - OLD for batch in drawn], minlength=40)
    assert np.abs(times - 50).max() < 5 * 7
  # With replacement: within a batch as large as the memory, repeats are the rule.
  for batch in batches(RATIO_PRESERVING, POOL, range(20), n_m=40):
    assert len(set(batch[4:])) < 40


@pytest.mark.parametrize("kept", [1, 5, 20])
def test_balanced_has_the_same_number_of_every_class(kept):
  pool = pool_of_classes([kept] * 4, [20] * 3)
  records = BALANCED.epoch_records(pool)
  assert count_of_classes(pool, records) == [kept] * 7
  # The new records are the dearest: those that will be exemplars.
  assert (pool.new_ranks[records[records < OLD]] < kept).all()


def test_the_quota_is_the_number_of_exemplars_of_the_largest_old_class():
  assert pool_of_classes([1, 5, 2], [9]).quota == 5
  assert FIRST_STATE.quota == 0


# What BiC holds out.


@pytest.mark.parametrize(
  ("kept", "fraction", "count"),
  # Not 28, as 0.29 * 100 is 28.999999999999996 in floating point.
  [(10, 0.1, 1), (10, 0.3, 3), (19, 0.1, 1), (5, 0.1, 1), (2, 0.9, 1), (100, 0.29, 29)],
)
def test_as_many_of_every_class_are_held_out(kept, fraction, count):
  pool = pool_of_classes([kept] * 4, [kept + 5] * 3)
  apart = held_out(pool, fraction)
  assert count_of_classes(pool, apart) == [count] * 7
  ranks = np.concatenate([pool.new_ranks, pool.memory_ranks])
  assert (ranks[np.isin([*pool.new, *pool.memory], apart)] < count).all()


@settings(derandomize=True, deadline=None)
@given(
  old=st.lists(st.integers(1, 12), min_size=1, max_size=5),
  new=st.lists(st.integers(1, 12), min_size=1, max_size=5),
  fraction=st.sampled_from([0.01, 0.1, 0.25, 0.3, 0.5, 0.99]),
)
def test_what_is_held_out_and_what_is_trained_on_make_up_the_pool(old, new, fraction):
  pool, sampling = pool_of_classes(old, new), without_held_out(fraction)
  for which, sizes in (("one exemplar of each old", old), ("one image of each new", new)):
    if max(sizes) == 1:
      for function in (lambda: held_out(pool, fraction), lambda: sampling.records(pool)):
        with pytest.raises(ConfigError, match=f"^has {which} class.*$") as caught:
          function()
        assert "\n" not in str(caught.value)
      return
  apart, trained = held_out(pool, fraction), sampling.epoch_records(pool)
  assert sorted([*apart, *trained]) == sorted([*pool.new, *pool.memory])
  # One image at least of every class is trained on.
  count = max(1, int(max(old) * fraction + 1e-9))
  assert count_of_classes(pool, apart) == [min(count, n - 1) for n in (*old, *new)]


def test_without_exemplars_nothing_is_held_out():
  apart = held_out(FIRST_STATE, 0.1)
  assert len(apart) == 0
  assert apart.dtype == np.int64


# Devices.


def test_shares_of_two_devices():
  # Six new samples at 0-5 and two exemplars at 6-7: each device gets three and one.
  assert device_shares((6, 2), 2).tolist() == [[0, 1, 2, 6], [3, 4, 5, 7]]


@settings(derandomize=True, deadline=None)
@given(
  num_devices=st.integers(1, 16),
  per_device=st.lists(st.integers(1, 12), min_size=1, max_size=3),
)
def test_every_device_gets_the_same_share_of_each_kind(num_devices, per_device):
  sizes = tuple(size * num_devices for size in per_device)
  shares = device_shares(sizes, num_devices)
  assert shares.shape == (num_devices, sum(per_device))
  assert sorted(shares.ravel()) == list(range(sum(sizes)))
  kind_of_position = np.repeat(range(len(sizes)), sizes)
  for share in shares:
    assert np.bincount(kind_of_position[share]).tolist() == per_device
