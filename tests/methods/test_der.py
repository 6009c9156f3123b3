"""DER++: the logits that it stores."""

import finished_states
import numpy as np

from ssil_jax.methods import METHODS
from ssil_jax.methods.base import Sizes

DER = METHODS["der"]
NUM_CLASSES = 9
BOUNDS = (0, 3, 6, 9)
PER_CLASS, MEMORY_SIZE = 7, 13
QUOTAS = (4, 2, 1)  # 13 exemplars of 3, 6, 9 classes
LABELS = np.random.default_rng(7).permutation(np.repeat(np.arange(9), PER_CLASS))


def test_logits_are_stored_once_and_kept():
  rng = np.random.default_rng(11)
  dearest = [rng.permutation(np.flatnonzero(c == LABELS)).tolist() for c in range(9)]
  stats = DER.init_stats(Sizes(NUM_CLASSES, 1, len(LABELS), MEMORY_SIZE, {}, 8, None))
  config, stored = finished_states.config_of("der"), {}
  for state, quota in enumerate(QUOTAS):
    num_seen = BOUNDS[state + 1]
    logits = rng.standard_normal((len(LABELS), NUM_CLASSES)).astype(np.float32)
    finished = finished_states.finished_of(
      config,
      num_old=BOUNDS[state],
      num_seen=num_seen,
      labels=LABELS,
      stats=stats,
      memory=finished_states.memory_of([records[:quota] for records in dearest[:num_seen]]),
      train=finished_states.outputs_of(logits=logits),
    )
    before = {name: value.copy() for name, value in stats.items()}
    after = DER.stats(finished, config)
    for name, value in before.items():  # the state before may still be needed
      np.testing.assert_array_equal(stats[name], value)
      assert (after[name].shape, after[name].dtype) == (value.shape, value.dtype)
    stats = after
    for record, label in zip(finished.memory.records, finished.memory.labels, strict=True):
      if label >= finished.num_old:
        stored[record] = logits[record]
      # To the last bit, for the old ones, too.
      np.testing.assert_array_equal(stats["logits"][stats["row"][record]], stored[record])
    rows = stats["row"][finished.memory.records]
    assert len(set(rows.tolist())) == len(rows)  # each has one of its own
    assert rows.max() < MEMORY_SIZE
  assert len(finished.memory.records) == 9  # of every class one
