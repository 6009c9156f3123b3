"""Augmentation on the device: uint8 images to the network's input.

Every example's randomness follows from its position in the global batch, so that any
number of devices sees the same images.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Augmentation(NamedTuple):
  """Says what happens to a training image on the device."""

  max_shift: int  # pixels of zero padding on each side, from which a random crop is cut
  flip: bool  # mirror every second image


class Normalization(NamedTuple):
  """Says what is done to the channels of every image, training and test."""

  mean: tuple[float, float, float]  # red, green, blue as fractions of 1
  std: tuple[float, float, float]


# Over the training images; torchvision's figures, which the reference runs use.
IMAGENET_NORMALIZATION = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def to_float(images: jax.Array, normalization: Normalization | None) -> jax.Array:
  """Turns uint8 [B, S, S, 3] into float32, in [0, 1] or less the mean and over the std."""
  fractions = images.astype(jnp.float32) / 255.0
  if normalization is None:
    return fractions
  mean, std = (jnp.array(numbers).reshape(1, 1, 1, 3) for numbers in normalization)
  return (fractions - mean) / std


def augment(
  images: jax.Array, key: jax.Array, positions: jax.Array, augmentation: Augmentation
) -> jax.Array:
  """Shifts and flips images, uint8 [B, S, S, 3], at random.

  The key is that of the step; positions, int32 [B], are those in the global batch.
  """
  pad, size = augmentation.max_shift, images.shape[1]

  def one(image, position):
    shift_key, flip_key = jax.random.split(jax.random.fold_in(key, position))
    if pad:
      image = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
      top, left = jax.random.randint(shift_key, (2,), 0, 2 * pad + 1)
      image = jax.lax.dynamic_slice(image, (top, left, 0), (size, size, 3))
    if augmentation.flip:
      image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
    return image

  return jax.vmap(one)(images, positions)
