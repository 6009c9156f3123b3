"""UCL: uncertainty-based continual learning, which keeps what certain nodes compute.

H. Ahn, S. Cha, D. Lee and T. Moon, *Uncertainty-based Continual Learning with Adaptive
Regularization*, NeurIPS 2019, arXiv:1905.11614. Weights are Gaussian, and all that go into
a node, here a channel, share one sigma. With c = sigma_init / sigma the certainty of a node
at the end of the state before, whose means are mu', a state adds to the mean loss 1 / B of

  (a)  1/2 sum max(c_out, c_in)^2 (mu - mu')^2
  (b)  sum c_out^2 mu'^2 |mu - mu'|
  (c)  beta / 2 sum over nodes of r^2 - log r^2 + sigma^2 - log sigma^2,  r = sigma / sigma'

over all kernels and their nodes; c_out is of the node that a weight goes into, c_in of the
one that it comes from, 0 for pixels. (a) and the first half of (c) come from the KL
divergence that VCL has; (b) holds weights that are large beside their sigma; the second
half of (c) lets sigmas grow again. In the first state, (a) and (b) are 0.

As in the authors' code (csm9493/UCL), B is the images of a batch, and sigma_init^2 is
ratio * 2 / fan_out, its rule for convolutions; beta, ratio and the rate of the sigmas
default to its values for split CIFAR-100. As there, the head, of which each state has
columns of its own, is not Gaussian and has no penalty.

What differs:
- A residual network's channels are sums, which the paper does not speak of: a sum is as
  certain as the surest of the channels that are added.
- Convolutions have no biases, and BatchNorm has offsets and scales for them, which the
  paper's networks have not. An offset counts as its node's bias, with (a) and (b) by the
  node's c, as in the code; a scale, by itself, has (a) alone.
- Means begin as the network's do, and do not leave the share `ratio` of their variance to
  sigma. In the first state, the code holds them to where they began (`alpha`, its weight
  decay); here weight decay does.
- Sigma is exp of what is trained, not log(1 + exp), which is the same where it is small.
- (a) and (b) make proximal steps, see `penalties`; `--penalty_strength` other than 1 weighs
  them. The network is tested with the means, as in the code.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ssil_jax.methods.base import Elastic, Method, zero_in_first_state
from ssil_jax.methods.gaussian import GAUSSIAN, Gaussian
from ssil_jax.methods.penalties import PENALIZED
from ssil_jax.settings import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Gaussian):
  """UCL's own; the strength is of (a) and (b)."""

  sigma_rate: float = setting(
    1e-2, "learning rate of the weights' log standard deviations, by Adam", above=0
  )
  ucl_beta: float = setting(0.002, "weight of the terms of sigma", at_least=0)
  ucl_ratio: float = setting(
    0.125, "share of an initial weight's variance 2 / fan_out that is sigma's", above=0
  )


def kernels(params):
  """Returns path -> kernel [..., in, out], of all layers but the head."""
  return {
    path: leaf
    for path, leaf in flatten_dict(params).items()
    if path[-1] == "kernel" and path[0] != "head"
  }


def initial_log_sigma(shape, config):
  """Returns that of the nodes of a kernel of this shape, a number."""
  fan_out = math.prod(shape) / shape[-2]
  return math.log(2 * config.method_settings.ucl_ratio / fan_out) / 2


def certainties(context, config):
  """Returns path of a kernel -> sigma_init / sigma of its nodes, float32 [out]."""
  shapes = {path: kernel.shape for path, kernel in kernels(context.stats["mean"]).items()}
  return {
    path: jnp.exp(initial_log_sigma(shapes[path], config) - log_sigma)
    for path, log_sigma in flatten_dict(context.stats["log_sigma"]).items()
  }


def of_inputs(of_nodes):
  """Returns what belongs to the nodes that each kernel of the network reads, [in] or [1].

  Args:
    of_nodes: path -> at least 0, [out], of the nodes that a kernel writes.
  """
  found, blocks = {}, sorted({path[0] for path in of_nodes if len(path) == 3})
  stem = ("stem_conv", "kernel")
  found[stem], x = jnp.zeros(1), of_nodes[stem]
  for block in blocks:
    first, second, shortcut = (
      (block, name, "kernel") for name in ("conv1", "conv2", "project_conv")
    )
    y = x
    for conv in (first, second):
      if conv in of_nodes:
        found[conv], y = y, of_nodes[conv]
    if shortcut in of_nodes:
      found[shortcut], x = x, of_nodes[shortcut]
    x = jnp.maximum(x, y) if x.shape == y.shape else y
  return found


@zero_in_first_state
def elastic(context, config):
  """Returns (a) and (b) as an `Elastic`."""
  means, of_nodes = flatten_dict(context.stats["mean"]), certainties(context, config)
  quadratic, absolute = {}, {}  # path -> weight
  for path, of_input in of_inputs(of_nodes).items():
    of_node = of_nodes[path]
    quadratic[path] = jnp.maximum(of_node[None], of_input[:, None]) ** 2
    absolute[path] = of_node**2
    *block, conv, _ = path
    norm = *block, conv.replace("conv", "norm")
    if (*norm, "bias") in means:
      quadratic[*norm, "scale"] = of_node**2
      quadratic[*norm, "bias"] = absolute[*norm, "bias"] = of_node**2
  strength = config.method_settings.penalty_strength / config.batch_size_new
  strength *= context.classes.num_old > 0

  def whole(weights):
    return {
      path: strength * jnp.broadcast_to(weights.get(path, jnp.zeros(())), mean.shape)
      for path, mean in means.items()
    }

  stiffness, lasso = whole(quadratic), whole(absolute)
  lasso = {path: weight * means[path] ** 2 for path, weight in lasso.items()}
  return Elastic(*map(unflatten_dict, (stiffness, means, lasso)))


def penalty(params, own, context, config):
  """Returns (c), of all states: float32 []."""

  def of_nodes(log_sigma, before):
    # Written with s = log sigma^2: log r^2 is s - s'.
    s, s_before = 2 * log_sigma, 2 * before
    r = s - s_before
    return jnp.sum(jnp.exp(r) - r + jnp.exp(s) - s)

  sums = jax.tree.map(of_nodes, own, context.stats["log_sigma"])
  beta = config.method_settings.ucl_beta
  return beta / (2 * config.batch_size_new) * jax.tree.reduce(jnp.add, sums)


def _init_stats(sizes):
  """Returns the means, a tree like the parameters, and log sigmas, [out] of each kernel."""
  log_sigma = {
    path: np.full(
      kernel.shape[-1], initial_log_sigma(kernel.shape, sizes.config), np.float32
    )
    for path, kernel in kernels(sizes.params).items()
  }
  return {"mean": sizes.params, "log_sigma": unflatten_dict(log_sigma)}


UCL = Method(
  title="UCL",
  settings=Settings,
  defaults={"epochs": 25},
  penalty=penalty,
  **PENALIZED | GAUSSIAN | {"elastic": elastic, "init_stats": _init_stats},
)
