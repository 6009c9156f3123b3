"""Methods with softmax losses against whole-loss loops; BiC's line, WA's head, phases."""

import functools

import jax
import jax.numpy as jnp
import method_reference as reference
import numpy as np
import pytest

from ssil_jax import memory
from ssil_jax.config import make_config
from ssil_jax.methods import METHODS
from ssil_jax.methods.base import Examples, FinishedState, PhaseContext, SeenClasses
from ssil_jax.methods.bic import correct, fit_correction
from ssil_jax.methods.wa import align_head
from ssil_jax.resnet import Outputs
from ssil_jax.sampling import Pool

# States of unequal size; the last is still to come.
GROUPS = [[0, 1, 2], [3], [4, 5, 6, 7], [8, 9], [10, 11]]
STATE_OF_CLASS = np.array([0, 0, 0, 1, 2, 2, 2, 2, 3, 3, 4, 4], np.int32)
NUM_CLASSES = 12
# (num_old, num_seen, num_teacher_classes) of the states after the first one.
LATER = [(3, 4, 3), (4, 8, 4), (8, 10, 8), (10, 12, 10)]
NAMES = list(reference.LOSSES)
DISTILLING = ["ssil_tkd", "icarl", "lwf", "eeil", "wa", "bic"]


def config_of(name, **values):
  method = METHODS[name]
  return make_config(values, method)


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
    context=PhaseContext(
      SeenClasses(jnp.int32(num_old), jnp.int32(num_seen), jnp.int32(num_teacher_classes)),
      None,
      stats or (correction() if name == "bic" else {}),
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
def test_the_first_states_loss_does_not_depend_on_the_teacher(name):
  ones = losses_and_gradients(name, examples_of(name, 0, 3, 0, zeros=True))
  others = losses_and_gradients(name, examples_of(name, 0, 3, 0, zeros=False))
  for one, other in zip(ones, others, strict=True):
    np.testing.assert_array_equal(one, other)


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


def context(num_old, num_seen, stats=None):
  classes = SeenClasses(jnp.int32(num_old), jnp.int32(num_seen), jnp.int32(0))
  return PhaseContext(classes, None, stats)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("icarl", "bic")])
def test_prediction_by_logits(name):
  outputs = examples_of("ft", 4, 8, 4).outputs
  scores = METHODS[name].predict(outputs, context(4, 8, {}), config_of(name))
  np.testing.assert_array_equal(scores[:, :8], outputs.logits[:, :8])
  assert np.all(np.asarray(scores)[:, 8:] == -np.inf)


def test_bic_predicts_with_the_newest_classes_corrected():
  outputs = examples_of("bic", 4, 8, 4).outputs
  stats = correction(4, 8, alpha=0.5, beta=-1.0)
  scores = METHODS["bic"].predict(outputs, context(4, 8, stats), config_of("bic"))
  np.testing.assert_array_equal(scores[:, :4], outputs.logits[:, :4])
  np.testing.assert_allclose(scores[:, 4:8], outputs.logits[:, 4:8] / 2 - 1, rtol=1e-6)
  assert np.all(np.asarray(scores)[:, 8:] == -np.inf)


def test_correct_by_hand():
  stats = {"alpha": jnp.array([1.0, 2.0, 1.0]), "beta": jnp.array([0.0, -1.0, 0.0])}
  logits = jnp.array([[3.0, 3.0, 3.0], [-1.0, -1.0, 0.0]])
  np.testing.assert_array_equal(correct(logits, stats), [[3, 5, 3], [-1, -3, 0]])


# BiC's second stage.


def solve(function, low, high):
  """Where a rising function crosses 0, by bisection."""
  for _ in range(100):
    middle = (low + high) / 2
    low, high = (middle, high) if function(middle) < 0 else (low, middle)
  return low


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def test_correction_by_hand_scale():
  # One old class with logit 0, one new one with logit 1, in 3 of 4 images the new one.
  # alpha 1 + beta = log 3 fits that; beta costs, so alpha does all of it.
  logits = np.array([[0.0, 1.0]] * 4)
  alpha, beta = fit_correction(logits, np.array([1, 1, 0, 1]), 1)
  np.testing.assert_allclose([alpha, beta], [np.log(3), 0], atol=1e-5)


def test_correction_by_hand_symmetrical():
  # Logits 1 and -1 that are right in 3 of 4 images each: beta 0, and
  # sigmoid(alpha) = 3/4.
  logits = np.array([[0.0, 1.0]] * 4 + [[0.0, -1.0]] * 4)
  alpha, beta = fit_correction(logits, np.array([1, 1, 1, 0, 0, 0, 0, 1]), 1)
  np.testing.assert_allclose([alpha, beta], [np.log(3), 0], atol=1e-5)


def test_correction_by_hand_offset():
  # The new class's logits are all 0, so alpha changes nothing: sigmoid(beta) + 0.1 beta
  # = 3/4, with the penalty's part.
  logits = np.zeros((4, 2))
  alpha, beta = fit_correction(logits, np.array([1, 1, 0, 1]), 1)
  expected = solve(lambda b: sigmoid(b) + 0.1 * b - 0.75, 0, 5)
  np.testing.assert_allclose([alpha, beta], [1, expected], atol=1e-5)
  alpha, beta = fit_correction(logits, np.array([1, 0, 0, 1]), 1)
  np.testing.assert_allclose([alpha, beta], [1, 0], atol=1e-5)


def test_scale_of_a_correction_is_not_negative():
  # As the first, but the new one in 1 of 4: alpha + beta would be -log 3, of which beta
  # would be 0; alpha stops at 0 and beta does what it is worth.
  logits = np.array([[0.0, 1.0]] * 4)
  alpha, beta = fit_correction(logits, np.array([0, 1, 0, 0]), 1)
  expected = solve(lambda b: sigmoid(b) + 0.1 * b - 0.25, -5, 0)
  np.testing.assert_allclose([alpha, beta], [0, expected], atol=1e-5)


def test_a_scale_is_undone():
  # Labels drawn from the logits' own softmax; twice the new classes' logits ask for 1/2.
  rng = np.random.default_rng(0)
  logits = 2 * rng.standard_normal((4000, 4))
  labels = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
  logits[:, 2:] *= 2
  alpha, beta = fit_correction(logits, labels, 2)
  assert alpha == pytest.approx(0.5, abs=0.05)
  assert beta == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize(
  ("num_old", "num_seen", "bias"), [(3, 5, 2.0), (1, 6, 4.0), (6, 7, -1.0)]
)
def test_no_other_correction_is_better(num_old, num_seen, bias):
  rng = np.random.default_rng((num_old, num_seen))
  labels = np.arange(24) % num_seen
  logits = rng.standard_normal((24, num_seen)).astype(np.float32)
  logits[np.arange(24), labels] += 1
  logits[:, num_old:] += bias
  found = fit_correction(logits, labels, num_old)
  loss = functools.partial(
    reference.correction_loss,
    logits=logits.tolist(),
    labels=labels.tolist(),
    num_old=num_old,
  )
  assert found[0] > 0
  np.testing.assert_allclose(reference.numerical_gradient(loss, found), 0, atol=1e-5)
  lowest = loss(found)
  assert lowest < loss((1.0, 0.0)) - 1e-3
  for alpha in np.linspace(0, 3, 13):
    for beta in np.linspace(-4, 4, 17):
      assert loss((alpha, beta)) >= lowest - 1e-9
  for alpha in (-0.01, 0, 0.01):
    for beta in (-0.01, 0, 0.01):
      assert loss((found[0] + alpha, found[1] + beta)) >= lowest - 1e-9


def test_correction_of_separable_logits_is_finite():
  # Any larger alpha is better, if only by so much.
  logits = np.array([[0.0, 1.0], [0.0, -1.0]] * 3)
  alpha, beta = fit_correction(logits, np.array([1, 0] * 3), 1)
  assert np.isfinite([alpha, beta]).all()
  assert alpha > 5
  assert beta == pytest.approx(0, abs=1e-3)


def finished(num_old, num_seen, pool, labels, logits, stats):
  def extract(records, measure, *, test=False):
    assert not test
    outputs = Outputs(jnp.zeros((len(records), 5)), jnp.asarray(logits[records]))
    here = context(num_old, num_seen, stats)
    return np.asarray(measure(outputs, jnp.asarray(labels[records]), here, None))

  return FinishedState(
    num_first=2,
    num_old=num_old,
    num_seen=num_seen,
    pool=pool,
    labels=labels,
    test_labels=labels,
    memory=memory.empty(),
    stats=stats,
    extract=extract,
  )


def test_bic_fits_to_what_it_held_out():
  # 20 records of each of 4 classes, of which 2 are old with 20 exemplars: a tenth, so the
  # first 2 of each class.
  method, config = METHODS["bic"], config_of("bic")
  labels = np.repeat(np.arange(4, dtype=np.int32), 20)
  ranks = np.tile(np.arange(20, dtype=np.int32), 4)
  pool = Pool(
    np.arange(40, 80), np.arange(40), ranks[40:], ranks[:40], labels[40:], labels[:40]
  )
  rng = np.random.default_rng(0)
  logits = rng.standard_normal((80, 6)).astype(np.float32)
  logits[:, 2:] += 1.5
  # A line of the state before is not kept; neither does it count while this one is fitted.
  before = {
    "alpha": np.array([1, 0.5, 1, 1, 1, 1], np.float32),
    "beta": np.array([0, -3, 0, 0, 0, 0], np.float32),
  }
  copy = {name: value.copy() for name, value in before.items()}
  stats = method.stats(finished(2, 4, pool, labels, logits, before), config)
  held_out = [0, 1, 20, 21, 40, 41, 60, 61]
  loss = functools.partial(
    reference.correction_loss,
    logits=logits[held_out, :4].tolist(),
    labels=labels[held_out].tolist(),
    num_old=2,
  )
  alpha, beta = float(stats["alpha"][2]), float(stats["beta"][2])
  np.testing.assert_array_equal(stats["alpha"], np.float32([1, 1, alpha, alpha, 1, 1]))
  np.testing.assert_array_equal(stats["beta"], np.float32([0, 0, beta, beta, 0, 0]))
  slope_alpha, slope_beta = reference.numerical_gradient(loss, [alpha, beta])
  assert abs(slope_beta) < 1e-5
  assert abs(slope_alpha) < 1e-5 if alpha > 0 else slope_alpha > 0
  for name, value in copy.items():
    np.testing.assert_array_equal(before[name], value)
    assert stats[name].dtype == value.dtype
  after = finished(2, 4, pool, labels, logits, stats)
  assert method.describe(after, config) == {"alpha": alpha, "beta": beta}


def test_bic_fits_without_classes_of_one_image():
  # Old classes of 1 and 20 images, new ones of 1, 3 and 20; three of twenty are held out.
  method, config = METHODS["bic"], config_of("bic", bic_held_out=0.15)
  sizes = [1, 20, 1, 3, 20]
  labels = np.repeat(np.arange(5, dtype=np.int32), sizes)
  ranks = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])
  pool = Pool(
    np.arange(21, 45), np.arange(21), ranks[21:], ranks[:21], labels[21:], labels[:21]
  )
  logits = np.random.default_rng(0).standard_normal((45, 6)).astype(np.float32)
  before = {"alpha": np.ones(6, np.float32), "beta": np.zeros(6, np.float32)}
  stats = method.stats(finished(2, 5, pool, labels, logits, before), config)
  held_out = [1, 2, 3, 22, 23, 25, 26, 27]
  alpha, beta = fit_correction(logits[held_out, :5], labels[held_out], 2)
  assert np.isfinite([alpha, beta]).all()
  np.testing.assert_allclose(stats["alpha"], [1, 1, alpha, alpha, alpha, 1], rtol=1e-6)
  np.testing.assert_allclose(stats["beta"], [0, 0, beta, beta, beta, 0], rtol=1e-6)


def test_bic_has_nothing_to_correct_after_the_first_state():
  method = METHODS["bic"]
  labels = np.repeat(np.arange(2, dtype=np.int32), 20)
  pool = Pool(np.arange(40), np.zeros(0, np.int64))
  before = {"alpha": np.ones(6, np.float32), "beta": np.zeros(6, np.float32)}
  logits = np.ones((40, 6), np.float32)
  stats = method.stats(finished(0, 2, pool, labels, logits, before), config_of("bic"))
  np.testing.assert_array_equal(stats["alpha"], np.ones(6))
  np.testing.assert_array_equal(stats["beta"], np.zeros(6))


# WA's head.


def head(kernel):
  kernel = np.array(kernel, np.float32)
  return {
    "head": {"kernel": kernel, "bias": np.arange(kernel.shape[1], dtype=np.float32) - 2},
    "stem_conv": {"kernel": np.full((2, 2), -1.5, np.float32)},
  }


# Columns of length 3 and 5, 8, and one of a class not seen yet.
KERNEL = [[3.0, 3.0, 0.0, 7.0], [0.0, 4.0, 8.0, 7.0]]


def test_weights_are_aligned_by_hand():
  params = head(KERNEL)
  # ((3 + 5) / 2) / 8 = 1/2.
  aligned = align_head(params, 2, 3)
  np.testing.assert_allclose(
    aligned["head"]["kernel"], [[3, 3, 0, 7], [0, 4, 4, 7]], rtol=1e-6
  )
  np.testing.assert_array_equal(aligned["head"]["bias"], params["head"]["bias"])
  np.testing.assert_array_equal(
    aligned["stem_conv"]["kernel"], params["stem_conv"]["kernel"]
  )
  np.testing.assert_array_equal(params["head"]["kernel"], np.float32(KERNEL))
  assert METHODS["wa"].align is align_head


def test_one_factor_for_all_new_classes():
  # Lengths 10 and 1, 3: gamma 10 / 2 = 5. The new ones stay unequal.
  aligned = align_head(head([[6.0, 1.0, 0.0], [8.0, 0.0, 3.0]]), 1, 3)
  np.testing.assert_allclose(aligned["head"]["kernel"], [[6, 5, 0], [8, 0, 15]], rtol=1e-6)


@pytest.mark.parametrize(("num_old", "num_seen"), [(3, 4), (4, 8), (8, 10), (10, 12)])
def test_alignment_equals_the_loop(num_old, num_seen):
  kernel = np.random.default_rng(num_old).standard_normal((7, NUM_CLASSES))
  params = head(kernel)
  aligned = align_head(params, num_old, num_seen)["head"]["kernel"]
  gamma = reference.alignment_factor(params["head"]["kernel"], num_old, num_seen)
  expected = params["head"]["kernel"].astype(np.float64)
  expected[:, num_old:num_seen] *= gamma
  np.testing.assert_allclose(aligned, expected, rtol=1e-5)
  assert aligned.dtype == np.float32
  assert reference.alignment_factor(aligned, num_old, num_seen) == pytest.approx(1)


def test_the_first_states_head_stays():
  params = head(KERNEL)
  aligned = align_head(params, 0, 3)
  jax.tree.map(np.testing.assert_array_equal, aligned, head(KERNEL))


def test_wa_clips_the_heads_weights_only():
  before = head([[1.0, -2.0, 0.0], [-0.5, 3.0, -4.0]])
  params = jax.tree.map(jnp.asarray, before)
  clipped = METHODS["wa"].project(params, params, context(1, 2, {}))
  np.testing.assert_array_equal(clipped["head"]["kernel"], [[1, 0, 0], [0, 3, 0]])
  np.testing.assert_array_equal(clipped["head"]["bias"], before["head"]["bias"])
  np.testing.assert_array_equal(clipped["stem_conv"]["kernel"], -1.5 * np.ones((2, 2)))


@pytest.mark.parametrize("name", [n for n in NAMES if n != "wa"])
def test_the_others_leave_the_parameters(name):
  params = head([[1.0, -2.0]])
  assert METHODS[name].align is None
  assert METHODS[name].project(params, head([[3.0, 3.0]]), context(1, 2, {})) is params


# Phases. (sampling, epochs, learning rate, milestones, drop, whether the teacher changes)


def plain(sampling, epochs, rate, milestones, drop=0.1):
  return [(sampling, epochs, rate, milestones, drop, False)]


PAPER_FIRST = (100, 0.1, (40, 80))
LONG = (100, 0.1, (30, 60, 80, 90))
PHASES = {
  "ssil": {
    1: plain("RP", *PAPER_FIRST),
    2: plain("RP", 20, 0.05, (8, 16)),
    5: plain("RP", 20, 0.02, (8, 16)),
  },
  "ft": {
    1: plain("shuffled", *PAPER_FIRST),
    2: plain("shuffled", 25, 0.05, (10, 20)),
    10: plain("shuffled", 25, 0.01, (10, 20)),
  },
  "ft_ss": {
    1: plain("shuffled", *PAPER_FIRST),
    4: plain("shuffled", 25, 0.025, (10, 20)),
  },
  "ft_rp": {1: plain("RP", *PAPER_FIRST), 4: plain("RP", 25, 0.025, (10, 20))},
  "il2m": {
    1: plain("shuffled", *PAPER_FIRST),
    2: plain("shuffled", 25, 0.05, (10, 20)),
  },
  "joint": {1: plain("all data", *PAPER_FIRST), 2: plain("all data", 25, 0.05, (10, 20))},
  "joint_full": {1: plain("all data", *PAPER_FIRST)},
  "ssil_tkd": {
    1: plain("RP", *PAPER_FIRST),
    2: plain("RP", 100, 0.05, (40, 80)),
    5: plain("RP", 100, 0.02, (40, 80)),
  },
  "lwf": {1: plain("new only", *PAPER_FIRST), 2: plain("new only", 25, 0.05, (10, 20))},
  "icarl": {t: plain("shuffled", 60, 0.1, (20, 30, 40, 50), 0.2) for t in (1, 2, 5)},
  "eeil": {
    1: plain("shuffled", 60, 0.1, (15, 30, 45)),
    **{
      t: [
        ("shuffled", 40, 0.1, (10, 20, 30), 0.1, False),
        ("balanced", 30, 0.01, (10, 20), 0.1, True),
      ]
      for t in (2, 5)
    },
  },
  "bic": {t: plain("held-out", *LONG) for t in (1, 2, 5)},
  "wa": {t: plain("shuffled", *LONG) for t in (1, 2, 5)},
  "lucir": {t: plain("shuffled", 90, 0.1, (30, 60)) for t in (1, 2, 5)},
  "er_ace": {1: plain("RP", *PAPER_FIRST), 2: plain("RP", 20, 0.05, (8, 16))},
  "der": {1: plain("RP twice", *PAPER_FIRST), 2: plain("RP twice", 20, 0.05, (8, 16))},
}


def test_the_phases_are_those_of_methods_there_are():
  assert set(PHASES) <= set(METHODS)


@pytest.mark.parametrize(("name", "t"), [(n, t) for n in PHASES for t in PHASES[n]])
def test_phases(name, t):
  phases = METHODS[name].phases(config_of(name), t)
  assert len(phases) == len(PHASES[name][t])
  for phase, expected in zip(phases, PHASES[name][t], strict=True):
    sampling, epochs, rate, milestones, drop, new_teacher = expected
    assert phase.sampling.name == sampling
    assert phase.epochs == epochs
    assert phase.learning_rate == pytest.approx(rate)
    assert phase.milestones == milestones
    assert phase.drop == drop
    assert phase.new_teacher == new_teacher


def test_learning_rates_of_icarl_by_epoch():
  (phase,) = METHODS["icarl"].phases(config_of("icarl"), 3)
  rates = {0: 0.1, 19: 0.1, 20: 0.02, 30: 0.004, 40: 0.0008, 49: 0.0008, 50: 0.00016}
  for epoch, rate in rates.items():
    assert phase.learning_rate_at(epoch) == pytest.approx(rate)


@pytest.mark.parametrize("name", list(METHODS))
def test_batch_sizes_and_exemplars(name):
  config = config_of(name)
  assert config.batch_size_new == (256 if name in ("bic", "wa") else 128)
  herding = ("eeil", "wa", "lucir")
  assert config.selection == ("herding" if name in herding else "ring")
  assert config.num_states == (1 if name == "joint_full" else 5)


@pytest.mark.parametrize("name", list(METHODS))
def test_milestones_follow_the_epochs(name):
  # A tenth of the training drops the rate at a tenth of the epochs.
  method = METHODS[name]
  whole = config_of(name)
  config = config_of(name, epochs_first=whole.epochs_first // 10, epochs=whole.epochs)
  for a, b in zip(
    method.phases(whole, 1)[0].milestones,
    method.phases(config, 1)[0].milestones,
    strict=True,
  ):
    assert b == a // 10
