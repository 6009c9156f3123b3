"""EWC: elastic weight consolidation, a penalty by Fisher information.

J. Kirkpatrick et al., *Overcoming Catastrophic Forgetting in Neural Networks*, PNAS 2017,
arXiv:1612.00796. Equation (3) adds lambda / 2 F_i (theta_i - theta*_i)^2 for each earlier
state, with the parameters theta* and the diagonal F of the Fisher information at its end.
These sums of squares are one: with F = sum_t F_t around the mean of the anchors, weighted
by F_t, they differ by a constant.

With `--ewc_online`, J. Schwarz et al., *Progress & Compress*, ICML 2018, arXiv:1805.06370:
F = decay * F + F_t, around the last parameters alone.

F_t is the mean over new images of the squared gradient of log p(label), each image by
itself, with BatchNorm's running statistics and the softmax that the state is trained by.
Differences: the labels are the images' own, as in most code (the empirical Fisher
information), and not drawn from the network's prediction; `--ewc_images` bounds how many
images there are. FACIL squares gradients of whole batches, by the predicted labels, and
takes (F + F_t) / 2. The default lambda of 5,000 is FACIL's. See also `penalties`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ssil_jax.methods.base import Method
from ssil_jax.methods.penalties import PENALIZED, Penalized, cross_entropy
from ssil_jax.settings import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Penalized):
  """EWC's own; the strength is lambda / 2."""

  penalty_strength: float = setting(
    2500.0,
    "weight of the penalty on parameters that move",
    at_least=0,
    changes="later_states",
  )
  ewc_online: bool = setting(
    False,
    "one penalty around the last parameters, its importance decaying",
    changes="later_states",
  )
  ewc_decay: float = setting(
    0.95,
    "with --ewc_online, of the importance of earlier states",
    at_least=0,
    at_most=1,
    changes="later_states",
  )
  ewc_images: int = setting(
    1000,
    "new images that the Fisher information is taken from, 0 for all",
    at_least=0,
    changes="later_states",
  )


def squared_gradient(network, params, pixels, label, context, config):
  """Returns (d log p(label | image) / d theta)^2 of one image: an `ImageFn`."""

  def minus_log_likelihood(params):
    logits = network(params, pixels).logits
    return cross_entropy(logits, label[None], context.classes, config)[0]

  return jax.tree.map(jnp.square, jax.grad(minus_log_likelihood)(params))


def fisher_information(state, config):
  """Returns its diagonal at the end of a state, a tree like the parameters; host arrays."""
  records, most = state.pool.new, config.method_settings.ewc_images
  if 0 < most < len(records):  # evenly spread
    chosen = np.linspace(0, len(records), most, endpoint=False).astype(np.int64)
    records = records[chosen]
  total = state.total(records, squared_gradient, state.params)
  return jax.tree.map(lambda x: np.asarray(x / len(records), np.float32), total)


def weighted_mean(importance, anchor, more, params):
  """Returns the anchor of two penalties as one, (F a + F' a') / (F + F').

  It is a' where both F are 0. Arguments are arrays of one shape: F, a, F' and a'.
  """
  total = importance + more
  share = np.divide(more, total, out=np.ones_like(total), where=total > 0)
  return anchor + share * (params - anchor)


def _stats(state, config):
  own, before = config.method_settings, state.stats
  more = fisher_information(state, config)
  if own.ewc_online:
    importance = jax.tree.map(
      lambda f, g: np.float32(own.ewc_decay) * f + g, before["importance"], more
    )
    return {"importance": importance, "anchor": state.params}
  anchor = jax.tree.map(
    weighted_mean, before["importance"], before["anchor"], more, state.params
  )
  return {"importance": jax.tree.map(np.add, before["importance"], more), "anchor": anchor}


EWC = Method(
  title="EWC", settings=Settings, defaults={"epochs": 25}, stats=_stats, **PENALIZED
)
