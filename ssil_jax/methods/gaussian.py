"""Defines weights that are Gaussian, each by itself, which VCL and UCL share.

The network's parameters are the means, the method's own are logarithms of the standard
deviations. Each step trains with weights drawn once for the whole batch, the same on all
devices: w = mean + sigma * epsilon, so that the gradient flows to both. The network is
tested with the means.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from ssil_jax.methods.penalties import Penalized
from ssil_jax.settings import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gaussian(Penalized):
  """The own settings of a method with Gaussian weights."""

  sigma_rate: float = setting(
    1e-3, "learning rate of the weights' log standard deviations, by Adam", above=0
  )


def own_rate(config):
  """Returns the rate of Adam, by which both papers' code trains the deviations."""
  return config.method_settings.sigma_rate


def replaced(params, leaves):
  """Returns the parameters, nested dictionaries, with some leaves replaced.

  Args:
    params: a tree.
    leaves: path -> leaf.
  """
  return unflatten_dict(flatten_dict(params) | leaves)


def noise(key, shape):
  """Returns float32 of N(0, 1), drawn for each place of the last axis by itself.

  So a class's noise does not depend on how many others the head has.
  """
  *rest, last = shape
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(last))
  return jax.vmap(lambda key: jax.random.normal(key, rest), out_axes=-1)(keys)


def weights(params, own, key, context, config):
  """Returns weights drawn around the parameters: a `Method.weights`.

  Args:
    params: of the network, the means.
    own: a part of a tree like these, of log standard deviations, which broadcast.
    key: of the step.
    context: of the phase.
    config: of the run.
  """
  means, drawn = flatten_dict(params), {}
  for number, (path, log_sigma) in enumerate(sorted(flatten_dict(own).items())):
    mean = means[path]
    sigma = jnp.broadcast_to(jnp.exp(log_sigma), mean.shape)
    drawn[path] = mean + sigma * noise(jax.random.fold_in(key, number), mean.shape)
  return replaced(params, drawn)


# Fields of a `Method` with Gaussian weights; the last state's are the next one's prior.
GAUSSIAN = {
  "init_own": lambda params, stats, config: stats["log_sigma"],
  "own_rate": own_rate,
  "weights": weights,
  "stats": lambda state, config: {"mean": state.params, "log_sigma": state.own},
}
