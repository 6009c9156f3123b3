"""Speed and waiting, by a clock that the test moves."""

import types

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from ssil_jax import meter, parallel, step
from ssil_jax.config import make_config
from ssil_jax.methods import get_method
from ssil_jax.plan import make_plan, phase_plans

BATCH_SIZE = 32


class Recorder:
  """Journal and display: keeps what it is told."""

  def __init__(self):
    self.records = []

  def train(self, record):
    self.records.append(record)

  def update(self, record, **shown):
    pass


@pytest.fixture
def clock(monkeypatch):
  """Seconds, in a list of one."""
  now = [100.0]
  monkeypatch.setattr(meter.time, "monotonic", lambda: now[0])
  return now


def meter_that_tells(recorder, *, log_every):
  method = get_method("ssil")
  values = {"memory_size": 10, "batch_size_new": BATCH_SIZE, "batch_size_memory": 8}
  plan = make_plan(make_config(values, method.defaults))
  return meter.Meter(
    phase_plans(plan)[0],
    phase=0,
    first_step=0,
    log_every=log_every,
    journal=recorder,
    display=recorder,
  )


def records_of(clock, steps, *, log_every):
  """The records of a phase whose steps take (seconds, of them waiting for input)."""
  recorder = Recorder()
  meter_of_phase = meter_that_tells(recorder, log_every=log_every)
  mesh = Mesh(np.asarray(jax.devices()[:1]), (step.AXIS,))
  for seconds, waiting in steps:
    clock[0] += seconds
    metrics = {"loss": np.float32(1.0), "top1": np.float32(0.5)}
    meter_of_phase.add(parallel.replicate(metrics, mesh), input_seconds=waiting)
  meter_of_phase.finish()
  return recorder.records


def test_the_share_of_waiting_is_that_of_the_time(clock):
  # The first step compiles; after it, a quarter of every second, then three quarters.
  steps = [(60.0, 0.5), *[(1.0, 0.25)] * 3, *[(2.0, 1.5)] * 4]
  early, late = records_of(clock, steps, log_every=4)
  # Read when eight steps were sent: three of one second and four of two.
  assert early["input_wait"] == pytest.approx((3 * 0.25 + 4 * 1.5) / 11)
  assert early["images_per_second"] == pytest.approx(7 * BATCH_SIZE / 11)
  assert late["step"] == 8


def test_a_device_that_is_slower_than_its_input_never_waits(clock):
  for record in records_of(clock, [(1.0, 0.0)] * 6, log_every=2):
    assert record["input_wait"] == 0


def test_a_device_that_only_waits(clock):
  for record in records_of(clock, [(1.0, 1.0)] * 6, log_every=2):
    assert record["input_wait"] == 1


def test_compiling_counts_only_while_there_is_nothing_else(clock):
  (record,) = records_of(clock, [(60.0, 3.0)], log_every=2)
  assert record["input_wait"] == pytest.approx(3 / 60)
  assert record["images_per_second"] == pytest.approx(BATCH_SIZE / 60)


class Loss:
  """A number on a device that has not come to it yet."""

  def __init__(self):
    self.done = False
    self.addressable_shards = [types.SimpleNamespace(data=np.ones(1, np.float32))]

  def is_ready(self):
    return self.done

  def block_until_ready(self):
    self.done = True
    return self


def test_steps_sent_are_not_steps_done(clock):
  recorder, losses = Recorder(), [Loss() for _ in range(4)]
  meter_of_phase = meter_that_tells(recorder, log_every=2)
  for seconds, loss in zip([60.0, 1.0, 0.0, 0.0], losses, strict=True):
    clock[0] += seconds
    losses[1].done = True
    meter_of_phase.add({"loss": loss, "top1": loss}, input_seconds=0.0)
  # Three steps were sent in the second after the first, and one of them was done.
  assert recorder.records[0]["images_per_second"] == pytest.approx(BATCH_SIZE)
