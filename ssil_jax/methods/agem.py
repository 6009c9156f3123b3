"""A-GEM: steps that do not raise the loss on a batch of exemplars, to first order.

A. Chaudhry, M. Ranzato, M. Rohrbach and M. Elhoseiny, *Efficient Lifelong Learning with
A-GEM*, ICLR 2019, arXiv:1812.00420. With g the gradient on the new images and g_ref that on
the exemplars of the batch, the step takes g, or where <g, g_ref> < 0 its projection
g - <g, g_ref> / <g_ref, g_ref> g_ref (equation 11).

Exemplars constrain the step and are not learnt from otherwise. Differences: both parts go
through the network together, and share BatchNorm's statistics. The softmax is over all
classes seen, where the original has a head for each state. What is projected is the
gradient, to which weight decay and momentum are added afterwards. Epochs and learning rates
are those of SS-IL; the original sees each image once.
"""

import jax
import jax.numpy as jnp

from ssil_jax.methods.base import Method, one_phase
from ssil_jax.methods.ft import softmax_loss
from ssil_jax.sampling import RATIO_PRESERVING


def inner_products(grads):
  """Returns those of P gradients, float32 [P, P].

  Args:
    grads: a tree of arrays [P, ...].
  """

  def of_leaf(x):
    rows = x.reshape(len(x), -1)
    # Accelerators would round a plain product's inputs.
    return jnp.matmul(rows, rows.T, precision="highest")

  return jax.tree.reduce(jnp.add, jax.tree.map(of_leaf, grads))


def mean_over(chosen, total):
  """Returns weights, float32 [B], that make a mean over `total` samples of all devices."""
  return chosen / jnp.maximum(total, 1)


def new_and_memory(examples, config):
  """Returns the parts of A-GEM, float32 [2, B]: means over new images, over exemplars."""
  num_old, counts = examples.context.classes.num_old, examples.class_counts
  is_old = examples.labels < num_old
  of_old = jnp.sum(counts, where=jnp.arange(len(counts)) < num_old)
  of_new = jnp.sum(counts) - of_old
  return jnp.stack([mean_over(~is_old, of_new), mean_over(is_old, of_old)])


def project(grads, context, config):
  """Returns g, or its projection where it would raise the exemplars' loss; equation (11).

  Args:
    grads: a tree like the parameters, [2, ...]: g and g_ref.
    context: of the phase.
    config: of the run.
  """
  products = inner_products(grads)
  overlap, length = products[0, 1], products[1, 1]
  # Without exemplars g_ref is 0, and so is the overlap.
  factor = jnp.where(overlap < 0, overlap / jnp.where(length > 0, length, 1), 0)
  return jax.tree.map(lambda g: g[0] - factor * g[1], grads)


AGEM = Method(
  title="A-GEM",
  phases=lambda config, t: one_phase(config, t, RATIO_PRESERVING),
  loss=softmax_loss,
  defaults={"epochs": 20},
  parts=new_and_memory,
  combine=project,
)
