"""Speed and waiting, by a clock that the test moves."""

import functools
import types

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh

from ssil_jax.config import make_config
from ssil_jax.errors import DivergedError
from ssil_jax.methods import get_method
from ssil_jax.training import devices, meter, step
from ssil_jax.training.plan import make_plan, phase_plans

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


@functools.cache
def first_phase():
  method = get_method("ssil")
  values = {"memory_size": 10, "batch_size_new": BATCH_SIZE, "batch_size_memory": 8}
  return phase_plans(make_plan(make_config(values, method)))[0]


def meter_that_tells(
  recorder, *, log_every, first_step=0, steps_done=0, window=meter.NO_STEPS
):
  return meter.Meter(
    first_phase(),
    phase=0,
    first_step=first_step,
    steps_done=steps_done,
    window=window,
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
    meter_of_phase.add(devices.replicate(metrics, mesh), input_seconds=waiting)
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


# A run that is cut and goes on ------------------------------------------------------------

_MESH = Mesh(np.asarray(jax.devices()[:1]), (step.AXIS,))
_TIMES = {"images_per_second": 0, "input_wait": 0}


def step_metrics(number):
  """Of that step of the phase, from 0; no two are alike."""
  metrics = {"loss": np.float32(1 / (number + 1)), "top1": np.float32(number / 97)}
  return devices.replicate(metrics, _MESH)


def cut_and_gone_on(cuts, num_steps):
  """Records of a phase in pieces.

  Args:
    cuts: [(steps of the phase at which a piece ends, its log_every)].
    num_steps: of the phase, which ends after the last piece.
  """
  recorder, done, window = Recorder(), 0, meter.NO_STEPS
  for until, log_every in cuts:
    piece = meter_that_tells(
      recorder, log_every=log_every, first_step=100, steps_done=done, window=window
    )
    for number in range(done, until):
      piece.add(step_metrics(number), input_seconds=0.0)
    done = until
    if done < num_steps:
      window = piece.settle()
      assert (window.dtype, window.shape[1:]) == (np.float32, (2,))
    else:
      piece.finish()
  return [record | _TIMES for record in recorder.records]


@settings(deadline=None, max_examples=60, database=None, derandomize=True)
@given(
  log_every=st.integers(1, 5),
  num_steps=st.integers(1, 14),
  cuts=st.lists(st.integers(0, 14), max_size=4),
)
def test_a_phase_in_pieces_has_the_records_of_a_whole_one(log_every, num_steps, cuts):
  cuts = [(min(cut, num_steps - 1), log_every) for cut in sorted(cuts)]
  whole = cut_and_gone_on([(num_steps, log_every)], num_steps)
  assert cut_and_gone_on([*cuts, (num_steps, log_every)], num_steps) == whole
  assert [record["step"] - 100 for record in whole] == [
    *range(log_every, num_steps + 1, log_every),
    *([num_steps] if num_steps % log_every else []),
  ]


@settings(deadline=None, max_examples=60, database=None, derandomize=True)
@given(
  first=st.tuples(st.integers(0, 12), st.integers(1, 6)),
  second=st.tuples(st.integers(0, 12), st.integers(1, 6)),
  log_every=st.integers(1, 6),
  more=st.integers(1, 6),
)
def test_every_step_is_in_one_record_though_log_every_changes(
  first, second, log_every, more
):
  pieces = sorted([first, second], key=lambda piece: piece[0])
  num_steps = pieces[-1][0] + more
  records = cut_and_gone_on([*pieces, (num_steps, log_every)], num_steps)
  ends = [record["step"] - 100 for record in records]
  assert ends == sorted(set(ends))
  assert ends[-1] == num_steps
  for begin, end, record in zip([0, *ends], ends, records, strict=False):
    # As the mean of exactly the steps since the record before.
    metrics = np.array([[1 / (n + 1), n / 97] for n in range(begin, end)], np.float32)
    means = np.mean(list(metrics), axis=0)
    assert (record["loss"], record["top1"]) == tuple(map(float, means))
  assert max(np.diff([0, *ends])) <= max(log_every, *(size for _, size in pieces))


def test_settling_reports_what_fills_a_record_and_keeps_the_rest():
  recorder = Recorder()
  piece = meter_that_tells(recorder, log_every=3)
  for number in range(8):
    piece.add(step_metrics(number), input_seconds=0.0)
  window = piece.settle()
  assert [record["step"] for record in recorder.records] == [3, 6]
  expected = np.array([[1 / 7, 6 / 97], [1 / 8, 7 / 97]], np.float32)
  np.testing.assert_array_equal(window, expected)
  # Going on after a checkpoint, the same meter reports as if there had been none.
  piece.add(step_metrics(8), input_seconds=0.0)
  assert len(piece.settle()) == 0
  assert recorder.records[-1]["step"] == 9


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("how", ["settle", "finish", "add"])
@pytest.mark.parametrize("bad", [0, 1, 4, 7])
def test_a_loss_that_is_not_finite_is_named_with_its_step(value, how, bad):
  recorder, steps_per_epoch = Recorder(), first_phase().steps_per_epoch
  done = 2 * steps_per_epoch - 3  # so that the third step is the first of epoch 3
  piece = meter_that_tells(recorder, log_every=4, first_step=1000, steps_done=done)
  with pytest.raises(DivergedError) as error:  # noqa: PT012
    for number in range(8 if how == "add" else bad + 1):
      metrics = {"loss": np.float32(value if number == bad else 1), "top1": np.float32(0)}
      piece.add(devices.replicate(metrics, _MESH), input_seconds=0.0)
      if how == "add" and number == 7:
        piece.add(step_metrics(8), input_seconds=0.0)
        piece.finish()
    getattr(piece, how)()
  epoch = 2 if bad < 3 else 3
  assert str(error.value) == (
    f"the loss became {np.float32(value)} in state 1, epoch {epoch}, "
    f"step {1000 + done + bad + 1}"
  )
  # No record has a loss of that kind.
  assert all(np.isfinite(record["loss"]) for record in recorder.records)


def test_a_bad_loss_in_the_window_is_named_with_its_step():
  window = np.array([[1.0, 0.5], [np.nan, 0.5]], np.float32)
  piece = meter_that_tells(
    Recorder(), log_every=10, first_step=50, steps_done=7, window=window
  )
  with pytest.raises(DivergedError, match="epoch 1, step 57$"):
    piece.settle()


def test_steps_sent_are_not_steps_done(clock):
  recorder, losses = Recorder(), [Loss() for _ in range(4)]
  meter_of_phase = meter_that_tells(recorder, log_every=2)
  for seconds, loss in zip([60.0, 1.0, 0.0, 0.0], losses, strict=True):
    clock[0] += seconds
    losses[1].done = True
    meter_of_phase.add({"loss": loss, "top1": loss}, input_seconds=0.0)
  # Three steps were sent in the second after the first, and one of them was done.
  assert recorder.records[0]["images_per_second"] == pytest.approx(BATCH_SIZE)
