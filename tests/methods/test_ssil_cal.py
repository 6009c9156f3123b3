"""Calibrated SS-IL: the line of highest likelihood, with classes that count the same."""

import functools

import method_reference as reference
import numpy as np
import pytest
import scipy.optimize
from finished_states import config_of, finished_of, memory_of, outputs_of

from ssil_jax.methods import METHODS
from ssil_jax.methods.correction import fit_correction
from ssil_jax.sampling import Pool

# Records of three old classes, of which an exemplar or three are left, and of two new ones.
LABELS = np.repeat(np.arange(5, dtype=np.int32), [4, 4, 4, 6, 9])
POOL = Pool(new=np.arange(12, 27), memory=np.array([1, 4, 5, 6, 8, 10]))


def make_logits():
  """New classes that score low, some images of them wrong; more classes than are seen."""
  logits = np.random.default_rng(0).standard_normal((27, 7)).astype(np.float32)
  logits[np.arange(27), LABELS] += 1.5
  logits[:, 3:] = 0.4 * logits[:, 3:] - 1.2
  return logits


def finished(config, *, num_old=3, num_seen=5, pool=POOL, labels=LABELS, logits, before):
  return finished_of(
    config,
    num_old=num_old,
    num_seen=num_seen,
    pool=pool,
    labels=labels,
    memory=memory_of([]),
    stats=before,
    train=outputs_of(logits=logits),
  )


def line(new, alpha, beta, num_classes=7):
  stats = {
    "alpha": np.ones(num_classes, np.float32),
    "beta": np.zeros(num_classes, np.float32),
  }
  stats["alpha"][new], stats["beta"][new] = alpha, beta
  return stats


def found(method, calibration, **given):
  """Fits the line of a state before which another one was valid."""
  config = config_of(method, calibration=calibration)
  before = line(slice(2, 3), 0.5, -3)
  stats = METHODS[method].stats(finished(config, before=before, **given), config)
  for name, value in line(slice(2, 3), 0.5, -3).items():
    np.testing.assert_array_equal(before[name], value)
    assert stats[name].dtype == value.dtype
  return stats


@pytest.mark.parametrize("method", ["ssil_cal", "ssil_tkd_cal"])
@pytest.mark.parametrize("calibration", ["scale_and_offset", "scale", "offset"])
def test_the_line_is_that_of_highest_likelihood(method, calibration):
  logits = make_logits()
  stats = found(method, calibration, logits=logits)
  alpha, beta = float(stats["alpha"][3]), float(stats["beta"][3])
  expected = line(slice(3, 5), alpha, beta)
  for name, value in expected.items():
    np.testing.assert_array_equal(stats[name], value)

  used = np.concatenate([POOL.memory, POOL.new])
  loss = functools.partial(
    reference.calibration_loss,
    logits=logits[used, :5].tolist(),
    labels=LABELS[used].tolist(),
    num_old=3,
  )
  free = [calibration != "offset", calibration != "scale"]

  def of_free(values):
    pair = np.array([1.0, 0.0])
    pair[free] = values
    return loss(pair)

  # From elsewhere, by a search that knows no slope.
  best = scipy.optimize.minimize(
    of_free,
    np.array([0.3, 5.0])[free],
    method="Nelder-Mead",
    options={"xatol": 1e-8, "fatol": 1e-14},
  )
  pair = np.array([alpha, beta])
  np.testing.assert_allclose(pair[free], best.x, atol=1e-5)
  np.testing.assert_array_equal(pair[np.invert(free)], np.array([1, 0])[np.invert(free)])
  gradient = reference.numerical_gradient(loss, pair)
  np.testing.assert_allclose(gradient[free], 0, atol=1e-5)
  if calibration != "scale_and_offset":
    assert np.abs(gradient[np.invert(free)]) > 0.01
  assert loss(pair) < loss((1, 0)) - 0.05

  config = config_of(method, calibration=calibration)
  after = finished(config, logits=logits, before=stats)
  assert METHODS[method].describe(after, config) == {"alpha": alpha, "beta": beta}


def test_images_of_a_class_with_more_of_them_count_less():
  # Both scores are 0, so that sigmoid(beta) is the share of the new class: 9/10 of the
  # images, but one of two classes.
  labels = np.repeat(np.arange(2, dtype=np.int32), [1, 9])
  pool = Pool(new=np.arange(1, 10), memory=np.array([0]))
  logits = np.zeros((10, 2))
  given = {"num_old": 1, "num_seen": 2, "pool": pool, "labels": labels, "logits": logits}
  config = config_of("ssil_cal", calibration="offset")
  state = finished(config, before=line(slice(0), 1, 0, 2), **given)
  stats = METHODS["ssil_cal"].stats(state, config)
  assert stats["beta"][1] == pytest.approx(0, abs=1e-6)
  alpha, beta = fit_correction(logits, labels, 1, alpha_limits=(1, 1))
  assert (alpha, beta) == (1, pytest.approx(np.log(9), abs=1e-5))


def test_without_an_old_exemplar_scores_stay():
  none = POOL._replace(memory=np.zeros(0, np.int64))
  for given in ({"num_old": 0}, {"num_old": 3}):
    stats = found("ssil_cal", "scale_and_offset", pool=none, logits=make_logits(), **given)
    for name, value in line(slice(0), 1, 0).items():
      np.testing.assert_array_equal(stats[name], value)


@pytest.mark.parametrize(("margin", "alpha"), [(2.0, None), (1e-3, 100.0)])
def test_where_all_can_be_right_by_any_margin_the_line_is_finite(margin, alpha):
  # Old scores 0; new ones are `margin` on new images and -margin on old ones: a larger
  # alpha is always better, if only by so much.
  labels = np.repeat(np.arange(2, dtype=np.int32), 4)
  pool = Pool(new=np.arange(4, 8), memory=np.arange(4))
  logits = np.zeros((8, 2))
  logits[:, 1] = np.where(labels == 1, margin, -margin)
  config = config_of("ssil_cal")
  given = {"num_old": 1, "num_seen": 2, "pool": pool, "labels": labels, "logits": logits}
  state = finished(config, before=line(slice(0), 1, 0, 2), **given)
  stats = METHODS["ssil_cal"].stats(state, config)
  assert stats["beta"][1] == pytest.approx(0, abs=1e-3)
  if alpha is None:
    assert 10 < stats["alpha"][1] < 100
  else:
    assert stats["alpha"][1] == pytest.approx(alpha)


def test_it_predicts_by_its_line_as_bic_does():
  for name in ("predict", "prediction", "fold", "init_stats", "describe"):
    assert getattr(METHODS["ssil_cal"], name) is getattr(METHODS["bic"], name)
    assert getattr(METHODS["ssil_tkd_cal"], name) is getattr(METHODS["bic"], name)
