"""WA: aligned and clipped weights of the head."""

import jax
import jax.numpy as jnp
import method_reference as reference
import numpy as np
import pytest
from finished_states import context_of

from ssil_jax.methods import METHODS
from ssil_jax.methods.wa import align_head


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
  kernel = np.random.default_rng(num_old).standard_normal((7, 12))
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
  clipped = METHODS["wa"].project(params, params, context_of(1, 2))
  np.testing.assert_array_equal(clipped["head"]["kernel"], [[1, 0, 0], [0, 3, 0]])
  np.testing.assert_array_equal(clipped["head"]["bias"], before["head"]["bias"])
  np.testing.assert_array_equal(clipped["stem_conv"]["kernel"], -1.5 * np.ones((2, 2)))
