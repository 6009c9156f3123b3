"""A run that is interrupted anywhere goes on to what it would have been, to the bit."""

import collections
import contextlib
import dataclasses
import io
import json
import shutil
import signal
import time
from typing import NamedTuple

import numpy as np
import pytest
from folders import folder_of, noise, save
from kills import differences
from quick import quick_network
from rich.console import Console
from small_runs import last_checkpoint, records, small_config

from ssil_jax.distributed.preemption import Interrupted
from ssil_jax.errors import ConfigError, DivergedError, WorkdirError
from ssil_jax.training import devices, incremental, loop, trainer

SETTINGS = {
  "num_classes": 4,
  "num_states": 2,
  "memory_size": 16,
  "batch_size_new": 16,
  "batch_size_memory": 8,
  "batch_size_test": 64,
  "eeil_epochs": 4,
  # So large that a step which is left out or repeated shows, and so does momentum.
  "learning_rate": 1e-2,
  "num_devices": 2,
  "log_every": 3,
  "checkpoint_minutes": 0.0,
}
# What the programs on the devices do not depend on.
FREE = {
  "workdir": "",
  "from_workdir": "",
  "log_every": 1,
  "checkpoint_minutes": 0.0,
  "memory_size": 16,
  "reset_momentum": True,
}
BATCHES = []  # of every training step, in all runs
BAD_STEP = []  # the step of a run whose loss is made NaN, if any
METHODS = ["ssil", "eeil", "bic", "der"]


class Place(NamedTuple):
  """Where a run is when it asks whether to stop."""

  kind: str  # train_phase, evaluate, survey or trained
  number: int  # of the calls of that kind, from 0


@pytest.fixture(autouse=True, scope="module")
def _quickly():
  """Compiles each program once for all runs that share it."""
  made = {}

  def make_trainer(plan, mesh, *, check_interrupt):
    key = dataclasses.replace(plan.config, **FREE), mesh
    if key not in made:
      made[key] = trainer.make_trainer(plan, mesh)
    found = made[key]

    def train_step(train_state, batch, *rest):
      BATCHES.append(in_order(batch))
      train_state, step_metrics = found.train_step(train_state, batch, *rest)
      if BAD_STEP and int(np.asarray(train_state.step)[0]) == BAD_STEP[0]:
        nan = step_metrics["loss"] * devices.replicate(np.float32(np.nan), mesh)
        step_metrics = {**step_metrics, "loss": nan}
      return train_state, step_metrics

    return found._replace(check_interrupt=check_interrupt, train_step=train_step)

  with quick_network() as patch:
    patch.setattr(loop, "make_trainer", make_trainer)
    yield


def in_order(batch):
  """The records of a batch, in the order of positions, whatever the devices."""
  positions, numbers = np.asarray(batch.positions), np.asarray(batch.records)
  return numbers.ravel()[np.argsort(positions, axis=None)].tolist()


class Asked:
  """Notes where it is asked whether to stop, and says yes when it is told to."""

  def __init__(self, stop_at=None):
    self.stop_at = stop_at
    self.places: list[Place] = []
    self._of_kind = collections.Counter()
    self._now = None

  def __call__(self):
    if not self._now and not self._of_kind["train_phase"]:
      return  # while the data are opened
    # The loop itself asks once when a state is trained.
    between = Place("trained", self._of_kind["train_phase"])
    self.places.append(Place(*self._now) if self._now else between)
    if self.stop_at is not None and len(self.places) > self.stop_at:
      raise Interrupted(signal.SIGTERM)

  @contextlib.contextmanager
  def watching(self):
    """Tells apart who asks."""
    with pytest.MonkeyPatch.context() as patch:
      for kind in ("train_phase", "evaluate", "survey"):
        watched = self._watched(kind, getattr(incremental, kind))
        patch.setattr(incremental, kind, watched)
      yield

  def _watched(self, kind, function):
    def watched(*args, **kwargs):
      before, self._now = self._now, (kind, self._of_kind[kind])
      self._of_kind[kind] += 1
      try:
        return function(*args, **kwargs)
      finally:
        self._now = before

    return watched

  def count(self, kind):
    return sum(place.kind == kind for place in self.places)


def run(workdir, *, stop_at=None, **changes):
  """Runs until so many questions were answered with no; returns what was asked."""
  asked = Asked(stop_at)
  config = small_config(workdir, **SETTINGS | changes)
  with asked.watching():
    if stop_at is None:
      loop.run(config, Console(quiet=True), check_interrupt=asked)
    else:
      with pytest.raises(Interrupted):
        loop.run(config, Console(quiet=True), check_interrupt=asked)
  return asked


class PowerCutError(Exception):
  """Nobody had the time to save anything."""


def cut_off(workdir, *, stop_at, **changes):
  """Runs for so many questions; what is not saved by then is lost."""
  questions = iter(range(stop_at))

  def cut():
    if next(questions, None) is None:
      raise PowerCutError

  config = small_config(workdir, **SETTINGS | changes)
  with pytest.raises(PowerCutError):
    loop.run(config, Console(quiet=True), check_interrupt=cut)
  # The writer is a thread, which lives on as it would not in a process that was killed.
  while any("tmp" in path.name for path in workdir.glob("checkpoints/*")):
    time.sleep(0.01)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
  """(flags) -> a whole run with them: its directory, and where it asked."""
  made = {}

  def of(**changes):
    key = tuple(sorted(changes.items()))
    if key not in made:
      workdir = tmp_path_factory.mktemp("undisturbed") / "run"
      made[key] = workdir, run(workdir, **changes).places
    return made[key]

  return of


def stretches(places):
  """Place -> the first and the last of its questions."""
  found = {}
  for index, place in enumerate(places):
    first, _ = found.get(place, (index, None))
    found[place] = first, index
  return found


def test_the_runs_have_what_is_to_be_interrupted(undisturbed):
  kinds = {}
  for method in METHODS:
    workdir, places = undisturbed(method=method)
    kinds[method] = collections.Counter(place.kind for place in stretches(places))
    rows = records(workdir)
    assert {row["state"] for row in rows} == {1, 2}
    assert all(np.isfinite(row["loss"]) for row in rows)
  # Two phases in EEIL's second state, with a survey before the second, for its exemplars.
  assert kinds == {
    "ssil": {"train_phase": 2, "evaluate": 2, "trained": 2},
    "eeil": {"train_phase": 3, "evaluate": 2, "survey": 3, "trained": 2},
    "bic": {"train_phase": 2, "evaluate": 2, "survey": 1, "trained": 2},
    "der": {"train_phase": 2, "evaluate": 2, "survey": 2, "trained": 2},
  }


def test_opening_the_data_can_be_interrupted(tmp_path):
  config = small_config(tmp_path / "run", **SETTINGS)

  def stop():
    raise Interrupted(signal.SIGINT)

  with pytest.raises(Interrupted):
    loop.run(config, Console(quiet=True), check_interrupt=stop)
  assert not (tmp_path / "run").exists()


def one_of_each(places, *, first=True):
  """Questions: the first of each stretch, and one in its middle."""
  chosen = set()
  for start, end in stretches(places).values():
    chosen |= {start, (start + end + 1) // 2} if first else {(start + end + 1) // 2}
  return sorted(chosen)


def steps_trained(*runs):
  """By runs of which all but the last were interrupted."""
  *interrupted, last = runs
  # Who asks before a step and is told to stop does not train it.
  stopped = sum(asked.places[-1].kind == "train_phase" for asked in interrupted)
  asked_before = sum(asked.count("train_phase") for asked in (*interrupted, last))
  return asked_before - stopped


@pytest.mark.parametrize("method", METHODS)
def test_a_run_interrupted_anywhere_goes_on_as_if_nothing_had_been(
  undisturbed, tmp_path, method
):
  workdir, places = undisturbed(method=method)
  num_steps = sum(place.kind == "train_phase" for place in places)
  for stop_at in one_of_each(places, first=method == "eeil"):
    folder = tmp_path / str(stop_at)
    interrupted = run(folder, method=method, stop_at=stop_at)
    assert interrupted.places == places[: stop_at + 1]
    resumed = run(folder, method=method)
    assert differences(workdir, folder) == [], places[stop_at]
    # No step is lost, and none is trained twice.
    assert steps_trained(interrupted, resumed) == num_steps, places[stop_at]


@pytest.mark.parametrize("method", ["eeil"])
def test_a_run_may_be_interrupted_again_and_again(undisturbed, tmp_path, method):
  workdir, places = undisturbed(method=method)
  runs = []
  # At the first question, then after one, after two: an evaluation begins anew each time.
  for stop_at in range(7):
    runs.append(run(tmp_path, method=method, stop_at=stop_at))
  runs.append(run(tmp_path, method=method))
  assert differences(workdir, tmp_path) == []
  num_steps = sum(place.kind == "train_phase" for place in places)
  assert steps_trained(*runs) == num_steps


def test_a_run_that_is_cut_off_goes_on_from_what_was_saved(undisturbed, tmp_path):
  workdir, places = undisturbed(method="eeil")
  always = {"method": "eeil", "checkpoint_minutes": 1e-9}
  for stop_at in one_of_each(places, first=False)[2::3]:
    folder = tmp_path / str(stop_at)
    cut_off(folder, stop_at=stop_at, **always)
    run(folder, **always)
    assert differences(workdir, folder) == [], places[stop_at]


@pytest.mark.parametrize(
  "changes",
  [{"method": "ft", "reset_momentum": False}, {"method": "il2m"}],
  ids=lambda changes: changes["method"],
)
def test_other_runs_go_on_in_the_middle_of_their_second_state(
  undisturbed, tmp_path, changes
):
  workdir, places = undisturbed(**changes)
  (first, last) = stretches(places)[Place("train_phase", 1)]
  run(tmp_path, stop_at=(first + last) // 2, **changes)
  run(tmp_path, **changes)
  assert differences(workdir, tmp_path) == []


@pytest.mark.parametrize("method", ["il2m", "ssil", "wa"])
def test_states_of_another_run_are_taken_once(undisturbed, tmp_path, method):
  source, _ = undisturbed(method={"il2m": "ft"}.get(method, method))
  taken = {"method": method, "from_workdir": str(source)}
  if method == "ssil":
    taken["memory_size"] = 24  # only the first state is alike
  workdir, places = undisturbed(**taken)
  for stop_at in one_of_each(places, first=False):
    folder = tmp_path / str(stop_at)
    run(folder, stop_at=stop_at, **taken)
    run(folder, **taken)
    assert differences(workdir, folder) == [], places[stop_at]


def test_a_state_that_was_begun_here_is_finished_here(undisturbed, tmp_path):
  workdir, places = undisturbed(method="ssil")
  source, _ = undisturbed(method="ft")
  first, last = stretches(places)[Place("train_phase", 0)]
  run(tmp_path, method="ssil", stop_at=(first + last) // 2)
  # Only now it is told of a run that has this state.
  run(tmp_path, method="ssil", from_workdir=str(source))
  assert differences(workdir, tmp_path) == []


def test_streamed_images_go_on_with_the_same_crops(undisturbed, tmp_path):
  root = folder_of(tmp_path / "images", classes="abcd", each=16)
  streamed = {
    "method": "ft",
    "dataset": "image_folder",
    "data_dir": str(root),
    "image_size": 80,
    "learning_rate": 1e-3,
  }
  workdir, places = undisturbed(**streamed)
  assert set(stretches(places)) >= {Place("train_phase", 0), Place("train_phase", 1)}
  for number in (0, 1):
    first, last = stretches(places)[Place("train_phase", number)]
    folder = tmp_path / str(number)
    run(folder, stop_at=(first + last + 1) // 2, **streamed)
    run(folder, **streamed)
    assert differences(workdir, folder) == []


def test_photos_replaced_under_the_same_names_are_not_gone_on_with(undisturbed, tmp_path):
  root = folder_of(tmp_path / "images", classes="abcd", each=16)
  streamed = {
    "method": "ft",
    "dataset": "image_folder",
    "data_dir": str(root),
    "image_size": 80,
  }
  workdir, places = undisturbed(**streamed)
  interrupted = tmp_path / "interrupted"
  run(interrupted, stop_at=len(places) // 2, **streamed)
  before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
  for number, path in enumerate(sorted(root.rglob("*.png"))):
    size = path.stat().st_size
    save(path, noise(8, 8, seed=1000 + number))
    assert path.stat().st_size == size  # noise of that many pixels cannot be compressed
  for folder in (workdir, interrupted):
    with pytest.raises(WorkdirError) as error:
      run(folder, **streamed)
    assert str(error.value).splitlines() == [
      f"{folder} holds a run on other data than --data_dir={root} has: use another "
      "--workdir, or that run's data",
      "contents of training images: different",
      "contents of test images: different",
    ]
  with pytest.raises(ConfigError, match=f"--from_workdir={workdir} was trained on other"):
    run(tmp_path / "new", from_workdir=str(workdir), **streamed)
  assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("num_devices", [1])
def test_a_run_goes_on_with_another_number_of_devices(undisturbed, tmp_path, num_devices):
  # So small a rate that a rounding error does not grow into another run.
  slow = {"method": "ssil", "learning_rate": 1e-5, "log_every": 1}
  del BATCHES[:]
  whole = tmp_path / "whole"
  places = run(whole, **slow).places
  expected = BATCHES.copy()
  first, last = stretches(places)[Place("train_phase", 1)]
  folder = tmp_path / "other"
  del BATCHES[:]
  run(folder, stop_at=(first + last) // 2, **slow)
  run(folder, **slow, num_devices=num_devices)
  assert expected == BATCHES
  ours, theirs = ([row["loss"] for row in records(path)] for path in (folder, whole))
  assert len(ours) == len(theirs) == len(expected)
  np.testing.assert_allclose(ours, theirs, rtol=1e-4)
  results = json.loads((folder / "results.json").read_text())
  assert results["environment"]["num_devices"] == num_devices


def test_a_run_goes_on_with_another_log_every(undisturbed, tmp_path):
  workdir, places = undisturbed(method="ssil")
  first, last = stretches(places)[Place("train_phase", 1)]
  run(tmp_path, method="ssil", stop_at=first + 5, log_every=100)
  # Killed after the records of those five steps were written one by one.
  cut_off(tmp_path, method="ssil", log_every=1, stop_at=5)
  assert records(tmp_path)[-1]["step"] > records(workdir)[0]["step"]
  run(tmp_path, method="ssil", log_every=2)
  found = [name for name in differences(workdir, tmp_path) if name != "metrics.jsonl"]
  assert found == []
  steps = [row["step"] for row in records(tmp_path)]
  assert steps == sorted(set(steps))
  assert steps[-1] == sum(place.kind == "train_phase" for place in places)


@pytest.mark.parametrize("minutes", [0.0, 1e-9])
def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(
  undisturbed, tmp_path, minutes
):
  workdir, places = undisturbed(method="ssil")
  of_first = sum(place == Place("train_phase", 0) for place in places)
  flags = {"method": "ssil", "checkpoint_minutes": minutes}
  BAD_STEP.append(of_first + 7)
  try:
    with pytest.raises(DivergedError) as error:
      run(tmp_path, **flags)
  finally:
    BAD_STEP.clear()
  assert error.value.exit_code == 3
  good = last_checkpoint(tmp_path)
  assert str(error.value) == (
    f"the loss became nan in state 2, epoch 1, step {of_first + 7}; the last good "
    f"checkpoint is {good}: lower --learning_rate, with another --workdir"
  )
  # At the end of state 1, or before the step that was bad.
  number_of = {0.0: of_first + 1, 1e-9: of_first + 6 + 1}
  assert int(good.name) == number_of[minutes]
  run(tmp_path, **flags)
  assert differences(workdir, tmp_path) == []


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(undisturbed, tmp_path):
  workdir, places = undisturbed(method="eeil")
  first, _ = stretches(places)[Place("train_phase", 2)]
  run(tmp_path, method="eeil", stop_at=first - 12)
  before = last_checkpoint(tmp_path)
  run(tmp_path, method="eeil", stop_at=9)
  newest = last_checkpoint(tmp_path)
  assert int(newest.name) > int(before.name)
  shutil.rmtree(newest / "arrays")
  config = small_config(tmp_path, **SETTINGS | {"method": "eeil"})
  console = Console(record=True, file=io.StringIO(), width=400)
  loop.run(config, console)
  text = console.export_text()
  assert f"warning: checkpoint {newest.name} is damaged" in text
  assert (tmp_path / "damaged" / newest.name).is_dir()
  assert differences(workdir, tmp_path) == []


def test_a_finished_run_whose_last_checkpoint_is_damaged_repeats_what_is_lost(
  undisturbed, tmp_path
):
  workdir, _ = undisturbed(method="bic")
  shutil.copytree(workdir, tmp_path / "run")
  shutil.rmtree(last_checkpoint(tmp_path / "run") / "rest")
  run(tmp_path / "run", method="bic")
  assert differences(workdir, tmp_path / "run") == []
