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
  # {"params", "batch_stats"} of the network as it was, None while there is no teacher.
  teacher: Any
  stats: Any  # the method's statistics, as `Method.stats` left them
  # As `teacher`, of the second one; None while the state has none, see `Phase.new_expert`.
  expert: Any = None
  # None where nothing is trained:
  phase: Any = None  # int32 [], its number in the state, from 0
  class_images: Any = None  # float32 [C], images of each class that it trains on
  seed: Any = None  # uint32 [], the run's: as an argument, so that all seeds share programs


class Replayed(NamedTuple):
  """Images without a label, generated or of `Pool.unlabeled`.

  Generated ones are one for each of the device's share of the batch.
  """

  pixels: jax.Array  # float32 [n, S, S, 3]
  outputs: Outputs  # of the network in training, which saw them beside the batch
  teacher: Outputs | None
  expert: Outputs | None = None


class Examples(NamedTuple):
  """A device's share of a training batch, and the networks' outputs for it."""

  labels: jax.Array  # int32 [B]
  positions: jax.Array  # int32 [B], places in the global batch
  records: jax.Array  # int32 [B], of the training split
  outputs: Outputs  # of the network in training
  teacher: Outputs | None  # zeros until there is one; None if the method has none
  context: PhaseContext
  class_counts: jax.Array  # float32 [C], samples of each class in the global batch
  state_of_class: np.ndarray  # int32 [C], which state (from 0) introduced each class
  pixels: jax.Array  # float32 [B, S, S, 3], augmented and normalized
  keys: jax.Array  # random keys [B], an image's own in this step, on whatever device it is
  classify: Callable[[jax.Array], jax.Array]  # features [n, d] -> logits [n, C] of the head
  own: Any  # the method's own parameters, in training
  replayed: Replayed | None  # None in the first state
  expert: Outputs | None = None  # of the second teacher; None without one
  unlabeled: Replayed | None = None  # where the phase draws such images, see `Sampling`


# (Outputs, labels int32 [B], PhaseContext, Config) -> pytree of [B, ...], one an image.
OutputFn = Callable[[Outputs, jax.Array, PhaseContext, Config], Any]


# (records int64 [n], one at least, OutputFn, test=False) -> what the OutputFn returns of
# these records of the training or the test split, not augmented; host arrays [n, ...].
Extract = Callable[..., Any]


# (network, params, pixels float32 [1, S, S, 3], label int32 [], PhaseContext, Config) ->
# pytree, of one image; `network(params, pixels)` returns its Outputs, with BatchNorm's
# running statistics.
ImageFn = Callable[..., Any]


# (records int64 [n], ImageFn, like) -> the sums of what the ImageFn returns of these
# training records, not augmented; float64 host arrays. `like` has their structure and
# shapes, and the types in which each device adds them up; host arrays, too.
Total = Callable[[np.ndarray, ImageFn, Any], Any]


class Elastic(NamedTuple):
  """The penalty sum_i k_i / 2 (theta_i - a_i)^2 + l_i |theta_i - a_i|.

  Trees like the parameters.
  """

  stiffness: Any  # k: float32, at least 0
  anchor: Any  # a
  lasso: Any = None  # l: float32, at least 0; None for 0


class Step(NamedTuple):
  """A step of training; trees like the network's parameters, the same on all devices.

  `grads` is the gradient of the loss alone over the global batch, combined if it has parts:
  without penalties, weight decay and momentum.
  """

  before: Any
  after: Any
  grads: Any


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
  params: Any  # of the network
  # As the state's last step left them, see `Method.carry` and `Method.init_own`.
  carried: Any
  own: Any
  extract: Extract
  total: Total
  # Raises if the run is to stop; called often by what takes long, in all processes alike.
  check_interrupt: Callable[[], None]


class Sizes(NamedTuple):
  """Holds what the shapes of a method's statistics may depend on."""

  num_classes: int
  num_features: int
  num_records: int  # of the training split
  memory_size: int
  params: Any  # of the network before the first state; host arrays
  image_size: int  # side in pixels
  config: Config


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


def zero_in_first_state(penalty: Callable[..., Any]) -> Callable[..., Any]:
  """Marks a penalty that is 0, with a gradient or stiffness of 0, while no class is old."""
  penalty.zero_in_first_state = True
  return penalty


@zero_in_first_state
def _no_penalty(params: Any, own: Any, context: PhaseContext, config: Config) -> jax.Array:
  return jnp.zeros(())


def _parameters_themselves(
  params: Any, own: Any, key: jax.Array, context: PhaseContext, config: Config
) -> Any:
  return params


def keeps_in_first_state(project: Callable[..., Any]) -> Callable[..., Any]:
  """Marks a projection that returns its parameters as they are while no class is old."""
  project.keeps_in_first_state = True
  return project


def _nothing_of_its_own(params: Any, stats: Any, config: Config) -> Any:
  return {}


@keeps_in_first_state
def _keep(params: Any, before: Any, context: PhaseContext) -> Any:
  return params


def _carry_nothing(carried: Any, step: Step, context: PhaseContext, config: Config) -> Any:
  return carried


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
    fewest_new: config -> classes that a later state must have for the loss to teach them.
    largest_image: the largest side of images that it is made for, in pixels; None for any.
    cosine_head: whether the network ends in cosines (see `ResNet18`).
    num_proxies: weights of each class in a cosine head.
    stage_outputs: whether the network's outputs hold those of its stages.
    penalty: (params, own parameters, context, config) -> float32 [], added to the mean
      loss.
    elastic: (context, config) -> an `Elastic`, added to the mean loss. Unlike that of a
      `penalty`, its steps are stable for any stiffness, see `training.step`.
    parts: (examples, config) -> float32 [P, B], weights of the images' losses in P sums
      over the global batch, in later states; the gradient of each is computed by itself.
      None for the mean. There are none beside parameters of the method's own.
    combine: (gradients, a tree like the parameters with P in front, context, config) -> the
      gradient of the step, if there are parts.
    init_carried: params -> what the steps of a state carry along, as it begins; host arrays
      in and out.
    carry: (carried, `Step`, context, config) -> carried, after every step; the same on all
      devices. Shapes and types must stay. A method that has it takes no states from other
      runs, which do not keep it.
    init_own: (params, statistics, config) -> the method's own parameters, as a state
      begins; host arrays. They are trained beside the network's, by the gradient of the
      same loss, with Adam, which starts anew with every state. What is to outlast the state
      belongs into the statistics. Leaves below a key `head` end in an axis of classes, and
      those of classes not seen yet stay as they are. Methods that have any take no states
      from other runs, as those with `carry`.
    own_rate: config -> their learning rate.
    weights: (params, own parameters, random key of the step, context, config) -> the
      parameters that the network is trained with in this step. It is tested with `params`.
    replay: (keys [B], context, config) -> generated images, float32 [B, S, S, 3], as the
      network sees them, in later states; they run through the network, and the teacher,
      beside the batch. None for none.
    unlabeled_dir: config -> a folder of images that belong to no class, which phases may
      draw (`sampling.with_unlabeled`); "" for none.
    imprint: (params, labels int64 [n] of the new images, () -> their features, float32
      [n, d], of length 1, num_old, config) -> params, host arrays, as a later state begins.
      None for new classes that start at random.
    freezes_features: whether the first state alone trains what is below the head. BatchNorm
      keeps its running statistics then.
    restarts: whether every state begins with the network as it was before the first.
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
  fewest_new: Callable[[Config], int] = lambda config: 1
  largest_image: int | None = None
  cosine_head: bool = False
  num_proxies: int = 1
  stage_outputs: bool = False
  penalty: Callable[[Any, Any, PhaseContext, Config], jax.Array] = _no_penalty
  elastic: Callable[[PhaseContext, Config], Elastic] | None = None
  parts: Callable[[Examples, Config], jax.Array] | None = None
  combine: Callable[[Any, PhaseContext, Config], Any] | None = None
  init_carried: Callable[[Any], Any] = lambda params: {}
  carry: Callable[[Any, Step, PhaseContext, Config], Any] = _carry_nothing
  init_own: Callable[[Any, Any, Config], Any] = _nothing_of_its_own
  own_rate: Callable[[Config], float] | None = None
  weights: Callable[[Any, Any, jax.Array, PhaseContext, Config], Any] = (
    _parameters_themselves
  )
  replay: Callable[[jax.Array, PhaseContext, Config], jax.Array] | None = None
  unlabeled_dir: Callable[[Config], str] = lambda config: ""
  imprint: Callable[..., Any] | None = None
  freezes_features: bool = False
  restarts: bool = False
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
      *self.network.values(),
      self.penalty,
      self.elastic,
      self.parts,
      self.combine,
      self.carry,
      self.init_own,
      self.own_rate,
      self.weights,
      self.replay,
      self.imprint,
      self.freezes_features,
      self.restarts,
      self.project,
      self.align,
    )

  @property
  def network(self) -> dict[str, Any]:
    """Returns attributes of `ResNet18`."""
    names = ("cosine_head", "num_proxies", "stage_outputs")
    return {name: getattr(self, name) for name in names}

  @property
  def has_penalty(self) -> bool:
    """Says whether anything is added to the loss."""
    return self.penalty is not _no_penalty

  @property
  def carries(self) -> bool:
    """Says whether a state's steps leave more than the network."""
    return self.carry is not _carry_nothing or self.init_own is not _nothing_of_its_own

  @property
  def differs_later(self) -> bool:
    """Says whether steps of later states are another program than those of the first."""
    fields = self.replay, self.parts
    return self.freezes_features or any(field is not None for field in fields)

  @property
  def steps_like_softmax_first(self) -> bool:
    """Says whether the steps of its first state are those of plain softmax training."""
    return (
      getattr(self.loss, "softmax_in_first_state", False)
      and not self.cosine_head
      and getattr(self.penalty, "zero_in_first_state", False)
      and (self.elastic is None or getattr(self.elastic, "zero_in_first_state", False))
      and self.init_own is _nothing_of_its_own
      and self.weights is _parameters_themselves
      and getattr(self.project, "keeps_in_first_state", False)
      and self.align is None
    )


def one_phase(config: Config, t: int, sampling: Sampling) -> tuple[Phase, ...]:
  """Returns a state in one phase, which starts at learning_rate / t (section 6.2)."""
  first = t == 1
  divisor = {"inverse": t, "constant": 1}[config.learning_rate_by_state]
  is_cosine = config.learning_rate_schedule == "cosine"
  milestones = config.milestones_first if first else config.milestones
  return (
    Phase(
      sampling=sampling,
      epochs=config.epochs_first if first else config.epochs,
      learning_rate=config.learning_rate / divisor,
      milestones=() if is_cosine else milestones,
      drop=config.learning_rate_drop,
      is_cosine=is_cosine,
    ),
  )
