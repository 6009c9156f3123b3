"""Measures how fast a run trains here, by some of its steps.

Once in a process: virtual CPU devices are made before the first one is used.
"""

import time

import jax

from ssil_jax import memory
from ssil_jax.config import Config
from ssil_jax.schedule import IncrementalState, Phase
from ssil_jax.training import devices, loop
from ssil_jax.training.dispatches import dispatches
from ssil_jax.training.evaluate import prefetched
from ssil_jax.training.plan import make_plan
from ssil_jax.training.run_state import RunState
from ssil_jax.training.session import Session, make_session

_STEPS, _SECONDS = 20, 10.0  # whichever ends first


def measure(config: Config) -> float:
  """Returns the images that a run trains on in a second, compilation aside.

  The steps are those of the second state, with exemplars and teachers, if there are any;
  where it has few, its images are gone round again.

  Raises:
    UserError: as `make_plan`.
  """
  devices.prepare_cpu_devices(config)
  plan = make_plan(config)
  session = make_session(plan, devices.choose_devices(config))
  state, phase, run = begin_second_state(session)
  at_once = session.devices.steps_at_once
  phase = phase._replace(epochs=_STEPS + 2 * at_once)  # of a step at least; some compile
  batches = loop.train_batches(session, state, phase, run)
  train_state = session.devices.replicate(run.train_state)
  context = session.devices.replicate(loop.training_context(session, state, phase, run))
  work = dispatches(batches, phase, first=0, size=at_once)
  with prefetched(session, work) as work_on_devices:
    for number, (batch, rate) in enumerate(work_on_devices):
      train_state, metrics = session.devices.train_step(
        train_state, batch, context, rate, later=state.num_old > 0
      )
      if number == 0:
        jax.block_until_ready(metrics)
        start = time.perf_counter()
      elif number * at_once >= _STEPS or time.perf_counter() - start > _SECONDS:
        break
    jax.block_until_ready(metrics)
    seconds = time.perf_counter() - start
  return number * at_once * phase.batch_size / seconds


def begin_second_state(session: Session) -> tuple[IncrementalState, Phase, RunState]:
  """Returns the second state, with exemplars, and its slowest phase, just begun.

  Of a plan of a single state, that one.
  """
  plan, config = session.plan, session.plan.config
  run, state = session.start(), plan.states[min(1, len(plan.states) - 1)]
  if state.num_old:
    pool = plan.pool(plan.states[0], run.exemplars)
    sizes = {"memory_size": config.memory_size, "num_seen": state.num_old}
    new = (pool.new, pool.new_labels, pool.new_ranks)
    run = run._replace(exemplars=memory.update(run.exemplars, *new, **sizes))
  run = loop.begin_state(session, state, run)
  # Steps with a second teacher are the slowest.
  phase = next((p for p in state.phases if p.new_expert), state.phases[0])
  if phase.number:
    run = loop.begin_phase(session, state, phase, run)
  return state, phase, run
