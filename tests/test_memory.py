"""The exemplar memory: balanced, nested, and the right size at any scale."""

import numpy as np
import pytest
import reference

from ssil_jax import memory


def records_of_classes(low, high, each, seed=0):
  """Shuffled records of the classes low, ..., high - 1; class c has each[c] or each."""
  sizes = [each[c] if isinstance(each, dict) else each for c in range(low, high)]
  labels = np.repeat(np.arange(low, high, dtype=np.int32), sizes)
  np.random.default_rng((seed, low)).shuffle(labels)
  return low * 10_000 + np.arange(len(labels)), labels


def memories(steps, memory_size, *, each=50, seed=0):
  """The memory after every state; `steps` are the classes seen, e.g. (2, 5, 10)."""
  held, low, history = memory.empty(), 0, []
  for state, high in enumerate(steps, start=1):
    records, labels = records_of_classes(low, high, each)
    held = memory.update(
      held,
      records,
      labels,
      memory.random_order(len(records), seed=seed, state=state),
      memory_size=memory_size,
      num_seen=high,
    )
    history.append(held)
    low = high
  return history


@pytest.mark.parametrize(
  ("memory_size", "num_seen", "quota"),
  [(100, 2, 50), (100, 3, 33), (100, 100, 1), (20_000, 1000, 20), (99, 100, 0)],
)
def test_quota_is_the_rounded_down_share(memory_size, num_seen, quota):
  assert memory.quota(memory_size, num_seen) == quota
  assert memory.quota(memory_size, num_seen) == reference.ring_quota(memory_size, num_seen)


@pytest.mark.parametrize("memory_size", [10, 37, 100])
def test_classes_are_equal_ordered_and_shrink_to_a_subset(memory_size):
  steps = (2, 5, 10)
  history = memories(steps, memory_size)
  for held, num_seen in zip(history, steps, strict=True):
    each = memory_size // num_seen
    assert held.labels.tolist() == np.repeat(np.arange(num_seen), each).tolist()
    assert held.ranks.tolist() == [*range(each)] * num_seen
    assert len(set(held.records)) == len(held.records)
  for before, after in zip(history, history[1:], strict=False):
    old = after.labels <= before.labels.max()
    assert set(after.records[old]) < set(before.records)


def test_a_small_class_keeps_all_its_records():
  # 60 places for 3 classes: 20 each, but class 1 has only 7.
  (held,) = memories((3,), 60, each={0: 50, 1: 7, 2: 50})
  assert np.bincount(held.labels).tolist() == [20, 7, 20]
  # Later it holds its 7 until the quota falls below that.
  history = memories((3, 6, 12), 60, each={1: 7} | {c: 50 for c in range(12) if c != 1})
  assert [np.bincount(held.labels)[1] for held in history] == [7, 7, 5]


def test_smallest_priority_is_kept():
  held = memory.update(
    memory.empty(),
    np.array([10, 11, 12, 13]),
    np.array([0, 1, 0, 0], np.int32),
    np.array([0.3, 0.9, 0.1, 0.2]),
    memory_size=4,
    num_seen=2,
  )
  assert held.records.tolist() == [12, 13, 11]
  assert held.labels.tolist() == [0, 0, 1]


def test_same_seed_same_exemplars_other_seed_others():
  ours = memories((2, 5), 50, seed=1)[-1].records
  assert np.array_equal(ours, memories((2, 5), 50, seed=1)[-1].records)
  theirs = memories((2, 5), 50, seed=2)[-1].records
  for low in range(0, 50, 10):
    assert set(ours[low : low + 10]) != set(theirs[low : low + 10])


def test_priorities_are_uniform_and_differ_by_state():
  one = memory.random_order(10_000, seed=0, state=1)
  two = memory.random_order(10_000, seed=0, state=2)
  assert not np.array_equal(one, two)
  # The mean of n uniform numbers is 1/2 with standard deviation sqrt(1/12n) = 0.003.
  assert abs(one.mean() - 0.5) < 4 * 0.003
  assert 0 <= one.min() < one.max() < 1


def test_exemplars_are_a_random_subset():
  # One class of 50 records and 10 places, 200 seeds: each record is held 40 times in
  # the mean, with standard deviation sqrt(200 * 0.2 * 0.8) = 5.7.
  times = np.zeros(50, int)
  for seed in range(200):
    times[memories((1,), 10, seed=seed)[0].records] += 1
  assert times.sum() == 200 * 10
  assert np.abs(times - 40).max() < 4 * 5.7


@pytest.mark.parametrize("memory_size", [12, 40, 1000])
def test_same_as_the_reference(memory_size):
  steps, each = (2, 3, 7, 12), {c: 5 + 3 * c for c in range(12)}
  states = []
  history = memories(steps, memory_size, each=each)
  for state, (low, high) in enumerate(zip((0, *steps), steps, strict=False), start=1):
    records, labels = records_of_classes(low, high, each)
    priority = memory.random_order(len(records), seed=0, state=state)
    states.append([(int(records[i]), int(labels[i])) for i in np.argsort(priority)])
    buffers, held = reference.ring_buffer(memory_size, states), history[state - 1]
    assert held.records.tolist() == [r for c in range(high) for r in buffers[c]]
    assert held.labels.tolist() == [c for c in range(high) for _ in buffers[c]]


def test_ten_thousand_classes():
  # Landmarks-v2-10k: 1.6 million records, T = 10, |M| = 20,000.
  num_classes, each, num_states, memory_size = 10_000, 160, 10, 20_000
  labels = np.tile(np.arange(num_classes, dtype=np.int32), each)
  step, held = num_classes // num_states, memory.empty()
  for state in range(1, num_states + 1):
    low, high = (state - 1) * step, state * step
    records = np.flatnonzero((labels >= low) & (labels < high))
    held = memory.update(
      held,
      records,
      labels[records],
      memory.random_order(len(records), seed=0, state=state),
      memory_size=memory_size,
      num_seen=high,
    )
    counts = np.bincount(held.labels, minlength=high)
    assert (counts == min(each, memory_size // high)).all()
    assert np.array_equal(labels[held.records], held.labels)
  assert len(set(held.records.tolist())) == memory_size
