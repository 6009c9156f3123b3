"""Batches of the methods that came after FT and SS-IL, and what BiC holds out.

Pools here: new records from 0, exemplars from 1000, which begin the records of the old
classes. Ranks are such that each class has every rank once.
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
  held_out,
  held_out_count,
  without_held_out,
)

KEY = Key(seed=0, state=2, phase=0)
OLD = 1000
EPOCH_SAMPLINGS = [NEW_ONLY, EVERYTHING, BALANCED, without_held_out(0.34)]

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


def pool_of(*, new_classes, new_each, old_classes, kept, old_each, seed=0):
  """A pool and {record: class}; exemplars are the first `kept` of each old class."""
  rng = np.random.default_rng(seed)
  label_of, new_ranks, memory, memory_ranks = {}, [], [], []
  for c in range(new_classes):
    new_ranks += rng.permutation(new_each).tolist()
    for k in range(new_each):
      label_of[c * new_each + k] = old_classes + c
  for c in range(old_classes):
    for k in range(old_each):
      label_of[OLD + c * old_each + k] = c
    memory += [OLD + c * old_each + k for k in range(kept)]
    memory_ranks += rng.permutation(kept).tolist()
  pool = Pool(
    new=np.arange(new_classes * new_each),
    memory=np.asarray(memory, np.int64),
    new_ranks=np.asarray(new_ranks, np.int32),
    memory_ranks=np.asarray(memory_ranks, np.int32),
    new_labels=np.repeat(np.arange(old_classes, old_classes + new_classes), new_each),
    memory_labels=np.repeat(np.arange(old_classes), kept),
    old=OLD + np.arange(old_classes * old_each),
  )
  return pool, label_of


def middle_pool():
  return pool_of(new_classes=3, new_each=20, old_classes=4, kept=10, old_each=25)


def first_state_pool():
  return pool_of(new_classes=3, new_each=6, old_classes=0, kept=0, old_each=0)[0]


def batches(sampling, pool, steps, *, n_d=4, n_m=2, key=KEY):
  return [sampling.batch(pool, key, step, n_d, n_m).tolist() for step in steps]


def per_class(records, label_of):
  """The number of records of each class, sorted by class."""
  labels = [label_of[int(record)] for record in records]
  return [labels.count(label) for label in sorted(set(label_of.values()))]


# A change here changes every run made with a seed.
GOLDEN = {
  "new only": (NEW_ONLY, [[3, 0, 6, 7], [5, 1, 2, 4], [0, 5, 3, 4], [7, 1, 6, 2]]),
  "all data": (
    EVERYTHING,
    [[1002, 1005, 1007, 1008], [1009, 1003, 3, 5], [1000, 7, 1004, 0], [1006, 1, 1001, 6]],
  ),
  "balanced": (
    BALANCED,
    [[7, 1004, 4, 1005], [1001, 1, 1003, 1002], [2, 1000, 3, 5], [1, 7, 4, 1004]],
  ),
  "RP twice": (
    RATIO_PRESERVING_TWICE,
    [
      [3, 0, 6, 7, 1001, 1005, 1003, 1002],
      [5, 1, 2, 4, 1001, 1001, 1000, 1001],
      [0, 5, 3, 4, 1005, 1003, 1002, 1004],
      [7, 1, 6, 2, 1005, 1003, 1000, 1002],
    ],
  ),
  "held-out": (
    without_held_out(0.34),
    [[4, 1005, 0, 1004], [7, 1002, 1, 1001], [0, 7, 4, 6], [1005, 1, 1001, 1004]],
  ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_batches(name):
  sampling, expected = GOLDEN[name]
  assert sampling.name == name  # in the schedule table
  assert batches(sampling, SMALL, range(4)) == expected


@pytest.mark.parametrize(
  ("sampling", "expected"),
  [
    (NEW_ONLY, range(8)),
    (EVERYTHING, [*range(8), *range(1000, 1010)]),
    (BALANCED, [1, 2, 3, 4, 5, 7, *range(1000, 1006)]),  # ranks 0, 1, 2 of each new class
    (RATIO_PRESERVING_TWICE, range(8)),
    # A third of 3: without the records of rank 0.
    (without_held_out(0.34), [0, 1, 3, 4, 6, 7, 1001, 1002, 1004, 1005]),
  ],
)
def test_an_epoch_goes_through_these_records(sampling, expected):
  assert sorted(sampling.epoch_records(SMALL).tolist()) == list(expected)
  assert sampling.steps_per_epoch(SMALL, 4) == len(list(expected)) // 4


@pytest.mark.parametrize("sampling", EPOCH_SAMPLINGS)
@pytest.mark.parametrize("n_d", [1, 7, 8])
def test_an_epoch_holds_each_record_at_most_once(sampling, n_d):
  pool, _ = middle_pool()
  chosen = set(sampling.epoch_records(pool).tolist())
  steps = sampling.steps_per_epoch(pool, n_d)
  assert sampling.group_sizes(pool, n_d, 3) == (n_d,)
  assert len(chosen) - n_d < steps * n_d <= len(chosen)
  for epoch in range(3):
    epoch_steps = range(epoch * steps, (epoch + 1) * steps)
    drawn = np.ravel(batches(sampling, pool, epoch_steps, n_d=n_d, n_m=3)).tolist()
    assert len(set(drawn)) == len(drawn) == steps * n_d
    assert set(drawn) <= chosen


@pytest.mark.parametrize("sampling", EPOCH_SAMPLINGS)
def test_over_epochs_every_record_comes(sampling):
  pool, _ = middle_pool()
  steps = 12 * sampling.steps_per_epoch(pool, 8)
  drawn = np.ravel(batches(sampling, pool, range(steps), n_d=8))
  assert set(drawn.tolist()) == set(sampling.epoch_records(pool).tolist())


@pytest.mark.parametrize("sampling", [*EPOCH_SAMPLINGS, RATIO_PRESERVING_TWICE])
@pytest.mark.parametrize("other", [Key(1, 2, 0), Key(0, 3, 0), Key(0, 2, 1)])
def test_seed_state_and_phase_change_the_batches(sampling, other):
  pool, _ = middle_pool()
  ours = batches(sampling, pool, range(3), n_d=10, n_m=10)
  theirs = batches(sampling, pool, range(3), n_d=10, n_m=10, key=other)
  for a, b in zip(ours, theirs, strict=True):
    assert a[:10] != b[:10]
    if sampling is RATIO_PRESERVING_TWICE:
      assert a[10:] != b[10:]


@pytest.mark.parametrize("sampling", [*EPOCH_SAMPLINGS, RATIO_PRESERVING_TWICE])
def test_a_batch_depends_on_its_step_alone(sampling):
  pool, _ = middle_pool()
  steps = list(range(40))
  in_order = batches(sampling, pool, steps, n_d=20)
  assert batches(sampling, pool, steps[::-1], n_d=20)[::-1] == in_order


@pytest.mark.parametrize("kept", [1, 5, 20])
def test_balanced_has_the_same_number_of_every_class(kept):
  pool, label_of = pool_of(
    new_classes=3, new_each=20, old_classes=4, kept=kept, old_each=25
  )
  records = BALANCED.epoch_records(pool)
  assert per_class(records, label_of) == [kept] * 7
  # The new records are the dearest: those that will be exemplars.
  rank_of = dict(zip(pool.new.tolist(), pool.new_ranks.tolist(), strict=True))
  assert all(rank_of[r] < kept for r in records.tolist() if r < OLD)


def test_two_draws_of_the_memory():
  pool, _ = middle_pool()
  sizes = RATIO_PRESERVING_TWICE.group_sizes(pool, 10, 6)
  assert sizes == (10, 6, 6)
  assert RATIO_PRESERVING_TWICE.steps_per_epoch(pool, 10) == 6
  for epoch in range(2):
    drawn = batches(
      RATIO_PRESERVING_TWICE, pool, range(6 * epoch, 6 * epoch + 6), n_d=10, n_m=6
    )
    new = [record for batch in drawn for record in batch[:10]]
    assert sorted(new) == list(range(60))
    for batch in drawn:
      assert len(batch) == 22
      first, second = batch[10:16], batch[16:]
      assert first != second
      assert set(first + second) <= set(pool.memory.tolist())


def test_two_draws_are_independent():
  pool, _ = middle_pool()  # 40 exemplars
  drawn = batches(RATIO_PRESERVING_TWICE, pool, range(2000), n_d=1, n_m=1)
  same = sum(first == second for _, first, second in drawn)
  # In expectation 50 of 2,000, with a standard deviation of 7.
  assert 50 - 4 * 7 < same < 50 + 4 * 7
  for place in (1, 2):
    times = np.bincount(
      np.searchsorted(pool.memory, [batch[place] for batch in drawn]), minlength=40
    )
    assert np.abs(times - 50).max() < 5 * 7


def test_held_out_by_hand():
  # Quota 3 and a third: one of each class, that of rank 0.
  assert sorted(held_out(SMALL, 0.34).tolist()) == [2, 5, 1000, 1003]
  # Two thirds: two of each class.
  assert sorted(held_out(SMALL, 0.67).tolist()) == [1, 2, 5, 7, 1000, 1001, 1003, 1004]
  # Not a record less because 0.29 * 100 is 28.999999999999996 in floating point.
  assert held_out_count(100, 0.29) == 29


@pytest.mark.parametrize(
  ("kept", "fraction", "count"),
  [(10, 0.1, 1), (10, 0.3, 3), (20, 0.1, 2), (19, 0.1, 1), (5, 0.1, 1), (2, 0.9, 1)],
)
def test_as_many_of_every_class_are_held_out(kept, fraction, count):
  pool, label_of = pool_of(
    new_classes=3, new_each=20, old_classes=4, kept=kept, old_each=25
  )
  assert pool.quota == kept
  assert held_out_count(kept, fraction) == count
  apart = held_out(pool, fraction)
  assert len(set(apart.tolist())) == len(apart)
  assert per_class(apart, label_of) == [count] * 7
  rank_of = dict(
    zip(
      [*pool.new.tolist(), *pool.memory.tolist()],
      [*pool.new_ranks.tolist(), *pool.memory_ranks.tolist()],
      strict=True,
    )
  )
  assert all(rank_of[record] < count for record in apart.tolist())


@pytest.mark.parametrize("fraction", [0.1, 0.34, 0.5])
def test_held_out_records_are_in_no_batch(fraction):
  pool, _ = middle_pool()
  sampling = without_held_out(fraction)
  apart = set(held_out(pool, fraction).tolist())
  steps = 5 * sampling.steps_per_epoch(pool, 8)
  drawn = set(np.ravel(batches(sampling, pool, range(steps), n_d=8)).tolist())
  assert not drawn & apart
  everything = {*pool.new.tolist(), *pool.memory.tolist()}
  assert set(sampling.epoch_records(pool).tolist()) == everything - apart


def pool_of_classes(old, new):
  """A pool with all images of each old and each new class; records as in `pool_of`."""

  def ranks(sizes):
    return np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])

  return Pool(
    new=np.arange(sum(new)),
    memory=OLD + np.arange(sum(old)),
    new_ranks=ranks(new),
    memory_ranks=ranks(old),
    new_labels=np.repeat(len(old) + np.arange(len(new)), new),
    memory_labels=np.repeat(np.arange(len(old)), old),
    old=OLD + np.arange(sum(old)),
  )


def count_of_classes(pool, records):
  """The number of records of each class."""
  labels = np.concatenate([pool.new_labels, pool.memory_labels])
  chosen = np.isin(np.concatenate([pool.new, pool.memory]), records)
  return np.bincount(labels[chosen], minlength=labels.max() + 1).tolist()


def test_one_image_at_least_of_every_class_is_trained_on():
  # The largest old class has 10 exemplars, so 3 are held out where there are more.
  pool = pool_of_classes(old=[1, 2, 3, 4, 10], new=[4, 1, 30, 3, 2])
  apart = held_out(pool, 0.3)
  assert count_of_classes(pool, apart) == [0, 1, 2, 3, 3, 3, 0, 3, 2, 1]
  trained = without_held_out(0.3).epoch_records(pool)
  assert count_of_classes(pool, trained) == [1, 1, 1, 1, 7, 1, 1, 27, 1, 1]
  assert sorted([*apart, *trained]) == sorted([*pool.new, *pool.memory])


@settings(derandomize=True, deadline=None)
@given(
  old=st.lists(st.integers(1, 12), min_size=1, max_size=5),
  new=st.lists(st.integers(1, 12), min_size=1, max_size=5),
  fraction=st.floats(0.01, 0.99),
)
def test_what_is_held_out_and_what_is_trained_on_make_up_the_pool(old, new, fraction):
  pool = pool_of_classes(old, new)
  if max(old) == 1 or max(new) == 1:
    with pytest.raises(ConfigError):
      held_out(pool, fraction)
    return
  apart, trained = held_out(pool, fraction), without_held_out(fraction).epoch_records(pool)
  assert sorted([*apart, *trained]) == sorted([*pool.new, *pool.memory])
  count = held_out_count(max(old), fraction)
  assert count_of_classes(pool, apart) == [min(count, n - 1) for n in (*old, *new)]


@pytest.mark.parametrize(
  ("old", "new", "message"),
  [
    ([1, 1, 1], [8, 8], "has one exemplar of each old class"),
    ([9, 1], [1, 1, 1], "has one image of each new class"),
    ([1], [1], "has one exemplar of each old class"),
  ],
)
@pytest.mark.parametrize("fraction", [0.1, 0.9])
def test_no_correction_is_fitted_to_one_side_alone(old, new, message, fraction):
  pool = pool_of_classes(old, new)
  for function in (held_out, lambda *args: without_held_out(fraction).records(pool)):
    with pytest.raises(ConfigError, match=message) as caught:
      function(pool, fraction)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("sampling", "expected"),
  [
    (RATIO_PRESERVING, [*range(8), *range(1000, 1006)]),
    (RATIO_PRESERVING_TWICE, [*range(8), *range(1000, 1006)]),
    (SHUFFLED, [*range(8), *range(1000, 1006)]),
    (NEW_ONLY, range(8)),
    (EVERYTHING, [*range(8), *range(1000, 1010)]),
    (BALANCED, [1, 2, 3, 4, 5, 7, *range(1000, 1006)]),
    (without_held_out(0.34), [0, 1, 3, 4, 6, 7, 1001, 1002, 1004, 1005]),
  ],
)
def test_a_phase_trains_on_these_records(sampling, expected):
  assert sorted(sampling.records(SMALL).tolist()) == list(expected)
  drawn = np.concatenate(batches(sampling, SMALL, range(40)))
  assert np.unique(drawn).tolist() == list(expected)


@pytest.mark.parametrize("sampling", [*EPOCH_SAMPLINGS, RATIO_PRESERVING_TWICE])
def test_without_exemplars_batches_are_new_records_only(sampling):
  pool = first_state_pool()
  assert sampling.group_sizes(pool, 6, 2) == (6,)
  assert sampling.steps_per_epoch(pool, 6) == 3
  drawn = batches(sampling, pool, range(3), n_d=6)
  assert [len(batch) for batch in drawn] == [6, 6, 6]
  assert sorted(np.ravel(drawn).tolist()) == list(range(18))


def test_without_exemplars_nothing_is_held_out():
  apart = held_out(first_state_pool(), 0.1)
  assert len(apart) == 0
  assert apart.dtype == np.int64


def test_the_quota_is_the_number_of_exemplars_of_an_old_class():
  assert SMALL.quota == 3
  assert pool_of_classes(old=[1, 5, 2], new=[9]).quota == 5
  assert first_state_pool().quota == 0
