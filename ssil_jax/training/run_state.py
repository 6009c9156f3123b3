"""The state of a run: everything that a checkpoint holds."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import numpy as np
import optax

from ssil_jax.config import Config
from ssil_jax.memory import Memory
from ssil_jax.methods.base import Method

METRICS = ("loss", "top1")  # of a step, in this order in a checkpoint
NO_STEPS = np.zeros((0, len(METRICS)), np.float32)


@flax.struct.dataclass
class TrainState:
  """Holds what a training step changes."""

  step: jax.Array  # int32 [], steps done in the whole run
  params: Any
  batch_stats: Any
  opt_state: optax.OptState
  # Of the method, in a state; see `Method.carry` and `Method.init_own`.
  carried: Any = flax.struct.field(default_factory=dict)
  own: Any = flax.struct.field(default_factory=dict)
  own_opt_state: optax.OptState = optax.EmptyState()


def own_optimizer(method: Method, config: Config) -> optax.GradientTransformation:
  """Returns what trains the method's own parameters: Adam, if it has any."""
  if method.own_rate is None:
    return optax.identity()
  return optax.adam(method.own_rate(config))


def with_own(
  train_state: TrainState, method: Method, stats: Any, config: Config
) -> TrainState:
  """Returns it with what is the method's own, as a state begins; host arrays in and out."""
  own = method.init_own(train_state.params, stats, config)
  # By its shapes alone, for which nothing is compiled: Adam starts with zeros.
  own_opt_state = jax.tree.map(
    lambda like: np.zeros(like.shape, like.dtype),
    jax.eval_shape(own_optimizer(method, config).init, own),
  )
  return train_state.replace(
    carried=method.init_carried(train_state.params), own=own, own_opt_state=own_opt_state
  )


class Position(NamedTuple):
  """A place within an incremental state, and what is fixed there; host arrays."""

  new_ranks: np.ndarray  # of the state's pool
  phase: int = 0  # the phase begun last
  steps_done: int = 0  # of that phase, perhaps all
  teacher: Any = None  # as in `PhaseContext`, in that phase
  num_teacher_classes: int = 0  # the same
  expert: Any = None  # as in `PhaseContext`, from one phase of the state on
  window: np.ndarray = NO_STEPS  # float32 [k, metrics], last steps not in metrics.jsonl
  seconds: float = 0.0  # trained so far in the state
  spent: Mapping[str, Any] | None = None  # by earlier processes, of a `Stopwatch`


class RunState(NamedTuple):
  """A run between two steps; host arrays."""

  train_state: TrainState
  exemplars: Memory
  stats: Any  # of the method
  results: list[dict[str, Any]]  # of the states done, as in results.json
  position: Position | None = None  # None between two incremental states

  @property
  def number(self) -> int:
    """Returns the number of its checkpoint, which rises with every step and state."""
    return int(self.train_state.step) + len(self.results)
