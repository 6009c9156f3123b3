"""Distillation: values and gradients against loops, no teacher, extreme scores."""

import functools

import jax
import jax.numpy as jnp
import method_reference as reference
import numpy as np
import pytest

from ssil_jax import losses

# States of unequal size; of the last, no teacher ever knows anything.
GROUPS = [[0, 1, 2], [3], [4, 5, 6, 7], [8, 9], [10, 11]]
STATE_OF_CLASS = np.array([0, 0, 0, 1, 2, 2, 2, 2, 3, 3, 4, 4], np.int32)
NUM_CLASSES = 12
BOUNDARIES = [3, 4, 8, 10, 12]


def softened(logits, teacher, num_teacher_classes, temperature):
  return losses.softened_cross_entropy(
    logits, teacher, num_teacher_classes, temperature=temperature
  )


def by_state(logits, teacher, num_teacher_classes, temperature):
  return losses.task_wise_cross_entropy(
    logits, teacher, STATE_OF_CLASS, num_teacher_classes, temperature=temperature
  )


def tkd(logits, teacher, num_teacher_classes, temperature):
  return losses.task_wise_distillation(
    logits, teacher, STATE_OF_CLASS, num_teacher_classes, temperature=temperature
  )


ALL = [softened, by_state, tkd]


def expected(loss, scores, teacher, num_teacher_classes, temperature):
  """The loop's value for one sample."""
  if loss is softened:
    return reference.softened_cross_entropy(
      scores, teacher, range(num_teacher_classes), temperature
    )
  loop = {
    by_state: reference.task_wise_cross_entropy,
    tkd: reference.task_wise_distillation,
  }[loss]
  return loop(scores, teacher, GROUPS, num_teacher_classes, temperature)


def batch(seed=0, *, size=4, scale=3.0):
  rng = np.random.default_rng(seed)
  logits, teacher = scale * rng.standard_normal((2, size, NUM_CLASSES))
  return jnp.asarray(logits, jnp.float32), jnp.asarray(teacher, jnp.float32)


@functools.partial(jax.jit, static_argnums=(0, 4))
def gradients(loss, logits, teacher, num_teacher_classes, temperature):
  """By the logits and by the teacher's, [B, C]; compiled once for any number."""
  total = lambda x, y: jnp.sum(loss(x, y, num_teacher_classes, temperature))  # noqa: E731
  return jax.grad(total, (0, 1))(logits, teacher)


@pytest.mark.parametrize("temperature", [1.0, 3.5])
@pytest.mark.parametrize("num_teacher_classes", BOUNDARIES)
@pytest.mark.parametrize("loss", ALL)
def test_values_and_gradients_equal_the_loops(loss, num_teacher_classes, temperature):
  logits, teacher = batch(num_teacher_classes)
  values = loss(logits, teacher, num_teacher_classes, temperature)
  assert values.shape == (4,)
  assert values.dtype == jnp.float32
  by_logits, by_teacher = gradients(loss, logits, teacher, num_teacher_classes, temperature)
  for i in range(len(logits)):
    one = functools.partial(
      expected,
      loss,
      teacher=teacher[i].tolist(),
      num_teacher_classes=num_teacher_classes,
      temperature=temperature,
    )
    np.testing.assert_allclose(values[i], one(logits[i].tolist()), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
      by_logits[i],
      reference.numerical_gradient(one, logits[i].tolist()),
      rtol=1e-4,
      atol=1e-5,
    )
  assert np.all(np.asarray(by_teacher) == 0)
  assert np.all(np.asarray(by_logits)[:, num_teacher_classes:] == 0)


@pytest.mark.parametrize("loss", ALL)
def test_without_taught_classes_it_is_zero_with_zero_gradients(loss):
  for logits, teacher in (batch(), batch(scale=1e4), (jnp.zeros((4, NUM_CLASSES)),) * 2):
    np.testing.assert_array_equal(loss(logits, teacher, 0, 2.0), 0)
    np.testing.assert_array_equal(loss(logits, teacher, jnp.int32(0), 2.0), 0)
    for gradient in gradients(loss, logits, teacher, 0, 2.0):
      np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("num_teacher_classes", BOUNDARIES)
@pytest.mark.parametrize("loss", ALL)
def test_huge_taught_logits_stay_finite_and_exact(loss, num_teacher_classes):
  logits, teacher = (x.at[:, num_teacher_classes:].set(0) for x in batch(1, scale=1e4))
  values = np.asarray(loss(logits, teacher, num_teacher_classes, 2.0))
  for i in range(len(logits)):
    np.testing.assert_allclose(
      values[i],
      expected(loss, logits[i].tolist(), teacher[i].tolist(), num_teacher_classes, 2.0),
      rtol=1e-5,
      atol=0.05,
    )
  for gradient in gradients(loss, logits, teacher, num_teacher_classes, 2.0):
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("whose", ["student", "teacher", "both"])
@pytest.mark.parametrize("size", [-1e4, 500.0, 1e4])
@pytest.mark.parametrize("loss", ALL)
def test_huge_untaught_logits_change_nothing(loss, size, whose):
  logits, teacher = batch()
  loud = logits if whose == "teacher" else logits.at[:, 4:].set(size)
  loud_teacher = teacher if whose == "student" else teacher.at[:, 4:].set(size)
  np.testing.assert_array_equal(
    loss(loud, loud_teacher, 4, 2.0), loss(logits, teacher, 4, 2.0)
  )
  by_logits, by_teacher = gradients(loss, loud, loud_teacher, 4, 2.0)
  np.testing.assert_array_equal(by_logits, gradients(loss, logits, teacher, 4, 2.0)[0])
  np.testing.assert_array_equal(by_teacher, 0)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("num_teacher_classes", BOUNDARIES)
def test_gradient_of_tkd_is_that_of_the_cross_entropy_times_t_squared(
  num_teacher_classes, temperature
):
  logits, teacher = batch()
  ours, _ = gradients(tkd, logits, teacher, num_teacher_classes, temperature)
  theirs, _ = gradients(by_state, logits, teacher, num_teacher_classes, temperature)
  np.testing.assert_allclose(ours, temperature**2 * theirs, rtol=1e-4, atol=1e-6)
  assert np.abs(ours).max() > 0.1


def test_tkd_is_zero_where_the_student_is_the_teacher():
  # Up to a constant for each state, which its softmax does not see.
  logits, _ = batch()
  shifted = logits + jnp.asarray(STATE_OF_CLASS, jnp.float32)[None, :]
  np.testing.assert_allclose(tkd(logits, shifted, 10, 2.0), 0, atol=1e-5)
  np.testing.assert_allclose(gradients(tkd, logits, shifted, 10, 2.0)[0], 0, atol=1e-5)
  # One softmax over all classes does see it.
  assert np.abs(gradients(softened, logits, shifted, 10, 2.0)[0]).max() > 0.01


@pytest.mark.parametrize("loss", ALL)
def test_one_compiled_program_serves_every_number_of_taught_classes(loss):
  logits, teacher = batch()
  gradient = jax.grad(lambda x, y, n: jnp.sum(loss(x, y, n, 2.0)), (0, 1))
  values = jax.jit(lambda x, y, n: loss(x, y, n, 2.0))
  compiled = jax.jit(gradient)
  for num_teacher_classes in (0, *BOUNDARIES):
    n = jnp.int32(num_teacher_classes)
    np.testing.assert_allclose(
      values(logits, teacher, n),
      loss(logits, teacher, num_teacher_classes, 2.0),
      1e-5,
      1e-6,
    )
    by_logits, by_teacher = compiled(logits, teacher, n)
    assert np.all(np.asarray(by_logits)[:, num_teacher_classes:] == 0)
    assert np.all(np.asarray(by_teacher) == 0)
    if num_teacher_classes in (0, 4):  # one by one takes long
      plain, _ = gradient(logits, teacher, num_teacher_classes)
      np.testing.assert_allclose(by_logits, plain, rtol=1e-5, atol=1e-6)
  assert compiled._cache_size() == values._cache_size() == 1


def test_log_softmax_by_state_equals_the_loop():
  logits, _ = batch()
  values = losses.log_softmax_by_state(logits, STATE_OF_CLASS)
  assert values.shape == logits.shape
  assert values.dtype == jnp.float32
  for i in range(len(logits)):
    for group in GROUPS:
      loop = reference.log_softmax(logits[i].tolist(), group)
      for c in group:
        np.testing.assert_allclose(values[i, c], loop[c], rtol=1e-5, atol=1e-6)
  # A state's only class is certain.
  np.testing.assert_array_equal(values[:, 3], 0)


def test_log_softmax_by_state_of_huge_logits():
  # States with logits apart by 2e4 do not see each other.
  logits = jnp.array([[1e4, 1e4, 0.0, -1e4, -1e4, 5.0]])
  values = losses.log_softmax_by_state(logits, np.array([0, 0, 1, 2, 2, 3], np.int32))
  half = np.log(0.5)
  np.testing.assert_allclose(values, [[half, half, 0, half, half, 0]], rtol=1e-6)
  logits, _ = batch(scale=1e4)
  gradient = jax.grad(lambda x: losses.log_softmax_by_state(x, STATE_OF_CLASS).sum())
  assert np.all(np.isfinite(losses.log_softmax_by_state(logits, STATE_OF_CLASS)))
  assert np.all(np.isfinite(gradient(logits)))


# By hand: T = 2, two taught states of two classes and a class that is not taught. The
# student's logits are 2 log of (3, 1), (1, 1), the teacher's of (1, 1), (1, 3).
BY_HAND = {
  "logits": jnp.array([[2 * np.log(3), 0.0, 0.0, 0.0, 9.0]]),
  "teacher": jnp.array([[0.0, 0.0, 0.0, 2 * np.log(3), -9.0]]),
}
STATES_BY_HAND = np.array([0, 0, 1, 1, 2], np.int32)


def test_softened_cross_entropy_by_hand():
  # p = (3, 1, 1, 1) / 6, q = (1, 1, 1, 3) / 6: log 6 - q_0 log 3.
  value = losses.softened_cross_entropy(
    BY_HAND["logits"], BY_HAND["teacher"], 4, temperature=2.0
  )
  np.testing.assert_allclose(value, np.log(6) - np.log(3) / 6, rtol=1e-6)


def test_task_wise_cross_entropy_by_hand():
  # First state: p = (3, 1) / 4, q = (1, 1) / 2: log 4 - log(3) / 2. Second: p = 1/2, log 2.
  value = functools.partial(
    losses.task_wise_cross_entropy,
    BY_HAND["logits"],
    BY_HAND["teacher"],
    STATES_BY_HAND,
    temperature=2.0,
  )
  first = np.log(4) - np.log(3) / 2
  np.testing.assert_allclose(value(2), first, rtol=1e-6)
  np.testing.assert_allclose(value(4), first + np.log(2), rtol=1e-6)


def test_task_wise_distillation_by_hand():
  # Less the entropies of q, log 2 and 2 log 2 - 3/4 log 3, times 4.
  value = functools.partial(
    losses.task_wise_distillation,
    BY_HAND["logits"],
    BY_HAND["teacher"],
    STATES_BY_HAND,
    temperature=2.0,
  )
  first = np.log(2) - np.log(3) / 2
  second = 3 / 4 * np.log(3) - np.log(2)
  np.testing.assert_allclose(value(2), 4 * first, rtol=1e-5)
  np.testing.assert_allclose(value(4), 4 * (first + second), rtol=1e-5)


def test_log_softmax_by_state_by_hand():
  logits = jnp.log(jnp.array([[1.0, 3.0, 7.0, 2.0, 2.0]]))
  values = losses.log_softmax_by_state(logits, np.array([0, 0, 1, 2, 2], np.int32))
  np.testing.assert_allclose(
    values, np.log([[0.25, 0.75, 1, 0.5, 0.5]]), rtol=1e-6, atol=1e-7
  )
