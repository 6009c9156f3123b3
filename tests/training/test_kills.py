"""Real kills of a real run: what it leaves in the end is what it leaves undisturbed."""

import signal

import kills

SIGNALS = [signal.SIGKILL] * 2 + [signal.SIGTERM] * 2 + [signal.SIGKILL] * 2


def test_a_killed_run_ends_as_if_it_had_not_been_killed(tmp_path):
  # In training, in a checkpoint and in an evaluation, twice each.
  arguments = [*kills.SMALL_RUN, *kills.epochs_for(len(SIGNALS)), "--num_states=2"]
  counts, number, different = kills.compare(tmp_path, arguments, SIGNALS, seed=0)
  assert counts.total() == len(SIGNALS)
  assert counts["training"] >= 2 <= counts["checkpoint"]
  assert number > 100
  assert not different
