"""Runs the network on images that are not augmented: test scores, outputs for methods."""

import collections
import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ssil_jax import metrics
from ssil_jax.data import loader
from ssil_jax.data.dataset import Batch, records_of
from ssil_jax.errors import DivergedError
from ssil_jax.methods.base import (
  Extract,
  ImageFn,
  OutputFn,
  PhaseContext,
  SeenClasses,
  Total,
)
from ssil_jax.schedule import IncrementalState
from ssil_jax.training.devices import fetch
from ssil_jax.training.run_state import TrainState
from ssil_jax.training.session import Session

_STEPS_AHEAD = 8


def evaluate(
  session: Session, state: IncrementalState, train_state: TrainState, stats: Any
) -> dict[str, Any]:
  """Returns the scores of the test images of all classes seen.

  They are those of `metrics.summarize` and `metrics.summarize_classes`.
  `train_state` and `stats`, the method's, are host arrays.

  Raises:
    DivergedError: the network's outputs are not finite.
  """
  labels = session.plan.dataset.test.labels
  network, context = session.devices.replicate((train_state, phase_context(state, stats)))
  records, counts = records_of(labels, 0, state.num_seen), []

  def step(batch: Batch) -> metrics.Predictions:
    of_batch, predicted = session.devices.eval_step(network, batch, context)
    counts.append(of_batch)
    return predicted

  predicted = _gathered(session, "test", records, step)
  total = metrics.add(fetch(counts))
  if not np.isfinite(total.score_new).all():
    raise DivergedError(
      f"the network's outputs on the {session.plan.config.scored} images are not finite "
      f"after state {state.index}"
    )
  return {
    **metrics.summarize(total, state=state.index),
    **metrics.summarize_classes(predicted, labels[records], num_seen=state.num_seen),
  }


def extractor(
  session: Session, state: IncrementalState, train_state: TrainState, stats: Any
) -> Extract:
  """Returns what runs the network on chosen records; arguments as in `evaluate`."""
  network = functools.cache(
    lambda: session.devices.replicate((train_state, phase_context(state, stats)))
  )

  def extract(records: np.ndarray, output_fn: OutputFn, *, test: bool = False) -> Any:
    split = "test" if test else "train"

    def step(batch: Batch) -> Any:
      on_devices, context = network()
      return session.devices.extract_step(on_devices, batch, context, output_fn, split)

    return _gathered(session, split, records, step)

  return extract


def totaler(
  session: Session, state: IncrementalState, train_state: TrainState, stats: Any
) -> Total:
  """Returns what adds up over chosen training records; arguments as in `evaluate`."""

  def total(records: np.ndarray, image_fn: ImageFn, like: Any) -> Any:
    devices = session.devices
    network, context, sums = devices.replicate(
      (train_state, phase_context(state, stats), jax.tree.map(np.zeros_like, like))
    )
    of_one_image = _batches(session, "train", records, batch_size=devices.size)
    with prefetched(session, of_one_image) as batches:
      for number, batch in enumerate(batches):
        session.check_interrupt()
        if number % _STEPS_AHEAD == 0:  # else images that wait would fill the memory
          jax.block_until_ready(sums)
        sums = devices.total_step(sums, network, batch, context, image_fn)
    return jax.tree.map(lambda x: np.sum(x, axis=0, dtype=np.float64), devices.gather(sums))

  return total


def _gathered(
  session: Session, split: str, records: np.ndarray, step: Callable[[Batch], Any]
) -> Any:
  """Returns what `step` says of each of the records; host arrays [n, ...].

  `step` takes a batch on the devices to arrays [local devices, share of the batch, ...].
  """
  sent, done = collections.deque(), []
  with prefetched(session, _batches(session, split, records)) as batches:
    for batch in batches:
      session.check_interrupt()
      sent.append(step(batch))
      # Fetched some steps later, so that neither side waits and little stays on devices.
      if len(sent) > _STEPS_AHEAD:
        done.append(session.devices.gather(sent.popleft()))
  done += map(session.devices.gather, sent)

  def join(*parts):
    shape = parts[0].shape[2:]  # without devices and their shares
    return np.concatenate([part.reshape(-1, *shape) for part in parts])[: len(records)]

  return jax.tree.map(join, *done)


def phase_context(
  state: IncrementalState,
  stats: Any,
  teacher: Any = None,
  num_teacher_classes: int = 0,
) -> PhaseContext:
  """Returns what the devices are told of a state and its method; host arrays."""
  numbers = (state.num_old, state.num_seen, num_teacher_classes)
  classes = SeenClasses(*map(np.int32, numbers))
  return PhaseContext(classes, teacher if num_teacher_classes else None, stats)


def _batches(
  session: Session, split: str, records: np.ndarray, *, batch_size: int | None = None
) -> loader.EvalBatches:
  dataset = session.plan.dataset
  return loader.EvalBatches(
    split=getattr(dataset, split),
    image_size=dataset.image_size,
    records=records,
    batch_size=batch_size or session.plan.config.batch_size_test,
    num_devices=session.devices.size,
    devices=session.devices.local,
  )


def prefetched(
  session: Session,
  batches: loader.TrainBatches | loader.EvalBatches,
  *,
  start: int = 0,
) -> contextlib.closing:
  """Returns the batches on the devices, ahead of their use; none are made after leaving."""
  return contextlib.closing(
    loader.prefetched(
      batches,
      session.devices.batch_sender(),
      start=start,
      at_once=loader.LIGHT if batches.are_light else 1,
      num_processes=session.plan.config.input_processes,
    )
  )
