"""PODNet: its distances and its classifier by hand, what is trained when, the network."""

import finished_states
import jax
import jax.numpy as jnp
import method_reference as reference
import numpy as np
import pytest

from ssil_jax.methods import METHODS, podnet
from ssil_jax.resnet import CosineHead, ResNet18

PODNET = METHODS["podnet"]


def test_the_spatial_distance_of_2_by_2_maps_by_hand():
  # Squares 1 4 / 0 4 have the row sums 5, 4 and column sums 1, 8, of length sqrt(106); the
  # teacher's, 9 in one corner, are 9, 0 and 9, 0: (1, 0, 1, 0) / sqrt(2). Their cosine is
  # 6 / sqrt(212), their distance sqrt(2 - 2 cos). The other stage is the teacher's times 2.
  stages = [[[[[1], [-2]], [[0], [2]]]], [[[[2, 4]]]]]
  teacher = [[[[[3], [0]], [[0], [0]]]], [[[[1, 2]]]]]
  stages, teacher = ([jnp.float32(stage) for stage in s] for s in (stages, teacher))
  found = podnet.spatial_distance(stages, teacher)
  expected = np.sqrt(2 - 12 / np.sqrt(212)) / 2
  np.testing.assert_allclose(found, [expected], rtol=1e-5)
  # By rows and columns alone: this map has the same sums.
  stages[0] = jnp.sqrt(jnp.float32([[[[0.5], [4.5]], [[0.5], [3.5]]]]))
  np.testing.assert_allclose(
    podnet.spatial_distance(stages, teacher), [expected], rtol=1e-5
  )


def test_equal_stages_have_no_distance_and_a_finite_gradient():
  stages = [jnp.ones((2, 3, 3, 4)), jnp.zeros((2, 1, 1, 2))]
  value, gradient = jax.value_and_grad(lambda s: podnet.spatial_distance(s, stages).sum())(
    stages
  )
  assert value < 1e-6
  assert all(np.isfinite(leaf).all() for leaf in gradient)


@pytest.mark.parametrize(
  ("logits", "num_seen", "expected"),
  [
    # eta 2 and delta 0.6: log(e^0 + e^1) - (3 - 1.2) is below 0; unseen ones are none.
    ([3.0, 0.0, 1.0, 9.0], 3, 0.0),
    ([1.0, 0.0, 1.0, 9.0], 3, np.log(1 + np.e) - 1 + 1.2),
    ([1.0, 0.0, 1.0, 9.0], 2, 0.2),
    ([1.0, 0.0, 1.0, 9.0], 1, 0.0),  # none to be told from
  ],
)
def test_the_local_similarity_loss_by_hand(logits, num_seen, expected):
  def loss(logits):
    return podnet.local_similarity_loss(
      logits, jnp.zeros(1, int), num_seen, 2.0, margin=0.6
    ).sum()

  value, gradient = jax.value_and_grad(loss)(jnp.float32([logits]))
  assert value == pytest.approx(expected, abs=1e-6)
  assert np.isfinite(gradient).all()
  assert not gradient[:, num_seen:].any()


@pytest.mark.parametrize(
  ("logits", "num_seen", "expected"),
  [
    # Of the own class on top it is the cross-entropy: others are e^-3 and e^-2 of it.
    ([3.0, 0.0, 1.0, 9.0], 3, np.log(1 + np.exp(-3) + np.exp(-2))),
    # Below the largest, it counts as that: 2 + log(1 + e^-2 + 1); cross-entropy has e^-2.
    ([0.0, 2.0, 0.0, 9.0], 3, 2 + np.log(1 + 1 + np.exp(-2))),
    ([1.0, 0.0, 1.0, 9.0], 1, 0.0),
  ],
)
def test_the_released_loss_by_hand(logits, num_seen, expected):
  def loss(logits):
    return podnet.released_similarity_loss(logits, jnp.zeros(1, int), num_seen).sum()

  value, gradient = jax.value_and_grad(loss)(jnp.float32([logits]))
  assert value == pytest.approx(expected, abs=1e-6)
  assert np.isfinite(gradient).all()
  assert not gradient[:, num_seen:].any()


def test_a_class_is_the_softmax_weighted_cosine_of_its_proxies():
  rng = np.random.default_rng(0)
  features, kernel = rng.standard_normal((4, 5)), rng.standard_normal((5, 3, 2))
  params = {"kernel": jnp.float32(kernel), "scale": jnp.float32(4)}
  logits, scale = CosineHead(2, 3).apply({"params": params}, jnp.float32(features))
  assert scale == 4
  for row, feature in zip(logits, features, strict=True):
    for c in range(2):
      expected = 4 * reference.merged_similarity(feature, kernel[:, :, c].T)
      assert row[c] == pytest.approx(expected, rel=1e-4, abs=1e-5)
  # Cosines 1 and 0: e / (1 + e).
  params = {"kernel": jnp.float32([[[2], [0]], [[0], [3]]]), "scale": jnp.float32(1)}
  logits, _ = CosineHead(1, 2).apply({"params": params}, jnp.float32([[5, 0]]))
  np.testing.assert_allclose(logits, [[np.e / (1 + np.e)]], rtol=1e-6)


def test_new_proxies_start_at_the_clusters_of_the_features():
  # Class 2 has two clusters, class 3 fewer images than proxies, which then are equal.
  features = np.float32([[0, 1], [0, 1], [0.96, 0.28], [0.96, -0.28], [0, 1]])
  labels = np.array([2, 2, 2, 2, 3])
  kernel = np.full((2, 2, 5), 9, np.float32)
  kernel[:, :, :2] = np.float32([[[4, 0], [0, 1]], [[0, 2], [2, 0]]])
  params = {"head": {"kernel": kernel, "scale": np.float32(1)}}
  config = finished_states.config_of("podnet")
  found = PODNET.imprint(params, labels, lambda: features, 2, config)["head"]["kernel"]
  length = (4 + 2 + 2 + 1) / 4  # of old proxies on average
  clusters = {tuple(np.round(p / length, 5)) for p in found[:, :, 2].T}
  assert clusters == {(0.0, 1.0), (np.float32(0.96), 0.0)}
  np.testing.assert_allclose(found[:, :, 3], length * np.float32([[0, 0], [1, 1]]))
  unchanged = [0, 1, 4]
  np.testing.assert_array_equal(found[..., unchanged], kernel[..., unchanged])


@pytest.mark.parametrize(
  ("num_old", "num_teacher_classes", "trained"),
  [(0, 0, "everything"), (2, 2, "all but old proxies"), (2, 3, "proxies alone")],
)
def test_what_is_trained(num_old, num_teacher_classes, trained):
  def params(value):
    head = {"kernel": np.full((4, 10, 3), value), "scale": np.float32(value)}
    return {"stem": {"kernel": np.full(2, value)}, "head": head}

  context = finished_states.context_of(num_old, 3, num_teacher_classes=num_teacher_classes)
  found = PODNET.project(params(1.0), params(0.0), context)
  expected = params(0.0 if trained == "proxies alone" else 1.0)
  expected["head"]["kernel"][:] = 1.0
  if trained == "all but old proxies":
    expected["head"]["kernel"][..., :2] = 0.0
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_stage_outputs_are_signed_and_change_nothing():
  plain, with_stages = (
    ResNet18(3, width=4, small_images=True, stage_outputs=stages)
    for stages in (False, True)
  )
  images = jax.random.normal(jax.random.key(1), (4, 16, 16, 3))
  variables = jax.jit(lambda: plain.init(jax.random.key(0), images[:1], train=False))()

  @jax.jit
  def outputs():
    networks = (plain, with_stages)
    return [
      n.apply(variables, images, train=True, mutable=["batch_stats"])[0] for n in networks
    ]

  expected, found = outputs()
  assert expected.stages == ()
  np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-5)
  sizes = [stage.shape for stage in found.stages]
  assert sizes == [(4, 16, 16, 4), (4, 8, 8, 8), (4, 4, 4, 16), (4, 2, 2, 32)]
  assert all(stage.min() < 0 for stage in found.stages)
  # The last one, after its ReLU, is what the features are means of.
  means = np.mean(np.maximum(found.stages[3], 0), axis=(1, 2))
  np.testing.assert_allclose(found.features, means, rtol=1e-5)


def test_the_scale_does_not_learn_through_the_margin():
  # With equal similarities it would fall, until a scale below 0 makes any score right.
  def loss(scale):
    logits = scale * jnp.full((2, 5), 0.3)
    return podnet.local_similarity_loss(
      logits, jnp.zeros(2, int), 5, scale, margin=0.6
    ).sum()

  value, gradient = jax.value_and_grad(loss)(jnp.float32(1))
  assert value == pytest.approx(2 * (0.6 + np.log(4)), rel=1e-6)
  assert gradient == pytest.approx(0, abs=1e-6)
