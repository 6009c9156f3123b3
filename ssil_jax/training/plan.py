"""What a run will do, settled from settings and data before a device is used."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ssil_jax import memory, sampling
from ssil_jax.config import Config
from ssil_jax.data.dataset import Dataset, records_of
from ssil_jax.data.opening import open_dataset
from ssil_jax.errors import ConfigError, DataError
from ssil_jax.methods import Method, get_method
from ssil_jax.sampling import Key, Pool
from ssil_jax.schedule import IncrementalState, Phase, schedule
from ssil_jax.settings import fields_of


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
    dataset: its data.
    check_interrupt: called while images are verified; it may raise KeyboardInterrupt.

  Raises:
    ConfigError: settings and data do not go together, or a class would not be trained.
    DataError: something in the data folder is wrong, or a class has no training images.
  """
  method = get_method(config.method)
  if dataset is None:
    dataset = open_dataset(config, check_interrupt=check_interrupt)
  states = schedule(config, len(dataset.class_names), method.phases)
  plan = Plan(config, method, dataset, states)
  _check_training_images(plan)
  _check_test_images(plan)
  plan = plan._replace(states=tuple(_counted(plan, state) for state in states))
  for state, phase in plan.phases():
    if phase.steps_per_epoch == 0:
      raise ConfigError(
        f"state {state.index} trains on {phase.num_new} images of new classes and "
        f"{phase.num_replayed} of old ones; an epoch ({phase.sampling.name}) goes through "
        f"{phase.epoch_size} images, too few for one batch of "
        f"--batch_size_new={config.batch_size_new}: lower it, raise --memory_size, or use "
        "fewer states"
      )
  for state in plan.states:
    _check_new_classes(plan, state)
  return plan


def _counted(plan: Plan, state: IncrementalState) -> IncrementalState:
  """Returns the state with counted phases; raises ConfigError for too few images."""
  pool, config = _pool_in_numbers(plan, state), plan.config
  sizes = config.batch_size_new, config.batch_size_memory
  try:
    phases = tuple(p.counted(n, pool, *sizes) for n, p in enumerate(state.phases))
  except ConfigError as error:
    raise ConfigError(f"state {state.index} {error}") from error
  return state._replace(phases=phases)


def _check_training_images(plan: Plan) -> None:
  """Raises DataError for a class that has none."""
  names = plan.dataset.class_names
  count = np.bincount(plan.dataset.train.labels, minlength=len(names))
  missing = np.flatnonzero(count == 0)
  if len(missing):
    raise DataError(
      f"class {names[missing[0]]} ({len(missing)} in all) has no training images: add "
      "some, or remove the class"
    )


def _check_test_images(plan: Plan) -> None:
  """Raises DataError for a state of whose new classes no image could be scored."""
  labels, names = plan.dataset.test.labels, plan.dataset.class_names
  for state in plan.states:
    if not len(records_of(labels, state.num_old, state.num_seen)):
      raise DataError(
        f"state {state.index} has no test images of its classes, "
        f"{names[state.num_old]} to {names[state.num_seen - 1]}: add some, or use fewer "
        "states"
      )


def _check_new_classes(plan: Plan, state: IncrementalState) -> None:
  """Raises ConfigError for a new class that is in no batch of its state's first phase.

  Each epoch leaves out other images, fewer than a batch; all those of a small class may be
  among them every time.
  """
  # Later phases may choose among the images by what was learnt in the first.
  config, phase = plan.config, state.phases[0]
  numbers = _pool_in_numbers(plan, state)
  chosen = phase.sampling.epoch_records(numbers)
  in_epoch = np.bincount(
    numbers.new_labels[chosen[chosen < len(numbers.new)]], minlength=state.num_seen
  )
  new = np.arange(state.num_old, state.num_seen)
  unseen = new[in_epoch[new] <= phase.epoch_size % config.batch_size_new]
  if not len(unseen):
    return
  labels, key = plan.dataset.train.labels, Key(config.seed, state.index, phase=0)
  # Any old records stand in for the exemplars: which new ones an epoch leaves out depends
  # on the number of exemplars alone.
  old = records_of(labels, 0, state.num_old)
  exemplars = memory.Memory(
    old[: len(numbers.memory)], numbers.memory_labels, numbers.memory_ranks
  )
  records = phase.sampling.epoch_records(plan.pool(state, exemplars))
  for epoch in range(phase.epochs):
    left = sampling.left_out(records, key, epoch, config.batch_size_new)
    count = np.bincount(labels[left], minlength=state.num_seen)
    unseen = unseen[count[unseen] == in_epoch[unseen]]
    if not len(unseen):
      return
  raise ConfigError(
    f"state {state.index} would never train on class "
    f"{plan.dataset.class_names[unseen[0]]} (images: {in_epoch[unseen[0]]}): every epoch "
    f"(epochs: {phase.epochs}) leaves its last images out, too few for a batch, and "
    f"has these among them: raise --{'epochs_first' if state.index == 1 else 'epochs'}, "
    "lower --batch_size_new, or change --seed"
  )


def _pool_in_numbers(plan: Plan, state: IncrementalState) -> Pool:
  """Makes up a state's records; sizes, labels and ranks are those of the real pool.

  Returns:
    It counts its records through: the new ones, the exemplars, all of the old classes.
  """
  images = np.bincount(plan.dataset.train.labels, minlength=state.num_seen)
  old, new = images[: state.num_old], images[state.num_old : state.num_seen]
  kept = np.minimum(old, memory.quota(plan.config.memory_size, max(state.num_old, 1)))

  def ranks(counts):
    return np.concatenate([np.arange(count) for count in (0, *counts)])

  ends = np.cumsum([new.sum(), kept.sum(), old.sum()])
  records = np.arange(ends[-1])
  return Pool(
    new=records[: ends[0]],
    memory=records[ends[0] : ends[1]],
    new_ranks=ranks(new),
    memory_ranks=ranks(kept),
    new_labels=np.repeat(np.arange(state.num_old, state.num_seen), new),
    memory_labels=np.repeat(np.arange(state.num_old), kept),
    old=records[ends[1] :],
  )


def check_shares(plan: Plan, num_devices: int) -> None:
  """Raises ConfigError unless every device can get the same share of every batch."""
  names = ("batch_size_new", "batch_size_memory")  # in the order of group_sizes
  uneven = {
    name: size
    for _, phase in plan.phases()
    for name, size in zip(names, phase.group_sizes, strict=False)
    if size % num_devices
  }
  if uneven:
    raise ConfigError(
      "\n".join(
        f"--{name}={size} cannot be shared equally by {num_devices} devices: use a "
        f"multiple of {num_devices}, or set --num_devices"
        for name, size in uneven.items()
      )
    )


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
      "drops": ", ".join(map(str, phase.milestones)) or "-",
    }
    for state, phase in plan.phases()
  ]


def other_settings(plan: Plan) -> dict[str, Any]:
  """Returns what else the method trains with, its own settings last."""
  config, own = plan.config, plan.config.method_settings
  shared = ("momentum", "weight_decay", "selection")
  return {
    **{name: getattr(config, name) for name in shared},
    **{field.name: getattr(own, field.name) for field in fields_of(own)},
  }
