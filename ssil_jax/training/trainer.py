"""What is done on the devices, batch by batch: training, evaluation, surveys."""

import collections
import contextlib
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ssil_jax import metrics
from ssil_jax.config import Config
from ssil_jax.data import loader
from ssil_jax.data.dataset import LARGEST_RESIDENT, Split, records_of
from ssil_jax.errors import DivergedError
from ssil_jax.methods.base import Given, Measure
from ssil_jax.resnet import ResNet18
from ssil_jax.sampling import Key, Pool
from ssil_jax.schedule import IncrementalState, state_of_class
from ssil_jax.training import devices, step
from ssil_jax.training.meter import Meter
from ssil_jax.training.plan import PhasePlan, Plan

_SURVEYS_AHEAD = 8


class Trainer(NamedTuple):
  """What a run holds on the devices, and does there."""

  mesh: Mesh
  train_step: Callable
  eval_step: Callable
  survey_step: Callable[[Measure], Callable]
  initial: step.TrainState  # on the host
  train_images: jax.Array | None  # [own devices, N, S, S, 3] if images live there
  test_images: jax.Array | None
  check_interrupt: Callable[[], None]  # called before every batch that is not trained on


def make_trainer(
  plan: Plan, mesh: Mesh, *, check_interrupt: Callable[[], None] = lambda: None
) -> Trainer:
  """The network's initial state on the host, the steps, and small images in place."""
  config, dataset = plan.config, plan.dataset
  model = step.Model(
    network=ResNet18(
      num_classes=len(dataset.class_names),
      cosine_head=plan.method.cosine_head,
      width=config.width,
      small_images=dataset.image_size <= LARGEST_RESIDENT,
      dtype=jnp.dtype(config.precision),
      axis_name=step.AXIS,
    ),
    method=plan.method,
    optimizer=step.make_optimizer(
      momentum=config.momentum, weight_decay=config.weight_decay
    ),
    augmentation=dataset.augmentation,
    normalization=dataset.normalization,
    config=config,
    state_of_class=tuple(state_of_class(plan.states).tolist()),
  )
  train_images, test_images = (
    devices.replicate(split.images, mesh) if split.on_device else None
    for split in (dataset.train, dataset.test)
  )
  return Trainer(
    mesh=mesh,
    train_step=devices.map_train_step(model, mesh),
    eval_step=devices.map_eval_step(model, mesh),
    # A measure is compiled once in a run.
    survey_step=functools.cache(functools.partial(devices.map_survey_step, model, mesh)),
    initial=devices.initial_train_state(model, dataset.image_size),
    train_images=train_images,
    test_images=test_images,
    check_interrupt=check_interrupt,
  )


def train_phase(
  plan: Plan,
  trainer: Trainer,
  train_state: step.TrainState,
  given: Given,
  phase: PhasePlan,
  pool: Pool,
  *,
  phase_index: int,
  steps_done: int,
  meter: Meter,
  before_step: Callable[[step.TrainState, int], None] = lambda train_state, number: None,
) -> step.TrainState:
  """The steps of a phase that are not done.

  Args:
    plan: of the run.
    trainer: of the run.
    train_state: on the devices, used up.
    given: on the devices.
    phase: the phase.
    pool: what it draws from.
    phase_index: its number in its state, from 0.
    steps_done: of the phase.
    meter: takes the metrics of the steps.
    before_step: called with the network, on the devices, and the steps done of the phase;
      what it raises ends the run.
  """
  batches = train_batches(plan, trainer, phase, pool, phase_index=phase_index)
  backpressure = devices.Backpressure()
  learning_rate = None
  with prefetched(plan.config, trainer, batches, start=steps_done) as batches_on_devices:
    for number in range(steps_done, phase.num_steps):
      before_step(train_state, number)
      started = time.monotonic()
      batch = next(batches_on_devices)
      waited = time.monotonic() - started
      epoch, place = divmod(number, phase.steps_per_epoch)
      if place == 0 or learning_rate is None:
        rate = np.float32(phase.phase.learning_rate_at(epoch))
        learning_rate = devices.replicate(rate, trainer.mesh)
      train_state, step_metrics = trainer.train_step(
        train_state, batch, given, learning_rate, trainer.train_images
      )
      backpressure.add(step_metrics)
      meter.add(step_metrics, input_seconds=waited)
  meter.finish()
  return train_state


def train_batches(
  plan: Plan, trainer: Trainer, phase: PhasePlan, pool: Pool, *, phase_index: int
) -> loader.TrainBatches:
  """The batches of a phase."""
  return loader.TrainBatches(
    dataset=plan.dataset,
    pool=pool,
    sampling=phase.phase.sampling,
    key=Key(plan.config.seed, phase.state.index, phase_index),
    batch_size_new=plan.config.batch_size_new,
    batch_size_memory=plan.config.batch_size_memory,
    num_devices=trainer.mesh.size,
    num_steps=phase.num_steps,
    devices=devices.local_devices(trainer.mesh),
  )


def evaluate(
  plan: Plan,
  trainer: Trainer,
  train_state: step.TrainState,
  given: Given,
  state: IncrementalState,
) -> dict[str, Any]:
  """The scores over every test image of the classes seen; see `metrics.summarize`."""
  batches = _plain_batches(
    plan,
    trainer,
    plan.dataset.test,
    records_of(plan.dataset.test.labels, 0, state.num_seen),
  )
  backpressure, counts = devices.Backpressure(), []
  with prefetched(plan.config, trainer, batches) as batches_on_devices:
    for batch in batches_on_devices:
      trainer.check_interrupt()
      counts.append(trainer.eval_step(train_state, batch, given, trainer.test_images))
      backpressure.add(counts[-1])
  total = metrics.add(devices.fetch(counts))
  if not np.isfinite(total.score_new).all():
    raise DivergedError(
      f"the network's outputs on the test images are not finite after state {state.index}"
    )
  return metrics.summarize(total, state=state.index)


def survey(
  plan: Plan,
  trainer: Trainer,
  train_state: step.TrainState,
  given: Given,
  records: np.ndarray,
  measure: Measure,
  *,
  test: bool = False,
) -> Any:
  """A measure of each record (at least one), see `methods.base.Survey`."""
  split = plan.dataset.test if test else plan.dataset.train
  images = trainer.test_images if test else trainer.train_images
  batches = _plain_batches(plan, trainer, split, records)
  survey_step = trainer.survey_step(measure)
  gather = functools.partial(devices.gather, mesh=trainer.mesh)
  under_way, measured = collections.deque(), []
  with prefetched(plan.config, trainer, batches) as batches_on_devices:
    for batch in batches_on_devices:
      trainer.check_interrupt()
      under_way.append(survey_step(train_state, batch, given, images))
      # Fetched some steps later, so that neither side waits and little stays on devices.
      if len(under_way) > _SURVEYS_AHEAD:
        measured.append(gather(under_way.popleft()))
  measured += map(gather, under_way)

  def join(*parts):
    shape = parts[0].shape[2:]  # without devices and their shares
    return np.concatenate([part.reshape(-1, *shape) for part in parts])[: len(records)]

  return jax.tree.map(join, *measured)


def _plain_batches(
  plan: Plan, trainer: Trainer, split: Split, records: np.ndarray
) -> loader.EvalBatches:
  return loader.EvalBatches(
    split=split,
    image_size=plan.dataset.image_size,
    records=records,
    batch_size=plan.config.batch_size_test,
    num_devices=trainer.mesh.size,
    devices=devices.local_devices(trainer.mesh),
  )


def prefetched(
  config: Config,
  trainer: Trainer,
  batches: loader.TrainBatches | loader.EvalBatches,
  *,
  start: int = 0,
) -> contextlib.closing:
  """The batches on the devices, a few ahead of their use; no more are made on leaving."""
  return contextlib.closing(
    loader.prefetched(
      batches,
      functools.partial(devices.shard, mesh=trainer.mesh),
      start=start,
      num_processes=config.input_processes,
    )
  )
