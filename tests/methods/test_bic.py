"""BiC: the line that corrects new scores, and what it is fitted to."""

import functools

import jax.numpy as jnp
import method_reference as reference
import numpy as np
import pytest
from finished_states import config_of, finished_of, memory_of, outputs_of

from ssil_jax.methods import METHODS
from ssil_jax.methods.bic import correct, fit_correction
from ssil_jax.sampling import Pool


def test_correct_by_hand():
  stats = {"alpha": jnp.array([1.0, 2.0, 1.0]), "beta": jnp.array([0.0, -1.0, 0.0])}
  logits = jnp.array([[3.0, 3.0, 3.0], [-1.0, -1.0, 0.0]])
  np.testing.assert_array_equal(correct(logits, stats), [[3, 5, 3], [-1, -3, 0]])


def solve(function, low, high):
  """Where a rising function crosses 0, by bisection."""
  for _ in range(100):
    middle = (low + high) / 2
    low, high = (middle, high) if function(middle) < 0 else (low, middle)
  return low


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def test_correction_by_hand_scale():
  # One old class with logit 0, one new one with logit 1, in 3 of 4 images the new one.
  # alpha 1 + beta = log 3 fits that; beta costs, so alpha does all of it.
  logits = np.array([[0.0, 1.0]] * 4)
  alpha, beta = fit_correction(logits, np.array([1, 1, 0, 1]), 1)
  np.testing.assert_allclose([alpha, beta], [np.log(3), 0], atol=1e-5)


def test_correction_by_hand_symmetrical():
  # Logits 1 and -1 that are right in 3 of 4 images each: beta 0, and
  # sigmoid(alpha) = 3/4.
  logits = np.array([[0.0, 1.0]] * 4 + [[0.0, -1.0]] * 4)
  alpha, beta = fit_correction(logits, np.array([1, 1, 1, 0, 0, 0, 0, 1]), 1)
  np.testing.assert_allclose([alpha, beta], [np.log(3), 0], atol=1e-5)


def test_correction_by_hand_offset():
  # The new class's logits are all 0, so alpha changes nothing: sigmoid(beta) + 0.1 beta
  # = 3/4, with the penalty's part.
  logits = np.zeros((4, 2))
  alpha, beta = fit_correction(logits, np.array([1, 1, 0, 1]), 1)
  expected = solve(lambda b: sigmoid(b) + 0.1 * b - 0.75, 0, 5)
  np.testing.assert_allclose([alpha, beta], [1, expected], atol=1e-5)
  alpha, beta = fit_correction(logits, np.array([1, 0, 0, 1]), 1)
  np.testing.assert_allclose([alpha, beta], [1, 0], atol=1e-5)


def test_scale_of_a_correction_is_not_negative():
  # As the first, but the new one in 1 of 4: alpha + beta would be -log 3, of which beta
  # would be 0; alpha stops at 0 and beta does what it is worth.
  logits = np.array([[0.0, 1.0]] * 4)
  alpha, beta = fit_correction(logits, np.array([0, 1, 0, 0]), 1)
  expected = solve(lambda b: sigmoid(b) + 0.1 * b - 0.25, -5, 0)
  np.testing.assert_allclose([alpha, beta], [0, expected], atol=1e-5)


def test_a_scale_is_undone():
  # Labels drawn from the logits' own softmax; twice the new classes' logits ask for 1/2.
  rng = np.random.default_rng(0)
  logits = 2 * rng.standard_normal((4000, 4))
  labels = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
  logits[:, 2:] *= 2
  alpha, beta = fit_correction(logits, labels, 2)
  assert alpha == pytest.approx(0.5, abs=0.05)
  assert beta == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize(
  ("num_old", "num_seen", "bias"), [(3, 5, 2.0), (1, 6, 4.0), (6, 7, -1.0)]
)
def test_no_other_correction_is_better(num_old, num_seen, bias):
  rng = np.random.default_rng((num_old, num_seen))
  labels = np.arange(24) % num_seen
  logits = rng.standard_normal((24, num_seen)).astype(np.float32)
  logits[np.arange(24), labels] += 1
  logits[:, num_old:] += bias
  found = fit_correction(logits, labels, num_old)
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
  for alpha in np.linspace(0, 3, 13):
    for beta in np.linspace(-4, 4, 17):
      assert loss((alpha, beta)) >= lowest - 1e-9
  for alpha in (-0.01, 0, 0.01):
    for beta in (-0.01, 0, 0.01):
      assert loss((found[0] + alpha, found[1] + beta)) >= lowest - 1e-9


def test_correction_of_separable_logits_is_finite():
  # Any larger alpha is better, if only by so much.
  logits = np.array([[0.0, 1.0], [0.0, -1.0]] * 3)
  alpha, beta = fit_correction(logits, np.array([1, 0] * 3), 1)
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
  alpha, beta = fit_correction(logits[held_out, :5], labels[held_out], 2)
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
