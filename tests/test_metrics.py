"""Counts and scores against plain loops, and an example worked by hand."""

import functools

import jax
import numpy as np
import pytest
import reference

from ssil_jax import metrics

# Four states of 3, 1, 4 and 2 classes.
STATE_OF_CLASS = np.array([0, 0, 0, 1, 2, 2, 2, 2, 3, 3], np.int32)
NUM_SEEN = (3, 4, 8, 10)

jitted_count = functools.partial(jax.jit, static_argnames="num_states")(metrics.count)


def counts_of(scores, labels, *, state, logits=None, valid=None):
  """Counts of one batch in state t of the four states above, on the host."""
  scores = np.asarray(scores, np.float32)
  return jax.device_get(
    jitted_count(
      scores,
      np.asarray(scores if logits is None else logits, np.float32),
      np.asarray(labels, np.int32),
      np.ones(len(labels), bool) if valid is None else np.asarray(valid),
      num_old=np.int32((0, *NUM_SEEN)[state - 1]),
      num_seen=np.int32(NUM_SEEN[state - 1]),
      state_of_class=STATE_OF_CLASS,
      num_states=4,
    )
  )


def random_samples(state, size, seed=0):
  """Scores with -inf for unseen classes, the logits, and labels of seen classes."""
  rng = np.random.default_rng((seed, state))
  logits = rng.normal(size=(size, 10)).astype(np.float32)
  labels = rng.integers(NUM_SEEN[state - 1], size=size)
  logits[np.arange(size), labels] += 1  # right more often than by chance
  scores = logits.copy()
  scores[:, NUM_SEEN[state - 1] :] = -np.inf
  return scores, logits, labels


def summary_of(scores, labels, *, state, **more):
  return metrics.summarize(
    metrics.add([counts_of(scores, labels, state=state, **more)]), state=state
  )


@pytest.mark.parametrize("state", [2, 3, 4])
def test_same_as_the_reference(state):
  scores, logits, labels = random_samples(state, 60)
  num_old, num_seen = NUM_SEEN[state - 2], NUM_SEEN[state - 1]
  got = summary_of(scores, labels, state=state, logits=logits)
  seen, states = scores[:, :num_seen], STATE_OF_CLASS[:num_seen].tolist()
  wanted = {
    "top1": reference.top1(seen, labels),
    "top5": reference.top5(seen, labels),
    "error_old_as_new": reference.error_old_as_new(seen, labels, num_old),
    "error_new_as_old": reference.error_new_as_old(seen, labels, num_old),
    "imbalance": reference.imbalance(seen, labels, num_old),
    "state_specific_top1": reference.state_specific_top1(seen, labels, states),
    "score_old": reference.mean_score(logits, 0, num_old),
    "score_new": reference.mean_score(logits, num_old, num_seen),
  }
  assert {name: got[name] for name in wanted} == pytest.approx(wanted, abs=1e-5)
  assert got["confusion"] == (
    reference.state_confusion(seen, labels, states, state).tolist()
  )
  by_state = reference.top1_by_state(seen, labels, states, state)
  assert got["top1_by_state"] == pytest.approx(by_state)


def test_state_1_has_no_old_classes():
  scores, logits, labels = random_samples(1, 60)
  got = summary_of(scores, labels, state=1, logits=logits)
  for name in ("error_old_as_new", "error_new_as_old", "imbalance", "score_old"):
    assert got[name] is None
  assert got["state_specific_top1"] == got["top1"]
  assert got["top1"] == pytest.approx(reference.top1(scores[:, :3], labels))
  assert got["score_new"] == pytest.approx(reference.mean_score(logits, 0, 3), abs=1e-5)
  assert got["confusion"] == [[60]]


def test_worked_by_hand():
  """State 2: old classes 0, 1, 2 and the new class 3; five images."""
  no = -np.inf  # classes 4 to 9 are not seen yet
  logits = np.array(
    [
      # class 0  1    2    3 | best: of all, of the label's state
      [9.0, 1.0, 0.0, 2.0] + [0.0] * 6,  # 0: right, right
      [1.0, 3.0, 0.0, 4.0] + [0.0] * 6,  # 1: taken for 3 (new), right among 0, 1, 2
      [5.0, 1.0, 2.0, 6.0] + [0.0] * 6,  # 2: taken for 3 (new), wrong among 0, 1, 2
      [0.0, 1.0, 0.0, 8.0] + [0.0] * 6,  # 3: right, right
      [0.0, 7.0, 0.0, 4.0] + [0.0] * 6,  # 3: taken for 1 (old), alone in its state
    ]
  )
  scores = logits.copy()
  scores[:, 4:] = no
  got = summary_of(scores, [0, 1, 2, 3, 3], state=2, logits=logits)
  assert got.pop("top1_by_state") == pytest.approx([1 / 3, 1 / 2])
  assert got.pop("state_specific_top1_by_state") == pytest.approx([2 / 3, 2 / 2])
  assert {name: got[name] for name in got if name != "confusion"} == pytest.approx(
    {
      "top1": 2 / 5,
      "top5": 1.0,  # four classes seen
      "error_old_as_new": 2 / 3,
      "error_new_as_old": 1 / 2,
      "imbalance": (2 / 3 + 1 / 2) / 2,
      "state_specific_top1": (2 / 3 + 2 / 2) / 2,
      "score_old": 2.0,  # (10 + 4 + 8 + 1 + 7) / (5 * 3)
      "score_new": 4.8,  # (2 + 4 + 6 + 8 + 4) / 5
    }
  )
  assert got["confusion"] == [[1, 2], [1, 1]]


def test_top5_counts_places_1_to_5():
  # Scores fall from class 0 to class 9: class c has place c + 1.
  scores = np.tile(-np.arange(10.0), (10, 1))
  counts = counts_of(scores, np.arange(10), state=4)
  assert counts.top5.tolist() == [3, 1, 1, 0]  # classes 0-2, 3, 4


def test_unseen_classes_are_never_predicted():
  scores, _, labels = random_samples(3, 60)
  for lowered in (scores, scores - 1e30):
    confusion = counts_of(lowered, labels, state=3).confusion
    assert confusion[:, 3].sum() == 0
    assert confusion.sum() == 60


def test_padding_is_ignored():
  scores, logits, labels = random_samples(3, 60)
  valid = np.arange(60) < 10
  padded = counts_of(scores, labels, state=3, logits=logits, valid=valid)
  exact = counts_of(scores[:10], labels[:10], state=3, logits=logits[:10])
  for a, b in zip(padded, exact, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)
  nothing = counts_of(scores, labels, state=3, valid=np.zeros(60, bool))
  assert all((field == 0).all() for field in nothing)


def test_several_batches_equal_one():
  scores, logits, labels = random_samples(4, 60)
  whole = counts_of(scores, labels, state=4, logits=logits)
  parts = [slice(i, i + 10) for i in range(0, 60, 10)]
  batches = [counts_of(scores[p], labels[p], state=4, logits=logits[p]) for p in parts]
  for a, b in zip(metrics.add(batches), metrics.add([whole]), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5)  # whole numbers: those of 60 images


def test_sums_do_not_overflow():
  billion = np.array([10**9], np.int32)
  third = np.array([1 / 3], np.float32)
  counts = metrics.Counts(billion, billion, billion, billion, third, third)
  total = metrics.add([counts] * 9)
  assert total.top1.tolist() == [9 * 10**9]
  assert total.top1.dtype == np.int64
  assert total.score_old.dtype == np.float64


@pytest.mark.parametrize("own", [False, True])
def test_nan_is_never_among_the_best(own):
  scores = np.full((10, 10), np.nan)
  if own:  # of the true class alone
    scores = np.where(np.eye(10), np.nan, -np.arange(10.0)[None])
  counts = counts_of(scores, np.arange(10), state=4)
  assert counts.top1.sum() == counts.top5.sum() == 0


def test_nan_of_another_class_counts_as_better():
  scores, labels = np.tile(-np.arange(10.0), (10, 1)), np.arange(10)
  scores[:, 9] = np.nan
  # The true class 4 had place 5 and falls to place 6; classes 0 to 3 stay within five.
  assert counts_of(scores, labels, state=4).top5.tolist() == [3, 1, 0, 0]


def test_no_new_images_in_the_test_set():
  # State 2, but every image is of the old classes: nothing to divide e(n, p) by.
  labels = np.arange(10) % 3
  got = summary_of(np.eye(10)[labels], labels, state=2)
  assert got["error_old_as_new"] == 0.0
  assert got["error_new_as_old"] is None
  assert got["top1_by_state"] == [1.0, None]


def test_average_leaves_the_first_imbalance_out():
  states = [
    {"top1": 0.9, "top5": 1.0, "imbalance": None, "score_old": None},
    {"top1": 0.7, "top5": 0.9, "imbalance": 0.2, "score_old": 3.0},
    {"top1": 0.5, "top5": 0.8, "imbalance": 0.4, "score_old": 1.0},
  ]
  # An earlier version measured no more of them.
  unknown = {"ece": None, "forgetting": None, "backward_transfer": None}
  average = metrics.average(states)
  assert average == {
    **{"top1": pytest.approx(0.7), "top5": pytest.approx(0.9)},
    **{"imbalance": pytest.approx(0.3), **unknown},
  }
  only_one = metrics.average(states[:1])
  assert only_one == {"top1": 0.9, "top5": 1.0, "imbalance": None, **unknown}
  assert metrics.average([]) == {"top1": None, "top5": None, "imbalance": None, **unknown}


# A whole run, worked out by hand in docs/measures.md ------------------------------------

HAND_STATES = np.array([0, 0, 1, 2], np.int32)  # classes 0 and 1, then 2, then 3
HAND_LABELS = np.array([0, 0, 1, 1, 2, 2, 3, 3], np.int32)  # of the test images
HAND_SCORES = (  # after each state: of the images of the classes seen, a row each
  [[0.9, 0.1], [0.3, 0.7], [0.9, 0.1], [0.1, 0.9]],
  [
    *([0.7, 0.2, 0.1], [0.5, 0.2, 0.3], [0.28, 0.62, 0.1], [0.2, 0.3, 0.5]),
    *([0.1, 0.0, 0.9], [0.12, 0.1, 0.78]),
  ],
  [
    *([0.9, 0.04, 0.03, 0.03], [0.2, 0.12, 0.1, 0.58], [0.16, 0.1, 0.1, 0.64]),
    *([0.05, 0.25, 0.5, 0.2], [0.01, 0.01, 0.96, 0.02], [0.06, 0.06, 0.06, 0.82]),
    *([0.02, 0.03, 0.05, 0.9], [0.14, 0.15, 0.15, 0.56]),
  ],
)


def hand_row(state):
  """The row of results.json of a method whose scores are its probabilities."""
  seen = np.array(HAND_SCORES[state - 1], np.float32)
  images, num_seen = seen.shape
  labels, unseen = HAND_LABELS[:images], np.zeros((images, 4 - num_seen), np.float32)
  scores = np.concatenate([seen, unseen - np.inf], axis=1)
  probabilities = np.concatenate([seen, unseen], axis=1)
  counts = jitted_count(
    scores,
    probabilities,
    labels,
    np.ones(images, bool),
    num_old=np.int32((0, 2, 3)[state - 1]),
    num_seen=np.int32(num_seen),
    state_of_class=HAND_STATES,
    num_states=3,
  )
  predicted = jax.device_get(metrics.predictions(scores, probabilities, labels))
  return {
    **metrics.summarize(metrics.add([jax.device_get(counts)]), state=state),
    **metrics.summarize_classes(predicted, labels, num_seen=num_seen),
  }


def test_a_run_worked_by_hand():
  rows = [hand_row(state) for state in (1, 2, 3)]
  last = rows[-1]
  assert [row["top1_by_state"] for row in rows] == [[1 / 2], [3 / 4, 1], [1 / 4, 1 / 2, 1]]
  assert last["top1_by_class"] == [1 / 2, 0, 1 / 2, 1]
  assert last["class_confusion"] == [
    *([0, 0, 1], [0, 3, 1], [1, 2, 1], [1, 3, 1], [2, 2, 1], [2, 3, 1], [3, 3, 2])
  ]
  assert last["confusion"] == [[1, 1, 2], [0, 1, 1], [0, 0, 2]]
  names = ("top1", "top5", "error_old_as_new", "error_new_as_old", "imbalance")
  assert [last[name] for name in names] == [1 / 2, 1, 1 / 2, 0, 1 / 4]
  assert last["state_specific_top1"] == pytest.approx((3 / 4 + 1 + 1) / 3)
  assert last["state_specific_top1_by_state"] == [3 / 4, 1, 1]
  assert last["score_old"] == pytest.approx(4.25 / (8 * 3))
  assert last["score_new"] == pytest.approx(3.75 / 8)
  # The gaps of the bins, each with its number of images.
  eces = [1.4 / 4, 1 / 6, (0.5 + 2 * 0.07 + 0.64 + 0.82 + 2 * 0.1 + 0.04) / 8]
  assert [row["ece"] for row in rows] == pytest.approx(eces)
  assert metrics.average(rows) == pytest.approx(
    {
      "top1": (1 / 2 + 5 / 6 + 1 / 2) / 3,
      "top5": 1.0,
      "imbalance": (1 / 8 + 1 / 4) / 2,
      "ece": sum(eces) / 3,
      "forgetting": ((3 / 4 - 1 / 4) + (1 - 1 / 2)) / 2,
      "backward_transfer": ((1 / 4 - 1 / 2) + (1 / 2 - 1)) / 2,
    }
  )


# Against references ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_classes_and_calibration_are_those_of_the_reference(seed):
  rng = np.random.default_rng(seed)
  labels, predicted = rng.choice([0, 1, 2, 4, 5, 6], (2, 200))  # class 3 has no images
  confidence = rng.random(200).astype(np.float32)
  confidence[:4] = 0, 1, 1, np.nextafter(np.float32(0.2), np.float32(1))
  got = metrics.summarize_classes(
    metrics.Predictions(predicted, predicted == labels, confidence), labels, num_seen=7
  )
  assert got["top1_by_class"] == reference.top1_by_class(predicted, labels, 7)
  assert got["class_confusion"] == reference.class_confusion(predicted, labels)
  assert got["ece"] == pytest.approx(
    reference.calibration_error(confidence, predicted == labels, 15)
  )


def test_the_edges_of_the_bins():
  """Bin m is ((m - 1) / 15, m / 15]: 1/15 in float32 is a little above 1/15."""
  edges = np.array([0, 1 / 15, 0.2, 0.4, 1], np.float32)
  bins = [0, 1, 3, 6, 14]  # 0.2 and 0.4 are above 3/15 and 6/15 in float32, too
  assert (edges[1:4].astype(np.float64) > np.array([1 / 15, 0.2, 0.4])).all()
  # A partner in the middle of the bin, right where the first is wrong: one bin's gap is
  # what both have together, two bins' gaps add up.
  for edge, number in zip(edges, bins, strict=True):
    middle = np.float32((number + 0.5) / 15)
    both = metrics.calibration_error(np.array([edge, middle]), np.array([False, True]))
    assert both == pytest.approx(abs(1 - edge - middle) / 2, abs=1e-6)


def test_calibration_of_nothing_and_of_no_numbers():
  nothing = np.zeros(0, np.float32)
  assert metrics.calibration_error(nothing, nothing.astype(bool)) is None
  assert metrics.calibration_error(np.array([0.5, np.nan]), np.array([True, True])) is None
  # Rounding may take a probability beyond 1.
  beyond = np.array([np.nextafter(np.float32(1), np.float32(2))])
  assert metrics.calibration_error(beyond, np.array([True])) == pytest.approx(0, abs=1e-6)


def test_a_class_whose_own_score_is_nan_is_not_right():
  scores = np.array([[np.nan, 0.0], [0.0, 1.0]], np.float32)
  predicted = metrics.predictions(scores, np.full((2, 2), 0.5), np.array([0, 1]))
  assert predicted.right.tolist() == [False, True]


@pytest.mark.parametrize("seed", range(3))
def test_forgetting_and_transfer_are_those_of_the_reference(seed):
  rng = np.random.default_rng(seed)
  accuracy = [rng.random(t + 1).tolist() for t in range(5)]
  accuracy[1][1] = accuracy[3][1] = accuracy[4][2] = accuracy[2][0] = None
  for states in range(1, 6):
    rows = accuracy[:states]
    assert metrics.forgetting(rows) == pytest.approx(reference.forgetting(rows))
    transfer = metrics.backward_transfer(rows)
    assert transfer == pytest.approx(reference.backward_transfer(rows))
  assert metrics.forgetting(accuracy[:1]) is metrics.backward_transfer([]) is None


@pytest.mark.parametrize("seed", range(3))
def test_forgetting_beside_that_of_avalanche(seed):
  """Avalanche 0.6.0 starts from the accuracy right after training: its BWT is ours."""
  rng = np.random.default_rng(seed)
  accuracy = [rng.random(t + 1).tolist() for t in range(4)]
  theirs = reference.avalanche_stream_forgetting(accuracy)
  assert metrics.backward_transfer(accuracy) == pytest.approx(-theirs)
  assert metrics.forgetting(accuracy) >= theirs
  # The same if no state was ever better known than right after its training.
  falling = [[1 - (t - j) / 4 for j in range(t + 1)] for t in range(4)]
  same = reference.avalanche_stream_forgetting(falling)
  assert metrics.forgetting(falling) == pytest.approx(same) == pytest.approx(0.5)
