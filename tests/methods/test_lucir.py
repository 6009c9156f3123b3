"""LUCIR: its three losses, the fixed weights of old classes, the cosine head."""

import functools
import math

import finished_states
import jax
import jax.numpy as jnp
import method_reference as reference
import numpy as np
import pytest
from reference import softmax_cross_entropy

from ssil_jax.methods import METHODS, lucir
from ssil_jax.resnet import CosineHead, Outputs, ResNet18

LUCIR = METHODS["lucir"]
NUM_CLASSES, WIDTH = 8, 5
STATE_OF_CLASS = np.repeat(np.arange(4), 2)
jitted_loss = jax.jit(LUCIR.loss, static_argnums=1)


def unit_rows(x):
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def random_batch(num_seen, *, size=12, seed=0):
  """Cosines of all classes, features of student and teacher, labels of all seen."""
  rng = np.random.default_rng((seed, num_seen))
  cosines = rng.uniform(-1, 1, (size, NUM_CLASSES))
  features, teacher = 3 * rng.standard_normal((2, size, WIDTH))
  return cosines, features, teacher, (np.arange(size) * 5 % num_seen).tolist()


@functools.partial(jax.jit, static_argnums=0)
def batch_loss(config, cosines, scale, features, teacher, labels, num_old, num_seen):
  """The mean that training minimizes."""
  examples = finished_states.examples_of(
    Outputs(features, scale * cosines, scale),
    np.zeros(len(cosines)),
    finished_states.context_of(num_old, num_seen, num_teacher_classes=num_old),
    STATE_OF_CLASS,
    teacher=Outputs(teacher, jnp.zeros_like(cosines), jnp.ones(())),
  )
  counts = jnp.sum(jax.nn.one_hot(labels, NUM_CLASSES), axis=0)
  examples = examples._replace(labels=labels, class_counts=counts)
  return jnp.mean(LUCIR.loss(examples, config))


def test_less_forget_equals_the_loops():
  _, features, teacher, _ = random_batch(4)
  values = np.asarray(lucir.less_forget(jnp.asarray(features), jnp.asarray(teacher)))
  for i in range(len(features)):
    expected = reference.less_forget(features[i], teacher[i])
    assert values[i] == pytest.approx(expected, abs=1e-5)


def test_less_forget_by_hand():
  features = jnp.asarray([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [3.0, 4.0]])
  teacher = jnp.asarray([[5.0, 0.0], [1.0, 0.0], [7.0, 0.0], [1.0, 0.0]])
  np.testing.assert_allclose(
    lucir.less_forget(features, teacher), [0, 1, 2, 0.4], atol=1e-6
  )


def test_less_forget_does_not_train_the_teacher():
  _, features, teacher, _ = random_batch(4)
  by_teacher = jax.grad(lambda t: lucir.less_forget(jnp.asarray(features), t).sum())
  np.testing.assert_array_equal(by_teacher(jnp.asarray(teacher)), 0)


# Classes 0 and 1 are old, 2 to 4 new, 5 is unseen.
COSINES = [
  [0.6, 0.9, 0.3, 0.2, -0.5, 1.0],
  [0.1, 0.5, 0.4, -0.2, 0.3, 1.0],
  [0.9, 0.9, 0.1, 0.4, 0.4, 1.0],
]


@pytest.mark.parametrize(
  ("num_negatives", "expected"),
  [
    # Class 0 at .6: .5 - .6 + .3 and .5 - .6 + .2. Class 1 at .5: + .4 and + .3.
    # A new sample has no such loss.
    (2, [0.2 + 0.1, 0.4 + 0.3, 0]),
    (1, [0.2, 0.4, 0]),
    # The third negatives: .5 - .6 - .5 < 0 counts nothing; .5 - .5 - .2 < 0 neither.
    (3, [0.3, 0.7, 0]),
    # More negatives than new classes, or classes in all: as many as there are.
    (5, [0.3, 0.7, 0]),
    (50, [0.3, 0.7, 0]),
  ],
)
def test_margin_ranking_by_hand(num_negatives, expected):
  values = lucir.margin_ranking(
    jnp.asarray(COSINES),
    jnp.asarray([0, 1, 3]),
    finished_states.context_of(2, 5).classes,
    margin=0.5,
    num_negatives=num_negatives,
  )
  np.testing.assert_allclose(values, expected, atol=1e-6)


@functools.partial(jax.jit, static_argnames="num_negatives")
def ranking(cosines, labels, num_old, num_seen, *, num_negatives):
  """The sum of the margin losses, and each of them."""
  classes = finished_states.context_of(num_old, num_seen).classes
  values = lucir.margin_ranking(
    cosines, labels, classes, margin=0.4, num_negatives=num_negatives
  )
  return values.sum(), values


@pytest.mark.parametrize(("num_old", "num_seen"), [(2, 3), (2, 6), (6, 8), (1, 8)])
@pytest.mark.parametrize("num_negatives", [1, 2, 4])
def test_margin_ranking_equals_the_loops(num_old, num_seen, num_negatives):
  cosines, _, _, labels = random_batch(num_seen)
  (_, values), gradient = jax.device_get(
    jax.value_and_grad(ranking, has_aux=True)(
      jnp.float32(cosines),
      jnp.asarray(labels),
      num_old,
      num_seen,
      num_negatives=num_negatives,
    )
  )
  for i, label in enumerate(labels):
    expected = 0.0
    if label < num_old:
      expected = reference.margin_ranking(
        cosines[i], label, num_old, num_seen, 0.4, num_negatives
      )
    assert values[i] == pytest.approx(expected, abs=1e-5)
  assert np.isfinite(gradient).all()
  for i, label in enumerate(labels):
    others = [c for c in range(num_old) if c != label]
    np.testing.assert_array_equal(gradient[i, others], 0)
    np.testing.assert_array_equal(gradient[i, num_seen:], 0)
    if label >= num_old:
      np.testing.assert_array_equal(gradient[i], 0)


@pytest.mark.parametrize(("num_old", "num_seen"), [(2, 4), (6, 8), (2, 7), (4, 5)])
@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_loss_equals_the_loops(num_old, num_seen, scale):
  cosines, features, teacher, labels = random_batch(num_seen)
  config = finished_states.config_of(
    "lucir", lucir_lambda=5.0, lucir_margin=0.3, lucir_negatives=2
  )
  value = batch_loss(
    config,
    *map(jnp.float32, (cosines, scale, features, teacher)),
    jnp.asarray(labels),
    num_old,
    num_seen,
  )
  expected = reference.lucir(
    cosines, scale, features, teacher, labels, num_old, num_seen, 5.0, 0.3, 2
  )
  assert value == pytest.approx(expected, rel=1e-4)


def test_gradients_equal_those_of_the_loops():
  num_old, num_seen, scale = 4, 6, 3.0
  cosines, features, teacher, labels = random_batch(num_seen, size=5)
  config = finished_states.config_of("lucir")

  def loops(cosines, scale, features):
    return reference.lucir(
      cosines, scale, features, teacher, labels, num_old, num_seen, 10.0, 0.5, 2
    )

  by_cosines, by_scale, by_features = jax.grad(batch_loss, argnums=(1, 2, 3))(
    config,
    *map(jnp.float32, (cosines, scale, features, teacher)),
    jnp.asarray(labels),
    num_old,
    num_seen,
  )
  close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
  close(
    by_cosines, reference.numerical_gradient(lambda x: loops(x, scale, features), cosines)
  )
  close(
    by_scale,
    reference.numerical_gradient(lambda x: loops(cosines, float(x), features), scale),
  )
  close(
    by_features, reference.numerical_gradient(lambda x: loops(cosines, scale, x), features)
  )
  np.testing.assert_array_equal(by_cosines[:, num_seen:], 0)


def test_the_less_forget_weight_grows_with_the_root_of_new_over_old():
  # Features at right angles to the teacher's, lambda_base 10, 2 old and 8 new classes:
  # 10 sqrt(4) = 20. New samples only, so there is no margin loss.
  outputs = finished_states.outputs_of(logits=np.zeros((2, 10)), features=[[1, 0], [0, 1]])
  teacher = finished_states.outputs_of(logits=np.zeros((2, 10)), features=[[0, 1], [1, 0]])
  examples = finished_states.examples_of(
    outputs,
    [2, 9],
    finished_states.context_of(2, 10, num_teacher_classes=2),
    [0, 0, *[1] * 8],
    teacher=teacher,
  )
  losses = jitted_loss(examples, finished_states.config_of("lucir", lucir_lambda=10.0))
  np.testing.assert_allclose(losses, 20 + math.log(10), rtol=1e-5)


def test_first_state_is_the_plain_cross_entropy():
  cosines, features, _, labels = random_batch(4)
  nothing = np.zeros_like(features)  # the teacher's
  config = finished_states.config_of("lucir")
  arrays = [jnp.float32(x) for x in (cosines, 4.0, features, nothing)]
  value, (by_cosines, by_features) = jax.value_and_grad(batch_loss, argnums=(1, 3))(
    config, *arrays, jnp.asarray(labels), 0, 4
  )
  entropies = [
    softmax_cross_entropy(4 * row, label, range(4))
    for row, label in zip(cosines, labels, strict=True)
  ]
  assert value == pytest.approx(np.mean(entropies), rel=1e-5)
  np.testing.assert_array_equal(by_features, 0)
  assert np.isfinite(by_cosines).all()


def test_two_devices_make_the_mean_of_the_whole_batch():
  num_old, num_seen = 4, 6
  cosines, features, teacher, labels = random_batch(num_seen)
  # The first device has all but one of the exemplars.
  order = np.argsort(labels, kind="stable")
  config = finished_states.config_of("lucir")
  context = finished_states.context_of(num_old, num_seen, num_teacher_classes=num_old)
  means = []
  for share in (order[:6], order[6:]):
    examples = finished_states.examples_of(
      finished_states.outputs_of(
        logits=2 * cosines[share], features=features[share], scale=2
      ),
      np.asarray(labels)[share],
      context,
      STATE_OF_CLASS,
      teacher=finished_states.outputs_of(
        logits=0 * cosines[share], features=teacher[share]
      ),
      counted=labels,
    )
    means.append(float(jnp.mean(jitted_loss(examples, config))))
  expected = reference.lucir(
    cosines, 2, features, teacher, labels, num_old, num_seen, 10.0, 0.5, 2
  )
  assert np.mean(means) == pytest.approx(expected, rel=1e-4)


def test_a_batch_without_exemplars_has_no_margin_loss():
  cosines, features, teacher, _ = random_batch(6)
  labels = [4, 5] * 6
  value = batch_loss(
    finished_states.config_of("lucir"),
    *map(jnp.float32, (cosines, 2.0, features, teacher)),
    jnp.asarray(labels),
    4,
    6,
  )
  expected = reference.lucir(cosines, 2, features, teacher, labels, 4, 6, 10.0, 0.5, 2)
  assert value == pytest.approx(expected, rel=1e-4)


def test_old_weights_are_fixed_and_nothing_else_is():
  rng = np.random.default_rng(0)

  def params():
    return {
      "stem": {"kernel": rng.standard_normal((3, 2)).astype(np.float32)},
      "head": {
        "kernel": rng.standard_normal((WIDTH, NUM_CLASSES)).astype(np.float32),
        "scale": np.float32(rng.uniform(1, 9)),
      },
    }

  before, after = params(), params()
  for num_old in (0, 3, 6):
    projected = LUCIR.project(
      after, before, finished_states.context_of(num_old, num_old + 2)
    )
    assert jax.tree.structure(projected) == jax.tree.structure(after)
    kernel = np.asarray(projected["head"]["kernel"])
    np.testing.assert_array_equal(
      kernel[:, :num_old], before["head"]["kernel"][:, :num_old]
    )
    np.testing.assert_array_equal(kernel[:, num_old:], after["head"]["kernel"][:, num_old:])
    assert projected["head"]["scale"] == after["head"]["scale"]
    np.testing.assert_array_equal(projected["stem"]["kernel"], after["stem"]["kernel"])


# The network.


def head(features, kernel, scale):
  params = {"kernel": jnp.float32(kernel), "scale": jnp.float32(scale)}
  return CosineHead(kernel.shape[1]).apply({"params": params}, jnp.float32(features))


def random_head():
  rng = np.random.default_rng(3)
  return rng.standard_normal((7, WIDTH)), rng.standard_normal((WIDTH, NUM_CLASSES))


def test_cosine_logits_equal_the_loops():
  features, kernel = random_head()
  logits, scale = jax.device_get(head(features, kernel, 4.5))
  assert scale == 4.5
  for i in range(len(features)):
    for c in range(NUM_CLASSES):
      expected = 4.5 * reference.cosine(features[i], kernel[:, c])
      assert logits[i, c] == pytest.approx(expected, abs=1e-5)


def test_lengths_of_features_and_weights_do_not_matter():
  features, kernel = random_head()
  longer = features * np.geomspace(0.01, 100, len(features))[:, None]
  wider = kernel * np.geomspace(0.01, 100, NUM_CLASSES)[None, :]
  logits = head(features, kernel, 2)[0]
  np.testing.assert_allclose(head(longer, wider, 2)[0], logits, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(head(-features, kernel, 2)[0], -logits, rtol=1e-4, atol=1e-6)


def test_features_of_zero_have_finite_gradients():
  _, kernel = random_head()

  def total(features, kernel, scale):
    return jnp.sum(jnp.exp(head(features, kernel, scale)[0]))

  gradients = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(
    jnp.zeros((2, WIDTH)), jnp.float32(kernel), jnp.float32(2)
  )
  for gradient in gradients:
    assert np.isfinite(gradient).all()
  by_feature = jax.jit(jax.grad(lambda f: lucir.less_forget(f, 1 + f).sum()))(
    jnp.zeros((2, WIDTH))
  )
  assert np.isfinite(by_feature).all()


@functools.cache
def network_outputs(*, cosine_head):
  """Outputs on random images and the parameters, with a scale that is not 1."""
  network = ResNet18(
    num_classes=NUM_CLASSES, width=4, small_images=True, cosine_head=cosine_head
  )
  images = jax.random.normal(jax.random.key(1), (6, 8, 8, 3))
  init = jax.jit(
    lambda key: network.init(key, images[:1], train=False),
    compiler_options={"xla_backend_optimization_level": 0},
  )
  variables = init(jax.random.key(0))
  first = variables["params"]
  if cosine_head:
    variables["params"]["head"]["scale"] = jnp.float32(2.5)
  apply = jax.jit(lambda v, x: network.apply(v, x, train=False))
  return jax.device_get((apply(variables, images), first))


def test_the_network_with_a_cosine_head_has_cosines_as_logits():
  outputs, params = network_outputs(cosine_head=True)
  assert set(params["head"]) == {"kernel", "scale"}  # no bias
  assert outputs.scale == 2.5
  for feature, row in zip(outputs.features, outputs.logits, strict=True):
    for c in range(NUM_CLASSES):
      expected = 2.5 * reference.cosine(feature, params["head"]["kernel"][:, c])
      assert row[c] == pytest.approx(expected, abs=1e-4)


def test_only_the_network_with_a_cosine_head_leaves_the_last_relu_out():
  with_cosines, _ = network_outputs(cosine_head=True)
  linear, params = network_outputs(cosine_head=False)
  assert with_cosines.features.min() < 0
  assert linear.features.min() >= 0
  assert linear.scale == 1
  np.testing.assert_allclose(
    linear.logits,
    linear.features @ params["head"]["kernel"] + params["head"]["bias"],
    rtol=1e-4,
    atol=1e-5,
  )


def test_the_scale_starts_at_one():
  variables = CosineHead(3).init(jax.random.key(0), jnp.ones((1, 4)))
  assert variables["params"]["scale"] == 1
