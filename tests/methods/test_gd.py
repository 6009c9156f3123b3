"""GD: its losses, teachers and weights by hand; what each phase trains, and on what."""

import finished_states
import jax
import jax.numpy as jnp
import method_reference as reference
import numpy as np
import pytest

from ssil_jax.methods import METHODS, gd
from ssil_jax.methods.base import Replayed

GD = METHODS["gd"]


def logits_of(*probabilities):
  return jnp.log(jnp.float32([probabilities]))


def test_the_ensemble_of_two_old_classes_and_a_new_one_by_hand():
  # P is 0.7 for its best class; the 0.3 that are left go to two others, half to each.
  found = gd.ensemble(logits_of(0.7, 0.3, 0.9, 1), logits_of(0.5, 0.5, 1, 1), 2, 3)
  np.testing.assert_allclose(found, [[0.7, 0.15, 0.15, 0]], rtol=1e-5)
  # With two new classes they get 0.3 * 2 / 3, in proportion to C, and the old one 0.1.
  found = gd.ensemble(logits_of(0.3, 0.7, 1, 1), logits_of(1, 1, 0.8, 0.2), 2, 4)
  np.testing.assert_allclose(found, [[0.1, 0.7, 0.16, 0.04]], rtol=1e-5)


@pytest.mark.parametrize(("num_old", "num_seen"), [(1, 2), (1, 4), (3, 4), (4, 6)])
def test_the_ensemble_equals_the_loops(num_old, num_seen):
  of_p, of_c = 2 * np.random.default_rng(num_seen).standard_normal((2, 5, 7))
  found = gd.ensemble(jnp.float32(of_p), jnp.float32(of_c), num_old, num_seen)
  np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
  for row, old, new in zip(found, of_p, of_c, strict=True):
    expected = reference.ensemble(old[:num_old], new[num_old:num_seen])
    np.testing.assert_allclose(row[:num_seen], expected, rtol=1e-4, atol=1e-6)
    assert not row[num_seen:].any()


def test_indecision_by_hand():
  # Probabilities 1/4 and 3/4 of the two classes that count, and of one class, which is all.
  expected = -(np.log(1 / 4) + np.log(3 / 4)) / 2 - np.log(2)
  found = gd.indecision(logits_of(0.5, 0.25, 0.75, 9), 1, 3)
  np.testing.assert_allclose(found, [expected], rtol=1e-5)
  np.testing.assert_allclose(gd.indecision(logits_of(0.5, 0.2), 1, 2), [0], atol=1e-6)


def test_distillation_by_hand():
  # At T = 2, logits of probabilities 0.64 and 0.36 become 4/7 and 3/7; equal ones stay.
  found = gd.interval_distillation(
    logits_of(0.5, 0.5, 9), logits_of(0.64, 0.36, 9), 0, 2, temperature=2.0
  )
  np.testing.assert_allclose(found, [4 * np.log(2)], rtol=1e-5)
  found = gd.interval_distillation(
    logits_of(9, 0.64, 0.36), logits_of(9, 1, 1), 1, 3, temperature=2.0
  )
  np.testing.assert_allclose(found, [-2 * (np.log(4 / 7) + np.log(3 / 7))], rtol=1e-5)


def test_weights_give_each_class_the_same_gradient():
  # 2, 6 and 40 images: 48 / 3 of each, were they equal.
  labels, images = jnp.arange(3), jnp.float32([2, 6, 40, 0])
  found = gd.balancing_weights(labels, images, 0, 3)
  np.testing.assert_allclose(found, [8, 16 / 6, 16 / 40], rtol=1e-6)
  np.testing.assert_allclose(found * images[:3], 16, rtol=1e-6)
  # Among the old classes alone, 4 of each; images of others count as they are.
  found = gd.balancing_weights(labels, images, 0, 2)
  np.testing.assert_allclose(found, [2, 4 / 6, 1], rtol=1e-6)
  # A class without any image has none to weigh.
  assert np.isfinite(gd.balancing_weights(jnp.array([3]), images, 0, 4)).all()


@pytest.mark.parametrize(
  ("expert", "phase", "trained"),
  [(None, 0, "everything"), ({}, 1, "everything"), ({}, 2, "the head")],
)
def test_what_is_trained(expert, phase, trained):
  def params(value):
    return {"stem": {"kernel": np.full(2, value)}, "head": {"kernel": np.full(3, value)}}

  context = finished_states.context_of(2, 3, num_teacher_classes=2)
  context = context._replace(expert=expert, phase=jnp.int32(phase))
  found = GD.project(params(1.0), params(0.0), context)
  expected = params(1.0)
  if trained == "the head":
    expected["stem"] = params(0.0)["stem"]
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_how_a_later_state_is_trained():
  expert, network, fine_tuning = GD.phases(finished_states.config_of("gd"), 3)
  assert [p.new_expert for p in (expert, network, fine_tuning)] == [False, True, False]
  assert network.starts_from_teacher
  assert not fine_tuning.starts_from_teacher
  alone, *_ = GD.phases(finished_states.config_of("gd", gd_confidence=0.0), 3)
  assert alone.sampling.name == "new only"


# Images without labels -------------------------------------------------------------------

# Rows of logits of the network, of P and of C: six images with labels, and four without.
LABELED, UNLABELED = np.split(
  3 * np.random.default_rng(3).standard_normal((10, 3, 5)).astype(np.float32), [6]
)
LABELS = np.array([3, 2, 0, 3, 1, 3], np.int32)
IMAGES = [4, 9, 30, 50]
OLD, NEW, SEEN = range(2), range(2, 4), range(4)


def loss_of(phase, labeled, labels, unlabeled):
  """What a device with these images reports."""
  config = finished_states.config_of("gd", gd_confidence=0.7, temperature=3.0)
  outputs, teacher, expert, *of_unlabeled = (
    finished_states.outputs_of(logits=rows[:, n])
    for rows in (labeled, unlabeled)
    for n in range(3)
  )
  if phase == 0:
    expert = of_unlabeled[2] = None
  context = finished_states.context_of(2, 4, num_teacher_classes=2)._replace(
    phase=jnp.int32(phase), class_images=jnp.float32([*IMAGES, 0])
  )
  examples = finished_states.examples_of(
    outputs,
    labels,
    context,
    np.array([0, 0, 1, 1, 2]),
    teacher=teacher,
    counted=LABELS,
    expert=expert,
    unlabeled=Replayed(None, *of_unlabeled),
  )
  return float(jax.jit(lambda: jnp.mean(GD.loss(examples, config)))())


def expected_loss(phase):
  """As the docstring of the method has it, image by image."""
  of_labels, of_q, of_p, of_c, of_new, of_others = ([] for _ in range(6))
  labels = [*LABELS, *[None] * len(UNLABELED)]
  for label, rows in zip(labels, [*LABELED, *UNLABELED], strict=True):
    logits, of_old, of_expert = rows.astype(np.float64)

    def weight(classes, label=label):
      is_weighed = phase == 2 and label is not None
      return reference.balancing_weight(label, IMAGES, classes) if is_weighed else 1

    def distance(teacher, classes, logits=logits):
      return 3.0**2 * reference.softened_cross_entropy(logits, teacher, classes, 3.0)

    if label in NEW:
      of_new.append(-reference.log_softmax(logits, NEW)[label])
    else:
      of_others.append(0.7 * reference.undecided(logits, NEW))
    log_p = reference.log_softmax(logits, SEEN)
    if label is None:
      q = reference.ensemble(of_old[:2], of_expert[2:4])
      of_q.append(-sum(q[k] * log_p[k] for k in SEEN))
    else:
      of_labels.append(-weight(SEEN) * log_p[label])
    of_p.append(weight(OLD) * distance(of_old, OLD) * 2 / 4)
    of_c.append(weight(NEW) * distance(of_expert, NEW) * 2 / 4)
  if phase == 0:
    return np.mean(of_new) + np.mean(of_others)
  return np.mean(of_labels + of_q) + np.mean(of_p) + np.mean(of_c)


@pytest.mark.parametrize("phase", [0, 1, 2])
def test_losses_with_unlabeled_images_equal_the_loops(phase):
  expected = expected_loss(phase)
  assert loss_of(phase, LABELED, LABELS, UNLABELED) == pytest.approx(expected, rel=1e-5)
  # Two devices of equal shares, the first of which has no exemplar.
  shares = [0, 1, 3], [2, 4, 5]
  found = [
    loss_of(phase, LABELED[share], LABELS[share], UNLABELED[2 * n : 2 * n + 2])
    for n, share in enumerate(map(np.array, shares))
  ]
  assert np.mean(found) == pytest.approx(expected, rel=1e-5)


def test_which_phases_draw_unlabeled_images():
  def drawn(**changes):
    config = finished_states.config_of("gd", unlabeled_dir="images", **changes)
    assert GD.unlabeled_dir(config) == "images"
    phases = [*GD.phases(config, 1), *GD.phases(config, 2)]
    return [phase.sampling.draws_unlabeled for phase in phases]

  assert drawn() == [True, True, True, True]
  assert drawn(gd_confidence=0.0) == [False, False, True, True]
