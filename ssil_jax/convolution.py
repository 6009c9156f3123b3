"""Convolutions with a weight gradient that is fast on CPUs, too.

XLA for CPUs copies the images of a weight gradient with their batch as the innermost
dimension, and reads the copy once for every weight of the kernel. Of a whole batch it does
not fit into a core's cache: at 32 pixels that made the gradient three times as slow as the
forward pass. Here it is a sum over pieces of the batch that do fit (benchmarks/README.md).
Other platforms are not affected.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

# The only layout that XLA for CPUs has a fast convolution for inside loops; outside, it
# rewrites all others to it.
_DIMENSIONS = jax.lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
_PIECE_BYTES = 2**19  # of images; with their gradients, half of a core's second cache


def convolve(
  images: jax.Array,
  kernel: jax.Array,
  strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  **options: Any,
) -> jax.Array:
  """Returns `jax.lax.conv_general_dilated`, to be given to `flax.linen.Conv`.

  Differentiable in reverse mode alone.

  Args:
    images: float [B, H, W, C].
    kernel: float [h, w, C, D].
    strides: rows and columns.
    padding: pixels before and after the rows, and the columns; or SAME, or VALID.
    options: those of `jax.lax.conv_general_dilated`, all but the precision at their
      defaults for images and kernels of the shapes above.

  Raises:
    ValueError: other dimensions, groups or dilations, which nothing here uses.
  """
  precision = options.pop("precision", None)
  known = {
    "lhs_dilation": (1, 1),
    "rhs_dilation": (1, 1),
    "dimension_numbers": _DIMENSIONS,
    "feature_group_count": 1,
  }
  if options != known:
    raise ValueError(f"a convolution with {options}, but only {known} is known")
  if isinstance(padding, str):
    shapes = images.shape[1:3], kernel.shape[:2]
    padding = jax.lax.padtype_to_pads(*shapes, strides, padding)
  return _convolve(images, kernel, tuple(strides), tuple(padding), precision)


def _plain(images, kernel, strides, padding, precision):
  return jax.lax.conv_general_dilated(
    images,
    kernel,
    strides,
    padding,
    dimension_numbers=_DIMENSIONS,
    precision=precision,
  )


_convolve = jax.custom_vjp(_plain, nondiff_argnums=(2, 3, 4))


def _forward(images, kernel, strides, padding, precision):
  return _plain(images, kernel, strides, padding, precision), (images, kernel)


def _backward(strides, padding, precision, inputs, gradient):
  def forward(images, kernel):
    return _plain(images, kernel, strides, padding, precision)

  def by_kernel(images, kernel, gradient):
    (found,) = jax.linear_transpose(lambda k: forward(images, k), kernel)(gradient)
    return found

  def by_kernel_in_pieces(images, kernel, gradient):
    of_piece = functools.partial(
      _kernel_gradient,
      size=kernel.shape[:2],
      strides=strides,
      padding=padding,
      precision=precision,
    )
    found = _sum_over_pieces(of_piece, images, gradient, sum_bytes=kernel.nbytes)
    return found.astype(kernel.dtype)

  images, kernel = inputs
  (by_images,) = jax.linear_transpose(lambda x: forward(x, kernel), images)(gradient)
  return by_images, jax.lax.platform_dependent(
    *(images, kernel, gradient), cpu=by_kernel_in_pieces, default=by_kernel
  )


_convolve.defvjp(_forward, _backward)


def _kernel_gradient(
  images: jax.Array,
  gradient: jax.Array,
  *,
  size: Sequence[int],
  strides: Sequence[int],
  padding: Sequence[tuple[int, int]],
  precision: Any,
) -> jax.Array:
  """Returns float32 [h, w, C, D] of images [n, H, W, C] and gradients [n, H', W', D].

  As a forward convolution: of images whose batch are the channels, and whose channels are
  the images, with the gradients as its kernel.
  """
  # Rows and columns that the stride leaves over at the end are cut off: less than 0.
  after = [
    stride * (steps - 1) + window - before - length
    for stride, steps, window, (before, _), length in zip(
      strides, gradient.shape[1:3], size, padding, images.shape[1:3], strict=True
    )
  ]
  found = jax.lax.conv_general_dilated(
    images.transpose(3, 1, 2, 0),
    gradient.transpose(1, 2, 0, 3),
    (1, 1),
    [(before, end) for (before, _), end in zip(padding, after, strict=True)],
    rhs_dilation=strides,
    dimension_numbers=_DIMENSIONS,
    precision=precision,
    preferred_element_type=jnp.float32,
  )
  return found.transpose(1, 2, 0, 3)


def _sum_over_pieces(
  of_piece: Callable[[jax.Array, jax.Array], jax.Array],
  images: jax.Array,
  gradient: jax.Array,
  *,
  sum_bytes: int,
) -> jax.Array:
  """Returns the sum of `of_piece` over parts of a batch, one after the other.

  Args:
    of_piece: images [n, ...], gradients [n, ...] -> what is added up.
    images: [B, ...].
    gradient: [B, ...].
    sum_bytes: of the sum; each piece reads and writes it, and so none is smaller.
  """
  count = len(images)
  size = math.ceil(max(_PIECE_BYTES, sum_bytes) * count / images.nbytes)
  if size >= count:
    return of_piece(images, gradient)
  whole = count - count % size
  pieces = [x[:whole].reshape(-1, size, *x.shape[1:]) for x in (images, gradient)]
  first = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(of_piece, *(p[0] for p in pieces))
  )
  total, _ = jax.lax.scan(lambda sum, piece: (sum + of_piece(*piece), None), first, pieces)
  return total if whole == count else total + of_piece(images[whole:], gradient[whole:])
