"""A run that is interrupted anywhere goes on to what it would have been, to the bit."""

import functools
import io
import itertools
import json
import shutil
import signal
import time

import numpy as np
import pytest
from folders import folder_of, noise, save
from kills import digests
from quick import quick_network
from rich.console import Console
from small_runs import count, last_checkpoint, records, small_config, watched_run

from ssil_jax.distributed.preemption import Interrupted
from ssil_jax.errors import ConfigError, DivergedError, WorkdirError
from ssil_jax.training import loop

pytestmark = pytest.mark.long

SETTINGS = {
  "num_classes": 4,
  "num_states": 2,
  "memory_size": 16,
  "batch_size_test": 64,
  # So large that a step which is left out or repeated shows, and so does momentum.
  "learning_rate": 1e-2,
  "num_devices": 2,
  "log_every": 3,
  "checkpoint_minutes": 0.0,
}
METHODS = ["eeil", "gd", "bic", "der"]
# Of undisturbed runs, which stay as they are.
_digests = functools.cache(digests)


@pytest.fixture(autouse=True, scope="module")
def _quickly():
  with quick_network():
    yield


def config_of(workdir, **changes):
  own = {"eeil": {"eeil_epochs": 4}, "gd": {"gd_epochs": 2}}.get(changes.get("method"), {})
  return small_config(workdir, **SETTINGS | own | changes)


def run(workdir, *, stop_at=None, error=None, **changes):
  """Runs until so many questions were answered with no; returns its calls.

  Args:
    workdir: of the run.
    stop_at: how many; None to run to the end.
    error: what then ends it, by default what a signal does.
    **changes: flags.
  """
  questions = itertools.count()

  def ask():
    if next(questions) == stop_at:
      raise error or Interrupted(signal.SIGTERM)

  ended, calls = watched_run(config_of(workdir, **changes), ask=ask)
  if stop_at is None:
    if isinstance(ended, BaseException):
      raise ended
  else:
    assert isinstance(ended, type(error) if error else Interrupted), ended
  return calls


class PowerCutError(Exception):
  """Nobody had the time to save anything."""


def cut_off(workdir, *, stop_at, **changes):
  """Runs for so many questions; what is not saved by then is lost."""
  run(workdir, stop_at=stop_at, error=PowerCutError(), **changes)
  # The writer is a thread, which lives on as it would not in a process that was killed.
  while any("tmp" in path.name for path in workdir.glob("checkpoints/*")):
    time.sleep(0.01)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
  """(flags) -> a whole run with them: its directory, and its calls."""
  made = {}

  def of(**changes):
    key = tuple(sorted(changes.items()))
    if key not in made:
      workdir = tmp_path_factory.mktemp("undisturbed") / "run"
      made[key] = workdir, run(workdir, **changes)
    return made[key]

  return of


def stretches(calls):
  """What a run does, in order: (kind, its first and last question, counted from 0).

  Kinds are those of calls; "trained" is a question at the end of a phase, after which the
  next stretch asks for itself.
  """
  asked = [n for n, call in enumerate(calls) if call.kind == "ask"]
  found = []
  for question, place in enumerate(asked):
    following = calls[place + 1].kind if place + 1 < len(calls) else "ask"
    kind = "trained" if following == "ask" else following
    if found and found[-1][0] == kind:
      found[-1] = kind, found[-1][1], question
    else:
      found.append((kind, question, question))
  return found


def middle(calls, kind, number):
  """The question in the middle of a stretch of that kind, counted from 0."""
  first, last = [(a, b) for k, a, b in stretches(calls) if k == kind][number]
  return (first + last + 1) // 2


def kinds_of(calls):
  return [kind for kind, _, _ in stretches(calls)]


def test_the_runs_have_what_is_to_be_interrupted(undisturbed):
  for method in METHODS:
    rows = records(undisturbed(method=method)[0])
    assert {row["state"] for row in rows} == {1, 2}
    assert all(np.isfinite(row["loss"]) for row in rows)
  extracting = ["train", "trained", "extract", "eval"]
  assert {method: kinds_of(undisturbed(method=method)[1]) for method in METHODS} == {
    # Two phases in its second state, with exemplars chosen before the second of them.
    "eeil": extracting + ["train", "trained", "extract"] + extracting,
    # Three phases.
    "gd": ["train", "trained", "eval"] + ["train", "trained"] * 3 + ["eval"],
    "bic": ["train", "trained", "eval"] + extracting,
    "der": extracting + extracting,
  }


def test_opening_the_data_can_be_interrupted(tmp_path):
  def stop():
    raise Interrupted(signal.SIGINT)

  with pytest.raises(Interrupted):
    loop.run(config_of(tmp_path / "run"), Console(quiet=True), check_interrupt=stop)
  assert not (tmp_path / "run").exists()


def differences(undisturbed, other):
  """The names of what a run has left otherwise than an undisturbed one."""
  ours, theirs = _digests(undisturbed), digests(other)
  return sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name))


def middles(calls):
  """Questions: one in the middle of each stretch."""
  return [(start + end + 1) // 2 for _, start, end in stretches(calls)]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_interrupted_anywhere_goes_on_as_if_nothing_had_been(
  undisturbed, tmp_path, method
):
  workdir, calls = undisturbed(method=method)
  starts = [start for kind, start, _ in stretches(calls) if kind == "train"]
  if method == "eeil":  # in everything, and where each phase begins
    questions = {*middles(calls), *starts}
  elif method == "gd":  # in its three phases, and where the later two begin
    questions = {*(middle(calls, "train", n) for n in (1, 2, 3)), *starts[2:]}
  else:
    questions = middles(calls)[-4:]
  for stop_at in sorted(questions):
    folder = tmp_path / str(stop_at)
    interrupted = run(folder, method=method, stop_at=stop_at)
    # In whatever it was, it has saved once, after the finished states.
    number = int(last_checkpoint(folder).name)
    done = len(json.loads((folder / "results.json").read_text())["states"])
    assert number == count(interrupted, "train") + done
    saved = [int(path.name) for path in (folder / "checkpoints").iterdir()]
    assert len(saved) <= done + 1
    resumed = run(folder, method=method)
    assert differences(workdir, folder) == [], stop_at
    # No step is lost, and none is trained twice.
    assert count(interrupted + resumed, "train") == count(calls, "train"), stop_at


# What steps carry along; weights that are drawn; a generator that is trained beside.
@pytest.mark.parametrize("method", ["rwalk", "ucl", "dgr"])
def test_what_is_the_methods_own_is_resumed_within_a_state(undisturbed, tmp_path, method):
  workdir, calls = undisturbed(method=method)
  run(tmp_path / "run", method=method, stop_at=middle(calls, "train", 1))
  run(tmp_path / "run", method=method)
  assert differences(workdir, tmp_path / "run") == []


@pytest.mark.parametrize("kind", ["train", "eval"])
def test_a_second_ctrl_c_saves_nothing_and_harms_nothing(undisturbed, tmp_path, kind):
  workdir, calls = undisturbed(method="eeil")
  stop_at = middle(calls, kind, 1)
  run(tmp_path, method="eeil", stop_at=stop_at, error=KeyboardInterrupt())
  states = json.loads((tmp_path / "results.json").read_text())["states"]
  assert len(list((tmp_path / "checkpoints").iterdir())) == len(states)
  run(tmp_path, method="eeil")
  assert differences(workdir, tmp_path) == []


def test_a_run_may_be_interrupted_again_and_again(undisturbed, tmp_path):
  workdir, calls = undisturbed(method="eeil")
  # At the first question, then after one, after two: an evaluation begins anew each time.
  runs = [run(tmp_path, method="eeil", stop_at=stop_at) for stop_at in range(6)]
  runs.append(run(tmp_path, method="eeil"))
  assert differences(workdir, tmp_path) == []
  assert count(sum(runs, []), "train") == count(calls, "train")


@pytest.mark.parametrize("kind", ["train", "extract"])
def test_a_run_that_is_cut_off_goes_on_from_what_was_saved(undisturbed, tmp_path, kind):
  workdir, calls = undisturbed(method="eeil")
  always = {"method": "eeil", "checkpoint_minutes": 1e-9}
  cut_off(tmp_path, stop_at=middle(calls, kind, 1), **always)
  run(tmp_path, **always)
  assert differences(workdir, tmp_path) == []


def test_momentum_that_is_kept_between_states_is_saved(undisturbed, tmp_path):
  changes = {"method": "der", "reset_momentum": False}
  workdir, calls = undisturbed(**changes)
  run(tmp_path, stop_at=middle(calls, "train", 1), **changes)
  run(tmp_path, **changes)
  assert differences(workdir, tmp_path) == []


@pytest.mark.parametrize("memory_size", [16, 24])
def test_states_of_another_run_are_taken_once(undisturbed, tmp_path, memory_size):
  source, _ = undisturbed(method="eeil")
  # With another memory, only the first state is alike.
  taken = {"method": "eeil", "memory_size": memory_size, "from_workdir": str(source)}
  workdir, calls = undisturbed(**taken)
  assert bool(count(calls, "train")) == (memory_size == 24)
  # The last of each kind.
  for stop_at in {kind: (a + b + 1) // 2 for kind, a, b in stretches(calls)}.values():
    folder = tmp_path / str(stop_at)
    run(folder, stop_at=stop_at, **taken)
    run(folder, **taken)
    assert differences(workdir, folder) == []


def test_a_state_that_was_begun_here_is_finished_here(undisturbed, tmp_path):
  workdir, calls = undisturbed(method="eeil")
  run(tmp_path, method="eeil", stop_at=middle(calls, "train", 0))
  # Only now it is told of a run that has this state.
  run(tmp_path, method="eeil", from_workdir=str(workdir))
  assert differences(workdir, tmp_path) == []


def test_streamed_images_go_on_with_the_same_crops_or_not_at_all(undisturbed, tmp_path):
  root = folder_of(tmp_path / "images", classes="abcd", each=16)
  streamed = {
    "method": "ft",
    "dataset": "image_folder",
    "data_dir": str(root),
    "image_size": 80,
    "learning_rate": 1e-3,
    "batch_size_new": 16,
  }
  workdir, calls = undisturbed(**streamed)
  interrupted = tmp_path / "interrupted"
  for folder in (tmp_path / "resumed", interrupted):
    run(folder, stop_at=middle(calls, "train", 1), **streamed)
  run(tmp_path / "resumed", **streamed)
  assert differences(workdir, tmp_path / "resumed") == []
  # Photos are replaced under the same names.
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


@pytest.mark.parametrize("side", [8, 80])
def test_images_without_labels_are_drawn_again_and_are_part_of_the_run(
  undisturbed, tmp_path, side
):
  root = folder_of(tmp_path / "images", classes="abcd", each=16)
  for number in range(5):
    save(tmp_path / "unlabeled" / f"{number}.png", noise(8, 8, seed=500 + number))
  flags = {
    "method": "gd",
    "dataset": "image_folder",
    "data_dir": str(root),
    "image_size": side,  # resident, or streamed
    "learning_rate": 1e-3,
    "unlabeled_dir": str(tmp_path / "unlabeled"),
    "batch_size_new": 16,
  }
  workdir, calls = undisturbed(**flags)
  trained = [call.records for call in calls if call.kind == "train"]
  assert {len(records) for records in trained} == {32}
  assert all((records[:16] < 64).all() for records in trained)
  assert {*np.concatenate([records[16:] for records in trained])} == {*range(64, 69)}
  # In the first state, and in the network's phase of the second.
  for number in (0, 2):
    folder = tmp_path / str(number)
    run(folder, stop_at=middle(calls, "train", number), **flags)
    run(folder, **flags)
    assert differences(workdir, folder) == []
  save(tmp_path / "unlabeled" / "3.png", noise(8, 8, seed=0))
  with pytest.raises(WorkdirError, match="of unlabeled images: different"):
    run(workdir, **flags)


def test_a_run_goes_on_with_another_number_of_devices(undisturbed, tmp_path):
  # So small a rate that a rounding error does not grow into another run.
  slow = {"method": "der", "learning_rate": 1e-5, "log_every": 1}
  workdir, calls = undisturbed(**slow)
  interrupted = run(tmp_path, stop_at=middle(calls, "train", 1), **slow)
  resumed = run(tmp_path, **slow, num_devices=1)
  batches, expected = (
    [call.records.tolist() for call in which if call.kind == "train"]
    for which in (interrupted + resumed, calls)
  )
  assert batches == expected
  ours, theirs = ([row["loss"] for row in records(path)] for path in (tmp_path, workdir))
  assert len(ours) == len(theirs) == len(expected)
  np.testing.assert_allclose(ours, theirs, rtol=1e-4)
  results = json.loads((tmp_path / "results.json").read_text())
  assert results["environment"]["num_devices"] == 1


def test_a_run_goes_on_with_another_log_every(undisturbed, tmp_path):
  workdir, calls = undisturbed(method="eeil")
  _, first, _ = [stretch for stretch in stretches(calls) if stretch[0] == "train"][1]
  run(tmp_path, method="eeil", stop_at=first + 5, log_every=100)
  # Killed after the records of those five steps were written one by one.
  cut_off(tmp_path, method="eeil", log_every=1, stop_at=5)
  assert records(tmp_path)[-1]["step"] > records(workdir)[0]["step"]
  run(tmp_path, method="eeil", log_every=2)
  found = [name for name in differences(workdir, tmp_path) if name != "metrics.jsonl"]
  assert found == []
  steps = [row["step"] for row in records(tmp_path)]
  assert steps == sorted(set(steps))
  assert steps[-1] == count(calls, "train")


@pytest.mark.parametrize("minutes", [0.0, 1e-9])
def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(
  undisturbed, tmp_path, minutes
):
  workdir, calls = undisturbed(method="eeil")
  of_first = [call.kind for call in calls].index("eval")
  of_first = count(calls[:of_first], "train")
  flags = {"method": "eeil", "checkpoint_minutes": minutes}
  error, _ = watched_run(config_of(tmp_path, **flags), bad_step=of_first + 7)
  assert isinstance(error, DivergedError)
  assert error.exit_code == 3
  good = last_checkpoint(tmp_path)
  assert str(error) == (
    f"the loss became nan in state 2, epoch 1, step {of_first + 7}; the last good "
    f"checkpoint is {good}: lower --learning_rate, with another --workdir"
  )
  # At the end of state 1, or before the step that was bad.
  number_of = {0.0: of_first + 1, 1e-9: of_first + 6 + 1}
  assert int(good.name) == number_of[minutes]
  run(tmp_path, **flags)
  assert differences(workdir, tmp_path) == []


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(undisturbed, tmp_path):
  workdir, calls = undisturbed(method="eeil")
  run(tmp_path, method="eeil", stop_at=middle(calls, "train", 1))
  before = last_checkpoint(tmp_path)
  run(tmp_path, method="eeil", stop_at=9)
  newest = last_checkpoint(tmp_path)
  assert int(newest.name) > int(before.name)
  shutil.rmtree(newest / "arrays")
  console = Console(record=True, file=io.StringIO(), width=400)
  watched_run(config_of(tmp_path, method="eeil"), console=console)
  text = console.export_text()
  assert f"warning: checkpoint {newest.name} is damaged" in text
  assert (tmp_path / "damaged" / newest.name).is_dir()
  assert differences(workdir, tmp_path) == []


def test_a_finished_run_whose_last_checkpoint_is_damaged_repeats_what_is_lost(
  undisturbed, tmp_path
):
  workdir, _ = undisturbed(method="eeil")
  shutil.copytree(workdir, tmp_path / "run")
  shutil.rmtree(last_checkpoint(tmp_path / "run") / "rest")
  run(tmp_path / "run", method="eeil")
  assert differences(workdir, tmp_path / "run") == []
