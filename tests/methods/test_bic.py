"""BiC: the line that corrects new scores, and what it is fitted to."""

import functools

import jax.numpy as jnp
import method_reference as reference
import numpy as np
import pytest
from finished_states import config_of, context_of, finished_of, memory_of, outputs_of

from ssil_jax.methods import METHODS
from ssil_jax.methods.correction import fit_correction
from ssil_jax.sampling import Pool


def test_prediction_by_hand():
  stats = {"alpha": jnp.array([1.0, 2.0, 1.0]), "beta": jnp.array([0.0, -1.0, 0.0])}
  outputs = outputs_of(logits=[[3, 3, 3], [-1, -1, 0]])
  scores = METHODS["bic"].predict(outputs, context_of(1, 2, stats=stats), config_of("bic"))
  np.testing.assert_array_equal(scores, [[3, 5, -np.inf], [-1, -3, -np.inf]])


fit = functools.partial(fit_correction, offset_penalty=0.1)


def solve(function, low, high):
  """Where a rising function crosses 0, by bisection."""
  for _ in range(100):
    middle = (low + high) / 2
    low, high = (middle, high) if function(middle) < 0 else (low, middle)
  return low


def slope(beta):
  """Of the loss by beta where only beta counts, up to the share of the new class."""
  return 1 / (1 + np.exp(-beta)) + 0.1 * beta


@pytest.mark.parametrize(
  ("new_logits", "labels", "alpha", "beta"),
  [
    # One old class with logit 0, one new one with logit 1, in 3 of 4 images the new one.
    # alpha 1 + beta = log 3 fits that; beta costs, so alpha does all of it.
    ([1] * 4, [1, 1, 0, 1], np.log(3), 0),
    # Logits 1 and -1 that are right in 3 of 4 images each: sigmoid(alpha) = 3/4.
    ([1] * 4 + [-1] * 4, [1, 1, 1, 0, 0, 0, 0, 1], np.log(3), 0),
    # Logits 0, so alpha changes nothing: sigmoid(beta) + 0.1 beta = 3/4 or 1/2.
    ([0] * 4, [1, 1, 0, 1], 1, solve(lambda b: slope(b) - 0.75, 0, 5)),
    ([0] * 4, [1, 0, 0, 1], 1, 0),
    # As the first, but the new one in 1 of 4: alpha + beta would be -log 3, of which beta
    # would be 0; alpha stops at 0 and beta does what it is worth.
    ([1] * 4, [0, 1, 0, 0], 0, solve(lambda b: slope(b) - 0.25, -5, 0)),
  ],
)
def test_correction_by_hand(new_logits, labels, alpha, beta):
  logits = np.stack([np.zeros(len(labels)), np.array(new_logits, float)], axis=1)
  found = fit(logits, np.array(labels), 1)
  np.testing.assert_allclose(found, [alpha, beta], atol=1e-5)


@pytest.mark.parametrize(
  ("num_old", "num_seen", "bias"), [(3, 5, 2.0), (1, 6, 4.0), (6, 7, -1.0)]
)
def test_no_other_correction_is_better(num_old, num_seen, bias):
  rng = np.random.default_rng((num_old, num_seen))
  labels = np.arange(24) % num_seen
  logits = rng.standard_normal((24, num_seen)).astype(np.float32)
  logits[np.arange(24), labels] += 1
  logits[:, num_old:] += bias
  found = fit(logits, labels, num_old)
  loss = functools.partial(
    reference.correction_loss,
    logits=logits.tolist(),
    labels=labels.tolist(),
    num_old=num_old,
  )
  assert found[0] > 0
  np.testing.assert_allclose(reference.numerical_gradient(loss, found), 0, atol=1e-5)
  lowest = loss(found)
  assert lowest < loss((1.0, 0.0)) - 1e-3
  for alpha in np.linspace(0, 3, 7):
    for beta in np.linspace(-4, 4, 9):
      assert loss((alpha, beta)) >= lowest - 1e-9
  for alpha in (-0.01, 0, 0.01):
    for beta in (-0.01, 0, 0.01):
      assert loss((found[0] + alpha, found[1] + beta)) >= lowest - 1e-9


def test_correction_of_separable_logits_is_finite():
  # Any larger alpha is better, if only by so much.
  logits = np.array([[0.0, 1.0], [0.0, -1.0]] * 3)
  alpha, beta = fit(logits, np.array([1, 0] * 3), 1)
  assert np.isfinite([alpha, beta]).all()
  assert alpha > 5
  assert beta == pytest.approx(0, abs=1e-3)


def finished(config, num_old, num_seen, pool, labels, logits, stats):
  return finished_of(
    config,
    num_old=num_old,
    num_seen=num_seen,
    pool=pool,
    labels=labels,
    memory=memory_of([]),
    stats=stats,
    train=outputs_of(logits=logits),
  )


def test_bic_fits_to_what_it_held_out():
  # 20 records of each of 4 classes, of which 2 are old with 20 exemplars: a tenth, so the
  # first 2 of each class.
  method, config = METHODS["bic"], config_of("bic")
  labels = np.repeat(np.arange(4, dtype=np.int32), 20)
  ranks = np.tile(np.arange(20, dtype=np.int32), 4)
  pool = Pool(
    np.arange(40, 80), np.arange(40), ranks[40:], ranks[:40], labels[40:], labels[:40]
  )
  rng = np.random.default_rng(0)
  logits = rng.standard_normal((80, 6)).astype(np.float32)
  logits[:, 2:] += 1.5
  # A line of the state before is not kept; neither does it count while this one is fitted.
  before = {
    "alpha": np.array([1, 0.5, 1, 1, 1, 1], np.float32),
    "beta": np.array([0, -3, 0, 0, 0, 0], np.float32),
  }
  copy = {name: value.copy() for name, value in before.items()}
  stats = method.stats(finished(config, 2, 4, pool, labels, logits, before), config)
  held_out = [0, 1, 20, 21, 40, 41, 60, 61]
  loss = functools.partial(
    reference.correction_loss,
    logits=logits[held_out, :4].tolist(),
    labels=labels[held_out].tolist(),
    num_old=2,
  )
  alpha, beta = float(stats["alpha"][2]), float(stats["beta"][2])
  np.testing.assert_array_equal(stats["alpha"], np.float32([1, 1, alpha, alpha, 1, 1]))
  np.testing.assert_array_equal(stats["beta"], np.float32([0, 0, beta, beta, 0, 0]))
  slope_alpha, slope_beta = reference.numerical_gradient(loss, [alpha, beta])
  assert abs(slope_beta) < 1e-5
  assert abs(slope_alpha) < 1e-5 if alpha > 0 else slope_alpha > 0
  for name, value in copy.items():
    np.testing.assert_array_equal(before[name], value)
    assert stats[name].dtype == value.dtype
  after = finished(config, 2, 4, pool, labels, logits, stats)
  assert method.describe(after, config) == {"alpha": alpha, "beta": beta}


def test_bic_fits_without_classes_of_one_image():
  # Old classes of 1 and 20 images, new ones of 1, 3 and 20; three of twenty are held out.
  method, config = METHODS["bic"], config_of("bic", bic_held_out=0.15)
  sizes = [1, 20, 1, 3, 20]
  labels = np.repeat(np.arange(5, dtype=np.int32), sizes)
  ranks = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])
  pool = Pool(
    np.arange(21, 45), np.arange(21), ranks[21:], ranks[:21], labels[21:], labels[:21]
  )
  logits = np.random.default_rng(0).standard_normal((45, 6)).astype(np.float32)
  before = {"alpha": np.ones(6, np.float32), "beta": np.zeros(6, np.float32)}
  stats = method.stats(finished(config, 2, 5, pool, labels, logits, before), config)
  held_out = [1, 2, 3, 22, 23, 25, 26, 27]
  alpha, beta = fit(logits[held_out, :5], labels[held_out], 2)
  assert np.isfinite([alpha, beta]).all()
  np.testing.assert_allclose(stats["alpha"], [1, 1, alpha, alpha, alpha, 1], rtol=1e-6)
  np.testing.assert_allclose(stats["beta"], [0, 0, beta, beta, beta, 0], rtol=1e-6)


def test_bic_has_nothing_to_correct_after_the_first_state():
  method, config = METHODS["bic"], config_of("bic")
  labels = np.repeat(np.arange(2, dtype=np.int32), 20)
  pool = Pool(np.arange(40), np.zeros(0, np.int64))
  before = {"alpha": np.ones(6, np.float32), "beta": np.zeros(6, np.float32)}
  logits = np.ones((40, 6), np.float32)
  stats = method.stats(finished(config, 0, 2, pool, labels, logits, before), config)
  np.testing.assert_array_equal(stats["alpha"], np.ones(6))
  np.testing.assert_array_equal(stats["beta"], np.zeros(6))
