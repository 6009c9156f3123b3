"""LUCIR: its losses by hand, the fixed weights of old classes, the cosine head."""

import functools
import math

import finished_states
import flax.linen as nn
import jax
import jax.numpy as jnp
import method_reference as reference
import numpy as np
import pytest
from quick import quick_network

from ssil_jax.methods import METHODS, lucir
from ssil_jax.resnet import BasicBlock, CosineHead, ResNet18

LUCIR = METHODS["lucir"]
NUM_CLASSES, WIDTH = 8, 5


def test_less_forget_by_hand():
  features = jnp.asarray([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [3.0, 4.0]])
  teacher = jnp.asarray([[5.0, 0.0], [1.0, 0.0], [7.0, 0.0], [1.0, 0.0]])
  np.testing.assert_allclose(
    lucir.less_forget(features, teacher), [0, 1, 2, 0.4], atol=1e-6
  )


# Classes 0 and 1 are old, 2 to 4 new, 5 is unseen.
COSINES = [
  [0.6, 0.9, 0.3, 0.2, -0.5, 1.0],
  [0.1, 0.5, 0.4, -0.2, 0.3, 1.0],
  [0.9, 0.9, 0.1, 0.4, 0.4, 1.0],
]


@pytest.mark.parametrize(
  ("num_negatives", "expected"),
  [
    # Class 0 at .6: .5 - .6 + .3 and .5 - .6 + .2. Class 1 at .5: + .4 and + .3.
    # A new sample has no such loss.
    (2, [0.2 + 0.1, 0.4 + 0.3, 0]),
    (1, [0.2, 0.4, 0]),
    # The third negatives: .5 - .6 - .5 < 0 counts nothing; .5 - .5 - .2 < 0 neither.
    (3, [0.3, 0.7, 0]),
    # More negatives than new classes, or classes in all: as many as there are.
    (5, [0.3, 0.7, 0]),
    (50, [0.3, 0.7, 0]),
  ],
)
def test_margin_ranking_by_hand(num_negatives, expected):
  labels, classes = jnp.asarray([0, 1, 3]), finished_states.context_of(2, 5).classes

  def ranking(cosines):
    values = lucir.margin_ranking(
      cosines, labels, classes, margin=0.5, num_negatives=num_negatives
    )
    return values.sum(), values

  gradient, values = jax.grad(ranking, has_aux=True)(jnp.asarray(COSINES))
  np.testing.assert_allclose(values, expected, atol=1e-6)
  # By the own class and the new classes within the margin alone.
  within = min(num_negatives, 2)
  first = [-within, 0, 1, int(within > 1), 0, 0]
  second = [0, -within, 1, 0, int(within > 1), 0]
  np.testing.assert_array_equal(gradient, [first, second, [0] * 6])


@pytest.mark.parametrize(("weighting", "weight"), [("paper", 20), ("released", 5)])
def test_the_less_forget_weight_is_by_the_root_of_new_over_old(weighting, weight):
  # Features at right angles to the teacher's, lambda_base 10, 2 old and 8 new classes:
  # 10 sqrt(4) = 20, or 10 / 2. New samples only, so there is no margin loss.
  outputs = finished_states.outputs_of(logits=np.zeros((2, 10)), features=[[1, 0], [0, 1]])
  teacher = finished_states.outputs_of(logits=np.zeros((2, 10)), features=[[0, 1], [1, 0]])
  examples = finished_states.examples_of(
    outputs,
    [2, 9],
    finished_states.context_of(2, 10, num_teacher_classes=2),
    [0, 0, *[1] * 8],
    teacher=teacher,
  )
  losses = jax.jit(LUCIR.loss, static_argnums=1)(
    examples,
    finished_states.config_of("lucir", lucir_lambda=10.0, lucir_weighting=weighting),
  )
  np.testing.assert_allclose(losses, weight + math.log(10), rtol=1e-5)


def test_old_weights_are_fixed_and_nothing_else_is():
  rng = np.random.default_rng(0)

  def params():
    return {
      "stem": {"kernel": rng.standard_normal((3, 2)).astype(np.float32)},
      "head": {
        "kernel": rng.standard_normal((WIDTH, NUM_CLASSES)).astype(np.float32),
        "scale": np.float32(rng.uniform(1, 9)),
      },
    }

  before, after = params(), params()
  for num_old in (0, 3):
    context = finished_states.context_of(num_old, num_old + 2)
    expected = jax.tree.map(np.copy, after)
    expected["head"]["kernel"][:, :num_old] = before["head"]["kernel"][:, :num_old]
    projected = LUCIR.project(after, before, context)
    jax.tree.map(np.testing.assert_array_equal, projected, expected)


# The network.


def head(features, kernel, scale):
  params = {"kernel": jnp.float32(kernel), "scale": jnp.float32(scale)}
  return CosineHead(kernel.shape[1]).apply({"params": params}, jnp.float32(features))


def test_cosine_logits_equal_the_loops_and_zeros_have_finite_gradients():
  rng = np.random.default_rng(3)
  features, kernel = rng.standard_normal((7, WIDTH)), rng.standard_normal((WIDTH, 4))
  features *= np.geomspace(0.01, 100, 7)[:, None]
  features[0] = 0

  @functools.partial(jax.grad, argnums=(0, 1, 2), has_aux=True)
  def gradients(features, kernel, scale):
    logits, same = head(features, kernel, scale)
    return jnp.sum(jnp.exp(logits / 10)), (logits, same)

  by_all, (logits, scale) = jax.jit(gradients)(
    *(jnp.float32(x) for x in (features, kernel, 4.5))
  )
  assert scale == 4.5
  for i in range(len(features)):
    for c in range(kernel.shape[1]):
      expected = 4.5 * reference.cosine(features[i], kernel[:, c])
      assert logits[i, c] == pytest.approx(expected, abs=1e-5)
  assert all(np.isfinite(gradient).all() for gradient in by_all)
  by_feature = jax.grad(lambda f: lucir.less_forget(f, 1 + f).sum())(jnp.zeros((2, WIDTH)))
  assert np.isfinite(by_feature).all()


@pytest.mark.parametrize("cosine_head", [True, False])
def test_the_network_has_cosines_or_a_linear_head(cosine_head):
  network = ResNet18(
    num_classes=NUM_CLASSES, width=4, small_images=True, cosine_head=cosine_head
  )
  images = jax.random.normal(jax.random.key(1), (6, 8, 8, 3))
  with quick_network():
    variables = jax.jit(lambda key: network.init(key, images[:1], train=False))(
      jax.random.key(0)
    )
    params = variables["params"]["head"]
    if cosine_head:
      assert set(params) == {"kernel", "scale"}  # no bias
      assert params["scale"] == 1
      params["scale"] = jnp.float32(2.5)
    # With the batch's own statistics, so that without a ReLU there are negative features.
    outputs, _ = jax.jit(
      lambda v: network.apply(v, images, train=True, mutable=["batch_stats"])
    )(variables)
  # Only the network with a cosine head leaves the last ReLU out.
  assert (outputs.features.min() < 0) == cosine_head
  assert outputs.scale == (2.5 if cosine_head else 1)
  features, kernel = np.asarray(outputs.features), np.asarray(params["kernel"])
  expected = features @ kernel
  if cosine_head:
    lengths = np.linalg.norm(features, axis=1)[:, None] * np.linalg.norm(kernel, axis=0)
    expected *= 2.5 / lengths
  else:
    expected += np.asarray(params["bias"])
  np.testing.assert_allclose(outputs.logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("final_relu", [True, False])
def test_a_block_may_leave_its_last_relu_out(final_relu):
  conv = functools.partial(nn.Conv, use_bias=False)
  norm = functools.partial(nn.BatchNorm, use_running_average=True)
  block = BasicBlock(channels=2, strides=1, final_relu=final_relu, conv=conv, norm=norm)
  x = jax.random.normal(jax.random.key(1), (1, 4, 4, 2))
  y, _ = jax.jit(lambda key: block.init_with_output(key, x))(jax.random.key(0))
  assert (y.min() < 0) == (not final_relu)


def test_new_weights_start_at_the_mean_feature_as_long_as_old_ones():
  # The old weights are 5 and 1 long, 3 on average; the means (0.6, 0.8) / 2 and (0, 1) / 2.
  kernel = np.float32([[3, 1, 7, 7, 9], [4, 0, 7, 7, 9]])
  params = {"stem": np.ones(2), "head": {"kernel": kernel, "scale": np.float32(2)}}
  features = np.float32([[0.6, 0.8], [0, 1], [0, 0]])
  labels = np.array([2, 3, 2])

  def imprinted(start):
    config = finished_states.config_of("lucir", lucir_start=start)
    return LUCIR.imprint(params, labels, lambda: features, 2, config)

  expected = kernel.copy()
  expected[:, 2], expected[:, 3] = 3 * features[0], 3 * features[1]
  found = imprinted("released")
  np.testing.assert_allclose(found["head"].pop("kernel"), expected, rtol=1e-6)
  assert kernel[0, 2] == 7  # in place would change what may be the teacher
  rest = {"stem": params["stem"], "head": {"scale": np.float32(2)}}
  jax.tree.map(np.testing.assert_array_equal, found, rest)
  assert imprinted("paper") is params
