"""One incremental state: its training, and the look back when that is over."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ssil_jax import memory
from ssil_jax.distributed.preemption import Interrupted
from ssil_jax.methods.base import Given, Moment, SeenClasses, Survey
from ssil_jax.sampling import Pool
from ssil_jax.schedule import IncrementalState
from ssil_jax.selection import SELECTIONS
from ssil_jax.training import devices, reuse, step
from ssil_jax.training.checkpoint import Progress, Underway
from ssil_jax.training.keeper import Keeper
from ssil_jax.training.meter import NO_STEPS, Meter
from ssil_jax.training.plan import PhasePlan, Plan
from ssil_jax.training.recorder import Journal
from ssil_jax.training.trainer import Trainer, evaluate, survey, train_phase

_LARGEST_SHOWN = 1e30  # in results.json, whose readers take float32


class Trained(NamedTuple):
  """A state whose training is over; host arrays."""

  train_state: step.TrainState
  pool: Pool  # what it trained on
  seconds: float
  from_workdir: str | None  # where it was trained, None for here
  here: Progress | None  # to be saved; None if it can be taken from there again


def train_state(
  plan: Plan,
  trainer: Trainer,
  progress: Progress,
  state: IncrementalState,
  phases: list[PhasePlan],
  *,
  make_meter: Callable[..., Meter],
  keeper: Keeper,
) -> Trained:
  """All phases of a state, from where `progress` stands."""
  underway = progress.underway
  seconds_before = underway.seconds if underway else 0.0
  started = time.monotonic()
  current, pool = progress.train_state, plan.pool(state, progress.memory)
  given = given_in(plan, state, stats=progress.stats, teacher=current)
  if underway:
    pool = pool._replace(new_ranks=underway.new_ranks)
    given = given._replace(
      classes=given.classes._replace(num_taught=np.int32(underway.num_taught)),
      teacher=underway.teacher,
    )

  def here(phase: int, steps_done: int, window: np.ndarray = NO_STEPS) -> Progress:
    return progress._replace(
      train_state=current,
      underway=Underway(
        phase=phase,
        steps_done=steps_done,
        teacher=given.teacher,
        num_taught=int(given.classes.num_taught),
        new_ranks=pool.new_ranks,
        window=window,
        seconds=seconds_before + time.monotonic() - started,
      ),
    )

  for index, phase in enumerate(phases):
    if underway and index < underway.phase:
      continue
    steps_done, window = 0, NO_STEPS
    if underway and index == underway.phase:
      steps_done, window = underway.steps_done, underway.window
    else:
      try:
        current, given, pool = begin_phase(
          plan, trainer, progress, phase, current, given, pool
        )
      except Interrupted:
        if index:
          keeper.save(here(index - 1, phases[index - 1].num_steps))
        raise
    meter = make_meter(
      phase,
      phase=index,
      first_step=int(current.step) - steps_done,
      steps_done=steps_done,
      window=window,
    )

    def before_step(train_state, number, index=index, meter=meter):
      def underway_now():
        now = here(index, number, meter.settle())
        return now._replace(train_state=devices.fetch(train_state))

      keeper.visit(underway_now)

    current = devices.fetch(
      train_phase(
        plan,
        trainer,
        devices.replicate(current, trainer.mesh),
        devices.replicate(given, trainer.mesh),
        phase,
        pool,
        phase_index=index,
        steps_done=steps_done,
        meter=meter,
        before_step=before_step,
      )
    )
  end = here(len(phases) - 1, phases[-1].num_steps)
  keeper.visit(lambda: end)
  return Trained(current, pool, end.underway.seconds, None, end)


def begin_phase(
  plan: Plan,
  trainer: Trainer,
  progress: Progress,
  phase: PhasePlan,
  current: step.TrainState,
  given: Given,
  pool: Pool,
) -> tuple[step.TrainState, Given, Pool]:
  """The network, what is given and the pool at the start of a phase."""
  state = phase.state
  if plan.config.reset_momentum:
    current = current.replace(opt_state=trainer.initial.opt_state)
  if phase.phase.new_teacher:
    given = given_in(plan, state, stats=progress.stats, teacher=current, knows_new=True)
    look = surveyor(plan, trainer, current, given)
    priority = exemplar_priority(plan, state, pool, look, count=pool.quota)
    labels = plan.dataset.train.labels[pool.new]
    pool = pool._replace(new_ranks=memory.rank(labels, priority))
  return current, given, pool


def take_state(
  plan: Plan,
  source: reuse.Source,
  progress: Progress,
  state: IncrementalState,
  journal: Journal,
) -> Trained:
  """A state as another run trained it, with that run's records of the training."""
  for record in source.records(state.index):
    journal.train(record)
  return Trained(
    source.train_state(state.index, like=progress.train_state),
    plan.pool(state, progress.memory),
    source.train_seconds[state.index - 1],
    str(source.folder),
    here=None,
  )


def finish_state(
  plan: Plan, trainer: Trainer, progress: Progress, state: IncrementalState, end: Trained
) -> Progress:
  """What follows training: exemplars, the method's statistics, evaluation."""
  method, config = plan.method, plan.config
  current = end.train_state
  if method.align and end.from_workdir is None:  # else it is aligned already
    params = method.align(current.params, state.num_old, state.num_seen)
    current = current.replace(params=params)
  given = given_in(plan, state, stats=progress.stats, teacher=None)
  look = surveyor(plan, trainer, current, given)
  exemplars = update_memory(plan, state, end.pool, progress.memory, look)
  moment = Moment(
    num_first=plan.states[0].num_seen,
    num_old=state.num_old,
    num_seen=state.num_seen,
    pool=end.pool,
    labels=plan.dataset.train.labels,
    test_labels=plan.dataset.test.labels,
    memory=exemplars,
    stats=progress.stats,
    survey=look,
  )
  moment = moment._replace(stats=method.stats(moment, config))
  given = given_in(plan, state, stats=moment.stats, teacher=None)
  scores = evaluate(
    plan,
    trainer,
    devices.replicate(current, trainer.mesh),
    devices.replicate(given, trainer.mesh),
    state,
  )
  result = {
    "state": state.index,
    "num_old": state.num_old,
    "num_seen": state.num_seen,
    **scores,
    "statistics": {
      name: value if abs(value) < _LARGEST_SHOWN else None
      for name, value in method.describe(moment, config).items()
    },
    "train_seconds": round(end.seconds, 3),
    "from_workdir": end.from_workdir,
  }
  return Progress(current, exemplars, moment.stats, [*progress.results, result])


def given_in(
  plan: Plan,
  state: IncrementalState,
  *,
  stats: Any,
  teacher: step.TrainState | None,
  knows_new: bool = False,
) -> Given:
  """What a phase of a state starts with; host arrays.

  Args:
    plan: of the run.
    state: the state.
    stats: of the method.
    teacher: the network as it was, None where nothing is trained.
    knows_new: whether it has learnt the state's new classes.
  """
  network, num_taught = None, 0
  if teacher is not None and plan.method.has_teacher:
    network = {"params": teacher.params, "batch_stats": teacher.batch_stats}
    num_taught = state.num_seen if knows_new else state.num_old
  numbers = (state.num_old, state.num_seen, num_taught)
  return Given(SeenClasses(*map(np.int32, numbers)), network, stats)


def surveyor(
  plan: Plan, trainer: Trainer, current: step.TrainState, given: Given
) -> Survey:
  """Looks at images with the network as it is; arguments are host arrays."""
  given = given._replace(teacher=None)
  on_devices = functools.cache(lambda: devices.replicate((current, given), trainer.mesh))
  return lambda *args, **kwargs: survey(plan, trainer, *on_devices(), *args, **kwargs)


def exemplar_priority(
  plan: Plan, state: IncrementalState, pool: Pool, look: Survey, *, count: int
) -> np.ndarray:
  """[n], sortable: which of the new records are kept first, `count` of each class."""
  return SELECTIONS[plan.config.selection](
    pool.new,
    plan.dataset.train.labels[pool.new],
    memory.random_order(len(pool.new), seed=plan.config.seed, state=state.index),
    look,
    count,
  )


def update_memory(
  plan: Plan, state: IncrementalState, pool: Pool, exemplars: memory.Memory, look: Survey
) -> memory.Memory:
  """The exemplars after a state."""
  count = memory.quota(plan.config.memory_size, state.num_seen)
  return memory.update(
    exemplars,
    pool.new,
    plan.dataset.train.labels[pool.new],
    exemplar_priority(plan, state, pool, look, count=count),
    memory_size=plan.config.memory_size,
    num_seen=state.num_seen,
  )
