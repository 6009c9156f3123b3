"""VCL: variational continual learning, with the last posterior as the prior of a state.

C. Nguyen, Y. Li, T. Bui and R. Turner, *Variational Continual Learning*, ICLR 2018,
arXiv:1710.10628. Weights are Gaussian, each by itself (mean field). A state minimizes the
expected cross-entropy of an image, and KL(q || p) / N, with q the Gaussians in training, p
those at the end of the state before, and N the state's training images:

  KL = sum_i log(sigma0_i / sigma_i) + (sigma_i^2 + (mu_i - mu0_i)^2) / (2 sigma0_i^2) - 1/2

p is N(0, `--vcl_prior_sigma`) for weights that no state has trained: all of them in the
first state, and the head's columns of new classes. q begins with the network's usual means
and with `--vcl_initial_sigma`; both defaults are those of the authors' code.

By default the head alone is Gaussian. Without exemplars, that is plain training with noise:
columns of old classes get no gradient anyway, and nothing keeps the features. What a method
of continual learning needs is `--vcl_layers=all`: every kernel, and the head's bias, is
Gaussian. BatchNorm's scales and offsets, which the paper's networks have not, stay points
without a prior, and its running statistics are those of networks that were drawn.

What differs from the paper:
- The network is tested with the means, not with the mean prediction of 100 that are drawn.
- One network is drawn in a step, for the whole batch; ten in the authors' code.
- Coresets: the paper keeps exemplars out of training, and before each test fine-tunes a
  copy on all of them. Here, without `--replay`, there are none; with it, exemplars are
  trained on in every state beside the new images, and count in N again, though the prior
  has seen them already.
- KL's part of the means makes proximal steps, see `penalties`; the sigmas have an optimizer
  of their own. Weight decay, which the paper has not, is as in other methods.
- `--penalty_strength` other than 1 weighs the KL.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ssil_jax.errors import ConfigError
from ssil_jax.methods.base import Elastic, Method, into_corner
from ssil_jax.methods.gaussian import GAUSSIAN, Gaussian, replaced
from ssil_jax.methods.penalties import PENALIZED
from ssil_jax.settings import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Gaussian):
  """VCL's own."""

  penalty_strength: float = setting(1.0, "weight of the KL divergence", at_least=0)
  vcl_layers: str = setting(
    "head", "whose weights are Gaussian; others are points", choices=("head", "all")
  )
  vcl_prior_sigma: float = setting(
    1.0, "standard deviation of the prior of weights not trained before", above=0
  )
  vcl_initial_sigma: float = setting(
    0.05, "standard deviation that the posterior of such weights begins with", above=0
  )


def gaussian_part(params, config):
  """Returns path -> leaf, of the parameters that are Gaussian: kernels, and their biases.

  They are the head's, or those of all layers.
  """
  leaves = flatten_dict(params)
  everywhere = config.method_settings.vcl_layers == "all"
  return {
    path: leaf
    for path, leaf in leaves.items()
    if (*path[:-1], "kernel") in leaves and (everywhere or path[0] == "head")
  }


def _init_stats(sizes):
  """Returns the means, a tree like the parameters, and log sigmas, a part of one."""
  log_sigma = {
    path: np.full_like(leaf, math.log(sizes.config.method_settings.vcl_initial_sigma))
    for path, leaf in gaussian_part(sizes.params, sizes.config).items()
  }
  return {"mean": sizes.params, "log_sigma": unflatten_dict(log_sigma)}


def prior(context, config):
  """Returns path -> (mean, log sigma, bool whether it counts), of each Gaussian weight.

  Weights of classes not seen yet do not count. Arrays, or numbers, whose shapes broadcast.
  """
  classes, found = context.classes, {}
  means = flatten_dict(context.stats["mean"])
  first = math.log(config.method_settings.vcl_prior_sigma)
  for path, log_sigma in flatten_dict(context.stats["log_sigma"]).items():
    known, counts = classes.num_old > 0, True
    if path[0] == "head":
      column = jnp.broadcast_to(jnp.arange(log_sigma.shape[-1]), log_sigma.shape)
      known, counts = column < classes.num_old, column < classes.num_seen
    mean = jnp.where(known, means[path], 0)
    found[path] = mean, jnp.where(known, log_sigma, first), counts
  return found


def _per_image(context, config):
  """Returns what the KL is multiplied by."""
  return config.method_settings.penalty_strength / jnp.sum(context.class_images)


def elastic(context, config):
  """Returns the KL's part of the means, whose stiffness is 1 / (sigma0^2 N)."""
  anchor = context.stats["mean"]
  scale, before = _per_image(context, config), prior(context, config)
  stiffness = {
    path: jnp.broadcast_to(counts * scale * jnp.exp(-2 * log_sigma), mean.shape)
    for path, (mean, log_sigma, counts) in before.items()
  }
  return Elastic(
    replaced(jax.tree.map(jnp.zeros_like, anchor), stiffness),
    replaced(anchor, {path: mean for path, (mean, _, _) in before.items()}),
  )


def penalty(params, own, context, config):
  """Returns the rest of KL / N, of the standard deviations: float32 []."""
  total, log_sigmas = jnp.zeros(()), flatten_dict(own)
  for path, (_, before, counts) in prior(context, config).items():
    # Of a weight as it was, exactly 0, and so is its gradient.
    change = log_sigmas[path] - before
    total += jnp.sum(counts * (jnp.expm1(2 * change) / 2 - change))
  return _per_image(context, config) * total


def _grow(stats, fresh, kept):
  if jax.tree.structure(stats) != jax.tree.structure(fresh):
    raise ConfigError(
      "--vcl_layers has another value in the states that the model has learnt, which have "
      "deviations of other layers: leave the flag out"
    )
  return jax.tree.map(into_corner, stats, fresh)


VCL = Method(
  title="VCL",
  settings=Settings,
  defaults={"epochs": 25},
  penalty=penalty,
  grow_stats=_grow,
  **PENALIZED | GAUSSIAN | {"elastic": elastic, "init_stats": _init_stats},
)
