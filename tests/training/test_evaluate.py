"""Surveys: a measure of each record, in order, whatever the batches and devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_network
from small_runs import run, small_config
from ssil_jax.selection import SELECTIONS

from ssil_jax import config, memory, metrics, resnet, selection
from ssil_jax.methods.base import PhaseContext, SeenClasses
from ssil_jax.training import checkpoint, devices, incremental, loop

SETTINGS = {"num_classes": 4, "num_states": 2, "memory_size": 16, "batch_size_test": 24}
STATS = {"offset": np.float32(0.5)}


@pytest.fixture(autouse=True, scope="module")
def _quickly():
  with quick_network():
    yield


def measure(outputs, labels, given, config):
  """Everything that a measure may look at."""
  return {
    "logits": outputs.logits + given.stats["offset"],
    "features": outputs.features,
    "label": labels,
    "seen": jnp.where(labels < given.classes.num_seen, labels, -1),
    "lambda": jnp.full(labels.shape, config.lucir_lambda),
  }


@functools.cache
def world(num_devices):
  """A plan, its trainer, and a network that is not the initial one, on the devices."""
  plan = loop.make_plan(
    small_config("unused", method="ft", num_devices=num_devices, **SETTINGS)
  )
  trainer = loop.make_trainer(plan, devices.choose_devices(plan.config))
  rng = np.random.default_rng(0)
  network = jax.tree.map(
    lambda x: x + rng.uniform(0, 0.1, x.shape).astype(np.float32),
    (trainer.initial.params, trainer.initial.batch_stats),
  )
  state = trainer.initial.replace(params=network[0], batch_stats=network[1])
  given = PhaseContext(SeenClasses(*map(np.int32, (2, 3, 0))), None, STATS)
  return plan, trainer, state, given


def expected_outputs(split):
  """What one device says of every image of a split, all in one batch."""

  _, _, state, _ = world(1)
  network = resnet.ResNet18(num_classes=4, width=4, small_images=True)
  variables = {"params": state.params, "batch_stats": state.batch_stats}
  pixels = jnp.asarray(split.images / np.float32(255), jnp.float32)
  return jax.jit(functools.partial(network.apply, train=False))(variables, pixels)


@pytest.mark.parametrize("num_devices", [1, 4])
@pytest.mark.parametrize("test", [False, True])
def test_each_record_has_its_own_measure_in_order(num_devices, test):
  plan, trainer, state, given = world(num_devices)
  split = plan.dataset.test if test else plan.dataset.train
  wanted = expected_outputs(split)
  look = incremental.surveyor(plan, trainer, state, given)
  rng = np.random.default_rng(1)
  # Less than a batch, several, one image too many, each image once, and some twice.
  for records in (
    np.array([7]),
    np.arange(48),
    rng.permutation(len(split.labels))[:49],
    np.array([5, 3, 3, 100, 5]),
  ):
    measured = look(records, measure, test=test)
    assert {*measured} == {"logits", "features", "label", "seen", "lambda"}
    for value in measured.values():
      assert isinstance(value, np.ndarray)
      assert len(value) == len(records)
    labels = split.labels[records]
    np.testing.assert_array_equal(measured["label"], labels)
    np.testing.assert_array_equal(measured["seen"], np.where(labels < 3, labels, -1))
    np.testing.assert_array_equal(measured["lambda"], 10)
    np.testing.assert_allclose(
      measured["features"], wanted.features[records], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
      measured["logits"], wanted.logits[records] + 0.5, rtol=1e-4, atol=1e-5
    )
  # The images differ, so that another order would show.
  assert len(np.unique(np.round(wanted.features.sum(axis=1), 5))) > len(split.labels) / 2


@pytest.mark.parametrize("num_devices", [1, 4])
def test_a_measure_is_compiled_once_in_a_run(num_devices):
  plan, trainer, state, given = world(num_devices)
  traced = []

  def counted(outputs, labels, given, config):
    traced.append(labels.shape)
    return outputs.logits

  look = incremental.surveyor(plan, trainer, state, given)
  other = incremental.surveyor(plan, trainer, trainer.initial, given)
  for survey in (look, other, look):
    survey(np.arange(30), counted)
  assert traced == [(24 // num_devices,)]


def test_the_network_is_put_on_the_devices_when_it_is_first_needed(monkeypatch):
  plan, trainer, state, given = world(1)
  moved = []
  replicate = devices.replicate
  monkeypatch.setattr(
    devices, "replicate", lambda *args: moved.append(1) or replicate(*args)
  )
  look = incremental.surveyor(plan, trainer, state, given)
  assert not moved
  first = look(np.arange(3), measure)
  again = look(np.arange(3), measure)
  assert len(moved) == 1
  jax.tree.map(np.testing.assert_array_equal, first, again)


def test_training_images_are_not_augmented():
  plan, trainer, state, given = world(1)
  assert plan.dataset.augmentation.max_shift > 0
  look = incremental.surveyor(plan, trainer, state, given)
  same = look(np.array([0] * 40), measure)["logits"]
  np.testing.assert_array_equal(same, np.repeat(same[:1], 40, axis=0))


@pytest.mark.parametrize("name", ["il2m", "icarl", "bic", "eeil"])
def test_no_method_asks_for_a_survey_of_no_record(tmp_path, name):
  """A survey of none has no batch, and is not supported."""
  asked = []
  survey = incremental.survey

  def noted(plan, trainer, state, given, records, *args, **kwargs):
    asked.append(len(records))
    return survey(plan, trainer, state, given, records, *args, **kwargs)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(incremental, "survey", noted)
    # As small a memory as there may be, for BiC to hold one image out of two.
    small = {"memory_size": 8 if name == "bic" else 4, "batch_size_new": 8}
    run(tmp_path, method=name, num_devices=1, eeil_epochs=1, **SETTINGS | small)
  assert asked
  assert min(asked) > 0


# Selections -----------------------------------------------------------------------------


def test_flags_and_code_know_the_same_selections():
  assert tuple(SELECTIONS) == config.SELECTIONS


def test_the_ring_is_random_and_looks_at_no_image():
  random = np.array([0.3, 0.1, 0.2])
  priority = SELECTIONS["ring"](np.arange(3), np.zeros(3, int), random, None, 2)
  np.testing.assert_array_equal(priority, random)


def test_herding_surveys_the_new_records_and_ranks_each_class_by_itself():
  rng = np.random.default_rng(0)
  records, labels = rng.permutation(100)[:20], rng.permutation(np.repeat([2, 3], 10))
  features = {record: rng.standard_normal(5) for record in records}
  asked = []

  def survey(which, measure):
    asked.append((which, measure))
    return np.stack([features[record] for record in which])

  random = rng.random(20)
  priority = SELECTIONS["herding"](records, labels, random, survey, 4)
  ((which, of_what),) = asked
  np.testing.assert_array_equal(which, records)
  assert of_what is selection.normalized_features
  for label in (2, 3):
    of_class = np.flatnonzero(labels == label)
    chosen = memory.herding_order(np.stack([features[r] for r in records[of_class]]), 4)
    order = of_class[np.argsort(priority[of_class])]
    np.testing.assert_array_equal(order[:4], of_class[chosen])
    rest = [place for place in of_class if place not in set(of_class[chosen])]
    np.testing.assert_array_equal(order[4:], sorted(rest, key=lambda place: random[place]))


@pytest.fixture(scope="module")
def herded(tmp_path_factory):
  """A run with herding: its progress after each state, and what it was surveyed with."""
  workdir = tmp_path_factory.mktemp("run") / "ft"
  progress, features = [], []
  finish_state, survey = incremental.finish_state, incremental.survey

  def finish(*args):
    progress.append(finish_state(*args))
    return progress[-1]

  def look(plan, trainer, state, given, records, measure, **kwargs):
    values = survey(plan, trainer, state, given, records, measure, **kwargs)
    features.append((np.asarray(records), values))
    return values

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(incremental, "finish_state", finish)
    patch.setattr(incremental, "survey", look)
    values = {**SETTINGS, "num_devices": 2, "learning_rate": 1e-2}
    run(workdir, method="ft", selection="herding", **values)
  return loop.make_plan(small_config(workdir, method="ft", **values)), progress, features


def test_a_run_keeps_the_exemplars_that_herding_picks(herded):
  plan, progress, surveyed = herded
  assert len(surveyed) == 2
  labels, expected = plan.dataset.train.labels, {}
  for state, (records, features), after in zip(
    plan.states, surveyed, progress, strict=True
  ):
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(
      np.sort(records),
      np.flatnonzero((labels >= state.num_old) & (labels < state.num_seen)),
    )
    quota = 16 // state.num_seen
    for label in range(state.num_old, state.num_seen):
      of_class = np.flatnonzero(labels[records] == label)
      expected[label] = records[of_class][memory.herding_order(features[of_class], quota)]
    kept = after.memory
    assert len(kept.records) == 16
    for label in range(state.num_seen):
      mine = kept.labels == label
      in_order = kept.records[mine][np.argsort(kept.ranks[mine])]
      # The first ones of an old class stay, in the same order.
      np.testing.assert_array_equal(in_order, expected[label][:quota])


def test_the_features_of_herding_are_those_of_the_network_after_the_state(herded):
  plan, progress, surveyed = herded
  trainer = world(1)[1]
  for state, (records, features), after in zip(
    plan.states, surveyed, progress, strict=True
  ):
    given = incremental.given_in(plan, state, stats={"offset": np.float32(0)}, teacher=None)
    look = incremental.surveyor(world(1)[0], trainer, after.train_state, given)
    ours = look(records, measure)["features"]
    ours /= np.linalg.norm(ours, axis=1, keepdims=True)
    np.testing.assert_allclose(features, ours, rtol=1e-4, atol=1e-5)


def test_herding_and_ring_keep_different_exemplars(herded):
  plan, progress, _ = herded
  at_random = incremental.update_memory(
    plan._replace(config=small_config("unused", method="ft", **SETTINGS)),
    plan.states[0],
    plan.pool(plan.states[0], memory.empty()),
    memory.empty(),
    look=None,
  )
  assert {*at_random.records} != {*progress[0].memory.records}


def test_herded_exemplars_are_in_the_checkpoint(herded):
  plan, progress, _ = herded
  trainer = world(1)[1]
  folder = config.workdir_path(plan.config)
  with checkpoint.Checkpoints(folder, kept=3) as checkpoints:
    saved = checkpoints.latest(otherwise=loop.start(plan, trainer))
  for got, want in zip(saved.memory, progress[-1].memory, strict=True):
    np.testing.assert_array_equal(got, want)
  assert saved.results == progress[-1].results
  assert metrics.average(saved.results)["top1"] > 0


def test_eeil_ranks_the_new_records_by_herding_before_it_balances_them(tmp_path):
  seen, phases, train_phase = [], [], incremental.train_phase
  survey = incremental.survey

  def look(plan, trainer, state, given, records, measure, **kwargs):
    values = survey(plan, trainer, state, given, records, measure, **kwargs)
    seen.append((np.asarray(records), values))
    return values

  def train(plan, trainer, state, given, phase, pool, **kwargs):
    phases.append((phase, pool, len(seen)))
    return train_phase(plan, trainer, state, given, phase, pool, **kwargs)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(incremental, "survey", look)
    patch.setattr(incremental, "train_phase", train)
    values = {**SETTINGS, "num_devices": 1, "eeil_epochs": 1}
    run(tmp_path, method="eeil", **values | {"memory_size": 40})
  phase, pool, surveys = phases[-1]
  assert phase.phase.new_teacher
  # One after state 1, one between the phases of state 2, one at its end.
  assert (surveys, len(seen)) == (2, 3)
  records, features = seen[1]
  np.testing.assert_array_equal(records, pool.new)
  labels = loop.make_plan(small_config("unused", **values)).dataset.train.labels
  drawn = phase.phase.sampling.epoch_records(pool)
  expected = set(pool.memory)
  assert len(expected) == 40
  for label in (2, 3):
    of_class = np.flatnonzero(labels[records] == label)
    expected |= {*records[of_class][memory.herding_order(features[of_class], 20)]}
  assert {*drawn} == expected
  assert len(drawn) == 80
