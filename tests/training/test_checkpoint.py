"""Checkpoints: what is saved comes back to the bit, and what is damaged is never used."""

import json
import os
import shutil
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from folders import ROOT
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

TESTS = ROOT / "tests"


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


def test_numbers_count_steps_and_finished_states(tmp_path):
  trained = run_of(20, results=RESULTS[:1], position=position_of(window=0))
  finished = run_of(20, results=RESULTS)
  assert (trained.number, finished.number) == (21, 22)
  save_all(tmp_path, trained, finished)
  assert numbers_in(tmp_path / "checkpoints") == [21, 22]
  assert_same(load(tmp_path, like=finished), finished)


def test_what_changes_after_saving_is_not_saved(tmp_path):
  for attempt in range(5):
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


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_the_last_ones_are_kept(tmp_path, kept):
  save_all(tmp_path, *map(run_of, (1, 2, 5, 6, 9)), kept=kept)
  assert numbers_in(tmp_path / "checkpoints") == [1, 2, 5, 6, 9][-kept:]


def test_the_same_run_is_saved_once(tmp_path):
  save_all(tmp_path, run_of(4))
  before = contents(tmp_path)
  with Checkpoints(tmp_path, kept=3) as checkpoints:
    checkpoints.latest(default=run_of(0))
    checkpoints.save(run_of(4))
    checkpoints.wait()
    checkpoints.save(run_of(5))
    checkpoints.save(run_of(5))
  assert numbers_in(tmp_path / "checkpoints") == [4, 5]
  assert before.items() <= contents(tmp_path).items()


def test_the_last_one_is_named_once_it_is_whole(tmp_path):
  with Checkpoints(tmp_path, kept=3) as checkpoints:
    checkpoints.save(run_of(4))
    assert checkpoints.last is None  # for all that is known
    checkpoints.wait()
    assert checkpoints.last == tmp_path / "checkpoints" / "4"
    checkpoints.save(run_of(6))
    assert checkpoints.last == tmp_path / "checkpoints" / "4"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", ["params", "batch_stats"])
def test_what_is_not_finite_is_not_saved(tmp_path, value, part):
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


def edit_rest(newest, change):
  """Changes the JSON of a checkpoint."""
  (path,) = (p for p in newest.rglob("metadata") if p.parent.name == "rest")
  saved = json.loads(path.read_text())
  change(saved)
  path.write_text(json.dumps(saved))


def lose_a_piece(newest):
  for path in newest.glob("arrays/d/*"):
    path.unlink()


def another_shape(newest):
  shutil.rmtree(newest)
  other = run_of(13, results=RESULTS[:1], stats=STATS)
  other.train_state.params["head"]["kernel"] = np.zeros((20, 16), np.float32)
  with Checkpoints(newest.parent.parent, kept=3) as checkpoints:
    checkpoints.save(other)


def another_type(newest):
  shutil.rmtree(newest)
  other = run_of(13, results=RESULTS[:1], stats=STATS)
  other.train_state.params["head"]["kernel"] = np.zeros((16, 20), np.float16)
  with Checkpoints(newest.parent.parent, kept=3) as checkpoints:
    checkpoints.save(other)


def a_shape_in_json(newest):
  def change(saved):
    saved["arrays"]["stats.row"] = ["int32", [1 << 60], 0]

  edit_rest(newest, change)


DAMAGES = {
  "a data file is cut": truncate,
  "data files are empty": lambda new: [os.truncate(p, 0) for p in new.rglob("d/*")],
  "a data file is gone": lambda new: largest(new).unlink(),
  "an index is gone": lose_a_piece,
  "arrays are gone": lambda new: shutil.rmtree(new / "arrays"),
  "all is gone": lambda new: [shutil.rmtree(p) for p in new.iterdir() if p.is_dir()],
  "json is gone": lambda new: shutil.rmtree(new / "rest"),
  "json is a list": lambda new: (new / "rest" / "metadata").write_text("[1, 2]"),
  "json is cut": lambda new: os.truncate(new / "rest" / "metadata", 50),
  "no results": lambda new: edit_rest(new, lambda saved: saved.pop("results")),
  "results of text": lambda new: edit_rest(new, lambda saved: saved.update(results="x")),
  "other results": lambda new: edit_rest(
    new, lambda saved: saved["results"][0].update(top1=0.9)
  ),
  "underway is a number": lambda new: edit_rest(
    new, lambda saved: saved.update(underway=3)
  ),
  "another phase": lambda new: edit_rest(
    new, lambda saved: saved["underway"].update(phase=0)
  ),
  "another field": lambda new: edit_rest(
    new, lambda saved: saved["underway"].update(speed=1)
  ),
  "no arrays in json": lambda new: edit_rest(new, lambda saved: saved.update(arrays={})),
  "a vast shape in json": a_shape_in_json,
  "another shape": another_shape,
  "another type": another_type,
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
    for attempt in range(6 if file.parent.name == "d" else 2):
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


def test_a_digit_changed_in_the_results_is_found(damaged):
  folder, newest = damaged
  path = newest / "rest" / "metadata"
  text = path.read_text()
  assert text.count("0.30000000000000004") == 1
  path.write_text(text.replace("0.30000000000000004", "0.30000000000000014"))
  warnings = []
  assert_same(load(folder, like=NEWER, warnings=warnings), OLDER)
  assert len(warnings) == 1


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


BREAKS = {
  "a full disk": "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))",
  "a folder that is gone": "shutil.rmtree(folder); folder.write_text('no folder')",
}


@pytest.mark.parametrize("what", BREAKS)
def test_what_cannot_be_written_is_named_and_the_process_ends(tmp_path, what):
  script = f"""
    import pathlib, resource, shutil, sys
    sys.path[:0] = [{str(TESTS)!r}, {str(TESTS.parent)!r}]
    import numpy as np
    from saved_states import Checkpoints, run_of
    from ssil_jax.errors import WorkdirError
    folder = pathlib.Path({str(tmp_path)!r}) / "checkpoints"
    with Checkpoints(folder.parent, kept=3) as checkpoints:
      checkpoints.save(run_of(2))
      checkpoints.wait()
      large = run_of(3)
      large.train_state.params["head"]["kernel"] = np.random.rand(300, 300)
      {BREAKS[what]}
      try:
        checkpoints.save(large)
        checkpoints.wait()
      except WorkdirError as error:
        print(error)
  """
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(script)],
    capture_output=True,
    text=True,
    timeout=200,  # orbax would wait for 300 seconds
    check=False,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
  )
  assert done.returncode == 0, done.stderr
  (line,) = done.stdout.splitlines()
  assert line.startswith(f"checkpoint {tmp_path / 'checkpoints' / '3'} cannot be written (")
  assert f"the last good one is {tmp_path / 'checkpoints' / '2'}" in line
  if what == "a full disk":
    assert_same(load(tmp_path, like=run_of(2)), run_of(2))


# The format ------------------------------------------------------------------------------

NETWORK_NAMES = [
  "batch_stats.mean",
  "opt_state.1.trace.head.kernel",
  "opt_state.1.trace.stem.kernel",
  "params.head.kernel",
  "params.stem.kernel",
  "step",
]
NAMES = [
  "memory.labels",
  "memory.ranks",
  "memory.records",
  *(f"train_state.{name}" for name in NETWORK_NAMES),
]
TEACHER_NAMES = [
  f"underway.teacher.{name}"
  for name in ("batch_stats.mean", "params.head.kernel", "params.stem.kernel")
]
STATS_NAMES = ["logits", "nested.alpha", "nested.flags", "row"]


@pytest.mark.parametrize(
  ("case", "more"),
  [
    ("the beginning", []),
    ("between two states", [f"stats.{name}" for name in STATS_NAMES]),
    ("in a first state", ["underway.new_ranks", "underway.window"]),
    (
      "in a later state",
      [
        *(f"stats.{name}" for name in STATS_NAMES),
        *("underway.new_ranks", "underway.window"),
        *TEACHER_NAMES,
      ],
    ),
  ],
)
def test_the_names_in_a_checkpoint_are_a_format(tmp_path, case, more):
  """Runs that were saved by earlier versions must be found again, whatever is renamed."""
  run = run_of(7, **CASES[case])
  save_all(tmp_path, run)
  rest = json.loads(
    (tmp_path / "checkpoints" / str(run.number) / "rest" / "metadata").read_text()
  )
  assert set(rest) == {"origin", "results", "underway", "arrays", "checksum"}
  assert sorted(rest["arrays"]) == sorted([*NAMES, *more])
  assert rest["underway"] == (
    run.position
    and {
      "phase": run.position.phase,
      "steps_done": run.position.steps_done,
      "num_taught": run.position.num_teacher_classes,
      "seconds": 1 / 3,
    }
  )


# Networks --------------------------------------------------------------------------------


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
