"""Convolutions with a weight gradient of their own: as those of jax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ssil_jax import convolution


@pytest.mark.parametrize(
  ("batch", "size", "channels", "window", "stride", "padding"),
  [
    (7, 9, (3, 5), 3, 1, 1),
    (8, (10, 7), (4, 2), 3, 2, 1),  # the stride leaves a row over
    (5, 13, (3, 4), 7, 2, 3),
    (6, (5, 8), (6, 3), 1, 2, "SAME"),
    (2, 4, (2, 3), (1, 3), (2, 1), "VALID"),
  ],
)
@pytest.mark.parametrize("pieces", [1, 3])
def test_values_and_gradients_are_those_of_jax(
  monkeypatch, batch, size, channels, window, stride, padding, pieces
):
  # So that pieces hold a third of the batch at most, and the last one fewer or as many.
  size, window, strides = np.broadcast_arrays(size, window, stride, [0, 0])[:3]
  draws = np.random.default_rng(batch)
  images = draws.normal(size=(batch, *size, channels[0])).astype(np.float32)
  limit = images.nbytes * batch if pieces == 1 else images.nbytes / pieces / 1.5
  monkeypatch.setattr(convolution, "_PIECE_BYTES", limit)
  plain, ours = (
    nn.Conv(
      channels[1],
      tuple(window.tolist()),
      tuple(strides.tolist()),
      padding,
      conv_general_dilated=function,
    )
    for function in (jax.lax.conv_general_dilated, convolution.convolve)
  )
  variables = plain.init(jax.random.key(0), images)

  def loss(variables, images, layer):
    return jnp.sum(jnp.sin(layer.apply(variables, images)))

  for values in zip(
    *(
      jax.tree.leaves(jax.value_and_grad(loss, (0, 1))(variables, images, layer))
      for layer in (plain, ours)
    ),
    strict=True,
  ):
    np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-4)


def test_bfloat16_is_rounded_only_once(monkeypatch):
  # 33 pieces of positive numbers: a sum that is rounded as it grows is off by 1%.
  shapes = (65, 8, 8, 3), (3, 3, 3, 2), (65, 8, 8, 2)
  draws = np.random.default_rng(0)
  images, kernel, gradient = (
    jnp.asarray(draws.uniform(0.5, 1, shape), jnp.bfloat16) for shape in shapes
  )
  monkeypatch.setattr(convolution, "_PIECE_BYTES", 2 * images[0].nbytes)

  def values_and_gradients(function, dtype):
    layer = nn.Conv(2, (3, 3), use_bias=False, dtype=dtype, conv_general_dilated=function)
    outputs, gradients_of = jax.vjp(
      lambda kernel, images: layer.apply({"params": {"kernel": kernel}}, images),
      *(kernel.astype(dtype), images.astype(dtype)),
    )
    return outputs, *gradients_of(gradient.astype(dtype))

  exact = values_and_gradients(jax.lax.conv_general_dilated, jnp.float32)
  ours = values_and_gradients(convolution.convolve, jnp.bfloat16)
  half_a_unit = jnp.finfo(jnp.bfloat16).eps / 2
  for found, expected in zip(ours, exact, strict=True):
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(
      found.astype(jnp.float32), expected, rtol=1.01 * float(half_a_unit)
    )


def test_what_it_has_no_gradient_for_is_refused():
  layer = nn.Conv(
    4, (3, 3), feature_group_count=2, conv_general_dilated=convolution.convolve
  )
  with pytest.raises(ValueError, match="feature_group_count"):
    layer.init(jax.random.key(0), jnp.zeros((1, 4, 4, 2)))
