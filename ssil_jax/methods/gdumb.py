"""GDumb: at every state, a new network trained on the memory alone.

A. Prabhu, P. Torr and P. Dokania, *GDumb: A Simple Approach that Questions Our Progress in
Continual Learning*, ECCV 2020. A balanced memory is filled greedily (algorithm 1), and a
network that starts from scratch is trained on it (algorithm 2) by the softmax
cross-entropy. What a state trains on is the memory that it leaves: floor(|M| / seen) images
of each class, the new ones among them. So are those of the first state, which is therefore
not that of other methods.

As exemplars are ranked at random when they are chosen, the same ones are trained on and
kept: `--selection` is `ring` whatever is given, as a new network cannot have chosen by
features. The paper fills its memory from a stream, and a class that comes late pushes out
one image of the largest class at a time; the result is as balanced, and as random, as here.

Epochs, batches, weight decay and the first and last learning rate (0.05, 0.0005) are those
of the authors' CIFAR runs. There the rate falls from one to the other by cosines with warm
restarts, after an epoch at a tenth of it; here it drops at two and at four fifths of the
epochs. They also clip gradients and mix images (CutMix), which is not done here, and take
plain momentum (`--nonesterov`). With `--init_from`, every state starts from those weights.
"""

import numpy as np

from ssil_jax import memory
from ssil_jax.methods.base import Method, one_phase
from ssil_jax.methods.ft import softmax_loss
from ssil_jax.sampling import Sampling


def memory_after(memory_size):
  """Draws from the exemplars that a state leaves, if they are kept in order of rank."""

  def epoch_records(pool):
    num_seen = int(pool.new_labels.max()) + 1
    count = memory.quota(memory_size, num_seen)
    return np.concatenate(
      [pool.new[pool.new_ranks < count], pool.memory[pool.memory_ranks < count]]
    )

  return Sampling("memory", epoch_records)


def _loss(examples, config):
  # Not marked by `softmax_in_first_state`: the first state, too, sees the memory alone.
  return softmax_loss(examples, config)


GDUMB = Method(
  title="GDumb",
  phases=lambda config, t: one_phase(config, t, memory_after(config.memory_size)),
  loss=_loss,
  defaults={
    "epochs_first": 256,
    "epochs": 256,
    "learning_rate": 0.05,
    "learning_rate_by_state": "constant",
    "batch_size_new": 16,
    "weight_decay": 1e-6,
  },
  fixed={"selection": "ring"},
  restarts=True,
)
