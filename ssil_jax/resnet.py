"""ResNet-18 in Flax linen (He et al. 2016, https://arxiv.org/abs/1512.03385, table 1).

Two stems: 7x7/2 and a 3x3/2 max-pool for large images, a single 3x3/1 convolution for
images of up to 64 pixels, as is usual for CIFAR. Padding, initial values and BatchNorm
settings are those of torchvision, the framework of the reference runs; one thing differs:
Flax keeps the biased batch variance in its running statistics.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssil_jax.convolution import convolve

_conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def _head_init(fan_in: int):
  """Draws from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), for each class by itself.

  The values of a class depend on the key and its place among the classes alone, so that a
  head may get further classes and is then what a larger one would have been.
  """
  bound = fan_in**-0.5

  def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    *rest, num_classes = shape
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_classes))
    draw = functools.partial(
      jax.random.uniform, shape=rest, dtype=dtype, minval=-bound, maxval=bound
    )
    return jax.vmap(draw, out_axes=-1)(keys)

  return init


class Outputs(NamedTuple):
  """Holds what the network says of a batch."""

  features: jax.Array  # float32 [B, 8 * width], the input of the head
  logits: jax.Array  # float32 [B, num_classes]
  scale: jax.Array | float = 1.0  # float32 [], what a cosine head multiplies cosines by
  # [B, h, w, c] of each of the four stages, before its last ReLU, of networks asked for it.
  stages: tuple[jax.Array, ...] = ()


class ResNet18(nn.Module):
  """ResNet-18 with a head over all classes of a run.

  Attributes:
    num_classes: columns of the head.
    cosine_head: the head's logits are cosines of feature and class weight, times a learnt
      scale, and the last ReLU is left out (LUCIR); else they are linear.
    num_proxies: weights of each class in a cosine head; see `CosineHead`.
    stage_outputs: whether the outputs hold those of the stages.
    width: channels of the first stage; each later stage has twice as many.
    small_images: 3x3 stem without max-pool.
    dtype: of the computation; parameters and BatchNorm statistics are float32.
    axis_name: devices over which BatchNorm takes its batch statistics, None for one.
    max_pool: of the stem for large images, 3x3/2 with one pixel of padding.
  """

  num_classes: int
  cosine_head: bool = False
  num_proxies: int = 1
  stage_outputs: bool = False
  width: int = 64
  small_images: bool = False
  dtype: jnp.dtype = jnp.float32
  axis_name: str | None = None
  max_pool: Callable[[jax.Array], jax.Array] = functools.partial(
    nn.max_pool, window_shape=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1))
  )

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> Outputs:
    """Args: images: float [B, S, S, 3]; train: use and update batch statistics."""
    conv = functools.partial(
      nn.Conv,
      use_bias=False,
      kernel_init=_conv_init,
      dtype=self.dtype,
      conv_general_dilated=convolve,
    )
    norm = functools.partial(
      nn.BatchNorm,
      use_running_average=not train,
      momentum=0.9,
      epsilon=1e-5,
      dtype=self.dtype,
      axis_name=self.axis_name if train else None,
    )
    x = images.astype(self.dtype)
    if self.small_images:
      x = conv(self.width, (3, 3), padding=1, name="stem_conv")(x)
      x = nn.relu(norm(name="stem_norm")(x))
    else:
      x = conv(self.width, (7, 7), strides=2, padding=3, name="stem_conv")(x)
      x = PooledNorm(self.max_pool, **norm.keywords, name="stem_norm")(x)
      x = nn.relu(x)
    stages, without_relu = [], (False, False, False, self.cosine_head)
    for stage in range(4):
      for block in range(2):
        x = BasicBlock(
          channels=self.width * 2**stage,
          strides=2 if stage > 0 and block == 0 else 1,
          final_relu=not (block == 1 and (without_relu[stage] or self.stage_outputs)),
          conv=conv,
          norm=norm,
          name=f"stage{stage + 1}_block{block + 1}",
        )(x)
      if self.stage_outputs:
        stages.append(x)
        x = x if without_relu[stage] else nn.relu(x)
    features = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
    head = self._make_head(features.shape[-1], name="head")
    if self.cosine_head:
      logits, scale = head(features)
      return Outputs(features, logits, scale, tuple(stages))
    return Outputs(features, head(features), jnp.ones(()), tuple(stages))

  @nn.nowrap
  def _make_head(self, num_features: int, name: str | None = None) -> nn.Module:
    if self.cosine_head:
      return CosineHead(self.num_classes, self.num_proxies, name=name)
    init = _head_init(num_features)
    return nn.Dense(self.num_classes, kernel_init=init, bias_init=init, name=name)

  @nn.nowrap
  def classify(self, params: Any, features: jax.Array) -> jax.Array:
    """Returns the head's logits, float32 [n, C], of features, float32 [n, d].

    Args:
      params: of the whole network.
      features: as in `Outputs`.
    """
    head = self._make_head(features.shape[-1])
    found = head.apply({"params": params["head"]}, features)
    return found[0] if self.cosine_head else found


class CosineHead(nn.Module):
  """Logits eta <w / |w|, f / |f|> (LUCIR, equation 4); eta starts at 1 and is learnt.

  With several proxies w of a class, its logit is eta sum_k s_k cos_k, with s the softmax of
  their cosines (PODNet's local similarity classifier).
  """

  num_classes: int
  num_proxies: int = 1

  @nn.compact
  def __call__(self, features: jax.Array) -> tuple[jax.Array, jax.Array]:
    proxies = () if self.num_proxies == 1 else (self.num_proxies,)
    shape = features.shape[-1], *proxies, self.num_classes
    kernel = self.param("kernel", _head_init(shape[0]), shape, jnp.float32)
    scale = self.param("scale", nn.initializers.ones, ())
    if not proxies:
      cosines = unit(features, axis=1) @ unit(kernel, axis=0)
      return scale * cosines, scale
    cosines = jnp.einsum("bd,dkc->bkc", unit(features, axis=1), unit(kernel, axis=0))
    return scale * jnp.sum(nn.softmax(cosines, axis=1) * cosines, axis=1), scale


def unit(x: jax.Array, *, axis: int) -> jax.Array:
  """Returns vectors along an axis at length 1; one of zeros stays as it is."""
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x**2, axis, keepdims=True), 1e-24))


class PooledNorm(nn.Module):
  """Max-pooled BatchNorm, pooled first: a quarter of the pixels to normalize.

  BatchNorm keeps the order of a channel's values, or turns it round where its scale is
  negative; so does its rounding. So the largest output is that of the largest input, or of
  the smallest, and the values are those of max_pool(nn.BatchNorm(...)(x)), bit for bit. The
  statistics are over all pixels. Attributes are as those of nn.BatchNorm.
  """

  max_pool: Callable[[jax.Array], jax.Array]
  use_running_average: bool
  momentum: float
  epsilon: float
  dtype: jnp.dtype
  axis_name: str | None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    channels = x.shape[-1:]
    scale = self.param("scale", nn.initializers.ones, channels)
    bias = self.param("bias", nn.initializers.zeros, channels)
    running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
    running_var = self.variable("batch_stats", "var", jnp.ones, channels)
    # All that follows is of these alone: x itself would be written and read beside them.
    sign = jnp.where(scale < 0, -1.0, 1.0)
    x = x * sign.astype(x.dtype)[None, None, None]
    if self.use_running_average:
      mean, var = sign * running_mean.value, running_var.value
    else:
      exact = x.astype(jnp.float32)
      mean, square = (jnp.mean(values, (0, 1, 2)) for values in (exact, exact**2))
      if self.axis_name is not None:
        mean, square = jax.lax.pmean(jnp.stack([mean, square]), self.axis_name)
      var = jnp.maximum(0, square - mean**2)
      if not self.is_initializing():
        for running, now in ((running_mean, sign * mean), (running_var, var)):
          running.value = self.momentum * running.value + (1 - self.momentum) * now
    factor = jax.lax.rsqrt(var + self.epsilon) * sign * scale
    mean, factor, bias = (channel[None, None, None] for channel in (mean, factor, bias))
    return ((self.max_pool(x) - mean) * factor + bias).astype(self.dtype)


class BasicBlock(nn.Module):
  """Two 3x3 convolutions and a shortcut, projected where the shape changes."""

  channels: int
  strides: int
  final_relu: bool
  conv: functools.partial
  norm: functools.partial

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = self.conv(self.channels, (3, 3), strides=self.strides, padding=1, name="conv1")(x)
    y = nn.relu(self.norm(name="norm1")(y))
    y = self.conv(self.channels, (3, 3), padding=1, name="conv2")(y)
    y = self.norm(name="norm2")(y)
    if x.shape != y.shape:
      x = self.conv(self.channels, (1, 1), strides=self.strides, name="project_conv")(x)
      x = self.norm(name="project_norm")(x)
    return nn.relu(x + y) if self.final_relu else x + y
