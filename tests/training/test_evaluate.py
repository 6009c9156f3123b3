"""Extracting: outputs of each record, in order; and the exemplars that herding keeps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_network
from small_runs import small_config

from ssil_jax import memory, metrics, resnet
from ssil_jax.methods.base import normalized_features
from ssil_jax.training import loop
from ssil_jax.training.devices import choose_devices
from ssil_jax.training.evaluate import evaluate, extractor, totaler
from ssil_jax.training.plan import make_plan
from ssil_jax.training.session import make_session

SETTINGS = {"num_classes": 4, "num_states": 2, "memory_size": 16, "batch_size_test": 24}
STATS = {"offset": np.float32(0.5)}


@pytest.fixture(autouse=True, scope="module")
def _quickly():
  with quick_network():
    yield


def everything(outputs, labels, context, config):
  """All that an OutputFn may look at."""
  return {
    "logits": outputs.logits + context.stats["offset"],
    "features": outputs.features,
    "label": labels,
    "seen": jnp.where(labels < context.classes.num_seen, labels, -1),
    "epochs": jnp.full(labels.shape, config.epochs),
  }


@functools.cache
def world(num_devices):
  """A session, a state of it, and a network that is not the initial one."""
  config = small_config("unused", method="ft", num_devices=num_devices, **SETTINGS)
  session = make_session(make_plan(config), choose_devices(config))
  rng = np.random.default_rng(0)
  params, batch_stats = jax.tree.map(
    lambda x: x + rng.uniform(0, 0.1, x.shape).astype(np.float32),
    (session.initial.params, session.initial.batch_stats),
  )
  network = session.initial.replace(params=params, batch_stats=batch_stats)
  return session, session.plan.states[1]._replace(num_seen=3), network


def extract_in(num_devices):
  session, state, network = world(num_devices)
  return extractor(session, state, network, STATS)


def expected_outputs(split):
  """What one device says of every image of a split, all in one batch."""
  _, _, state = world(1)
  network = resnet.ResNet18(num_classes=4, width=4, small_images=True)
  variables = {"params": state.params, "batch_stats": state.batch_stats}
  pixels = jnp.asarray(split.images / np.float32(255), jnp.float32)
  return jax.jit(functools.partial(network.apply, train=False))(variables, pixels)


@pytest.mark.parametrize("num_devices", [1, 4])
@pytest.mark.parametrize("test", [False, True])
def test_each_record_has_its_own_outputs_in_order(num_devices, test):
  dataset = world(num_devices)[0].plan.dataset
  split = dataset.test if test else dataset.train
  wanted, extract = expected_outputs(split), extract_in(num_devices)
  rng = np.random.default_rng(1)
  # Less than a batch, several, one image too many, each image once, and some twice.
  for records in (
    np.array([7]),
    np.arange(48),
    rng.permutation(len(split.labels))[:49],
    np.array([5, 3, 3, 100, 5]),
  ):
    found = extract(records, everything, test=test)
    assert {*found} == {"logits", "features", "label", "seen", "epochs"}
    for value in found.values():
      assert isinstance(value, np.ndarray)
      assert len(value) == len(records)
    labels = split.labels[records]
    np.testing.assert_array_equal(found["label"], labels)
    np.testing.assert_array_equal(found["seen"], np.where(labels < 3, labels, -1))
    np.testing.assert_array_equal(found["epochs"], 1)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    close(found["features"], wanted.features[records])
    close(found["logits"], wanted.logits[records] + 0.5)
  # The images differ, so that another order would show.
  assert len(np.unique(np.round(wanted.features.sum(axis=1), 5))) > len(split.labels) / 2


@pytest.mark.parametrize("num_devices", [1, 4])
def test_an_output_function_is_compiled_once_in_a_run(num_devices):
  session, state, _ = world(num_devices)
  traced = []

  def counted(outputs, labels, context, config):
    traced.append(labels.shape)
    return outputs.logits

  ours = extract_in(num_devices)
  others = extractor(session, state, session.initial, STATS)
  for extract in (ours, others, ours):
    extract(np.arange(30), counted)
  assert traced == [(24 // num_devices,)]


def test_training_images_are_not_augmented():
  assert world(1)[0].plan.dataset.augmentation.max_shift > 0
  same = extract_in(1)(np.array([0] * 40), everything)["logits"]
  np.testing.assert_array_equal(same, np.repeat(same[:1], 40, axis=0))


@pytest.mark.parametrize("num_devices", [1, 4])
def test_each_class_has_the_predictions_of_its_own_images(num_devices):
  session, state, network = world(num_devices)
  test = session.plan.dataset.test
  found = evaluate(session, state, network, STATS)
  logits = np.asarray(expected_outputs(test).logits, np.float64)[test.labels < 3, :3]
  labels, predicted = test.labels[test.labels < 3], logits.argmax(axis=1)
  assert len(labels) % 24  # so that the last batch is padded
  pairs = list(zip(labels.tolist(), predicted.tolist(), strict=True))
  assert found["class_confusion"] == [[*p, pairs.count(p)] for p in sorted(set(pairs))]
  right = [(predicted[labels == label] == label).mean() for label in range(3)]
  assert found["top1_by_class"] == pytest.approx(right)
  probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  ece = metrics.calibration_error(probabilities.max(axis=1), predicted == labels)
  assert found["ece"] == pytest.approx(ece, abs=1e-4)


@pytest.mark.parametrize("num_devices", [1, 4])
def test_totals_are_sums_over_the_chosen_images(num_devices):
  session, state, network = world(num_devices)

  def of_image(network, params, pixels, label, context, config):
    outputs = network(params, pixels)
    return {
      "logits": outputs.logits[0] + context.stats["offset"],
      "images": jnp.float32(1),
      "labels": label.astype(jnp.float32),
      "largest": jnp.max(params["head"]["kernel"]),
    }

  like = {name: np.float32(7) for name in ("images", "labels", "largest")}
  like["logits"] = np.ones(4, np.float32)
  train, total = session.plan.dataset.train, totaler(session, state, network, STATS)
  wanted = np.float64(expected_outputs(train).logits)
  # As many as devices or not, and some twice.
  for records in (np.array([7]), np.arange(8), np.array([5, 3, 3, 100, 5, 1])):
    found = total(records, of_image, like)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float64)}
    assert found["images"] == len(records)
    assert found["labels"] == train.labels[records].sum()
    largest = len(records) * network.params["head"]["kernel"].max()
    assert found["largest"] == pytest.approx(largest, rel=1e-5)
    expected = (wanted[records] + 0.5).sum(axis=0)
    np.testing.assert_allclose(found["logits"], expected, rtol=1e-4, atol=1e-4)


# Herding ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def eeil():
  """A session of EEIL, which herds, and the run after each phase and state."""
  values = {**SETTINGS, "memory_size": 40, "learning_rate": 1e-2, "eeil_epochs": 1}
  config = small_config("unused", method="eeil", num_devices=2, **values)
  session = make_session(make_plan(config), choose_devices(config))
  first, second = session.plan.states
  done = loop.finish_state(
    session, first, loop.train_state(session, first, session.start())
  )
  trained = loop.train_phase(
    session, second, second.phases[0], loop.begin_state(session, second, done)
  )
  balanced = loop.begin_phase(session, second, second.phases[1], trained)
  last = loop.finish_state(session, second, loop.train_state(session, second, balanced))
  return session, done, trained, balanced, last


def chosen_by_herding(session, state, run, quota):
  """New class -> its records in the order of herding, by the network as it is in `run`."""
  records = session.plan.pool(state, memory.empty()).new
  features = extractor(session, state, run.train_state, {})(records, normalized_features)
  np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
  labels = session.plan.dataset.train.labels[records]
  return {
    label: records[labels == label][memory.herding_order(features[labels == label], quota)]
    for label in np.unique(labels)
  }


def test_a_run_keeps_the_exemplars_that_herding_picks(eeil):
  session, done, _, _, last = eeil
  expected = {}
  for state, run in zip(session.plan.states, (done, last), strict=True):
    quota, kept = 40 // state.num_seen, run.exemplars
    expected |= chosen_by_herding(session, state, run, quota)
    assert len(kept.records) == 40
    for label in range(state.num_seen):
      mine = kept.labels == label
      in_order = kept.records[mine][np.argsort(kept.ranks[mine])]
      # The first ones of an old class stay, in the same order.
      np.testing.assert_array_equal(in_order, expected[label][:quota])


def test_eeil_ranks_the_new_records_by_herding_before_it_balances_them(eeil):
  session, _, trained, balanced, _ = eeil
  second = session.plan.states[1]
  pool = loop.pool_of(session.plan, second, balanced)
  drawn = second.phases[1].sampling.epoch_records(pool)
  chosen = chosen_by_herding(session, second, trained, 20)
  assert {*drawn} == {*pool.memory, *chosen[2], *chosen[3]}
  assert (len(pool.memory), len(drawn)) == (40, 80)
  # It is taught by the network that has learnt the new classes.
  jax.tree.map(
    np.testing.assert_array_equal,
    balanced.position.teacher["params"],
    trained.train_state.params,
  )
  assert balanced.position.num_teacher_classes == 4
