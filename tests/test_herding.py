"""Herding against iCaRL's algorithm 4, and the memory that it fills."""

import method_reference as reference
import numpy as np
import pytest

from ssil_jax import memory
from ssil_jax.config import Config
from ssil_jax.settings import fields_of

(CHOICES,) = [f.metadata["choices"] for f in fields_of(Config) if f.name == "selection"]


def unit_features(seed, n, d):
  """Not negative, as features after a ReLU are."""
  features = np.abs(np.random.default_rng(seed).standard_normal((n, d)))
  lengths = np.linalg.norm(features, axis=1, keepdims=True)
  return (features / lengths).astype(np.float32)


@pytest.mark.parametrize(
  ("n", "d", "count"), [(1, 3, 1), (7, 2, 7), (20, 5, 8), (40, 16, 20), (30, 3, 30)]
)
def test_order_equals_the_loop(n, d, count):
  for features in (
    *(unit_features((seed, n, d), n, d) for seed in range(3)),
    5 * np.random.default_rng(0).standard_normal((n, d)),  # of any length
  ):
    before = features.copy()
    order = memory.herding_order(features, count)
    assert order.tolist() == reference.herding(features, count)
    np.testing.assert_array_equal(features, before)


def test_by_hand():
  # The mean is 5. 4 is closest to it. With one more, (4 + 7) / 2 = 5.5 beats
  # (4 + 9) / 2 = 6.5 and (4 + 0) / 2 = 2. Then (4 + 7 + 0) / 3 = 3.7 is 1.3 off and
  # (4 + 7 + 9) / 3 = 6.7 is 1.7 off.
  features = np.array([[9.0], [0.0], [4.0], [7.0]])
  assert features.mean() == 5
  assert memory.herding_order(features, 4).tolist() == [2, 3, 1, 0]
  # Not the four in the order of their distance to the mean.
  assert np.argsort(np.abs(features[:, 0] - 5)).tolist() == [2, 3, 0, 1]


@pytest.mark.parametrize("count", [0, 1, 3, 6, 7, 100])
def test_each_is_chosen_once_and_none_beyond_what_there_is(count):
  features = unit_features(0, 6, 4)
  order = memory.herding_order(features, count)
  assert order.dtype == np.int64
  assert len(order) == min(count, 6)
  assert len(set(order.tolist())) == len(order)
  assert set(order.tolist()) <= set(range(6))
  # A shorter list is the beginning of a longer one.
  assert order.tolist() == memory.herding_order(features, 6).tolist()[:count]


def test_the_first_of_equals_wins():
  assert memory.herding_order(np.ones((5, 3)), 5).tolist() == [0, 1, 2, 3, 4]
  # +1 and -1 are equally far from the mean 0.
  assert memory.herding_order(np.array([[1.0], [-1.0]]), 2).tolist() == [0, 1]
  assert memory.herding_order(np.array([[-1.0], [1.0]]), 2).tolist() == [0, 1]


@pytest.mark.parametrize(("n", "d"), [(9, 4), (41, 7), (130, 64), (257, 512)])
def test_the_first_of_identical_images_wins(n, d):
  # Every feature comes twice; the first of both is chosen first, if both are.
  half = unit_features((3, n, d), n, d)
  features = np.concatenate([half, half])
  places = {int(p): k for k, p in enumerate(memory.herding_order(features, n))}
  for place, k in places.items():
    if place >= n:
      assert places[place - n] < k


def interleaved():
  """Three classes of 9, 4 and 12 records, mixed."""
  labels = np.repeat(np.array([7, 2, 5], np.int32), [9, 4, 12])
  np.random.default_rng(4).shuffle(labels)
  assert len(np.flatnonzero(np.diff(labels))) > 5
  return unit_features(5, len(labels), 6), labels


@pytest.mark.parametrize("count", [1, 3, 4, 6, 50])
def test_priority_within_each_of_several_classes(count):
  features, labels = interleaved()
  otherwise = np.random.default_rng(6).random(len(labels))
  before = otherwise.copy()
  priority = memory.herding_priority(labels, otherwise, lambda: features, count=count)
  np.testing.assert_array_equal(otherwise, before)
  assert priority.dtype == np.float64
  for label in (7, 2, 5):
    places = [i for i in range(len(labels)) if labels[i] == label]
    chosen = [places[k] for k in reference.herding(features[places], count)]
    others = sorted((i for i in places if i not in chosen), key=lambda i: otherwise[i])
    by_priority = sorted(places, key=lambda i: priority[i])
    assert by_priority == chosen + others
    assert all(priority[i] < 0 for i in chosen)
    assert all(priority[i] == otherwise[i] for i in others)


def test_rank_by_hand():
  labels = np.array([1, 0, 1, 1, 0, 4], np.int32)
  priority = np.array([0.5, 0.9, -2.0, 0.1, 0.3, 7.0])
  ranks = memory.rank(labels, priority)
  assert ranks.tolist() == [2, 1, 0, 1, 0, 0]
  assert ranks.dtype == np.int32
  # Of equals the first; of nothing nothing.
  assert memory.rank(labels, np.zeros(6)).tolist() == [0, 0, 1, 2, 1, 0]
  assert memory.rank(labels[:0], priority[:0]).tolist() == []


def test_selections_by_name():
  assert set(memory.SELECTIONS) == set(CHOICES)
  random = np.array([0.3, 0.1, 0.2])
  priority = memory.SELECTIONS["ring"](np.zeros(3, int), random, None, count=2)
  np.testing.assert_array_equal(priority, random)  # without a look at any feature
