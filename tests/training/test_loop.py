"""Whole runs on a few digits: what they write, repeat, resume and cost in compiles."""

import collections
import json
import logging

import jax
import numpy as np
import pytest
from quick import quick_network
from small_runs import records, run, small_config

from ssil_jax import memory, metrics
from ssil_jax.errors import ConfigError
from ssil_jax.training.checkpoint import Checkpoints
from ssil_jax.training.devices import choose_devices
from ssil_jax.training.plan import make_plan
from ssil_jax.training.session import make_session


@pytest.fixture(autouse=True, scope="module")
def _quickly():
  with quick_network():
    yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory, initial_networks):
  """A run on four devices: its directory, its results and the names of its compiles."""
  initial_networks.clear()  # for drawing is compiled, too
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
  dataset = make_plan(small_config("unused")).dataset
  labels = dataset.test.labels
  for state in results["states"]:  # every test image is counted once
    assert np.sum(state["confusion"]) == (labels < state["num_seen"]).sum()
    share = np.bincount(labels)[: state["num_seen"]] / (labels < state["num_seen"]).sum()
    assert share @ state["top1_by_class"] == pytest.approx(state["top1"])
  assert ["class_confusion" in state for state in results["states"]] == [False, False, True]
  by_class = np.array(results["states"][-1]["class_confusion"])
  assert by_class[:, 2].sum() == len(labels)
  on_diagonal = by_class[by_class[:, 0] == by_class[:, 1], 2].sum()
  assert on_diagonal / len(labels) == pytest.approx(results["states"][-1]["top1"])
  assert results["average"] == metrics.average(results["states"])
  assert results["class_names"] == list(dataset.class_names)
  assert (results["split"], results["validation_fraction"]) == ("test", 0)
  assert results["tuned_on"] is None
  assert {*results["environment"]} >= {
    *("commit", "python", "jaxlib", "flax", "optax", "cpu", "started", "command")
  }
  assert results["environment"]["num_devices"] == 4


def test_metrics_hold_every_step_once(finished):
  workdir, _, _ = finished
  rows = records(workdir)
  assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
  schedule = json.loads((workdir / "schedule.json").read_text())
  assert len(rows) == sum(row["steps"] for row in schedule)
  rates = {row["state"]: row["learning_rate"] for row in rows}
  assert rates == {t: pytest.approx(1e-5 / t) for t in (1, 2, 3)}
  assert all(0 <= row["input_wait"] <= 1 for row in rows)


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
    new = plan.pool(state, expected).new
    priority = memory.random_order(len(new), seed=0, state=state.index)
    sizes = {"memory_size": 18, "num_seen": state.num_seen}
    labels = plan.dataset.train.labels[new]
    expected = memory.update(expected, new, labels, priority, **sizes)
  for got, want in zip(saved.exemplars, expected, strict=True):
    np.testing.assert_array_equal(got, want)
  np.testing.assert_array_equal(np.bincount(saved.exemplars.labels), [3] * 6)


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


def test_more_devices_than_there_are(tmp_path):
  with pytest.raises(ConfigError, match="--num_devices=5, but there are only 4"):
    run(tmp_path / "run", num_devices=5)
  assert not (tmp_path / "run").exists()
