"""Losses: values and gradients against loops, what is blocked exactly, extreme scores."""

import functools

import jax
import jax.numpy as jnp
import method_reference
import numpy as np
import pytest
import reference

from ssil_jax import losses

# States of unequal size; of the last, no teacher ever knows anything.
GROUPS = [[0], [1, 2, 3], [4], [5, 6, 7, 8], [9, 10], [11]]
STATE_OF_CLASS = np.array([0, 1, 1, 1, 2, 3, 3, 3, 3, 4, 4, 5], np.int32)
NUM_CLASSES = 12
# (num_old, num_seen): first state, later ones, all classes seen.
SPLITS = [(0, 1), (1, 4), (4, 5), (5, 9), (9, 11), (11, 12)]

# (logits, labels, the teacher's logits, num_old, num_seen, temperature) -> [B]. A teacher
# knows the old classes.


def separated(logits, labels, teacher, num_old, num_seen, temperature):
  return losses.separated_softmax_cross_entropy(logits, labels, num_old, num_seen)


def seen(logits, labels, teacher, num_old, num_seen, temperature):
  return losses.seen_softmax_cross_entropy(logits, labels, num_seen)


def softened(logits, labels, teacher, num_old, num_seen, temperature):
  return losses.softened_cross_entropy(logits, teacher, num_old, temperature=temperature)


def by_state(logits, labels, teacher, num_old, num_seen, temperature):
  return losses.task_wise_cross_entropy(
    logits, teacher, STATE_OF_CLASS, num_old, temperature=temperature
  )


def tkd(logits, labels, teacher, num_old, num_seen, temperature):
  return losses.task_wise_distillation(
    logits, teacher, STATE_OF_CLASS, num_old, temperature=temperature
  )


ALL = [separated, seen, softened, by_state, tkd]


def competing(loss, label, num_old, num_seen):
  if loss is separated:
    return reference.own_group(label, num_old, num_seen)
  return range(num_seen if loss is seen else num_old)


def loop(loss, scores, teacher, label, num_old, num_seen, temperature):
  """The value of one sample."""
  if loss in (separated, seen):
    classes = competing(loss, label, num_old, num_seen)
    return reference.softmax_cross_entropy(scores, label, classes)
  if loss is softened:
    return method_reference.softened_cross_entropy(
      scores, teacher, range(num_old), temperature
    )
  task_wise = {
    by_state: method_reference.task_wise_cross_entropy,
    tkd: method_reference.task_wise_distillation,
  }[loss]
  return task_wise(scores, teacher, GROUPS, num_old, temperature)


def batch(num_old, num_seen, *, scale=3.0):
  """Logits, labels of both groups, whenever there are old classes, the teacher's logits."""
  rng = np.random.default_rng((num_old, num_seen))
  logits, teacher = (scale * rng.standard_normal((2, 6, NUM_CLASSES))).astype(np.float32)
  labels = np.arange(6) * (num_seen - 1) % num_seen
  if num_old:
    labels[0], labels[1] = num_old - 1, num_old
  return logits, labels.astype(np.int32), teacher


@functools.partial(jax.jit, static_argnums=(0, 6))
def _compiled(loss, logits, labels, teacher, num_old, num_seen, temperature):
  def total(logits, teacher):
    values = loss(logits, labels, teacher, num_old, num_seen, temperature)
    return jnp.sum(values), values

  gradients, values = jax.grad(total, (0, 1), has_aux=True)(logits, teacher)
  return values, *gradients


def results_of(loss, logits, labels, teacher, num_old, num_seen, temperature=2.0):
  """Values [B], and gradients by the logits and the teacher's, [B, C]."""
  return jax.device_get(
    _compiled(loss, logits, labels, teacher, num_old, num_seen, temperature)
  )


@pytest.mark.parametrize("temperature", [2.0, 3.5])
@pytest.mark.parametrize("loss", ALL)
def test_values_and_gradients_equal_the_loops(loss, temperature):
  before = _compiled._cache_size()
  for split in SPLITS:
    logits, labels, teacher = batch(*split)
    values, by_logits, by_teacher = results_of(
      loss, logits, labels, teacher, *split, temperature
    )
    assert values.dtype == np.float32
    assert values.shape == (6,)
    for i, label in enumerate(labels.tolist()):
      of_scores = functools.partial(
        loop,
        loss,
        teacher=teacher[i].tolist(),
        label=label,
        num_old=split[0],
        num_seen=split[1],
        temperature=temperature,
      )
      classes = competing(loss, label, *split)
      np.testing.assert_allclose(
        values[i], of_scores(logits[i].tolist()), rtol=1e-5, atol=1e-5
      )
      if loss in (separated, seen):
        gradient = reference.softmax_cross_entropy_gradient(logits[i], label, classes)
      else:
        gradient = method_reference.numerical_gradient(of_scores, logits[i])
      np.testing.assert_allclose(by_logits[i], gradient, rtol=1e-4, atol=1e-5)
      assert not np.delete(by_logits[i], classes).any()
    assert not by_teacher.any()
  # One program serves all states.
  assert _compiled._cache_size() - before <= 1


@pytest.mark.parametrize("split", SPLITS)
def test_new_samples_do_not_touch_old_scores_nor_old_samples_new_ones(split):
  num_old, num_seen = split
  logits, labels, teacher = batch(*split)
  _, gradients, _ = results_of(separated, logits, labels, teacher, *split)
  is_old = labels < num_old
  assert is_old.any() == (num_old > 0)
  assert np.all(gradients[~is_old][:, :num_old] == 0)
  assert np.all(gradients[is_old][:, num_old:] == 0)
  # The gradient is there within the group, unless the group is a single class.
  assert num_seen - num_old == 1 or np.all(gradients[~is_old][:, num_old:num_seen] != 0)
  assert num_old <= 1 or np.all(gradients[is_old][:, :num_old] != 0)


@pytest.mark.parametrize("size", [-1e4, 500.0, 1e4])
@pytest.mark.parametrize("loss", ALL)
def test_scores_that_do_not_compete_change_nothing(loss, size):
  for split in ((0, 1), (5, 9)):
    logits, labels, teacher = batch(*split)
    loud, loud_teacher = logits.copy(), teacher.copy()
    for i, label in enumerate(labels.tolist()):
      outside = np.delete(np.arange(NUM_CLASSES), competing(loss, label, *split))
      loud[i, outside] = loud_teacher[i, outside] = size
    expected = results_of(loss, logits, labels, teacher, *split)
    for other in ((loud, teacher), (logits, loud_teacher), (loud, loud_teacher)):
      jax.tree.map(
        np.testing.assert_array_equal,
        results_of(loss, other[0], labels, other[1], *split),
        expected,
      )


@pytest.mark.parametrize("loss", ALL)
def test_extreme_scores_are_finite_and_exact(loss):
  split = (5, 9)
  logits, labels, teacher = batch(*split, scale=1e4)
  own = np.eye(NUM_CLASSES, dtype=np.float32)[labels]
  # At random; the label's score high, low; all high, all low.
  for scores in (logits, 2e4 * own - 1e4, 1e4 - 2e4 * own, 0 * own + 1e4, 0 * own - 1e4):
    values, *gradients = results_of(loss, scores, labels, teacher, *split)
    for i, label in enumerate(labels.tolist()):
      expected = loop(loss, scores[i].tolist(), teacher[i].tolist(), label, *split, 2.0)
      np.testing.assert_allclose(values[i], expected, rtol=1e-5, atol=0.05)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("loss", ALL)
def test_bfloat16_scores_are_summed_in_float32(loss):
  logits, labels, teacher = batch(5, 9)
  rounded = [jnp.asarray(x, jnp.bfloat16) for x in (logits, teacher)]
  values, by_logits, _ = results_of(loss, rounded[0], labels, rounded[1], 5, 9)
  assert values.dtype == np.float32
  assert by_logits.dtype == jnp.bfloat16
  wide = [x.astype(jnp.float32) for x in rounded]
  expected, *_ = results_of(loss, wide[0], labels, wide[1], 5, 9)
  np.testing.assert_allclose(values, expected, rtol=1e-6)


@pytest.mark.parametrize("loss", [softened, by_state, tkd])
def test_without_taught_classes_distillation_is_exactly_zero(loss):
  for scale in (0.0, 3.0, 1e4):
    for result in results_of(loss, *batch(0, 4, scale=scale), 0, 4):
      np.testing.assert_array_equal(result, 0)


def lone(logits, labels, teacher, num_old, num_seen, temperature):
  return losses.lone_class_cross_entropy(logits, labels, num_old)


@pytest.mark.parametrize("scale", [3.0, 1e4])
@pytest.mark.parametrize("split", [(4, 5), (9, 10), (11, 12)])
def test_a_lone_class_competes_with_all_old_ones_together(split, scale):
  num_old = split[0]
  logits, labels, teacher = batch(*split, scale=scale)
  assert {*(labels < num_old).tolist()} == {True, False}
  values, gradients, _ = results_of(lone, logits, labels, teacher, *split)
  assert values.dtype == np.float32
  for i, label in enumerate(labels.tolist()):

    def loop(score, i=i, is_new=label == num_old):
      old = logits[i, :num_old].tolist()
      return method_reference.lone_class(score[0], old, is_new=is_new)

    np.testing.assert_allclose(values[i], loop(logits[i, num_old:]), rtol=1e-5, atol=1e-5)
    (own,) = method_reference.numerical_gradient(loop, logits[i, num_old : num_old + 1])
    np.testing.assert_allclose(gradients[i, num_old], own, rtol=1e-4, atol=1e-5)
  # Exactly nothing reaches an old score, nor one of a class that is not seen.
  assert not np.delete(gradients, num_old, axis=1).any()


def test_a_lone_class_by_hand():
  # The new class has the odds 6 : 1 + 2; of the sample of an old class 3 : 1 + 5.
  logits = jnp.log(jnp.array([[1.0, 2.0, 6.0, 99.0], [1.0, 5.0, 3.0, 99.0]]))
  values = losses.lone_class_cross_entropy(logits, jnp.array([2, 0]), 2)
  np.testing.assert_allclose(values, np.log([9 / 6, 9 / 6]), rtol=1e-5)


def test_a_lone_class_in_the_first_state_is_no_nan():
  # The value means nothing there, and is multiplied by 0 or not chosen.
  for result in results_of(lone, *batch(0, 1), 0, 1):
    assert np.isfinite(result).all()


def test_without_old_classes_both_softmaxes_are_the_same():
  jax.tree.map(
    np.testing.assert_array_equal,
    *(results_of(loss, *batch(0, 4), 0, 4) for loss in (separated, seen)),
  )


def test_vmap_and_pmap_agree():
  logits, labels, _ = batch(5, 9)
  function = losses.separated_softmax_cross_entropy
  expected = function(logits, labels, 5, 9)
  shared = logits.reshape(2, 3, -1), labels.reshape(2, 3)
  mapped = jax.vmap(function, (0, 0, None, None))(*shared, 5, 9)
  on_devices = jax.pmap(function, in_axes=(0, 0, None, None))(*shared, 5, 9)
  for values in (mapped, on_devices):
    np.testing.assert_allclose(np.ravel(values), expected, rtol=1e-6)


def test_tkd_is_zero_where_the_student_is_the_teacher():
  # Up to a constant for each state, which its softmax does not see.
  logits, labels, _ = batch(9, 11)
  shifted = logits + STATE_OF_CLASS.astype(np.float32)
  values, by_logits, _ = results_of(tkd, logits, labels, shifted, 9, 11)
  np.testing.assert_allclose(values, 0, atol=1e-5)
  np.testing.assert_allclose(by_logits, 0, atol=1e-5)
  # One softmax over all classes does see it.
  _, by_logits, _ = results_of(softened, logits, labels, shifted, 9, 11)
  assert np.abs(by_logits).max() > 0.01


def test_softmaxes_by_hand():
  # Two old and two new classes. Old sample: log(1 + e^-1); new sample: log(e^2 + 1).
  logits = jnp.array([[1.0, 0.0, 5.0, 5.0], [9.0, 9.0, 2.0, 0.0]])
  labels = jnp.array([0, 3])
  values = losses.separated_softmax_cross_entropy(logits, labels, 2, 4)
  np.testing.assert_allclose(values, np.log([1 + np.exp(-1), np.exp(2) + 1]), rtol=1e-6)
  # Three of four equal scores are of classes seen.
  values = losses.seen_softmax_cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 2]), 3)
  np.testing.assert_allclose(values, np.log(3), rtol=1e-6)


def test_distillation_by_hand():
  # T = 2, two taught states of two classes and a class that is not taught. The student's
  # logits are 2 log of (3, 1), (1, 1), the teacher's of (1, 1), (1, 3).
  logits = jnp.array([[2 * np.log(3), 0.0, 0.0, 0.0, 9.0]])
  teacher = jnp.array([[0.0, 0.0, 0.0, 2 * np.log(3), -9.0]])
  states = np.array([0, 0, 1, 1, 2], np.int32)
  # p = (3, 1, 1, 1) / 6, q = (1, 1, 1, 3) / 6: log 6 - q_0 log 3.
  value = losses.softened_cross_entropy(logits, teacher, 4, temperature=2.0)
  np.testing.assert_allclose(value, np.log(6) - np.log(3) / 6, rtol=1e-6)
  # First state: p = (3, 1) / 4, q = (1, 1) / 2: log 4 - log(3) / 2. Second: p = 1/2, log 2.
  # Without the entropies of q, log 2 and 2 log 2 - 3/4 log 3, these are the divergences.
  first, second = np.log(4) - np.log(3) / 2, np.log(2)
  entropies = np.log(2), 2 * np.log(2) - 3 / 4 * np.log(3)
  for taught, expected, entropy in (
    (2, first, entropies[0]),
    (4, first + second, sum(entropies)),
  ):
    given = logits, teacher, states, taught
    value = losses.task_wise_cross_entropy(*given, temperature=2.0)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    value = losses.task_wise_distillation(*given, temperature=2.0)
    np.testing.assert_allclose(value, 4 * (expected - entropy), rtol=1e-5)
