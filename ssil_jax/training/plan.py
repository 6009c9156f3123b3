"""What a run will do, settled from flags and data before a device is used."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from ssil_jax import memory
from ssil_jax import sampling as sampling_lib
from ssil_jax.config import Config
from ssil_jax.data.dataset import Dataset, records_of
from ssil_jax.data.opening import open_dataset
from ssil_jax.errors import ConfigError, DataError
from ssil_jax.methods import Method, get_method
from ssil_jax.sampling import Key, Pool
from ssil_jax.schedule import IncrementalState, Phase, schedule


class Plan(NamedTuple):
  """A run's settings, method, data and states, found to go together."""

  config: Config
  method: Method
  dataset: Dataset
  states: tuple[IncrementalState, ...]

  def pool(self, state: IncrementalState, exemplars: memory.Memory) -> Pool:
    """The records that a state trains on; the new ones ranked at random."""
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


class PhasePlan(NamedTuple):
  """One phase of a state, in numbers."""

  state: IncrementalState
  phase: Phase
  num_new: int  # images of the new classes that it trains on
  num_replayed: int  # of the old classes
  epoch_size: int  # training images that an epoch goes through
  group_sizes: tuple[int, ...]  # samples of each kind in a batch
  steps_per_epoch: int

  @property
  def num_steps(self) -> int:
    return self.phase.epochs * self.steps_per_epoch

  @property
  def num_images(self) -> int:
    return self.num_steps * sum(self.group_sizes)


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
    ConfigError: flags and data do not go together, or a class would not be trained.
    DataError: something in the data folder is wrong, or a class has no training images.
  """
  method = get_method(config.method)
  if dataset is None:
    dataset = open_dataset(config, check_interrupt=check_interrupt)
  states = schedule(config, len(dataset.class_names), method.phases)
  plan = Plan(config, method, dataset, states)
  _check_training_images(plan)
  _check_test_images(plan)
  phases = phase_plans(plan)
  for phase in phases:
    if phase.steps_per_epoch == 0:
      raise ConfigError(
        f"state {phase.state.index} trains on {phase.num_new} images of new classes and "
        f"{phase.num_replayed} of old ones; an epoch ({phase.phase.sampling.name}) goes "
        f"through {phase.epoch_size} images, too few for one batch of "
        f"--batch_size_new={config.batch_size_new}: lower it, raise --memory_size, or use "
        "fewer states"
      )
  # Later phases of a state may choose among its images by what was learnt in the first.
  for phase in phases:
    if phase.phase is phase.state.phases[0]:
      _check_new_classes(plan, phase)
  return plan


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


def _check_new_classes(plan: Plan, phase: PhasePlan) -> None:
  """Raises ConfigError for a new class that is in no batch of its state's first phase.

  Each epoch leaves out other images, fewer than a batch; all those of a small class may be
  among them every time.
  """
  config, state, sampling = plan.config, phase.state, phase.phase.sampling
  numbers = _pool_in_numbers(plan, state)
  chosen = sampling.epoch_records(numbers)
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
  records = sampling.epoch_records(plan.pool(state, exemplars))
  for epoch in range(phase.phase.epochs):
    left = sampling_lib.left_out(records, key, epoch, config.batch_size_new)
    count = np.bincount(labels[left], minlength=state.num_seen)
    unseen = unseen[count[unseen] == in_epoch[unseen]]
    if not len(unseen):
      return
  raise ConfigError(
    f"state {state.index} would never train on class "
    f"{plan.dataset.class_names[unseen[0]]} (images: {in_epoch[unseen[0]]}): every epoch "
    f"(epochs: {phase.phase.epochs}) leaves its last images out, too few for a batch, and "
    f"has these among them: raise --{'epochs_first' if state.index == 1 else 'epochs'}, "
    "lower --batch_size_new, or change --seed"
  )


def phase_plans(plan: Plan) -> list[PhasePlan]:
  """Every phase of every state, in order.

  Raises:
    ConfigError: a state has too few images to be trained on in its way.
  """
  plans = []
  for state in plan.states:
    pool = _pool_in_numbers(plan, state)
    try:
      plans += [_phase_plan(plan.config, state, phase, pool) for phase in state.phases]
    except ConfigError as error:
      raise ConfigError(f"state {state.index} {error}") from error
  return plans


def _phase_plan(
  config: Config, state: IncrementalState, phase: Phase, pool: Pool
) -> PhasePlan:
  sampling = phase.sampling
  is_new = sampling.records(pool) < len(pool.new)  # of a pool in numbers
  return PhasePlan(
    state=state,
    phase=phase,
    num_new=int(np.count_nonzero(is_new)),
    num_replayed=int(np.count_nonzero(~is_new)),
    epoch_size=len(sampling.epoch_records(pool)),
    group_sizes=sampling.group_sizes(pool, config.batch_size_new, config.batch_size_memory),
    steps_per_epoch=sampling.steps_per_epoch(pool, config.batch_size_new),
  )


def _pool_in_numbers(plan: Plan, state: IncrementalState) -> Pool:
  """A state's pool with made-up records, but the sizes, labels and ranks of the real one.

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
    for p in phase_plans(plan)
    for name, size in zip(names, p.group_sizes, strict=False)
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
  """The schedule for schedule.json and for the eye, a row for each phase."""
  return [
    {
      "state": p.state.index,
      "classes": f"{p.state.num_old} + {p.state.num_seen - p.state.num_old}",
      "images": f"{p.num_replayed} + {p.num_new}",
      "sampling": p.phase.sampling.name,
      "batch": " + ".join(map(str, p.group_sizes)),
      "epochs": p.phase.epochs,
      "steps": p.num_steps,
      "rate": float(f"{p.phase.learning_rate:.4g}"),
      "drops": ", ".join(map(str, p.phase.milestones)) or "-",
    }
    for p in phase_plans(plan)
  ]


def schedule_table(plan: Plan) -> Table:
  """The schedule as it is printed before training."""
  rows, config = schedule_rows(plan), plan.config
  table = Table(
    title=f"{plan.method.title} on {plan.config.dataset}",
    caption="classes: old + new; images: those of them that are trained on;\n"
    "batch: new + exemplars, or both together; RP: ratio-preserving;\n"
    f"drops: epochs after which the rate is multiplied by {config.learning_rate_drop:g}\n"
    + _settings_line(plan),
    box=None,
    padding=(0, 1, 0, 0),  # fits a terminal of 80 columns
  )
  for name in rows[0]:
    table.add_column(name, justify="right", no_wrap=True)
  for row in rows:
    table.add_row(*map(str, row.values()))
  return table


def _settings_line(plan: Plan) -> str:
  """What else the method trains with."""
  names = ("momentum", "weight_decay", "selection", *plan.method.settings)
  return ", ".join(f"{name} {getattr(plan.config, name)}" for name in names)
