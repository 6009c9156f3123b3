"""Reading and checking the files of a work directory; runs that other tests use."""

import copy
import json

import numpy as np
import pytest
from written_runs import RESULTS, SCHEDULE, write_run

from ssil_jax.errors import DataError
from ssil_jax.reports.results import load_run


def test_load_run_reads_all_three_files(tmp_path):
  run = load_run(write_run(tmp_path / "a"))
  assert run.results == RESULTS
  assert run.schedule == SCHEDULE
  np.testing.assert_array_equal(run.loss.steps, [10, 20, 30])
  np.testing.assert_array_equal(run.loss.losses, [2.0, 1.0, 1.5])
  np.testing.assert_array_equal(run.loss.states, [1, 1, 2])


def test_load_run_needs_only_the_results(tmp_path):
  run = load_run(write_run(tmp_path / "a", schedule=None, metrics=None))
  assert run.schedule == []
  assert run.loss is None
  assert run.config is None


def test_load_run_reads_the_configuration(tmp_path):
  config = {"epochs": 5, "milestones": [2, 4], "data_fingerprint": "x"}
  (write_run(tmp_path) / "config.json").write_text(json.dumps(config))
  assert load_run(tmp_path).config == config


def test_statistics_and_origin_of_a_state(tmp_path):
  results = copy.deepcopy(RESULTS)
  first, second = results["states"]
  first |= {"statistics": {}, "from_workdir": None}
  second |= {"statistics": {"alpha": 0.5, "beta": None}, "from_workdir": "/x\u001b"}
  states = load_run(write_run(tmp_path, results=results)).results["states"]
  assert states[0] == first
  assert states[1]["statistics"] == second["statistics"]
  assert states[1]["from_workdir"] == "/x\ufffd"


def test_metrics_of_a_killed_run(tmp_path):
  workdir = write_run(tmp_path / "a")
  with (workdir / "metrics.jsonl").open("a") as file:
    file.write('{"state": 2, "ste')
  np.testing.assert_array_equal(load_run(workdir).loss.steps, [10, 20, 30])
  (workdir / "metrics.jsonl").write_text("")
  assert load_run(workdir).loss is None


def without(*keys):
  """RESULTS as JSON with the value at a path of keys taken out."""
  results = copy.deepcopy(RESULTS)
  place = results
  for key in keys[:-1]:
    place = place[key]
  del place[keys[-1]]
  return json.dumps(results)


def with_value(value, *keys):
  """RESULTS as JSON with another value at a path of keys."""
  results = copy.deepcopy(RESULTS)
  place = results
  for key in keys[:-1]:
    place = place[key]
  place[keys[-1]] = value
  return json.dumps(results)


@pytest.mark.parametrize(
  ("text", "what"),
  [
    ("{", "not valid JSON"),
    ("", "not valid JSON"),
    ("[" * 100_000, "not valid JSON"),
    ("[]", "$: [] is not of type 'object'"),
    (without("states"), "$: 'states' is a required property"),
    (with_value([], "states"), "$.states: no state is finished"),
    (with_value({}, "states"), "$.states: "),
    (with_value(["x"], "states"), "$.states[0]: 'x'"),
    (without("states", 1, "top1"), "$.states[1]: 'top1' is a required property"),
    (with_value("0.5", "states", 1, "top1"), "$.states[1].top1: '0.5'"),
    (with_value(True, "states", 1, "top1"), "$.states[1].top1: "),
    (with_value(None, "states", 1, "top1"), "$.states[1].top1: "),
    (with_value(62.5, "states", 1, "top1"), "$.states[1].top1: 62.5 is greater"),
    (with_value("x" * 10_000, "states", 1, "top1"), "$.states[1].top1: "),
    (with_value(float("nan"), "states", 1, "top1"), "NaN"),
    (with_value("1e999", "states", 1, "score_new").replace('"1e999"', "1e999"), "inf"),
    (with_value("x", "states", 1, "error_old_as_new"), "$.states[1].error_old_as_new: "),
    (with_value(-1.0, "states", 0, "train_seconds"), "$.states[0].train_seconds: "),
    (with_value(3, "states", 1, "state"), "$.states[1] must be state 2"),
    (with_value(1, "states", 1, "num_old"), "$.states[1] must be state 2, from 2 old"),
    (with_value(2, "states", 1, "num_seen"), "$.states[1] must be state 2"),
    (with_value(10**400, "seed"), "$.seed: "),
    (with_value(2.5, "memory_size"), "$.memory_size: "),
    (with_value(["x"], "method_title"), "$.method_title: "),
    (with_value([1], "environment"), "$.environment: "),
    (with_value({"a": []}, "environment"), "$.environment.a: "),
    (with_value([[1]], "states", 1, "confusion"), "$.states[1].confusion must be 2"),
    (with_value([[1], [2, 3]], "states", 1, "confusion"), "confusion must be 2 lists"),
    (with_value([[1, 2], [3, -4]], "states", 1, "confusion"), "confusion[1][1]: -4"),
    (without("average", "top5"), "$.average: 'top5'"),
    (with_value([], "states", 1, "statistics"), "$.states[1].statistics: "),
    (with_value({"a": "x"}, "states", 1, "statistics"), "$.states[1].statistics.a: 'x'"),
    (with_value({"a": True}, "states", 1, "statistics"), "$.states[1].statistics.a: "),
    (with_value({"a": [1]}, "states", 0, "statistics"), "$.states[0].statistics.a: "),
    (with_value({"a": 1e31}, "states", 0, "statistics"), "$.states[0].statistics.a: "),
    (with_value(None, "states", 0, "statistics"), "$.states[0].statistics: "),
    (with_value(1, "states", 0, "from_workdir"), "$.states[0].from_workdir: 1"),
  ],
)
def test_bad_results_are_named_in_one_line(tmp_path, text, what):
  (tmp_path / "results.json").write_text(text)
  with pytest.raises(DataError) as caught:
    load_run(tmp_path)
  message = str(caught.value)
  assert message.startswith(f"{tmp_path / 'results.json'}: ")
  assert what in message
  assert "\n" not in message
  assert len(message) < 300 + len(str(tmp_path))


def test_results_that_are_missing_or_not_text(tmp_path):
  path = tmp_path / "results.json"
  with pytest.raises(DataError, match="results.json does not exist: give the work"):
    load_run(tmp_path)
  path.write_bytes(b"\xff\xfe")
  with pytest.raises(DataError, match="results.json: cannot be read .not UTF-8 text"):
    load_run(tmp_path)


@pytest.mark.parametrize(
  ("name", "text", "what"),
  [
    ("schedule.json", "{}", "$: {} is not of type 'array'"),
    ("schedule.json", "[1]", "$[0]: 1 is not of type 'object'"),
    ("schedule.json", '[{"a": [1]}]', "$[0].a: "),
    ("config.json", "[]", "$: [] is not of type 'object'"),
    ("config.json", '{"data_fingerprint": []}', "$.data_fingerprint: [] is not"),
    ("metrics.jsonl", '{"state": 1\n{"state": 1}\n', "line 1: is not valid JSON"),
    ("metrics.jsonl", "[]\n", "line 1: $: "),
    ("metrics.jsonl", '{"state": 1, "step": 1}\n', "line 1: $: 'loss' is a required"),
    ("metrics.jsonl", '{"state": 1, "step": "1", "loss": 1.0}\n', "line 1: $.step: "),
  ],
)
def test_bad_optional_files_are_named(tmp_path, name, text, what):
  write_run(tmp_path)
  (tmp_path / name).write_text(text)
  with pytest.raises(DataError) as caught:
    load_run(tmp_path)
  assert str(caught.value).startswith(f"{tmp_path / name}: ")
  assert what in str(caught.value)
