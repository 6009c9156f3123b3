"""Computes means over seeds, and tests of differences that are paired over seeds."""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np

MIN_PAIRS = 3  # fewer seeds say nothing about how much seeds differ
LEVEL = 0.05


class Summary(NamedTuple):
  """Describes the values of several seeds."""

  mean: float
  spread: float | None  # sample standard deviation (divisor n - 1), None with one seed
  count: int


def summarize(values: Sequence[float | None]) -> Summary | None:
  """Returns mean and deviation; None if one of the values is None, or there is none."""
  known = [value for value in values if value is not None]
  if not known or len(known) < len(values):
    return None
  return Summary(fmean(known), stdev(known) if len(known) > 1 else None, len(known))


class Comparison(NamedTuple):
  """Describes the differences of two methods, one minus the other, seed by seed."""

  mean: float
  low: float | None  # 95 % confidence interval of the mean; None without a test
  high: float | None
  p: float | None  # two-sided, of the paired t-test; None without a test
  count: int  # seeds that both have


def compare(
  ours: Mapping[int, float | None], theirs: Mapping[int, float | None]
) -> Comparison | None:
  """Compares two methods by the seeds that both have; None if there is none.

  Differences of fewer than MIN_PAIRS seeds are not tested, nor those that are all the same,
  which have no deviation to measure their mean by.

  Args:
    ours: seed -> value; None where it is not defined.
    theirs: the same of the other method.
  """
  seeds = [s for s in ours if ours[s] is not None and theirs.get(s) is not None]
  if not seeds:
    return None
  differences = np.array([ours[seed] - theirs[seed] for seed in seeds])
  mean, count = float(differences.mean()), len(seeds)
  if count < MIN_PAIRS or np.ptp(differences) < 1e-9:
    return Comparison(mean, None, None, None, count)
  from scipy import stats  # only now: it takes a second to import

  result = stats.ttest_1samp(differences, 0.0)
  interval = result.confidence_interval(1 - LEVEL)
  return Comparison(
    mean, float(interval.low), float(interval.high), float(result.pvalue), count
  )


def holm(p_values: Sequence[float]) -> list[float]:
  """Adjusts p-values for their number, so that any false claim among them is rare.

  Holm, A simple sequentially rejective multiple test procedure, 1979: the k-th smallest of
  m is multiplied by m - k + 1, and none is smaller than one before it.
  """
  adjusted = [1.0] * len(p_values)
  highest = 0.0
  order = sorted(range(len(p_values)), key=p_values.__getitem__)
  for rank, place in enumerate(order):
    highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
    adjusted[place] = highest
  return adjusted
