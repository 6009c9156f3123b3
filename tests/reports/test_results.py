"""Reading and checking the files of a work directory."""

import copy
import json

import numpy as np
import pytest
from written_runs import RESULTS, SCHEDULE, with_states, write_run

from ssil_jax.errors import DataError
from ssil_jax.reports.results import load_run


def test_load_run_reads_all_files(tmp_path):
  config = {"epochs": 5, "milestones": [2, 4], "data_fingerprint": "x"}
  more = {"statistics": {"a": 0.5, "b": None}, "from_workdir": "/x\u001b"}
  run = load_run(write_run(tmp_path / "a", results=with_states({}, more), config=config))
  assert run.folder == "a"
  # What cannot be printed is replaced.
  assert run.results == with_states({}, more | {"from_workdir": "/x\ufffd"})
  assert run.schedule == SCHEDULE
  assert run.config == config
  np.testing.assert_array_equal(run.loss, [[10, 20, 30], [2.0, 1.0, 1.5], [1, 1, 2]])


def test_load_run_needs_only_the_results(tmp_path):
  run = load_run(write_run(tmp_path, schedule=None, metrics=None))
  assert (run.schedule, run.loss, run.config) == ([], None, None)


def test_metrics_of_a_killed_run(tmp_path):
  with (write_run(tmp_path) / "metrics.jsonl").open("a") as file:
    file.write('{"state": 2, "ste')
  np.testing.assert_array_equal(load_run(tmp_path).loss.steps, [10, 20, 30])
  (tmp_path / "metrics.jsonl").write_text("")
  assert load_run(tmp_path).loss is None


ABSENT = object()


def results(value, *keys):
  """RESULTS as JSON with another value at a path of keys, or none there."""
  changed = copy.deepcopy(RESULTS)
  place = changed
  for key in keys[:-1]:
    place = place[key]
  if value is ABSENT:
    del place[keys[-1]]
  else:
    place[keys[-1]] = value
  return json.dumps(changed)


def last(name, value):
  return results(value, "states", 1, name)


def first(name, value):
  return results(value, "states", 0, name)


BAD_RESULTS = [
  ("{", "is not valid JSON"),
  ("", "is not valid JSON"),
  ("[" * 100_000, "is not valid JSON"),
  ("[]", "$: [] is not of type 'object'"),
  (results(ABSENT, "states"), "$: 'states' is a required property"),
  (results([], "states"), "$.states: no state is finished"),
  (results({}, "states"), "$.states: "),
  (results(["x"], "states"), "$.states[0]: 'x'"),
  (last("top1", ABSENT), "$.states[1]: 'top1' is a required property"),
  (last("top1", "0.5"), "$.states[1].top1: '0.5'"),
  (last("top1", True), "$.states[1].top1: "),
  (last("top1", None), "$.states[1].top1: "),
  (last("top1", 62.5), "$.states[1].top1: 62.5 is greater"),
  (last("top1", "x" * 10_000), "$.states[1].top1: "),
  (last("top1", float("nan")), "is not valid JSON (NaN"),
  (last("top5", None), "$.states[1].top5: "),
  (last("state_specific_top1", None), "$.states[1].state_specific_top1: "),
  (last("score_new", None), "$.states[1].score_new: "),
  (last("score_new", "1e999").replace('"1e999"', "1e999"), "$.states[1].score_new: inf"),
  (last("error_old_as_new", "x"), "$.states[1].error_old_as_new: "),
  (first("train_seconds", -1.0), "$.states[0].train_seconds: "),
  (last("state", 3), "$.states[1] must be state 2"),
  (last("num_old", 1), "$.states[1] must be state 2, from 2 old"),
  (last("num_seen", 2), "$.states[1] must be state 2"),
  (results(10**400, "seed"), "$.seed: "),
  (results(2.5, "memory_size"), "$.memory_size: "),
  (results(["x"], "method_title"), "$.method_title: "),
  (results([1], "environment"), "$.environment: "),
  (results({"a": []}, "environment"), "$.environment.a: "),
  (last("confusion", [[1]]), "$.states[1].confusion must be 2 lists"),
  (last("confusion", [[1], [2, 3]]), "$.states[1].confusion must be 2 lists"),
  (last("confusion", [[1, 2], [3, -4]]), "$.states[1].confusion[1][1]: -4"),
  (results(ABSENT, "average", "top5"), "$.average: 'top5'"),
  (results(-1.5, "average", "forgetting"), "$.average.forgetting: -1.5"),
  (last("ece", 2), "$.states[1].ece: 2"),
  (last("top1_by_state", [0.5]), "$.states[1].top1_by_state must be a list of 2"),
  (last("top1_by_class", [0.5, 1]), "$.states[1].top1_by_class must be a list of 4"),
  (last("class_confusion", [[0, 1]]), "$.states[1].class_confusion must be a list of"),
  (last("class_confusion", [[0, 1, 2], [0]]), "$.states[1].class_confusion must be"),
  (last("class_confusion", [[0, 4, 1]]), "$.states[1].class_confusion must be a list"),
  (last("class_confusion", [[0, 1, 0]]), "$.states[1].class_confusion must be a list"),
  (last("class_confusion", [[0, 1, 0.5]]), "$.states[1].class_confusion must be"),
  (last("class_confusion", [[0, 1, 2**70]]), "$.states[1].class_confusion must be"),
  (results(["a"], "class_names"), "$.class_names must be 4 names at least"),
  (results("train", "split"), "$.split: 'train' is not one of"),
  (results([], "tuned_on"), "$.tuned_on: [] is not of type"),
  (last("statistics", []), "$.states[1].statistics: "),
  (last("statistics", {"a": "x"}), "$.states[1].statistics.a: 'x'"),
  (last("statistics", {"a": True}), "$.states[1].statistics.a: "),
  (first("statistics", {"a": [1]}), "$.states[0].statistics.a: "),
  (first("statistics", {"a": 1e31}), "$.states[0].statistics.a: "),
  (first("statistics", None), "$.states[0].statistics: "),
  (first("from_workdir", 1), "$.states[0].from_workdir: 1"),
  (b"\xff\xfe", "cannot be read (not UTF-8 text)"),
]
BAD_OTHERS = [
  ("schedule.json", "{}", "$: {} is not of type 'array'"),
  ("schedule.json", "[1]", "$[0]: 1 is not of type 'object'"),
  ("schedule.json", '[{"a": [1]}]', "$[0].a: "),
  ("config.json", "[]", "$: [] is not of type 'object'"),
  ("config.json", '{"data_fingerprint": []}', "$.data_fingerprint: [] is not"),
  ("metrics.jsonl", '{"state": 1\n{"state": 1}\n', "line 1: is not valid JSON"),
  ("metrics.jsonl", "[]\n", "line 1: $: "),
  ("metrics.jsonl", '{"state": 1, "step": 1}\n', "line 1: $: 'loss' is a required"),
  ("metrics.jsonl", '{"state": 1, "step": "1", "loss": 1.0}\n', "line 1: $.step: "),
]


@pytest.mark.parametrize(
  ("name", "text", "what"), [*(("results.json", *row) for row in BAD_RESULTS), *BAD_OTHERS]
)
def test_what_is_wrong_is_named_in_one_line(tmp_path, name, text, what):
  path = write_run(tmp_path) / name
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  with pytest.raises(DataError) as caught:
    load_run(tmp_path)
  message = str(caught.value)
  assert message.startswith(f"{path}: {what}")
  assert "\n" not in message
  assert len(message) < 300 + len(str(tmp_path))
