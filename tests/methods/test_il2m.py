"""IL2M: equation 1, its statistics over the states, and the numbers of figure 7."""

import finished_states
import jax
import method_reference as reference
import numpy as np
import pytest
from reference import best_class

from ssil_jax.methods import METHODS
from ssil_jax.methods.base import Sizes
from ssil_jax.methods.il2m import rectification
from ssil_jax.sampling import Pool

IL2M = METHODS["il2m"]
predict = jax.jit(IL2M.predict, static_argnums=2)
KINDS = {"softmax": reference.softmax_rows, "logits": reference.logit_rows}

BOUNDS = (0, 3, 5, 7)
NUM_CLASSES = 8  # the last is never seen
PER_CLASS = 6
KEPT = (4, 3, 2)  # exemplars of each class after state 1, 2, 3
LABELS = np.repeat(np.arange(NUM_CLASSES), PER_CLASS)
TEST_LABELS = np.arange(5 * NUM_CLASSES) % NUM_CLASSES


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


@pytest.mark.parametrize("kind", KINDS)
def test_three_states_equal_the_loops(kind):
  config = finished_states.config_of("il2m", il2m_scores=kind)
  stats = IL2M.init_stats(Sizes(NUM_CLASSES, 1, len(LABELS), 12, {}, 8, None))
  then, conf_then, changed = {}, {}, 0
  for state in range(3):
    finished, train, test = end_of_state(config, state, stats)
    before = {name: value.copy() for name, value in stats.items()}
    stats = IL2M.stats(finished, config)
    for name, value in before.items():  # the state before may still be needed
      np.testing.assert_array_equal(finished.stats[name], value)
      assert (stats[name].shape, stats[name].dtype) == (value.shape, value.dtype)
    num_old, num_seen = finished.num_old, finished.num_seen

    # The statistics.
    of_new = KINDS[kind](train[finished.pool.new], num_seen)
    conf_now = reference.mean_top_score(of_new)
    for c in range(num_old, num_seen):
      then[c] = reference.mean_own_score(of_new, LABELS[finished.pool.new], c)
      conf_then[c] = conf_now
    of_memory = KINDS[kind](train[finished.pool.memory], num_seen)
    labels = LABELS[finished.pool.memory].tolist()
    now = {c: reference.mean_own_score(of_memory, labels, c) for c in range(num_old)}
    factors = [then[c] / now[c] * conf_now / conf_then[c] for c in range(num_old)]
    factors += [1] * (NUM_CLASSES - num_old)
    np.testing.assert_allclose(stats["then"][:num_seen], [*then.values()], rtol=1e-4)
    np.testing.assert_allclose(
      stats["conf_then"][:num_seen], [*conf_then.values()], rtol=1e-4
    )
    np.testing.assert_allclose(stats["factor"], factors, rtol=1e-3)

    # The prediction.
    context = finished_states.context_of(num_old, num_seen, stats=stats)
    outputs = finished_states.outputs_of(logits=test)
    predicted = np.asarray(predict(outputs, context, config))
    np.testing.assert_array_equal(predicted[:, num_seen:], -np.inf)
    scores = KINDS[kind](test, num_seen)
    for row, values in zip(scores, predicted, strict=True):
      expected = reference.il2m_row(row, num_old, then, conf_then, now, conf_now)
      np.testing.assert_allclose(values[:num_seen], expected, rtol=1e-3, atol=1e-6)
      changed += np.argmax(values) != best_class(row, range(num_seen))

    # Figure 7.
    numbers = IL2M.describe(finished._replace(stats=stats), config)
    if state == 0:
      assert numbers == {}
      continue
    first = [c for c in range(len(TEST_LABELS)) if TEST_LABELS[c] < BOUNDS[1]]
    assert numbers == {
      "rectification": pytest.approx(sum(factors[: BOUNDS[1]]) / BOUNDS[1], rel=1e-3),
      "probability_ratio": pytest.approx(
        sum(max(scores[i]) for i in first) / sum(scores[i][TEST_LABELS[i]] for i in first),
        rel=1e-3,
      ),
      "exemplar_top1": pytest.approx(share_right(of_memory, labels, num_old)),
      "old_top1": pytest.approx(share_right(scores, TEST_LABELS.tolist(), num_old)),
    }
    assert all(type(value) is float for value in numbers.values())  # for JSON
  assert changed > 0  # the rectification does something


def share_right(scores, labels, num_old):
  """Of the samples of old classes."""
  right = [
    best_class(row, range(len(row))) == label
    for row, label in zip(scores, labels, strict=True)
    if label < num_old
  ]
  return sum(right) / len(right)


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

  stats = IL2M.init_stats(Sizes(3, 1, 5, 3, {}, 8, None))
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


# Probabilities ---------------------------------------------------------------------------


def probabilities(scores, num_old, num_seen, **values):
  config = finished_states.config_of("il2m", **values)
  context = finished_states.context_of(num_old, num_seen, stats={})
  return np.asarray(IL2M.probabilities(np.float32(scores), context, config))


def test_rectified_probabilities_are_shares_of_their_sum():
  no = -np.inf
  found = probabilities([[0.9, 0.3, 0.6, no], [0.4, 0.3, 0.3, no]], 2, 3)
  np.testing.assert_allclose(found, [[0.5, 1 / 6, 1 / 3, 0], [0.4, 0.3, 0.3, 0]], rtol=1e-6)


def test_factors_of_any_size_make_probabilities():
  # The largest that there may be; an old probability that vanished, and one below 0.
  no, big = -np.inf, np.float32(1e20)
  assert rectification(*np.float32([[1], [1], [1e-38], [1]]))[0] == big
  found = probabilities(
    [[big, big, 0.5, no], [big, 1e-30, 0, no], [0, 0, 1, no], [-1e-3, 0.5, 0.5, no]], 2, 3
  )
  expected = [[0.5, 0.5, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0.5, 0.5, 0]]
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_of_logits_the_softmax_is_taken():
  logits = [[np.log(3), 0.0, -1e30, -np.inf]]
  found = probabilities(logits, 2, 3, il2m_scores="logits")
  np.testing.assert_allclose(found, [[0.75, 0.25, 0, 0]], rtol=1e-6)
