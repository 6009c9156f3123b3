"""ResNet-18: size, cost, shapes, initial values and types."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_network

from ssil_jax.resnet import PooledNorm, ResNet18


def shapes_of(network, size):
  images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
  return jax.eval_shape(
    lambda key, x: network.init(key, x, train=False), jax.random.key(0), images
  )


def count(tree):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def multiply_adds(network, size):
  """Of one image: the convolutions and the head, read off the traced program."""
  variables = shapes_of(network, size)
  image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  program = jax.make_jaxpr(lambda v, x: network.apply(v, x, train=False).logits)
  total = 0
  for equation in all_equations(program(variables, image).jaxpr):
    out = equation.outvars[0].aval.shape if equation.outvars else ()
    if equation.primitive.name == "conv_general_dilated":
      height, width, channels_in, _ = equation.invars[1].aval.shape
      total += math.prod(out) * height * width * channels_in
    elif equation.primitive.name == "dot_general":
      total += math.prod(out) * equation.invars[0].aval.shape[-1]
  return total


def all_equations(jaxpr):
  for equation in jaxpr.eqns:
    yield equation
    for value in equation.params.values():
      inner = getattr(value, "jaxpr", None)
      if inner is not None:
        yield from all_equations(getattr(inner, "jaxpr", inner))


def test_parameters_and_cost_are_those_of_the_known_imagenet_model():
  # torchvision's resnet18: 11,689,512 parameters, 1.81 GMAC.
  network = ResNet18(num_classes=1000)
  assert count(shapes_of(network, 224)["params"]) == 11_689_512
  assert multiply_adds(network, 224) == 1_814_073_344


def test_small_image_stem_keeps_the_resolution():
  network = ResNet18(num_classes=100, small_images=True)
  # Stem 3x3 instead of 7x7 (64*3*(49-9) fewer), head of 100 instead of 1000 classes.
  assert count(shapes_of(network, 32)["params"]) == 11_689_512 - 7_680 - 513 * 900
  # Known cost of the CIFAR variant: 0.56 GMAC at 32 pixels.
  assert multiply_adds(network, 32) == pytest.approx(0.556e9, rel=2e-3)


@pytest.mark.parametrize(("size", "small"), [(96, False), (8, True)])
def test_output_shapes(size, small):
  network = ResNet18(num_classes=7, width=4, small_images=small)
  images = jax.ShapeDtypeStruct((3, size, size, 3), jnp.float32)
  outputs = jax.eval_shape(
    lambda v, x: network.apply(v, x, train=False), shapes_of(network, size), images
  )
  assert outputs.features.shape == (3, 32)
  assert outputs.logits.shape == (3, 7)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_pooling_before_the_norm_is_pooling_after_it(dtype):
  pool = ResNet18.max_pool
  settings = {"momentum": 0.9, "epsilon": 1e-5, "dtype": dtype, "axis_name": "batch"}
  rng = np.random.default_rng(0)
  # Two devices; a window's largest value is its own, or that of one that overlaps.
  x = jnp.asarray(rng.permutation(2 * 2 * 8 * 8 * 5).reshape(2, 2, 8, 8, 5) / 64, dtype)
  variables = {
    "params": {
      "scale": jnp.float32([1.5, -0.7, 1e-3, -2.0, 0.4]),
      "bias": jnp.float32([0.1, 0.5, -0.2, 1.0, -0.4]),
    },
    "batch_stats": {
      "mean": jnp.asarray(rng.normal(size=5), jnp.float32),
      "var": jnp.asarray(rng.uniform(1, 2, 5), jnp.float32),
    },
  }
  weights = jnp.asarray(rng.normal(size=(2, 2, 4, 4, 5)), jnp.float32)

  def ours(variables, x, train):
    norm = PooledNorm(pool, use_running_average=not train, **settings)
    return norm.apply(variables, x, mutable=["batch_stats"])

  def flax(variables, x, train):
    norm = nn.BatchNorm(use_running_average=not train, **settings)
    found, updates = norm.apply(variables, x, mutable=["batch_stats"])
    return pool(found), updates

  def with_gradients(norm, train):
    def loss(params, x, weights):
      found, updates = norm(variables | {"params": params}, x, train)
      return jnp.sum(nn.relu(found) * weights), (found, updates)

    of_all = jax.value_and_grad(loss, (0, 1), has_aux=True)
    mapped = jax.vmap(of_all, (None, 0, 0), axis_name="batch")
    return jax.jit(mapped)(variables["params"], x, weights)

  for train in (True, False):
    (_, (values, stats)), gradients = with_gradients(ours, train)
    (_, (expected, of_flax)), of_them = with_gradients(flax, train)
    np.testing.assert_array_equal(values, expected)
    jax.tree.map(np.testing.assert_array_equal, stats, of_flax)
    # Of several values of a window that bfloat16 rounds to one, each takes another's part.
    if dtype == jnp.float32:
      jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
        gradients,
        of_them,
      )


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_state():
  network = ResNet18(num_classes=5, width=4, small_images=True, dtype=jnp.bfloat16)
  variables = shapes_of(network, 16)
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
  image = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)

  def train(v, x):
    return network.apply(v, x, train=True, mutable=["batch_stats"])

  outputs, updates = jax.eval_shape(train, variables, image)
  assert outputs.logits.dtype == outputs.features.dtype == jnp.float32
  assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype("float32")}
  convolved = {
    equation.outvars[0].aval.dtype
    for equation in all_equations(jax.make_jaxpr(train)(variables, image).jaxpr)
    if equation.primitive.name == "conv_general_dilated"
  }
  assert convolved == {jnp.dtype(jnp.bfloat16)}


def test_initial_values_are_torchvisions():
  network = ResNet18(num_classes=50, width=16, small_images=True)
  images = jnp.zeros((1, 8, 8, 3))
  with quick_network():
    init = jax.jit(lambda key: network.init(key, images, train=False)["params"])
    params = jax.device_get(init(jax.random.key(0)))
  # He's by fan-out: 1x1 kernels in the quick block, 3x3 ones in the stem.
  for kernel, fan_out, tolerance in (
    (params["stage4_block1"]["conv1"]["kernel"], 128, 0.02),
    (params["stem_conv"]["kernel"], 3 * 3 * 16, 0.15),
  ):
    assert kernel.std() == pytest.approx(math.sqrt(2 / fan_out), rel=tolerance)
  bound = 1 / math.sqrt(128)
  for leaf in params["head"].values():
    assert np.abs(leaf).max() <= bound
    assert leaf.std() == pytest.approx(bound / math.sqrt(3), rel=0.15)
  norm = params["stem_norm"]
  np.testing.assert_array_equal(norm["scale"], 1)
  np.testing.assert_array_equal(norm["bias"], 0)


@pytest.mark.parametrize("cosine_head", [False, True])
def test_a_head_of_more_classes_begins_as_one_of_fewer(cosine_head):
  images = jnp.zeros((1, 8, 8, 3))

  def head(num_classes, seed=0):
    network = ResNet18(num_classes, width=4, small_images=True, cosine_head=cosine_head)
    variables = network.init(jax.random.key(seed), images, train=False)
    return jax.device_get(variables["params"])

  with quick_network():
    few, many, other = head(5), head(12), head(5, seed=1)
  names = {"kernel"} if cosine_head else {"kernel", "bias"}
  assert names <= set(few["head"])
  for name in names:
    small, large = few["head"][name], many["head"][name]
    assert large.shape == (*small.shape[:-1], 12)
    np.testing.assert_array_equal(large[..., :5], small)
    # All are drawn by themselves, and by the seed.
    assert len(np.unique(large)) == large.size
    assert not np.array_equal(other["head"][name], small)
  for part in few.keys() - {"head"}:
    jax.tree.map(np.testing.assert_array_equal, many[part], few[part])
