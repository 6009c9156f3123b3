"""GD: global distillation of three teachers, then balanced fine-tuning of the head.

K. Lee, K. Lee, J. Shin and H. Lee, *Overcoming Catastrophic Forgetting with Unlabeled Data
in the Wild*, ICCV 2019, arXiv:1903.12648. A later state has three phases:

1. C, the expert, learns the new classes, by a softmax among them; it starts from P, the
   network as the state found it. Exemplars, which are of no new class, are to leave it
   undecided: their distance to the uniform distribution is added (the paper's confidence
   calibration, weight `--gd_confidence`), as another mean. With weight 0, C is trained on
   the new images alone.
2. The network, which starts from P, too, learns from labels among all classes seen, from P
   among the old classes and from C among the new ones, all on new images and exemplars.
   P weighs old / seen classes, C new / seen.
3. The head alone is trained further, by the same loss, in which an image of class k weighs
   n / (m n_k): n images of m classes, n_k of them of k. These are the classes seen for
   labels, the old ones for P, the new ones for C; others than theirs weigh 1. This scales
   the gradient of each class, and nothing is left out to balance them. BatchNorm goes on
   averaging, as it does in the authors' code.

Equations are the paper's, and the code's (kibok90/iccv2019-inc) where the paper leaves them
open: distillation by P and C is T^2 times the cross-entropy with their softened outputs,
T = 2; C's two losses are means over images of new classes and over exemplars of a batch.
The code has the divergence instead, of the same gradient. Phase three takes 20 of the
state's 200 epochs, at a tenth of the rate; here C is trained for as many as phase two, 180,
and not for 200.

`--unlabeled_dir` adds images without labels to the batches of all phases, as many as
others. C is to be undecided about them, as about exemplars, and so is the first state's
network. P and C teach on them, too, and so does the third teacher, Q, the ensemble of both,
which is for them alone: P's largest probability stays, and what is left is shared out to
the other classes, old ones in proportion to P and new ones to C (`ensemble`). The losses by
labels and by Q are one mean, as in the code. Without such images there is no loss by Q, in
the paper neither.

The paper samples them anew for each state, from a million: three tenths are those of which
P is surest, as many for each old class, the others random. Here all are drawn at random,
with replacement, from the whole folder, which is one of its ablations (`--ood 1.0` in the
code). The code's batches of 128 are of both kinds, in the proportion of the data.

Left out is the dropout of the authors' network; they take plain momentum (`--nonesterov`).
"""

import dataclasses

import jax
import jax.numpy as jnp

from ssil_jax.losses import (
  interval_cross_entropy,
  masked_logsumexp,
  seen_softmax_cross_entropy,
)
from ssil_jax.methods.base import (
  Distillation,
  Method,
  drops_at,
  keeps_in_first_state,
  one_phase,
  softmax_in_first_state,
)
from ssil_jax.sampling import NEW_ONLY, SHUFFLED, with_unlabeled
from ssil_jax.settings import setting

_FINE_TUNING = 2  # number of the phase


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Distillation):
  """GD's own."""

  gd_epochs: int = setting(
    20, "epochs of the head's balanced fine-tuning", at_least=1, changes="later_states"
  )
  gd_confidence: float = setting(
    1.0,
    "weight of the loss by which exemplars leave the expert of the new classes undecided; "
    "0 trains it on new images alone",
    at_least=0,
    changes="every_state",  # the first one, too, with images without labels
  )
  unlabeled_dir: str = setting(
    "",
    "folder of images without labels, in folders or not, of which each batch has as many "
    "as of others",
    changes="every_state",
  )


def interval_log_softmax(logits, low, high, *, temperature=1.0):
  """Returns log p among the classes `low <= k < high`, 0 for others; float32 [B, C].

  Args:
    logits: [B, C].
    low, high: int [], of one class at least.
    temperature: T, by which logits are divided.
  """
  mask = _interval(logits, low, high)
  logits = logits.astype(jnp.float32) / temperature
  return jnp.where(mask, logits - masked_logsumexp(logits, mask)[:, None], 0.0)


def interval_distillation(logits, teacher_logits, low, high, *, temperature):
  """Returns -T^2 sum_k q_k log p_k, softened softmaxes over `low <= k < high`; float32 [B].

  The paper's L_dst; arguments as for `interval_log_softmax`. No gradient reaches the
  teacher's logits.
  """
  log_p, log_q = (
    interval_log_softmax(x, low, high, temperature=temperature)
    for x in (logits, jax.lax.stop_gradient(teacher_logits))
  )
  mask = _interval(logits, low, high)
  return -(temperature**2) * jnp.sum(jnp.exp(log_q) * log_p, axis=-1, where=mask)


def indecision(logits, low, high):
  """Returns KL(uniform || p), a softmax over `low <= k < high`; float32 [B].

  The paper's confidence loss, L_cnf: -1/m sum_k log p_k - log m, m = high - low.
  """
  count = jnp.asarray(high - low, jnp.float32)
  return -jnp.sum(interval_log_softmax(logits, low, high), axis=-1) / count - jnp.log(count)


def ensemble(logits, expert_logits, num_old, num_seen):
  """Returns q of Q, the ensemble of P and C; float32 [B, C], 0 for classes not seen.

  With p of P over the l old classes, c of C over the m new ones and s = l + m: the class of
  the largest p keeps it, p_max. Another old one has p (l - 1) / (s - 1), a new one
  c (1 - p_max) m / (s - 1).

  Args:
    logits: [B, C], of P.
    expert_logits: [B, C], of C.
    num_old: int [], l, 1 at least.
    num_seen: int [], s, l + 1 at least.
  """
  old = _interval(logits, 0, num_old)
  new = _interval(logits, num_old, num_seen)
  p = jnp.where(old, jnp.exp(interval_log_softmax(logits, 0, num_old)), 0.0)
  c = jnp.where(new, jnp.exp(interval_log_softmax(expert_logits, num_old, num_seen)), 0.0)
  largest = jnp.max(p, axis=-1, keepdims=True)
  stays = jax.nn.one_hot(jnp.argmax(p, axis=-1), p.shape[-1], dtype=bool)
  shared = p * (num_old - 1) + c * (1 - largest) * (num_seen - num_old)
  return jnp.where(stays, largest, shared / (num_seen - 1))


def balancing_weights(labels, class_images, low, high):
  """Returns n / (m n_k) of images of the m classes `low <= k < high`, else 1; float32 [B].

  Args:
    labels: int [B].
    class_images: float32 [C], n_k, images of each class.
    low, high: int [].
  """
  index = jnp.arange(len(class_images))
  counts = (index >= low) & (index < high)
  total = jnp.sum(class_images, where=counts)
  weights = total / ((high - low) * jnp.maximum(class_images, 1))
  return jnp.where(counts, weights, 1.0)[labels]


def _interval(logits, low, high):
  index = jnp.arange(logits.shape[-1])[None, :]
  return (index >= low) & (index < high)


@softmax_in_first_state
def _loss(examples, config):
  if examples.expert is None:
    return _loss_of_expert(examples, config)
  return _distilled_loss(examples, config)


def _loss_of_expert(examples, config):
  """Returns phase one's loss; in the first state, all images are of new classes."""
  classes, logits = examples.context.classes, examples.outputs.logits
  num_old, num_seen = classes.num_old, classes.num_seen
  is_new = examples.labels >= num_old
  own = interval_cross_entropy(
    logits, jnp.where(is_new, examples.labels, num_old), num_old, num_seen
  )
  weight = config.method_settings.gd_confidence
  undecided = weight * indecision(logits, num_old, num_seen)
  # Both are means over their own images of the global batch.
  batch_size = jnp.sum(examples.class_counts)
  num_new = jnp.sum(examples.class_counts, where=jnp.arange(logits.shape[-1]) >= num_old)
  num_others = batch_size - num_new
  if examples.unlabeled is not None:
    of_unlabeled = weight * indecision(examples.unlabeled.outputs.logits, num_old, num_seen)
    num_unlabeled = batch_size * (len(of_unlabeled) / len(examples.labels))
    num_others += num_unlabeled
  loss = jnp.where(is_new, own, undecided) * (
    batch_size / jnp.where(is_new, num_new, num_others)
  )
  if examples.unlabeled is None:
    return loss
  return loss + jnp.mean(of_unlabeled) * (num_unlabeled / num_others)


def _distilled_loss(examples, config):
  """Returns the loss of phases two and three."""
  context, logits = examples.context, examples.outputs.logits
  temperature = config.method_settings.temperature
  num_old, num_seen = context.classes.num_old, context.classes.num_seen

  def weights(low, high):
    balancing = balancing_weights(examples.labels, context.class_images, low, high)
    return jnp.where(context.phase == _FINE_TUNING, balancing, 1.0)

  def distilled(outputs, teacher, low, high):
    distance = interval_distillation(
      outputs.logits, teacher.logits, low, high, temperature=temperature
    )
    return distance * (high - low) / num_seen

  old, new = (0, num_old), (num_old, num_seen)
  loss = (
    weights(0, num_seen) * seen_softmax_cross_entropy(logits, examples.labels, num_seen)
    + weights(*old) * distilled(examples.outputs, examples.teacher, *old)
    + weights(*new) * distilled(examples.outputs, examples.expert, *new)
  )
  if examples.unlabeled is None:
    return loss
  _, outputs, teacher, expert = examples.unlabeled
  q = jax.lax.stop_gradient(ensemble(teacher.logits, expert.logits, num_old, num_seen))
  log_p = interval_log_softmax(outputs.logits, 0, num_seen)
  of_unlabeled = (
    -jnp.sum(q * log_p, axis=-1)
    + distilled(outputs, teacher, *old)
    + distilled(outputs, expert, *new)
  )
  # All are means over images with and without labels.
  share = len(loss) / (len(loss) + len(of_unlabeled))
  return share * loss + (1 - share) * jnp.mean(of_unlabeled)


@keeps_in_first_state
def _train_head_alone(params, before, context):
  """Keeps all but the head as it was, in phase three."""
  if context.expert is None:
    return params
  is_fixed = context.phase == _FINE_TUNING
  kept = jax.tree.map(lambda b, p: jnp.where(is_fixed, b, p), before, params)
  return {**kept, "head": params["head"]}


def _phases(config, t):
  own = config.method_settings
  sampling = with_unlabeled(SHUFFLED) if own.unlabeled_dir else SHUFFLED
  (network,) = one_phase(config, t, sampling)
  # Those that are to be undecided about other images see them.
  if t == 1:
    return (network._replace(sampling=sampling if own.gd_confidence else SHUFFLED),)
  expert = network._replace(sampling=sampling if own.gd_confidence else NEW_ONLY)
  fine_tuning = network._replace(
    epochs=own.gd_epochs,
    learning_rate=network.learning_rate * network.drop,
    milestones=tuple(sorted({own.gd_epochs // 2, 3 * own.gd_epochs // 4} - {0})),
    is_cosine=False,
  )
  return (expert, network._replace(new_expert=True, starts_from_teacher=True), fine_tuning)


GD = Method(
  title="GD",
  phases=_phases,
  loss=_loss,
  defaults={
    "epochs_first": 200,
    "epochs": 180,
    "milestones_first": drops_at("3/5", "4/5", "9/10")["milestones_first"],
    "milestones": drops_at("2/3", "8/9", "17/18")["milestones"],
    "learning_rate_by_state": "constant",
    "weight_decay": 5e-4,
  },
  settings=Settings,
  has_teacher=True,
  project=_train_head_alone,
  unlabeled_dir=lambda config: config.method_settings.unlabeled_dir,
)
