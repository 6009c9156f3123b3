"""The run: for every incremental state, for every phase, for every step.

It knows states, phases and the `Method` contract; no method's and no data set's name.
"""

import contextlib
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from ssil_jax import data, memory, metrics, parallel, step, workdir
from ssil_jax.checkpoint import Checkpoints, Progress
from ssil_jax.config import Config
from ssil_jax.data import feed
from ssil_jax.errors import DivergedError
from ssil_jax.journal import Journal
from ssil_jax.meter import Meter
from ssil_jax.methods import SeenClasses
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
from ssil_jax.resnet import SMALL_IMAGE, ResNet18
from ssil_jax.sampling import Key, Pool
from ssil_jax.states import IncrementalState, state_of_class


class Trainer(NamedTuple):
  """What a run holds on the devices, and does there."""

  mesh: Mesh
  train_step: Callable
  eval_step: Callable
  initial: step.TrainState  # on the host
  train_images: jax.Array | None  # [num_devices, N, S, S, 3] if images live there
  test_images: jax.Array | None


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
  folder = workdir.claim(config, data_fingerprint=data.fingerprint(plan.dataset))
  workdir.write_json(folder / "schedule.json", schedule_rows(plan))
  if plan.dataset.ignored_files:
    console.print(
      f"{plan.dataset.ignored_files} files or folders beside the images are ignored"
    )
  for note in plan.dataset.notes:
    console.print(note, markup=False)
  console.print(schedule_table(plan))
  trainer = make_trainer(plan, mesh)

  with Checkpoints(folder) as checkpoints:
    progress = checkpoints.latest(otherwise=start(trainer))
    done = len(progress.results)
    if done:
      console.print(f"states 1 to {done} are done already, in {folder}", markup=False)
    workdir.write_json(folder / "results.json", _results(plan, mesh, progress.results))
    train_state = parallel.replicate(progress.train_state, mesh)
    phases = [p for p in phase_plans(plan) if p.state.index > done]
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
        started = time.monotonic()
        if config.reset_momentum:
          fresh = parallel.replicate(trainer.initial.opt_state, mesh)
          train_state = train_state.replace(opt_state=fresh)
        pool = plan.pool(state, progress.memory)
        for index, phase in enumerate(p for p in phases if p.state is state):
          meter = Meter(
            phase,
            phase=index,
            first_step=int(parallel.fetch(train_state.step)),
            log_every=config.log_every,
            journal=journal,
            display=display,
          )
          train_state = train_phase(
            plan,
            trainer,
            train_state,
            phase,
            pool,
            phase_index=index,
            meter=meter,
            check_interrupt=check_interrupt,
          )
        train_seconds = time.monotonic() - started

        result = {
          "state": state.index,
          "num_old": state.num_old,
          "num_seen": state.num_seen,
          **evaluate(plan, trainer, train_state, state),
          "train_seconds": round(train_seconds, 3),
        }
        progress = Progress(
          parallel.fetch(train_state),
          update_memory(plan, state, pool, progress.memory),
          [*progress.results, result],
        )
        checkpoints.save(progress)
        workdir.write_json(folder / "results.json", _results(plan, mesh, progress.results))
        journal.evaluation(result, step=int(progress.train_state.step))
        display.print(_one_line(result, len(plan.states)))
  return _results(plan, mesh, progress.results)


def make_trainer(plan: Plan, mesh: Mesh) -> Trainer:
  """The network's initial state on the host, the steps, and small images in place."""
  config, dataset = plan.config, plan.dataset
  model = step.Model(
    network=ResNet18(
      num_classes=len(dataset.class_names),
      width=config.width,
      small_images=dataset.image_size <= SMALL_IMAGE,
      dtype=jnp.dtype(config.precision),
      axis_name=step.AXIS,
    ),
    method=plan.method,
    optimizer=step.make_optimizer(
      momentum=config.momentum, weight_decay=config.weight_decay
    ),
    augmentation=dataset.augmentation,
    normalization=dataset.normalization,
    seed=config.seed,
    state_of_class=tuple(state_of_class(plan.states).tolist()),
  )
  train_images, test_images = (
    parallel.replicate(split.images, mesh) if split.on_device else None
    for split in (dataset.train, dataset.test)
  )
  return Trainer(
    mesh=mesh,
    train_step=parallel.map_train_step(model, mesh),
    eval_step=parallel.map_eval_step(model, mesh),
    initial=parallel.initial_train_state(model, dataset.image_size),
    train_images=train_images,
    test_images=test_images,
  )


def start(trainer: Trainer) -> Progress:
  """A run that has done nothing yet."""
  return Progress(trainer.initial, memory.empty(), [])


def train_phase(
  plan: Plan,
  trainer: Trainer,
  train_state: step.TrainState,
  phase: PhasePlan,
  pool: Pool,
  *,
  phase_index: int,
  meter: Meter,
  check_interrupt: Callable[[], None] = lambda: None,
) -> step.TrainState:
  """All steps of a phase; `train_state` is on the devices, and is used up."""
  batches = feed.TrainBatches(
    dataset=plan.dataset,
    pool=pool,
    sampling=phase.phase.sampling,
    key=Key(plan.config.seed, phase.state.index, phase_index),
    batch_size_new=plan.config.batch_size_new,
    batch_size_memory=plan.config.batch_size_memory,
    num_devices=trainer.mesh.size,
    num_steps=phase.num_steps,
  )
  classes = seen_classes(phase.state, trainer.mesh)
  backpressure = parallel.Backpressure()
  with prefetched(plan.config, trainer, batches) as batches_on_devices:
    for number in range(phase.num_steps):
      check_interrupt()
      started = time.monotonic()
      batch = next(batches_on_devices)
      waited = time.monotonic() - started
      epoch, place = divmod(number, phase.steps_per_epoch)
      if place == 0:
        rate = np.float32(phase.phase.learning_rate_at(epoch))
        learning_rate = parallel.replicate(rate, trainer.mesh)
      train_state, step_metrics = trainer.train_step(
        train_state, batch, classes, learning_rate, trainer.train_images
      )
      backpressure.add(step_metrics)
      meter.add(step_metrics, input_seconds=waited)
  meter.finish()
  return train_state


def evaluate(
  plan: Plan, trainer: Trainer, train_state: step.TrainState, state: IncrementalState
) -> dict[str, Any]:
  """The scores over every test image of the classes seen; see `metrics.summarize`."""
  batches = feed.EvalBatches(
    dataset=plan.dataset,
    records=data.records_of(plan.dataset.test.labels, 0, state.num_seen),
    batch_size=plan.config.batch_size_test,
    num_devices=trainer.mesh.size,
  )
  classes = seen_classes(state, trainer.mesh)
  backpressure, counts = parallel.Backpressure(), []
  with prefetched(plan.config, trainer, batches) as batches_on_devices:
    for batch in batches_on_devices:
      counts.append(trainer.eval_step(train_state, batch, classes, trainer.test_images))
      backpressure.add(counts[-1])
  total = metrics.add(parallel.fetch(counts))
  if not np.isfinite(total.score_new).all():
    raise DivergedError(
      f"the network's outputs on the test images are not finite after state "
      f"{state.index}: lower --learning_rate; the states before this one are saved"
    )
  return metrics.summarize(total, state=state.index)


def prefetched(
  config: Config, trainer: Trainer, batches: feed.TrainBatches | feed.EvalBatches
) -> contextlib.closing:
  """The batches on the devices, a few ahead of their use; no more are made on leaving."""
  return contextlib.closing(
    feed.prefetched(
      batches,
      functools.partial(parallel.shard, mesh=trainer.mesh),
      num_processes=config.input_processes,
    )
  )


def update_memory(
  plan: Plan, state: IncrementalState, pool: Pool, exemplars: memory.Memory
) -> memory.Memory:
  """The exemplars after a state."""
  return memory.update(
    exemplars,
    pool.new,
    plan.dataset.train.labels[pool.new],
    memory.random_order(len(pool.new), seed=plan.config.seed, state=state.index),
    memory_size=plan.config.memory_size,
    num_seen=state.num_seen,
  )


def seen_classes(state: IncrementalState, mesh: Mesh) -> SeenClasses:
  """Where the classes stand in a state, on the devices."""
  numbers = SeenClasses(np.int32(state.num_old), np.int32(state.num_seen))
  return parallel.replicate(numbers, mesh)


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
