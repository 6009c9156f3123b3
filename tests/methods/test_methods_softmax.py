"""Methods with softmax losses: losses and gradients against loops, and predictions."""

import functools

import jax
import jax.numpy as jnp
import method_reference as reference
import numpy as np
import pytest
from finished_states import config_of, context_of

from ssil_jax.methods import METHODS
from ssil_jax.methods.base import Examples
from ssil_jax.resnet import Outputs

# States of unequal size; the last is still to come.
GROUPS = [[0, 1, 2], [3], [4, 5, 6, 7], [8, 9], [10, 11]]
STATE_OF_CLASS = np.array([0, 0, 0, 1, 2, 2, 2, 2, 3, 3, 4, 4], np.int32)
NUM_CLASSES = 12
# (num_old, num_seen, num_teacher_classes) of the states after the first one.
LATER = [(3, 4, 3), (4, 8, 4), (8, 10, 8), (10, 12, 10)]
NAMES = list(reference.LOSSES)
DISTILLING = ["ssil_tkd", "icarl", "lwf", "eeil", "wa", "bic"]


def correction(low=0, high=0, alpha=1.0, beta=0.0):
  """BiC's statistics: a line for the classes low, ..., high - 1."""
  is_new = (np.arange(NUM_CLASSES) >= low) & (np.arange(NUM_CLASSES) < high)
  return {
    "alpha": jnp.asarray(np.where(is_new, alpha, 1), jnp.float32),
    "beta": jnp.asarray(np.where(is_new, beta, 0), jnp.float32),
  }


def examples_of(
  name, num_old, num_seen, num_teacher_classes, *, stats=None, seed=0, zeros=False
):
  """A batch of old and new classes, of new ones alone for LwF; `zeros`: no teacher yet."""
  rng = np.random.default_rng((seed, num_old, num_seen))
  size = 6
  labels = rng.integers(num_old, num_seen, size)
  if num_old and name != "lwf":
    labels[::2] = rng.integers(0, num_old, size // 2)

  def outputs():
    return Outputs(
      features=jnp.asarray(rng.standard_normal((size, 5)), jnp.float32),
      logits=jnp.asarray(2 * rng.standard_normal((size, NUM_CLASSES)), jnp.float32),
    )

  student, teacher = outputs(), outputs()
  if zeros:
    teacher = jax.tree.map(jnp.zeros_like, teacher)
  return Examples(
    labels=jnp.asarray(labels, jnp.int32),
    positions=jnp.arange(size, dtype=jnp.int32),
    records=jnp.arange(size, dtype=jnp.int32),
    outputs=student,
    teacher=teacher if METHODS[name].has_teacher else None,
    context=context_of(
      num_old,
      num_seen,
      num_teacher_classes=num_teacher_classes,
      stats=stats or (correction() if name == "bic" else {}),
    ),
    class_counts=jnp.asarray(np.bincount(labels, minlength=NUM_CLASSES), jnp.float32),
    state_of_class=STATE_OF_CLASS,
  )


@functools.cache
def compiled(name, **values):
  """(logits, teacher's logits, examples' arrays) -> losses and their gradients."""
  method, config = METHODS[name], config_of(name, **values)

  def losses(logits, teacher_logits, features, examples):
    examples = Examples(*examples, state_of_class=STATE_OF_CLASS)
    examples = examples._replace(outputs=Outputs(features, logits))
    if examples.teacher is not None:
      teacher = examples.teacher._replace(logits=teacher_logits)
      examples = examples._replace(teacher=teacher)
    result = method.loss(examples, config)
    return result.sum(), result

  return jax.jit(jax.grad(losses, (0, 1, 2), has_aux=True))


def losses_and_gradients(name, examples, **values):
  """Losses [B], and gradients by the logits, the teacher's logits and the features."""
  teacher = examples.outputs if examples.teacher is None else examples.teacher
  gradients, losses = compiled(name, **values)(
    examples.outputs.logits,
    teacher.logits,
    examples.outputs.features,
    tuple(examples)[:-1],  # the state of each class is no traced array
  )
  assert losses.shape == examples.labels.shape
  assert losses.dtype == jnp.float32
  return losses, *gradients


def check(name, examples, classes, *, teacher=None, **values):
  """Loss and gradient of every sample equal the loop's; nothing flows to the teacher."""
  num_old, num_seen, num_teacher_classes = classes
  if teacher is None and examples.teacher is not None:
    teacher = np.asarray(examples.teacher.logits, np.float64).tolist()
  losses, by_logits, by_teacher, by_features = losses_and_gradients(
    name, examples, **values
  )
  for i, label in enumerate(examples.labels.tolist()):
    one = functools.partial(
      reference.LOSSES[name],
      teacher=teacher and teacher[i],
      label=label,
      num_old=num_old,
      num_seen=num_seen,
      num_teacher_classes=num_teacher_classes,
      groups=GROUPS,
      temperature=values.get("temperature", 2.0),
    )
    scores = examples.outputs.logits[i].tolist()
    np.testing.assert_allclose(losses[i], one(scores), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
      by_logits[i], reference.numerical_gradient(one, scores), rtol=1e-4, atol=1e-5
    )
  assert np.all(np.asarray(by_logits)[:, num_seen:] == 0)
  assert np.all(np.asarray(by_teacher) == 0)
  assert np.all(np.asarray(by_features) == 0)


@pytest.mark.parametrize("classes", LATER)
@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradient_in_later_states(name, classes):
  examples = examples_of(name, *classes)
  check(name, examples, classes)
  is_old = np.asarray(examples.labels) < classes[0]
  assert (~is_old).any()
  assert is_old.any() or name == "lwf"


@pytest.mark.parametrize("zeros", [True, False])
@pytest.mark.parametrize("num_seen", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_the_first_state_is_plain_softmax_over_the_seen(name, num_seen, zeros):
  examples = examples_of(name, 0, num_seen, 0, zeros=zeros)
  losses, by_logits, by_teacher, _ = losses_and_gradients(name, examples)
  for i, label in enumerate(examples.labels.tolist()):
    plain = functools.partial(reference.softmax, label=label, num_seen=num_seen)
    scores = examples.outputs.logits[i].tolist()
    np.testing.assert_allclose(losses[i], plain(scores), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
      by_logits[i], reference.numerical_gradient(plain, scores), rtol=1e-4, atol=1e-5
    )
  assert np.all(np.asarray(by_logits)[:, num_seen:] == 0)
  assert np.all(np.asarray(by_teacher) == 0)


@pytest.mark.parametrize("name", NAMES)
def test_unseen_logits_do_not_matter(name):
  examples = examples_of(name, 4, 8, 4)
  louder = examples._replace(
    outputs=examples.outputs._replace(logits=examples.outputs.logits.at[:, 8:].set(60))
  )
  for one, other in zip(
    losses_and_gradients(name, examples), losses_and_gradients(name, louder), strict=True
  ):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", NAMES)
def test_whether_the_teacher_matters(name):
  assert METHODS[name].has_teacher == (name in DISTILLING)
  if name in DISTILLING:
    examples = examples_of(name, 4, 8, 4)
    teacher = examples.teacher._replace(logits=examples.teacher.logits.at[:, 1].add(2.0))
    before, *_ = losses_and_gradients(name, examples)
    after, *_ = losses_and_gradients(name, examples._replace(teacher=teacher))
    assert np.all(np.abs(np.asarray(after - before)) > 1e-4)
    # What it says of classes that it was not taught does not.
    teacher = examples.teacher._replace(logits=examples.teacher.logits.at[:, 4:].add(9.0))
    after, *_ = losses_and_gradients(name, examples._replace(teacher=teacher))
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("name", DISTILLING)
def test_the_temperature_is_the_configs(name):
  examples = examples_of(name, 4, 8, 4)
  check(name, examples, (4, 8, 4), temperature=3.0)


def test_the_default_temperature_is_two():
  for name in DISTILLING:
    assert config_of(name).method_settings.temperature == 2.0


@pytest.mark.parametrize("classes", [(4, 8, 8), (8, 10, 10)])
def test_eeil_is_also_taught_the_new_classes_in_its_balanced_phase(classes):
  check("eeil", examples_of("eeil", *classes), classes)


# With a line for the newest classes of the state before, to which T = 2 comes after.
@pytest.mark.parametrize(
  ("classes", "line"),
  [((4, 8, 4), (3, 4, 0.6, -1.5)), ((8, 10, 8), (4, 8, 1.7, 0.8))],
)
def test_bic_corrects_the_teacher_only(classes, line):
  low, high, alpha, beta = line
  examples = examples_of("bic", *classes, stats=correction(*line))
  teacher = [
    reference.corrected(row, range(low, high), np.float32(alpha), np.float32(beta))
    for row in examples.teacher.logits.tolist()
  ]
  check("bic", examples, classes, teacher=teacher)
  plain, *_ = losses_and_gradients("bic", examples_of("bic", *classes))
  losses, *_ = losses_and_gradients("bic", examples)
  assert np.abs(np.asarray(losses - plain)).min() > 1e-4


@pytest.mark.parametrize("name", ["bic", "wa"])
def test_weight_of_distillation_by_hand(name):
  # 4 of 8 classes are old: half and half. All logits 0, so q = 1/4 each and
  # log(8) / 2 + log(4) / 2.
  examples = examples_of(name, 4, 8, 4, zeros=True)
  examples = examples._replace(outputs=examples.teacher)
  losses, *_ = losses_and_gradients(name, examples)
  np.testing.assert_allclose(losses, (np.log(8) + np.log(4)) / 2, rtol=1e-6)


def test_other_losses_by_hand():
  # All logits 0; 3 + 1 old classes, 4 new ones.
  def value(name, num_teacher_classes=4):
    examples = examples_of(name, 4, 8, num_teacher_classes)
    zeros = jax.tree.map(jnp.zeros_like, examples.outputs)
    examples = examples._replace(outputs=zeros)
    if examples.teacher is not None:
      examples = examples._replace(teacher=zeros)
    return losses_and_gradients(name, examples)[0]

  for name in ("ft", "ft_rp", "joint", "icarl"):
    np.testing.assert_allclose(value(name), np.log(8), rtol=1e-6)
  for name in ("ssil", "ft_ss", "ssil_tkd"):
    np.testing.assert_allclose(value(name), np.log(4), rtol=1e-6)
  np.testing.assert_allclose(value("lwf"), np.log(4) + np.log(3), rtol=1e-6)
  np.testing.assert_allclose(value("eeil"), np.log(8) + np.log(3), rtol=1e-6)
  # Its balanced phase adds the four new classes' softmax.
  np.testing.assert_allclose(value("eeil", 8), np.log(8) + np.log(3) + np.log(4), rtol=1e-6)


# Predictions.


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("icarl", "bic")])
def test_prediction_by_logits(name):
  outputs = examples_of("ft", 4, 8, 4).outputs
  scores = METHODS[name].predict(outputs, context_of(4, 8), config_of(name))
  np.testing.assert_array_equal(scores[:, :8], outputs.logits[:, :8])
  assert np.all(np.asarray(scores)[:, 8:] == -np.inf)


def test_bic_predicts_with_the_newest_classes_corrected():
  outputs = examples_of("bic", 4, 8, 4).outputs
  stats = correction(4, 8, alpha=0.5, beta=-1.0)
  scores = METHODS["bic"].predict(outputs, context_of(4, 8, stats=stats), config_of("bic"))
  np.testing.assert_array_equal(scores[:, :4], outputs.logits[:, :4])
  np.testing.assert_allclose(scores[:, 4:8], outputs.logits[:, 4:8] / 2 - 1, rtol=1e-6)
  assert np.all(np.asarray(scores)[:, 8:] == -np.inf)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "wa"])
def test_the_others_leave_the_parameters(name):
  params = {"head": {"kernel": np.ones((1, 2), np.float32)}}
  assert METHODS[name].align is None
  assert METHODS[name].project(params, {}, context_of(1, 2)) is params
