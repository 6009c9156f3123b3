"""The work directory: claiming it, config.json, metrics.jsonl, TensorBoard events."""

import json
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from ssil_jax import config as config_lib
from ssil_jax import workdir
from ssil_jax.errors import WorkdirError
from ssil_jax.journal import Journal


def config_of(path, **values):
  return config_lib.make_config({"workdir": str(path), **values}, {"epochs": 20})


def claim(config, *, data="data"):
  return workdir.claim(config, data_fingerprint=data)


def finish_a_state(folder):
  (folder / "checkpoints" / "1").mkdir(parents=True)


def refusal(config):
  with pytest.raises(WorkdirError) as error:
    claim(config)
  return str(error.value)


def test_a_new_directory_gets_the_config(tmp_path):
  config = config_of(tmp_path / "a" / "run", seed=3)
  folder = claim(config)
  assert folder == tmp_path / "a" / "run"
  saved = json.loads((folder / "config.json").read_text())
  assert saved == {**config_lib.to_json(config), "data_fingerprint": "data"}


def test_the_same_config_claims_it_again(tmp_path):
  claim(config_of(tmp_path))
  finish_a_state(tmp_path)
  before = (tmp_path / "config.json").read_bytes()
  assert claim(config_of(tmp_path)) == tmp_path
  assert claim(config_of(tmp_path, num_devices=2)) == tmp_path
  assert (tmp_path / "config.json").read_bytes() == before


def test_other_data_is_refused(tmp_path):
  claim(config_of(tmp_path))
  finish_a_state(tmp_path)
  with pytest.raises(WorkdirError, match="holds a run on other data"):
    claim(config_of(tmp_path), data="other")


def test_a_run_that_saved_no_state_is_replaced(tmp_path):
  claim(config_of(tmp_path))
  claim(config_of(tmp_path, seed=5), data="other")
  saved = json.loads((tmp_path / "config.json").read_text())
  assert (saved["seed"], saved["data_fingerprint"]) == (5, "other")


def test_another_config_is_refused_and_nothing_changes(tmp_path):
  claim(config_of(tmp_path))
  finish_a_state(tmp_path)
  before = {path: path.read_bytes() for path in tmp_path.glob("*.json")}
  message = refusal(config_of(tmp_path, seed=5, learning_rate=0.2))
  assert message.splitlines()[1:] == [
    "--learning_rate: 0.1 there, 0.2 now",
    "--seed: 0 there, 5 now",
  ]
  assert str(tmp_path) in message
  assert {path: path.read_bytes() for path in tmp_path.glob("*.json")} == before


def test_resume_never_refuses_a_run(tmp_path):
  claim(config_of(tmp_path, resume="never"))
  finish_a_state(tmp_path)
  assert "--resume=never" in refusal(config_of(tmp_path, resume="never"))
  assert claim(config_of(tmp_path)) == tmp_path


@pytest.mark.parametrize("content", [b"", b'{"seed": 0,', b"\xff\xfe", b"[1, 2]", b"3"])
def test_a_corrupt_config_is_refused_and_kept(tmp_path, content):
  path = tmp_path / "config.json"
  path.write_bytes(content)
  assert str(path) in refusal(config_of(tmp_path))
  assert path.read_bytes() == content


def test_checkpoints_without_a_config_are_refused(tmp_path):
  finish_a_state(tmp_path)
  assert "no config.json" in refusal(config_of(tmp_path))


def test_the_config_of_something_else_is_kept(tmp_path):
  (tmp_path / "config.json").write_text('{"editor": "dark"}')
  assert "another configuration" in refusal(config_of(tmp_path))
  assert (tmp_path / "config.json").read_text() == '{"editor": "dark"}'


def test_other_files_are_no_hindrance(tmp_path):
  (tmp_path / "notes.txt").write_text("mine")
  assert claim(config_of(tmp_path)) == tmp_path
  assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_file_is_no_work_directory(tmp_path):
  path = tmp_path / "file"
  path.write_text("mine")
  assert f"--workdir={path}" in refusal(config_of(path))
  assert f"--workdir={path / 'below'}" in refusal(config_of(path / "below"))
  assert path.read_text() == "mine"


def test_write_json_replaces_the_file(tmp_path):
  path = tmp_path / "results.json"
  workdir.write_json(path, {"a": 1})
  workdir.write_json(path, {"b": [2, None]})
  assert json.loads(path.read_text()) == {"b": [2, None]}
  assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("value", [float("nan"), {"deep": [object()]}])
def test_write_json_keeps_the_old_file_if_it_fails(tmp_path, value):
  path = tmp_path / "results.json"
  workdir.write_json(path, {"a": 1})
  with pytest.raises((ValueError, TypeError)):
    workdir.write_json(path, {"long": list(range(10_000)), "bad": value})
  assert json.loads(path.read_text()) == {"a": 1}


def test_write_json_never_writes_into_the_file_itself(tmp_path):
  path, other_name = tmp_path / "results.json", tmp_path / "hard_link"
  workdir.write_json(path, {"a": 1})
  other_name.hardlink_to(path)
  workdir.write_json(path, {"b": 2})
  assert json.loads(other_name.read_text()) == {"a": 1}


def record(state, step):
  return {
    "state": state,
    "step": step,
    "loss": 1.5,
    "top1": 0.25,
    "learning_rate": 0.1,
    "images_per_second": 9.0,
    "input_wait": 0.125,
  }


def events(folder):
  """Every TensorBoard event, read as the length-prefixed records that they are."""
  found = []
  for path in sorted((folder / "tensorboard").iterdir()):
    content, start = path.read_bytes(), 0
    while start < len(content):
      (length,) = struct.unpack_from("<Q", content, start)
      found.append(Event.FromString(content[start + 12 : start + 12 + length]))
      start += 12 + length + 4  # length and its checksum, record, checksum
  return found


def scalars(folder):
  return [(v.tag, e.step, v.simple_value) for e in events(folder) for v in e.summary.value]


def test_metrics_are_appended_line_by_line(tmp_path):
  records = [record(1, 10), record(1, 20)]
  with Journal(tmp_path, states_done=0, steps_done=0) as journal:
    for one in records:
      journal.train(one)
      # Readable at once: a run may be watched, or killed.
      last = (tmp_path / "metrics.jsonl").read_text().splitlines()[-1]
      assert json.loads(last) == one
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line) for line in lines] == records


def test_unfinished_states_and_half_lines_are_dropped(tmp_path):
  path = tmp_path / "metrics.jsonl"
  # Not as json.dumps writes it, to see that kept lines are not written anew.
  kept = b'{"state": 1,  "step": 10}\n{"step": 20, "state": 2, "loss": 1e0}\n'
  path.write_bytes(kept + b'{"state": 3, "step": 30}\n{"state": 2, "ste')
  with Journal(tmp_path, states_done=2, steps_done=20) as journal:
    assert path.read_bytes() == kept
    journal.train(record(3, 25))
  assert path.read_bytes() == kept + json.dumps(record(3, 25)).encode() + b"\n"


def test_a_whole_record_without_its_line_end_is_dropped(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"state": 1, "step": 10}\n{"state": 1, "step": 20}')
  with Journal(tmp_path, states_done=1, steps_done=10):
    assert path.read_text() == '{"state": 1, "step": 10}\n'


def test_tensorboard_gets_the_scores(tmp_path):
  with Journal(tmp_path, states_done=0, steps_done=0) as journal:
    journal.train(record(1, 10))
    journal.evaluation({"state": 1, "top1": 0.75, "imbalance": None}, step=10)
  (path,) = (tmp_path / "tensorboard").iterdir()
  assert "tfevents" in path.name
  assert path.stat().st_size > 0
  assert scalars(tmp_path) == [
    ("train/loss", 10, 1.5),
    ("train/top1", 10, 0.25),
    ("train/learning_rate", 10, pytest.approx(0.1)),
    ("train/images_per_second", 10, 9.0),
    ("train/input_wait", 10, 0.125),
    ("test/top1", 10, 0.75),
  ]


def test_tensorboard_hides_only_what_is_trained_again(tmp_path):
  # Killed at step 30 of state 2; state 1 was done, and evaluated, at step 20.
  with Journal(tmp_path, states_done=1, steps_done=20):
    pass
  (start,) = [e for e in events(tmp_path) if e.session_log.status == SessionLog.START]
  # TensorBoard hides earlier events at this step and after it.
  hidden = [step for step in (10, 20, 21, 30) if step >= start.step]
  assert hidden == [21, 30]
