"""Defines the replay of old classes' features, which FearNet and the conditional GAN share.

The first state is trained as FT's. From then on everything below the head is fixed, so that
a feature of an old class means the same whenever it is drawn, and later states train the
head alone: on the features of the new images, augmented, and beside each on one that is
drawn for an old class, all old classes alike. No image is stored.

The loss of an image is (new / seen) CE(real feature) + (old / seen) CE(drawn feature), both
by the softmax over all classes seen. So each class counts the same where new ones have as
many images as each other.

The rate is by default not divided by the number of the state: a head over fixed features
is a convex problem, and its classes have no other way to come apart than their columns.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ssil_jax.errors import ConfigError
from ssil_jax.losses import seen_softmax_cross_entropy
from ssil_jax.methods.base import into_corner, one_phase, softmax_in_first_state
from ssil_jax.methods.ft import softmax_loss
from ssil_jax.sampling import NEW_ONLY


def features_themselves(outputs, labels, context, config):
  """Returns the input of the head, float32 [B, d]: an `OutputFn`."""
  return outputs.features


def old_features(draw, keys, context):
  """Draws an old class and a feature of it for each key; class 0 if there is no old one.

  Returns:
    labels int32 [B], features float32 [B, d].
  """
  keys, most = jax.vmap(jax.random.split)(keys), jnp.maximum(context.classes.num_old, 1)
  labels = jax.vmap(lambda key: jax.random.randint(key, (), 0, most))(keys[:, 0])
  return labels, draw(keys[:, 1], labels, context.stats)


def replaying(draw):
  """Returns the loss that trains on drawn features beside real ones.

  Args:
    draw: (random keys [B], labels int32 [B], statistics) -> features of these classes,
      float32 [B, d]. They are finite also where nothing is known of a class.
  """

  @softmax_in_first_state
  def loss(examples, config):
    classes = examples.context.classes
    labels, features = old_features(draw, examples.keys, examples.context)
    of_old = seen_softmax_cross_entropy(
      examples.classify(features), labels, classes.num_seen
    )
    share = classes.num_old / classes.num_seen
    return (1 - share) * softmax_loss(examples, config) + share * of_old

  return loss


def keeping(flag):
  """Returns a `Method.grow_stats` that refuses another value of a setting of sizes."""

  def grow_stats(stats, fresh, kept):
    sizes = [jax.tree.map(lambda leaf: np.shape(leaf)[1:], tree) for tree in (stats, fresh)]
    if sizes[0] != sizes[1]:  # but for the classes, which come first
      raise ConfigError(
        f"--{flag} has another value in the states that the model has learnt, whose "
        "statistics have their sizes from it: leave the flag out"
      )
    return jax.tree.map(into_corner, stats, fresh)

  return grow_stats


# Fields of a `Method` that replays features, beside its loss and its statistics.
REPLAYS_FEATURES = {
  "phases": lambda config, t: one_phase(config, t, NEW_ONLY),
  "freezes_features": True,
  "defaults": {"epochs": 25, "learning_rate_by_state": "constant"},
}
