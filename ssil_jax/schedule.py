"""The incremental states: which classes each one adds and how it is trained. Pure.

Classes are intervals: labels are mapped to their place in the class order when data is
read, so that in any state the old classes are `[0, num_old)` and the new ones
`[num_old, num_seen)`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ssil_jax.config import Config
from ssil_jax.errors import ConfigError
from ssil_jax.sampling import Pool, Sampling

_NONE = np.zeros(0, np.int64)


class Phase(NamedTuple):
  """A stretch of training with one way to draw batches and one learning-rate schedule.

  A method declares the first fields; the others are `counted` once the data are known.
  """

  sampling: Sampling
  epochs: int  # 0 for a state that the method does not train
  learning_rate: float
  milestones: tuple[int, ...]  # epochs done when the rate is multiplied by `drop`
  drop: float
  # The network as it is when the phase starts becomes the teacher, and the exemplar
  # selection ranks the new records by it.
  new_teacher: bool = False
  # The network as it is when the phase starts becomes the expert, a second teacher.
  new_expert: bool = False
  # The phase goes on from the teacher's network, which there must be, without momentum.
  starts_from_teacher: bool = False
  is_cosine: bool = False  # the rate falls along half a cosine, and not at milestones
  number: int = 0  # in its state, from 0
  num_new: int = 0  # images of the new classes that it trains on
  num_replayed: int = 0  # of the old classes
  epoch_size: int = 0  # training images that an epoch goes through
  group_sizes: tuple[int, ...] = ()  # samples of each kind in a batch
  steps_per_epoch: int = 0

  @property
  def labeled_sizes(self) -> tuple[int, ...]:
    """Samples of each kind in a batch, without those that have no label."""
    return self.group_sizes[: -1 if self.sampling.draws_unlabeled else None]

  @property
  def batch_size(self) -> int:
    return sum(self.group_sizes)

  @property
  def num_steps(self) -> int:
    return self.epochs * self.steps_per_epoch

  @property
  def num_images(self) -> int:
    """Images that all steps see, repetitions counted."""
    return self.num_steps * self.batch_size

  def learning_rate_at(self, epoch: int) -> float:
    """Returns the learning rate of an epoch, counted from 0."""
    if self.is_cosine:
      return self.learning_rate * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
    return self.learning_rate * self.drop ** sum(epoch >= m for m in self.milestones)

  def counted(
    self, number: int, pool: Pool, batch_size_new: int, batch_size_memory: int
  ) -> "Phase":
    """Returns the phase with its number in its state, and its images and steps counted.

    Args:
      number: from 0.
      pool: of its state, whose new records are `arange(len(pool.new))`, and no others are
        smaller.
      batch_size_new: N_D.
      batch_size_memory: N_M.
    """
    is_new = (self.sampling.records(pool) if self.epochs else _NONE) < len(pool.new)
    return self._replace(
      number=number,
      num_new=int(np.count_nonzero(is_new)),
      num_replayed=int(np.count_nonzero(~is_new)),
      epoch_size=len(self.sampling.epoch_records(pool)),
      group_sizes=self.sampling.group_sizes(pool, batch_size_new, batch_size_memory),
      steps_per_epoch=self.sampling.steps_per_epoch(pool, batch_size_new),
    )


class IncrementalState(NamedTuple):
  """State t of T: its class ranges and its training phases."""

  index: int  # t, from 1
  num_old: int  # classes [0, num_old) were learnt in earlier states
  num_seen: int  # classes [num_old, num_seen) are new in this one
  phases: tuple[Phase, ...]


def class_order(num_available: int, *, num_classes: int, seed: int) -> np.ndarray:
  """Draws the order in which classes are learnt.

  Args:
    num_available: classes of the data set.
    num_classes: how many of them to use, 0 for all.
    seed: of `numpy.random.RandomState`, whose `permutation` other CIL code uses as well.

  Returns:
    int64 [num_classes]: the data set's own class numbers in the order of learning.

  Raises:
    ConfigError: the data set has fewer classes.
  """
  if num_classes > num_available:
    raise ConfigError(
      f"--num_classes={num_classes}, but the data set has only {num_available} classes"
    )
  order = np.random.RandomState(seed).permutation(num_available)
  return order[: num_classes or num_available]


def class_boundaries(
  num_classes: int, *, num_states: int, initial_classes: int
) -> tuple[int, ...]:
  """Returns the classes seen before state 1, after state 1, ..., after state T.

  Raises:
    ConfigError: the classes cannot be dealt out equally.
  """
  if not initial_classes:
    if num_classes % num_states:
      raise ConfigError(
        f"{num_classes} classes cannot be divided into --num_states={num_states} equal "
        "states: change it, or give --initial_classes or --num_classes"
      )
    step = num_classes // num_states
    return tuple(range(0, num_classes + 1, step))
  rest, later = num_classes - initial_classes, num_states - 1
  if rest < later or rest % later:
    raise ConfigError(
      f"--initial_classes={initial_classes} of {num_classes} classes leaves {rest}, which "
      f"cannot be divided into {later} equal later states (--num_states={num_states})"
    )
  return (0, *range(initial_classes, num_classes + 1, rest // later))


def schedule(
  config: Config,
  num_classes: int,
  phases: Callable[[Config, int], tuple[Phase, ...]],
) -> tuple[IncrementalState, ...]:
  """Deals the classes out to T states, each with the phases of the method.

  Args:
    config: the run's settings.
    num_classes: classes in use.
    phases: (config, t) -> the phases of state t.

  Raises:
    ConfigError: the classes cannot be dealt out, or the memory is too small for them.
  """
  check_memory(config, num_classes)
  bounds = class_boundaries(
    num_classes, num_states=config.num_states, initial_classes=config.initial_classes
  )
  return tuple(
    IncrementalState(t, bounds[t - 1], bounds[t], phases(config, t))
    for t in range(1, config.num_states + 1)
  )


def check_memory(config: Config, num_classes: int) -> None:
  """Raises ConfigError unless the memory has room for so many classes."""
  if config.memory_size < num_classes:
    raise ConfigError(
      f"--memory_size={config.memory_size} cannot hold one exemplar of each of the "
      f"{num_classes} classes: use {num_classes} or more"
    )


def state_of_class(states: tuple[IncrementalState, ...]) -> np.ndarray:
  """Returns which state (from 0) introduced each class, int32 [num_classes]."""
  sizes = [state.num_seen - state.num_old for state in states]
  return np.repeat(np.arange(len(states), dtype=np.int32), sizes)
