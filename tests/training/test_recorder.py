"""Records: speed and waiting by a clock that the test moves, and the files."""

import functools
import json
import struct
import time
import types

import jax
import numpy as np
import pytest
from folders import config_of
from hypothesis import given, settings
from hypothesis import strategies as st

from ssil_jax.errors import DivergedError, WorkdirError
from ssil_jax.training.devices import wait_for_earlier
from ssil_jax.training.plan import make_plan
from ssil_jax.training.recorder import Recorder
from ssil_jax.training.run_state import NO_STEPS, Position, RunState, TrainState
from ssil_jax.training.session import Session
from ssil_jax.training.step_metrics import StepMetrics
from ssil_jax.training.writers import Event, SessionLog

BATCH_SIZE = 32


class Told:
  """Recorder and display: keeps what it is told."""

  def __init__(self):
    self.records = []

  def add(self, record):
    self.records.append(record)

  def show(self, record, **shown):
    pass


@pytest.fixture
def clock(monkeypatch):
  """Seconds, in a list of one."""
  now = [100.0]
  monkeypatch.setattr(time, "monotonic", lambda: now[0])
  return now


@functools.cache
def first_phase():
  """The first state and its phase."""
  values = {"memory_size": 10, "batch_size_new": BATCH_SIZE, "batch_size_memory": 8}
  return next(make_plan(config_of(**values)).phases())


def metrics_for(recorder, *, log_every, first_step=0, steps_done=0, window=NO_STEPS):
  train_state = TrainState(np.int32(first_step + steps_done), {}, {}, ())
  position = Position(None, steps_done=steps_done, window=window)
  run = RunState(train_state, None, {}, [], position)
  plan = types.SimpleNamespace(config=config_of(log_every=log_every))
  session = Session(
    plan=plan, devices=None, initial=None, recorder=recorder, display=recorder
  )
  return StepMetrics(session, *first_phase(), run)


def on_a_device(loss, top1):
  metrics = {"loss": np.float32(loss), "top1": np.float32(top1)}
  return jax.tree.map(lambda x: jax.device_put(x[None]), metrics)


@pytest.mark.parametrize(
  ("steps", "log_every", "waited", "seconds_per_step"),
  [
    # The first step compiles; after it, a quarter of every second, then three quarters.
    # Read when eight steps were sent: three of one second and four of two.
    (
      [(60.0, 0.5), *[(1.0, 0.25)] * 3, *[(2.0, 1.5)] * 4],
      4,
      (3 * 0.25 + 4 * 1.5) / 11,
      11 / 7,
    ),
    ([(1.0, 0.0)] * 6, 2, 0, 1),  # a device that is slower than its input never waits
    ([(1.0, 1.0)] * 6, 2, 1, 1),  # one that only waits
    ([(60.0, 3.0)], 2, 3 / 60, 60),  # compiling counts while there is nothing else
  ],
)
def test_the_share_of_waiting_is_that_of_the_time(
  clock, steps, log_every, waited, seconds_per_step
):
  recorder = Told()
  collected = metrics_for(recorder, log_every=log_every)
  for seconds, waiting in steps:
    clock[0] += seconds
    collected.add(on_a_device(1.0, 0.5), input_seconds=waiting)
  collected.finish()
  record = recorder.records[0]
  assert record["input_wait"] == pytest.approx(waited)
  assert record["images_per_second"] == pytest.approx(BATCH_SIZE / seconds_per_step)
  assert recorder.records[-1]["step"] == len(steps)


class Loss:
  """A number on a device that has not come to it yet."""

  def __init__(self):
    self.done = False

  def addressable_data(self, index):
    return np.ones(1, np.float32)

  def is_ready(self):
    return self.done

  def block_until_ready(self):
    self.done = True
    return self


# A run that is cut and goes on ------------------------------------------------------------

_TIMES = {"images_per_second": 0, "input_wait": 0}


def step_metrics(number):
  """Of that step of the phase, from 0; no two are alike."""
  return on_a_device(1 / (number + 1), number / 97)


def cut_and_gone_on(cuts, num_steps):
  """Records of a phase in pieces.

  Args:
    cuts: [(steps of the phase at which a piece ends, its log_every)].
    num_steps: of the phase, which ends after the last piece.
  """
  recorder, done, window = Told(), 0, NO_STEPS
  for until, log_every in cuts:
    piece = metrics_for(
      recorder, log_every=log_every, first_step=100, steps_done=done, window=window
    )
    for number in range(done, until):
      piece.add(step_metrics(number), input_seconds=0.0)
    before, done = done, until
    if done < num_steps:
      window = piece.flush()
      assert (window.dtype, window.shape[1:]) == (np.float32, (2,))
      assert len(window) < log_every or done == before
    else:
      piece.finish()
  return [record | _TIMES for record in recorder.records]


@settings(deadline=None, max_examples=100, database=None, derandomize=True)
@given(
  log_every=st.integers(1, 6),
  num_steps=st.integers(1, 14),
  cuts=st.lists(st.tuples(st.integers(0, 13), st.integers(1, 6)), max_size=4),
)
def test_a_phase_in_pieces_has_every_step_in_one_record(log_every, num_steps, cuts):
  cuts = [(min(until, num_steps - 1), every) for until, every in sorted(cuts)]
  last = (num_steps, log_every)
  records = cut_and_gone_on([*cuts, last], num_steps)
  ends = [record["step"] - 100 for record in records]
  assert ends == sorted(set(ends))
  assert ends[-1] == num_steps
  assert max(np.diff([0, *ends])) <= max(log_every, *(every for _, every in cuts), 1)
  for begin, end, record in zip([0, *ends], ends, records, strict=False):
    # As the mean of exactly the steps since the record before.
    metrics = np.array([[1 / (n + 1), n / 97] for n in range(begin, end)], np.float32)
    means = np.mean(list(metrics), axis=0)
    assert (record["loss"], record["top1"]) == tuple(map(float, means))
  # With the same --log_every, the records are those of a whole phase.
  whole = cut_and_gone_on([last], num_steps)
  cuts = [(until, log_every) for until, _ in cuts]
  assert cut_and_gone_on([*cuts, last], num_steps) == whole
  assert [record["step"] - 100 for record in whole] == [
    *range(log_every, num_steps + 1, log_every),
    *([num_steps] if num_steps % log_every else []),
  ]


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("how", ["flush", "finish", "add"])
@pytest.mark.parametrize("bad", [1, 4])
def test_a_loss_that_is_not_finite_is_named_with_its_step(value, how, bad):
  recorder, steps_per_epoch = Told(), first_phase()[1].steps_per_epoch
  done = 2 * steps_per_epoch - 3  # so that the third step is the first of epoch 3
  piece = metrics_for(recorder, log_every=4, first_step=1000, steps_done=done)
  with pytest.raises(DivergedError) as error:  # noqa: PT012
    for number in range(8 if how == "add" else bad + 1):
      piece.add(on_a_device(value if number == bad else 1, 0), input_seconds=0.0)
      if how == "add" and number == 7:
        piece.add(step_metrics(8), input_seconds=0.0)
        piece.finish()
    getattr(piece, how)()
  epoch = 2 if bad < 3 else 3
  assert str(error.value) == (
    f"the loss became {np.float32(value)} in state 1, epoch {epoch}, "
    f"step {1000 + done + bad + 1}"
  )
  # No record has a loss of that kind, and none before it is missing.
  assert all(np.isfinite(record["loss"]) for record in recorder.records)
  assert [record["step"] for record in recorder.records] == (
    [1000 + done + 4] if bad == 4 else []
  )


def test_a_bad_loss_in_the_window_is_named_with_its_step():
  window = np.array([[1.0, 0.5], [np.nan, 0.5]], np.float32)
  piece = metrics_for(Told(), log_every=10, first_step=50, steps_done=7, window=window)
  with pytest.raises(DivergedError, match="epoch 1, step 57$"):
    piece.flush()


def test_the_host_is_a_few_steps_ahead_of_the_devices_and_no_more():
  losses = [Loss() for _ in range(20)]
  for number in range(1, 21):
    wait_for_earlier(losses[:number])
    assert [loss.done for loss in losses].index(False) == max(number - 8, 0)


def test_steps_sent_are_not_steps_done(clock):
  recorder, losses = Told(), [Loss() for _ in range(4)]
  collected = metrics_for(recorder, log_every=2)
  for seconds, loss in zip([60.0, 1.0, 0.0, 0.0], losses, strict=True):
    clock[0] += seconds
    losses[1].done = True
    collected.add({"loss": loss, "top1": loss}, input_seconds=0.0)
  # Three steps were sent in the second after the first, and one of them was done.
  assert recorder.records[0]["images_per_second"] == pytest.approx(BATCH_SIZE)


# Files -----------------------------------------------------------------------------------


def record(state, step):
  return {
    "state": state,
    "step": step,
    "loss": 1.5,
    "top1": 0.25,
    "learning_rate": 0.1,
    "images_per_second": 9.0,
    "input_wait": 0.125,
  }


def line(step):
  return json.dumps(record(1, step)) + "\n"


def events(folder):
  """Every TensorBoard event, read as the length-prefixed records that they are."""
  found = []
  for path in sorted((folder / "tensorboard").iterdir()):
    content, start = path.read_bytes(), 0
    while start < len(content):
      (length,) = struct.unpack_from("<Q", content, start)
      found.append(Event.FromString(content[start + 12 : start + 12 + length]))
      start += 12 + length + 4  # length and its checksum, record, checksum
  return found


def scalars(folder):
  return [(v.tag, e.step, v.simple_value) for e in events(folder) for v in e.summary.value]


def test_metrics_are_appended_line_by_line_after_those_that_are_kept(tmp_path):
  path = tmp_path / "metrics.jsonl"
  # Not as json.dumps writes it, to see that kept lines are not written anew.
  kept = b'{"state": 1,  "step": 10}\n{"step": 20, "state": 2, "loss": 1e0}\n'
  path.write_bytes(kept + b'{"state": 3, "step": 30}\n{"state": 2, "ste')
  with Recorder(tmp_path, steps_done=20, steps_recorded=20) as recorder:
    for step in (25, 30):
      recorder.add(record(3, step))
      # Readable at once: a run may be watched, or killed.
      assert json.loads(path.read_text().splitlines()[-1]) == record(3, step)
  lines = [json.dumps(record(3, step)) + "\n" for step in (25, 30)]
  assert path.read_bytes() == kept + "".join(lines).encode()


def opened(folder, *, steps_done, steps_recorded=None, warnings=None):
  """Opens the records and closes it; returns its lines."""
  warn = (lambda line: pytest.fail(line)) if warnings is None else warnings.append
  recorded = steps_done if steps_recorded is None else steps_recorded
  with Recorder(folder, steps_done=steps_done, steps_recorded=recorded, warn=warn):
    return (folder / "metrics.jsonl").read_text().splitlines(keepends=True)


def test_records_after_the_checkpoint_are_dropped(tmp_path):
  (tmp_path / "metrics.jsonl").write_text("".join(map(line, (10, 20, 30, 40))))
  assert opened(tmp_path, steps_done=40) == [*map(line, (10, 20, 30, 40))]
  # The checkpoint has the metrics of steps 31 to 37, and will record them again.
  kept = opened(tmp_path, steps_done=37, steps_recorded=30)
  assert kept == [*map(line, (10, 20, 30))]
  assert opened(tmp_path, steps_done=20) == [*map(line, (10, 20))]
  # Recorded with a smaller --log_every, between the checkpoint and a kill.
  assert opened(tmp_path, steps_done=19, steps_recorded=10) == [line(10)]
  assert opened(tmp_path, steps_done=0) == []


@pytest.mark.parametrize("garbage", [b"\0" * 50 + b"\n", b"{]\n", b""])
@pytest.mark.parametrize("kept", [[], [10, 20]])
def test_lines_after_the_checkpoint_may_be_anything(tmp_path, garbage, kept):
  # They were not yet on the disk when the power went.
  path = tmp_path / "metrics.jsonl"
  before = "".join(map(line, kept)).encode()
  # Nor is a whole record without its line end one.
  path.write_bytes(before + garbage + line(30).encode() + line(40)[:-1].encode())
  opened(tmp_path, steps_done=20 if kept else 0)
  assert path.read_bytes() == before


@pytest.mark.parametrize(
  ("lines", "message"),
  [
    ([line(10), "{]\n", line(20)], "line 2 is no record"),
    (["[]\n", line(10), line(20)], "line 1 is no record"),
    ([line(10), '{"step": "11"}\n', line(20)], "line 2 has no step"),
    ([line(10), '{"step": true}\n', line(20)], "line 2 has no step"),
    ([line(10), line(10), line(20)], "line 2 is not in the order of steps"),
    ([line(10), line(15), line(30)], "ends with step 15, not 20"),
    ([line(10), line(20)[:-5]], "ends with step 10, not 20"),
  ],
)
def test_damaged_and_missing_records_are_named(tmp_path, lines, message):
  path = tmp_path / "metrics.jsonl"
  path.write_text("".join(lines))
  with pytest.raises(WorkdirError) as error:
    opened(tmp_path, steps_done=23, steps_recorded=20)
  assert str(error.value) == (
    f"{path}{' ' if message.startswith('ends') else ': '}{message}: put the file right, or "
    "delete it and records begin after step 20"
  )
  assert path.read_text() == "".join(lines)


def test_a_file_that_is_gone_begins_again_with_a_warning(tmp_path):
  path, warnings = tmp_path / "metrics.jsonl", []
  assert opened(tmp_path, steps_done=23, steps_recorded=20, warnings=warnings) == []
  assert warnings == [f"warning: {path} is gone; it begins again after step 20"]
  # And goes on so, when it is killed once more.
  with Recorder(tmp_path, steps_done=23, steps_recorded=20) as recorder:
    recorder.add(record(1, 30))
  assert opened(tmp_path, steps_done=25, steps_recorded=20) == []


def test_tensorboard_gets_the_scores(tmp_path):
  with Recorder(tmp_path, steps_done=0, steps_recorded=0) as recorder:
    recorder.add(record(1, 10))
    recorder.add_scores({"state": 1, "top1": 0.75, "imbalance": None}, step=10)
    recorder.add_scores({"top1": 0.5}, step=20, scored="validation")
  (path,) = (tmp_path / "tensorboard").iterdir()
  assert "tfevents" in path.name
  assert path.stat().st_size > 0
  assert scalars(tmp_path) == [
    ("train/loss", 10, 1.5),
    ("train/top1", 10, 0.25),
    ("train/learning_rate", 10, pytest.approx(0.1)),
    ("train/images_per_second", 10, 9.0),
    ("train/input_wait", 10, 0.125),
    ("test/top1", 10, 0.75),
    ("validation/top1", 20, 0.5),
  ]


def test_tensorboard_hides_only_what_is_trained_again(tmp_path):
  (tmp_path / "metrics.jsonl").write_text(line(10) + line(20) + line(30))
  # Killed at step 30 of state 2; state 1 was done, and evaluated, at step 20.
  with Recorder(tmp_path, steps_done=20, steps_recorded=20):
    pass
  (start,) = [e for e in events(tmp_path) if e.session_log.status == SessionLog.START]
  # TensorBoard hides earlier events at this step and after it.
  hidden = [step for step in (10, 20, 21, 30) if step >= start.step]
  assert hidden == [21, 30]
