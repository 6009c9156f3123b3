"""GEM and A-GEM: parts of a batch, projections by hand, the dual against SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finished_states import config_of, context_of, examples_of, outputs_of
from scipy.optimize import nnls

from ssil_jax.methods.agem import new_and_memory, project
from ssil_jax.methods.gem import constrain, least_weights, new_and_states

STATE_OF_CLASS = np.array([0, 0, 1, 2, 2, 3])
LABELS = np.array([3, 4, 3, 0, 1, 1, 2, 0])  # in state 3: three new ones, and exemplars
SHARES = ([0, 3, 6, 4], [1, 2, 5, 7])  # of two devices


@pytest.mark.parametrize(
  ("parts", "num_old", "members"),
  [
    (new_and_memory, 3, [[0, 1, 2], [3, 4, 5, 6, 7]]),
    (new_and_memory, 0, [range(8), []]),
    (new_and_states, 3, [[0, 1, 2], [3, 4, 5, 7], [6], []]),
    (new_and_states, 0, [range(8), [], [], []]),
  ],
)
def test_the_parts_of_all_devices_add_up_to_means(parts, num_old, members):
  values = np.random.default_rng(0).standard_normal(8)
  sums = 0
  for share in SHARES:
    examples = examples_of(
      outputs_of(logits=np.zeros((4, 6))),
      LABELS[share],
      context_of(num_old, 5),
      STATE_OF_CLASS,
      counted=LABELS,
    )
    sums = sums + np.asarray(parts(examples, None)) @ values[share]
  expected = [values[list(part)].mean() if len(part) else 0 for part in members]
  np.testing.assert_allclose(sums, expected, rtol=1e-5, atol=1e-7)


def tree_of(*vectors):
  """Gradients of 3 numbers as a tree, one after the other."""
  rows = np.float32(vectors)
  return {"a": rows[:, :2].reshape(-1, 2, 1), "b": rows[:, 2]}


def vector_of(tree):
  return [*np.ravel(tree["a"]).tolist(), float(tree["b"])]


@pytest.mark.parametrize(
  ("gradient", "reference", "expected"),
  [
    # <g, r> = -6, <r, r> = 4: g + 1.5 r.
    ((3, 1, 2), (-2, 0, 0), (0, 1, 2)),
    ((1, 2, 3), (0, -1, -1), (1, -0.5, 0.5)),
    ((3, 1, 2), (2, 0, 0), (3, 1, 2)),  # helps the exemplars, too
    ((3, 1, 2), (0, 0, 0), (3, 1, 2)),  # there are none
  ],
)
def test_the_projection_of_agem_by_hand(gradient, reference, expected):
  found = project(tree_of(gradient, reference), None, None)
  assert vector_of(found) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
  ("gram", "overlaps", "margin", "expected"),
  [
    ([[1, 0], [0, 1]], [-1, 2], 0, [1, 0]),
    ([[1, 0], [0, 1]], [-1, 2], 0.5, [1, 0.5]),
    # Both constraints bind: 1.5 v = 1.
    ([[1, 0.5], [0.5, 1]], [-1, -1], 0, [2 / 3, 2 / 3]),
    # The first correction repairs the second, too: its slope is 0.5 - 0.2.
    ([[1, 0.5], [0.5, 1]], [-1, -0.2], 0, [1, 0]),
    # It is too much of it: v_2 = 0.5 makes v_1 = 1 - 0.25.
    ([[1, 0.5], [0.5, 1]], [-1, -0.2], 0.5, [0.75, 0.5]),
    # They oppose each other: v_1 = 1 + v_2 / 2, v_2 = 0.2 + v_1 / 2.
    ([[1, -0.5], [-0.5, 1]], [-1, -0.2], 0, [22 / 15, 14 / 15]),
  ],
)
def test_the_dual_of_gem_for_two_constraints_by_hand(gram, overlaps, margin, expected):
  found = jax.jit(least_weights)(*map(jnp.float32, (gram, overlaps, margin)))
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1, 3, 19])
def test_the_dual_of_gem_is_that_of_scipy(size):
  """min v' P v / 2 + q' v is least squares with the factor of P = L L'."""
  rng = np.random.default_rng(size)
  problems = []
  for number in range(60):
    # Gradients in many directions, and in fewer than there are states.
    rows = rng.standard_normal((size, 3 * size if number % 2 else max(size // 2, 1)))
    gradient = rng.standard_normal(rows.shape[1]) - 0.5 * rows.mean(axis=0)
    gram = np.float32(10.0 ** rng.uniform(-2, 2) * rows @ rows.T + 1e-2 * np.eye(size))
    problems.append((gram, np.float32(rows @ gradient), np.float32(number % 3 / 4)))
  found = jax.jit(jax.vmap(least_weights))(*map(jnp.asarray, zip(*problems, strict=True)))
  corrected = 0
  for v, (gram, overlaps, margin) in zip(np.float64(found), problems, strict=True):
    gram, overlaps = np.float64(gram), np.float64(overlaps)
    factor = np.linalg.cholesky(gram)
    moved = overlaps + gram.sum(axis=1) * margin
    best = nnls(factor.T, -np.linalg.solve(factor, moved))[0] + margin

    def height(v, gram=gram, overlaps=overlaps):
      return v @ gram @ v / 2 + overlaps @ v

    assert (v >= margin).all()
    assert height(v) - height(best) <= 1e-4 * abs(height(best) - height(0 * v + margin))
    corrected += (best > margin + 1e-6).any() and (best <= margin + 1e-6).any()
  assert size == 1 or corrected > 10


def test_gem_takes_the_nearest_step_that_raises_no_loss():
  # v_k > 0 only where the step is orthogonal to g_k, but for the 0.001 on the diagonal.
  config = config_of("gem", gem_margin=0.0)
  step = jax.jit(lambda grads: constrain(grads, None, config))
  rng, bound = np.random.default_rng(0), []
  for _ in range(20):
    gradient, *others = rng.standard_normal((3, 3))
    # The last state has no exemplar.
    found = np.array(vector_of(step(tree_of(gradient, *others, np.zeros(3)))))
    v = np.linalg.lstsq(np.transpose(others), found - gradient, rcond=None)[0]
    products = np.array(others) @ found + 1e-3 * v
    assert min(*v, *products) > -1e-5
    assert np.max(v * products) < 1e-5
    bound.append(int(np.sum(v > 1e-5)))
  assert {*bound} == {0, 1, 2}


def test_gem_without_earlier_states_takes_the_gradient():
  zeros = np.zeros(3)
  found = constrain(tree_of((3, 1, 2), zeros, zeros), None, config_of("gem"))
  assert vector_of(found) == [3, 1, 2]
