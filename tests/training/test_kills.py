"""Real kills of a real run: what it leaves in the end is what it leaves undisturbed."""

from signal import SIGKILL, SIGTERM

import kills

SIGNALS = [SIGKILL, SIGTERM, SIGKILL]  # in training, a checkpoint, an evaluation


def test_a_killed_run_ends_as_if_it_had_not_been_killed(tmp_path):
  arguments = [*kills.SMALL_RUN, *kills.epochs_for(len(SIGNALS)), "--num_states=2"]
  counts, number, different = kills.compare(tmp_path, arguments, SIGNALS, seed=0)
  assert counts.total() == len(SIGNALS)
  assert counts["training"] >= 1 <= counts["checkpoint"]
  assert number > 100
  assert not different
