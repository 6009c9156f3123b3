"""Every method's loss against its equations as loops, in all kinds of states."""

import functools
import itertools

import jax
import jax.numpy as jnp
import method_reference as reference
import numpy as np
import pytest
from finished_states import config_of, context_of, examples_of, outputs_of

from ssil_jax.methods import METHODS, cgan_features, fearnet
from ssil_jax.methods.base import Replayed, Sizes
from ssil_jax.methods.feature_replay import old_features

# States of unequal size; the last is still to come.
GROUPS = [[0, 1, 2], [3], [4, 5], [6, 7]]
STATE_OF_CLASS = np.array([0, 0, 0, 1, 2, 2, 3, 3], np.int32)
NUM_CLASSES, WIDTH, NUM_NEW, NUM_DRAWN = 8, 3, 4, 2
SCALE = 2.5
KERNEL = np.float32(np.random.default_rng(0).standard_normal((WIDTH, NUM_CLASSES)))
DRAWS = {"fearnet": fearnet.draw, "cgan_features": cgan_features.draw}
FIRST, LATER = (0, 3, 0), [(3, 4, 3), (4, 6, 4)]
# Others than the defaults.
SETTINGS = {
  "dgr": {"dgr_units": 5, "dgr_latent": 2, "dgr_deviation": 0.5},
  "der": {"der_alpha": 0.3, "der_beta": 0.7},
  "lucir": {"lucir_lambda": 5.0, "lucir_margin": 0.3, "lucir_negatives": 2},
  "podnet": {"podnet_spatial": 3.0, "podnet_flat": 1.5, "podnet_margin": 0.4},
}
# One method for each loss.
NAMES = [*{METHODS[name].loss: name for name in reversed(METHODS)}.values()]
TAUGHT = [name for name in NAMES if METHODS[name].has_teacher]


def settings_of(name, **changes):
  settings = {"batch_size_new": NUM_NEW, "batch_size_memory": NUM_DRAWN}
  if hasattr(config_of(name).method_settings, "temperature"):
    settings["temperature"] = 3.0
  return config_of(name, **settings, **SETTINGS.get(name, {}), **changes)


def batch_of(num_old, num_seen, num_teacher_classes):
  """New samples, then two draws of exemplars; the first state's class 2 is not in it."""
  rng = np.random.default_rng(num_seen)
  labels = [num_old, num_seen - 1, num_seen - 1, num_old] if num_old else [0, 1, 1, 0]
  if num_old:
    labels += [num_old - 1, 1, 0, num_old - 1]
  size = len(labels)
  logits, teacher, stored = 2 * rng.standard_normal((3, size, NUM_CLASSES))
  expert = 2 * np.random.default_rng(num_seen + 50).standard_normal((size, NUM_CLASSES))
  features, teacher_features = rng.standard_normal((2, size, WIDTH))
  shapes = [(size, 2, 3, 2), (size, 1, 2, 2)]
  stages, teacher_stages = (
    [np.float32(rng.standard_normal(shape)) for shape in shapes] for _ in range(2)
  )
  if not num_old:
    teacher, teacher_features = 0 * teacher, 0 * teacher_features
    teacher_stages = [0 * stage for stage in teacher_stages]
  pixels, replayed_pixels = np.float32(rng.standard_normal((2, size, 8, 8, 3)))
  replayed_logits = np.float32(2 * rng.standard_normal((2, size, NUM_CLASSES)))
  line = (3, 4, 0.6, -1.5) if num_old == 4 else (0, 3, 1.7, 0.8)
  return reference.Batch(
    logits=np.float32(logits).tolist(),
    features=np.float32(features).tolist(),
    scale=SCALE,
    teacher=np.float32(teacher).tolist(),
    teacher_features=np.float32(teacher_features).tolist(),
    labels=labels,
    num_old=num_old,
    num_seen=num_seen,
    num_teacher_classes=num_teacher_classes,
    groups=GROUPS,
    num_new=NUM_NEW,
    num_drawn=NUM_DRAWN,
    stored=np.float32(stored).tolist(),
    line=line,
    constant=np.float32(logits).tolist(),
    constant_scale=SCALE,
    stages=stages,
    teacher_stages=teacher_stages,
    expert=np.float32(expert).tolist() if num_old else None,
    phase=1 if num_old else 0,
    class_images=[7, 5, 1, 3, 20, 12][:num_seen],
    pixels=pixels,
    replayed=(replayed_pixels, *replayed_logits),
    generator=random_generator(rng),
  )


def random_generator(rng):
  """As `methods.generator` has it, of 5 units and a code of 2; its posterior is a point."""
  parts = {}
  for part, sizes in (("encoder", (192, 5, 5, 4)), ("decoder", (2, 5, 5, 192))):
    parts[part] = {"classes": np.float32(rng.standard_normal((NUM_CLASSES, 5)))}
    for number, shape in enumerate(itertools.pairwise(sizes)):
      kernel, bias = 0.3 * rng.standard_normal(shape), rng.standard_normal(shape[1])
      parts[part][f"layer{number}"] = {
        "kernel": np.float32(kernel),
        "bias": np.float32(bias),
      }
  # So that its noise is nothing.
  parts["encoder"]["layer2"]["kernel"][:, 2:] = 0
  parts["encoder"]["layer2"]["bias"][2:] = -60
  return parts


def stats_of(name, batch):
  """Each method's statistics, made of what the loops are given."""
  sizes = Sizes(
    NUM_CLASSES,
    WIDTH,
    num_records=20,
    memory_size=9,
    params={},
    image_size=8,
    config=settings_of(name),
  )
  stats = METHODS[name].init_stats(sizes)
  if name == "bic":
    low, high, stats["alpha"][low:high], stats["beta"][low:high] = batch.line
  if name == "dgr":
    stats["generator"] = batch.generator
  if name == "fearnet":
    stats["means"] += np.arange(NUM_CLASSES)[:, None]
    stats["deviations"] += 0.5
  if name == "der":
    # Record 19 - i of sample i is in row 8 - i.
    size = len(batch.labels)
    stats["row"][19 - np.arange(size)] = 8 - np.arange(size)
    stats["logits"][8 - np.arange(size)] = batch.stored
  return stats


def examples(name, batch, share=None):
  """What the loss is given of a batch, or of a device's share of it."""
  share = np.arange(len(batch.labels)) if share is None else np.asarray(share)
  names = ("logits", "features", "teacher", "teacher_features", "labels")
  logits, features, teacher, teacher_features, labels = (
    np.asarray(getattr(batch, field))[share] for field in names
  )
  stages, known_stages = (
    [stage[share] for stage in every] if METHODS[name].stage_outputs else ()
    for every in (batch.stages, batch.teacher_stages)
  )
  known = outputs_of(logits=teacher, features=teacher_features, stages=known_stages)
  method, stats, replayed = METHODS[name], stats_of(name, batch), None
  if method.replay and batch.num_old:
    pixels, of_network, of_teacher = (np.float32(x)[share] for x in batch.replayed)
    replayed = Replayed(
      jnp.asarray(pixels), outputs_of(logits=of_network), outputs_of(logits=of_teacher)
    )
  return examples_of(
    outputs_of(logits=logits, features=features, scale=batch.scale, stages=stages),
    labels,
    context_of(
      batch.num_old,
      batch.num_seen,
      num_teacher_classes=batch.num_teacher_classes,
      stats=stats,
    )._replace(
      phase=jnp.int32(batch.phase),
      class_images=jnp.float32(batch.class_images + [0] * (NUM_CLASSES - batch.num_seen)),
    ),
    STATE_OF_CLASS,
    teacher=known if method.has_teacher else None,
    pixels=jnp.asarray(np.float32(batch.pixels)[share]),
    own=method.init_own({}, stats, settings_of(name)),
    replayed=replayed,
    positions=share,
    records=19 - share,
    counted=batch.labels,
    expert=batch.expert and outputs_of(logits=np.asarray(batch.expert)[share]),
  )


def with_drawn(name, batch):
  """The batch, with what the head says of the features that are drawn beside it."""
  if name not in DRAWS:
    return batch
  given = examples(name, batch)
  drawn = jax.jit(old_features, static_argnums=0)(DRAWS[name], given.keys, given.context)
  labels, features = jax.device_get(drawn)
  assert {*labels.tolist()} <= {*range(max(batch.num_old, 1))}
  return batch._replace(drawn_logits=features @ KERNEL, drawn_labels=labels.tolist())


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compiled(name, config, given):
  def mean(outputs, teacher):
    now = given._replace(
      outputs=outputs,
      teacher=teacher,
      state_of_class=STATE_OF_CLASS,
      classify=lambda features: features @ KERNEL,
    )
    losses = METHODS[name].loss(now, config)
    assert losses.shape == now.labels.shape
    assert losses.dtype == jnp.float32
    return jnp.mean(losses)

  return jax.value_and_grad(mean, (0, 1))(given.outputs, given.teacher)


def value_and_gradients(name, given, **changes):
  """The mean that training minimizes, its gradients by network's and teacher's outputs."""
  return jax.device_get(
    _compiled(name, settings_of(name, **changes), given._replace(state_of_class=None))
  )


def test_every_method_has_its_equation():
  assert {*reference.LOSSES} == {*METHODS}
  for name, method in METHODS.items():
    (same,) = [other for other in NAMES if METHODS[other].loss == method.loss]
    assert reference.LOSSES[name] is reference.LOSSES[same]


# In the balanced phases of EEIL and PODNet, the teacher knows the new classes, too.
BALANCED = (4, 6, 6)
RELEASED = [
  ("lucir", {"lucir_weighting": "released"}, (FIRST, *LATER)),
  ("podnet", {"podnet_loss": "released"}, (FIRST, *LATER)),
  ("eeil", {"eeil_distillation": "released"}, (FIRST, *LATER, BALANCED)),
]


@pytest.mark.parametrize(
  ("name", "changes", "classes"),
  [(name, {}, classes) for name in NAMES for classes in (FIRST, *LATER)]
  + [(name, {}, BALANCED) for name in ("eeil", "podnet")]
  + [(name, changes, classes) for name, changes, every in RELEASED for classes in every],
)
def test_value_and_gradients_equal_the_loops(name, changes, classes):
  batch, own = batch_of(*classes), settings_of(name, **changes).method_settings
  batch = with_drawn(name, batch)
  value, (outputs, teacher) = value_and_gradients(name, examples(name, batch), **changes)

  def loop(field, x):
    return reference.LOSSES[name](batch._replace(**{field: x}), own)

  assert value == pytest.approx(loop("labels", batch.labels), rel=1e-5)
  for field in ("features", "logits", "scale"):
    expected = reference.numerical_gradient(
      functools.partial(loop, field), getattr(batch, field)
    )
    gradient = getattr(outputs, field)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-5, err_msg=field)
  for place, gradient in enumerate(outputs.stages):

    def with_stage(x, place=place):
      return loop("stages", [*batch.stages[:place], x, *batch.stages[place + 1 :]])

    expected = reference.numerical_gradient(with_stage, batch.stages[place])
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-5)
  # Exactly nothing for unseen classes, nor for the teacher.
  assert not outputs.logits[:, batch.num_seen :].any()
  assert not any(leaf.any() for leaf in jax.tree.leaves(teacher))
  if METHODS[name].steps_like_softmax_first and classes == FIRST:
    assert value == pytest.approx(reference.LOSSES["ft"](batch, own), rel=1e-5)


@pytest.mark.parametrize("phase", [0, 2])
@pytest.mark.parametrize("classes", LATER)
def test_the_other_phases_of_gd_equal_the_loops(phase, classes):
  batch = batch_of(*classes)._replace(phase=phase)
  if phase == 0:  # it trains the expert
    batch = batch._replace(expert=None)
  changes = {"gd_confidence": 0.4}
  value, (outputs, _) = value_and_gradients("gd", examples("gd", batch), **changes)

  def loop(logits):
    own = settings_of("gd", **changes).method_settings
    return reference.gd(batch._replace(logits=logits), own)

  assert value == pytest.approx(loop(batch.logits), rel=1e-5)
  expected = reference.numerical_gradient(loop, batch.logits)
  np.testing.assert_allclose(outputs.logits, expected, rtol=1e-3, atol=1e-5)
  # An expert is trained among its own classes alone.
  assert outputs.logits[:, : batch.num_old].any() == (phase == 2)


@pytest.mark.parametrize("name", NAMES)
def test_unseen_logits_change_nothing(name):
  batch = batch_of(*LATER[1])
  louder = [row[:6] + [60.0] * 2 for row in batch.logits]
  jax.tree.map(
    np.testing.assert_array_equal,
    value_and_gradients(name, examples(name, batch)),
    value_and_gradients(name, examples(name, batch._replace(logits=louder))),
  )


@pytest.mark.parametrize("name", TAUGHT)
def test_the_teacher_matters_but_not_in_what_it_was_not_taught(name):
  given = examples(name, batch_of(*LATER[1]))
  value, _ = value_and_gradients(name, given)

  def with_teacher(change):
    # Of generated images alone, if there are any.
    if given.replayed is None:
      changed = given._replace(teacher=change(given.teacher))
    else:
      teacher = change(given.replayed.teacher)
      changed = given._replace(replayed=given.replayed._replace(teacher=teacher))
    return value_and_gradients(name, changed)[0]

  other = with_teacher(
    lambda teacher: teacher._replace(
      features=teacher.features.at[:, 0].add(2.0), logits=teacher.logits.at[:, 1].add(2.0)
    )
  )
  assert abs(other - value) > 1e-4
  loud = with_teacher(
    lambda teacher: teacher._replace(logits=teacher.logits.at[:, 4:].add(9.0))
  )
  assert loud == value


@pytest.mark.parametrize("name", NAMES)
def test_two_devices_make_the_mean_of_the_whole_batch(name):
  # The first has three of four exemplars, and not all draws in the order of the batch.
  batch = with_drawn(name, batch_of(*LATER[1]))
  shares = [[6, 0, 5, 4], [1, 7, 2, 3]]
  means = [value_and_gradients(name, examples(name, batch, share))[0] for share in shares]
  expected = reference.LOSSES[name](batch, settings_of(name).method_settings)
  assert np.mean(means) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
  "labels",
  [
    [4, 5, 5, 4],  # no exemplars
    [5, 5, 5, 5, 3, 0, 0, 1],  # a new class is missing
    [4, 5, 5, 5, 5, 4, 5, 2],  # one exemplar
  ],
)
@pytest.mark.parametrize("name", ["er_ace", "lucir"])
def test_batches_of_any_mixture(name, labels):
  batch = batch_of(*LATER[1])._replace(labels=labels)
  share = range(len(labels))
  value, (outputs, _) = value_and_gradients(name, examples(name, batch, share))
  own = settings_of(name).method_settings
  assert value == pytest.approx(reference.LOSSES[name](batch, own), rel=1e-5)
  if name == "er_ace":
    incoming = {label for label in labels if label >= 4}
    for label, row in zip(labels, outputs.logits, strict=True):
      competing = incoming if label in incoming else set(range(6))
      # A single class competes with none.
      expected = competing if len(competing) > 1 else set()
      assert {*np.flatnonzero(row).tolist()} == expected


def test_er_ace_by_hand():
  # Equal logits: two new classes in the batch, log 2; exemplars among six seen, log 6.
  batch = batch_of(*LATER[1])._replace(logits=np.zeros((8, NUM_CLASSES)))
  value, _ = value_and_gradients("er_ace", examples("er_ace", batch))
  assert value == pytest.approx(np.log(2) + np.log(6), rel=1e-6)


def test_der_by_hand():
  # Equal logits: log 6 of each new sample and of the second draw. The first draw is of
  # classes 3 and 1; its logits are 2 from the stored ones in class 0, and far in classes
  # that were not known then: 4 / 4 and 4 / 3, a mean over those that were.
  batch = batch_of(*LATER[1])
  logits = np.zeros((8, NUM_CLASSES))
  logits[4:6] = batch.stored[4:6]
  logits[4:6, 0] += 2
  logits[4, 4:] += 50
  logits[5, 3:] += 50
  given = examples("der", batch._replace(logits=logits))
  value, (outputs, _) = value_and_gradients("der", given)
  expected = (1 + 0.7) * np.log(6) + 0.3 * (4 / 4 + 4 / 3) / 2
  assert value == pytest.approx(expected, rel=1e-5)
  assert np.flatnonzero(outputs.logits[4:6].round(5)).tolist() == [0, NUM_CLASSES]
  assert not outputs.logits[4, 4:].any()
  assert not outputs.logits[5, 3:].any()
