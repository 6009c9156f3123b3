"""LUCIR: a cosine classifier, a less-forget constraint and inter-class separation.

S. Hou, X. Pan, C. C. Loy, Z. Wang and D. Lin, *Learning a Unified Classifier Incrementally
via Rebalancing*, CVPR 2019. Scores are eta times the cosine of feature and class weight
(equation 4), and the network's last ReLU is left out. The loss (equation 9) is the
cross-entropy, plus lambda (1 - cos(teacher's feature, feature)) (equation 6), plus, for the
exemplars alone, sum_k max(0, m - cos_y + cos_k) over the K new classes with the largest
cosines (equation 8), averaged over the exemplars of the batch. Old class weights are fixed.

The authors' code differs from their paper: there lambda = lambda_base sqrt(old / new
classes), and in equation 7 lambda_base sqrt(new / old); and the margin losses are averaged
over K there. `--lucir_weighting=released` takes both from the code, of which published
figures come. The new classes' weights also start at the mean of their features there, and
at random here, unless with `--lucir_start=released`.
Their optional balanced fine-tuning of the classifier is left out. lambda_base is their 10
for ImageNet; for CIFAR-100 it is 5, over 160 epochs.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ssil_jax.methods.base import Method, drops_at, one_phase
from ssil_jax.methods.ft import softmax_loss
from ssil_jax.resnet import unit
from ssil_jax.sampling import SHUFFLED
from ssil_jax.settings import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """LUCIR's own."""

  lucir_lambda: float = setting(
    10.0, "base weight of the less-forget constraint", at_least=0, changes="later_states"
  )
  lucir_margin: float = setting(
    0.5,
    "margin of the inter-class separation, in cosines",
    at_least=0,
    changes="later_states",
  )
  lucir_negatives: int = setting(
    2, "new classes that each exemplar is held off from", at_least=1, changes="later_states"
  )
  lucir_weighting: str = setting(
    "paper",
    "weights of both losses; paper: less-forget by sqrt(new / old classes), margins added "
    "up over the new classes; released, as in the authors' code: by sqrt(old / new), and "
    "their mean",
    choices=("paper", "released"),
    changes="later_states",
  )
  lucir_start: str = setting(
    "paper",
    "what new classes' weights start as; paper: random ones; released, as in the authors' "
    "code: the mean of their features",
    choices=("paper", "released"),
    changes="later_states",
  )


def less_forget(features, teacher_features):
  """Returns 1 - cos(f*, f), equation 6, of features [B, d]; float32 [B]."""
  teacher_features = jax.lax.stop_gradient(teacher_features)
  return 1 - jnp.sum(unit(features, axis=-1) * unit(teacher_features, axis=-1), axis=-1)


def margin_ranking(cosines, labels, classes, *, margin, num_negatives):
  """Returns sum_k max(0, m - cos_y + cos_k), equation 8; float32 [B], 0 for new samples.

  Args:
    cosines: float32 [B, C].
    labels: int [B].
    classes: SeenClasses; where there are fewer than K new classes, all of them count.
    margin: m.
    num_negatives: K.
  """
  index = jnp.arange(cosines.shape[-1])[None, :]
  is_new = (index >= classes.num_old) & (index < classes.num_seen)
  count = min(num_negatives, cosines.shape[-1])
  hardest, _ = jax.lax.top_k(jnp.where(is_new, cosines, -jnp.inf), count)
  own = jnp.take_along_axis(cosines, labels[:, None], axis=-1)
  return jnp.where(
    labels < classes.num_old, jnp.sum(jax.nn.relu(margin - own + hardest), axis=-1), 0.0
  )


def _loss(examples, config):
  classes, outputs = examples.context.classes, examples.outputs
  own = config.method_settings
  num_new = classes.num_seen - classes.num_old
  constraint = less_forget(outputs.features, examples.teacher.features)
  is_released = own.lucir_weighting == "released"
  if is_released:
    ratio = classes.num_old / num_new
  else:
    ratio = num_new / jnp.maximum(classes.num_old, 1)
  weight = own.lucir_lambda * jnp.sqrt(ratio)
  separation = margin_ranking(
    outputs.logits / outputs.scale,
    examples.labels,
    classes,
    margin=own.lucir_margin,
    num_negatives=own.lucir_negatives,
  )
  if is_released:
    separation /= jnp.minimum(own.lucir_negatives, num_new)
  is_old = jnp.arange(outputs.logits.shape[-1]) < classes.num_old
  num_samples = jnp.sum(examples.class_counts)
  num_exemplars = jnp.sum(examples.class_counts, where=is_old)
  return (
    softmax_loss(examples, config)
    + jnp.where(classes.num_teacher_classes > 0, weight * constraint, 0.0)
    # The loop takes the mean over all samples of the batch; this one is over exemplars.
    + separation * num_samples / jnp.maximum(num_exemplars, 1)
  )


def _fix_old_weights(params, before, context):
  kernel, fixed = params["head"]["kernel"], before["head"]["kernel"]
  is_old = jnp.arange(kernel.shape[-1])[None, :] < context.classes.num_old
  return {**params, "head": {**params["head"], "kernel": jnp.where(is_old, fixed, kernel)}}


def _imprint(params, labels, features, num_old, config):
  """Starts new classes' weights at the mean of their features, as long as old ones are."""
  if config.method_settings.lucir_start == "paper":
    return params
  head, features = params["head"], features()
  kernel = np.array(head["kernel"])  # [d, C]
  length = np.mean(np.linalg.norm(kernel[:, :num_old], axis=0))
  for label in np.unique(labels):
    mean = np.mean(features[labels == label], axis=0)
    kernel[:, label] = length * mean / max(np.linalg.norm(mean), 1e-12)
  return {**params, "head": {**head, "kernel": kernel}}


LUCIR = Method(
  title="LUCIR",
  phases=lambda config, t: one_phase(config, t, SHUFFLED),
  loss=_loss,
  defaults={
    "epochs_first": 90,
    "epochs": 90,
    **drops_at("1/3", "2/3"),
    "learning_rate_by_state": "constant",
    "selection": "herding",
  },
  settings=Settings,
  has_teacher=True,
  cosine_head=True,
  imprint=_imprint,
  project=_fix_old_weights,
)
