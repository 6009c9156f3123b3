"""Whole runs on a few digits: what they write, repeat, resume and cost in compiles."""

import collections
import json
import logging
import shutil

import jax
import numpy as np
import pytest
from quick import quick_network
from small_runs import last_checkpoint, records, run, small_config, untimed, untimed_records

from ssil_jax import memory, metrics
from ssil_jax.errors import ConfigError, DivergedError, WorkdirError
from ssil_jax.training import loop
from ssil_jax.training.checkpoint import Checkpoints
from ssil_jax.training.devices import choose_devices
from ssil_jax.training.plan import make_plan
from ssil_jax.training.session import make_session


@pytest.fixture
def quickly():
  with quick_network():
    yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A run on four devices: its directory, its results and the names of its compiles."""
  workdir = tmp_path_factory.mktemp("run") / "ssil"
  lines = []
  handler = logging.Handler()
  handler.emit = lambda record: lines.append(record.getMessage())
  logger = logging.getLogger("jax")
  logger.addHandler(handler)
  try:
    with jax.log_compiles(), jax.transfer_guard("disallow"):
      results = run(workdir)
  finally:
    logger.removeHandler(handler)
  compiled = [line.split()[4] for line in lines if line.startswith("Finished XLA")]
  return workdir, results, collections.Counter(compiled)


def test_compiles_once_per_batch_shape(finished):
  _, _, compiled = finished
  # Batches of 32 in state 1, of 32 + 8 in states 2 and 3; one shape of test batch; the
  # initial state. Nothing else is compiled in a whole run.
  assert compiled.total() == 2 + 1 + 1, compiled


def test_results_keep_their_contract(finished):
  workdir, results, _ = finished
  assert json.loads((workdir / "results.json").read_text()) == results
  assert (results["dataset"], results["method"]) == ("digits", "ssil")
  assert [state["num_old"] for state in results["states"]] == [0, 2, 4]
  assert [state["num_seen"] for state in results["states"]] == [2, 4, 6]
  first, *later = results["states"]
  assert first["imbalance"] is first["error_old_as_new"] is first["score_old"] is None
  for state in later:
    errors = state["error_old_as_new"], state["error_new_as_old"]
    assert state["imbalance"] == pytest.approx(np.mean(errors))
    assert 0 <= state["top1"] <= state["state_specific_top1"] <= 1
    assert state["top1"] <= state["top5"] <= 1
  assert results["average"] == metrics.average(results["states"])
  assert results["environment"]["num_devices"] == 4


def test_every_test_image_is_counted_once(finished):
  _, results, _ = finished
  plan = make_plan(small_config("unused"))
  for state in results["states"]:
    of_seen = int((plan.dataset.test.labels < state["num_seen"]).sum())
    assert np.sum(state["confusion"]) == of_seen


def test_metrics_hold_every_step_once(finished):
  workdir, _, _ = finished
  rows = records(workdir)
  assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
  schedule = json.loads((workdir / "schedule.json").read_text())
  assert len(rows) == sum(row["steps"] for row in schedule)
  rates = {row["state"]: row["learning_rate"] for row in rows}
  assert rates == {t: pytest.approx(1e-5 / t) for t in (1, 2, 3)}
  assert all(0 <= row["input_wait"] <= 1 for row in rows)


def test_repeated_run_is_identical_and_trains_nothing(finished):
  workdir, results, _ = finished
  before = (workdir / "metrics.jsonl").read_bytes()
  assert run(workdir) == results
  assert (workdir / "metrics.jsonl").read_bytes() == before


def test_resumes_after_the_last_saved_state(finished, tmp_path):
  workdir, results, _ = finished
  copy = tmp_path / "copy"
  shutil.copytree(workdir, copy)
  shutil.rmtree(last_checkpoint(copy))
  assert untimed(run(copy)) == untimed(results)
  assert untimed_records(copy) == untimed_records(workdir)


def test_one_device_trains_as_four_do(finished, tmp_path):
  workdir, _, _ = finished
  results = run(tmp_path / "other", num_devices=1)
  ours, theirs = (
    np.array([row["loss"] for row in records(path)])
    for path in (workdir, tmp_path / "other")
  )
  assert len(ours) == 26
  np.testing.assert_allclose(ours, theirs, rtol=1e-4)
  for state, other in zip(finished[1]["states"], results["states"], strict=True):
    assert other["score_new"] == pytest.approx(state["score_new"], rel=1e-3, abs=1e-4)
    assert np.sum(other["confusion"]) == np.sum(state["confusion"])


def test_the_checkpoint_holds_the_exemplars_of_the_ring_buffer(finished):
  workdir, results, _ = finished
  config = small_config(workdir)
  plan = make_plan(config)
  session = make_session(plan, choose_devices(config))
  with Checkpoints(workdir, kept=3) as checkpoints:
    saved = checkpoints.latest(default=session.start())
  assert saved.results == results["states"]
  assert int(saved.train_state.step) == len(records(workdir))
  expected = memory.empty()
  for state in plan.states:
    pool = plan.pool(state, expected)
    expected = loop.select_exemplars(plan, state, pool, expected, extract=None)
  for got, want in zip(saved.exemplars, expected, strict=True):
    np.testing.assert_array_equal(got, want)
  np.testing.assert_array_equal(np.bincount(saved.exemplars.labels), [3] * 6)


@pytest.mark.usefixtures("quickly")
def test_stops_when_the_loss_is_not_finite_and_may_be_started_again(tmp_path):
  with pytest.raises(DivergedError, match="state 1, epoch 1"):
    run(tmp_path, learning_rate=1e30, num_states=1)
  assert json.loads((tmp_path / "results.json").read_text())["states"] == []
  assert len(run(tmp_path, num_states=1)["states"]) == 1


@pytest.mark.usefixtures("quickly")
def test_momentum_starts_anew_with_every_state_unless_told_otherwise(tmp_path):
  losses = {}
  for reset in (True, False):
    run(tmp_path / str(reset), num_states=2, learning_rate=1e-2, reset_momentum=reset)
    losses[reset] = [
      [row["loss"] for row in records(tmp_path / str(reset)) if row["state"] == t]
      for t in (1, 2)
    ]
  assert losses[True][0] == losses[False][0]
  # The first loss of state 2 comes before its first update.
  assert losses[True][1][0] == losses[False][1][0]
  assert losses[True][1][1] != losses[False][1][1]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"num_states": 4}, "6 classes cannot be divided into --num_states=4"),
    ({"initial_classes": 3}, "--initial_classes=3 of 6 classes leaves 3"),
    ({"memory_size": 5}, "--memory_size=5 cannot hold one exemplar of each of the 6"),
    ({"num_classes": 11}, "--num_classes=11, but the data set has only 10"),
    ({"batch_size_new": 400}, "too few for one batch of --batch_size_new=400"),
    ({"batch_size_new": 30}, "--batch_size_new=30 cannot be shared equally by 4 devices"),
    ({"batch_size_memory": 6}, "--batch_size_memory=6 cannot be shared equally by 4"),
    ({"num_devices": 5}, "--num_devices=5, but there are only 4"),
  ],
)
def test_what_cannot_be_trained_is_named_before_anything_is_written(
  tmp_path, changes, message
):
  with pytest.raises(ConfigError, match=message):
    run(tmp_path / "run", **changes)
  assert not (tmp_path / "run").exists()


def test_refuses_the_directory_of_another_run(finished):
  workdir, _, _ = finished
  before = (workdir / "results.json").read_bytes()
  with pytest.raises(WorkdirError, match=r"--width: 4 there, 8 now"):
    run(workdir, width=8)
  assert (workdir / "results.json").read_bytes() == before
