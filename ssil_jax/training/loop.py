"""The run: for every incremental state, train its phases, finish it, commit it.

It knows states, phases and the `Method` contract; no method's and no data set's name.
"""

import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from rich.console import Console

from ssil_jax import memory, system
from ssil_jax.config import Config
from ssil_jax.data import loader
from ssil_jax.distributed import collectives
from ssil_jax.errors import DivergedError
from ssil_jax.methods.base import (
  Extract,
  FinishedState,
  PhaseContext,
  normalized_features,
)
from ssil_jax.sampling import Key, Pool
from ssil_jax.schedule import IncrementalState, Phase
from ssil_jax.training import compilation, numerics
from ssil_jax.training.devices import fetch
from ssil_jax.training.dispatches import dispatches
from ssil_jax.training.evaluate import (
  evaluate,
  extractor,
  phase_context,
  prefetched,
  totaler,
)
from ssil_jax.training.plan import Plan
from ssil_jax.training.run_state import (
  NO_STEPS,
  Position,
  RunState,
  TrainState,
  with_own,
)
from ssil_jax.training.session import Session, open_session, printer
from ssil_jax.training.step_metrics import StepMetrics

_LARGEST_SHOWN = 1e30  # in results.json, whose readers take float32


def run(
  config: Config,
  console: Console,
  *,
  check_interrupt: Callable[[], None] = lambda: None,
  report: Callable[[pathlib.Path], Mapping[str, bytes]] = lambda folder: {},
) -> dict[str, Any]:
  """Trains and evaluates every incremental state that the work directory lacks.

  Args:
    config: of the run.
    console: where progress is shown.
    check_interrupt: called before steps are sent and before every test batch; if it raises
      Interrupted, the run is saved and ends. With several processes it must do so in all of
      them at the same call.
    report: called by process 0 with the work directory when all states are done; returns
      figures (name -> PNG file) that go where training is recorded.

  Returns:
    The contents of results.json.

  Raises:
    UserError: bad input, named, before any training; or DivergedError.
    Interrupted: `check_interrupt` did; the same command resumes the run.
  """
  with (
    numerics.standard(config, warn=printer(console)),
    compilation.kept(config.compilation_cache, warn=printer(console)),
    open_session(config, console, check_interrupt) as (session, run_state),
  ):
    finished = train(session, run_state)
    if collectives.is_main():
      session.write_summary(finished, report(session.folder))
    return session.results(finished)


def train(session: Session, run: RunState) -> RunState:
  """Trains every state that `run` lacks."""
  with session.saving_on_interruption():
    for state in session.plan.states[len(run.results) :]:
      with session.stopwatch.of("state_changes"):
        if session.lender.has(state):
          run = take_state(session, state, run)
        else:
          run = train_state(session, state, run)
        run = finish_state(session, state, run)
      run = session.commit(run)
  return run


def train_state(session: Session, state: IncrementalState, run: RunState) -> RunState:
  """Trains all phases of a state, from where `run` stands."""
  if run.position is None:
    run = begin_state(session, state, run)
  for phase in state.phases[run.position.phase :]:
    if phase.number > run.position.phase:
      run = begin_phase(session, state, phase, run)
    run = train_phase(session, state, phase, run)
    session.maybe_save(lambda run=run: run)
  return run


def begin_state(session: Session, state: IncrementalState, run: RunState) -> RunState:
  """Returns a run at the beginning of a state's first phase."""
  method, train_state = session.plan.method, run.train_state
  position = Position(
    session.plan.pool(state, run.exemplars).new_ranks,
    **_teacher(session.plan, train_state, num_classes=state.num_old),
  )
  if method.restarts:
    train_state = session.initial.replace(step=train_state.step)
  if method.imprint and state.num_old:
    train_state = _imprinted(session, state, run._replace(train_state=train_state))
  train_state = with_own(train_state, method, run.stats, session.plan.config)
  run = run._replace(train_state=train_state, position=position)
  return begin_phase(session, state, state.phases[0], run)


def _imprinted(session: Session, state: IncrementalState, run: RunState) -> TrainState:
  """Returns the network with the new classes' weights as the method starts them."""
  plan, train_state = session.plan, run.train_state
  pool = plan.pool(state, run.exemplars)
  extract = extractor(session, state, train_state, run.stats)

  def features() -> np.ndarray:
    found = extract(pool.new, normalized_features)
    if not np.isfinite(found).all():
      raise DivergedError(f"features are not finite as state {state.index} begins")
    return found

  params = plan.method.imprint(
    *(train_state.params, pool.new_labels, features, state.num_old, plan.config)
  )
  # Each process has worked them out by itself, perhaps on another kind of machine.
  return train_state.replace(params=collectives.broadcast_from_main(params))


def begin_phase(
  session: Session, state: IncrementalState, phase: Phase, run: RunState
) -> RunState:
  """Returns a run at the beginning of a phase: momentum, teachers and ranks are its own."""
  plan, train_state = session.plan, run.train_state
  position = run.position._replace(phase=phase.number, steps_done=0, window=NO_STEPS)
  if plan.config.reset_momentum:
    train_state = train_state.replace(opt_state=session.initial.opt_state)
  if phase.new_teacher:
    pool = pool_of(plan, state, run)
    extract = extractor(session, state, train_state, run.stats)
    priority = exemplar_priority(plan, state, pool, extract, count=pool.quota)
    position = position._replace(
      new_ranks=memory.rank(pool.new_labels, priority),
      **_teacher(plan, train_state, num_classes=state.num_seen),
    )
  if phase.new_expert:
    position = position._replace(expert=_network(train_state))
  if phase.starts_from_teacher:
    train_state = train_state.replace(
      **position.teacher, opt_state=session.initial.opt_state
    )
  return run._replace(train_state=train_state, position=position)


def train_phase(
  session: Session, state: IncrementalState, phase: Phase, run: RunState
) -> RunState:
  """Trains the steps of a phase that are not done."""
  if not phase.num_steps:
    return run
  devices, position, steps_done = session.devices, run.position, run.position.steps_done
  train_state = devices.replicate(run.train_state)
  context = devices.replicate(training_context(session, state, phase, run))
  at_once = devices.steps_at_once
  work = dispatches(
    *(train_batches(session, state, phase, run), phase), first=steps_done, size=at_once
  )
  metrics = StepMetrics(session, state, phase, run)
  started = time.monotonic()

  def here() -> RunState:
    seconds = position.seconds + time.monotonic() - started
    now = position._replace(steps_done=steps_done, window=metrics.flush(), seconds=seconds)
    return run._replace(train_state=fetch(train_state), position=now)

  with (
    session.stopwatch.of("steps"),
    prefetched(session, work) as work_on_devices,
  ):
    while steps_done < phase.num_steps:
      session.maybe_save(here)
      before_batch = time.monotonic()
      batch, learning_rate = next(work_on_devices)
      waited = time.monotonic() - before_batch
      session.stopwatch.move(waited, "input")
      train_state, step_metrics = session.profile.step(
        *(devices.train_step, train_state, batch, context, learning_rate),
        later=state.num_old > 0,
      )
      count = min(at_once, phase.num_steps - steps_done)
      steps_done += count
      metrics.add(step_metrics, count=count, input_seconds=waited)
    metrics.finish()
    return here()


def training_context(
  session: Session, state: IncrementalState, phase: Phase, run: RunState
) -> PhaseContext:
  """Returns what the devices are told of the phase that `run` is in; host arrays."""
  plan, position = session.plan, run.position
  records = phase.sampling.records(pool_of(plan, state, run))
  class_images = np.bincount(
    plan.dataset.train.labels[records], minlength=len(plan.dataset.class_names)
  )
  context = phase_context(state, run.stats, position.teacher, position.num_teacher_classes)
  return context._replace(
    expert=position.expert,
    phase=np.int32(phase.number),
    seed=np.uint32(plan.config.seed),
    class_images=class_images.astype(np.float32),
  )


def take_state(session: Session, state: IncrementalState, run: RunState) -> RunState:
  """Returns a run at the end of a state that another one trained, with its records."""
  for record in session.lender.records(state):
    session.recorder.add(record)
  position = Position(
    session.plan.pool(state, run.exemplars).new_ranks,
    phase=len(state.phases) - 1,
    steps_done=state.phases[-1].num_steps,
    seconds=session.lender.train_seconds[state.index - 1],
  )
  train_state = session.lender.train_state(state, like=run.train_state)
  return run._replace(train_state=train_state, position=position)


def finish_state(session: Session, state: IncrementalState, run: RunState) -> RunState:
  """Does what follows a state's training: exemplars, the method's statistics, scores."""
  plan, method, config = session.plan, session.plan.method, session.plan.config
  train_state, pool = run.train_state, pool_of(plan, state, run)
  is_lent = session.lender.has(state)
  if method.align and not is_lent:  # else it is aligned already
    params = method.align(train_state.params, state.num_old, state.num_seen)
    train_state = train_state.replace(params=params)
  extract = extractor(session, state, train_state, run.stats)
  sizes = {"memory_size": config.memory_size, "num_seen": state.num_seen}
  priority = exemplar_priority(plan, state, pool, extract, count=memory.quota(**sizes))
  finished = FinishedState(
    num_first=plan.states[0].num_seen,
    num_old=state.num_old,
    num_seen=state.num_seen,
    pool=pool,
    labels=plan.dataset.train.labels,
    test_labels=plan.dataset.test.labels,
    memory=memory.update(run.exemplars, pool.new, pool.new_labels, priority, **sizes),
    stats=run.stats,
    params=train_state.params,
    carried=train_state.carried,
    own=train_state.own,
    extract=extract,
    total=totaler(session, state, train_state, run.stats),
    check_interrupt=session.check_interrupt,
  )
  finished = finished._replace(stats=method.stats(finished, config))
  with session.stopwatch.of("evaluation"):
    scores = evaluate(session, state, train_state, finished.stats)
  result = {
    "state": state.index,
    "num_old": state.num_old,
    "num_seen": state.num_seen,
    **scores,
    "statistics": {
      name: value if abs(value) < _LARGEST_SHOWN else None
      for name, value in method.describe(finished, config).items()
    },
    "train_seconds": round(run.position.seconds, 3),
    **session.stopwatch.lap(),
    "peak_host_memory": system.peak_memory(),
    "peak_device_memory": session.devices.peak_memory(),
    "from_workdir": str(session.lender.folder) if is_lent else None,
  }
  # It may be long, and only the last state's is kept.
  earlier = [
    {name: value for name, value in row.items() if name != "class_confusion"}
    for row in run.results
  ]
  return RunState(train_state, finished.memory, finished.stats, [*earlier, result])


def _teacher(plan: Plan, train_state: TrainState, *, num_classes: int) -> dict[str, Any]:
  """Returns fields of a `Position`: the network, which knows so many classes."""
  if not plan.method.has_teacher:
    return {"teacher": None, "num_teacher_classes": 0}
  return {"teacher": _network(train_state), "num_teacher_classes": num_classes}


def _network(train_state: TrainState) -> dict[str, Any]:
  return {"params": train_state.params, "batch_stats": train_state.batch_stats}


def pool_of(plan: Plan, state: IncrementalState, run: RunState) -> Pool:
  """Returns what the phase that `run` is in trains on."""
  return plan.pool(state, run.exemplars)._replace(new_ranks=run.position.new_ranks)


def train_batches(
  session: Session, state: IncrementalState, phase: Phase, run: RunState
) -> loader.TrainBatches:
  """Returns the batches of the phase that `run` is in."""
  config = session.plan.config
  return loader.TrainBatches(
    dataset=session.plan.dataset,
    pool=pool_of(session.plan, state, run),
    sampling=phase.sampling,
    key=Key(config.seed, state.index, phase.number),
    batch_size_new=config.batch_size_new,
    batch_size_memory=config.batch_size_memory,
    num_devices=session.devices.size,
    num_steps=phase.num_steps,
    devices=session.devices.local,
  )


def exemplar_priority(
  plan: Plan, state: IncrementalState, pool: Pool, extract: Extract, *, count: int
) -> np.ndarray:
  """Returns which new records are kept first, sortable [n]; `count` of each class are."""
  return memory.SELECTIONS[plan.config.selection](
    pool.new_labels,
    memory.random_order(len(pool.new), seed=plan.config.seed, state=state.index),
    lambda: extract(pool.new, normalized_features),
    count=count,
  )
