"""The measured step, by a clock that the test moves."""

import itertools
import types

from quick import quick_network
from small_runs import small_config

from ssil_jax.training import devices, speed


def test_images_are_gone_round_until_enough_steps_are_timed(tmp_path, monkeypatch):
  ticks = itertools.count()
  clock = types.SimpleNamespace(perf_counter=lambda: next(ticks))
  monkeypatch.setattr(speed, "time", clock)
  monkeypatch.setattr(devices, "prepare_cpu_devices", lambda config: None)
  # An epoch of the second state is one batch, and there is one epoch.
  config = small_config(tmp_path, method="ft", batch_size_new=200, num_devices=1)
  with quick_network():
    rate = speed.measure(config)
  # A second before each look at the clock: after the first step, which compiles, eleven
  # until more than ten have gone by, and one more at the end.
  assert rate == 11 * 200 / 12
