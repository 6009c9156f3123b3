"""What a run will do, settled from flags and data before a device is used."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from ssil_jax import data, memory
from ssil_jax.config import Config
from ssil_jax.errors import ConfigError, DataError
from ssil_jax.methods import Method, get_method
from ssil_jax.sampling import Pool
from ssil_jax.states import IncrementalState, Phase, schedule


class Plan(NamedTuple):
  """A run's settings, method, data and states, found to go together."""

  config: Config
  method: Method
  dataset: data.Dataset
  states: tuple[IncrementalState, ...]

  def pool(self, state: IncrementalState, exemplars: memory.Memory) -> Pool:
    """The records that a state trains on; the new ones ranked at random."""
    labels = self.dataset.train.labels
    new = data.records_of(labels, state.num_old, state.num_seen)
    priority = memory.random_order(len(new), seed=self.config.seed, state=state.index)
    return Pool(
      new=new,
      memory=exemplars.records,
      new_ranks=memory.rank(labels[new], priority),
      memory_ranks=exemplars.ranks,
      old=data.records_of(labels, 0, state.num_old),
    )


class PhasePlan(NamedTuple):
  """One phase of a state, in numbers."""

  state: IncrementalState
  phase: Phase
  num_new: int  # training images of the new classes
  num_exemplars: int  # of the old classes, at hand in this state
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
  dataset: data.Dataset | None = None,
  *,
  check_interrupt: Callable[[], None] = lambda: None,
) -> Plan:
  """Opens the data, unless they are given, and deals the classes out.

  Args:
    config: of the run.
    dataset: its data.
    check_interrupt: called while images are verified; it may raise KeyboardInterrupt.

  Raises:
    ConfigError: flags and data do not go together.
    DataError: something in the data folder is wrong.
  """
  method = get_method(config.method)
  if dataset is None:
    dataset = data.open_dataset(config, check_interrupt=check_interrupt)
  states = schedule(config, len(dataset.class_names), method.phases)
  plan = Plan(config, method, dataset, states)
  _check_test_images(plan)
  for phase in phase_plans(plan):
    if phase.steps_per_epoch == 0:
      raise ConfigError(
        f"state {phase.state.index} has {phase.num_new} new training images and "
        f"{phase.num_exemplars} exemplars; an epoch ({phase.phase.sampling.name}) goes "
        f"through {phase.epoch_size} images, too few for one batch of "
        f"--batch_size_new={config.batch_size_new}: lower it, raise --memory_size, or use "
        "fewer states"
      )
  return plan


def _check_test_images(plan: Plan) -> None:
  """Raises DataError for a state of whose new classes no image could be scored."""
  labels, names = plan.dataset.test.labels, plan.dataset.class_names
  for state in plan.states:
    if not len(data.records_of(labels, state.num_old, state.num_seen)):
      raise DataError(
        f"state {state.index} has no test images of its classes, "
        f"{names[state.num_old]} to {names[state.num_seen - 1]}: add some, or use fewer "
        "states"
      )


def phase_plans(plan: Plan) -> list[PhasePlan]:
  """Every phase of every state, in order."""
  images_of_class = np.bincount(plan.dataset.train.labels)
  plans = []
  for state in plan.states:
    pool = _pool_of_sizes(
      images_of_class[: state.num_old],
      images_of_class[state.num_old : state.num_seen],
      memory.quota(plan.config.memory_size, max(state.num_old, 1)),
    )
    for phase in state.phases:
      sampling, config = phase.sampling, plan.config
      plans.append(
        PhasePlan(
          state=state,
          phase=phase,
          num_new=len(pool.new),
          num_exemplars=len(pool.memory),
          epoch_size=len(sampling.epoch_records(pool)),
          group_sizes=sampling.group_sizes(
            pool, config.batch_size_new, config.batch_size_memory
          ),
          steps_per_epoch=sampling.steps_per_epoch(pool, config.batch_size_new),
        )
      )
  return plans


def _pool_of_sizes(old: np.ndarray, new: np.ndarray, quota: int) -> Pool:
  """A pool with made-up records, whose sizes and ranks are those of the real one.

  Args:
    old: int [num_old], training images of each old class.
    new: the same for the new classes.
    quota: exemplars of an old class, unless it has fewer images.
  """

  def ranks(counts):
    return np.concatenate([np.arange(count) for count in (0, *counts)])

  new_ranks, memory_ranks = ranks(new), ranks(np.minimum(old, quota))
  ends = np.cumsum([len(new_ranks), len(memory_ranks), old.sum()])
  records = np.arange(ends[-1])
  return Pool(
    new=records[: ends[0]],
    memory=records[ends[0] : ends[1]],
    new_ranks=new_ranks,
    memory_ranks=memory_ranks,
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
      "images": f"{p.num_exemplars} + {p.num_new}",
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
    caption="classes: old + new; images: exemplars + new;\n"
    "batch: new + exemplars; RP: ratio-preserving;\n"
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
