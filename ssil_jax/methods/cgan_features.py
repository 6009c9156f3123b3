"""Conditional GAN: old classes' features come from a generator, which is told the class.

Y. Xiang, Y. Fu, P. Ji and H. Huang, *Incremental Learning Using Conditional Adversarial
Networks*, ICCV 2019: a fixed base network, and a generator conditioned on the class that
makes features of old classes; the discriminator compares with real ones of new classes and
with those of the former generator for old ones. At the end of each state, both networks go
on from where they were, on as many features of each class seen. No image is stored.

What differs. There the features are those of a layer within the network, the layers above
go on training, and the discriminator classifies, too. Here they are the head's input, and
the head alone learns (see `feature_replay`). The game is the non-saturating one (I.
Goodfellow et al., NeurIPS 2014) with a penalty gamma / 2 |gradient|^2 of the discriminator
at real features, and the generator that is kept is an average along its steps, as the plain
game goes round in circles: L. Mescheder, A. Geiger and S. Nowozin, *Which Training Methods
for GANs do actually Converge?*, ICML 2018. Both networks are small perceptrons, in which
the class is a row of weights beside the input, as a one-hot vector would be. Features are
standardized by the mean and standard deviation of those of the first state.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssil_jax.methods.base import Method
from ssil_jax.methods.feature_replay import (
  REPLAYS_FEATURES,
  features_themselves,
  keeping,
  replaying,
)
from ssil_jax.settings import setting

_NOISE = 32  # numbers that a feature is made of, beside its class
_BATCH = 64
_GAMMA = 1.0
_AVERAGED = 0.995  # share of the average that a step leaves
_OPTIMIZER = optax.adam(1e-3, b1=0.0, b2=0.99)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Of the conditional GAN."""

  cgan_steps: int = setting(
    2000,
    "training steps of generator and discriminator after each state, of 64 features",
    at_least=1,
    changes="later_states",
  )
  cgan_width: int = setting(
    256,
    "units in each of their two hidden layers",
    at_least=1,
    changes="later_states",
  )


def perceptron(weights, inputs, labels):
  """Returns two hidden layers' output, float32 [B, outputs].

  Args:
    weights: "rows" [C, width], of each class; "in", "hidden", "out" and their biases.
    inputs: float32 [B, n].
    labels: int32 [B].
  """
  x = inputs @ weights["in"] + weights["rows"][labels]
  x = jax.nn.leaky_relu(x, 0.2) @ weights["hidden"] + weights["hidden_bias"][None, :]
  return jax.nn.leaky_relu(x, 0.2) @ weights["out"] + weights["out_bias"][None, :]


def initial_perceptron(num_inputs, width, num_outputs, num_classes, *, seed):
  """Draws weights from the seed; a class's row depends on that and its place alone."""
  rng, of_rows = (np.random.default_rng((*seed, part)) for part in range(2))

  def draw(rng, fan_in, shape):
    return np.float32(rng.standard_normal(shape) / np.sqrt(fan_in))

  return {
    "rows": draw(of_rows, 4, (num_classes, width)),
    "in": draw(rng, num_inputs, (num_inputs, width)),
    "hidden": draw(rng, width, (width, width)),
    "hidden_bias": np.zeros(width, np.float32),
    "out": draw(rng, width, (width, num_outputs)),
    "out_bias": np.zeros(num_outputs, np.float32),
  }


def draw(keys, labels, stats):
  """Generates a feature for each label; float32 [B, d]."""
  noise = jax.vmap(lambda key: jax.random.normal(key, (_NOISE,)))(keys)
  made = perceptron(stats["generator"], noise, labels)
  return made * stats["deviation"][None, :] + stats["mean"][None, :]


def discriminator_loss(discriminator, real, made, labels):
  """Returns the mean of log(1 + e^-D(real)) + log(1 + e^D(made)) + R1; float32 []."""

  def score(features):
    return perceptron(discriminator, features, labels)[:, 0]

  slopes = jax.grad(lambda features: jnp.sum(score(features)))(real)
  penalty = _GAMMA / 2 * jnp.sum(slopes**2, axis=-1)
  return jnp.mean(jax.nn.softplus(-score(real)) + jax.nn.softplus(score(made)) + penalty)


@jax.jit
def train_generator(game, former, features, labels, num_old, seed):
  """Trains the discriminator, then the generator, by one step of the same batch's classes.

  Args:
    game: "generator", "discriminator", their optimizers' states, and the "average".
    former: the generator that knows the old classes.
    features: float32 [B, d], real ones where the label is new; standardized.
    labels: int32 [B].
    num_old: int32 [].
    seed: uint32 [], of the noise.

  Returns:
    The game after the step.
  """
  noise = jax.random.normal(jax.random.key(seed), (3, len(labels), _NOISE))
  of_former = perceptron(former, noise[0], labels)
  real = jnp.where((labels < num_old)[:, None], of_former, features)

  def generator_loss(generator, discriminator):
    made = perceptron(generator, noise[2], labels)
    return jnp.mean(jax.nn.softplus(-perceptron(discriminator, made, labels)))

  made = perceptron(game["generator"], noise[1], labels)
  grads = jax.grad(discriminator_loss)(game["discriminator"], real, made, labels)
  after = {}
  after["discriminator"], after["discriminator_state"] = _updated(
    game["discriminator"], game["discriminator_state"], grads
  )
  grads = jax.grad(generator_loss)(game["generator"], after["discriminator"])
  after["generator"], after["generator_state"] = _updated(
    game["generator"], game["generator_state"], grads
  )
  after["average"] = optax.incremental_update(
    after["generator"], game["average"], 1 - _AVERAGED
  )
  return after


def _updated(weights, opt_state, grads):
  updates, opt_state = _OPTIMIZER.update(grads, opt_state)
  return optax.apply_updates(weights, updates), opt_state


def train(stats, features, labels, *, num_old, num_seen, steps, seed):
  """Goes on training generator and discriminator, to know the new classes, too.

  Args:
    stats: the statistics, with mean and deviation of features.
    features: float32 [n, d], of images of the new classes, at least one of each.
    labels: int [n], from num_old to num_seen - 1.
    num_old: classes that the generator knows.
    num_seen: classes that it will know.
    steps: of training.
    seed: tuple of ints, what all that is drawn depends on.

  Returns:
    The statistics with both networks trained; host arrays.
  """
  rng = np.random.default_rng(seed)
  order = np.argsort(labels, kind="stable")
  counts = np.bincount(labels, minlength=num_seen)
  first = np.cumsum(counts) - counts
  features = ((features - stats["mean"]) / stats["deviation"])[order]
  networks = {name: stats[name] for name in ("generator", "discriminator")}
  states = {f"{name}_state": _fresh(weights) for name, weights in networks.items()}
  former, old = jax.device_put((stats["generator"], np.int32(num_old)))
  game = jax.device_put({**networks, **states, "average": stats["generator"]})
  for _ in range(steps):
    drawn = rng.integers(num_seen, size=_BATCH, dtype=np.int32)
    # Old classes have no record: the first stands for them, and is not looked at.
    place_in_class = (rng.random(_BATCH) * counts[drawn]).astype(np.int64)
    batch = features[first[drawn] + place_in_class]
    noise_seed = rng.integers(2**32, dtype=np.uint32)
    batch, drawn, noise_seed = jax.device_put((batch, drawn, noise_seed))
    game = train_generator(game, former, batch, drawn, old, noise_seed)
  trained = jax.device_get({name: game[name] for name in ("average", "discriminator")})
  return {
    **stats,
    "generator": trained["average"],
    "discriminator": trained["discriminator"],
  }


def _fresh(weights):
  """Returns the optimizer's state before the first step, which is zeros; host arrays."""
  shapes = jax.eval_shape(_OPTIMIZER.init, weights)
  return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


def scaling(features):
  """Returns the mean and the standard deviation of features, float32 [d].

  The deviation is a tenth of its usual size or more: a feature that is silent in the first
  state may speak in a later one.
  """
  variance = features.var(axis=0, dtype=np.float64)
  deviation = np.sqrt(variance + 0.01 * (variance.mean() or 1.0))
  return np.float32(features.mean(axis=0)), np.float32(deviation)


def _init_stats(sizes):
  width, num_features = sizes.config.method_settings.cgan_width, sizes.num_features
  seed, num_classes = sizes.config.seed, sizes.num_classes
  return {
    "generator": initial_perceptron(
      _NOISE, width, num_features, num_classes, seed=(seed, 0)
    ),
    "discriminator": initial_perceptron(
      num_features, width, 1, num_classes, seed=(seed, 1)
    ),
    "mean": np.zeros(num_features, np.float32),
    "deviation": np.ones(num_features, np.float32),
  }


def _stats(state, config):
  features = state.extract(state.pool.new, features_themselves)
  stats = dict(state.stats)
  if not state.num_old:
    stats["mean"], stats["deviation"] = scaling(features)
  return train(
    stats,
    features,
    state.labels[state.pool.new],
    num_old=state.num_old,
    num_seen=state.num_seen,
    steps=config.method_settings.cgan_steps,
    seed=(config.seed, state.num_seen),
  )


CGAN_FEATURES = Method(
  title="cGAN features",
  loss=replaying(draw),
  settings=Settings,
  init_stats=_init_stats,
  stats=_stats,
  grow_stats=keeping("cgan_width"),
  **REPLAYS_FEATURES,
)
