"""What every method owes the loop: a table of checks over whole small runs of them all."""

import collections
import contextlib
import functools
import itertools
import json
import logging
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_network
from rich.console import Console
from small_runs import (
  last_checkpoint,
  records,
  run,
  small_config,
  untimed,
  untimed_records,
)

from ssil_jax import metrics
from ssil_jax.methods import METHODS
from ssil_jax.methods.base import PhaseContext, SeenClasses
from ssil_jax.resnet import Outputs
from ssil_jax.schedule import IncrementalState
from ssil_jax.training import loop
from ssil_jax.training.checkpoint import Checkpoints
from ssil_jax.training.run_state import RunState
from ssil_jax.training.session import open_session

# One schedule for all methods, so that their first states can be compared.
SETTINGS = {
  "num_classes": 4,
  "num_states": 2,
  "memory_size": 16,
  "batch_size_test": 64,
  "milestones_first": (),
  "milestones": (),
  "learning_rate": 1e-3,
  "learning_rate_by_state": "inverse",
  "learning_rate_drop": 0.1,
  "num_devices": 2,
}
PLAIN = [name for name, method in METHODS.items() if method.steps_like_softmax_first]


def settings_of(name):
  return {**SETTINGS, "method": name, **({"eeil_epochs": 1} if name == "eeil" else {})}


@contextlib.contextmanager
def logged_compiles(compiled):
  """Counts XLA's compilations by name, and allows no hidden transfers."""

  def note(record):
    message = record.getMessage()
    if message.startswith("Finished XLA"):
      compiled[message.split()[4]] += 1

  handler = logging.Handler()
  handler.emit = note
  logger = logging.getLogger("jax")
  logger.addHandler(handler)
  try:
    with jax.log_compiles(), jax.transfer_guard("disallow"):
      yield
  finally:
    logger.removeHandler(handler)


class TrainedPhase(NamedTuple):
  """A phase, as it began and as it ended."""

  state: IncrementalState
  before: RunState
  after: RunState


class Watched(NamedTuple):
  """A finished run and what was seen on its way."""

  name: str
  workdir: Any
  results: dict
  plan: Any
  runs: list[RunState]  # before the first state, and after each
  phases: list[TrainedPhase]
  compiled: collections.Counter  # by XLA's name
  extracted: set  # functions of outputs, and the split

  @property
  def method(self):
    return METHODS[self.name]


def watch(name, workdir):
  """A whole run, phase by phase."""
  compiled, extracted, phases = collections.Counter(), set(), []
  config = small_config(workdir, **settings_of(name))
  with (
    quick_network(),
    logged_compiles(compiled),
    open_session(config, Console(quiet=True), lambda: None) as (session, beginning),
  ):
    extract_step = session.devices.extract_step

    def noted(train_state, batch, context, output_fn, split):
      extracted.add((output_fn, split))
      return extract_step(train_state, batch, context, output_fn, split)

    session.devices.extract_step = noted
    runs = [beginning]
    for state in session.plan.states:
      now = loop.begin_state(session, state, runs[-1])
      for phase in state.phases:
        if phase.number:
          now = loop.begin_phase(session, state, phase, now)
        after = loop.train_phase(session, state, phase, now)
        phases.append(TrainedPhase(state, now, after))
        now = after
      runs.append(session.commit(loop.finish_state(session, state, now)))
    results = session.results(runs[-1])
  return Watched(name, workdir, results, session.plan, runs, phases, compiled, extracted)


@pytest.fixture(scope="module")
def every_run(tmp_path_factory):
  """name -> its run, made when it is first asked for."""
  return functools.cache(lambda name: watch(name, tmp_path_factory.mktemp("runs") / name))


@pytest.fixture(params=METHODS)
def watched(request, every_run):
  return every_run(request.param)


def assert_same_kind(tree, other):
  """Structure, shapes and dtypes."""
  kinds = [jax.tree.map(lambda x: (np.shape(x), x.dtype), t) for t in (tree, other)]
  assert jax.tree.structure(tree) == jax.tree.structure(other)
  assert kinds[0] == kinds[1]


def assert_same(tree, other):
  """Bit for bit."""
  assert_same_kind(tree, other)
  jax.tree.map(np.testing.assert_array_equal, tree, other)


def test_the_run_ends_with_finite_losses_and_the_contract_of_its_results(watched):
  results, plan = watched.results, watched.plan
  assert json.loads((watched.workdir / "results.json").read_text()) == results
  num_states = 1 if watched.name == "joint_full" else 2
  assert (results["method"], results["num_states"]) == (watched.name, num_states)
  assert results["environment"]["num_devices"] == 2
  rows = results["states"]
  per_state = 4 // num_states
  assert [(row["state"], row["num_old"], row["num_seen"]) for row in rows] == [
    (t, per_state * (t - 1), per_state * t) for t in range(1, num_states + 1)
  ]
  for row in rows:
    assert np.sum(row["confusion"]) == np.sum(plan.dataset.test.labels < row["num_seen"])
    assert 0 <= row["top1"] <= row["state_specific_top1"] <= 1
    assert row["top1"] <= row["top5"] <= 1
    assert np.isfinite(row["score_new"])
    assert row["from_workdir"] is None
    assert all(np.isfinite(x) for x in row["statistics"].values())
  assert results["average"] == metrics.average(rows)
  lines = records(watched.workdir)
  assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
  assert len(lines) == sum(phase.num_steps for _, phase in plan.phases())
  assert all(np.isfinite(line["loss"]) for line in lines)


def test_each_program_is_compiled_once(watched):
  # One for each size of a batch, the evaluation, the extractions, the initial state.
  shapes = {phase.group_sizes for _, phase in watched.plan.phases()}
  expected = len(shapes) + 1 + len(watched.extracted) + 1
  assert watched.compiled.total() == expected, watched.compiled


def test_training_keeps_the_kind_of_its_state(watched):
  for _, before, after in watched.phases:
    assert_same_kind(before.train_state, after.train_state)
    changed = jax.tree.map(
      np.array_equal, before.train_state.params, after.train_state.params
    )
    assert not all(jax.tree.leaves(changed))
    # What a phase is given it leaves as it is.
    assert_same(after.position.teacher, before.position.teacher)
    assert_same(after.stats, before.stats)
    assert_same(after.exemplars, before.exemplars)


def test_statistics_keep_their_kind_and_are_in_the_checkpoint(watched):
  start, *later = watched.runs
  for run_after in later:
    assert_same_kind(run_after.stats, start.stats)
    assert_same_kind(run_after.train_state, start.train_state)
  with Checkpoints(watched.workdir, kept=3) as checkpoints:
    saved = checkpoints.latest(default=start)
  assert_same(saved[:3], later[-1][:3])
  assert saved.results == watched.results["states"]


def test_classes_not_seen_yet_are_never_predicted(watched):
  rng = np.random.default_rng(0)
  width = watched.runs[0].train_state.params["head"]["kernel"].shape[0]
  logits = rng.standard_normal((64, 4)).astype(np.float32)
  logits[:, 2:] = 1e30
  outputs = Outputs(
    features=jnp.asarray(rng.standard_normal((64, width)), jnp.float32),
    logits=jnp.asarray(logits),
  )
  stats = watched.runs[1].stats
  for num_old in (0, 1):
    classes = SeenClasses(*map(jnp.int32, (num_old, 2, 0)))
    scores = watched.method.predict(
      outputs, PhaseContext(classes, None, stats), watched.plan.config
    )
    assert scores.shape == (64, 4)
    assert not np.isnan(scores).any()
    assert np.isneginf(scores[:, 2:]).all()
    assert {*np.argmax(np.asarray(scores), axis=-1).tolist()} == {0, 1}


def test_the_teacher_is_the_network_as_it_was(watched):
  for number, (state, before, _) in enumerate(watched.phases):
    position = before.position
    if not watched.method.has_teacher:
      assert (position.teacher, position.num_teacher_classes) == (None, 0)
      continue
    is_new = state.phases[position.phase].new_teacher
    former = watched.phases[number - 1].after if is_new else watched.runs[state.index - 1]
    num_classes = state.num_seen if is_new else state.num_old
    assert position.num_teacher_classes == num_classes
    network = former.train_state
    assert_same(
      position.teacher, {"params": network.params, "batch_stats": network.batch_stats}
    )


def test_a_phase_starts_where_the_one_before_ended_without_its_momentum(watched):
  start = watched.runs[0].train_state
  former = start
  for phase, following in itertools.zip_longest(watched.phases, watched.phases[1:]):
    assert_same(phase.before.train_state, former.replace(opt_state=start.opt_state))
    ended_state = following is None or following.state != phase.state
    # What follows training, as weight aligning, is in the run after the state.
    former = (watched.runs[phase.state.index] if ended_state else phase.after).train_state


def first_losses(watched):
  return [line["loss"] for line in records(watched.workdir) if line["state"] == 1]


@pytest.mark.parametrize("name", [n for n in PLAIN if n != "joint_full"])
def test_plain_methods_share_the_first_state(every_run, name):
  ft, other = every_run("ft"), every_run(name)
  assert len(first_losses(ft)) == ft.plan.states[0].phases[0].num_steps > 4
  assert first_losses(other) == first_losses(ft)
  assert_same(*(w.phases[0].after.train_state for w in (ft, other)))


def test_statistics_survive_an_interruption(every_run, tmp_path):
  # Without what the first state left, the second would be trained differently.
  finished = every_run("der")
  copy = tmp_path / "copy"
  shutil.copytree(finished.workdir, copy)
  shutil.rmtree(last_checkpoint(copy))
  with quick_network():
    resumed = run(copy, **settings_of("der"))
  assert untimed(resumed) == untimed(finished.results)
  assert untimed_records(copy) == untimed_records(finished.workdir)
  with Checkpoints(copy, kept=3) as checkpoints:
    assert_same(checkpoints.latest(default=finished.runs[0]).stats, finished.runs[-1].stats)
