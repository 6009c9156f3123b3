"""DER++: its loss against loops, and the logits that it stores."""

import functools

import finished_states
import jax
import jax.numpy as jnp
import method_reference as reference
import numpy as np
import pytest

from ssil_jax.methods import METHODS
from ssil_jax.methods.base import Sizes
from ssil_jax.resnet import Outputs

DER = METHODS["der"]
NUM_CLASSES = 9
STATE_OF_CLASS = np.repeat(np.arange(3), 3)
BOUNDS = (0, 3, 6, 9)
NUM_NEW, NUM_DRAWN = 4, 3
ALPHA, BETA = 0.3, 0.7

# Records 0 to 19 are no exemplars; exemplars, by the row of the store that they are in.
EXEMPLARS = [27, 21, 30, 25, 22]
EXEMPLAR_LABELS = {27: 0, 21: 1, 30: 2, 25: 4, 22: 5}
STORE = np.random.default_rng(9).standard_normal((6, NUM_CLASSES)).astype(np.float32)


def store():
  row = np.zeros(40, np.int32)
  row[EXEMPLARS] = np.arange(len(EXEMPLARS))
  return {"row": row, "logits": STORE}


def replay_batch(seed):
  """(logits, labels, records) of a batch in state 3: new, first draw, second draw."""
  rng = np.random.default_rng(seed)
  drawn = rng.choice(EXEMPLARS, 2 * NUM_DRAWN).tolist()
  if seed == 0:
    drawn = [27, 25, 22, 25, 27, 21]  # of several states
  labels = [6, 8, 8, 7, *[EXEMPLAR_LABELS[record] for record in drawn]]
  logits = 2 * rng.standard_normal((len(labels), NUM_CLASSES))
  return logits.astype(np.float32), labels, [0, 5, 3, 19, *drawn]


def stored_of(record):
  label = EXEMPLAR_LABELS[record]
  known = BOUNDS[STATE_OF_CLASS[label] + 1]
  return STORE[EXEMPLARS.index(record)], known


def loop_loss(logits, labels, records):
  new, replayed = list(zip(logits, labels, strict=True))[:NUM_NEW], []
  for i in range(NUM_NEW, NUM_NEW + NUM_DRAWN):
    replayed.append((logits[i], *stored_of(records[i])))
  second = list(zip(logits, labels, strict=True))[NUM_NEW + NUM_DRAWN :]
  return reference.der(new, replayed, second, NUM_CLASSES, ALPHA, BETA)


def config():
  return finished_states.config_of(
    "der",
    batch_size_new=NUM_NEW,
    batch_size_memory=NUM_DRAWN,
    der_alpha=ALPHA,
    der_beta=BETA,
  )


@functools.partial(jax.jit, static_argnames=("num_old", "num_seen"))
def batch_loss(logits, labels, positions, records, counted, *, num_old=6, num_seen=9):
  """The mean that training minimizes; `counted` are the labels of the global batch."""
  examples = finished_states.examples_of(
    Outputs(jnp.zeros((len(logits), 1)), logits),
    np.zeros(len(logits)),
    finished_states.context_of(num_old, num_seen, stats=jax.tree.map(jnp.asarray, store())),
    STATE_OF_CLASS,
  )._replace(
    labels=labels,
    positions=positions,
    records=records,
    class_counts=jnp.sum(jax.nn.one_hot(counted, NUM_CLASSES), axis=0),
  )
  return jnp.mean(DER.loss(examples, config()))


def loss_and_gradient(logits, labels, records, *, positions=None, **classes):
  labels = jnp.asarray(labels, jnp.int32)
  positions = np.arange(len(labels)) if positions is None else positions
  return jax.value_and_grad(batch_loss)(
    jnp.asarray(logits),
    labels,
    jnp.asarray(positions, jnp.int32),
    jnp.asarray(records, jnp.int32),
    labels,
    **classes,
  )


@pytest.mark.parametrize("seed", range(4))
def test_loss_and_gradient_equal_the_loops(seed):
  logits, labels, records = replay_batch(seed)
  value, gradient = loss_and_gradient(logits, labels, records)
  assert value == pytest.approx(loop_loss(logits, labels, records), rel=1e-5)
  np.testing.assert_allclose(
    gradient,
    reference.numerical_gradient(lambda x: loop_loss(x, labels, records), logits),
    rtol=1e-3,
    atol=1e-5,
  )


def test_the_first_draw_does_not_move_classes_unknown_when_it_was_stored():
  logits, labels, records = replay_batch(0)
  gradient = np.asarray(loss_and_gradient(logits, labels, records)[1])
  # Records 27, 25 and 22 were stored when 3, 6 and 6 classes were known.
  for i, known in zip(range(NUM_NEW, NUM_NEW + NUM_DRAWN), (3, 6, 6), strict=True):
    np.testing.assert_array_equal(gradient[i, known:], 0)
    assert (gradient[i, :known] != 0).all()
  others = [*range(NUM_NEW), *range(NUM_NEW + NUM_DRAWN, len(labels))]
  assert (gradient[others] != 0).all()


def test_unseen_classes_get_no_gradient():
  # State 2: classes 6 to 8 are unseen; the exemplars are of classes 0 to 2.
  logits = replay_batch(1)[0]
  labels = [3, 5, 5, 4, 0, 1, 2, 0, 2, 2]
  records = [0, 5, 3, 19, 27, 21, 30, 27, 30, 30]
  value, gradient = loss_and_gradient(logits, labels, records, num_old=3, num_seen=6)
  first = [(logits[i], *stored_of(records[i])) for i in range(4, 7)]
  new, second = (
    [(logits[i], labels[i]) for i in part] for part in (range(4), range(7, 10))
  )
  assert value == pytest.approx(reference.der(new, first, second, 6, ALPHA, BETA), rel=1e-5)
  np.testing.assert_array_equal(gradient[:, 6:], 0)
  np.testing.assert_array_equal(gradient[4:7, 3:], 0)


def test_logits_as_stored_cost_nothing():
  logits, labels, records = replay_batch(0)
  first = slice(NUM_NEW, NUM_NEW + NUM_DRAWN)
  logits[first] = [stored_of(record)[0] for record in records[first]]
  _, gradient = loss_and_gradient(logits, labels, records)
  np.testing.assert_array_equal(gradient[first], 0)


def test_loss_by_hand():
  # Equal logits of 0: log 9 of each new sample and of the second draw. Logits 2 from the
  # stored ones in class 0 alone: 4 / 3 or 4 / 6, a mean over the classes known.
  logits, labels, records = replay_batch(0)
  logits[:] = 0
  for i in range(NUM_NEW, NUM_NEW + NUM_DRAWN):
    logits[i] = stored_of(records[i])[0]
    logits[i, 0] += 2
    logits[i, stored_of(records[i])[1] :] += 50  # not known then
  value, _ = loss_and_gradient(logits, labels, records)
  distance = (4 / 3 + 4 / 6 + 4 / 6) / 3
  assert value == pytest.approx((1 + BETA) * np.log(9) + ALPHA * distance, rel=1e-5)


def test_two_devices_make_the_loss_of_the_whole_batch():
  logits, labels, records = replay_batch(2)
  # Six of one kind and another: the parts of a batch by position, not by place.
  shares = [[9, 0, 5, 2, 4], [1, 3, 8, 6, 7]]
  whole = jnp.asarray(labels, jnp.int32)
  means = []
  for share in map(np.asarray, shares):
    means.append(
      batch_loss(
        jnp.asarray(logits[share]),
        whole[share],
        jnp.asarray(share, jnp.int32),
        jnp.asarray(np.asarray(records)[share], jnp.int32),
        whole,
      )
    )
  assert np.mean(means) == pytest.approx(loop_loss(logits, labels, records), rel=1e-5)


# What is stored.

PER_CLASS, MEMORY_SIZE = 7, 13
QUOTAS = (4, 2, 1)  # 13 exemplars of 3, 6, 9 classes
LABELS = np.random.default_rng(7).permutation(np.repeat(np.arange(9), PER_CLASS))


def three_states():
  """(finished, statistics after it, logits of all training records) of each state."""
  rng = np.random.default_rng(11)
  dearest = [rng.permutation(np.flatnonzero(c == LABELS)).tolist() for c in range(9)]
  stats = DER.init_stats(Sizes(NUM_CLASSES, 1, len(LABELS), MEMORY_SIZE))
  result = []
  for state, quota in enumerate(QUOTAS):
    num_seen = BOUNDS[state + 1]
    logits = rng.standard_normal((len(LABELS), NUM_CLASSES)).astype(np.float32)
    finished = finished_states.finished_of(
      config(),
      num_old=BOUNDS[state],
      num_seen=num_seen,
      labels=LABELS,
      stats=stats,
      memory=finished_states.memory_of([records[:quota] for records in dearest[:num_seen]]),
      train=finished_states.outputs_of(logits=logits),
    )
    stats = DER.stats(finished, config())
    result.append((finished, stats, logits))
  return result


def test_logits_are_stored_once_and_kept():
  stored = {}
  for finished, stats, logits in three_states():
    for record, label in zip(finished.memory.records, finished.memory.labels, strict=True):
      if label >= finished.num_old:
        stored[record] = logits[record]
      # To the last bit, for the old ones, too.
      np.testing.assert_array_equal(stats["logits"][stats["row"][record]], stored[record])
  assert len(finished.memory.records) == 9  # of every class one


def test_every_exemplar_has_a_row_of_its_own():
  for finished, stats, _ in three_states():
    rows = stats["row"][finished.memory.records]
    assert len(set(rows.tolist())) == len(rows)
    assert rows.max() < MEMORY_SIZE


def test_statistics_keep_their_shapes_and_the_old_ones_are_not_written_to():
  before = DER.init_stats(Sizes(NUM_CLASSES, 1, len(LABELS), MEMORY_SIZE))
  for finished, stats, _ in three_states():
    for name, value in before.items():
      np.testing.assert_array_equal(finished.stats[name], value)
      assert stats[name].shape == value.shape
      assert stats[name].dtype == value.dtype
    before = {name: value.copy() for name, value in stats.items()}
