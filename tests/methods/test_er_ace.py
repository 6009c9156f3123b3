"""ER-ACE: the asymmetric cross-entropy against loops, and where gradients must vanish."""

import functools

import finished_states
import jax
import jax.numpy as jnp
import method_reference as reference
import numpy as np
import pytest

from ssil_jax.methods import METHODS
from ssil_jax.resnet import Outputs

ER_ACE = METHODS["er_ace"]
NUM_CLASSES = 9
STATE_OF_CLASS = np.repeat(np.arange(3), 3)
# (num_old, num_seen, labels): first states, with and without all classes in the batch,
# later ones, a batch without exemplars, and one whose new samples have a single class.
CASES = [
  (0, 3, [0, 1, 2, 2, 0]),
  (0, 6, [1, 4, 4, 1]),
  (3, 6, [3, 4, 5, 3, 0, 2]),
  (3, 9, [8, 4, 4, 8, 4, 1]),
  (6, 9, [8, 6, 0, 5, 5, 3]),
  (6, 9, [6, 7, 7]),
  (3, 6, [4, 4, 0, 1, 2]),
]


def random_logits(labels, *, seed=0, scale=2.0):
  rng = np.random.default_rng((seed, len(labels)))
  logits = scale * rng.standard_normal((len(labels), NUM_CLASSES))
  return logits.astype(np.float32)


@functools.partial(jax.jit, static_argnums=(2, 3))
def batch_loss(logits, labels, num_old, num_seen, counted):
  """The mean that training minimizes; `counted` are the labels of the global batch."""
  counts = jnp.sum(jax.nn.one_hot(counted, NUM_CLASSES), axis=0)
  examples = finished_states.examples_of(
    Outputs(jnp.zeros((len(logits), 1)), logits),
    np.zeros(len(logits)),
    finished_states.context_of(num_old, num_seen),
    STATE_OF_CLASS,
  )._replace(labels=labels, class_counts=counts)
  return jnp.mean(ER_ACE.loss(examples, finished_states.config_of("er_ace")))


def loss_and_gradient(logits, labels, num_old, num_seen):
  labels = jnp.asarray(labels, jnp.int32)
  return jax.value_and_grad(batch_loss)(
    jnp.asarray(logits), labels, num_old, num_seen, labels
  )


@pytest.mark.parametrize(("num_old", "num_seen", "labels"), CASES)
def test_loss_and_gradient_equal_the_loops(num_old, num_seen, labels):
  logits = random_logits(labels)
  value, gradient = loss_and_gradient(logits, labels, num_old, num_seen)
  expected = reference.er_ace(logits, labels, num_old, num_seen)
  assert value == pytest.approx(expected, rel=1e-5)
  np.testing.assert_allclose(
    gradient,
    reference.numerical_gradient(
      lambda x: reference.er_ace(x, labels, num_old, num_seen), logits
    ),
    rtol=1e-3,
    atol=1e-5,
  )


@pytest.mark.parametrize(("num_old", "num_seen", "labels"), CASES)
def test_gradients_are_exactly_zero_for_classes_that_do_not_compete(
  num_old, num_seen, labels
):
  _, gradient = loss_and_gradient(random_logits(labels), labels, num_old, num_seen)
  incoming = {label for label in labels if label >= num_old}
  for row, label in zip(np.asarray(gradient), labels, strict=True):
    competing = incoming if label >= num_old else set(range(num_seen))
    for c in range(NUM_CLASSES):
      if c not in competing:
        assert row[c] == 0
      elif len(competing) > 1:
        assert row[c] != 0


def test_loss_by_hand():
  # Equal logits. Two new samples of two classes: log 2. Three exemplars of six classes
  # seen: log 6. New samples do not compete with class 5, which the batch lacks.
  value, _ = loss_and_gradient(np.zeros((5, NUM_CLASSES)), [3, 4, 0, 1, 1], 3, 6)
  assert value == pytest.approx(np.log(2) + np.log(6), rel=1e-6)


def test_each_part_is_a_mean_of_its_own():
  # The same exemplar nine times instead of once: nothing changes.
  logits = random_logits(range(3))
  once, _ = loss_and_gradient(logits, [3, 4, 1], 3, 6)
  often, _ = loss_and_gradient(logits[[0, 1] + [2] * 9], [3, 4] + [1] * 9, 3, 6)
  assert often == pytest.approx(float(once), rel=1e-5)


def test_two_devices_make_the_loss_of_the_whole_batch():
  # The first device has no exemplar, and neither has all of the incoming classes.
  labels, num_old, num_seen = [3, 5, 3, 4, 0, 2], 3, 6
  logits = random_logits(labels)
  whole = jnp.asarray(labels)
  means = [
    batch_loss(jnp.asarray(logits[share]), whole[share], num_old, num_seen, whole)
    for share in (slice(3), slice(3, 6))
  ]
  expected = reference.er_ace(logits, labels, num_old, num_seen)
  assert np.mean(means) == pytest.approx(expected, rel=1e-5)


def test_extreme_logits_stay_finite():
  labels = [3, 4, 0, 2]
  logits = random_logits(labels, scale=1e4)
  value, gradient = loss_and_gradient(logits, labels, 3, 6)
  assert np.isfinite(value)
  assert np.isfinite(gradient).all()
