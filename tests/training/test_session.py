"""A session: when it saves, when the run stops, and that it needs no files."""

import signal

import numpy as np
import pytest
from quick import quick_network
from small_runs import run, small_config, untimed

from ssil_jax import memory
from ssil_jax.distributed import collectives
from ssil_jax.distributed.preemption import Interrupted
from ssil_jax.training import loop, session
from ssil_jax.training.devices import Devices, choose_devices
from ssil_jax.training.plan import make_plan
from ssil_jax.training.run_state import RunState, TrainState
from ssil_jax.training.session import Session, make_session


class Files:
  """Checkpoints, networks, recorder, display: keeps the order in which it is called."""

  def __init__(self):
    self.calls = []

  def sync(self):
    self.calls.append("sync")

  def save(self, what, **state):
    self.calls.append(what)

  def add_scores(self, result, *, step, scored):
    self.calls.append("scores")

  def print(self, text):
    self.calls.append("line")

  def wait(self):
    self.calls.append("wait")


@pytest.fixture
def clock(monkeypatch):
  """Seconds, in a list of one."""
  now = [1000.0]
  monkeypatch.setattr(session.time, "monotonic", lambda: now[0])
  return now


def session_and_calls(*, minutes, check_interrupt=lambda: None):
  """A session of nothing but its files, and what these are told."""
  files = Files()
  plan = make_plan(small_config("unused", checkpoint_minutes=minutes))
  made = Session(
    plan=plan,
    devices=None,
    initial=None,
    check_interrupt=check_interrupt,
    checkpoints=files,
    recorder=files,
    _saved_at=1000.0,
  )
  return made, files.calls


def unwanted():
  pytest.fail("the run is looked at, which waits for the devices")


def test_saves_in_the_background_when_it_is_time_and_not_before(clock):
  made, calls = session_and_calls(minutes=2)
  for now in (1000.0, 1060.0, 1119.9):
    clock[0] = now
    made.maybe_save(unwanted)
  clock[0] = 1120.0
  made.maybe_save(lambda: "first")
  # The records are on the disk before the checkpoint that builds on them.
  assert calls == ["sync", "first"]
  clock[0] = 1239.9
  made.maybe_save(unwanted)
  clock[0] = 1300.0
  made.maybe_save(lambda: "second")
  assert calls[2:] == ["sync", "second"]


def test_a_checkpoint_in_the_background_ends_before_a_network_is_saved(monkeypatch):
  # Orbax's barriers of the two have the same names.
  made, calls = session_and_calls(minutes=0)
  made.folder, made.networks, made.display = "unused", made.checkpoints, made.recorder
  monkeypatch.setattr(made, "save_model", lambda run: None)
  monkeypatch.setattr(made, "write_results", lambda run: None)
  state = dict.fromkeys(("state", "num_seen", "top1", "train_seconds"), 1)
  train_state = TrainState(np.int32(7), {}, {}, ())
  made.commit(RunState(train_state, None, {}, [{**state, "imbalance": None}]))
  assert calls[:2] == ["wait", train_state]


@pytest.mark.parametrize("is_multiprocess", [False, True])
def test_no_minutes_mean_never(clock, monkeypatch, is_multiprocess):
  monkeypatch.setattr(collectives, "is_multiprocess", lambda: is_multiprocess)
  monkeypatch.setattr(collectives, "broadcast_from_main", lambda late: pytest.fail("asked"))
  made, calls = session_and_calls(minutes=0)
  clock[0] = 1e9
  for _ in range(100):
    made.maybe_save(unwanted)
  assert calls == []


def stop():
  raise Interrupted(signal.SIGTERM)


@pytest.mark.parametrize("minutes", [0, 2])
def test_an_interruption_saves_the_last_place_once_and_to_the_end(clock, minutes):
  answers = iter([lambda: None, stop])
  made, calls = session_and_calls(minutes=minutes, check_interrupt=lambda: next(answers)())
  with pytest.raises(Interrupted) as caught, made.saving_on_interruption():  # noqa: PT012
    made.maybe_save(unwanted)
    made.maybe_save(lambda: "last")
  assert caught.value.exit_code == 143
  assert calls == ["sync", "last", "wait"]


def test_an_interruption_elsewhere_saves_the_place_named_last(clock):
  # As in an evaluation, which asks by itself and names no place.
  made, calls = session_and_calls(minutes=0)
  with pytest.raises(Interrupted), made.saving_on_interruption():  # noqa: PT012
    made.maybe_save(lambda: "after the training")
    stop()
  assert calls == ["sync", "after the training", "wait"]


def test_what_is_no_request_to_stop_saves_nothing():
  # A second Ctrl-C, among others: at once means at once.
  made, calls = session_and_calls(minutes=0)
  with pytest.raises(KeyboardInterrupt), made.saving_on_interruption():  # noqa: PT012
    made.maybe_save(unwanted)
    raise KeyboardInterrupt
  assert calls == []


@pytest.mark.parametrize("is_main", [True, False])
def test_several_processes_save_after_the_same_call_and_rarely_ask(
  clock, monkeypatch, is_main
):
  # The clock of process 0 says after 60 calls that it is time, the other one's never.
  told = []

  def broadcast_from_main(late):
    told.append(bool(late))
    return late if is_main else len(told) == 2

  monkeypatch.setattr(collectives, "is_multiprocess", lambda: True)
  monkeypatch.setattr(collectives, "broadcast_from_main", broadcast_from_main)
  made, calls = session_and_calls(minutes=1)
  saved_at = []
  for call in range(1, 151):
    if is_main and call == 60:
      clock[0] += 61.0
    made.maybe_save(lambda call=call: saved_at.append(call) or call)
  assert saved_at == [100]
  assert calls == ["sync", 100]
  assert told == ([False, True, False] if is_main else [False] * 3)


def test_a_session_without_files_trains_and_evaluates_as_a_run_does(tmp_path):
  values = {"num_classes": 4, "num_states": 2, "num_devices": 1, "checkpoint_minutes": 1e-9}
  with quick_network():
    made = make_session(
      plan := make_plan(small_config(tmp_path, **values)), choose_devices(plan.config)
    )
    here = made.results(loop.train(made, made.start()))
    assert not any(tmp_path.iterdir())
    assert untimed(here) == untimed(run(tmp_path, **values))


def test_the_initial_network_is_that_of_the_seed(tmp_path):
  first, same, other = (
    make_session(
      plan := make_plan(small_config(tmp_path, num_classes=4, num_states=2, seed=seed)),
      choose_devices(plan.config),
    ).initial.params["head"]["kernel"]
    for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, same)
  assert (first != other).all()


def test_results_say_which_images_were_scored_and_on_what_the_run_was_tuned():
  config = small_config("unused", validation_fraction=0.25)
  plan = make_plan(config)
  opened = Session(
    plan=plan,
    devices=Devices(choose_devices(config), model=None),
    initial=None,
    tuned_on={"chosen": {"width": 4}},
  )
  results = opened.results(RunState(None, memory.empty(), {}, []))
  assert (results["split"], results["validation_fraction"]) == ("validation", 0.25)
  assert results["tuned_on"] == {"chosen": {"width": 4}}
