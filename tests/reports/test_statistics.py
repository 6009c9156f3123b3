"""Means and paired tests, with values that can be checked by hand or in a table."""

import math

import pytest

from ssil_jax.reports.statistics import Comparison, Summary, compare, holm, summarize


def test_summary():
  assert summarize([40.0, 42.0, 44.0]) == Summary(42.0, 2.0, 3)  # sqrt((4 + 0 + 4) / 2)
  assert summarize([5.0]) == Summary(5.0, None, 1)
  assert summarize([1.0, None]) is None
  assert summarize([]) is None


def test_comparison_is_paired_by_seed():
  # Differences 1, 2, 3: mean 2, deviation 1, t = 2 / (1 / sqrt(3)) = 3.464. With two
  # degrees of freedom a tail is (1 - t / sqrt(2 + t^2)) / 2, and 4.303 bounds 95%.
  ours = {0: 11.0, 1: 22.0, 2: 33.0, 7: 99.0, 8: None}
  theirs = {2: 30.0, 1: 20.0, 0: 10.0, 8: 1.0}
  found = compare(ours, theirs)
  t = 2 * math.sqrt(3)
  assert (found.mean, found.count) == (2.0, 3)
  assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t))
  assert found.low == pytest.approx(2 - 4.30265 / math.sqrt(3), abs=1e-4)
  assert found.high == pytest.approx(2 + 4.30265 / math.sqrt(3), abs=1e-4)


def test_few_or_equal_differences():
  assert compare({0: 1.0, 1: 2.0}, {0: 0.0, 1: 0.0}) == Comparison(1.5, None, None, None, 2)
  assert compare({0: 1.0}, {1: 1.0}) is None
  # Differences that are all the same have no deviation to test their mean by.
  three, two = (dict.fromkeys(range(3), value) for value in (0.3, 0.2))
  for theirs, mean in ((two, 0.1), (three, 0.0)):
    found = compare(three, theirs)
    assert found == Comparison(pytest.approx(mean), None, None, None, 3)
  unequal = {0: 1.1, 1: 2.1 + 1e-12, 2: 3.1}  # but for rounding
  assert compare(unequal, {0: 1.0, 1: 2.0, 2: 3.0}).p is None


def test_holm():
  # Sorted: 0.01 * 4, 0.02 * 3, 0.03 * 2 and 0.04 * 1, each at least the one before.
  assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
  assert holm([0.9, 0.8]) == [1.0, 1.0]
  assert holm([]) == []
