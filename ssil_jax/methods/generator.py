"""A conditional variational autoencoder: draws images of a class, and learns how.

D. Kingma and M. Welling, *Auto-Encoding Variational Bayes*, ICLR 2014, arXiv:1312.6114;
given the class, as in K. Sohn, H. Lee and X. Yan, *Learning Structured Output
Representation using Deep Conditional Generative Models*, NeurIPS 2015. Encoder and decoder
have two hidden layers each. A class is a row, added to what the first of them gets, so that
more classes are more rows.

An image is what the network sees, normalized or not: a pixel value has a Gaussian
likelihood around a linear output, with a fixed standard deviation.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def init(
  seed: int, *, image_size: int, num_classes: int, num_units: int, num_latents: int
) -> dict[str, Any]:
  """Draws parameters, host arrays; a class's row depends on the seed and its place alone.

  Args:
    seed: of the run.
    image_size: side in pixels.
    num_classes: rows.
    num_units: of each hidden layer.
    num_latents: length of the code.
  """
  num_pixels = 3 * image_size**2
  sizes = {
    "encoder": (num_pixels, num_units, num_units, 2 * num_latents),
    "decoder": (num_latents, num_units, num_units, num_pixels),
  }
  return {
    part: _init_layers((seed, number), part_sizes, num_classes)
    for number, (part, part_sizes) in enumerate(sizes.items())
  }


def _init_layers(counter, sizes, num_classes):
  def draw(*place, shape):
    return np.random.default_rng([*counter, *place]).standard_normal(shape, np.float32)

  layers = {}
  for number, shape in enumerate(zip(sizes, sizes[1:], strict=False)):
    # He et al. 2015 before a ReLU. The last layer is 0: codes begin as the prior has them,
    # and there is no noise to be unlearnt.
    scale = 0 if number == len(sizes) - 2 else math.sqrt(2 / shape[0])
    kernel = np.float32(scale) * draw(number, shape=shape)
    layers[f"layer{number}"] = {"kernel": kernel, "bias": np.zeros(shape[1], np.float32)}
  rows = [draw(len(sizes), c, shape=sizes[1]) for c in range(num_classes)]
  return layers | {"classes": np.stack(rows)}


def _run(layers, x, labels):
  """Returns the outputs, [B, n], of the encoder or the decoder."""
  last = len(layers) - 2
  for number in range(last + 1):
    layer = layers[f"layer{number}"]
    x = x @ layer["kernel"] + layer["bias"][None, :]
    if number == 0:
      # No gather, whose gradient adds in any order on a GPU.
      x += jax.nn.one_hot(labels, len(layers["classes"])) @ layers["classes"]
    if number < last:
      x = jax.nn.relu(x)
  return x


def posterior(
  params: Any, pixels: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns mean and log-variance of the codes of images, float32 [B, Z] each.

  Args:
    params: of `init`.
    pixels: float32 [B, S, S, 3].
    labels: int [B].
  """
  flat = pixels.reshape(len(pixels), -1)
  return tuple(jnp.split(_run(params["encoder"], flat, labels), 2, axis=-1))


def decode(params: Any, codes: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns the images of codes, float32 [B, Z], and classes, int [B]: [B, S, S, 3]."""
  flat = _run(params["decoder"], codes, labels)
  size = math.isqrt(flat.shape[-1] // 3)
  return flat.reshape(-1, size, size, 3)


def draw(params: Any, labels: jax.Array, keys: jax.Array) -> jax.Array:
  """Draws an image of each class, float32 [B, S, S, 3], by a random key of its own."""
  return decode(params, _noise(params, keys), labels)


def negative_elbo(
  params: Any, pixels: jax.Array, labels: jax.Array, keys: jax.Array, *, deviation: float
) -> jax.Array:
  """Returns -ELBO = reconstruction + KL(q(z | x, y) || N(0, I)), float32 [B].

  In nats for each of an image's pixel values; the constant of the Gaussian is left out.

  Args:
    params: of `init`.
    pixels: float32 [B, S, S, 3].
    labels: int [B].
    keys: random keys [B].
    deviation: of a pixel value from what the decoder says.
  """
  mean, log_variance = posterior(params, pixels, labels)
  codes = mean + jnp.exp(log_variance / 2) * _noise(params, keys)
  squares = jnp.sum((pixels - decode(params, codes, labels)) ** 2, axis=(1, 2, 3))
  divergence = jnp.sum(mean**2 + jnp.exp(log_variance) - 1 - log_variance, axis=-1) / 2
  return (squares / (2 * deviation**2) + divergence) / pixels[0].size


def _noise(params, keys):
  num_latents = len(params["decoder"]["layer0"]["kernel"])
  return jax.vmap(lambda key: jax.random.normal(key, (num_latents,)))(keys)
