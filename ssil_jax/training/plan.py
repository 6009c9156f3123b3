"""Plans what a run will do, settled from settings and data before a device is used."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ssil_jax import memory
from ssil_jax.config import Config
from ssil_jax.data.dataset import Dataset, records_of
from ssil_jax.data.opening import open_dataset
from ssil_jax.data.unlabeled import open_unlabeled
from ssil_jax.errors import ConfigError, DataError
from ssil_jax.methods import Method, get_method
from ssil_jax.sampling import Key, Pool, left_out
from ssil_jax.schedule import IncrementalState, Phase, check_memory, schedule


class _TooFewError(ConfigError):
  """A phase has fewer images than a batch."""


class Plan(NamedTuple):
  """A run's settings, method, data and states, found to go together."""

  config: Config
  method: Method
  dataset: Dataset
  states: tuple[IncrementalState, ...]  # with counted phases

  def pool(self, state: IncrementalState, exemplars: memory.Memory) -> Pool:
    """Returns the records that a state trains on; the new ones ranked at random."""
    labels = self.dataset.train.labels
    new = records_of(labels, state.num_old, state.num_seen)
    priority = memory.random_order(len(new), seed=self.config.seed, state=state.index)
    return Pool(
      new=new,
      memory=exemplars.records,
      new_ranks=memory.rank(labels[new], priority),
      memory_ranks=exemplars.ranks,
      new_labels=labels[new],
      memory_labels=exemplars.labels,
      old=records_of(labels, 0, state.num_old),
      unlabeled=_unlabeled_records(self.dataset),
    )

  def phases(self) -> Iterator[tuple[IncrementalState, Phase]]:
    """Yields every phase of every state, in order, with its state."""
    for state in self.states:
      for phase in state.phases:
        yield state, phase


def make_plan(
  config: Config,
  dataset: Dataset | None = None,
  *,
  check_interrupt: Callable[[], None] = lambda: None,
) -> Plan:
  """Opens the data, unless they are given, and deals the classes out.

  Args:
    config: of the run.
    dataset: its data, with the images without labels that the method may want.
    check_interrupt: called while images are verified; it may raise KeyboardInterrupt.

  Raises:
    ConfigError: settings and data do not go together, or a class would not be trained.
    DataError: something in the data folder is wrong, or a class has no training images.
  """
  method = get_method(config.method)
  if dataset is None:
    dataset = open_dataset(config, check_interrupt=check_interrupt)
    dataset = _with_unlabeled(dataset, method, config, check_interrupt)
  plan = Plan(
    config, method, dataset, schedule(config, len(dataset.class_names), method.phases)
  )
  _check_images(plan)
  _check_largest_image(plan)
  states, exemplars = [], memory.empty()
  for state in plan.states:
    _check_fewest_new(config, method, state, dataset.class_names)
    # With any selection, there are as many exemplars.
    pool = plan.pool(state, exemplars)
    state = _counted(state, pool, config)
    _check_new_classes(plan, state, pool)
    states.append(state)
    sizes = {"memory_size": config.memory_size, "num_seen": state.num_seen}
    kept = pool.new_ranks < memory.quota(**sizes)  # of millions, few
    new = (pool.new[kept], pool.new_labels[kept], pool.new_ranks[kept])
    exemplars = memory.update(exemplars, *new, **sizes)
  return plan._replace(states=tuple(states))


def plan_next(
  config: Config,
  dataset: Dataset,
  done: tuple[IncrementalState, ...],
  exemplars: memory.Memory,
  *,
  may_shrink: bool,
) -> Plan:
  """Plans the state that follows those of a trained model.

  Args:
    config: of that state.
    dataset: the model's exemplars as records of the classes in `done`, and images of new
      classes, whose labels follow.
    done: the model's states.
    exemplars: of the classes in `done`.
    may_shrink: whether both batch sizes are halved, again and again, while the state has
      fewer images than a batch.

  Raises:
    ConfigError: settings and data do not go together, or a class would not be trained.
  """
  method, num_seen = get_method(config.method), len(dataset.class_names)
  dataset = _with_unlabeled(dataset, method, config)
  index = len(done) + 1
  phases = method.phases(config, index)
  if any(phase.sampling.needs_all_data for phase in phases):
    raise ConfigError(
      f"--method={config.method} trains on all images of all classes, and a model keeps no "
      "more than exemplars of those learnt before: train a new model on all of them"
    )
  check_memory(config, num_seen)
  state = IncrementalState(index, done[-1].num_seen, num_seen, phases)
  _check_fewest_new(config, method, state, dataset.class_names)
  plan = Plan(config, method, dataset, (*done, state))
  pool = plan.pool(state, exemplars)
  while True:
    try:
      state = _counted(state, pool, plan.config)
      break
    except _TooFewError:
      sizes = plan.config.batch_size_new // 2, plan.config.batch_size_memory // 2
      if not may_shrink or not all(sizes):
        raise
      smaller = dict(zip(("batch_size_new", "batch_size_memory"), sizes, strict=True))
      plan = plan._replace(config=dataclasses.replace(plan.config, **smaller))
  _check_new_classes(plan, state, pool)
  return plan._replace(states=(*done, state))


def _with_unlabeled(
  dataset: Dataset,
  method: Method,
  config: Config,
  check_interrupt: Callable[[], None] = lambda: None,
) -> Dataset:
  """Returns the data set with the method's images without labels, if it wants any."""
  if not (folder := method.unlabeled_dir(config)):
    return dataset
  return open_unlabeled(dataset, folder, config, check_interrupt)


def _unlabeled_records(dataset: Dataset) -> np.ndarray:
  """Returns their numbers, int64 [n], after those of the training records."""
  count = 0 if dataset.unlabeled is None else len(dataset.unlabeled.labels)
  return len(dataset.train.labels) + np.arange(count)


def _check_images(plan: Plan) -> None:
  """Raises DataError for a class or a state without training or test images."""
  names, test_labels = plan.dataset.class_names, plan.dataset.test.labels
  count = np.bincount(plan.dataset.train.labels, minlength=len(names))
  missing = np.flatnonzero(count == 0)
  if len(missing):
    raise DataError(
      f"class {names[missing[0]]} ({len(missing)} in all) has no training images: add "
      "some, or remove the class"
    )
  for state in plan.states:
    if not len(records_of(test_labels, state.num_old, state.num_seen)):
      raise DataError(
        f"state {state.index} has no test images of its classes, "
        f"{names[state.num_old]} to {names[state.num_seen - 1]}: add some, or use fewer "
        "states"
      )


def _check_largest_image(plan: Plan) -> None:
  """Raises ConfigError for images that are larger than the method is made for."""
  size, largest = plan.dataset.image_size, plan.method.largest_image
  if largest is not None and size > largest:
    raise ConfigError(
      f"--method={plan.config.method} is made for images of up to {largest} pixels, and "
      f"these are {size} wide: give --image_size={largest} or less, or use another method"
    )


def _counted(state: IncrementalState, pool: Pool, config: Config) -> IncrementalState:
  """Returns the state with counted phases; raises ConfigError for too few images."""
  # `Phase.counted` wants the records numbered through.
  ends = np.cumsum([len(pool.new), len(pool.memory), len(pool.old)])
  new, replayed, old = np.split(np.arange(ends[-1]), ends[:2])
  numbered = pool._replace(new=new, memory=replayed, old=old)
  sizes = config.batch_size_new, config.batch_size_memory
  try:
    phases = tuple(p.counted(n, numbered, *sizes) for n, p in enumerate(state.phases))
  except ConfigError as error:
    raise ConfigError(f"state {state.index} {error}") from error
  for phase in phases:
    if phase.epochs and phase.steps_per_epoch == 0:
      raise _TooFewError(
        f"state {state.index} trains on {phase.num_new} images of new classes and "
        f"{phase.num_replayed} of old ones; an epoch ({phase.sampling.name}) goes through "
        f"{phase.epoch_size} images, too few for one batch of "
        f"--batch_size_new={config.batch_size_new}: lower it, raise --memory_size, or use "
        "fewer states"
      )
  return state._replace(phases=phases)


def _check_fewest_new(
  config: Config, method: Method, state: IncrementalState, class_names: Sequence[str]
) -> None:
  """Raises ConfigError for a later state whose classes the method could not learn."""
  fewest = method.fewest_new(config)
  if state.num_old and state.num_seen - state.num_old < fewest:
    raise ConfigError(
      f"--method={config.method} trains new classes by a softmax among themselves, and "
      f"would learn nothing of {class_names[state.num_old]}, alone in state {state.index}: "
      f"give the state {fewest} classes or more"
    )


def _check_new_classes(plan: Plan, state: IncrementalState, pool: Pool) -> None:
  """Raises ConfigError for a new class that is in no batch of its state's first phase.

  Each epoch leaves out other images, fewer than a batch; all those of a small class may be
  among them every time.
  """
  # Later phases may choose among the images by what was learnt in the first. Which new
  # images an epoch leaves out depends on the number of exemplars alone.
  config, labels, phase = plan.config, plan.dataset.train.labels, state.phases[0]
  if not phase.epochs:  # so the method wants it
    return
  records, key = phase.sampling.epoch_records(pool), Key(config.seed, state.index, phase=0)
  in_epoch = np.bincount(labels[records], minlength=state.num_seen)
  new = np.arange(state.num_old, state.num_seen)
  unseen = new[in_epoch[new] <= phase.epoch_size % config.batch_size_new]
  for epoch in range(phase.epochs):
    if not len(unseen):
      return
    left = left_out(records, key, epoch, config.batch_size_new)
    count = np.bincount(labels[left], minlength=state.num_seen)
    unseen = unseen[count[unseen] == in_epoch[unseen]]
  if len(unseen):
    raise ConfigError(
      f"state {state.index} would never train on class "
      f"{plan.dataset.class_names[unseen[0]]} (images: {in_epoch[unseen[0]]}): every epoch "
      f"(epochs: {phase.epochs}) leaves its last images out, too few for a batch, and "
      f"has these among them: raise --{'epochs_first' if state.index == 1 else 'epochs'}, "
      "lower --batch_size_new, or change --seed"
    )


def check_shares(plan: Plan, num_devices: int) -> None:
  """Raises ConfigError unless every device can get the same share of every batch."""
  names = ("batch_size_new", "batch_size_memory")  # in the order of group_sizes
  mistakes = dict.fromkeys(
    f"--{name}={size} cannot be shared equally by {num_devices} devices: use a multiple of "
    f"{num_devices}, or set --num_devices"
    for _, phase in plan.phases()
    # Of images without labels there are as many as of the first kind.
    for name, size in zip(names, phase.labeled_sizes, strict=False)
    if size % num_devices
  )
  if mistakes:
    raise ConfigError("\n".join(mistakes))


def schedule_rows(plan: Plan) -> list[dict[str, Any]]:
  """Returns the schedule for schedule.json and for the eye, a row for each phase."""
  return [
    {
      "state": state.index,
      "classes": f"{state.num_old} + {state.num_seen - state.num_old}",
      "images": f"{phase.num_replayed} + {phase.num_new}",
      "sampling": phase.sampling.name,
      "batch": " + ".join(map(str, phase.group_sizes)),
      "epochs": phase.epochs,
      "steps": phase.num_steps,
      "rate": float(f"{phase.learning_rate:.4g}"),
      "drops": "cosine"
      if phase.is_cosine
      else ", ".join(map(str, phase.milestones)) or "-",
    }
    for state, phase in plan.phases()
  ]
