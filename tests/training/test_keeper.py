"""When the keeper saves: when it is time, when the run stops, and never otherwise."""

import signal

import pytest

from ssil_jax.distributed import collectives
from ssil_jax.distributed.preemption import Interrupted
from ssil_jax.training import keeper


class Recorder:
  """Checkpoints and journal: keeps the order in which it is called."""

  def __init__(self):
    self.calls = []

  def sync(self):
    self.calls.append("sync")

  def save(self, progress):
    self.calls.append(progress)

  def wait(self):
    self.calls.append("wait")


@pytest.fixture
def clock(monkeypatch):
  """Seconds, in a list of one."""
  now = [1000.0]
  monkeypatch.setattr(keeper.time, "monotonic", lambda: now[0])
  return now


def keeper_and_calls(*, minutes, check_interrupt=lambda: None):
  recorder = Recorder()
  made = keeper.Keeper(recorder, recorder, minutes=minutes, check_interrupt=check_interrupt)
  return made, recorder.calls


def unwanted():
  pytest.fail("the run is looked at, which waits for the devices")


def test_saves_in_the_background_when_it_is_time_and_not_before(clock):
  kept, calls = keeper_and_calls(minutes=2)
  for now in (1000.0, 1060.0, 1119.9):
    clock[0] = now
    kept.visit(unwanted)
  clock[0] = 1120.0
  kept.visit(lambda: "first")
  # The journal is on the disk before the checkpoint that builds on it.
  assert calls == ["sync", "first"]
  clock[0] = 1239.9
  kept.visit(unwanted)
  clock[0] = 1300.0
  kept.visit(lambda: "second")
  assert calls[2:] == ["sync", "second"]


def test_the_time_counts_from_any_checkpoint(clock):
  kept, calls = keeper_and_calls(minutes=2)
  clock[0] = 1110.0
  kept.save("state")
  assert calls == ["sync", "state", "wait"]
  clock[0] = 1229.0
  kept.visit(unwanted)
  clock[0] = 1230.0
  kept.visit(lambda: "later")
  assert calls[3:] == ["sync", "later"]


def test_no_minutes_mean_never(clock):
  kept, calls = keeper_and_calls(minutes=0)
  clock[0] = 1e9
  kept.visit(unwanted)
  assert calls == []


@pytest.mark.parametrize("minutes", [0, 2])
def test_an_interrupted_run_is_saved_to_the_end_and_stops(clock, minutes):
  def stop():
    raise Interrupted(signal.SIGTERM)

  kept, calls = keeper_and_calls(minutes=minutes, check_interrupt=stop)
  with pytest.raises(Interrupted) as caught:
    kept.visit(lambda: "last")
  assert caught.value.exit_code == 143
  assert calls == ["sync", "last", "wait"]


@pytest.mark.parametrize("is_main", [True, False])
def test_several_processes_save_after_the_same_call_and_rarely_ask(
  clock, monkeypatch, is_main
):
  # The clock of process 0 says after 60 calls that it is time, the other one's never.
  told = []

  def agree(late):
    told.append(late)
    return late if is_main else len(told) >= 2

  monkeypatch.setattr(collectives, "is_multiprocess", lambda: True)
  monkeypatch.setattr(collectives, "broadcast_flag", agree)
  kept, calls = keeper_and_calls(minutes=1)
  saved_at = []
  for call in range(1, 151):
    if is_main and call == 60:
      clock[0] += 61.0
    kept.visit(lambda call=call: saved_at.append(call) or call)
  assert len(told) == 3
  assert saved_at[0] == 100
  assert calls[:2] == ["sync", 100]
  if is_main:
    assert (saved_at, told) == ([100], [False, True, False])
  else:
    assert told == [False, False, False]


def test_several_processes_do_not_ask_where_nothing_is_saved(clock, monkeypatch):
  monkeypatch.setattr(collectives, "is_multiprocess", lambda: True)
  monkeypatch.setattr(collectives, "broadcast_flag", lambda late: pytest.fail("asked"))
  kept, _ = keeper_and_calls(minutes=0)
  for _ in range(100):
    kept.visit(unwanted)
