"""The optimizer against PyTorch's rule, augmentation, and what a step is made of."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick import quick_network

from ssil_jax.config import make_config
from ssil_jax.data.images.augment import (
  IMAGENET_NORMALIZATION,
  Augmentation,
  Normalization,
  augment,
  to_float,
)
from ssil_jax.methods import get_method
from ssil_jax.methods.base import Elastic, PhaseContext, SeenClasses
from ssil_jax.methods.ssil import SSIL
from ssil_jax.resnet import Outputs, ResNet18
from ssil_jax.training.run_state import with_own
from ssil_jax.training.step import (
  AXIS,
  Batch,
  Model,
  TrainState,
  create_train_state,
  eval_step,
  make_optimizer,
  train_step,
)

SEED = jnp.uint32(0)


def torch_sgd(parameter, gradients, rates, *, momentum, weight_decay, nesterov=True):
  """torch.optim.SGD, its documented rule in float64, a value a step."""
  buffer, values = None, []
  for gradient, rate in zip(gradients, rates, strict=True):
    gradient = gradient + weight_decay * parameter
    buffer = gradient if buffer is None else momentum * buffer + gradient
    moved = gradient + momentum * buffer if nesterov else buffer
    parameter = parameter - rate * moved
    values.append(parameter)
  return values


def our_sgd(parameter, gradients, rates, **settings):
  optimizer = make_optimizer(**settings)
  parameter = jnp.float32(parameter)
  state, values = optimizer.init(parameter), []
  for gradient, rate in zip(gradients, rates, strict=True):
    update, state = optimizer.update(jnp.float32(gradient), state, parameter)
    parameter = optax.apply_updates(parameter, -rate * update)
    values.append(float(parameter))
  return values


def test_two_steps_worked_by_hand():
  # Momentum 0.5, decay 0.1, rate 0.1. Step 1: g = 1 + 0.1*2 = 1.2, buffer 1.2,
  # 2 - 0.1*(1.2 + 0.6) = 1.82. Step 2: g = -1 + 0.182 = -0.818,
  # buffer 0.6 - 0.818 = -0.218, 1.82 - 0.1*(-0.818 - 0.109) = 1.9127.
  values = our_sgd(2.0, [1.0, -1.0], [0.1, 0.1], momentum=0.5, weight_decay=0.1)
  np.testing.assert_allclose(values, [1.82, 1.9127], rtol=1e-6)


@pytest.mark.parametrize("nesterov", [True, False])
def test_follows_torch_over_changing_rates(nesterov):
  rng = np.random.default_rng(0)
  gradients = rng.standard_normal(12)
  rates = [0.1] * 4 + [0.01] * 4 + [0.05] * 4
  settings = {"momentum": 0.9, "weight_decay": 1e-4, "nesterov": nesterov}
  np.testing.assert_allclose(
    our_sgd(0.7, gradients, rates, **settings),
    torch_sgd(0.7, gradients, rates, **settings),
    rtol=1e-5,
  )


def images(count, size=6):
  """Each pixel differs from every other, so a moved image tells where it went."""
  pixels = np.arange(1, count * size * size * 3 + 1, dtype=np.int64) % 251 + 1
  return jnp.asarray(pixels.reshape(count, size, size, 3), jnp.uint8)


@pytest.mark.parametrize(("pad", "flip", "count"), [(0, False, 3), (2, True, 32)])
def test_each_image_is_one_of_the_possible_shifts_and_flips(pad, flip, count):
  size, batch = 6, images(count)
  result = augment(batch, jax.random.key(0), jnp.arange(count), Augmentation(pad, flip))
  assert result.dtype == jnp.uint8
  seen = set()
  for before, after in zip(np.asarray(batch), np.asarray(result), strict=True):
    padded = np.pad(before, ((pad, pad), (pad, pad), (0, 0)))
    candidates = {
      (top, left, way): padded[top : top + size, left : left + size][:, ::way]
      for top in range(2 * pad + 1)
      for left in range(2 * pad + 1)
      for way in ((1, -1) if flip else (1,))
    }
    (found,) = (key for key, value in candidates.items() if np.array_equal(value, after))
    seen.add(found)
  assert len(seen) > 10 if pad else seen == {(0, 0, 1)}
  assert {way for _, _, way in seen} == ({1, -1} if flip else {1})


def test_augmentation_depends_on_the_position_not_on_the_neighbours():
  batch, key, plan = images(8), jax.random.key(3), Augmentation(2, True)
  whole = augment(batch, key, jnp.arange(8), plan)
  picked = jnp.array([6, 1, 3])
  np.testing.assert_array_equal(augment(batch[picked], key, picked, plan), whole[picked])
  other = augment(batch, jax.random.key(4), jnp.arange(8), plan)
  assert not np.array_equal(other, whole)


def test_pixels_become_fractions_and_are_normalized_channel_by_channel():
  pixels = jnp.array([[[[0, 51, 255]]]], jnp.uint8)
  # (0 - 0.5) / 0.25, (0.2 - 0.1) / 0.5 and (1 - 0.6) / 0.2
  normalization = Normalization((0.5, 0.1, 0.6), (0.25, 0.5, 0.2))
  for how, expected in ((None, [0, 0.2, 1]), (normalization, [-2, 0.2, 2])):
    result = to_float(pixels, how)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, [[[expected]]], rtol=1e-6)
  imagenet = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
  np.testing.assert_allclose(IMAGENET_NORMALIZATION, imagenet)


class ChannelMeans:
  """A network whose logits are the means of the channels that it sees."""

  def apply(self, variables, images, *, train, mutable=()):
    means = images.mean((1, 2)) + variables["params"]
    outputs = Outputs(features=means, logits=means)
    return (outputs, {"batch_stats": {}}) if mutable else outputs


@pytest.mark.parametrize(
  ("normalization", "expected"),
  # Pixels of 51 / 255 = 0.2: as they are, and (0.2 - 0.1) / 0.05.
  [(None, 0.2), (Normalization((0.1,) * 3, (0.05,) * 3), 2.0)],
)
def test_training_and_evaluation_see_the_same_normalized_pixels(normalization, expected):
  model = Model(
    network=ChannelMeans(),
    method=SSIL._replace(loss=lambda examples, config: examples.outputs.logits.mean(-1)),
    optimizer=make_optimizer(momentum=0.9, weight_decay=0.0),
    augmentation=Augmentation(max_shift=0, flip=False),
    normalization=normalization,
    config=make_config({}, SSIL),
    state_of_class=(0, 0, 0),
  )
  params = jnp.zeros((1, 3))
  state = TrainState(jnp.int32(0), params, {}, model.optimizer.init(params))
  batch = Batch(
    inputs=jnp.full((1, 4, 4, 3), 51, jnp.uint8),
    labels=jnp.zeros(1, jnp.int32),
    positions=jnp.zeros(1, jnp.int32),
    records=jnp.zeros(1, jnp.int32),
  )
  context = PhaseContext(SeenClasses(*map(jnp.int32, (0, 3, 0))), None, {}, seed=SEED)

  def both(state):
    _, step_metrics = train_step(state, batch, context, 0.1, None, model=model)
    return step_metrics["loss"], eval_step(state, batch, context, None, model=model)

  # One device.
  state = jax.tree.map(lambda x: x[None], state)
  loss, (counts, _) = jax.jit(jax.vmap(both, axis_name=AXIS))(state)
  assert float(loss[0]) == pytest.approx(expected, rel=1e-5)
  assert float(counts.score_new[0, 0]) == pytest.approx(expected, rel=1e-5)


class LinearHead:
  """A network of nothing but a head, with or without a cosine head's scale."""

  def apply(self, variables, images, *, train, mutable=()):
    head = variables["params"]["head"]
    logits = images.mean((1, 2)) @ head["kernel"] + head.get("bias", jnp.zeros(6))[None]
    outputs = Outputs(features=images.mean((1, 2)), logits=logits)
    return (outputs, {"batch_stats": {}}) if mutable else outputs


@pytest.mark.parametrize("kind", [{"bias": (6,)}, {"scale": ()}])
@pytest.mark.parametrize("name", ["ft", "wa"])  # without and with a projection
def test_weights_of_classes_that_are_not_seen_stay_as_they_are(name, kind):
  method = get_method(name)
  rng = np.random.default_rng(0)
  shapes = {"kernel": (3, 6), **kind}
  head = {
    key: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    for key, shape in shapes.items()
  }
  model = Model(
    network=LinearHead(),
    # Every score is in the loss, so that only the rule keeps those of unseen classes.
    method=method._replace(
      loss=lambda examples, config: (examples.outputs.logits**2).sum(-1)
    ),
    optimizer=make_optimizer(momentum=0.9, weight_decay=0.5),
    augmentation=Augmentation(max_shift=0, flip=False),
    normalization=None,
    config=make_config({"method": name}, method),
    state_of_class=(0, 0, 1, 1, 2, 2),
  )
  params = {"head": head}
  start = TrainState(jnp.int32(0), params, {}, model.optimizer.init(params))
  batch = Batch(
    inputs=images(4, size=4),
    labels=jnp.arange(4, dtype=jnp.int32),
    positions=jnp.arange(4, dtype=jnp.int32),
    records=jnp.arange(4, dtype=jnp.int32),
  )
  teacher = {"params": params, "batch_stats": {}} if method.has_teacher else None
  context = PhaseContext(SeenClasses(*map(jnp.int32, (2, 4, 2))), teacher, {}, seed=SEED)

  def step(state):
    return train_step(state, batch, context, 0.1, None, model=model)[0]

  mapped = jax.jit(jax.vmap(step, axis_name=AXIS))
  state = jax.tree.map(lambda x: x[None], start)
  for _ in range(3):
    state = mapped(state)
  after = jax.tree.map(lambda x: np.asarray(x[0]), state)
  for tree, before in (
    (after.params, start.params),
    (after.opt_state, start.opt_state),
  ):
    leaves, started = jax.tree.leaves(tree), jax.tree.leaves(before)
    assert len(leaves) == len(started)
    of_classes = 0
    for leaf, old in zip(leaves, started, strict=True):
      if not leaf.ndim:  # the scale, which belongs to no class
        continue
      of_classes += 1
      np.testing.assert_array_equal(leaf[..., 4:], old[..., 4:])
      assert (leaf[..., :4] != old[..., :4]).any(axis=tuple(range(leaf.ndim - 1))).all()
    assert of_classes == (2 if "bias" in kind else 1)


def test_one_program_draws_the_initial_networks_of_all_seeds():
  network = ResNet18(num_classes=3, width=2, small_images=True, axis_name=AXIS)
  method, programs = get_method("ft"), set()
  for seed in (0, 2**31 + 5, 2**32 - 1):
    model, _ = world_of(method, network=network, params={}, seed=seed)
    with quick_network():
      create = jax.jit(functools.partial(create_train_state, model, 8))
      # As a constant; compiled, too, for jax rounds operations one by one differently.
      of_seed = functools.partial(network.init, jax.random.key(seed), train=False)
      expected = jax.jit(of_seed)(jnp.zeros((1, 8, 8, 3)))
      programs.add(create.lower(np.uint32(seed)).as_text())
      found = create(np.uint32(seed)).params
    jax.tree.map(np.testing.assert_array_equal, found, expected["params"])
  assert len(programs) == 1


# Penalties, parts, what steps carry along ------------------------------------------------


def world_of(method, *, network, params, weight_decay=0.0, num_classes=3, **settings):
  """A model and its first state."""
  model = Model(
    network=network,
    method=method,
    optimizer=make_optimizer(momentum=0.9, weight_decay=weight_decay),
    augmentation=Augmentation(max_shift=0, flip=False),
    normalization=None,
    config=make_config(settings, method),
    state_of_class=(0,) * num_classes,
  )
  state = TrainState(jnp.int32(0), params, {}, model.optimizer.init(params))
  return model, with_own(state, method, {}, model.config)


def black(shape):
  """A batch of images that are 0 everywhere."""
  labels = jnp.zeros(shape, jnp.int32)
  return Batch(jnp.zeros((*shape, 1, 1, 3), jnp.uint8), labels, labels, labels)


@pytest.mark.parametrize("stiffness", [0.0, 0.5, 30.0, 1e9])
def test_a_penalty_of_any_stiffness_comes_to_rest_in_balance_with_the_loss(stiffness):
  # 2 (x - 3)^2 / 2 + k (x + 1)^2 / 2 is least in x = (2 * 3 - k) / (2 + k).
  method = SSIL._replace(
    loss=lambda examples, config: (examples.outputs.logits[:, 0] - 3) ** 2,
    elastic=lambda context, config: Elastic(
      *(jnp.full((1, 3), x) for x in (stiffness, -1.0))
    ),
  )
  model, state = world_of(method, network=ChannelMeans(), params=jnp.zeros((1, 3)))
  context = PhaseContext(SeenClasses(*map(jnp.int32, (0, 3, 0))), None, {}, seed=SEED)

  def train(state):
    def step(state, _):
      state, metrics = train_step(state, black((1,)), context, 0.1, None, model=model)
      return state, (state.params[0, 0], metrics["loss"])

    return jax.lax.scan(step, state, length=300)[1]

  mapped = jax.jit(jax.vmap(train, axis_name=AXIS))
  path, losses = (np.asarray(x[0]) for x in mapped(jax.tree.map(lambda x: x[None], state)))
  expected = (2 * 3 - stiffness) / (2 + stiffness)
  assert path[-1] == pytest.approx(expected, rel=1e-4, abs=1e-5)
  assert np.abs(path).max() < 8  # it swings by its momentum, and no further
  assert losses[0] == pytest.approx(9 + 3 * stiffness / 2, rel=1e-5)


@pytest.mark.parametrize(
  ("stiffness", "lasso"), [(0.0, 0.5), (0.5, 3.0), (30.0, 2.0), (1.0, 7.9), (1.0, 8.1)]
)
def test_a_lasso_comes_to_rest_in_balance_or_keeps_its_anchor(stiffness, lasso):
  # With u = x + 1, (u - 4)^2 + k u^2 / 2 + l |u| is least in u = max(0, (8 - l) / (2 + k)).
  method = SSIL._replace(
    loss=lambda examples, config: (examples.outputs.logits[:, 0] - 3) ** 2,
    elastic=lambda context, config: Elastic(
      *(jnp.full((1, 3), x) for x in (stiffness, -1.0, lasso))
    ),
  )
  model, state = world_of(method, network=ChannelMeans(), params=jnp.zeros((1, 3)))
  context = PhaseContext(SeenClasses(*map(jnp.int32, (0, 3, 0))), None, {}, seed=SEED)

  def train(state):
    def step(state, _):
      state, metrics = train_step(state, black((1,)), context, 0.1, None, model=model)
      return state, (state.params[0, 0], metrics["loss"])

    return jax.lax.scan(step, state, length=300)[1]

  mapped = jax.jit(jax.vmap(train, axis_name=AXIS))
  path, losses = (np.asarray(x[0]) for x in mapped(jax.tree.map(lambda x: x[None], state)))
  expected = max(0, (8 - lasso) / (2 + stiffness))
  assert path[-1] + 1 == pytest.approx(expected, rel=1e-4, abs=1e-5)
  assert losses[0] == pytest.approx(9 + 3 * (stiffness / 2 + lasso), rel=1e-5)


class Scores:
  """A network whose logits are images times parameters."""

  def apply(self, variables, images, *, train, mutable=()):
    logits = images.mean((1, 2)) * variables["params"]
    return Outputs(features=logits, logits=logits), {"batch_stats": {}}


def test_gradients_of_parts_are_over_all_devices_and_carried_along():
  rng = np.random.default_rng(0)
  pixels = rng.integers(256, size=(2, 4, 1, 1, 3)).astype(np.uint8)
  weights = rng.standard_normal((2, 2, 4)).astype(np.float32)  # of a device's parts
  places = np.tile(np.arange(4, dtype=np.int32), (2, 1))

  def carry(carried, step, context, config):
    return {"grads": step.grads, "moved": step.after - step.before}

  method = SSIL._replace(
    loss=lambda examples, config: examples.outputs.logits.sum(-1),
    parts=lambda examples, config: examples.context.stats,
    combine=lambda grads, context, config: grads[0] - 2 * grads[1],
    penalty=lambda params, own, context, config: 5 * jnp.sum(params),
    init_carried=lambda params: {"grads": params, "moved": params},
    carry=carry,
  )
  params = jnp.float32([[1, 2, 3]])
  model, state = world_of(method, network=Scores(), params=params, weight_decay=0.5)
  classes = SeenClasses(*map(jnp.int32, (0, 3, 0)))

  def step(state, batch, weights):
    context = PhaseContext(classes, None, weights, seed=SEED)
    return train_step(state, batch, context, 0.1, None, model=model, later=True)[0]

  copies = jax.tree.map(lambda x: jnp.stack([x, x]), state)
  batch = Batch(pixels, places * 0, places, places)
  after = jax.device_get(jax.jit(jax.vmap(step, axis_name=AXIS))(copies, batch, weights))
  # Of a sum of weighted losses by a parameter: the weighted sum of the images.
  images = pixels[:, :, 0, 0].astype(np.float64) / 255
  first, second = (
    sum(w[p] @ x for w, x in zip(weights, images, strict=True)) for p in (0, 1)
  )
  for device in (0, 1):
    grads = after.carried["grads"][device, 0]
    np.testing.assert_allclose(grads, first - 2 * second, rtol=1e-4)
    # Penalty and weight decay are in the step, with momentum's first 1.9.
    whole = grads + 5 + 0.5 * np.float64([1, 2, 3])
    np.testing.assert_allclose(after.carried["moved"][device, 0], -0.19 * whole, rtol=1e-4)
    np.testing.assert_array_equal(after.params[device], after.params[0])


# Own parameters, generated images, fixed features ----------------------------------------


def on_devices(state, batch, context, *, model, later=False):
  """The state after a step of all devices, [devices, ...]."""

  def step(state, batch):
    return train_step(state, batch, context, 0.1, None, model=model, later=later)[0]

  size = len(batch.labels)
  copies = jax.tree.map(lambda x: jnp.broadcast_to(x, (size, *jnp.shape(x))), state)
  return jax.device_get(jax.jit(jax.vmap(step, axis_name=AXIS))(copies, batch))


def random_batch(num_devices, share, *, size=1):
  """The same images in the same places, however many devices they are dealt to."""
  shape = num_devices, share
  pixels = np.random.default_rng(0).integers(256, size=(*shape, size, size, 3))
  places = np.arange(num_devices * share, dtype=np.int32).reshape(shape)
  return Batch(pixels.astype(np.uint8), places % 3, places, places)


FIRST = PhaseContext(SeenClasses(*map(jnp.int32, (0, 3, 0))), None, {}, seed=SEED)
LATER = PhaseContext(SeenClasses(*map(jnp.int32, (1, 3, 0))), None, {}, seed=SEED)


def test_own_parameters_are_trained_beside_the_network_by_adam():
  # logits = image * (own * params); the loss is their sum, and (own - 3)^2.
  method = SSIL._replace(
    loss=lambda examples, config: (
      examples.outputs.logits.sum(-1) + (examples.own["by"] - 3) ** 2
    ),
    init_own=lambda params, stats, config: {"by": np.float32(2)},
    own_rate=lambda config: 0.5,
    weights=lambda params, own, key, context, config: own["by"] * params,
    penalty=lambda params, own, context, config: 7 * own["by"] + 0 * jnp.sum(params),
  )
  params = jnp.float32([[1, 2, 4]])
  model, state = world_of(method, network=Scores(), params=params)
  batch = random_batch(2, 4)
  after = on_devices(state, batch, FIRST, model=model)
  mean = np.float64(batch.inputs[:, :, 0, 0]).mean((0, 1)) / 255
  gradient = mean @ [1, 2, 4] + 2 * (2 - 3) + 7
  # Adam's first step has the length of its rate; its mean is a tenth of the gradient.
  np.testing.assert_allclose(after.own["by"], [1.5, 1.5], rtol=1e-5)
  of_adam = after.own_opt_state[0]
  np.testing.assert_allclose(of_adam.mu["by"], [gradient / 10] * 2, rtol=1e-5)
  # Nesterov's first step is 1.9 times the gradient.
  moved = np.float64([1, 2, 4]) - 0.19 * 2 * mean
  np.testing.assert_allclose(after.params, [moved[None]] * 2, rtol=1e-5)


def test_what_is_drawn_for_an_image_or_a_step_is_the_same_on_any_devices():
  def replay(keys, context, config):
    assert keys.ndim == 1
    return jax.vmap(lambda key: jax.random.uniform(key, (1, 1, 3)))(keys)

  def loss(examples, config):
    if examples.replayed is None:
      return examples.outputs.logits.sum(-1)
    weights = examples.replayed.pixels[:, 0, 0, 0]
    return weights * (examples.outputs.logits - examples.replayed.outputs.logits).sum(-1)

  method = SSIL._replace(
    loss=loss,
    replay=replay,
    weights=lambda params, own, key, *rest: params + jax.random.uniform(key, params.shape),
  )
  params = jnp.float32([[1, 2, 4]])
  model, state = world_of(method, network=Scores(), params=params)
  first, one, two = (
    on_devices(state, random_batch(*shape), context, model=model, later=later).params[-1]
    for shape, context, later in (
      ((2, 4), FIRST, False),
      ((1, 8), LATER, True),
      ((2, 4), LATER, True),
    )
  )
  np.testing.assert_allclose(one, two, rtol=1e-6)
  assert (one != first).all()
  again = on_devices(
    state.replace(step=jnp.int32(1)), random_batch(2, 4), LATER, model=model, later=True
  )
  assert (again.params[-1] != two).all()


def test_fixed_features_stay_as_they_are_while_the_head_is_trained():
  network = ResNet18(num_classes=3, width=2, small_images=True, axis_name=AXIS)
  images = jnp.zeros((1, 8, 8, 3))
  with quick_network():
    check_fixed_features(network, network.init(jax.random.key(0), images, train=False))


def check_fixed_features(network, variables):

  def loss(examples, config):
    logits = examples.classify(examples.outputs.features)  # as those of the outputs
    return optax.softmax_cross_entropy_with_integer_labels(logits, examples.labels) + (
      (logits - examples.outputs.logits) ** 2
    ).sum(-1)

  method = SSIL._replace(loss=loss, freezes_features=True)
  model, state = world_of(
    method, network=network, params=variables["params"], weight_decay=0.1
  )
  state = state.replace(batch_stats=variables["batch_stats"])
  batch = random_batch(2, 4, size=8)
  for later in (False, True):
    after = on_devices(state, batch, LATER, model=model, later=later)
    for name in ("params", "batch_stats", "opt_state"):
      old, new = (leaves_of(getattr(run, name)) for run in (state, after))
      for path, leaf in old.items():
        changed = (new[path][0] != leaf).any()
        assert changed == (not later or "'head'" in path), path


def leaves_of(tree):
  """path -> leaf."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
