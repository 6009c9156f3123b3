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

import ssil_jax
from ssil_jax import metrics
from ssil_jax.data.photos import open_photos
from ssil_jax.methods import METHODS
from ssil_jax.methods.base import PhaseContext, SeenClasses
from ssil_jax.resnet import Outputs
from ssil_jax.schedule import IncrementalState
from ssil_jax.training import loop
from ssil_jax.training.checkpoint import Checkpoints
from ssil_jax.training.run_state import RunState, with_own
from ssil_jax.training.session import open_session

pytestmark = pytest.mark.long

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
  "keep_test": 1000,  # all of them, so that a model can be asked about each
}
PLAIN = [name for name, method in METHODS.items() if method.steps_like_softmax_first]
# GDumb trains on no more than the memory, which must fill a batch.
OWN = {
  "eeil": {"eeil_epochs": 1},
  # A rate at which no two classes end with equal scores.
  "podnet": {"podnet_epochs": 1, "podnet_rate": 0.1},
  "gd": {"gd_epochs": 1, "weight_decay": 1e-4},
  "gdumb": {"memory_size": 128},
  "cgan_features": {"cgan_steps": 5},
}


def settings_of(name):
  return {**SETTINGS, "method": name, **OWN.get(name, {})}


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
  extracted: set  # functions of outputs, and the split; functions of an image

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

    total_step = session.devices.total_step

    def noted_total(total, train_state, batch, context, image_fn):
      extracted.add(image_fn)
      return total_step(total, train_state, batch, context, image_fn)

    session.devices.extract_step = noted
    session.devices.total_step = noted_total
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
  # One for each size of a batch, without and with a teacher and a second one, and for later
  # states if their steps differ; the evaluation and the extractions.
  differs = watched.method.differs_later
  steps = {
    (
      state.phases[before.position.phase].group_sizes,
      before.position.num_teacher_classes > 0,
      before.position.expert is None,
      differs and state.num_old > 0,
    )
    for state, before, _ in watched.phases
  }
  expected = len(steps) + 1 + len(watched.extracted)
  # One for all runs: another test may have had it compiled.
  shared = [
    watched.compiled[f"jit({name})"] for name in ("create_train_state", "train_generator")
  ]
  assert max(shared) <= 1
  assert watched.compiled.total() - sum(shared) == expected, watched.compiled


def test_training_keeps_the_kind_of_its_state(watched):
  for state, before, after in watched.phases:
    assert_same_kind(before.train_state, after.train_state)
    changed = jax.tree.map(
      np.array_equal, before.train_state.params, after.train_state.params
    )
    num_steps = state.phases[before.position.phase].num_steps
    assert all(jax.tree.leaves(changed)) == (not num_steps)
    # What a phase is given it leaves as it is.
    assert_same(after.position.teacher, before.position.teacher)
    assert_same(after.position.expert, before.position.expert)
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


def test_probabilities_sum_to_one_and_are_ordered_as_the_scores(watched):
  rng = np.random.default_rng(1)
  width = watched.runs[0].train_state.params["head"]["kernel"].shape[0]
  logits = 3 * rng.standard_normal((64, 4)).astype(np.float32)
  outputs = Outputs(
    features=jnp.asarray(rng.standard_normal((64, width)), jnp.float32),
    logits=jnp.asarray(logits),
  )
  config = watched.plan.config
  context = PhaseContext(
    SeenClasses(*map(jnp.int32, (1, 3, 0))), None, watched.runs[-1].stats
  )
  scores = watched.method.predict(outputs, context, config)
  probabilities = np.asarray(watched.method.probabilities(scores, context, config))
  assert (probabilities.shape, probabilities.dtype) == ((64, 4), np.float32)
  np.testing.assert_array_equal(probabilities[:, 3], 0)
  np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
  by_score = np.take_along_axis(probabilities, np.argsort(-np.asarray(scores)), axis=1)
  assert (np.diff(by_score, axis=1) <= 0).all()
  assert len(np.unique(probabilities)) > 64


def kept_photos(workdir, num_states):
  """Every test photo of the classes of the states given, as a file, and its class."""
  files, labels = [], []
  for state in range(1, num_states + 1):
    photos = open_photos(workdir / "model" / str(state) / "test.zip")
    files += [photos.images.open(record).data for record in range(len(photos.labels))]
    labels += photos.labels.tolist()
  return files, np.array(labels)


def check_model(watched, state):
  """Asks the model of a state about all test photos; compares with results.json."""
  row, states = watched.results["states"][state - 1], watched.plan.states
  files, labels = kept_photos(watched.workdir, state)
  assert len(labels) == np.sum(row["confusion"])
  with quick_network():
    model = ssil_jax.load(watched.workdir, state=state)
    # One batch, so that one program serves; of probabilities, too.
    found = model.predict(files, top=9, batch_size=1024)
    probabilities = model.probabilities(files, batch_size=1024)
  names = watched.plan.dataset.class_names[: row["num_seen"]]
  assert model.class_names == names
  place = {name: label for label, name in enumerate(names)}
  predicted = np.array([place[classes[0].name] for _, classes in found])
  assert np.mean(predicted == labels) == pytest.approx(row["top1"], abs=1e-9)
  state_of = np.repeat(np.arange(state), [s.num_seen - s.num_old for s in states[:state]])
  confusion = np.zeros((state, state), int)
  np.add.at(confusion, (state_of[labels], state_of[predicted]), 1)
  assert confusion.tolist() == row["confusion"]
  for t, share in enumerate(row["top1_by_state"]):
    of_state = state_of[labels] == t
    assert np.mean((predicted == labels)[of_state]) == pytest.approx(share, abs=1e-9)
  assert probabilities.shape == (len(labels), row["num_seen"])
  np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
  for (file, classes), of_image in zip(found, probabilities, strict=True):
    assert file is None
    assert {name for name, _ in classes} == {*names}
    for name, probability in classes:
      assert probability == of_image[place[name]]
    shares = [probability for _, probability in classes]
    assert shares == sorted(shares, reverse=True)


def test_the_model_answers_as_the_results_say(watched):
  check_model(watched, len(watched.plan.states))


@pytest.mark.parametrize("name", ["ssil", "icarl", "il2m", "bic"])
def test_the_model_of_an_earlier_state_answers_as_its_results_say(every_run, name):
  check_model(every_run(name), 1)


def test_weights_of_unseen_classes_wait_for_their_state(watched):
  for state, before, after in watched.phases:
    trees = (before.train_state, after.train_state)
    heads = [[tree.params["head"], *momenta_of(tree.opt_state)] for tree in trees]
    for old, new in zip(*heads, strict=True):
      for name, leaf in new.items():
        if leaf.ndim:
          unseen = (..., slice(state.num_seen, None))
          np.testing.assert_array_equal(leaf[unseen], old[name][unseen])


def momenta_of(opt_state):
  """The parts of the optimizer's state that belong to the head."""
  leaves = jax.tree_util.tree_leaves_with_path(opt_state)
  head = {
    jax.tree_util.keystr(path): leaf for path, leaf in leaves if "'head'" in str(path)
  }
  assert head
  return [head]


def test_a_class_that_is_new_alone_is_learnt(tmp_path):
  # By SS-IL, whose separated softmax over a single class has no gradient at all.
  changes = {"num_classes": 3, "num_states": 3, "weight_decay": 0.0}
  config = small_config(tmp_path / "run", **settings_of("ssil") | changes)
  with (
    quick_network(),
    open_session(config, Console(quiet=True), lambda: None) as (session, run_state),
  ):
    for state in session.plan.states:
      before = loop.begin_state(session, state, run_state)
      after = loop.train_state(session, state, before)
      run_state = session.commit(loop.finish_state(session, state, after))
      old, new = (r.train_state.params["head"] for r in (before, after))
      for name in ("kernel", "bias"):
        moved = (old[name] != new[name]).reshape(-1, 3).any(axis=0)
        # In the first state the only class competes with none.
        assert moved[state.num_old] == (state.index > 1)


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


def test_the_expert_is_what_the_phase_before_its_own_left(watched):
  for number, (state, before, _) in enumerate(watched.phases):
    phase = state.phases[before.position.phase]
    former = watched.phases[number - 1].after
    if phase.new_expert:
      network = former.train_state
      expected = {"params": network.params, "batch_stats": network.batch_stats}
    else:  # a state begins without one
      expected = former.position.expert if phase.number else None
    assert_same(before.position.expert, expected)


def test_a_phase_starts_where_the_one_before_ended_without_its_momentum(watched):
  start = watched.runs[0].train_state
  former = start
  for phase, following in itertools.zip_longest(watched.phases, watched.phases[1:]):
    if watched.method.restarts and phase.before.position.phase == 0:
      former = start.replace(step=former.step)
    expected = former.replace(opt_state=start.opt_state)
    if phase.state.phases[phase.before.position.phase].starts_from_teacher:
      expected = expected.replace(**phase.before.position.teacher)
    if phase.before.position.phase == 0:  # what is the method's own is a state's
      before = phase.before.stats, watched.plan.config
      expected = with_own(expected, watched.method, *before)
      if watched.method.imprint and phase.state.num_old:
        head, found = (x.params["head"] for x in (expected, phase.before.train_state))
        is_new = np.arange(head["kernel"].shape[-1]) >= phase.state.num_old
        kernel = np.where(is_new, found["kernel"], head["kernel"])
        params = expected.params | {"head": head | {"kernel": kernel}}
        expected = expected.replace(params=params)
    assert_same(phase.before.train_state, expected)
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
  ours, theirs = (w.phases[0].after.train_state.replace(carried={}) for w in (ft, other))
  assert_same(ours, theirs)


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.trains_as])
def test_a_method_that_trains_as_another_ends_with_its_network(every_run, name):
  mine, other = every_run(name), every_run(METHODS[name].trains_as)
  for run_after, run_there in zip(mine.runs[1:], other.runs[1:], strict=True):
    assert_same(run_after.train_state, run_there.train_state)
  last, last_there = (watched.results["states"][-1] for watched in (mine, other))
  assert last["score_new"] == last_there["score_new"]
  # ER is FT w/ RP by another name.
  same = mine.method.predict is other.method.predict
  assert (last["statistics"] == last_there["statistics"]) == same


def test_statistics_survive_an_interruption(every_run, tmp_path):
  # Without what the first state left, the second would be trained differently. Of DER and
  # UCL, test_resume.py shows the same.
  finished = every_run(name := "vcl")
  copy = tmp_path / "copy"
  shutil.copytree(finished.workdir, copy)
  shutil.rmtree(last_checkpoint(copy))
  with quick_network():
    resumed = run(copy, **settings_of(name))
  assert untimed(resumed) == untimed(finished.results)
  assert untimed_records(copy) == untimed_records(finished.workdir)
  with Checkpoints(copy, kept=3) as checkpoints:
    assert_same(checkpoints.latest(default=finished.runs[0]).stats, finished.runs[-1].stats)
