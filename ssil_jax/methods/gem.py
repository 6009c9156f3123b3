"""GEM: steps that do not raise the loss on the exemplars of any earlier state.

D. Lopez-Paz and M. Ranzato, *Gradient Episodic Memory for Continual Learning*, NeurIPS
2017, arXiv:1706.08840. With g the gradient on new images and g_k that on the exemplars of
state k, the step takes g, or where some <g, g_k> < 0 the nearest vector z with
<z, g_k> >= 0 for all k. By the dual of that quadratic programme, with as many unknowns as
earlier states, it is z = g + sum_k v_k g_k, where v minimizes
sum_jk v_j v_k <g_j, g_k> / 2 + sum_k v_k <g_k, g> with all v_k >= 0. As in the released
code, v_k is at least `--gem_margin`, and 0.001 is added to each <g_k, g_k>.

Differences: the original takes the gradients of whole memories, one pass for each; here
they are those of the batch's exemplars, and a state that has none in it does not constrain
the step. All parts go through the network together, and share BatchNorm's statistics. The
softmax is over all classes seen, where the original has a head for each state. What is
projected is the gradient, to which weight decay and momentum are added afterwards. Epochs
and learning rates are those of SS-IL; the original sees each image once.

A step holds a gradient for each state of the run, and takes as many backward passes.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ssil_jax.methods.agem import inner_products, mean_over
from ssil_jax.methods.base import Method, one_phase
from ssil_jax.methods.ft import softmax_loss
from ssil_jax.sampling import RATIO_PRESERVING
from ssil_jax.settings import setting

_RIDGE = 1e-3
_CHANCES = 3  # rounds without progress before the last wrong guess alone is changed
_MOST_GUESSES = 1_000  # so that rounding errors cannot go round in circles


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """GEM's own."""

  gem_margin: float = setting(
    0.5,
    "least weight of each earlier state's gradient in a step that is corrected",
    at_least=0,
    changes="later_states",
  )


def new_and_states(examples, config):
  """Returns the parts of GEM, float32 [T, B]: means over new images, over earlier states.

  The latter are states 1 to T - 1, and a state that is not old, or has no image in the
  batch, has weights of 0.
  """
  num_old, counts = examples.context.classes.num_old, examples.class_counts
  num_states = int(examples.state_of_class.max()) + 1
  # New classes are part 0, those of state k are part k.
  part_of_class = jnp.where(
    jnp.arange(len(counts)) < num_old, jnp.asarray(examples.state_of_class) + 1, 0
  )
  parts = jnp.arange(num_states)[:, None]
  is_of_part = part_of_class[None, :] == parts
  totals = jnp.sum(counts[None, :], axis=1, keepdims=True, where=is_of_part)
  return mean_over(is_of_part[:, examples.labels], totals)


def least_weights(gram, overlaps, margin):
  """Solves GEM's dual: returns the v >= margin that minimizes v' gram v / 2 + v' overlaps.

  By block principal pivoting (J. Portugal, J. Judice and L. Vicente, *Mathematics of
  Computation* 63, 1994): guesses which v_k are above the margin, solves for them, and
  changes all wrong guesses, or the last one alone where that has not helped. It ends with
  the exact solution, but for rounding, after finitely many guesses, most often a few.

  Args:
    gram: float32 [K, K], positive definite.
    overlaps: float32 [K].
    margin: the least v_k.

  Returns:
    float32 [K].
  """
  size = len(overlaps)
  scale = jnp.maximum(jnp.max(jnp.abs(gram)), jnp.finfo(jnp.float32).tiny)
  gram, slope = gram / scale, (overlaps + margin * jnp.sum(gram, axis=1)) / scale
  rounding = size * jnp.finfo(jnp.float32).eps

  # Of u = v - margin, none may be below 0, nor may the slope be where u is 0.
  def solve(is_free):
    both = is_free[:, None] & is_free[None, :]
    u = jnp.linalg.solve(
      jnp.where(both, gram, jnp.eye(size)), jnp.where(is_free, -slope, 0)
    )
    rest = jnp.matmul(gram, u, precision="highest") + slope
    slack = rounding * (jnp.matmul(jnp.abs(gram), jnp.abs(u)) + jnp.abs(slope))
    return u, jnp.where(is_free, u < 0, rest < -slack)

  def is_wrong(guess):
    _, _, wrong, _, _, tries = guess
    return jnp.any(wrong) & (tries < _MOST_GUESSES)

  def improve(guess):
    is_free, _, wrong, fewest, chances, tries = guess
    count = jnp.sum(wrong)
    is_better = count < fewest
    chances = jnp.where(is_better, _CHANCES, chances - 1)
    last = jnp.arange(size) == size - 1 - jnp.argmax(wrong[::-1])
    is_free ^= jnp.where(is_better | (chances >= 0), wrong, last)
    u, wrong = solve(is_free)
    return is_free, u, wrong, jnp.minimum(count, fewest), chances, tries + 1

  none = jnp.zeros(size, bool)
  start = (none, *solve(none), jnp.int32(size + 1), jnp.int32(_CHANCES), jnp.int32(0))
  _, u, *_ = jax.lax.while_loop(is_wrong, improve, start)
  return jnp.maximum(u, 0) + margin


def constrain(grads, context, config):
  """Returns g, or the nearest vector that raises no earlier state's loss.

  Args:
    grads: a tree like the parameters, [T, ...]: g, then those of states 1 to T - 1.
    context: of the phase.
    config: of the run.
  """
  products = inner_products(grads)
  gram, overlaps = products[1:, 1:], products[1:, 0]
  if not len(overlaps):
    return jax.tree.map(lambda g: g[0], grads)
  is_there = jnp.diag(gram) > 0
  v = least_weights(
    gram + jnp.diag(jnp.where(is_there, _RIDGE, 1.0)),
    overlaps,
    config.method_settings.gem_margin,
  )
  v = jnp.where(is_there & jnp.any(overlaps < 0), v, 0.0)
  return jax.tree.map(lambda g: g[0] + jnp.tensordot(v, g[1:], 1), grads)


GEM = Method(
  title="GEM",
  phases=lambda config, t: one_phase(config, t, RATIO_PRESERVING),
  loss=softmax_loss,
  settings=Settings,
  defaults={"epochs": 20},
  parts=new_and_states,
  combine=constrain,
)
