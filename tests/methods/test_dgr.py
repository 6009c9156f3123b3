"""DGR: the generator's ELBO, what it learns and draws, and whom each loss teaches."""

import functools

import jax
import jax.numpy as jnp
import method_reference as reference
import numpy as np
import optax
import pytest
from finished_states import config_of, context_of, examples_of, outputs_of

from ssil_jax.errors import ConfigError
from ssil_jax.methods import METHODS, generator
from ssil_jax.methods.base import Replayed, Sizes
from ssil_jax.methods.dgr import old_label
from ssil_jax.training.run_state import own_optimizer

DGR = METHODS["dgr"]
CONFIG = config_of("dgr", dgr_units=5, dgr_latent=2, dgr_deviation=0.3)
SIZE, NUM_CLASSES = 4, 4


def stats_of(num_classes=NUM_CLASSES, config=CONFIG):
  return DGR.init_stats(
    Sizes(
      num_classes,
      num_features=3,
      num_records=9,
      memory_size=9,
      params={},
      image_size=SIZE,
      config=config,
    )
  )


def trained_stats(seed=0):
  """As after some training: no layer is 0."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: rng.normal(scale=0.5, size=x.shape).astype(np.float32), stats_of()
  )


def images(seed, size, scale=1.0):
  """As of a normalized input, with values above 1 and below 0."""
  noise = np.random.default_rng(seed).standard_normal((size, SIZE, SIZE, 3))
  return jnp.asarray(scale * noise, jnp.float32)


# The generator ---------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_the_elbo_equals_the_loops(scale):
  params = trained_stats()["generator"]
  pixels, labels = images(0, 3, scale), jnp.array([2, 0, 3])
  keys = jax.random.split(jax.random.key(5), 3)
  found = generator.negative_elbo(params, pixels, labels, keys, deviation=0.3)
  noise = jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys)
  expected = [
    reference.negative_elbo(params, image, label, own_noise, 0.3)
    for image, label, own_noise in zip(pixels, labels.tolist(), noise, strict=True)
  ]
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_elbo_by_hand():
  # Nothing but biases: the posterior is N((1, -2), diag(1, 4)), every pixel value is 0.5.
  params = jax.tree.map(np.zeros_like, stats_of()["generator"])
  params["encoder"]["layer2"]["bias"][:] = 1, -2, 0, np.log(4)
  params["decoder"]["layer2"]["bias"][:] = 0.5
  pixels, keys = jnp.full((1, SIZE, SIZE, 3), 0.9), jax.random.split(jax.random.key(0), 1)
  label = jnp.array([0])
  found = generator.negative_elbo(params, pixels, label, keys, deviation=0.3)
  divergence = ((1 + 1 - 1 - 0) + (4 + 4 - 1 - np.log(4))) / 2
  assert found == pytest.approx(0.4**2 / (2 * 0.3**2) + divergence / 48, rel=1e-5)
  mean, log_variance = generator.posterior(params, pixels, label)
  np.testing.assert_allclose(mean, [[1, -2]])
  np.testing.assert_allclose(log_variance, [[0, np.log(4)]], rtol=1e-6)


def test_a_class_starts_as_it_would_have_with_fewer_or_more_of_them():
  small, large = stats_of(3), stats_of(7)
  grown = DGR.grow_stats(small, large, np.zeros(0, np.int64))
  jax.tree.map(np.testing.assert_array_equal, grown, large)
  rows = large["generator"]["decoder"]["classes"]
  assert len(np.unique(rows[:, 0])) == 7
  other = stats_of(7, config_of("dgr", dgr_units=5, dgr_latent=2, seed=1))
  assert (other["generator"]["decoder"]["classes"] != rows).all()


@pytest.mark.parametrize("changes", [{"dgr_units": 4}, {"dgr_units": 6}, {"dgr_latent": 3}])
def test_a_trained_generator_keeps_its_size(changes):
  config = config_of("dgr", **{"dgr_units": 5, "dgr_latent": 2} | changes)
  with pytest.raises(ConfigError, match="--dgr_units, --dgr_latent: a trained generator"):
    DGR.grow_stats(stats_of(), stats_of(5, config), np.zeros(0, np.int64))


def test_it_learns_to_draw_an_image_of_each_class():
  config = config_of("dgr", dgr_units=32, dgr_latent=2, dgr_rate=0.01)
  params = DGR.init_own({}, stats_of(config=config), config)
  optimizer = own_optimizer(DGR, config)
  both, labels = images(1, 2), jnp.tile(jnp.array([0, 1]), 8)

  @jax.jit
  def step(params, opt_state, number):
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), number), len(labels))

    def loss(params):
      return jnp.mean(
        generator.negative_elbo(params, both[labels], labels, keys, deviation=0.3)
      )

    grads = jax.grad(loss)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  before, opt_state = params, optimizer.init(params)
  for number in range(400):
    params, opt_state = step(params, opt_state, number)
  drawn = generator.draw(params, labels, jax.random.split(jax.random.key(9), 16))
  np.testing.assert_allclose(drawn, both[labels], atol=0.2)
  for part in ("encoder", "decoder"):
    old, new = (tree[part]["classes"] for tree in (before, params))
    np.testing.assert_array_equal(new[2:], old[2:])  # never seen
    assert (new[:2] != old[:2]).any(axis=1).all()


# Replay ----------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=2)
def replayed(keys, context, config=CONFIG):
  return DGR.replay(keys, context, config)


def test_what_is_drawn_depends_on_the_former_generator_and_each_key_alone():
  keys = jax.random.split(jax.random.key(0), 40)
  context = context_of(2, 4, num_teacher_classes=2, stats=trained_stats())
  drawn = replayed(keys, context)
  assert (drawn.shape, drawn.dtype) == ((40, SIZE, SIZE, 3), jnp.float32)
  np.testing.assert_allclose(replayed(keys[20:], context), drawn[20:], rtol=1e-5, atol=1e-6)
  assert len(np.unique(np.asarray(drawn)[:, 0, 0, 0])) == 40
  other = context_of(2, 4, num_teacher_classes=2, stats=trained_stats(1))
  assert (replayed(keys, other) != drawn).any(axis=(1, 2, 3)).all()
  # New classes are never drawn: their rows do not count.
  louder = jax.tree.map(np.copy, trained_stats())
  louder["generator"]["decoder"]["classes"][2:] += 100
  np.testing.assert_array_equal(replayed(keys, context._replace(stats=louder)), drawn)
  for old in range(2):
    louder = jax.tree.map(np.copy, trained_stats())
    louder["generator"]["decoder"]["classes"][old] += 100
    moved = replayed(keys, context._replace(stats=louder)) != drawn
    assert 10 <= moved.any(axis=(1, 2, 3)).sum() <= 30


def test_a_label_is_the_former_networks_best_old_class():
  logits = jnp.array([[0.0, 2.0, 9.0, 9.0], [1.0, -3.0, 0.0, 5.0]])
  assert old_label(logits, 2).tolist() == [1, 0]
  assert old_label(logits, 3).tolist() == [2, 0]


# The loss --------------------------------------------------------------------------------


def given(own, logits, drawn_logits, num_old=3):
  """A batch of two new images, and two drawn ones."""
  context = context_of(num_old, 4, num_teacher_classes=num_old, stats=trained_stats())
  teacher = outputs_of(logits=np.array([[3.0, 0, 0, 9], [0, 0, 3.0, 9]]))
  drawn = Replayed(images(4, 2), outputs_of(logits=np.zeros((2, 4))), teacher)
  return examples_of(
    outputs_of(logits=np.zeros((2, 4)))._replace(logits=logits),
    [3, 3],
    context,
    [0, 0, 0, 1],
    teacher=teacher,
    pixels=images(3, 2),
    own=own,
    replayed=drawn._replace(outputs=drawn.outputs._replace(logits=drawn_logits))
    if num_old
    else None,
  )


def test_network_and_generator_learn_from_their_own_part_alone():
  own = trained_stats()["generator"]
  logits = jnp.asarray(np.random.default_rng(2).standard_normal((2, 2, 4)), jnp.float32)

  def mean(own, logits, drawn_logits):
    return jnp.mean(DGR.loss(given(own, logits, drawn_logits), CONFIG))

  gradients = jax.jit(jax.grad(mean, (0, 1, 2)))
  of_own, of_new, of_drawn = gradients(own, *logits)
  # One new class of four: 1/4 of the softmax's p - 1{y}, and 3/4 with the teacher's labels.
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  labels = np.eye(4)[[[3, 3], [0, 2]]]
  np.testing.assert_allclose(of_new, (p - labels)[0] / 4 / 2, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(of_drawn, (p - labels)[1] * 3 / 4 / 2, rtol=1e-4, atol=1e-6)
  # The generator's gradient does not see the network, and class 1, which no label is of,
  # learns nothing.
  other, *_ = gradients(own, *(3 * logits))
  jax.tree.map(np.testing.assert_array_equal, other, of_own)
  rows = of_own["decoder"]["classes"].any(axis=1).tolist()
  assert rows == [True, False, True, True]


def test_no_gradient_reaches_what_was_there_before():
  own = trained_stats()["generator"]

  def mean(before):
    examples = given(own, jnp.zeros((2, 4)), jnp.zeros((2, 4)))
    examples = examples._replace(
      context=examples.context._replace(stats=before["stats"]),
      replayed=examples.replayed._replace(teacher=before["teacher"]),
    )
    return jnp.mean(DGR.loss(examples, CONFIG))

  before = {"stats": trained_stats(), "teacher": outputs_of(logits=np.ones((2, 4)))}
  assert not any(leaf.any() for leaf in jax.tree.leaves(jax.jit(jax.grad(mean))(before)))
