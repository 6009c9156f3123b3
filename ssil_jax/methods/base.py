"""What a class-incremental method is: a NamedTuple of pure functions.

The loop, the loader and the evaluator know this contract and no method's name.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ssil_jax.config import Config
from ssil_jax.resnet import Outputs
from ssil_jax.sampling import Sampling
from ssil_jax.states import Phase


class SeenClasses(NamedTuple):
  """Where the classes stand in a state; traced int32 scalars."""

  num_old: jax.Array
  num_seen: jax.Array


def mask_unseen(outputs: Outputs, classes: SeenClasses) -> jax.Array:
  """float32 [B, C]: the logits, -inf for classes not seen yet. Equation (1)."""
  seen = jnp.arange(outputs.logits.shape[-1])[None, :] < classes.num_seen
  return jnp.where(seen, outputs.logits, -jnp.inf)


class Method(NamedTuple):
  """A method of class-incremental learning.

  Attributes:
    title: its name in tables and figures.
    defaults: Config field -> the value that its paper gives it.
    phases: (config, t) -> how state t, counted from 1, is trained.
    loss: (outputs, labels int [B], classes) -> float32 [B], one loss per example.
    predict: (outputs, classes) -> float32 [B, C], whose largest entry is the prediction;
      -inf for classes not seen yet.
  """

  title: str
  defaults: Mapping[str, Any]
  phases: Callable[[Config, int], tuple[Phase, ...]]
  loss: Callable[[Outputs, jax.Array, SeenClasses], jax.Array]
  predict: Callable[[Outputs, SeenClasses], jax.Array] = mask_unseen


def one_phase(config: Config, t: int, sampling: Sampling) -> tuple[Phase, ...]:
  """The paper's schedule of a state: it starts at learning_rate / t (section 6.2)."""
  first = t == 1
  return (
    Phase(
      sampling=sampling,
      epochs=config.epochs_first if first else config.epochs,
      learning_rate=config.learning_rate / t,
      milestones=config.milestones_first if first else config.milestones,
      drop=0.1,
    ),
  )
