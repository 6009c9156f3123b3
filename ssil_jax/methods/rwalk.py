"""RWalk: Riemannian walk, EWC's importance and one along the path together.

A. Chaudhry, P. Dokania, T. Ajanthan and P. Torr, *Riemannian Walk for Incremental Learning:
Understanding Forgetting and Intransigence*, ECCV 2018, arXiv:1801.10112. The importance is
F_i + s_i, each scaled to a largest entry of 1 (equation 8). F is the Fisher information, a
moving average of squared gradients (equation 6). s is how much each parameter's movement
lowered the loss, over the distance that it went in the metric of F, added up over intervals
of `--rwalk_interval` steps (equation 7):

  s_i = sum over intervals of max(0, sum_steps -gradient_i * step_i)
                              / (F_i movement_i^2 / 2 + epsilon)

with the mean of s_i and that of the states before kept after each state.

As in the first author's code (facebookresearch/agem), F is averaged once an interval, by
the mean of its batches' squared gradients, and epsilon is 0.001. Differences: that code
leaves the 1/2 out, and adds the mean to the former scores where the paper replaces them. F
begins anew with each state here; with the paper's share of 0.9 nothing of the state before
would be left of it after a few intervals. The steps after the last whole interval are one,
too. See also `penalties`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ssil_jax.methods.base import Method
from ssil_jax.methods.penalties import PENALIZED, Penalized, zeros_like
from ssil_jax.methods.penalties import init_stats as penalty_stats
from ssil_jax.methods.si import path_integral
from ssil_jax.settings import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Penalized):
  """RWalk's own."""

  rwalk_share: float = setting(
    0.9,
    "alpha, share of the newest squared gradients in the Fisher information",
    above=0,
    at_most=1,
    changes="later_states",
  )
  rwalk_interval: int = setting(
    50, "steps in an interval of the path", at_least=1, changes="later_states"
  )
  rwalk_damping: float = setting(
    1e-3, "epsilon, added to an interval's distance", above=0, changes="later_states"
  )


def _init_carried(params):
  zeros = zeros_like(params)
  return {
    "fisher": zeros,
    "score": zeros,
    # Of the interval so far.
    "squares": zeros,
    "saved": zeros,
    "begun": params,
    "steps": np.int32(0),
  }


def end_interval(carried, params, own):
  """Returns Fisher information and score at the end of an interval; trees.

  Args:
    carried: what its steps have carried along, one at least.
    params: as they are now.
    own: the settings.
  """
  # Written with operators alone, for arrays of host and device.
  fisher = jax.tree.map(
    lambda f, squares: f + own.rwalk_share * (squares / carried["steps"] - f),
    *(carried["fisher"], carried["squares"]),
  )

  def scored(score, saved, f, begun, ended):
    distance = f * (ended - begun) ** 2 / 2 + own.rwalk_damping
    return score + (saved > 0) * saved / distance

  score = jax.tree.map(
    scored, carried["score"], carried["saved"], fisher, carried["begun"], params
  )
  return {"fisher": fisher, "score": score}


def carry(carried, step, context, config):
  """Returns what is carried along after a step; arguments as `Method.carry`."""
  own = config.method_settings
  carried = carried | {
    "squares": jax.tree.map(lambda s, g: s + g**2, carried["squares"], step.grads),
    "saved": path_integral(carried["saved"], step, context, config),
    "steps": carried["steps"] + 1,
  }
  zeros = jax.tree.map(jnp.zeros_like, carried["saved"])
  next_interval = {
    **end_interval(carried, step.after, own),
    "squares": zeros,
    "saved": zeros,
    "begun": step.after,
    "steps": jnp.int32(0),
  }
  is_over = carried["steps"] == own.rwalk_interval
  return jax.tree.map(lambda new, old: jnp.where(is_over, new, old), next_interval, carried)


def scaled(tree):
  """Returns a tree whose largest entry is 1; one of zeros as it is."""
  largest = max(np.max(leaf) for leaf in jax.tree.leaves(tree))
  return jax.tree.map(lambda x: x / largest, tree) if largest > 0 else tree


def _stats(state, config):
  carried = state.carried
  if carried["steps"]:
    carried = end_interval(carried, state.params, config.method_settings)
  score = carried["score"]
  if state.num_old:
    score = jax.tree.map(lambda new, old: (new + old) / 2, score, state.stats["score"])
  stats = {
    "importance": jax.tree.map(np.add, scaled(carried["fisher"]), scaled(score)),
    "score": score,
    "anchor": state.params,
  }
  return jax.tree.map(np.float32, stats)


RWALK = Method(
  title="RWalk",
  settings=Settings,
  defaults={"epochs": 25},
  init_carried=_init_carried,
  carry=carry,
  stats=_stats,
  **PENALIZED
  | {
    "init_stats": lambda sizes: penalty_stats(sizes) | {"score": zeros_like(sizes.params)}
  },
)
