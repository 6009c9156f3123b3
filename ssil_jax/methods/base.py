"""What a class-incremental method is: a NamedTuple of pure functions.

The loop, the loader and the evaluator know this contract and no method's name. Functions
of a batch run on the devices, functions of a `Moment` on the host between two phases of
training; all take the run's `Config` last.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ssil_jax.config import Config
from ssil_jax.memory import Memory
from ssil_jax.resnet import Outputs, unit
from ssil_jax.sampling import Pool, Sampling
from ssil_jax.schedule import Phase


class SeenClasses(NamedTuple):
  """Where the classes stand in a state; traced int32 scalars."""

  num_old: jax.Array
  num_seen: jax.Array
  num_taught: jax.Array  # the teacher knows the classes [0, num_taught); 0 for no teacher


class Given(NamedTuple):
  """What a phase starts with and does not change."""

  classes: SeenClasses
  # {"params", "batch_stats"} of the network as it was, None if the method has no teacher.
  teacher: Any
  stats: Any  # the method's statistics, as `Method.stats` left them


class Examples(NamedTuple):
  """A device's share of a training batch, and what the networks say of it."""

  labels: jax.Array  # int32 [B]
  positions: jax.Array  # int32 [B], places in the global batch
  records: jax.Array  # int32 [B], of the training split
  outputs: Outputs  # of the network in training
  teacher: Outputs | None  # zeros while there is no old class
  given: Given
  class_counts: jax.Array  # float32 [C], samples of each class in the global batch
  state_of_class: np.ndarray  # int32 [C], which state (from 0) introduced each class


# (Outputs, labels int32 [B], Given, Config) -> pytree of [B, ...], one entry an image.
Measure = Callable[[Outputs, jax.Array, Given, Config], Any]


class Survey(Protocol):
  """Looks at images, not augmented, with the network and what it was given."""

  def __call__(self, records: np.ndarray, measure: Measure, *, test: bool = False) -> Any:
    """The measure of each record (at least one) of the training or the test split.

    Returns host arrays [n, ...].
    """


class Moment(NamedTuple):
  """A state at its end; host arrays."""

  num_first: int  # classes of the first state
  num_old: int
  num_seen: int
  pool: Pool  # what the state trained on
  labels: np.ndarray  # int32 [N], of all training records
  test_labels: np.ndarray  # int32
  memory: Memory  # the exemplars that are kept from now on
  stats: Any  # as the state before left them
  survey: Survey


class Sizes(NamedTuple):
  """What the shapes of a method's statistics may depend on."""

  num_classes: int
  num_features: int
  num_records: int  # of the training split
  memory_size: int


def mask_unseen(outputs: Outputs, given: Given, config: Config) -> jax.Array:
  """float32 [B, C]: the logits, -inf for classes not seen yet. Equation (1)."""
  del config
  seen = jnp.arange(outputs.logits.shape[-1])[None, :] < given.classes.num_seen
  return jnp.where(seen, outputs.logits, -jnp.inf)


def normalized_features(
  outputs: Outputs, labels: jax.Array, given: Given, config: Config
) -> jax.Array:
  """float32 [B, d], of length 1: a `Measure`."""
  del labels, given, config
  return unit(outputs.features, axis=-1)


def distil(
  distance: Callable[..., jax.Array], examples: Examples, config: Config
) -> jax.Array:
  """float32 [B]: a task-wise distance of `losses` between teacher and network."""
  return distance(
    examples.outputs.logits,
    examples.teacher.logits,
    examples.state_of_class,
    examples.given.classes.num_taught,
    temperature=config.temperature,
  )


class Method(NamedTuple):
  """A method of class-incremental learning.

  Attributes:
    title: its name in tables and figures.
    phases: (config, t) -> how state t, counted from 1, is trained.
    loss: (examples, config) -> float32 [B]; training minimizes the mean over the batch.
    defaults: Config field -> the value that its paper gives it.
    fixed: Config field -> the value that it has in this method whatever the flags say.
    settings: Config fields that not every method reads, but this one does.
    predict: (outputs, given, config) -> float32 [B, C], whose largest entry is the
      prediction; -inf for classes not seen yet.
    has_teacher: whether the loss compares with the network as it was.
    cosine_head: whether the network ends in cosines (see `ResNet18`).
    project: (params, params before the step, given) -> params, after every step.
    align: (params, num_old, num_seen) -> params, host arrays, at the end of a state.
    init_stats: Sizes -> the statistics before the first state, host arrays.
    stats: (moment, config) -> the statistics from this state on; shapes must stay.
    describe: (moment, with the new statistics, config) -> numbers for results.json; null
      there if not finite, or beyond 1e30.
    trains_as: the method whose training, in every state, is also this one's.
    plain_first_state: whether the first state is one phase of plain softmax training.
  """

  title: str
  phases: Callable[[Config, int], tuple[Phase, ...]]
  loss: Callable[[Examples, Config], jax.Array]
  defaults: Mapping[str, Any] = MappingProxyType({})
  fixed: Mapping[str, Any] = MappingProxyType({})
  settings: tuple[str, ...] = ()
  predict: Callable[[Outputs, Given, Config], jax.Array] = mask_unseen
  has_teacher: bool = False
  cosine_head: bool = False
  project: Callable[[Any, Any, Given], Any] = lambda params, before, given: params
  align: Callable[[Any, int, int], Any] | None = None
  init_stats: Callable[[Sizes], Any] = lambda sizes: {}
  stats: Callable[[Moment, Config], Any] = lambda moment, config: moment.stats
  describe: Callable[[Moment, Config], dict[str, float]] = lambda moment, config: {}
  trains_as: str | None = None
  plain_first_state: bool = True


def one_phase(config: Config, t: int, sampling: Sampling) -> tuple[Phase, ...]:
  """A state in one phase: it starts at learning_rate / t in the paper (section 6.2)."""
  first = t == 1
  return (
    Phase(
      sampling=sampling,
      epochs=config.epochs_first if first else config.epochs,
      learning_rate=state_learning_rate(config, t),
      milestones=config.milestones_first if first else config.milestones,
      drop=config.learning_rate_drop,
    ),
  )


def state_learning_rate(config: Config, t: int) -> float:
  """The learning rate at the start of state t."""
  divisor = {"inverse": t, "constant": 1}[config.learning_rate_by_state]
  return config.learning_rate / divisor
