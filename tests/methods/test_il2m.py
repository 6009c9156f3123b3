"""IL2M: equation 1, its statistics over the states, and the numbers of figure 7."""

import types

import finished_states
import jax.numpy as jnp
import method_reference as reference
import numpy as np
import pytest
from reference import best_class

from ssil_jax.methods import METHODS, il2m
from ssil_jax.methods.base import Sizes
from ssil_jax.sampling import Pool

IL2M = METHODS["il2m"]
KINDS = {"softmax": reference.softmax_rows, "logits": reference.logit_rows}

BOUNDS = (0, 3, 5, 7)
NUM_CLASSES = 8  # the last is never seen
PER_CLASS = 6
KEPT = (4, 3, 2)  # exemplars of each class after state 1, 2, 3
LABELS = np.repeat(np.arange(NUM_CLASSES), PER_CLASS)
TEST_LABELS = np.arange(5 * NUM_CLASSES) % NUM_CLASSES


def test_the_factor_by_hand():
  # mu_then .8, mu_now .4, conf_now .9, conf_then .6: twice and one and a half times.
  assert il2m.rectification(0.8, 0.6, 0.4, 0.9) == pytest.approx(3)
  assert il2m.rectification(0.5, 0.5, 0.5, 0.5) == pytest.approx(1)


def test_scores_are_rectified_only_where_a_new_class_is_best():
  # Classes 0 and 1 are old, 2 and 3 new, 4 is unseen.
  scores = jnp.asarray(
    [
      [0.2, 0.1, 0.5, 0.2, 0.0],  # 2 is best: 0.2 * 3 wins
      [0.1, 0.2, 0.3, 0.4, 0.0],  # 3 is best, and stays so
      [0.4, 0.1, 0.3, 0.2, 0.0],  # 0 is best: nothing changes
      [0.1, 0.5, 0.3, 0.1, 0.0],  # 1 is best: nothing changes
    ]
  )
  rectified = il2m.rectify(scores, jnp.asarray([3.0, 0.5, 7.0, 7.0, 7.0]), 2)
  np.testing.assert_allclose(
    rectified,
    [
      [0.6, 0.05, 0.5, 0.2, 0.0],
      [0.3, 0.10, 0.3, 0.4, 0.0],
      [0.4, 0.1, 0.3, 0.2, 0.0],
      [0.1, 0.5, 0.3, 0.1, 0.0],
    ],
    rtol=1e-6,
  )


def test_nothing_is_rectified_while_there_is_no_old_class():
  scores = jnp.asarray([[0.2, 0.8], [0.7, 0.3]])
  np.testing.assert_array_equal(il2m.rectify(scores, jnp.asarray([5.0, 5.0]), 0), scores)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_classes_seen(kind):
  logits = random_logits(TEST_LABELS, seed=0)
  context = finished_states.context_of(3, 5)
  config = finished_states.config_of("il2m", il2m_scores=kind)
  values = np.asarray(
    il2m.scores(finished_states.outputs_of(logits=logits), context, config)
  )
  np.testing.assert_allclose(values[:, :5], KINDS[kind](logits, 5), rtol=1e-4, atol=1e-7)
  unseen = -np.inf if kind == "logits" else 0
  np.testing.assert_array_equal(values[:, 5:], unseen)


def random_logits(labels, *, seed):
  """Somewhat right; the last class, never seen, has by far the largest logit."""
  rng = np.random.default_rng(seed)
  logits = 2 * rng.standard_normal((len(labels), NUM_CLASSES))
  logits[np.arange(len(labels)), labels] += 1
  logits[:, -1] = 30
  return logits.astype(np.float32)


def exemplars(num_seen, each):
  """Each class's last records, the last of all the dearest."""
  return [[PER_CLASS * c + PER_CLASS - 1 - k for k in range(each)] for c in range(num_seen)]


def end_of_state(config, state, stats):
  """The end of state 0, 1 or 2, and its logits of the training and the test records."""
  num_old, num_seen = BOUNDS[state], BOUNDS[state + 1]
  train = random_logits(LABELS, seed=(1, state))
  test = random_logits(TEST_LABELS, seed=(2, state))
  replayed = finished_states.memory_of(exemplars(num_old, KEPT[state - 1] if state else 0))
  finished = finished_states.finished_of(
    config,
    num_first=BOUNDS[1],
    num_old=num_old,
    num_seen=num_seen,
    labels=LABELS,
    test_labels=TEST_LABELS,
    pool=Pool(np.arange(PER_CLASS * num_old, PER_CLASS * num_seen), replayed.records),
    memory=finished_states.memory_of(exemplars(num_seen, KEPT[state])),
    stats=stats,
    train=finished_states.outputs_of(logits=train),
    test=finished_states.outputs_of(logits=test),
  )
  return finished, train, test


def three_states(kind):
  """(finished with the new statistics, config, loops' statistics, test scores) of each."""
  config = finished_states.config_of("il2m", il2m_scores=kind)
  stats = IL2M.init_stats(Sizes(NUM_CLASSES, 1, len(LABELS), 12))
  then, conf_then, result = {}, {}, []
  for state in range(3):
    finished, train, test = end_of_state(config, state, stats)
    before = {name: value.copy() for name, value in stats.items()}
    stats = IL2M.stats(finished, config)
    for name, value in before.items():  # the state before may still be needed
      np.testing.assert_array_equal(finished.stats[name], value)
      assert stats[name].shape == value.shape
      assert stats[name].dtype == value.dtype
    num_old, num_seen = finished.num_old, finished.num_seen
    of_new = KINDS[kind](train[finished.pool.new], num_seen)
    conf_now = reference.mean_top_score(of_new)
    for c in range(num_old, num_seen):
      then[c] = reference.mean_own_score(of_new, LABELS[finished.pool.new], c)
      conf_then[c] = conf_now
    of_memory = KINDS[kind](train[finished.pool.memory], num_seen)
    labels = LABELS[finished.pool.memory].tolist()
    now = {c: reference.mean_own_score(of_memory, labels, c) for c in range(num_old)}
    right = [
      best_class(r, range(num_seen)) == y for r, y in zip(of_memory, labels, strict=True)
    ]
    loops = types.SimpleNamespace(
      then=dict(then),
      conf_then=dict(conf_then),
      now=now,
      conf_now=conf_now,
      exemplar_top1=sum(right) / len(right) if right else None,
    )
    result.append(
      (finished._replace(stats=stats), config, loops, test, KINDS[kind](test, num_seen))
    )
  return result


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_equal_the_loops_over_three_states(kind):
  for finished, _, loops, _, _ in three_states(kind):
    stats = finished.stats
    for c in range(finished.num_seen):
      assert stats["then"][c] == pytest.approx(loops.then[c], rel=1e-4)
      assert stats["conf_then"][c] == pytest.approx(loops.conf_then[c], rel=1e-4)
    for c in range(finished.num_old):
      factor = loops.then[c] / loops.now[c] * loops.conf_now / loops.conf_then[c]
      assert stats["factor"][c] == pytest.approx(factor, rel=1e-3)
    np.testing.assert_array_equal(stats["factor"][finished.num_old :], 1)
    if finished.num_old:
      assert stats["exemplar_top1"] == pytest.approx(loops.exemplar_top1)


@pytest.mark.parametrize("kind", KINDS)
def test_prediction_equals_the_loops_over_three_states(kind):
  changed = 0
  for finished, config, loops, test, scores in three_states(kind):
    num_old, num_seen = finished.num_old, finished.num_seen
    context = finished_states.context_of(num_old, num_seen, stats=finished.stats)
    predicted = np.asarray(
      IL2M.predict(finished_states.outputs_of(logits=test), context, config)
    )
    np.testing.assert_array_equal(predicted[:, num_seen:], -np.inf)
    for row, values in zip(scores, predicted, strict=True):
      expected = reference.il2m_row(
        row, num_old, loops.then, loops.conf_then, loops.now, loops.conf_now
      )
      np.testing.assert_allclose(values[:num_seen], expected, rtol=1e-3, atol=1e-6)
      if best_class(row, range(num_seen)) < num_old:
        np.testing.assert_allclose(values[:num_seen], row, rtol=1e-4, atol=1e-7)
      changed += np.argmax(values) != best_class(row, range(num_seen))
  assert changed > 0  # the rectification does something


@pytest.mark.parametrize("kind", KINDS)
def test_figure_7_equals_the_loops(kind):
  first, *later = three_states(kind)
  assert IL2M.describe(first[0], first[1]) == {}
  for finished, config, loops, _, scores in later:
    factors = []
    for c in range(BOUNDS[1]):
      factors.append(loops.then[c] / loops.now[c] * loops.conf_now / loops.conf_then[c])
    top, own, right, old = 0.0, 0.0, 0, 0
    for row, label in zip(scores, TEST_LABELS.tolist(), strict=True):
      if label < BOUNDS[1]:
        top += max(row)
        own += row[label]
      if label < finished.num_old:
        old += 1
        right += best_class(row, range(finished.num_seen)) == label
    numbers = IL2M.describe(finished, config)
    assert numbers == {
      "rectification": pytest.approx(sum(factors) / len(factors), rel=1e-3),
      "probability_ratio": pytest.approx(top / own, rel=1e-3),
      "exemplar_top1": pytest.approx(loops.exemplar_top1),
      "old_top1": pytest.approx(right / old),
    }
    assert all(type(value) is float for value in numbers.values())  # for JSON


def test_figure_7_shows_at_most_50_classes():
  # 60 old classes and 4 new; each test image's own probability is 1/2, its top one too,
  # but for classes 50 to 59: there the new class 60 has 9/10 and the own class 1/20.
  num_old, num_seen = 60, 64
  labels = np.arange(num_seen)
  own, wrong = np.full(num_seen, 0.5), np.full(num_seen, 0.5)
  own[50:60], wrong[50:60] = 0.05, 0.9
  probabilities = np.zeros((num_seen, num_seen))
  for label in labels:
    probabilities[label] = (1 - own[label] - wrong[label]) / (num_seen - 2)
    probabilities[label, (label + 1) % num_seen if label < 50 else 60] = wrong[label]
    probabilities[label, label] = own[label]
  factor = np.full(num_seen, 100, np.float32)
  factor[:50] = 2
  config = finished_states.config_of("il2m")
  finished = finished_states.finished_of(
    config,
    num_first=60,
    num_old=num_old,
    num_seen=num_seen,
    labels=labels,
    test_labels=labels,
    memory=finished_states.memory_of([]),
    stats={"factor": factor, "exemplar_top1": np.asarray(0.75, np.float32)},
    test=finished_states.outputs_of(logits=np.log(probabilities + 1e-20)),
  )
  numbers = IL2M.describe(finished, config)
  assert numbers["rectification"] == pytest.approx(2)
  assert numbers["probability_ratio"] == pytest.approx(1, rel=1e-4)
  assert numbers["exemplar_top1"] == pytest.approx(0.75)


def test_two_states_by_hand():
  """Class 0 gets the factor 3, class 1 the factor 3/2."""
  config = finished_states.config_of("il2m")
  labels = [0, 1, 1, 2, 2]

  def probabilities(rows):
    return finished_states.outputs_of(logits=np.log(rows))

  stats = IL2M.init_stats(Sizes(3, 1, 5, 3))
  first = finished_states.finished_of(
    config,
    num_old=0,
    num_seen=2,
    labels=labels,
    pool=Pool(np.asarray([0, 1, 2]), np.zeros(0, np.int64)),
    memory=finished_states.memory_of([[0], [1]]),
    stats=stats,
    # mu(0) = .8, mu(1) = .5, conf = (.8 + .5 + .5) / 3 = .6; class 2 is not seen.
    train=probabilities(
      [[0.8, 0.2, 9], [0.5, 0.5, 9], [0.5, 0.5, 9], [1, 1, 1], [1, 1, 1]]
    ),
  )
  stats = IL2M.stats(first, config)
  np.testing.assert_allclose(stats["then"][:2], [0.8, 0.5], rtol=1e-5)
  np.testing.assert_allclose(stats["conf_then"][:2], 0.6, rtol=1e-5)
  second = finished_states.finished_of(
    config,
    num_old=2,
    num_seen=3,
    labels=labels,
    pool=Pool(np.asarray([3, 4]), np.asarray([0, 1])),
    memory=finished_states.memory_of([[0], [1], [3]]),
    stats=stats,
    # mu(0) = .4, mu(1) = .5, conf = (.85 + .95) / 2 = .9; record 2 is no exemplar.
    train=probabilities(
      [
        [0.4, 0.1, 0.5],
        [0.2, 0.5, 0.3],
        [0.01, 0.01, 0.98],
        [0.1, 0.05, 0.85],
        [0.01, 0.04, 0.95],
      ]
    ),
  )
  stats = IL2M.stats(second, config)
  np.testing.assert_allclose(stats["factor"], [3, 1.5, 1], rtol=1e-5)
  np.testing.assert_allclose(stats["then"], [0.8, 0.5, 0.9], rtol=1e-5)
  np.testing.assert_allclose(stats["conf_then"], [0.6, 0.6, 0.9], rtol=1e-5)
  assert stats["exemplar_top1"] == pytest.approx(0.5)  # record 1 is right, 0 is not
  context = finished_states.context_of(2, 3, stats=stats)
  predicted = IL2M.predict(
    probabilities([[0.3, 0.2, 0.5], [0.4, 0.3, 0.3], [0.1, 0.1, 0.8]]), context, config
  )
  np.testing.assert_allclose(
    predicted, [[0.9, 0.3, 0.5], [0.4, 0.3, 0.3], [0.3, 0.15, 0.8]], rtol=1e-5
  )
