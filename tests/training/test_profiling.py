"""A trace of the steps that were asked for, of a real run."""

import jax
import pytest
from quick import quick_network
from small_runs import run, untimed

from ssil_jax.training.profiling import Profile


def test_a_run_leaves_a_trace_and_trains_as_without(tmp_path):
  with quick_network():
    plain = run(tmp_path / "plain", method="ft")
    traced = run(tmp_path / "traced", method="ft", profile=str(tmp_path / "trace"))
  assert untimed(traced) == untimed(plain)
  (trace,) = (tmp_path / "trace").rglob("*.xplane.pb")
  data = jax.profiler.ProfileData.from_file(str(trace))
  names = {
    (event.name, dict(event.stats).get("step_num"))
    for plane in data.planes
    for line in plane.lines
    for event in line.events
    if event.name == "train"
  }
  assert names == {("train", number) for number in range(10, 20)}


@pytest.mark.parametrize("num_steps", [0, 9])
def test_too_few_steps_are_said(num_steps, tmp_path):
  said = []
  with Profile(tmp_path / "trace", said.append) as profile:
    for number in range(num_steps):
      assert profile.step(lambda x, *, by: x + by, number, by=1) == number + 1
  (line,) = said
  assert f"there were {num_steps}: {tmp_path / 'trace'} has no trace" in line
  assert not (tmp_path / "trace").exists()
