"""Computes figures 2 and 3 of the paper: decision regions, and gradients of scores.

Both use the package's own losses and samplers. The classifier of figure 2 is a small
perceptron on points of six classes, three of them old, of which few exemplars are left;
the paper draws its regions by hand.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from ssil_jax.losses import seen_softmax_cross_entropy, separated_softmax_cross_entropy
from ssil_jax.sampling import EVERYTHING, RATIO_PRESERVING, SHUFFLED, Key, Pool, Sampling

NUM_OLD, NUM_CLASSES = 3, 6
_PER_CLASS, _EXEMPLARS = 256, 3
_BATCH_NEW, _BATCH_MEMORY = 32, 8
_EPOCHS, _LEARNING_RATE = 30, 0.1
_SPREAD = 0.33  # standard deviation of a class
_GRID = 161

Loss = Callable[[jax.Array, jax.Array], jax.Array]  # logits [B, C], labels [B] -> [B]


class Classifier(NamedTuple):
  """Holds a trained classifier of the plane, tested on points of its own."""

  title: str
  regions: np.ndarray  # int [G, G], the class of each point of the grid, rows along y
  top1: float
  error_old_as_new: float
  error_new_as_old: float


class Toy(NamedTuple):
  """Holds what figure 2 shows."""

  points: np.ndarray  # float [N, 2], of training
  labels: np.ndarray  # int32 [N]
  exemplars: np.ndarray  # int64, which of them are kept of the old classes
  axis: np.ndarray  # float [G], of both coordinates of the grid
  classifiers: list[Classifier]


class _Perceptron(nn.Module):
  """Computes a score for each class by two hidden layers."""

  @nn.compact
  def __call__(self, points):
    for _ in range(2):
      points = nn.relu(nn.Dense(32)(points))
    return nn.Dense(NUM_CLASSES)(points)


def classify_plane(seed: int = 0) -> Toy:
  """Trains three classifiers on the same points.

  Joint: on all data of all classes. FT and SS-IL: first on the old classes alone, then on
  the new ones and three exemplars of each old one; FT by one softmax over shuffled data,
  SS-IL by equation (3) over ratio-preserving batches.

  Args:
    seed: of points, weights and batches.
  """
  rng = np.random.default_rng(seed)
  angle = 2 * np.pi * np.arange(NUM_CLASSES) / NUM_CLASSES
  # Old and new classes take turns around a circle, so that all borders are between groups.
  centers = np.stack([np.cos(angle), np.sin(angle)], axis=1)[[0, 2, 4, 1, 3, 5]]

  def draw(count):
    labels = np.repeat(np.arange(NUM_CLASSES, dtype=np.int32), count)
    noise = _SPREAD * rng.standard_normal((len(labels), 2))
    return (centers[labels] + noise).astype(np.float32), labels

  (points, labels), (test_points, test_labels) = draw(_PER_CLASS), draw(_PER_CLASS)
  old, new = (np.flatnonzero(side) for side in (labels < NUM_OLD, labels >= NUM_OLD))
  exemplars = np.concatenate(
    [np.flatnonzero(labels == label)[:_EXEMPLARS] for label in range(NUM_OLD)]
  )
  network = _Perceptron()
  initial = network.init(jax.random.key(seed), points[:1])

  def joint(logits, labels):
    return seen_softmax_cross_entropy(logits, labels, num_seen=NUM_CLASSES)

  def first(logits, labels):
    return seen_softmax_cross_entropy(logits, labels, num_seen=NUM_OLD)

  def separated(logits, labels):
    return separated_softmax_cross_entropy(
      logits, labels, num_old=NUM_OLD, num_seen=NUM_CLASSES
    )

  def train(params, loss: Loss, pool: Pool, sampling: Sampling, state: int):
    optimizer = optax.sgd(_LEARNING_RATE / state, momentum=0.9, nesterov=True)
    key = Key(seed, state, phase=0)
    num_steps = _EPOCHS * sampling.steps_per_epoch(pool, _BATCH_NEW)
    records = np.stack(
      [
        sampling.batch(pool, key, step, _BATCH_NEW, _BATCH_MEMORY)
        for step in range(num_steps)
      ]
    )

    def step(carry, batch):
      params, moments = carry
      grads = jax.grad(
        lambda params: loss(network.apply(params, batch[0]), batch[1]).mean()
      )(params)
      updates, moments = optimizer.update(grads, moments, params)
      return (optax.apply_updates(params, updates), moments), None

    carry = params, optimizer.init(params)
    batches = jnp.asarray(points[records]), jnp.asarray(labels[records])
    (params, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, batches))(carry)
    return params

  none = np.zeros(0, np.int64)
  everything = Pool(new=np.arange(len(labels)), memory=none)
  after_first = train(initial, first, Pool(new=old, memory=none), SHUFFLED, 1)
  second = Pool(new=new, memory=exemplars)
  trained = {
    "All data": train(initial, joint, everything, EVERYTHING, 1),
    "FT": train(after_first, joint, second, SHUFFLED, 2),
    "SS-IL": train(after_first, separated, second, RATIO_PRESERVING, 2),
  }
  axis = np.linspace(-2.2, 2.2, _GRID, dtype=np.float32)
  grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)

  def predict(params, points):
    return np.asarray(jnp.argmax(network.apply(params, points), axis=-1))

  classifiers = []
  for title, params in trained.items():
    predicted = predict(params, test_points)
    is_old, taken_old = test_labels < NUM_OLD, predicted < NUM_OLD
    classifiers.append(
      Classifier(
        title,
        predict(params, grid).reshape(_GRID, _GRID),
        float(np.mean(predicted == test_labels)),
        float(np.mean(~taken_old[is_old])),
        float(np.mean(taken_old[~is_old])),
      )
    )
  return Toy(points, labels, exemplars, axis, classifiers)


def score_gradients() -> dict[str, np.ndarray]:
  """Returns what a batch of each method does to the scores of each class (figure 3).

  At scores of zero, N_D = 8 images of four new classes in turn and, by method: FT, as many
  exemplars of four old classes as a shuffled batch has on average where the memory is an
  eighth of the data, one; SS-IL, N_M = 4.

  Returns:
    Title -> float [B, 8], the gradient of the sum of the losses (equations 2 and 3) with
    respect to the scores; old classes come first, in the batch and in the columns.
  """
  num_old, num_seen = 4, 8
  new = [4, 5, 6, 7] * 2

  def ft(scores, labels):
    return seen_softmax_cross_entropy(scores, labels, num_seen=num_seen).sum()

  def ssil(scores, labels):
    return separated_softmax_cross_entropy(
      scores, labels, num_old=num_old, num_seen=num_seen
    ).sum()

  found = {}
  for title, loss, exemplars in (("FT", ft, [0]), ("SS-IL", ssil, [0, 1, 2, 3])):
    labels = jnp.array([*exemplars, *new])
    scores = jnp.zeros((len(labels), num_seen))
    found[title] = np.asarray(jax.grad(loss)(scores, labels))
  return found
