"""Real kills of a real run: what it leaves in the end is what it leaves undisturbed."""

import signal

import kills


def test_a_killed_run_ends_as_if_it_had_not_been_killed(tmp_path):
  # In an evaluation, in training and in a checkpoint.
  signals = [signal.SIGTERM, signal.SIGKILL, signal.SIGKILL]
  arguments = [*kills.SMALL_RUN, *kills.epochs_for(9), "--num_states=2"]
  script = kills.ROOT / "tests" / "quick.py"
  number, different = kills.compare(tmp_path, arguments, signals, seed=0, script=script)
  assert number > 40
  assert not different
