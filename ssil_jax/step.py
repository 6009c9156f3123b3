"""One training step and one evaluation step: pure, undecorated; `parallel.py` maps them.

Both run on one device's share of a batch and speak to the other devices through the mapped
axis `AXIS`.
"""

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from ssil_jax import metrics
from ssil_jax.data.augment import Augmentation, Normalization, augment, to_float
from ssil_jax.methods.base import Method, SeenClasses
from ssil_jax.resnet import ResNet18

AXIS = "batch"


@flax.struct.dataclass
class TrainState:
  """What training changes."""

  step: jax.Array  # int32 [], steps done in the whole run
  params: Any
  batch_stats: Any
  opt_state: optax.OptState


class Batch(NamedTuple):
  """One device's share of a batch."""

  # int32 [B], records of the images on the device, or uint8 [B, S, S, 3], the images.
  inputs: jax.Array
  labels: jax.Array  # int32 [B]
  positions: jax.Array  # int32 [B], places in the global batch; -1 for padding


class Model(NamedTuple):
  """The fixed parts of a run that the steps are made of."""

  network: ResNet18
  method: Method
  optimizer: optax.GradientTransformation
  augmentation: Augmentation
  normalization: Normalization | None
  seed: int
  state_of_class: tuple[int, ...]  # state (from 0) that introduced each class


def make_optimizer(*, momentum: float, weight_decay: float) -> optax.GradientTransformation:
  """SGD with Nesterov momentum and coupled weight decay (section 6.2), as in PyTorch.

  The learning rate is applied outside the momentum buffer, by `train_step`, so that it may
  change without rescaling the buffer.
  """
  return optax.chain(
    optax.add_decayed_weights(weight_decay),
    optax.trace(decay=momentum, nesterov=True),
  )


def create_train_state(model: Model, image_size: int) -> TrainState:
  """Random initial parameters, from the run's seed."""
  # One image tells the shapes; batch statistics are not used and need no other device.
  images = jnp.zeros((1, image_size, image_size, 3))
  variables = model.network.init(jax.random.key(model.seed), images, train=False)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=variables["params"],
    batch_stats=variables["batch_stats"],
    opt_state=model.optimizer.init(variables["params"]),
  )


def train_step(
  state: TrainState,
  batch: Batch,
  classes: SeenClasses,
  learning_rate: jax.Array,
  images: jax.Array | None,
  *,
  model: Model,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One step of Algorithm 1.

  Args:
    state: parameters, statistics and momentum, the same on every device.
    batch: this device's share.
    classes: the old and new classes of the incremental state.
    learning_rate: float32 [].
    images: uint8 [N, S, S, 3], the whole training split if it lives on the device.
    model: network, method, optimizer.

  Returns:
    The next state, and the batch's mean loss and share of correct predictions.
  """
  step_key = jax.random.fold_in(jax.random.key(model.seed), state.step)
  pixels = to_float(
    augment(look_up(batch, images), step_key, batch.positions, model.augmentation),
    model.normalization,
  )

  def loss_fn(params):
    outputs, updates = model.network.apply(
      {"params": params, "batch_stats": state.batch_stats},
      pixels,
      train=True,
      mutable=["batch_stats"],
    )
    losses = model.method.loss(outputs, batch.labels, classes)
    return jnp.mean(losses), (outputs, updates["batch_stats"])

  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
  (loss, (outputs, batch_stats)), grads = grad_fn(state.params)
  # Devices have equal shares, so the mean of their means is the mean of Algorithm 1.
  grads = jax.lax.pmean(grads, AXIS)
  updates, opt_state = model.optimizer.update(grads, state.opt_state, state.params)
  updates = jax.tree.map(lambda update: -learning_rate * update, updates)
  new_state = TrainState(
    step=state.step + 1,
    params=optax.apply_updates(state.params, updates),
    batch_stats=batch_stats,
    opt_state=opt_state,
  )
  predicted = jnp.argmax(model.method.predict(outputs, classes), axis=-1)
  step_metrics = {"loss": loss, "top1": jnp.mean(predicted == batch.labels)}
  return new_state, jax.lax.pmean(step_metrics, AXIS)


def eval_step(
  state: TrainState,
  batch: Batch,
  classes: SeenClasses,
  images: jax.Array | None,
  *,
  model: Model,
) -> metrics.Counts:
  """Counts of one test batch, summed over the devices; arguments as in `train_step`."""
  outputs = model.network.apply(
    {"params": state.params, "batch_stats": state.batch_stats},
    to_float(look_up(batch, images), model.normalization),
    train=False,
  )
  counts = metrics.count(
    model.method.predict(outputs, classes),
    outputs.logits,
    batch.labels,
    batch.positions >= 0,
    num_old=classes.num_old,
    num_seen=classes.num_seen,
    state_of_class=jnp.asarray(model.state_of_class, jnp.int32),
    num_states=max(model.state_of_class) + 1,
  )
  return jax.lax.psum(counts, AXIS)


def look_up(batch: Batch, images: jax.Array | None) -> jax.Array:
  """uint8 [B, S, S, 3]: the images of a batch, gathered if they live on the device."""
  return batch.inputs if images is None else images[batch.inputs]
