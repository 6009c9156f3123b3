"""WA: weight aligning, which makes new and old class weights equally long.

B. Zhao, X. Xiao, G. Gan, B. Zhang and S.-T. Xia, *Maintaining Discrimination and Fairness
in Class Incremental Learning*, CVPR 2020, arXiv:1911.07053. The loss is
(1 - lambda) L_CE + lambda L_KD with lambda = old / seen classes, L_KD one softened softmax
(T = 2) over all old classes. After each state the new classes' weights are multiplied by
gamma = mean |w_old| / mean |w_new|; while training, the weights are clipped at 0 after
every step, so that their lengths stand for their scores (features are not negative).

Common code differs: PyCIL clips nothing and weighs the two losses 1 : 2. The head's biases
are left as they are here and there.
"""

import jax.numpy as jnp
import numpy as np

from ssil_jax.losses import softened_cross_entropy
from ssil_jax.methods.base import Distillation, Method, drops_at, one_phase
from ssil_jax.methods.ft import softmax_loss
from ssil_jax.sampling import SHUFFLED


def weighted_distillation(examples, teacher_logits, config):
  """Returns (1 - lambda) L_CE + lambda L_KD, lambda = teacher's / seen classes; [B]."""
  classes = examples.context.classes
  share = classes.num_teacher_classes / classes.num_seen
  return (1 - share) * softmax_loss(examples, config) + share * softened_cross_entropy(
    examples.outputs.logits,
    teacher_logits,
    classes.num_teacher_classes,
    temperature=config.method_settings.temperature,
  )


def _loss(examples, config):
  return weighted_distillation(examples, examples.teacher.logits, config)


def _clip_head(params, before, context):
  head = params["head"]
  return {**params, "head": {**head, "kernel": jnp.maximum(head["kernel"], 0)}}


def align_head(params, num_old, num_seen):
  """Returns the parameters with the new classes' weights times gamma; host arrays."""
  if not num_old:
    return params
  kernel = np.array(params["head"]["kernel"])
  lengths = np.linalg.norm(kernel, axis=0)
  old, new = lengths[:num_old].mean(), lengths[num_old:num_seen].mean()
  if new > 0:  # they may all be clipped
    kernel[:, num_old:num_seen] *= old / new
  return {**params, "head": {**params["head"], "kernel": kernel}}


# How BiC and WA train on ImageNet: the rate drops after 30, 60, 80 and 90 of 100 epochs.
LARGE_SCALE = {
  "epochs": 100,
  "batch_size_new": 256,
  **drops_at("0.3", "0.6", "0.8", "0.9"),
  "learning_rate_by_state": "constant",
}

WA = Method(
  title="WA",
  phases=lambda config, t: one_phase(config, t, SHUFFLED),
  loss=_loss,
  defaults={**LARGE_SCALE, "selection": "herding"},
  settings=Distillation,
  has_teacher=True,
  project=_clip_head,
  align=align_head,
)
