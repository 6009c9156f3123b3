"""VCL: the KL divergence by loops and by hand, drawn weights, priors that roll over."""

import math

import jax
import numpy as np
import pytest
from finished_states import config_of, context_of, finished_of, memory_of

from ssil_jax.errors import ConfigError
from ssil_jax.methods import METHODS
from ssil_jax.methods.base import Sizes
from ssil_jax.training.step import elastic_energy

VCL = METHODS["vcl"]
NUM_IMAGES = 50


def tree_of(rng, num_classes=5):
  """Parameters of a convolution, its BatchNorm and a head, and others of the same kind."""
  shapes = {
    "stem_conv": {"kernel": (1, 1, 3, 4)},
    "stem_norm": {"scale": (4,), "bias": (4,)},
    "head": {"kernel": (4, num_classes), "bias": (num_classes,)},
  }

  def draw(shape):
    return np.float32(rng.standard_normal(shape))

  return jax.tree.map(draw, shapes, is_leaf=lambda x: isinstance(x, tuple))


def stats_before(params, config):
  num_classes = params["head"]["bias"].size
  return VCL.init_stats(Sizes(num_classes, 4, 1, 5, params, 8, config))


def divergence(params, own, context, config):
  """What is added to the loss, in both ways."""
  context = context._replace(class_images=np.float32([NUM_IMAGES - 1, 1]))
  smooth = elastic_energy(params, VCL.elastic(context, config))
  return float(smooth + VCL.penalty(params, own, context, config))


def divergence_loop(params, own, stats, *, num_old, num_seen, prior_sigma):
  """KL of independent Gaussians, by its definition."""
  total = 0.0
  for module, leaves in own.items():
    for name, log_sigma in leaves.items():
      for place in np.ndindex(log_sigma.shape):
        column = place[-1] if module == "head" else 0
        if column >= num_seen:
          continue
        mean, before = float(params[module][name][place]), (0.0, prior_sigma)
        if column < num_old:
          trees = (stats["mean"], stats["log_sigma"])
          old_mean, old_log_sigma = (float(tree[module][name][place]) for tree in trees)
          before = old_mean, math.exp(old_log_sigma)
        sigma = math.exp(float(log_sigma[place]))
        total += math.log(before[1] / sigma) - 0.5
        total += (sigma**2 + (mean - before[0]) ** 2) / (2 * before[1] ** 2)
  return total


@pytest.mark.parametrize(("num_old", "num_seen"), [(0, 2), (2, 4)])
@pytest.mark.parametrize("layers", ["head", "all"])
def test_the_divergence_is_its_loop(layers, num_old, num_seen):
  rng = np.random.default_rng(0)
  config = config_of("vcl", vcl_layers=layers, vcl_prior_sigma=0.7, penalty_strength=3.0)
  params, anchor = tree_of(rng), tree_of(rng)
  stats = stats_before(anchor, config)
  assert [*stats["log_sigma"]] == ["head"] + ["stem_conv"] * (layers == "all")
  own, stats["log_sigma"] = (
    jax.tree.map(lambda x: np.float32(0.3 * rng.standard_normal(x.shape)), tree)
    for tree in [stats["log_sigma"]] * 2
  )
  context = context_of(num_old, num_seen, stats=stats)
  classes = {"num_old": num_old, "num_seen": num_seen}
  expected = divergence_loop(params, own, stats, **classes, prior_sigma=0.7)
  found = divergence(params, own, context, config)
  assert found == pytest.approx(3 * expected / NUM_IMAGES, rel=1e-4)


def test_the_divergence_by_hand():
  # A class with a mean 1 from its prior N(0, 1) costs 1/2, one whose sigma is 2 costs
  # 2 - 1/2 - log 2, one that is as its prior nothing, whatever is not seen nothing.
  config = config_of("vcl")
  stats = {
    "mean": {"head": {"kernel": np.zeros((1, 4), np.float32)}},
    "log_sigma": {"head": {"kernel": np.zeros((1, 4), np.float32)}},
  }
  params = {"head": {"kernel": np.float32([[1, 0, 0, 9]])}}
  own = {"head": {"kernel": np.float32([[0, math.log(2), 0, 9]])}}
  found = divergence(params, own, context_of(0, 3, stats=stats), config)
  assert found == pytest.approx((0.5 + 1.5 - math.log(2)) / NUM_IMAGES, rel=1e-5)


def test_drawn_weights_have_their_mean_and_spread():
  rng = np.random.default_rng(1)
  config, params = config_of("vcl"), tree_of(rng)
  own = {"head": tree_of(rng)["head"]}
  keys = jax.random.split(jax.random.key(0), 4000)
  drawn = jax.device_get(
    jax.vmap(lambda key: VCL.weights(params, own, key, context_of(0, 2), config))(keys)
  )
  for name in ("kernel", "bias"):
    sigma, found = np.exp(own["head"][name]), drawn["head"][name]
    away = (found - params["head"][name]) / sigma
    np.testing.assert_allclose(away.mean(axis=0), 0, atol=5 / math.sqrt(4000))
    np.testing.assert_allclose(away.std(axis=0), 1, atol=0.06)
  # Independent of each other.
  flat = drawn["head"]["kernel"].reshape(4000, -1)
  correlation = np.corrcoef(flat.T) - np.eye(flat.shape[1])
  assert np.abs(correlation).max() < 0.08
  for module in ("stem_conv", "stem_norm"):  # points
    for name, leaf in params[module].items():
      np.testing.assert_array_equal(drawn[module][name], np.stack([leaf] * 4000))


def test_what_a_class_draws_does_not_depend_on_classes_to_come():
  params = tree_of(np.random.default_rng(2))
  own, key = {"head": jax.tree.map(np.zeros_like, params["head"])}, jax.random.key(3)
  fewer, fewer_own = (
    tree | {"head": jax.tree.map(lambda x: x[..., :3], tree["head"])}
    for tree in (params, own)
  )
  args = (key, context_of(0, 2), config_of("vcl"))
  some, all_of_them = VCL.weights(fewer, fewer_own, *args), VCL.weights(params, own, *args)
  for name, leaf in some["head"].items():
    np.testing.assert_array_equal(leaf, all_of_them["head"][name][..., :3])


def test_the_posterior_is_the_next_prior():
  rng = np.random.default_rng(4)
  config, params = config_of("vcl", vcl_initial_sigma=0.1), tree_of(rng)
  stats = stats_before(params, config)
  own = VCL.init_own(params, stats, config)
  np.testing.assert_allclose(np.exp(own["head"]["kernel"]), 0.1, rtol=1e-5)
  # The state trains the first two columns.
  trained = tree_of(rng)
  own["head"]["kernel"][:, :2] -= 1.0
  state = finished_of(
    config,
    num_old=0,
    num_seen=2,
    labels=(),
    memory=memory_of([]),
    stats=stats,
    params=trained,
    own=own,
  )
  stats = VCL.stats(state, config)
  own = VCL.init_own(trained, stats, config)
  np.testing.assert_allclose(own["head"]["kernel"][:, :2], math.log(0.1) - 1, rtol=1e-5)
  np.testing.assert_allclose(own["head"]["kernel"][:, 2:], math.log(0.1), rtol=1e-5)
  # Where it begins, only the new columns are away from their prior, N(0, 1).
  found = divergence(trained, own, context_of(2, 4, stats=stats), config)
  expected = divergence_loop(trained, own, stats, num_old=2, num_seen=4, prior_sigma=1.0)
  of_new = 0.0
  for leaf in trained["head"].values():
    for mean in leaf[..., 2:4].ravel():
      of_new += math.log(1 / 0.1) + (0.1**2 + float(mean) ** 2) / 2 - 0.5
  assert expected == pytest.approx(of_new, rel=1e-5)
  assert found == pytest.approx(of_new / NUM_IMAGES, rel=1e-4)
  # Old ones are pulled in no direction, to the bit.
  context = context_of(2, 4, stats=stats)._replace(class_images=np.float32([NUM_IMAGES]))
  pull = jax.grad(lambda own: VCL.penalty(trained, own, context, config))(own)
  assert not pull["head"]["kernel"][:, :2].any()
  assert not pull["head"]["kernel"][:, 4:].any()
  assert pull["head"]["kernel"][:, 2:4].all()


def test_classes_that_are_added_begin_as_all_do():
  rng = np.random.default_rng(5)
  config, params, more = config_of("vcl"), tree_of(rng), tree_of(rng, num_classes=7)
  stats = stats_before(params, config)
  stats["log_sigma"]["head"]["bias"][:] = -9
  fresh = stats_before(more, config)
  grown = VCL.grow_stats(stats, fresh, np.arange(3))
  assert grown["log_sigma"]["head"]["bias"].tolist() == pytest.approx(
    [-9] * 5 + [math.log(0.05)] * 2
  )
  np.testing.assert_array_equal(
    grown["mean"]["head"]["kernel"][:, :5], params["head"]["kernel"]
  )


def test_a_model_keeps_the_layers_that_are_gaussian():
  stats = {"mean": {}, "log_sigma": {"head": {"kernel": np.zeros((2, 3))}}}
  others = {"mean": {}, "log_sigma": {"stem_conv": {"kernel": np.zeros((2, 3))}}}
  grown = VCL.grow_stats(stats, jax.tree.map(lambda x: np.ones((2, 4)), stats), None)
  kernel = grown["log_sigma"]["head"]["kernel"]
  np.testing.assert_array_equal(kernel, [[0, 0, 0, 1]] * 2)
  with pytest.raises(ConfigError, match="--vcl_layers has another value"):
    VCL.grow_stats(stats, others, None)
