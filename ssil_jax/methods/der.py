"""DER++: dark experience replay, which holds exemplars to the logits they once had.

P. Buzzega, M. Boschini, A. Porrello, D. Abati and S. Calderara, *Dark Experience for
General Continual Learning: a Strong, Simple Baseline*, NeurIPS 2020, arXiv:2004.07211. The
loss (equation 6) is l(y, x) + alpha |z' - h(x')|^2 + beta l(y'', x''), with x' and x'' two
independent draws of the memory, z' the stored logits of x', and each part a mean over its
own samples.

As in the authors' code, and with their alpha and beta, the squared distance is a mean over
classes. The paper draws its memory, logits included, from the whole course of training
by reservoir sampling; here exemplars are chosen at the end of a state, and store the
logits that the network has then, of the classes that it then knows, for the image as it
is, not augmented, with BatchNorm's running statistics. All three parts of a batch go
through the network together. Epochs and learning rates are those of SS-IL.

The stored logits, |M| times all classes in float32, are on every device: 80 MB for
ImageNet with |M| = 20,000, 1.2 GB for 10,000 classes with 30,000.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from ssil_jax.errors import ConfigError
from ssil_jax.methods.base import Method, all_logits, one_phase, softmax_in_first_state
from ssil_jax.methods.ft import softmax_loss
from ssil_jax.sampling import RATIO_PRESERVING_TWICE
from ssil_jax.settings import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """DER++'s own."""

  der_alpha: float = setting(
    0.1, "weight of the distance to the stored logits", at_least=0, changes="later_states"
  )
  der_beta: float = setting(
    0.5, "weight of the replayed samples' cross-entropy", at_least=0, changes="later_states"
  )


def squared_distance(logits, stored, labels, state_of_class):
  """Returns the mean of (z_k - h_k)^2 over the classes k known when z was stored, [B].

  Args:
    logits: [B, C].
    stored: float32 [B, C].
    labels: int [B]; z was stored at the end of the state that introduced the class.
    state_of_class: int [C], which state (from 0) introduced each class.
  """
  state = jnp.asarray(state_of_class)
  known = state[None, :] <= state[labels][:, None]
  squares = (logits - stored) ** 2
  return jnp.sum(squares, axis=-1, where=known) / jnp.sum(known, axis=-1)


@softmax_in_first_state
def _loss(examples, config):
  own = config.method_settings
  stats, positions = examples.context.stats, examples.positions
  stored = stats["logits"][stats["row"][examples.records]]
  distance = squared_distance(
    examples.outputs.logits, stored, examples.labels, examples.state_of_class
  )
  entropy = softmax_loss(examples, config)
  num_new, num_drawn = config.batch_size_new, config.batch_size_memory
  is_new, is_first_draw = positions < num_new, positions < num_new + num_drawn
  # The loop takes the mean over all samples of the batch.
  num_samples = jnp.sum(examples.class_counts)
  return num_samples * jnp.where(
    is_new,
    entropy / num_new,
    jnp.where(is_first_draw, own.der_alpha * distance, own.der_beta * entropy) / num_drawn,
  )


def _store(state, config):
  """Stores the logits of new exemplars, and keeps those of old ones as they are."""
  records, labels = state.memory.records, state.memory.labels
  is_new = labels >= state.num_old
  row, stored = np.zeros_like(state.stats["row"]), np.zeros_like(state.stats["logits"])
  row[records] = np.arange(len(records))
  kept = state.stats["row"][records[~is_new]]
  stored[row[records[~is_new]]] = state.stats["logits"][kept]
  stored[row[records[is_new]]] = state.extract(records[is_new], all_logits)
  return {"row": row, "logits": stored}


def _grow(stats, fresh, kept):
  if (kept < 0).any():
    raise ConfigError(
      "--more_of_known is not for --method=der, which keeps with each exemplar the logits "
      "that it had when its class was learnt: leave the flag out"
    )
  row, logits = np.array(fresh["row"]), np.array(fresh["logits"])
  row[: len(kept)] = np.arange(len(kept))
  logits[: len(kept), : stats["logits"].shape[1]] = stats["logits"][kept]
  return {"row": row, "logits": logits}


DER = Method(
  title="DER++",
  phases=lambda config, t: one_phase(config, t, RATIO_PRESERVING_TWICE),
  loss=_loss,
  defaults={"epochs": 20},
  settings=Settings,
  init_stats=lambda sizes: {
    "row": np.zeros(sizes.num_records, np.int32),
    "logits": np.zeros((sizes.memory_size, sizes.num_classes), np.float32),
  },
  stats=_store,
  grow_stats=_grow,
)
