"""Checkpoints: what is saved comes back to the bit, and what is damaged is never used."""

import contextlib
import gc
import json
import os
import resource
import shutil
import threading

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost
from saved_states import (
  RESULTS,
  STATS,
  assert_same,
  beginning_of,
  largest,
  load,
  numbers_in,
  position_of,
  run_of,
  save_all,
  truncate,
)

from ssil_jax.errors import DivergedError, WorkdirError
from ssil_jax.training.checkpoint import Checkpoints
from ssil_jax.training.storage import Networks

CASES = {
  "the beginning": {},
  "between two states": {"results": RESULTS, "stats": STATS},
  "in a first state": {"position": position_of(teacher=False)},
  "in a later state": {"results": RESULTS, "stats": STATS, "position": position_of()},
  "with no step to be recorded": {"position": position_of(window=0)},
  "after the training": {
    "results": RESULTS,
    "position": position_of(teacher=False, window=0)._replace(phase=2, steps_done=0),
  },
}


def contents(folder):
  return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("case", CASES)
def test_what_is_saved_comes_back_to_the_bit(tmp_path, case):
  run = run_of(7, **CASES[case])
  save_all(tmp_path, run)
  assert_same(load(tmp_path, like=run), run)


def test_without_a_checkpoint_there_is_the_beginning(tmp_path):
  beginning = run_of(0)
  with Checkpoints(tmp_path, kept=3) as checkpoints:
    assert checkpoints.latest(default=beginning) is beginning
    assert checkpoints.last is None


def test_what_changes_after_saving_is_not_saved(tmp_path):
  for attempt in range(2):
    position = position_of(teacher=False)
    run = run_of(attempt, results=RESULTS, stats=STATS, position=position)
    run.train_state.params["large"] = np.ones((1 << 18,), np.float32)
    # Copies, to be compared with later.
    wanted = jax.tree.map(lambda x: x.copy() if hasattr(x, "copy") else x, run)
    with Checkpoints(tmp_path / str(attempt), kept=1) as checkpoints:
      checkpoints.save(run)
      # While it is being written in the background.
      for leaf in jax.tree.leaves(run):
        if isinstance(leaf, np.ndarray) and leaf.flags.writeable:
          leaf.fill(0)
      run.results.append({"state": 3})
    with Checkpoints(tmp_path / str(attempt), kept=1) as checkpoints:
      like = wanted._replace(results=[], position=None)
      assert_same(checkpoints.latest(default=like), wanted)


@pytest.mark.parametrize("kept", [1, 3])
def test_the_last_ones_are_kept(tmp_path, kept):
  # Their numbers count steps and finished states.
  trained = run_of(20, results=RESULTS[:1], position=position_of(window=0))
  finished = run_of(20, results=RESULTS)
  save_all(tmp_path, *map(run_of, (1, 2, 5)), trained, finished, kept=kept)
  assert numbers_in(tmp_path / "checkpoints") == [1, 2, 5, 21, 22][-kept:]
  assert_same(load(tmp_path, like=finished), finished)


def test_the_same_run_is_saved_once_and_named_once_it_is_whole(tmp_path):
  folder = tmp_path / "checkpoints"
  with Checkpoints(tmp_path, kept=3) as checkpoints:
    checkpoints.save(run_of(4))
    assert checkpoints.last is None  # for all that is known
    checkpoints.wait()
    assert checkpoints.last == folder / "4"
  before = contents(tmp_path)
  with Checkpoints(tmp_path, kept=3) as checkpoints:
    checkpoints.latest(default=run_of(0))
    checkpoints.save(run_of(4))
    checkpoints.wait()
    checkpoints.save(run_of(5))
    assert checkpoints.last == folder / "4"
    checkpoints.save(run_of(5))
  assert numbers_in(folder) == [4, 5]
  assert before.items() <= contents(tmp_path).items()


@pytest.mark.parametrize(("part", "value"), [("params", np.nan), ("batch_stats", -np.inf)])
def test_what_is_not_finite_is_not_saved(tmp_path, part, value):
  good, bad = run_of(3), run_of(4)
  jax.tree.leaves(getattr(bad.train_state, part))[0].flat[1] = value
  with Checkpoints(tmp_path, kept=3) as checkpoints:
    checkpoints.save(good)
    with pytest.raises(DivergedError, match=rf"{part}\..* is not finite after step 4$"):
      checkpoints.save(bad)
    assert checkpoints.last == tmp_path / "checkpoints" / "3"
  assert numbers_in(tmp_path / "checkpoints") == [3]


def test_orbax_does_not_ask_when_all_processes_stop(tmp_path, monkeypatch):
  # Jax counts by the numbers it is asked with, and those of checkpoints are others.
  asked = []
  for module in (multihost_utils, multihost):
    for name in ("reached_preemption_sync_point", "reached_preemption"):
      if hasattr(module, name):
        monkeypatch.setattr(module, name, asked.append)
  save_all(tmp_path, run_of(4), run_of(5))
  assert numbers_in(tmp_path / "checkpoints") == [4, 5]
  assert asked == []


# Damage ----------------------------------------------------------------------------------

OLDER = run_of(11, results=RESULTS[:1], stats=STATS)
NEWER = run_of(13, results=RESULTS[:1], stats=STATS, position=position_of())


@pytest.fixture(scope="module")
def two(tmp_path_factory):
  """A work directory with two checkpoints, to be copied."""
  folder = tmp_path_factory.mktemp("two")
  save_all(folder, OLDER, NEWER)
  assert numbers_in(folder / "checkpoints") == [12, 14]
  return folder


@pytest.fixture
def damaged(two, tmp_path):
  """A copy, to be damaged, and the newest checkpoint in it."""
  folder = tmp_path / "run"
  shutil.copytree(two, folder)
  return folder, folder / "checkpoints" / "14"


def another_kernel(kernel):
  """Puts the checkpoint of a run with another head there."""

  def put(newest):
    shutil.rmtree(newest)
    other = run_of(13, results=RESULTS[:1], stats=STATS)
    other.train_state.params["head"]["kernel"] = kernel
    with Checkpoints(newest.parent.parent, kept=3) as checkpoints:
      checkpoints.save(other)

  return put


def in_results(old, new):
  """Replaces a part of the JSON."""

  def replace(newest):
    path = newest / "rest" / "metadata"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))

  return replace


DAMAGES = {
  "a data file is cut": truncate,
  "a data file is gone": lambda new: largest(new).unlink(),
  "arrays are gone": lambda new: shutil.rmtree(new / "arrays"),
  "all is gone": lambda new: [shutil.rmtree(p) for p in new.iterdir() if p.is_dir()],
  "json is gone": lambda new: shutil.rmtree(new / "rest"),
  "json is a list": lambda new: (new / "rest" / "metadata").write_text("[1, 2]"),
  "json is cut": lambda new: os.truncate(new / "rest" / "metadata", 50),
  "a digit of a result": in_results("0.30000000000000004", "0.30000000000000014"),
  "a field of another name": in_results('"phase"', '"stage"'),
  "a vast shape": in_results("[2, 3]", f"[2, {1 << 60}]"),
  "another shape": another_kernel(np.zeros((20, 16), np.float32)),
  "another type": another_kernel(np.zeros((16, 20), np.float16)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_put_aside_for_the_one_before(damaged, damage):
  folder, newest = damaged
  DAMAGES[damage](newest)
  harmed, warnings = contents(newest), []
  with Checkpoints(folder, kept=3, warn=warnings.append) as checkpoints:
    assert_same(checkpoints.latest(default=beginning_of(NEWER)), OLDER)
    aside = folder / "damaged" / "14"
    assert checkpoints.damaged == [aside]
    assert checkpoints.last == folder / "checkpoints" / "12"
    # The run comes by that number again.
    checkpoints.save(NEWER)
  (line,) = warnings
  assert line.startswith("warning: checkpoint 14 is damaged (")
  assert line.endswith(f"it is now {aside}, and the run goes on from checkpoint 12")
  assert "\n" not in line
  assert {p.relative_to(aside): x for p, x in contents(aside).items()} == {
    p.relative_to(newest): x for p, x in harmed.items()
  }
  assert numbers_in(folder / "checkpoints") == [12, 14]
  assert_same(load(folder, like=NEWER), NEWER)


def test_a_number_may_be_damaged_twice(damaged):
  folder, newest = damaged
  for name in ("14", "14-2", "14-3"):
    truncate(newest)
    warnings = []
    assert_same(load(folder, like=NEWER, warnings=warnings), OLDER)
    assert len(warnings) == 1
    assert (folder / "damaged" / name).is_dir()
    with Checkpoints(folder, kept=3) as checkpoints:
      checkpoints.latest(default=beginning_of(NEWER))
      checkpoints.save(NEWER)


def test_a_flipped_bit_anywhere_is_found_or_does_no_harm(two, tmp_path):
  """No file of a checkpoint may change what is read from it."""
  source = two / "checkpoints" / "14"
  files = [path.relative_to(source) for path in sorted(source.rglob("*")) if path.is_file()]
  rng = np.random.default_rng(0)
  outcomes = {}
  for file in files:
    for attempt in range(2 if file.parent.name == "d" else 1):
      folder = tmp_path / f"{len(outcomes)}"
      shutil.copytree(two, folder)
      path = folder / "checkpoints" / "14" / file
      content = bytearray(path.read_bytes())
      content[rng.integers(len(content))] ^= 1 << int(rng.integers(7))
      path.write_bytes(content)
      warnings = []
      got = load(folder, like=NEWER, warnings=warnings)
      assert_same(got, OLDER if warnings else NEWER)
      outcomes[file, attempt] = bool(warnings)
      shutil.rmtree(folder)
  found = {file.parts[0] for (file, _), was_found in outcomes.items() if was_found}
  assert {"arrays", "rest"} <= found


def test_nothing_is_moved_if_all_are_damaged(damaged):
  folder, newest = damaged
  truncate(newest)
  shutil.rmtree(newest.parent / "12" / "rest")
  before = contents(folder)
  with (
    Checkpoints(folder, kept=1, warn=lambda line: pytest.fail(line)) as checkpoints,
    pytest.raises(
      WorkdirError, match=r"no checkpoint in .* can be read \(14: .* put a good one back$"
    ),
  ):
    checkpoints.latest(default=beginning_of(NEWER))
  assert contents(folder) == before


def test_what_was_never_whole_is_no_hindrance(damaged):
  folder, newest = damaged
  half = newest.with_name("20.orbax-checkpoint-tmp")
  shutil.copytree(newest, half)
  truncate(half)
  assert_same(load(folder, like=NEWER), NEWER)
  later = run_of(19, results=RESULTS[:1], stats=STATS)
  with Checkpoints(folder, kept=3) as checkpoints:
    checkpoints.latest(default=beginning_of(NEWER))
    checkpoints.save(later)
  assert_same(load(folder, like=NEWER), later)
  assert numbers_in(folder / "checkpoints") == [12, 14, 20]


# What cannot be written ------------------------------------------------------------------


@contextlib.contextmanager
def full_disk(folder):
  """No file can grow beyond 100 KB."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def folder_gone(folder):
  shutil.rmtree(folder)
  folder.write_text("no folder")
  yield


@pytest.mark.parametrize("broken", [full_disk, folder_gone])
def test_what_cannot_be_written_is_named_and_nothing_waits_for_it(tmp_path, broken):
  folder, large, threads = tmp_path / "checkpoints", run_of(3), set(threading.enumerate())
  large.train_state.params["head"]["kernel"] = np.random.default_rng(0).random((300, 300))
  with (  # noqa: PT012
    pytest.raises(WorkdirError) as error,
    Checkpoints(tmp_path, kept=3) as checkpoints,
  ):
    checkpoints.save(run_of(2))
    checkpoints.wait()
    with broken(folder):
      checkpoints.save(large)
      checkpoints.wait()
  (line,) = str(error.value).splitlines()
  assert line.startswith(f"checkpoint {folder / '3'} cannot be written (")
  assert f"the last good one is {folder / '2'}" in line
  # Nothing for which the process would wait; asyncio's own are idle, and end with it.
  left = {thread.name for thread in set(threading.enumerate()) - threads}
  assert all(name.startswith("asyncio_") for name in left)
  if broken is full_disk:
    assert_same(load(tmp_path, like=run_of(2)), run_of(2))


# The format ------------------------------------------------------------------------------

NAMES = [
  "memory.labels",
  "memory.ranks",
  "memory.records",
  "stats.logits",
  "stats.nested.alpha",
  "stats.nested.flags",
  "stats.row",
  "train_state.batch_stats.mean",
  "train_state.opt_state.1.trace.head.kernel",
  "train_state.opt_state.1.trace.stem.kernel",
  "train_state.params.head.kernel",
  "train_state.params.stem.kernel",
  "train_state.step",
  "underway.expert.batch_stats.mean",
  "underway.expert.params.head.kernel",
  "underway.expert.params.stem.kernel",
  "underway.new_ranks",
  "underway.teacher.batch_stats.mean",
  "underway.teacher.params.head.kernel",
  "underway.teacher.params.stem.kernel",
  "underway.window",
]


def test_the_names_in_a_checkpoint_are_a_format(tmp_path):
  """Runs that were saved by earlier versions must be found again, whatever is renamed."""
  run = run_of(7, **CASES["in a later state"])
  save_all(tmp_path, run)
  path = tmp_path / "checkpoints" / str(run.number) / "rest" / "metadata"
  rest = json.loads(path.read_text())
  assert set(rest) == {"origin", "results", "underway", "arrays", "checksum"}
  assert sorted(rest["arrays"]) == NAMES
  assert rest["underway"] == {
    "phase": 1,
    "steps_done": 37,
    "num_taught": 6,
    "seconds": 1 / 3,
  }


# Networks --------------------------------------------------------------------------------


def test_a_network_for_which_there_is_no_room_is_one_line(tmp_path, monkeypatch):
  printed, state = [], run_of(3).train_state
  state.params["head"]["kernel"] = np.random.default_rng(0).random((300, 300))
  monkeypatch.setattr("sys.unraisablehook", lambda found: printed.append(found.exc_value))
  with Networks(tmp_path) as networks:
    with full_disk(tmp_path), pytest.raises(WorkdirError) as error:
      networks.save(state, state=1)
    gc.collect()  # what the threads left is complained of when it goes
    assert networks.states() == []
  assert str(error.value) == (
    f"network {tmp_path}/networks/1 cannot be written (File too large): fix this and rerun "
    "the command to resume"
  )
  assert not printed


def test_networks_of_later_states_are_replaced(tmp_path):
  with Networks(tmp_path) as networks:
    for state in (1, 2, 3):
      networks.save(run_of(state).train_state, state=state)
    # The run was killed before its checkpoint, and comes by state 2 again.
    networks.save(run_of(7).train_state, state=2)
    assert networks.states() == [1, 2]
    like = run_of(0).train_state
    for state, step in ((1, 1), (2, 7)):
      wanted = run_of(step).train_state.replace(opt_state=like.opt_state)
      assert_same(networks.load(state, like=like), wanted)


def test_a_checkpoint_of_another_run_is_refused_and_stays(tmp_path):
  run = run_of(0, results=RESULTS, stats=STATS)
  with Checkpoints(tmp_path, kept=1, origin={"--seed": 0, "classes": 3}) as checkpoints:
    checkpoints.save(run)
  names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
  with (
    Checkpoints(tmp_path, kept=1, origin={"--seed": 1, "classes": 3}) as checkpoints,
    pytest.raises(WorkdirError, match=r"is of another run \(different: --seed\)"),
  ):
    checkpoints.latest(default=run)
  assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == names
  # A flag that one version does not know makes no other run.
  origin = {"--seed": 0, "classes": 3, "--new": 1}
  with Checkpoints(tmp_path, kept=1, origin=origin) as checkpoints:
    assert_same(checkpoints.latest(default=run), run)
