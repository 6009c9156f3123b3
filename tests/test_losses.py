"""The separated softmax: values, exact blocking of gradients, extreme scores."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from ssil_jax import losses

NUM_CLASSES = 12
# (num_old, num_seen): first state, later states with unequal groups, all classes seen.
SPLITS = [(0, 1), (0, 4), (4, 6), (1, 11), (6, 12), (11, 12)]


def batch(num_old, num_seen, *, size=16, scale=3.0, seed=0):
  rng = np.random.default_rng((seed, num_old, num_seen))
  logits = (scale * rng.standard_normal((size, NUM_CLASSES))).astype(np.float32)
  # Both groups, whenever there are old classes.
  labels = np.arange(size) * 7 % num_seen
  return jnp.asarray(logits), jnp.asarray(labels, jnp.int32)


def separated(logits, labels, num_old, num_seen):
  return losses.separated_softmax_cross_entropy(logits, labels, num_old, num_seen)


def seen(logits, labels, num_old, num_seen):
  del num_old
  return losses.seen_softmax_cross_entropy(logits, labels, num_seen)


def competing(loss, label, num_old, num_seen):
  if loss is seen:
    return range(num_seen)
  return reference.own_group(label, num_old, num_seen)


def gradient(loss, logits, labels, num_old, num_seen):
  """[B, C]: each example's loss by its own logits."""
  return jax.grad(lambda x: jnp.sum(loss(x, labels, num_old, num_seen)))(logits)


@pytest.mark.parametrize(("num_old", "num_seen"), SPLITS)
@pytest.mark.parametrize("loss", [separated, seen])
def test_value_and_gradient_equal_the_loops(loss, num_old, num_seen):
  logits, labels = batch(num_old, num_seen)
  values = loss(logits, labels, num_old, num_seen)
  gradients = gradient(loss, logits, labels, num_old, num_seen)
  for i, label in enumerate(labels.tolist()):
    classes = competing(loss, label, num_old, num_seen)
    np.testing.assert_allclose(
      values[i],
      reference.softmax_cross_entropy(logits[i], label, classes),
      rtol=1e-5,
      atol=1e-6,
    )
    np.testing.assert_allclose(
      gradients[i],
      reference.softmax_cross_entropy_gradient(logits[i], label, classes),
      atol=1e-6,
    )


@pytest.mark.parametrize(("num_old", "num_seen"), SPLITS)
def test_equals_softmax_over_a_slice(num_old, num_seen):
  logits, labels = batch(num_old, num_seen)
  values = separated(logits, labels, num_old, num_seen)
  for i, label in enumerate(labels.tolist()):
    low, high = (0, num_old) if label < num_old else (num_old, num_seen)
    sliced = -jax.nn.log_softmax(logits[i, low:high])[label - low]
    np.testing.assert_allclose(values[i], sliced, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("num_old", "num_seen"), SPLITS)
def test_new_samples_do_not_touch_old_scores_nor_old_samples_new_ones(num_old, num_seen):
  logits, labels = batch(num_old, num_seen)
  gradients = np.asarray(gradient(separated, logits, labels, num_old, num_seen))
  is_old = np.asarray(labels) < num_old
  assert np.all(gradients[~is_old][:, :num_old] == 0)
  assert np.all(gradients[is_old][:, num_old:] == 0)
  # The gradient is there within the group, unless the group is a single class.
  assert num_seen - num_old == 1 or np.all(gradients[~is_old][:, num_old:num_seen] != 0)
  assert num_old <= 1 or np.all(gradients[is_old][:, :num_old] != 0)


@pytest.mark.parametrize(("num_old", "num_seen"), SPLITS)
@pytest.mark.parametrize("loss", [separated, seen])
def test_unseen_scores_get_no_gradient_and_change_nothing(loss, num_old, num_seen):
  logits, labels = batch(num_old, num_seen)
  gradients = np.asarray(gradient(loss, logits, labels, num_old, num_seen))
  assert np.all(gradients[:, num_seen:] == 0)
  louder = logits.at[:, num_seen:].set(1e4)
  np.testing.assert_array_equal(
    loss(logits, labels, num_old, num_seen), loss(louder, labels, num_old, num_seen)
  )


def test_fine_tuning_pushes_every_other_seen_score_down():
  # Equation (2) is positive for every j other than y: old scores sink with new samples.
  logits, labels = batch(4, 9)
  gradients = np.asarray(gradient(seen, logits, labels, 4, 9))
  for i, label in enumerate(labels.tolist()):
    others = [j for j in range(9) if j != label]
    assert np.all(gradients[i, others] > 0)
    assert gradients[i, label] < 0
  np.testing.assert_allclose(gradients.sum(axis=1), 0, atol=1e-6)


def test_without_old_classes_both_losses_are_the_same():
  logits, labels = batch(0, 5)
  np.testing.assert_array_equal(separated(logits, labels, 0, 5), seen(logits, labels, 0, 5))


def test_hand_worked():
  # Two old and two new classes. Old sample: log(1 + e^-1); new sample: log(e^2 + 1).
  logits = jnp.array([[1.0, 0.0, 5.0, 5.0], [9.0, 9.0, 2.0, 0.0]])
  values = separated(logits, jnp.array([0, 3]), 2, 4)
  np.testing.assert_allclose(values, np.log([1 + np.exp(-1), np.exp(2) + 1]), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("loss", [separated, seen])
@pytest.mark.parametrize("pattern", ["label high", "label low", "all high", "all low"])
def test_finite_and_exact_for_extreme_scores(loss, dtype, pattern):
  labels = jnp.array([1, 6], jnp.int32)
  rest, own = {
    "label high": (-1e4, 1e4),
    "label low": (1e4, -1e4),
    "all high": (1e4, 1e4),
    "all low": (-1e4, -1e4),
  }[pattern]
  logits = jnp.full((2, NUM_CLASSES), rest, dtype)
  logits = logits.at[jnp.arange(2), labels].set(own)
  values = np.asarray(loss(logits, labels, 4, 9), np.float64)
  gradients = np.asarray(gradient(loss, logits, labels, 4, 9), np.float64)
  assert np.all(np.isfinite(gradients))
  for i, label in enumerate(labels.tolist()):
    classes = competing(loss, label, 4, 9)
    expected = reference.softmax_cross_entropy(
      np.asarray(logits[i], np.float64), label, classes
    )
    np.testing.assert_allclose(values[i], expected, rtol=1e-6, atol=1e-3)
    blocked = [j for j in range(NUM_CLASSES) if j not in classes]
    assert np.all(gradients[i, blocked] == 0)


@pytest.mark.parametrize("loss", [separated, seen])
def test_bfloat16_scores_are_summed_in_float32(loss):
  logits, labels = batch(4, 9)
  logits = logits.astype(jnp.bfloat16)
  values = loss(logits, labels, 4, 9)
  assert values.dtype == jnp.float32
  np.testing.assert_array_equal(values, loss(logits.astype(jnp.float32), labels, 4, 9))


@pytest.mark.parametrize("loss", [separated, seen])
def test_jit_vmap_and_pmap_agree_with_one_compile_for_all_states(loss):
  num_devices = 4

  def value_and_gradient(logits, labels, num_old, num_seen):
    return (
      loss(logits, labels, num_old, num_seen),
      gradient(loss, logits, labels, num_old, num_seen),
    )

  jitted = jax.jit(value_and_gradient)
  for num_old, num_seen in SPLITS:
    logits, labels = batch(num_old, num_seen)
    args = (jnp.int32(num_old), jnp.int32(num_seen))
    plain = value_and_gradient(logits, labels, *args)
    shared = logits.reshape(num_devices, 4, -1), labels.reshape(num_devices, 4)
    spread = functools.partial(jax.tree.map, lambda x: np.stack([x] * num_devices))
    for name, result in {
      "jit": jitted(logits, labels, *args),
      "vmap": jax.vmap(value_and_gradient, (0, 0, None, None))(*shared, *args),
      "pmap": jax.pmap(value_and_gradient)(*shared, *spread(args)),
    }.items():
      for got, expected in zip(result, plain, strict=True):
        np.testing.assert_allclose(
          np.reshape(got, expected.shape), expected, atol=1e-6, err_msg=name
        )
  assert jitted._cache_size() == 1


def test_masked_logsumexp_equals_the_loop():
  rng = np.random.default_rng(0)
  logits = rng.standard_normal((8, 5)).astype(np.float32)
  mask = rng.random((8, 5)) < 0.5
  mask[:, 2] = True
  values = losses.masked_logsumexp(jnp.asarray(logits), jnp.asarray(mask))
  for i in range(8):
    total = sum(np.exp(np.float64(logits[i, j])) for j in range(5) if mask[i, j])
    np.testing.assert_allclose(values[i], np.log(total), rtol=1e-6)
