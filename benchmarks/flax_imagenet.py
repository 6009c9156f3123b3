"""The peer of tpu_compile.py: a step as in flax's ImageNet example, with a ResNet-18.

After https://github.com/google/flax/tree/main/examples/imagenet, written anew and as short
as it can be: images of the step's precision that the host has normalized, BatchNorm over
each device's own share, weight decay as a part of the loss, SGD with Nesterov's momentum.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

AXIS = "batch"
WEIGHT_DECAY = 1e-4


class Block(nn.Module):
  """Two 3x3 convolutions and a shortcut; the second norm's scale starts at 0."""

  channels: int
  strides: int
  conv: functools.partial
  norm: functools.partial

  @nn.compact
  def __call__(self, x):
    y = self.conv(self.channels, (3, 3), strides=self.strides)(x)
    y = self.conv(self.channels, (3, 3))(nn.relu(self.norm()(y)))
    y = self.norm(scale_init=nn.initializers.zeros)(y)
    if x.shape != y.shape:
      x = self.norm()(self.conv(self.channels, (1, 1), strides=self.strides)(x))
    return nn.relu(x + y)


class ResNet18(nn.Module):
  """The network for large images."""

  num_classes: int
  width: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
    norm = functools.partial(
      nn.BatchNorm, use_running_average=False, momentum=0.9, epsilon=1e-5, dtype=self.dtype
    )
    x = conv(self.width, (7, 7), strides=2, padding=3)(x)
    x = nn.max_pool(nn.relu(norm()(x)), (3, 3), strides=(2, 2), padding="SAME")
    for stage in range(4):
      for block in range(2):
        strides = 2 if stage > 0 and block == 0 else 1
        x = Block(self.width * 2**stage, strides, conv, norm)(x)
    logits = nn.Dense(self.num_classes, dtype=self.dtype)(jnp.mean(x, axis=(1, 2)))
    return logits.astype(self.dtype)


def lower_train_step(
  devices: list[jax.Device],
  *,
  image_size: int,
  num_classes: int,
  width: int,
  precision: str,
  images_per_device: int,
) -> jax.stages.Lowered:
  """Returns the step, lowered for devices that may not be there."""
  dtype = jnp.dtype(precision)
  network = ResNet18(num_classes, width, dtype)
  optimizer = optax.sgd(0.1, momentum=0.9, nesterov=True)

  def begin(key, images):
    variables = network.init(key, images)
    return variables, optimizer.init(variables["params"])

  def step(state, images, labels):
    variables, opt_state = state

    def loss_of(params):
      logits, updates = network.apply(
        variables | {"params": params}, images, mutable=["batch_stats"]
      )
      one_hot = jax.nn.one_hot(labels, num_classes)
      loss = jnp.mean(optax.softmax_cross_entropy(logits, one_hot))
      decayed = sum(jnp.sum(x**2) for x in jax.tree.leaves(params) if x.ndim > 1)
      return loss + WEIGHT_DECAY / 2 * decayed, (logits, updates)

    params = variables["params"]
    (loss, (logits, updates)), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    grads = jax.lax.pmean(grads, AXIS)
    changes, opt_state = optimizer.update(grads, opt_state, params)
    accuracy = jnp.mean(jnp.argmax(logits, -1) == labels)
    told = jax.lax.pmean({"loss": loss, "accuracy": accuracy}, AXIS)
    return ({"params": optax.apply_updates(params, changes)} | updates, opt_state), told

  images = jax.ShapeDtypeStruct((images_per_device, image_size, image_size, 3), dtype)
  labels = jax.ShapeDtypeStruct((images_per_device,), jnp.int32)
  state = jax.eval_shape(begin, jax.eval_shape(lambda: jax.random.key(0)), images)
  stacked = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((len(devices), *x.shape), x.dtype),
    (state, images, labels),
  )
  mapped = jax.pmap(step, axis_name=AXIS, devices=devices, donate_argnums=0)
  return mapped.lower(*stacked)
