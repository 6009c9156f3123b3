"""Which records make up a batch. Pools here: new records from 0, exemplars from 1000."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssil_jax.sampling import (
  RATIO_PRESERVING,
  SHUFFLED,
  Key,
  Pool,
  device_shares,
)

KEY = Key(seed=0, state=2, phase=0)
MEMORY = 1000  # the first exemplar's record


def pool_of(num_new, num_memory):
  return Pool(np.arange(num_new), MEMORY + np.arange(num_memory))


def batches(sampling, pool, key, steps, n_d, n_m):
  return [sampling.batch(pool, key, step, n_d, n_m).tolist() for step in steps]


def test_golden_ratio_preserving_batches():
  # Two epochs of two batches. A change here changes every run made with a seed.
  assert batches(RATIO_PRESERVING, pool_of(8, 4), KEY, range(4), 4, 2) == [
    [3, 0, 6, 7, 1000, 1003],
    [5, 1, 2, 4, 1000, 1000],
    [0, 5, 3, 4, 1003, 1002],
    [7, 1, 6, 2, 1003, 1002],
  ]


def test_golden_shuffled_batches():
  assert batches(SHUFFLED, pool_of(8, 4), KEY, range(4), 4, 2) == [
    [5, 1002, 3, 1003],
    [7, 0, 1001, 1000],
    [1, 6, 2, 4],
    [0, 5, 3, 1002],
  ]


@pytest.mark.parametrize("num_new", [12, 13, 15])
def test_an_epoch_holds_each_new_record_at_most_once(num_new):
  pool = pool_of(num_new, 5)
  steps = RATIO_PRESERVING.steps_per_epoch(pool, 4)
  assert steps == 3  # the last partial batch is dropped
  for epoch in range(3):
    epoch_steps = range(epoch * steps, (epoch + 1) * steps)
    drawn = np.ravel(
      [b[:4] for b in batches(RATIO_PRESERVING, pool, KEY, epoch_steps, 4, 2)]
    )
    assert len(set(drawn)) == len(drawn) == 12
    assert set(drawn) <= set(pool.new)


def test_an_epoch_holds_each_new_record_exactly_once_when_divisible():
  pool = pool_of(12, 5)
  drawn = np.ravel([b[:4] for b in batches(RATIO_PRESERVING, pool, KEY, range(3), 4, 2)])
  assert sorted(drawn) == list(range(12))


def test_dropped_records_differ_between_epochs():
  pool = pool_of(5, 0)  # one batch of 4: each epoch leaves one record out
  left_out = {
    (set(range(5)) - set(batch)).pop()
    for batch in batches(RATIO_PRESERVING, pool, KEY, range(40), 4, 1)
  }
  assert left_out == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("sampling", [RATIO_PRESERVING, SHUFFLED])
def test_epochs_have_different_orders(sampling):
  pool = pool_of(30, 10)
  steps = sampling.steps_per_epoch(pool, 10)
  first = batches(sampling, pool, KEY, range(steps), 10, 5)
  second = batches(sampling, pool, KEY, range(steps, 2 * steps), 10, 5)
  assert first != second


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
  num_new = max(num_new, n_d)
  pool = pool_of(num_new, num_memory)
  batch = RATIO_PRESERVING.batch(pool, key, step, n_d, n_m)
  assert RATIO_PRESERVING.group_sizes(pool, n_d, n_m) == (n_d, n_m)
  new, replayed = batch[:n_d], batch[n_d:]
  assert len(new) == n_d
  assert len(replayed) == n_m
  assert set(new) <= set(range(num_new))
  assert set(replayed) <= set(range(MEMORY, MEMORY + num_memory))


def test_without_a_memory_batches_are_new_records_only():
  pool = pool_of(8, 0)
  for sampling in (RATIO_PRESERVING, SHUFFLED):
    assert sampling.group_sizes(pool, 4, 2) == (4,)
    drawn = np.ravel(batches(sampling, pool, KEY, range(2), 4, 2))
    assert sorted(drawn) == list(range(8))


def test_replay_is_with_replacement():
  # Six exemplars of three: some record must come twice.
  batch = RATIO_PRESERVING.batch(pool_of(4, 3), KEY, 0, 4, 6)
  assert len(batch) == 10
  # Within a batch as large as the memory, repeats are the rule: 10! / 10**10 is 0.04%.
  repeats = [
    len(set(b[4:])) < 10
    for b in batches(RATIO_PRESERVING, pool_of(4, 10), KEY, range(20), 4, 10)
  ]
  assert all(repeats)


def test_replay_is_about_uniform():
  drawn = np.ravel(
    [b[4:] for b in batches(RATIO_PRESERVING, pool_of(4, 10), KEY, range(500), 4, 20)]
  )
  times = np.bincount(drawn - MEMORY, minlength=10)
  # 10,000 draws: 1,000 each, with a standard deviation of sqrt(10,000 * 0.09) = 30.
  assert times.sum() == 10_000
  assert np.abs(times - 1000).max() < 4 * 30


def test_shuffled_draws_from_new_and_memory_together():
  pool = pool_of(8, 4)
  assert SHUFFLED.steps_per_epoch(pool, 4) == 3
  assert SHUFFLED.group_sizes(pool, 4, 2) == (4,)
  drawn = np.ravel(batches(SHUFFLED, pool, KEY, range(3), 4, 2))
  assert sorted(drawn) == [*range(8), *range(MEMORY, MEMORY + 4)]


def test_shuffled_holds_exemplars_as_often_as_their_share():
  # D_t has 90 records and M has 10: one sample in ten, in the mean over an epoch.
  drawn = batches(SHUFFLED, pool_of(90, 10), KEY, range(10), 10, 5)
  per_batch = [sum(record >= MEMORY for record in batch) for batch in drawn]
  assert sum(per_batch) == 10
  assert len(set(per_batch)) > 1  # not a fixed ratio


@pytest.mark.parametrize("sampling", [RATIO_PRESERVING, SHUFFLED])
def test_a_batch_depends_on_its_step_alone(sampling):
  pool = pool_of(23, 7)
  steps = list(range(40))  # many epochs: more than any cache holds
  in_order = batches(sampling, pool, KEY, steps, 5, 3)
  assert batches(sampling, pool, KEY, steps[::-1], 5, 3)[::-1] == in_order
  shuffled = np.random.default_rng(0).permutation(steps).tolist()
  again = dict(zip(shuffled, batches(sampling, pool, KEY, shuffled, 5, 3), strict=True))
  assert [again[step] for step in steps] == in_order


@pytest.mark.parametrize("sampling", [RATIO_PRESERVING, SHUFFLED])
@pytest.mark.parametrize("other", [Key(1, 2, 0), Key(0, 3, 0), Key(0, 2, 1)])
def test_seed_state_and_phase_change_the_batches(sampling, other):
  pool = pool_of(40, 20)
  ours = batches(sampling, pool, KEY, range(4), 10, 10)
  theirs = batches(sampling, pool, other, range(4), 10, 10)
  for a, b in zip(ours, theirs, strict=True):
    assert a[:10] != b[:10]
    if sampling is RATIO_PRESERVING:
      assert a[10:] != b[10:]


def test_a_batch_may_be_written_to():
  pool = pool_of(8, 0)
  batch = RATIO_PRESERVING.batch(pool, KEY, 0, 8, 2)
  batch[:] = -1
  again = RATIO_PRESERVING.batch(pool, KEY, 0, 8, 2)
  assert sorted(again.tolist()) == list(range(8))


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
