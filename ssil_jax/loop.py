"""The run: for every incremental state, for every phase, for every step.

It knows states, phases and the `Method` contract; no method's and no data set's name.
"""

import math
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from ssil_jax import data, memory, metrics, parallel, step, workdir
from ssil_jax.checkpoint import Checkpoints, Progress
from ssil_jax.config import Config, validate_with_data
from ssil_jax.data import feed
from ssil_jax.errors import DivergedError
from ssil_jax.journal import Journal
from ssil_jax.methods import Method, SeenClasses, get_method
from ssil_jax.progress import ProgressDisplay
from ssil_jax.resnet import SMALL_IMAGE, ResNet18
from ssil_jax.sampling import Key, Pool
from ssil_jax.states import IncrementalState, Phase, schedule, state_of_class


class Plan(NamedTuple):
  """All that is settled before a device is used."""

  config: Config
  method: Method
  dataset: data.Dataset
  states: tuple[IncrementalState, ...]


class Devices(NamedTuple):
  """What a run holds on the devices and does there."""

  mesh: Mesh
  train_step: Any
  eval_step: Any
  initial: step.TrainState  # on the host
  train_images: jax.Array | None  # [num_devices, N, S, S, 3] if images live there
  test_images: jax.Array | None


def make_plan(config: Config) -> Plan:
  """Opens the data and deals the classes out.

  Raises:
    UserError: flags and data do not go together; nothing was trained or written.
  """
  method = get_method(config.method)
  dataset = data.open_dataset(config)
  states = schedule(config, len(dataset.class_names), method.phases)
  validate_with_data(
    config,
    {s.index: len(_pool(dataset, s, memory.empty()).new) for s in states},
  )
  return Plan(config, method, dataset, states)


def schedule_rows(plan: Plan) -> list[dict[str, Any]]:
  """The schedule, a row for each phase of each state, for schedule.json and the eye."""
  config, rows = plan.config, []
  for state in plan.states:
    exemplars = _exemplars_at(plan, state)
    pool = Pool(_pool(plan.dataset, state, memory.empty()).new, np.arange(exemplars))
    for phase in state.phases:
      steps = phase.sampling.steps_per_epoch(pool, config.batch_size_new)
      sizes = phase.sampling.group_sizes(
        pool, config.batch_size_new, config.batch_size_memory
      )
      rows.append(
        {
          "state": state.index,
          "old classes": state.num_old,
          "new classes": state.num_seen - state.num_old,
          "new images": len(pool.new),
          "exemplars": exemplars,
          "batches": phase.sampling.name,
          "batch size": " + ".join(map(str, sizes)),
          "epochs": phase.epochs,
          "steps": phase.epochs * steps,
          "learning rate": float(f"{phase.learning_rate:.4g}"),
          "drops after": ", ".join(map(str, phase.milestones)) or "-",
        }
      )
  return rows


def run(config: Config, console: Console) -> dict[str, Any]:
  """Trains and evaluates every incremental state that the work directory lacks.

  Args:
    config: of the run.
    console: where progress is shown.

  Returns:
    The contents of results.json.

  Raises:
    UserError: bad input, named; or DivergedError when the loss is no longer finite.
  """
  plan = make_plan(config)
  mesh = parallel.choose_devices(config)
  folder = workdir.claim(config)
  rows = schedule_rows(plan)
  workdir.write_json(folder / "schedule.json", rows)
  console.print(_schedule_table(plan, rows))
  with Checkpoints(folder) as checkpoints:
    return _run_states(plan, mesh, rows, folder, checkpoints, console)


def _run_states(
  plan: Plan,
  mesh: Mesh,
  rows: list[dict[str, Any]],
  folder: pathlib.Path,
  checkpoints: Checkpoints,
  console: Console,
) -> dict[str, Any]:
  devices = _set_up(plan, mesh)
  progress = Progress(devices.initial, memory.empty(), [])
  if checkpoints.latest_state is not None:
    progress = checkpoints.restore(devices.initial)
    console.print(f"resuming after state {checkpoints.latest_state}, from {folder}")
  done = len(progress.results)
  results = _results(plan, devices, progress.results)
  workdir.write_json(folder / "results.json", results)

  train_state = parallel.replicate(progress.train_state, mesh)
  exemplars = progress.memory
  images_left = sum(
    row["steps"] * _batch_size(row) for row in rows if row["state"] > done
  )
  with (
    Journal(
      folder, states_done=done, steps_done=int(progress.train_state.step)
    ) as journal,
    ProgressDisplay(
      console, num_states=len(plan.states), total_images=images_left
    ) as display,
  ):
    for state in plan.states[done:]:
      started = time.monotonic()
      if plan.config.reset_momentum:
        train_state = train_state.replace(
          opt_state=parallel.replicate(devices.initial.opt_state, mesh)
        )
      classes = _classes(state, mesh)
      pool = _pool(plan.dataset, state, exemplars)
      for phase_index, phase in enumerate(state.phases):
        train_state = _train_phase(
          plan,
          devices,
          train_state,
          state,
          phase_index,
          phase,
          pool,
          classes,
          journal=journal,
          display=display,
        )
      host_state = parallel.fetch(train_state)
      train_seconds = time.monotonic() - started

      exemplars = _update_memory(plan, state, pool.new, exemplars)
      counts = evaluate(plan, devices, train_state, state)
      result = {
        "state": state.index,
        "num_old": state.num_old,
        "num_seen": state.num_seen,
        **metrics.summarize(counts, state=state.index),
        "train_seconds": round(train_seconds, 3),
      }
      results = _results(plan, devices, [*results["states"], result])
      checkpoints.save(Progress(host_state, exemplars, results["states"]))
      workdir.write_json(folder / "results.json", results)
      journal.evaluation(result, step=int(host_state.step))
      display.print(_one_line(result, len(plan.states)))
  return results


def _set_up(plan: Plan, mesh: Mesh) -> Devices:
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
    seed=config.seed,
    state_of_class=tuple(state_of_class(plan.states).tolist()),
  )
  train_images, test_images = (
    parallel.replicate(split.images, mesh) if split.on_device else None
    for split in (dataset.train, dataset.test)
  )
  return Devices(
    mesh=mesh,
    train_step=parallel.map_train_step(model, mesh),
    eval_step=parallel.map_eval_step(model, mesh),
    initial=jax.device_get(step.create_train_state(model, dataset.image_size)),
    train_images=train_images,
    test_images=test_images,
  )


def _train_phase(
  plan: Plan,
  devices: Devices,
  train_state: step.TrainState,
  state: IncrementalState,
  phase_index: int,
  phase: Phase,
  pool: Pool,
  classes: SeenClasses,
  *,
  journal: Journal,
  display: ProgressDisplay,
) -> step.TrainState:
  config, mesh = plan.config, devices.mesh
  make_batch = feed.train_batch_maker(
    plan.dataset,
    pool,
    phase.sampling,
    Key(config.seed, state.index, phase_index),
    batch_size_new=config.batch_size_new,
    batch_size_memory=config.batch_size_memory,
    num_devices=mesh.size,
  )
  steps_per_epoch = phase.sampling.steps_per_epoch(pool, config.batch_size_new)
  num_steps = phase.epochs * steps_per_epoch
  first_step = int(parallel.fetch(train_state.step))
  pending, reported, window_started = [], 0, time.monotonic()

  def close_window(num_steps: int) -> None:
    """Reports the oldest pending steps."""
    nonlocal window_started, reported
    window = parallel.fetch(pending[:num_steps])
    del pending[:num_steps]
    reported += num_steps
    now = time.monotonic()
    images = len(window) * math.prod(batch.labels.shape)
    record = {
      "state": state.index,
      "phase": phase_index,
      "epoch": -(-reported // steps_per_epoch),
      "step": first_step + reported,
      "loss": float(np.mean([m["loss"] for m in window])),
      "top1": float(np.mean([m["top1"] for m in window])),
      "learning_rate": phase.learning_rate_at((reported - 1) // steps_per_epoch),
      "images_per_second": images / (now - window_started),
    }
    window_started = now
    if not math.isfinite(record["loss"]):
      raise DivergedError(
        f"the loss is {record['loss']} in state {state.index}, epoch {record['epoch']}, "
        f"step {record['step']}: lower --learning_rate; the states before are saved"
      )
    journal.train(record)
    display.update(
      state=state.index,
      epoch=record["epoch"],
      epochs=phase.epochs,
      loss=record["loss"],
      images=images,
      images_per_second=record["images_per_second"],
    )

  for index, batch in enumerate(feed.prefetched(make_batch, num_steps)):
    epoch, place = divmod(index, steps_per_epoch)
    if place == 0:
      rate = np.float32(phase.learning_rate_at(epoch))
      learning_rate = parallel.replicate(rate, mesh)
    train_state, step_metrics = devices.train_step(
      train_state,
      parallel.shard(batch, mesh),
      classes,
      learning_rate,
      devices.train_images,
    )
    pending.append(step_metrics)
    # One window behind, so that reading it does not wait for the step just sent.
    if len(pending) == 2 * config.log_every:
      close_window(config.log_every)
  close_window(len(pending))
  return train_state


def evaluate(
  plan: Plan, devices: Devices, train_state: step.TrainState, state: IncrementalState
) -> metrics.Counts:
  """Counts over every test image of the classes seen."""
  records = data.records_of(plan.dataset.test.labels, 0, state.num_seen)
  make_batch, num_batches = feed.eval_batch_maker(
    plan.dataset,
    records,
    batch_size=plan.config.batch_size_test,
    num_devices=devices.mesh.size,
  )
  classes = _classes(state, devices.mesh)
  counts = [
    devices.eval_step(
      train_state, parallel.shard(batch, devices.mesh), classes, devices.test_images
    )
    for batch in feed.prefetched(make_batch, num_batches)
  ]
  return metrics.add(parallel.fetch(counts))


def _classes(state: IncrementalState, mesh: Mesh) -> SeenClasses:
  split = SeenClasses(np.int32(state.num_old), np.int32(state.num_seen))
  return parallel.replicate(split, mesh)


def _pool(
  dataset: data.Dataset, state: IncrementalState, exemplars: memory.Memory
) -> Pool:
  new = data.records_of(dataset.train.labels, state.num_old, state.num_seen)
  return Pool(new=new, memory=exemplars.records)


def _update_memory(
  plan: Plan, state: IncrementalState, records: np.ndarray, exemplars: memory.Memory
) -> memory.Memory:
  return memory.update(
    exemplars,
    records,
    plan.dataset.train.labels[records],
    memory.random_order(len(records), seed=plan.config.seed, state=state.index),
    memory_size=plan.config.memory_size,
    num_seen=state.num_seen,
  )


def _exemplars_at(plan: Plan, state: IncrementalState) -> int:
  """Size of the memory that a state replays."""
  if not state.num_old:
    return 0
  sizes = np.bincount(plan.dataset.train.labels, minlength=state.num_old)
  quota = memory.quota(plan.config.memory_size, state.num_old)
  return int(np.minimum(sizes[: state.num_old], quota).sum())


def _results(
  plan: Plan, devices: Devices, states: list[dict[str, Any]]
) -> dict[str, Any]:
  return {
    "dataset": plan.config.dataset,
    "method": plan.config.method,
    "method_title": plan.method.title,
    "num_states": plan.config.num_states,
    "num_classes": len(plan.dataset.class_names),
    "memory_size": plan.config.memory_size,
    "seed": plan.config.seed,
    "ignored_files": plan.dataset.ignored_files,
    "environment": parallel.describe(devices.mesh),
    "states": states,
    "average": metrics.average(states),
  }


def _schedule_table(plan: Plan, rows: list[dict[str, Any]]) -> Table:
  table = Table(title=f"{plan.method.title} on {plan.config.dataset}")
  for name in rows[0]:
    table.add_column(name, justify="right")
  for row in rows:
    table.add_row(*map(str, row.values()))
  return table


def _batch_size(row: dict[str, Any]) -> int:
  return sum(map(int, row["batch size"].split(" + ")))


def _one_line(result: dict[str, Any], num_states: int) -> str:
  balance = ""
  if result["imbalance"] is not None:
    balance = (
      f"  e(p,n) {result['error_old_as_new']:.1%}"
      f"  e(n,p) {result['error_new_as_old']:.1%}"
    )
  return (
    f"state {result['state']}/{num_states} done: {result['num_seen']} classes  "
    f"top-1 {result['top1']:.1%}{balance}  {result['train_seconds']:.0f} s"
  )
