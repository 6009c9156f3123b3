"""The run: for every incremental state, train it, look back at it, and save.

It knows states, phases and the `Method` contract; no method's and no data set's name.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from ssil_jax import data, memory, metrics, parallel, reuse, step, workdir
from ssil_jax.checkpoint import Checkpoints, Networks, Progress
from ssil_jax.config import Config
from ssil_jax.journal import Journal
from ssil_jax.meter import Meter
from ssil_jax.methods.base import Given, Moment, SeenClasses, Sizes, Survey
from ssil_jax.plan import (
  PhasePlan,
  Plan,
  check_shares,
  make_plan,
  phase_plans,
  schedule_rows,
  schedule_table,
)
from ssil_jax.progress import ProgressDisplay
from ssil_jax.sampling import Pool
from ssil_jax.selection import SELECTIONS
from ssil_jax.states import IncrementalState
from ssil_jax.trainer import Trainer, evaluate, make_trainer, survey, train_phase

_LARGEST_SHOWN = 1e30  # in results.json, whose readers take float32


def run(
  config: Config, console: Console, *, check_interrupt: Callable[[], None] = lambda: None
) -> dict[str, Any]:
  """Trains and evaluates every incremental state that the work directory lacks.

  Args:
    config: of the run.
    console: where progress is shown.
    check_interrupt: called before every step; what it raises ends the run, with every
      finished state saved.

  Returns:
    The contents of results.json.

  Raises:
    UserError: bad input, named, before any training; or DivergedError.
  """
  plan = make_plan(config)
  mesh = parallel.choose_devices(config)
  check_shares(plan, mesh.size)
  fingerprint = data.fingerprint(plan.dataset)
  source = reuse.open_source(plan, data_fingerprint=fingerprint)
  folder = workdir.claim(config, data_fingerprint=fingerprint)
  workdir.write_json(folder / "schedule.json", schedule_rows(plan))
  if plan.dataset.ignored_files:
    console.print(
      f"{plan.dataset.ignored_files} files or folders beside the images are ignored"
    )
  for note in plan.dataset.notes:
    console.print(note, markup=False)
  console.print(schedule_table(plan))
  trainer = make_trainer(plan, mesh)

  with Checkpoints(folder) as checkpoints, Networks(folder) as networks:
    progress = checkpoints.latest(otherwise=start(plan, trainer))
    done = len(progress.results)
    if done:
      console.print(f"states 1 to {done} are done already, in {folder}", markup=False)
    if source.num_states > done:
      console.print(
        f"states {done + 1} to {source.num_states} are taken from {source.folder}",
        markup=False,
      )
    workdir.write_json(folder / "results.json", _results(plan, mesh, progress.results))
    trained_here = max(done, source.num_states)
    phases = [p for p in phase_plans(plan) if p.state.index > trained_here]
    with (
      Journal(
        folder, states_done=done, steps_done=int(progress.train_state.step)
      ) as journal,
      ProgressDisplay(
        console,
        num_states=len(plan.states),
        num_images=sum(p.num_images for p in phases),
      ) as display,
    ):
      for state in plan.states[done:]:
        if state.index <= source.num_states:
          trained = take_state(plan, source, progress, state, journal)
        else:
          trained = train_state(
            plan,
            trainer,
            progress,
            state,
            [p for p in phases if p.state is state],
            make_meter=functools.partial(
              Meter, log_every=config.log_every, journal=journal, display=display
            ),
            check_interrupt=check_interrupt,
          )
        progress = finish_state(plan, trainer, progress, state, trained)
        networks.save(progress.train_state, state=state.index)
        checkpoints.save(progress)
        workdir.write_json(folder / "results.json", _results(plan, mesh, progress.results))
        result = progress.results[-1]
        journal.evaluation(result, step=int(progress.train_state.step))
        display.print(_one_line(result, len(plan.states)))
  return _results(plan, mesh, progress.results)


def start(plan: Plan, trainer: Trainer) -> Progress:
  """A run that has done nothing yet."""
  params = trainer.initial.params
  sizes = Sizes(
    num_classes=len(plan.dataset.class_names),
    num_features=params["head"]["kernel"].shape[0],
    num_records=len(plan.dataset.train.labels),
    memory_size=plan.config.memory_size,
  )
  return Progress(trainer.initial, memory.empty(), plan.method.init_stats(sizes), [])


class Trained(NamedTuple):
  """A state whose training is over; host arrays."""

  train_state: step.TrainState
  pool: Pool  # what it trained on
  seconds: float
  from_workdir: str | None  # where it was trained, None for here


def train_state(
  plan: Plan,
  trainer: Trainer,
  progress: Progress,
  state: IncrementalState,
  phases: list[PhasePlan],
  *,
  make_meter: Callable[..., Meter],
  check_interrupt: Callable[[], None],
) -> Trained:
  """All phases of a state."""
  started = time.monotonic()
  current = progress.train_state
  pool = plan.pool(state, progress.memory)
  given = given_in(plan, state, stats=progress.stats, teacher=current)
  for index, phase in enumerate(phases):
    if plan.config.reset_momentum:
      current = current.replace(opt_state=trainer.initial.opt_state)
    if phase.phase.new_teacher:
      given = given_in(plan, state, stats=progress.stats, teacher=current, knows_new=True)
      look = surveyor(plan, trainer, current, given)
      priority = exemplar_priority(plan, state, pool, look, count=pool.quota)
      labels = plan.dataset.train.labels[pool.new]
      pool = pool._replace(new_ranks=memory.rank(labels, priority))
    current = parallel.fetch(
      train_phase(
        plan,
        trainer,
        parallel.replicate(current, trainer.mesh),
        parallel.replicate(given, trainer.mesh),
        phase,
        pool,
        phase_index=index,
        meter=make_meter(phase, phase=index, first_step=int(current.step)),
        check_interrupt=check_interrupt,
      )
    )
  return Trained(current, pool, time.monotonic() - started, None)


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
    parallel.replicate(current, trainer.mesh),
    parallel.replicate(given, trainer.mesh),
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
  on_devices = functools.cache(lambda: parallel.replicate((current, given), trainer.mesh))
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


def _results(plan: Plan, mesh: Mesh, states: list[dict[str, Any]]) -> dict[str, Any]:
  return {
    "dataset": plan.config.dataset,
    "method": plan.config.method,
    "method_title": plan.method.title,
    "num_states": plan.config.num_states,
    "num_classes": len(plan.dataset.class_names),
    "memory_size": plan.config.memory_size,
    "seed": plan.config.seed,
    "ignored_files": plan.dataset.ignored_files,
    "environment": parallel.describe(mesh),
    "states": states,
    "average": metrics.average(states),
  }


def _one_line(result: dict[str, Any], num_states: int) -> str:
  errors = ""
  if result["imbalance"] is not None:
    errors = (
      f"e(p,n) {result['error_old_as_new']:.1%}  e(n,p) {result['error_new_as_old']:.1%}  "
    )
  return (
    f"state {result['state']}/{num_states} done  {result['num_seen']} classes  "
    f"top-1 {result['top1']:.1%}  {errors}{result['train_seconds']:.0f} s"
  )
