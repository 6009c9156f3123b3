"""IL2M: FT whose old scores are rectified by what was remembered of them.

E. Belouadah and A. Popescu, *IL2M: Class Incremental Learning With Dual Memory*, ICCV 2019,
equation 1: where the best class is a new one, the score of every old class c becomes
p(c) mu_then(c) / mu_now(c) conf_now / conf_then(c). mu_then(c) is the mean score of c over
its training images in the state s that introduced it, conf_then(c) the mean top score over
all new images of s, mu_now(c) the mean score over its exemplars now, conf_now the mean top
score over the new images now. Images are not augmented.

The authors' code takes raw logits, whose means may be negative and flip the order
(`--il2m_scores=logits`); the SS-IL paper speaks of probabilities, the default here. Their
fine-tuning also begins every state with a fresh last layer, the SS-IL paper's does not.

What the paper's figure 7 shows of FT is in results.json under `statistics`:
`rectification`, the mean factor R over 50 classes of the first state (class order is
random, so the first 50); `probability_ratio`, mean P_pred / mean P(C_i), equation 4, over
their test images (with `--il2m_scores=logits`, of logits); `exemplar_top1` and `old_top1`,
FT's accuracy on the exemplars and the test images of the old classes.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ssil_jax.methods.base import mask_unseen
from ssil_jax.methods.ft import FT

_SHOWN_CLASSES = 50
_LARGEST = 1e20


def scores(outputs, given, config):
  """float32 [B, C], probabilities or logits over the classes seen."""
  logits = mask_unseen(outputs, given, config)
  if config.il2m_scores == "logits":
    return logits
  return jax.nn.softmax(logits.astype(jnp.float32), axis=-1)


def rectify(scores, factor, num_old):
  """Equation 1.

  Args:
    scores: [B, C]; -inf or 0 for classes not seen.
    factor: float32 [C], what an old class's score is multiplied by.
    num_old: classes of earlier states.

  Returns:
    [B, C]: unchanged where the best class is an old one.
  """
  is_old = jnp.arange(scores.shape[-1])[None, :] < num_old
  new_wins = jnp.argmax(scores, axis=-1, keepdims=True) >= num_old
  return jnp.where(is_old & new_wins, scores * factor[None, :], scores)


def _predict(outputs, given, config):
  rectified = rectify(
    scores(outputs, given, config), given.stats["factor"], given.classes.num_old
  )
  seen = jnp.arange(rectified.shape[-1])[None, :] < given.classes.num_seen
  return jnp.where(seen, rectified, -jnp.inf)


def _own_and_top(outputs, labels, given, config):
  """[B, 3]: the score of the own class, the top score, and whether they are the same."""
  values = scores(outputs, given, config)
  own = jnp.take_along_axis(values, labels[:, None], axis=-1)[:, 0]
  right = jnp.argmax(values, axis=-1) == labels
  return jnp.stack([own, values.max(axis=-1), right.astype(own.dtype)], axis=-1)


def rectification(then, conf_then, now, conf_now):
  """mu_then / mu_now * conf_now / conf_then, the factor of equation 1."""
  # A probability may vanish, and infinitely many times nothing would be no number.
  with np.errstate(divide="ignore", invalid="ignore"):
    factor = then / now * conf_now / conf_then
  return np.nan_to_num(factor, nan=1.0, posinf=_LARGEST, neginf=-_LARGEST).clip(
    -_LARGEST, _LARGEST
  )


def _stats(moment, config):
  old, new = slice(moment.num_old), slice(moment.num_old, moment.num_seen)
  stats = {name: value.copy() for name, value in moment.stats.items()}
  of_new = moment.survey(moment.pool.new, _own_and_top)
  conf_now = of_new[:, 1].mean()
  stats["then"][new] = _means(of_new[:, 0], moment.labels[moment.pool.new], moment)[new]
  stats["conf_then"][new] = conf_now
  stats["factor"][:] = 1
  if moment.num_old:
    records = moment.pool.memory
    of_old = moment.survey(records, _own_and_top)
    now = _means(of_old[:, 0], moment.labels[records], moment)[old]
    stats["factor"][old] = rectification(
      stats["then"][old], stats["conf_then"][old], now, conf_now
    )
    stats["exemplar_top1"][...] = of_old[:, 2].mean()
  return stats


def _means(values, labels, moment):
  """The mean of the values of each class seen; 1 where there is none."""
  total = np.bincount(labels, values, minlength=moment.num_seen)
  count = np.bincount(labels, minlength=moment.num_seen)
  return np.where(count > 0, total / np.maximum(count, 1), 1.0)


def _describe(moment, config):
  if not moment.num_old:
    return {}
  shown = min(moment.num_first, _SHOWN_CLASSES)
  old = np.flatnonzero(moment.test_labels < moment.num_old)
  own, top, right = moment.survey(old, _own_and_top, test=True).T
  of_shown = moment.test_labels[old] < shown
  return {
    "rectification": float(moment.stats["factor"][:shown].mean()),
    "probability_ratio": float(top[of_shown].mean() / own[of_shown].mean()),
    "exemplar_top1": float(moment.stats["exemplar_top1"]),
    "old_top1": float(right.mean()),
  }


def _init_stats(sizes):
  ones = np.ones(sizes.num_classes, np.float32)
  return {
    "then": ones,
    "conf_then": ones.copy(),
    "factor": ones.copy(),
    "exemplar_top1": np.zeros((), np.float32),
  }


IL2M = FT._replace(
  title="IL2M",
  settings=("il2m_scores",),
  predict=_predict,
  init_stats=_init_stats,
  stats=_stats,
  describe=_describe,
  trains_as="ft",
)
