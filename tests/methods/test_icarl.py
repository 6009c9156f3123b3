"""iCaRL: class means and the nearest one."""

import finished_states
import jax
import method_reference as reference
import numpy as np
import pytest
from reference import softmax_cross_entropy

from ssil_jax.methods import METHODS
from ssil_jax.methods.base import Sizes
from ssil_jax.methods.icarl import fit_sharpness
from ssil_jax.sampling import Pool

ICARL = METHODS["icarl"]
jitted = jax.jit(ICARL.predict, static_argnums=2)


def class_means(
  features, records_of_class, *, num_classes, labels, num_old=0, pool=None, means="paper"
):
  """The method's statistics at the end of a state that has seen the classes given."""
  config = finished_states.config_of("icarl", icarl_means=means)
  features = np.asarray(features, np.float32)
  stats = ICARL.init_stats(
    Sizes(num_classes, features.shape[1], len(features), 20, {}, 8, None)
  )
  finished = finished_states.finished_of(
    config,
    num_old=num_old,
    num_seen=len(records_of_class),
    labels=labels,
    stats=stats,
    pool=pool,
    memory=finished_states.memory_of(records_of_class),
    train=finished_states.outputs_of(
      features=features, logits=np.zeros((len(features), 1))
    ),
  )
  after = ICARL.stats(finished, config)
  np.testing.assert_array_equal(stats["means"], 0)
  assert after["means"].shape == stats["means"].shape
  assert after["means"].dtype == stats["means"].dtype
  return after


def predict(features, stats, num_seen, *, logits=None, means="paper"):
  size = len(features), len(stats["means"])
  outputs = finished_states.outputs_of(
    features=features, logits=np.zeros(size) if logits is None else logits
  )
  context = finished_states.context_of(0, num_seen, stats=stats)
  config = finished_states.config_of("icarl", icarl_means=means)
  return np.asarray(jitted(outputs, context, config))


def random_state(seed):
  """Features of 40 records of four classes of which three are seen; of any length."""
  rng = np.random.default_rng(seed)
  labels = np.arange(40) % 4
  features = rng.standard_normal((40, 5)) + 2 * np.eye(4, 5)[labels]
  features *= rng.uniform(0.01, 20, (40, 1))
  kept = [[8, 0, 4], [21, 1], [2, 38, 14]]
  return features.astype(np.float32), labels, kept


@pytest.mark.parametrize("seed", range(3))
def test_means_and_prediction_equal_the_loops(seed):
  features, labels, kept = random_state(seed)
  stats = class_means(features, kept, num_classes=4, labels=labels)
  means = [
    reference.exemplar_mean(features[records], [c] * len(records), c)
    for c, records in enumerate(kept)
  ]
  np.testing.assert_allclose(stats["means"][:3], means, rtol=1e-4, atol=1e-6)
  np.testing.assert_array_equal(stats["means"][3], 0)
  scores = predict(features, stats, 3)
  np.testing.assert_array_equal(scores[:, 3], -np.inf)
  for feature, row in zip(features, scores, strict=True):
    distances = [
      reference.squared_distance(reference.normalized(feature), mean) for mean in means
    ]
    np.testing.assert_allclose(row[:3], [-d for d in distances], rtol=1e-3, atol=1e-5)
    assert np.argmax(row) == reference.nearest_mean(feature, means)


def test_the_nearest_mean_may_not_have_the_largest_logit():
  stats = class_means(
    [[1, 0], [3, 0], [0, 2]], [[0, 1], [2]], num_classes=3, labels=[0, 0, 1]
  )
  np.testing.assert_allclose(stats["means"], [[1, 0], [0, 1], [0, 0]], atol=1e-6)
  scores = predict([[3, 4], [5, 1]], stats, 2, logits=[[9, 0, 0], [0, 9, 99]])
  assert np.argmax(scores, axis=1).tolist() == [1, 0]
  # (.6, .8) is sqrt(.16 + .64) from (1, 0) and sqrt(.36 + .04) from (0, 1).
  np.testing.assert_allclose(scores[0], [-0.8, -0.4, -np.inf], rtol=1e-5)


def released_sharpness_loss(sharpness, features, images, kept):
  """-log p of exemplars, each left out of the mean of the images of its class."""
  total = 0.0
  for label, exemplars in enumerate(kept):
    for record in exemplars:
      scores = []
      for of_class in images:
        others = [features[j] for j in of_class if j != record]
        mean = np.mean([reference.normalized(feature) for feature in others], axis=0)
        feature = reference.normalized(features[record])
        scores.append(-sharpness * reference.squared_distance(feature, mean))
      total += softmax_cross_entropy(scores, label, range(len(scores)))
  return total / sum(map(len, kept))


@pytest.mark.parametrize("seed", range(2))
def test_released_means_equal_the_loops(seed):
  # Class 2 is new; of the others there are the exemplars of before, then fewer.
  features, labels, kept = random_state(seed)
  images = [[8, 0, 4, 12], [21, 1, 5], [2, 38, 14, 6, 10]]
  pool = Pool(new=np.array(images[2]), memory=np.array([*images[0], *images[1]]))
  given = {"num_classes": 4, "labels": labels, "num_old": 2, "pool": pool}
  stats = class_means(features, kept, **given, means="released")
  means = [
    np.mean([reference.normalized(features[record]) for record in of_class], axis=0)
    for of_class in images
  ]
  np.testing.assert_allclose(stats["means"][:3], means, rtol=1e-4, atol=1e-6)
  np.testing.assert_array_equal(stats["means"][3], 0)
  scores = predict(features, stats, 3, means="released")
  np.testing.assert_array_equal(scores[:, 3], -np.inf)
  for feature, row in zip(features, scores, strict=True):
    distances = [
      reference.squared_distance(reference.normalized(feature), mean) for mean in means
    ]
    np.testing.assert_allclose(row[:3], [-d for d in distances], rtol=1e-3, atol=1e-5)
  own = released_sharpness_loss(stats["sharpness"], features, images, kept)
  for factor in (0.8, 1.25):
    other = factor * stats["sharpness"]
    assert own <= released_sharpness_loss(other, features, images, kept)


def test_features_of_zero_are_no_nan():
  stats = class_means(
    [[0, 0], [0, 0], [0, 2], [0, 0]], [[0, 1], [2, 3]], num_classes=3, labels=[0, 0, 1, 1]
  )
  np.testing.assert_allclose(stats["means"], [[0, 0], [0, 1], [0, 0]], atol=1e-6)
  scores = predict([[0, 0], [1, 1]], stats, 2)
  assert np.isfinite(scores[:, :2]).all()
  np.testing.assert_array_equal(scores[:, 2], -np.inf)
  assert np.argmax(scores[1]) == 1


# Probabilities ---------------------------------------------------------------------------


def leave_one_out_loss(sharpness, features, labels):
  """-log p of the own class, p ~ exp(-s |f - mu|^2), each left out of its own mean."""
  total, count = 0.0, 0
  for i, (feature, label) in enumerate(zip(features, labels, strict=True)):
    if list(labels).count(label) < 2:
      continue
    scores = []
    for c in sorted(set(labels)):
      others = [j for j in range(len(labels)) if labels[j] == c and j != i]
      mean = reference.exemplar_mean([features[j] for j in others], [c] * len(others), c)
      scores.append(-sharpness * reference.squared_distance(feature, mean))
    total += softmax_cross_entropy(scores, label, range(len(scores)))
    count += 1
  return total / count


@pytest.mark.parametrize(
  ("seed", "spread", "counts"),
  [(0, 0.6, (4, 4, 4)), (1, 1.0, (5, 2, 3)), (2, 0.9, (1, 6, 2)), (3, 3.0, (4, 4))],
)
def test_the_sharpness_is_of_the_highest_likelihood(seed, spread, counts):
  rng = np.random.default_rng(seed)
  labels = np.repeat(np.arange(len(counts)), counts)
  features = np.eye(len(counts), 6)[labels] + spread * rng.standard_normal((sum(counts), 6))
  features /= np.linalg.norm(features, axis=1, keepdims=True)
  features = features.astype(np.float32)
  sums = np.zeros((len(counts), 6), np.float32)
  np.add.at(sums, labels, features)
  found = fit_sharpness(features, labels, sums)
  grid = [0, *np.geomspace(0.02, 1000, 60)]
  losses = [leave_one_out_loss(s, features, labels.tolist()) for s in grid]
  best = int(np.argmin(losses))
  own = leave_one_out_loss(found, features, labels.tolist())
  assert own <= losses[best] + 1e-4
  assert grid[max(best - 1, 0)] - 1e-3 <= found <= grid[min(best + 1, 60)]


def test_with_an_exemplar_of_each_class_there_is_nothing_to_fit():
  features = np.eye(3, dtype=np.float32)
  assert fit_sharpness(features, np.arange(3), features) == 1.0
  stats = class_means(np.eye(3), [[0], [1], [2]], num_classes=3, labels=[0, 1, 2])
  assert stats["sharpness"] == 1.0
  assert (stats["sharpness"].shape, stats["sharpness"].dtype) == ((), np.float32)


def test_classes_that_are_far_apart_are_as_sharp_as_is_allowed():
  features = np.repeat(np.eye(2, dtype=np.float32), 3, axis=0)
  labels = np.repeat(np.arange(2), 3)
  sums = np.array([[3, 0], [0, 3]], np.float32)
  found = fit_sharpness(features, labels, sums)
  assert 10 < found <= 1000  # where exp(-2 s) is next to nothing


def test_exemplars_that_are_all_the_same_say_nothing():
  features = np.tile(np.float32([[1, 0]]), (6, 1))
  sums = np.array([[3, 0], [3, 0]], np.float32)
  assert np.isfinite(fit_sharpness(features, np.repeat(np.arange(2), 3), sums))


def test_probabilities_by_hand():
  # Squared distances 0.8 and 0.4, s = 5 log 2 / 2: exp(-s d) is 1 / 4 and 1 / 2.
  stats = {
    "means": np.float32([[1, 0], [0, 1], [0, 0]]),
    "sharpness": np.float32(5 / 2 * np.log(2)),
  }
  scores = predict([[3, 4]], stats, 2)
  context = finished_states.context_of(0, 2, stats=stats)
  config = finished_states.config_of("icarl")
  found = ICARL.probabilities(scores, context, config)
  np.testing.assert_allclose(found, [[1 / 3, 2 / 3, 0]], rtol=1e-5)
