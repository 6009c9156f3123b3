"""PODNet: pooled outputs of all stages are distilled; a class is several proxies.

A. Douillard, M. Cord, C. Ollion, T. Robert and E. Valle, *PODNet: Pooled Outputs
Distillation for Small-Tasks Incremental Learning*, ECCV 2020, arXiv:2004.13513. The loss is
L_LSC + sqrt(seen / new classes) (lambda_c L_POD-spatial + lambda_f L_POD-flat):

- POD-spatial: the distance between network and teacher of what is left of a stage's output
  when its width, and when its height, is summed up, averaged over the four stages.
- POD-flat: the same of the features; of length 1, it is 1 minus their cosine here.
- The local similarity classifier: y_c = sum_k s_k cos(theta_ck, f), s the softmax over the
  class's K = 10 proxies of these cosines. Its loss is
  max(0, -log(exp(eta (y_c - delta)) / sum_{i != c} exp(eta y_i))), eta learnt.

The proxies of old classes are fixed. In the end all proxies, and no other parameters, are
trained on as many images of each new class as there are exemplars of an old one
(BatchNorm's running statistics go on following the images). The network is
without the last ReLU, and a stage's output is what its last one gets.

As in the authors' code, stage outputs are squared, both sums are one vector of length 1,
and its distance is not squared. That code, and the SS-IL authors', has another loss than
the paper: delta is taken from all scores, where it changes nothing, and the largest score
stands for the own one in the sum, so that the loss is above 0: `--podnet_loss=released`.
The paper's is here but for the gradient of eta, which does not go through eta delta: with
it, eta fell far below 0, where the loss is 0 and nothing is learnt (seen on digits). A
cosine counts as 2 cos - 2 in both codes. In the SS-IL authors', both sums are normalized
apart, POD-flat is twice as large and nothing is multiplied by sqrt(seen / new).

New proxies start at the clusters (k-means) of their class's features, as long as the old
ones are on average. From random ones eta can fall through 0, after which nothing new is
learnt (seen on CIFAR-100): their cosines are below those of the old proxies, which are
fixed.

Left out are clipped gradients and changed colours. The weights are those of the authors'
ImageNet runs; their lambdas for CIFAR-100 are 3 and 1, over 160 epochs, with a weight decay
of 5e-4.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ssil_jax.losses import masked_logsumexp
from ssil_jax.methods.base import Method, one_phase
from ssil_jax.methods.lucir import less_forget
from ssil_jax.resnet import unit
from ssil_jax.sampling import BALANCED, SHUFFLED
from ssil_jax.settings import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """PODNet's own."""

  podnet_spatial: float = setting(
    8.0, "weight of the stages' distillation", at_least=0, changes="later_states"
  )
  podnet_flat: float = setting(
    10.0, "weight of the features' distillation", at_least=0, changes="later_states"
  )
  podnet_margin: float = setting(
    0.6,
    "margin of the own class's similarity, in cosines",
    at_least=0,
    changes="every_state",
  )
  podnet_loss: str = setting(
    "paper",
    "the classifier's loss; paper: with the margin, and the other classes alone below the "
    "fraction; released, as in the authors' code: without it, and the own class among "
    "them, as large as the largest",
    choices=("paper", "released"),
    changes="every_state",
  )
  podnet_epochs: int = setting(
    20, "epochs of the classifier's fine-tuning", at_least=1, changes="later_states"
  )
  podnet_rate: float = setting(
    0.01, "learning rate of the classifier's fine-tuning", above=0, changes="later_states"
  )


def local_similarity_loss(logits, labels, num_seen, scale, *, margin):
  """Returns max(0, eta (delta - y_c) + log sum_{i != c} exp(eta y_i)); float32 [B].

  Args:
    logits: [B, C], eta y.
    labels: int [B].
    num_seen: classes that count; of a single one, the loss is 0.
    scale: eta.
    margin: delta.
  """
  index = jnp.arange(logits.shape[-1])[None, :]
  is_alone = jnp.asarray(num_seen) == 1
  # A sum over no class at all would have NaN as gradient.
  others = (index < num_seen) & ((index != labels[:, None]) | is_alone)
  own = jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
  # Through the margin, a scale far below 0 would be learnt, with which any score is right.
  margin = jax.lax.stop_gradient(scale) * margin
  loss = jax.nn.relu(margin - own + masked_logsumexp(logits, others))
  return jnp.where(is_alone, 0.0, loss)


def released_similarity_loss(logits, labels, num_seen):
  """Returns log(1 + sum_{i != c} exp(z_i - m)) - (z_c - m), m the largest z; float32 [B].

  Args:
    logits: [B, C], z = eta y.
    labels: int [B].
    num_seen: classes that count.
  """
  index = jnp.arange(logits.shape[-1])[None, :]
  is_seen = index < num_seen
  largest = jnp.max(logits, axis=-1, keepdims=True, where=is_seen, initial=-jnp.inf)
  relative = logits - largest
  own = jnp.take_along_axis(relative, labels[:, None], axis=-1)[:, 0]
  others = jnp.where(index == labels[:, None], 0.0, relative)
  return masked_logsumexp(others, is_seen) - own


def spatial_distance(stages, teacher_stages):
  """Returns POD-spatial: the mean over stages of |p - p*|, pooled; float32 [B].

  Args:
    stages: each [B, h, w, c].
    teacher_stages: the same of the teacher.
  """
  distances = []
  for stage, known in zip(stages, jax.lax.stop_gradient(teacher_stages), strict=True):
    squares = jnp.sum((_pooled(stage) - _pooled(known)) ** 2, axis=-1)
    # The root of 0 has no gradient.
    distances.append(jnp.sqrt(jnp.maximum(squares, 1e-24)))
  return sum(distances) / len(distances)


def _pooled(stage):
  """Returns sums of squares over width, and over height, of length 1; [B, (h + w) c]."""
  squares = stage.astype(jnp.float32) ** 2
  sums = [jnp.sum(squares, axis).reshape(len(stage), -1) for axis in (2, 1)]
  return unit(jnp.concatenate(sums, axis=-1), axis=-1)


def _is_fine_tuning(classes):
  return classes.num_teacher_classes > classes.num_old  # its teacher knows the new ones


def _loss(examples, config):
  classes, outputs = examples.context.classes, examples.outputs
  own = config.method_settings
  scored = outputs.logits, examples.labels, classes.num_seen
  if own.podnet_loss == "released":
    similarity = released_similarity_loss(*scored)
  else:
    margin = own.podnet_margin
    similarity = local_similarity_loss(*scored, outputs.scale, margin=margin)
  distance = own.podnet_spatial * spatial_distance(
    outputs.stages, examples.teacher.stages
  ) + own.podnet_flat * less_forget(outputs.features, examples.teacher.features)
  factor = jnp.sqrt(classes.num_seen / (classes.num_seen - classes.num_old))
  # Fine-tuning reaches the proxies alone, which no distance depends on.
  is_distilled = (classes.num_teacher_classes > 0) & ~_is_fine_tuning(classes)
  return similarity + jnp.where(is_distilled, factor * distance, 0.0)


def _fix(params, before, context):
  """Keeps the old proxies, or when fine-tuning all but proxies, as they were."""
  fine_tuning = _is_fine_tuning(context.classes)
  kernel, fixed = params["head"]["kernel"], before["head"]["kernel"]
  is_old = jnp.arange(kernel.shape[-1])[None, None, :] < context.classes.num_old
  kernel = jnp.where(is_old & ~fine_tuning, fixed, kernel)
  kept = jax.tree.map(lambda b, p: jnp.where(fine_tuning, b, p), before, params)
  return {**kept, "head": {**kept["head"], "kernel": kernel}}


def _imprint(params, labels, features, num_old, config):
  """Starts the proxies of new classes at the clusters of their features."""
  from sklearn.cluster import KMeans  # only now: it takes a second
  from threadpoolctl import threadpool_limits

  head, features = params["head"], features()
  kernel = np.array(head["kernel"])  # [d, K, C]
  length = np.mean(np.linalg.norm(kernel[:, :, :num_old], axis=0))
  count = kernel.shape[1]
  # Threads would add up in any order.
  with threadpool_limits(1):
    for label in np.unique(labels):
      own = features[labels == label]
      clusters = min(count, len(np.unique(own, axis=0)))
      found = KMeans(clusters, n_init=10, random_state=config.seed).fit(own)
      centers = found.cluster_centers_
      kernel[:, :, label] = length * np.resize(centers, (count, centers.shape[1])).T
  return {**params, "head": {**head, "kernel": kernel}}


def _phases(config, t):
  (training,) = one_phase(config, t, SHUFFLED)
  if t == 1:
    return (training,)
  own = config.method_settings
  fine_tuning = training._replace(
    sampling=BALANCED,
    epochs=own.podnet_epochs,
    learning_rate=own.podnet_rate,
    milestones=(),
    is_cosine=False,
    new_teacher=True,
  )
  return (training, fine_tuning)


PODNET = Method(
  title="PODNet",
  phases=_phases,
  loss=_loss,
  defaults={
    "epochs_first": 90,
    "epochs": 90,
    "learning_rate": 0.05,
    "learning_rate_by_state": "constant",
    "learning_rate_schedule": "cosine",
    "batch_size_new": 64,
    "selection": "herding",
  },
  settings=Settings,
  has_teacher=True,
  cosine_head=True,
  num_proxies=10,
  stage_outputs=True,
  imprint=_imprint,
  project=_fix,
)
