"""Defines what a method of class-incremental learning is: a NamedTuple of pure functions.

The loop, the loader and the evaluator know this contract and no method's name. Functions
of a batch run on the devices, functions of a `FinishedState` on the host after a state's
training; all take the run's `Config` last, whose `method_settings` are the method's own.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssil_jax.config import Config, milestones_at
from ssil_jax.memory import Memory
from ssil_jax.resnet import Outputs, unit
from ssil_jax.sampling import Pool, Sampling
from ssil_jax.schedule import Phase
from ssil_jax.settings import NoSettings, setting


class SeenClasses(NamedTuple):
  """Says where the classes stand in a state; traced int32 scalars."""

  num_old: jax.Array
  num_seen: jax.Array
  # The teacher knows the classes [0, num_teacher_classes); 0 for no teacher.
  num_teacher_classes: jax.Array


class PhaseContext(NamedTuple):
  """Holds what a phase starts with and does not change."""

  classes: SeenClasses
  # {"params", "batch_stats"} of the network as it was, None if the method has no teacher.
  teacher: Any
  stats: Any  # the method's statistics, as `Method.stats` left them


class Examples(NamedTuple):
  """A device's share of a training batch, and the networks' outputs for it."""

  labels: jax.Array  # int32 [B]
  positions: jax.Array  # int32 [B], places in the global batch
  records: jax.Array  # int32 [B], of the training split
  outputs: Outputs  # of the network in training
  teacher: Outputs | None  # zeros while there is no old class
  context: PhaseContext
  class_counts: jax.Array  # float32 [C], samples of each class in the global batch
  state_of_class: np.ndarray  # int32 [C], which state (from 0) introduced each class


# (Outputs, labels int32 [B], PhaseContext, Config) -> pytree of [B, ...], one an image.
OutputFn = Callable[[Outputs, jax.Array, PhaseContext, Config], Any]


# (records int64 [n], one at least, OutputFn, test=False) -> what the OutputFn returns of
# these records of the training or the test split, not augmented; host arrays [n, ...].
Extract = Callable[..., Any]


class FinishedState(NamedTuple):
  """An incremental state after its training; host arrays."""

  num_first: int  # classes of the first state
  num_old: int
  num_seen: int
  pool: Pool  # what the state trained on
  labels: np.ndarray  # int32 [N], of all training records
  test_labels: np.ndarray  # int32
  memory: Memory  # the exemplars that are kept from now on
  stats: Any  # as the state before left them
  extract: Extract


class Sizes(NamedTuple):
  """Holds what the shapes of a method's statistics may depend on."""

  num_classes: int
  num_features: int
  num_records: int  # of the training split
  memory_size: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation:
  """The own settings of a method that distils."""

  temperature: float = setting(
    2.0, "of softened softmaxes, where the method distils", above=0, changes="later_states"
  )


def mask_unseen(outputs: Outputs, context: PhaseContext, config: Config) -> jax.Array:
  """Returns the logits, float32 [B, C], -inf for classes not seen yet. Equation (1)."""
  seen = jnp.arange(outputs.logits.shape[-1])[None, :] < context.classes.num_seen
  return jnp.where(seen, outputs.logits, -jnp.inf)


def softmax_probabilities(
  scores: jax.Array, context: PhaseContext, config: Config
) -> jax.Array:
  """Returns the softmax of a prediction's scores over the classes seen, float32 [B, C]."""
  return jax.nn.softmax(scores.astype(jnp.float32), axis=-1)


def normalized_features(
  outputs: Outputs, labels: jax.Array, context: PhaseContext, config: Config
) -> jax.Array:
  """Returns features of length 1, float32 [B, d]: an `OutputFn`."""
  return unit(outputs.features, axis=-1)


def all_logits(
  outputs: Outputs, labels: jax.Array, context: PhaseContext, config: Config
) -> jax.Array:
  """Returns the logits of all classes, float32 [B, C]: an `OutputFn`."""
  return outputs.logits


def drops_at(*fractions: str) -> dict[str, Callable[[int], tuple[int, ...]]]:
  """Returns `defaults` with which every state's rate drops at fractions of its epochs."""

  def milestones(epochs: int) -> tuple[int, ...]:
    return milestones_at(epochs, *fractions)

  return {"milestones_first": milestones, "milestones": milestones}


Loss = Callable[[Examples, Config], jax.Array]


def softmax_in_first_state(loss: Loss) -> Loss:
  """Marks a loss that equals the plain softmax cross-entropy while no class is old.

  Methods with such a loss may take their first state from each other (`--from_workdir`).
  The mark belongs to the function: a method with another loss does not inherit it.
  """
  loss.softmax_in_first_state = True
  return loss


def with_distillation(loss: Loss, distance: Callable[..., jax.Array]) -> Loss:
  """Returns a loss plus a task-wise distance of `losses` between teacher and network.

  Its settings are `Distillation`. Without a teacher it is the loss, whose mark it keeps.
  """

  @functools.wraps(loss)
  def distilled(examples: Examples, config: Config) -> jax.Array:
    return loss(examples, config) + distance(
      examples.outputs.logits,
      examples.teacher.logits,
      examples.state_of_class,
      examples.context.classes.num_teacher_classes,
      temperature=config.method_settings.temperature,
    )

  return distilled


def _keep(params: Any, before: Any, context: PhaseContext) -> Any:
  return params


def into_corner(array: np.ndarray, fresh: np.ndarray) -> np.ndarray:
  """Returns `fresh` with `array`, which is no larger, in place of its first entries."""
  grown = np.array(fresh)
  grown[tuple(map(slice, np.shape(array)))] = array
  return grown


def _grow_by_classes(stats: Any, fresh: Any, kept: np.ndarray) -> Any:
  return jax.tree.map(into_corner, stats, fresh)


class Method(NamedTuple):
  """A method of class-incremental learning.

  Attributes:
    title: its name in tables and figures.
    phases: (config, t) -> how state t, counted from 1, is trained.
    loss: (examples, config) -> float32 [B]; training minimizes the mean over the batch.
    settings: frozen dataclass of its own settings, each declared by `config.setting`.
    defaults: name of a shared setting -> the value that its paper gives it.
    fixed: name of a shared setting -> the value it has in this method whatever is given.
    predict: (outputs, context, config) -> float32 [B, C], whose largest entry is the
      prediction; -inf for classes not seen yet.
    probabilities: (scores of `predict`, context, config) -> float32 [B, C], in the same
      order as the scores, 0 for classes not seen; rows sum to 1.
    prediction: how both are made of the network's features and logits and of the
      statistics, in words, for programs that cannot call them; none are needed where both
      are the default.
    fold: (head, statistics) -> a linear head, {"kernel": [d, C], "bias": [C]}, whose logits
      are the scores of `predict`, if that has statistics and is linear.
    has_teacher: whether the loss compares with the network as it was.
    fewest_new: classes that a later state must have for the loss to teach them.
    cosine_head: whether the network ends in cosines (see `ResNet18`).
    project: (params, params before the step, context) -> params, after every step.
    align: (params, num_old, num_seen) -> params, host arrays, at the end of a state.
    init_stats: Sizes -> the statistics before the first state, host arrays.
    stats: (state, config) -> the statistics from this state on; shapes must stay.
    grow_stats: (statistics, those of `init_stats` for more classes, int64 [m]) -> the
      statistics with which classes are added to a trained model. The numbers are those of
      the exemplars, which are records 0, 1, ... from now on, in the memory that `stats` got
      last, in its order; -1 for one that was not there. By default entries of new classes
      start as in `init_stats`.
    describe: (state, with the new statistics, config) -> numbers for results.json; null
      there if not finite, or beyond 1e30.
    trains_as: the method, by its `--method`, with which it shares all of training.
  """

  title: str
  phases: Callable[[Config, int], tuple[Phase, ...]]
  loss: Loss
  settings: type = NoSettings
  defaults: Mapping[str, Any] = MappingProxyType({})
  fixed: Mapping[str, Any] = MappingProxyType({})
  predict: Callable[[Outputs, PhaseContext, Config], jax.Array] = mask_unseen
  probabilities: Callable[[jax.Array, PhaseContext, Config], jax.Array] = (
    softmax_probabilities
  )
  prediction: str = ""
  fold: Callable[[Any, Any], Any] | None = None
  has_teacher: bool = False
  fewest_new: int = 1
  cosine_head: bool = False
  project: Callable[[Any, Any, PhaseContext], Any] = _keep
  align: Callable[[Any, int, int], Any] | None = None
  init_stats: Callable[[Sizes], Any] = lambda sizes: {}
  stats: Callable[[FinishedState, Config], Any] = lambda state, config: state.stats
  grow_stats: Callable[[Any, Any, np.ndarray], Any] = _grow_by_classes
  describe: Callable[[FinishedState, Config], dict[str, float]] = lambda state, config: {}
  trains_as: str | None = None

  @property
  def training(self) -> tuple:
    """All that the parameters depend on, but for settings and data."""
    return (
      self.phases,
      self.loss,
      self.has_teacher,
      self.cosine_head,
      self.project,
      self.align,
    )

  @property
  def steps_like_softmax_first(self) -> bool:
    """Says whether the steps of its first state are those of plain softmax training."""
    return (
      getattr(self.loss, "softmax_in_first_state", False)
      and not self.cosine_head
      and self.project is _keep
      and self.align is None
    )


def one_phase(config: Config, t: int, sampling: Sampling) -> tuple[Phase, ...]:
  """Returns a state in one phase, which starts at learning_rate / t (section 6.2)."""
  first = t == 1
  divisor = {"inverse": t, "constant": 1}[config.learning_rate_by_state]
  return (
    Phase(
      sampling=sampling,
      epochs=config.epochs_first if first else config.epochs,
      learning_rate=config.learning_rate / divisor,
      milestones=config.milestones_first if first else config.milestones,
      drop=config.learning_rate_drop,
    ),
  )
