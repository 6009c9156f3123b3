"""DGR: deep generative replay, images of old classes are drawn by a generator.

H. Shin, J. Lee, J. Kim and J. Kim, *Continual Learning with Deep Generative Replay*,
NeurIPS 2017, arXiv:1705.08690. A generator is trained beside the network (the paper's
solver), and both together are a scholar, which teaches the next one: for every image of the
batch, the former generator draws one of an old class, and the former network labels it.
With r the share of new classes among all seen, the network minimizes

  r CE(new image, its label) + (1 - r) CE(drawn image, label by the former network)

(equation 1), each by one softmax over all classes seen, and the new generator learns new
and drawn images in the same proportion. No exemplars are trained on.

Differences: the generator is a conditional variational autoencoder (`generator`) in the
place of a Wasserstein GAN with gradient penalty, for it trains safely beside the network,
in the same steps, without a game between two. It draws each old class equally often, and
the class that it meant does not count: the former network's label does, in training the
generator, too. The paper trains the generator first, and then the solver. Both go on from
where they stood; neither starts anew. New and drawn images pass the network as one batch,
half of each whatever r is, and share BatchNorm's statistics.

What is drawn is blurred, as by any small autoencoder. On photos, generators of this kind
replay little that helps (T. Lesort et al., *Generative Models from the perspective of
Continual Learning*, IJCNN 2019, arXiv:1812.09111).
"""

import dataclasses

import jax
import jax.numpy as jnp

from ssil_jax.errors import ConfigError
from ssil_jax.losses import seen_softmax_cross_entropy
from ssil_jax.methods import generator
from ssil_jax.methods.base import Method, into_corner, one_phase
from ssil_jax.methods.ft import softmax_loss
from ssil_jax.sampling import NEW_ONLY
from ssil_jax.settings import setting

# What an image's key is used for.
_CLASS, _CODE, _OF_NEW, _OF_DRAWN = range(4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """DGR's own."""

  dgr_units: int = setting(400, "units of each hidden layer of the generator", at_least=1)
  dgr_latent: int = setting(8, "length of the generator's code", at_least=1)
  dgr_deviation: float = setting(
    0.2,
    "standard deviation of pixels around what the generator says, in the network's input",
    above=0,
  )
  dgr_rate: float = setting(2e-3, "learning rate of the generator, of Adam", above=0)


def _for(keys, purpose):
  return jax.vmap(jax.random.fold_in, (0, None))(keys, purpose)


def old_label(logits, num_old):
  """Returns the largest logit's class among the old ones, int32 [B]."""
  is_old = jnp.arange(logits.shape[-1])[None, :] < num_old
  return jnp.argmax(jnp.where(is_old, logits, -jnp.inf), axis=-1)


def replay(keys, context, config):
  """Draws an image of a random old class for each key, by the former generator."""

  def draw_class(key):
    return jax.random.randint(key, (), 0, context.classes.num_old)

  labels = jax.vmap(draw_class)(_for(keys, _CLASS))
  return generator.draw(context.stats["generator"], labels, _for(keys, _CODE))


def _loss(examples, config):
  own, classes, replayed = (
    config.method_settings,
    examples.context.classes,
    examples.replayed,
  )

  def of_generator(pixels, labels, purpose):
    keys = _for(examples.keys, purpose)
    return generator.negative_elbo(
      examples.own, pixels, labels, keys, deviation=own.dgr_deviation
    )

  new = softmax_loss(examples, config)
  new += of_generator(examples.pixels, examples.labels, _OF_NEW)
  if replayed is None:
    return new
  labels = old_label(replayed.teacher.logits, classes.num_old)
  drawn = seen_softmax_cross_entropy(replayed.outputs.logits, labels, classes.num_seen)
  drawn += of_generator(replayed.pixels, labels, _OF_DRAWN)
  share = (classes.num_seen - classes.num_old) / classes.num_seen
  return share * new + (1 - share) * drawn


def _init_stats(sizes):
  own = sizes.config.method_settings
  return {
    "generator": generator.init(
      sizes.config.seed,
      image_size=sizes.image_size,
      num_classes=sizes.num_classes,
      num_units=own.dgr_units,
      num_latents=own.dgr_latent,
    )
  }


def _grow(stats, fresh, kept):
  def grown(path, old, new):
    rows = old.shape[0] if path[-1].key == "classes" else new.shape[0]
    if old.shape != (rows, *new.shape[1:]):
      raise ConfigError(
        "--dgr_units, --dgr_latent: a trained generator keeps its size: leave them out"
      )
    return into_corner(old, new)

  return jax.tree_util.tree_map_with_path(grown, stats, fresh)


DGR = Method(
  title="DGR",
  phases=lambda config, t: one_phase(config, t, NEW_ONLY),
  loss=_loss,
  settings=Settings,
  defaults={"epochs": 25},
  has_teacher=True,
  largest_image=64,
  init_own=lambda params, stats, config: stats["generator"],
  own_rate=lambda config: config.method_settings.dgr_rate,
  replay=replay,
  init_stats=_init_stats,
  stats=lambda state, config: {"generator": state.own},
  grow_stats=_grow,
)
