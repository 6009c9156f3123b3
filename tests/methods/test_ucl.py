"""UCL: its terms against loops written from the paper, on networks of several shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finished_states import config_of, context_of, finished_of, memory_of

from ssil_jax.methods import METHODS
from ssil_jax.methods.base import Sizes
from ssil_jax.resnet import ResNet18
from ssil_jax.training.step import elastic_energy

UCL = METHODS["ucl"]
BATCH, RATIO = 32, 0.3

# Kernel -> its shape, and the kernels whose nodes are added into what it reads.
STEM, SECOND = ("stem_conv",), "stage2_block1"
KERNELS = {
  STEM: ((3, 3, 3, 2), ()),
  ("stage1_block1", "conv1"): ((3, 3, 2, 2), (STEM,)),
  ("stage1_block1", "conv2"): ((3, 3, 2, 2), (("stage1_block1", "conv1"),)),
  (SECOND, "conv1"): ((3, 3, 2, 3), (STEM, ("stage1_block1", "conv2"))),
  (SECOND, "conv2"): ((3, 3, 3, 3), ((SECOND, "conv1"),)),
  (SECOND, "project_conv"): ((1, 1, 2, 3), (STEM, ("stage1_block1", "conv2"))),
  ("stage2_block2", "conv1"): (
    (3, 3, 3, 3),
    ((SECOND, "conv2"), (SECOND, "project_conv")),
  ),
}


def at(tree, path):
  for name in path:
    tree = tree[name]
  return tree


def norm_of(path):
  return (*path[:-1], path[-1].replace("conv", "norm"))


def tree_of(rng):
  """Parameters with these kernels, a BatchNorm after each, and a head."""
  params = {"head": {"kernel": rng.standard_normal((3, 4)), "bias": np.zeros(4)}}
  for path, (shape, _) in KERNELS.items():
    module = params
    for name in path[:-1]:
      module = module.setdefault(name, {})
    module[path[-1]] = {"kernel": rng.standard_normal(shape)}
    module[norm_of(path)[-1]] = {
      "scale": 1 + rng.standard_normal(shape[-1]),
      "bias": rng.standard_normal(shape[-1]),
    }
  return jax.tree.map(np.float32, params)


def settings(**changes):
  return config_of("ucl", batch_size_new=BATCH, ucl_ratio=RATIO, **changes)


def stats_before(params, config):
  return UCL.init_stats(Sizes(4, 3, 1, 4, params, 8, config))


def stats_after(rng, params, config):
  """Statistics with sigmas drawn at random."""
  stats = stats_before(params, config)
  wander = lambda x: np.float32(x + 0.5 * rng.standard_normal(x.shape))  # noqa: E731
  return stats | {"log_sigma": jax.tree.map(wander, stats["log_sigma"])}


def sigma_init(shape):
  """Of a convolution [h, w, in, out]: its variance is a share of 2 / fan_out."""
  return np.sqrt(RATIO * 2 / (shape[0] * shape[1] * shape[3]))


def penalties_loop(params, stats):
  """Terms (a) and (b), by weight, with the regularization strengths of the nodes."""
  strength = {}
  for path, (shape, _) in KERNELS.items():
    sigmas = np.exp(np.float64(at(stats["log_sigma"], path)["kernel"]))
    strength[path] = [sigma_init(shape) / sigma for sigma in sigmas]
  quadratic, absolute = 0.0, 0.0
  for path, (shape, inputs) in KERNELS.items():
    now, before = (at(tree, path)["kernel"] for tree in (params, stats["mean"]))
    for h, w, i, o in np.ndindex(shape):
      incoming = max((strength[source][i] for source in inputs), default=0.0)
      moved = float(now[h, w, i, o]) - float(before[h, w, i, o])
      quadratic += (max(strength[path][o], incoming) * moved) ** 2 / 2
      sigma = sigma_init(shape) / strength[path][o]
      importance = (float(before[h, w, i, o]) / sigma) ** 2
      absolute += sigma_init(shape) ** 2 * importance * abs(moved)
    now, before = (at(tree, norm_of(path)) for tree in (params, stats["mean"]))
    for o in range(shape[3]):
      for name in ("scale", "bias"):
        moved = float(now[name][o]) - float(before[name][o])
        quadratic += (strength[path][o] * moved) ** 2 / 2
        if name == "bias":
          absolute += (strength[path][o] * float(before[name][o])) ** 2 * abs(moved)
  return quadratic + absolute


def test_the_penalties_of_means_are_their_loop():
  rng = np.random.default_rng(0)
  config = settings(penalty_strength=2.5)
  params = tree_of(rng)
  stats = stats_after(rng, tree_of(rng), config)

  @jax.jit
  def energy(context):
    return elastic_energy(params, UCL.elastic(context, config))

  found = energy(context_of(2, 4, stats=stats))
  expected = 2.5 * penalties_loop(params, stats) / BATCH
  assert float(found) == pytest.approx(expected, rel=1e-4)
  assert float(energy(context_of(0, 2, stats=stats))) == 0


def test_every_convolution_of_the_network_has_its_strengths():
  network = ResNet18(num_classes=4, width=2, small_images=True)
  shapes = jax.eval_shape(
    lambda: network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)
  )["params"]
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda x: np.float32(rng.standard_normal(x.shape)), shapes)
  config = settings()
  stiffness, anchor, lasso = UCL.elastic(
    context_of(2, 4, stats=stats_before(params, config)), config
  )
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = jax.tree_util.keystr(path)
    strengths, held, pulls = (
      dict(jax.tree_util.tree_leaves_with_path(tree))[path]
      for tree in (stiffness, anchor, lasso)
    )
    assert strengths.shape == pulls.shape == leaf.shape
    np.testing.assert_array_equal(held, leaf)
    # At sigma_init, all strengths are 1.
    of_body = "head" not in name
    np.testing.assert_allclose(strengths, of_body / BATCH, rtol=1e-5)
    held_by_value = of_body * leaf**2 * ("scale" not in name)
    np.testing.assert_allclose(pulls, held_by_value / BATCH, rtol=1e-4)


def test_the_terms_of_sigma_by_hand():
  # Kernels of 2 and 3 nodes. As they were, with sigma 1: 1 + 1 each. Then two nodes twice
  # as wide: (4 - log 4) + (4 - log 4); and three that stay at 1/2: 1 + (1/4 + log 4).
  config = settings(ucl_beta=6.4)
  before = {
    "stem_conv": {"kernel": np.zeros(2, np.float32)},
    "stage1_block1": {"conv1": {"kernel": np.zeros(3, np.float32)}},
  }

  def found(first, before_second, second):
    old, now = (
      {
        "stem_conv": {"kernel": before["stem_conv"]["kernel"] + np.float32(a)},
        "stage1_block1": {"conv1": {"kernel": np.full(3, b, np.float32)}},
      }
      for a, b in ((0, before_second), (first, second))
    )
    context = context_of(0, 2, stats={"log_sigma": old})
    return float(UCL.penalty({}, now, context, config))

  per_unit, log_2 = 6.4 / (2 * BATCH), np.log(2)
  assert found(0, 0, 0) == pytest.approx(per_unit * 5 * 2, rel=1e-5)
  expected = 2 * 2 * (4 - 2 * log_2) + 3 * (1 + 1 / 4 + 2 * log_2)
  assert found(log_2, -log_2, -log_2) == pytest.approx(per_unit * expected, rel=1e-5)


def test_sigmas_begin_as_a_share_of_the_weights_and_roll_over():
  rng = np.random.default_rng(2)
  config, params = settings(), tree_of(rng)
  stats = stats_before(params, config)
  own = UCL.init_own(params, stats, config)
  assert "head" not in own
  for path, (shape, _) in KERNELS.items():
    expected = np.full(shape[-1], sigma_init(shape))
    np.testing.assert_allclose(np.exp(at(own, path)["kernel"]), expected, rtol=1e-5)
  trained, moved = tree_of(rng), jax.tree.map(lambda x: x - 0.5, own)
  state = finished_of(
    config,
    num_old=0,
    num_seen=2,
    labels=(),
    memory=memory_of([]),
    stats=stats,
    params=trained,
    own=moved,
  )
  stats = UCL.stats(state, config)
  for found, expected in (
    (UCL.init_own(trained, stats, config), moved),
    (stats["mean"], trained),
  ):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_all_that_goes_into_a_node_is_drawn_with_its_sigma():
  rng = np.random.default_rng(3)
  config, params = settings(), tree_of(rng)
  own = stats_after(rng, params, config)["log_sigma"]
  keys = jax.random.split(jax.random.key(0), 2000)
  drawn = jax.device_get(
    jax.vmap(lambda key: UCL.weights(params, own, key, context_of(0, 2), config))(keys)
  )
  for path in KERNELS:
    sigmas, found = np.exp(at(own, path)["kernel"]), at(drawn, path)["kernel"]
    away = (found - at(params, path)["kernel"]) / sigmas
    np.testing.assert_allclose(away.mean(axis=0), 0, atol=5 / np.sqrt(2000))
    np.testing.assert_allclose(away.std(axis=0), 1, atol=0.1)
  np.testing.assert_array_equal(
    drawn["head"]["kernel"], np.stack([params["head"]["kernel"]] * 2000)
  )
