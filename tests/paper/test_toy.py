"""Figures 2 and 3: what they show follows from equations (2) and (3)."""

import numpy as np

from ssil_jax.paper import toy


def test_gradients_of_a_batch_at_equal_scores():
  ft, ssil = toy.score_gradients().values()
  # Equation (2) with p = 1/8: every image pulls its own score up and pushes the others.
  labels = [0, *[4, 5, 6, 7] * 2]
  np.testing.assert_allclose(ft, 1 / 8 - np.eye(8)[labels], atol=1e-6)
  # 8 new images and the one exemplar push an old class that has no exemplar.
  np.testing.assert_allclose(ft.sum(axis=0)[1:4], 9 / 8, atol=1e-6)
  # Equation (3): each group on its own, and exactly nothing across.
  labels = [0, 1, 2, 3, *[4, 5, 6, 7] * 2]
  own = (np.arange(8)[None, :] < 4) == (np.array(labels)[:, None] < 4)
  np.testing.assert_allclose(ssil, np.where(own, 1 / 4, 0) - np.eye(8)[labels], atol=1e-6)
  assert (ssil[~own] == 0).all()
  np.testing.assert_allclose(ssil.sum(axis=0), 0, atol=1e-6)


def test_ft_gives_old_regions_away_and_ssil_keeps_them():
  plane = toy.classify_plane(seed=0)
  joint, ft, ssil = plane.classifiers
  assert joint.top1 > ssil.top1 > ft.top1 + 0.1
  assert ft.error_old_as_new > 0.5 > 5 * ft.error_new_as_old
  assert ssil.error_old_as_new < 0.3
  old_share = [(one.regions < toy.NUM_OLD).mean() for one in plane.classifiers]
  assert old_share[1] < old_share[0] / 2 < old_share[2]
  assert len(plane.exemplars) == 9
  assert (plane.labels[plane.exemplars] < toy.NUM_OLD).all()
