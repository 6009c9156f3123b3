"""One step of training, of evaluation, of reading outputs: pure, undecorated.

Each runs on one device's share of a batch and speaks to the other devices through the
mapped axis `AXIS`; `devices.py` maps them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssil_jax import metrics
from ssil_jax.config import Config
from ssil_jax.data.dataset import Batch
from ssil_jax.data.images.augment import Augmentation, Normalization, augment, to_float
from ssil_jax.methods.base import (
  Elastic,
  Examples,
  ImageFn,
  Method,
  OutputFn,
  PhaseContext,
  Replayed,
  Step,
  mask_unseen,
)
from ssil_jax.resnet import Outputs, ResNet18
from ssil_jax.training.run_state import TrainState, own_optimizer

AXIS = "batch"
_OWN = 2**32 - 1  # of a method's own randomness; images have theirs by position
_NETWORK = ("params", "opt_state")


class Model(NamedTuple):
  """The fixed parts of a run that the steps are made of."""

  network: ResNet18
  method: Method
  optimizer: optax.GradientTransformation
  augmentation: Augmentation
  normalization: Normalization | None
  config: Config
  state_of_class: tuple[int, ...]  # state (from 0) that introduced each class


def make_optimizer(
  *, momentum: float, weight_decay: float, nesterov: bool = True
) -> optax.GradientTransformation:
  """Returns SGD with momentum and weight decay (section 6.2), as in PyTorch.

  The learning rate is applied outside the momentum buffer, by `train_step`, so that it may
  change without rescaling the buffer.
  """
  return optax.chain(
    optax.add_decayed_weights(weight_decay),
    optax.trace(decay=momentum, nesterov=nesterov),
  )


def create_train_state(model: Model, image_size: int, seed: jax.Array) -> TrainState:
  """Draws initial parameters from a seed, uint32 []; nothing is carried along yet."""
  # One image tells the shapes; batch statistics are not used and need no other device.
  images = jnp.zeros((1, image_size, image_size, 3))
  variables = model.network.init(jax.random.key(seed), images, train=False)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=variables["params"],
    batch_stats=variables["batch_stats"],
    opt_state=model.optimizer.init(variables["params"]),
  )


def train_step(
  state: TrainState,
  batch: Batch,
  context: PhaseContext,
  learning_rate: jax.Array,
  images: jax.Array | None,
  *,
  model: Model,
  later: bool = False,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Does one step of Algorithm 1.

  Args:
    state: parameters, statistics and momentum, the same on every device.
    batch: this device's share.
    context: what the phase began with: classes, teacher and statistics of the method.
    learning_rate: float32 [].
    images: uint8 [N, S, S, 3], the whole training split if it lives on the device.
    model: network, method, optimizer.
    later: whether a class is old, for a method of which steps differ then.

  Returns:
    The next state, and the batch's mean loss and share of correct predictions.
  """
  method, config = model.method, model.config
  step_key = jax.random.fold_in(jax.random.key(context.seed), state.step)
  pixels = to_float(
    augment(gather_images(batch, images), step_key, batch.positions, model.augmentation),
    model.normalization,
  )
  num_labeled = len(batch.labels)
  num_unlabeled = len(pixels) - num_labeled
  one_hot = jax.nn.one_hot(batch.labels, len(model.state_of_class))
  class_counts = jax.lax.psum(jnp.sum(one_hot, axis=0), AXIS)
  own_key, weights_key = jax.random.split(jax.random.fold_in(step_key, _OWN))
  positions = batch.positions[:num_labeled]
  keys = jax.vmap(jax.random.fold_in, (None, 0))(own_key, positions)
  generated = None
  if later and method.replay is not None:
    generated = jax.lax.stop_gradient(method.replay(keys, context, config))
  everything = pixels if generated is None else jnp.concatenate([pixels, generated])
  is_frozen = later and method.freezes_features
  has_parts = later and method.parts is not None
  of_teacher = None
  if method.has_teacher:
    of_teacher = _teacher_outputs(everything, state, context, model)

  of_expert = None
  if context.expert is not None:
    of_expert = jax.lax.stop_gradient(
      model.network.apply(context.expert, everything, train=False)
    )

  def losses_of(trained):
    params, own = trained
    params = method.weights(params, own, weights_key, context, config)
    of_network, batch_stats = _training_outputs(
      params, state.batch_stats, everything, model, is_frozen=is_frozen
    )
    of_networks = of_network, of_teacher, of_expert
    replayed = unlabeled = None
    if generated is not None:
      of_networks, of_generated = _split_each(of_networks, len(pixels))
      replayed = Replayed(generated, *of_generated)
    if num_unlabeled:
      of_networks, of_unlabeled = _split_each(of_networks, num_labeled)
      unlabeled = Replayed(pixels[num_labeled:], *of_unlabeled)
    outputs, teacher, expert = of_networks
    examples = Examples(
      labels=batch.labels,
      positions=positions,
      records=batch.records[:num_labeled],
      outputs=outputs,
      teacher=teacher,
      context=context,
      class_counts=class_counts,
      state_of_class=np.asarray(model.state_of_class, np.int32),
      pixels=pixels[:num_labeled],
      keys=keys,
      classify=lambda features: model.network.classify(params, features),
      own=own,
      replayed=replayed,
      expert=expert,
      unlabeled=unlabeled,
    )
    parts = method.parts(examples, config) if has_parts else None
    return method.loss(examples, config), (parts, outputs, batch_stats)

  trained = state.params, state.own
  loss, of_loss, outputs, batch_stats = _gradient(
    losses_of, trained, context, model, has_parts=has_parts
  )
  both = of_loss
  if method.has_penalty:
    penalty, of_penalty = jax.value_and_grad(
      lambda trained: method.penalty(*trained, context, config)
    )(trained)
    loss, both = loss + penalty, jax.tree.map(jnp.add, of_loss, of_penalty)
  grads, own_grads = both
  own_updates, own_opt_state = own_optimizer(method, config).update(
    own_grads, state.own_opt_state, state.own
  )
  updates, opt_state = model.optimizer.update(grads, state.opt_state, state.params)
  updates = jax.tree.map(lambda update: -learning_rate * update, updates)
  params = optax.apply_updates(state.params, updates)
  if method.elastic is not None:
    elastic = method.elastic(context, config)
    loss += elastic_energy(state.params, elastic)
    # Momentum lets the loss pull for 1 / (1 - momentum) steps, and so does the penalty.
    rate = learning_rate / (1 - config.momentum)
    params = toward_anchor(params, elastic, rate)
  after = {
    "params": method.project(params, state.params, context),
    "opt_state": opt_state,
    "own": optax.apply_updates(state.own, own_updates),
    "own_opt_state": own_opt_state,
  }
  before = {name: getattr(state, name) for name in after}
  if is_frozen:
    after |= {name: _with_body_of(before[name], after[name]) for name in _NETWORK}
  new_state = TrainState(
    step=state.step + 1,
    batch_stats=batch_stats,
    **_with_unseen_of(before, after, context.classes.num_seen),
  )
  taken = Step(before=state.params, after=new_state.params, grads=of_loss[0])
  carried = method.carry(state.carried, taken, context, config)
  new_state = new_state.replace(carried=carried)
  predicted = jnp.argmax(mask_unseen(outputs, context, config), axis=-1)
  step_metrics = {"loss": loss, "top1": jnp.mean(predicted == batch.labels)}
  return new_state, jax.lax.pmean(step_metrics, AXIS)


def train_steps(
  state: TrainState,
  batches: Batch,
  context: PhaseContext,
  learning_rates: jax.Array,
  images: jax.Array | None,
  *,
  model: Model,
  later: bool = False,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Does several steps of `train_step` in one program, whose arguments these are.

  An accelerator then waits for the host once for all of them. Their number is that of the
  shapes: of one that only the device knows, XLA asks the host before each step. Not for
  CPUs, where XLA has no fast input gradient of convolutions inside loops.

  Args:
    state: before the first step.
    batches: this device's shares, [K, ...].
    context: of the phase they all belong to.
    learning_rates: float32 [K].
    images: as in `train_step`.
    model: the same.
    later: the same.

  Returns:
    The state after the last step, and float32 [K] of each metric.
  """

  def one(state, step):
    batch, learning_rate = step
    return train_step(
      *(state, batch, context, learning_rate, images), model=model, later=later
    )

  return jax.lax.scan(one, state, (batches, learning_rates))


def _gradient(
  losses_of: Callable[[Any], Any],
  trained: Any,
  context: PhaseContext,
  model: Model,
  *,
  has_parts: bool,
) -> tuple[jax.Array, Any, Any, Any]:
  """Returns this device's mean loss, and the gradient over all devices' batch.

  Args:
    losses_of: trained -> losses [B], and (weights of the method's parts, outputs, updated
      batch statistics).
    trained: parameters of the network, and those of the method, which parts have none of.
    context: of the phase.
    model: the method, which may put the gradient together from those of parts.
    has_parts: whether it does.

  Returns:
    Loss, gradient, outputs, batch statistics.
  """
  method = model.method
  if not has_parts:

    def mean_loss(trained):
      losses, aux = losses_of(trained)
      return jnp.mean(losses), aux

    grad_fn = jax.value_and_grad(mean_loss, has_aux=True)
    (loss, (_, outputs, batch_stats)), grads = grad_fn(trained)
    # Devices have equal shares, so the mean of their means is the mean of Algorithm 1.
    return loss, jax.lax.pmean(grads, AXIS), outputs, batch_stats
  losses, pull_back, (parts, outputs, batch_stats) = jax.vjp(
    losses_of, trained, has_aux=True
  )
  of_parts, of_own = _each(lambda weights: pull_back(weights)[0], parts)
  grads = method.combine(jax.lax.psum(of_parts, AXIS), context, model.config)
  return jnp.mean(losses), (grads, of_own), outputs, batch_stats


def _each(gradient: Callable[[jax.Array], Any], parts: jax.Array) -> Any:
  """Returns the gradients of all parts, stacked.

  One after the other: side by side, each would keep activations' gradients of its own.
  """
  if jax.default_backend() != "cpu":
    return jax.lax.map(gradient, parts)
  # In a loop, XLA for CPUs has no fast gradient for the weights of convolutions.
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(gradient, parts))


def _training_outputs(
  params: Any, batch_stats: Any, pixels: jax.Array, model: Model, *, is_frozen: bool
) -> tuple[Outputs, Any]:
  """Returns the outputs of the network in training, and its updated batch statistics."""
  if is_frozen:
    body = jax.lax.stop_gradient(params)
    variables = {"params": body | {"head": params["head"]}, "batch_stats": batch_stats}
    return model.network.apply(variables, pixels, train=False), batch_stats
  outputs, updates = model.network.apply(
    {"params": params, "batch_stats": batch_stats},
    pixels,
    train=True,
    mutable=["batch_stats"],
  )
  return outputs, updates["batch_stats"]


def _split(outputs: Outputs | None, count: int) -> tuple[Outputs | None, Outputs | None]:
  """Returns the outputs of the first `count` images, and those of the others."""
  if outputs is None:
    return None, None

  def part(rows: slice) -> Outputs:
    return outputs._replace(
      features=outputs.features[rows],
      logits=outputs.logits[rows],
      stages=tuple(stage[rows] for stage in outputs.stages),
    )

  return part(slice(count)), part(slice(count, None))


def _split_each(networks: tuple, count: int) -> list[tuple]:
  """Splits the outputs of each network as `_split` does."""
  return [*zip(*(_split(outputs, count) for outputs in networks), strict=True)]


def elastic_energy(params: Any, elastic: Elastic) -> jax.Array:
  """Returns what an `Elastic` adds to the loss, float32 []."""
  stiffness, anchor, lasso = elastic
  energies = jax.tree.map(
    lambda x, k, a: jnp.sum(k * (x - a) ** 2) / 2, params, stiffness, anchor
  )
  if lasso is not None:
    distances = jax.tree.map(
      lambda x, a, pull: jnp.sum(pull * jnp.abs(x - a)), params, anchor, lasso
    )
    energies = energies, distances
  return jax.tree.reduce(jnp.add, energies)


def toward_anchor(params: Any, elastic: Elastic, rate: jax.Array) -> Any:
  """Returns the proximal step, argmin_theta |theta - params|^2 / (2 rate) + the penalty.

  It is (params + rate k anchor) / (1 + rate k), and does not leave the way between the two,
  however large the stiffness k. With a lasso l, the distance from the anchor shrinks by
  rate l before, and is 0 if it was smaller. Where SGD without momentum comes to rest,
  before a step by -rate times the gradient of the loss, loss and penalty are in balance.
  """
  stiffness, anchor, lasso = elastic

  def pull(x, k, a):
    strength = jnp.minimum(rate * k, 1e30)  # infinity over infinity would be no number
    return x + (a - x) * (strength / (1 + strength))

  def shrink(x, a, least):
    return a + jnp.sign(x - a) * jnp.maximum(jnp.abs(x - a) - rate * least, 0)

  if lasso is not None:
    params = jax.tree.map(shrink, params, anchor, lasso)
  return jax.tree.map(pull, params, stiffness, anchor)


def _is_head(path: Any) -> bool:
  return any(getattr(key, "key", None) == "head" for key in path)


def _with_body_of(before: Any, after: Any) -> Any:
  """Returns `after` with all but what belongs to the head as in `before`."""
  return jax.tree_util.tree_map_with_path(
    lambda path, old, new: new if _is_head(path) else old, before, after
  )


def _with_unseen_of(before: Any, after: Any, num_seen: jax.Array) -> Any:
  """Returns `after` with the head's weights and momenta of unseen classes as in `before`.

  Else weight decay would wear them away before their state begins, and classes that are
  added to a trained network would not start as those that were there from its first state.
  """

  def choose(path, old, new):
    if not _is_head(path) or not new.ndim:
      return new
    index = jnp.arange(new.shape[-1]).reshape((1,) * (new.ndim - 1) + (-1,))
    return jnp.where(index < num_seen, new, old)

  return jax.tree_util.tree_map_with_path(choose, before, after)


def _teacher_outputs(
  pixels: jax.Array, state: TrainState, context: PhaseContext, model: Model
) -> Outputs:
  """Returns the teacher's outputs, without gradient; zeros while there is none.

  That is a program of its own, not a choice on the device: XLA for GPUs may ask the host to
  choose, which would wait for every step.
  """
  apply = functools.partial(model.network.apply, train=False)
  if context.teacher is not None:
    return jax.lax.stop_gradient(apply(context.teacher, pixels))
  network = {"params": state.params, "batch_stats": state.batch_stats}
  shapes = jax.eval_shape(apply, network, pixels)
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def eval_step(
  state: TrainState,
  batch: Batch,
  context: PhaseContext,
  images: jax.Array | None,
  *,
  model: Model,
) -> tuple[metrics.Counts, metrics.Predictions]:
  """Evaluates one test batch; arguments as in `train_step`.

  Returns:
    Counts over all devices, and the predictions for this device's share.
  """
  outputs = forward(state, batch, images, model)
  classes = context.classes
  scores = model.method.predict(outputs, context, model.config)
  probabilities = model.method.probabilities(scores, context, model.config)
  counts = metrics.count(
    scores,
    outputs.logits,
    batch.labels,
    batch.positions >= 0,
    num_old=classes.num_old,
    num_seen=classes.num_seen,
    state_of_class=jnp.asarray(model.state_of_class, jnp.int32),
    num_states=max(model.state_of_class) + 1,
  )
  predicted = metrics.predictions(scores, probabilities, batch.labels)
  return jax.lax.psum(counts, AXIS), predicted


def extract_step(
  state: TrainState,
  batch: Batch,
  context: PhaseContext,
  images: jax.Array | None,
  *,
  model: Model,
  output_fn: OutputFn,
) -> Any:
  """Returns `output_fn` of a batch; arguments as in `train_step`."""
  outputs = forward(state, batch, images, model)
  return output_fn(outputs, batch.labels, context, model.config)


def total_step(
  total: Any,
  state: TrainState,
  batch: Batch,
  context: PhaseContext,
  images: jax.Array | None,
  *,
  model: Model,
  image_fn: ImageFn,
) -> Any:
  """Adds `image_fn` of a single image to this device's total; else as `train_step`.

  One image in a call: its value may be as large as the network, and in a loop on the device
  XLA for CPUs has no fast gradient for the weights of convolutions.
  """
  pixels = to_float(gather_images(batch, images), model.normalization)

  def network(params, pixels):
    variables = {"params": params, "batch_stats": state.batch_stats}
    return model.network.apply(variables, pixels, train=False)

  value = image_fn(network, state.params, pixels, batch.labels[0], context, model.config)
  is_image = batch.positions[0] >= 0
  return jax.tree.map(lambda old, x: old + jnp.where(is_image, x, 0), total, value)


def forward(
  state: TrainState, batch: Batch, images: jax.Array | None, model: Model
) -> Outputs:
  """Runs the network on a batch that is not augmented."""
  return model.network.apply(
    {"params": state.params, "batch_stats": state.batch_stats},
    to_float(gather_images(batch, images), model.normalization),
    train=False,
  )


def gather_images(batch: Batch, images: jax.Array | None) -> jax.Array:
  """Returns uint8 [B, S, S, 3], gathered if the images live on the device."""
  return batch.inputs if images is None else images[batch.inputs]
