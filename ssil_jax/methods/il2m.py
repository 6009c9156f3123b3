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

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ssil_jax.methods.base import mask_unseen, softmax_probabilities
from ssil_jax.methods.ft import FT
from ssil_jax.settings import setting

_SHOWN_CLASSES = 50
_LARGEST = 1e20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """IL2M's own."""

  il2m_scores: str = setting(
    "softmax",
    "which scores are rectified, softmax or logits",
    choices=("softmax", "logits"),
    changes="results",
  )


def scores(outputs, context, config):
  """Returns float32 [B, C], probabilities or logits over the classes seen."""
  logits = mask_unseen(outputs, context, config)
  if config.method_settings.il2m_scores == "logits":
    return logits
  return jax.nn.softmax(logits.astype(jnp.float32), axis=-1)


def rectify(scores, factor, num_old):
  """Applies equation 1.

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


def _predict(outputs, context, config):
  rectified = rectify(
    scores(outputs, context, config), context.stats["factor"], context.classes.num_old
  )
  return mask_unseen(outputs._replace(logits=rectified), context, config)


def _probabilities(scores, context, config):
  """Returns rectified probabilities as shares of their sum; of logits, the softmax."""
  if config.method_settings.il2m_scores == "logits":
    return softmax_probabilities(scores, context, config)
  # Divided by the largest before they are added: a factor may be very large.
  shares = jnp.maximum(scores / jnp.max(scores, axis=-1, keepdims=True), 0)
  return shares / jnp.sum(shares, axis=-1, keepdims=True)


def _own_and_top(outputs, labels, context, config):
  """Returns [B, 3]: the own class's score, the top score, whether they are the same."""
  values = scores(outputs, context, config)
  own = jnp.take_along_axis(values, labels[:, None], axis=-1)[:, 0]
  right = jnp.argmax(values, axis=-1) == labels
  return jnp.stack([own, values.max(axis=-1), right.astype(own.dtype)], axis=-1)


def rectification(then, conf_then, now, conf_now):
  """Returns mu_then / mu_now * conf_now / conf_then, the factor of equation 1."""
  # A probability may vanish, and infinitely many times nothing would be no number.
  with np.errstate(divide="ignore", invalid="ignore"):
    factor = then / now * conf_now / conf_then
  return np.nan_to_num(factor, nan=1.0, posinf=_LARGEST, neginf=-_LARGEST).clip(
    -_LARGEST, _LARGEST
  )


def _stats(state, config):
  old, new = slice(state.num_old), slice(state.num_old, state.num_seen)
  stats = {name: value.copy() for name, value in state.stats.items()}
  of_new = state.extract(state.pool.new, _own_and_top)
  conf_now = of_new[:, 1].mean()
  stats["then"][new] = _means(of_new[:, 0], state.labels[state.pool.new], new)
  stats["conf_then"][new] = conf_now
  if state.num_old:
    records = state.pool.memory
    of_old = state.extract(records, _own_and_top)
    now = _means(of_old[:, 0], state.labels[records], old)
    stats["factor"][old] = rectification(
      stats["then"][old], stats["conf_then"][old], now, conf_now
    )
    stats["exemplar_top1"][...] = of_old[:, 2].mean()
  return stats


def _means(values, labels, classes):
  """Returns the mean of the values of each of a slice of classes; 1 where there is none."""
  total = np.bincount(labels, values, minlength=classes.stop)
  count = np.bincount(labels, minlength=classes.stop)
  return np.where(count > 0, total / np.maximum(count, 1), 1.0)[classes]


def _describe(state, config):
  shown = min(state.num_first, _SHOWN_CLASSES)
  old = np.flatnonzero(state.test_labels < state.num_old)
  if not (state.test_labels[old] < shown).any():  # a model may keep no test photos
    return {}
  own, top, right = state.extract(old, _own_and_top, test=True).T
  of_shown = state.test_labels[old] < shown
  return {
    "rectification": float(state.stats["factor"][:shown].mean()),
    "probability_ratio": float(top[of_shown].mean() / own[of_shown].mean()),
    "exemplar_top1": float(state.stats["exemplar_top1"]),
    "old_top1": float(right.mean()),
  }


def _init_stats(sizes):
  names = ("then", "conf_then", "factor")
  of_classes = {name: np.ones(sizes.num_classes, np.float32) for name in names}
  return {**of_classes, "exemplar_top1": np.zeros((), np.float32)}


IL2M = FT._replace(
  title="IL2M",
  settings=Settings,
  predict=_predict,
  probabilities=_probabilities,
  prediction=(
    "p: the softmax of the logits (with il2m_scores=logits, the logits); scores: "
    "p, but where the best class is one from number num_old on, counted from 0, that of "
    "each class k before it times factor[k]; probabilities: scores over their sum (with "
    "il2m_scores=logits, the softmax of the scores)"
  ),
  init_stats=_init_stats,
  stats=_stats,
  describe=_describe,
  trains_as="ft",
)
