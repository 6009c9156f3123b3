"""The work directory: claiming it, config.json, metrics.jsonl, TensorBoard events."""

import contextlib
import errno
import json
import os
import platform
import shutil
import signal
import struct
import subprocess
import sys

import pytest
from folders import ROOT
from tensorboardX.proto.event_pb2 import Event, SessionLog

from ssil_jax import config as config_lib
from ssil_jax import system
from ssil_jax.data import fingerprint
from ssil_jax.errors import WorkdirError
from ssil_jax.training import workdir
from ssil_jax.training.recorder import Journal

PARTS = {"classes": 3, "test images": 20, "labels of test images": "0a1b"}


def config_of(path, **values):
  return config_lib.make_config({"workdir": str(path), **values}, METHODS["ssil"])


def claim(config, *, parts=PARTS, warnings=None):
  """Claims the directory and leaves it; returns its path."""
  warn = (lambda line: pytest.fail(line)) if warnings is None else warnings.append
  with workdir.claimed(config, data_parts=parts, warn=warn) as folder:
    return folder


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
  assert saved == {
    **config_lib.to_json(config),
    "data_fingerprint": fingerprint.fingerprint(PARTS),
    "data": PARTS,
  }


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
  other = {**PARTS, "classes": 4, "labels of test images": "ffff", "image size": 8}
  del other["test images"]
  before = (tmp_path / "config.json").read_bytes()
  with pytest.raises(WorkdirError, match="holds a run on other data") as error:
    claim(config_of(tmp_path), parts=other)
  assert str(error.value).splitlines()[1:] == [
    "classes: 3 there, 4 now",
    "labels of test images: different",
  ]
  assert (tmp_path / "config.json").read_bytes() == before
  claim(config_of(tmp_path))


def test_what_cannot_be_compared_is_said(tmp_path):
  claim(config_of(tmp_path))
  finish_a_state(tmp_path)
  other, warnings = {**PARTS, "contents of test images": "ffff"}, []
  del other["test images"]
  claim(config_of(tmp_path), parts=other, warnings=warnings)
  assert warnings == [
    f"warning: not compared with the run in {tmp_path}: contents of test images, test "
    "images"
  ]


def test_what_is_known_of_the_data_only_now_is_compared_from_then_on(tmp_path):
  claim(config_of(tmp_path))
  finish_a_state(tmp_path)
  known = {**PARTS, "contents of test images": "ffff"}
  claim(config_of(tmp_path), parts=known, warnings=[])
  saved = json.loads((tmp_path / "config.json").read_text())
  assert saved["data"] == known
  assert saved["data_fingerprint"] == fingerprint.fingerprint(known)
  claim(config_of(tmp_path), parts=known)  # without a warning
  with pytest.raises(WorkdirError, match="contents of test images: different"):
    claim(config_of(tmp_path), parts={**known, "contents of test images": "0000"})
  warnings = []
  claim(config_of(tmp_path), warnings=warnings)  # with --noverify_data
  assert len(warnings) == 1
  assert json.loads((tmp_path / "config.json").read_text()) == saved


@pytest.mark.parametrize("parts", [None, "0a", {}, {"editor": "dark"}])
def test_a_run_that_does_not_tell_its_data_is_refused(tmp_path, parts):
  path = claim(config_of(tmp_path)) / "config.json"
  finish_a_state(tmp_path)
  path.write_text(json.dumps({**json.loads(path.read_text()), "data": parts}))
  assert "of an earlier version" in refusal(config_of(tmp_path))


def test_a_run_that_saved_no_state_is_replaced(tmp_path):
  claim(config_of(tmp_path))
  other = {**PARTS, "classes": 4}
  claim(config_of(tmp_path, seed=5), parts=other)
  saved = json.loads((tmp_path / "config.json").read_text())
  assert (saved["seed"], saved["data"]) == (5, other)
  assert saved["data_fingerprint"] == fingerprint.fingerprint(other)


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


@pytest.mark.parametrize(
  ("content", "is_refused"),
  [
    ('{"states": [{"state": 1}]}', True),
    ('{"states": 3}', True),
    ("{}", True),
    ("half a fi", True),
    ('{"states": []}', False),
  ],
)
def test_results_without_checkpoints_are_never_replaced(tmp_path, content, is_refused):
  claim(config_of(tmp_path))
  (tmp_path / "results.json").write_text(content)
  # One that was being written when the run was killed is none.
  (tmp_path / "checkpoints" / "1.orbax-checkpoint-tmp").mkdir(parents=True)
  before = (tmp_path / "config.json").read_bytes()
  if is_refused:
    assert "has results, but no checkpoints" in refusal(config_of(tmp_path))
    assert "has results, but no checkpoints" in refusal(config_of(tmp_path, seed=5))
    assert (tmp_path / "config.json").read_bytes() == before
    assert (tmp_path / "results.json").read_text() == content
  else:
    claim(config_of(tmp_path, seed=5))
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 5


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


# The lock --------------------------------------------------------------------------------

HOLD = """
import sys
sys.path.insert(0, sys.argv[1])
from ssil_jax import config, workdir
made = config.make_config({"workdir": sys.argv[2]}, METHODS["ssil"])
with workdir.claimed(made, data_parts={"classes": 3}):
  print("claimed", flush=True)
  sys.stdin.read()
"""


@contextlib.contextmanager
def held(folder):
  """Another process that uses the directory."""
  root = ROOT
  process = subprocess.Popen(
    [sys.executable, "-c", HOLD, root, folder],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  with process:
    assert process.stdout.readline() == "claimed\n"
    try:
      yield process
    finally:
      process.kill()


def test_a_directory_in_use_is_refused_until_its_user_is_gone(tmp_path):
  with held(tmp_path) as process:
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for _ in range(2):
      message = refusal(config_of(tmp_path))
      assert f"{tmp_path} is in use by another run" in message
      assert f"(process {process.pid} on {platform.node()})" in message
      assert "\n" not in message
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    process.send_signal(signal.SIGKILL)  # which leaves no time to give anything back
    process.wait()
    assert (tmp_path / "lock").exists()
    assert claim(config_of(tmp_path)) == tmp_path


def test_the_lock_is_given_back_whatever_happens(tmp_path):
  config = config_of(tmp_path)
  with pytest.raises(RuntimeError), workdir.claimed(config, data_parts=PARTS):
    raise RuntimeError
  finish_a_state(tmp_path)
  for _ in range(2):
    refusal(config_of(tmp_path, seed=5))
  claim(config)


def test_the_lock_tells_its_last_owner_alone(tmp_path):
  (tmp_path / "lock").write_text("process 123456789 on a host with a very long name\n")
  with workdir.claimed(config_of(tmp_path), data_parts=PARTS):
    owner = (tmp_path / "lock").read_text()
  assert owner == f"process {os.getpid()} on {platform.node()}\n"


def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch):
  def flock(file, how):
    raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

  monkeypatch.setattr("fcntl.flock", flock)
  warnings = []
  assert claim(config_of(tmp_path), warnings=warnings) == tmp_path
  assert warnings == [
    f"warning: {tmp_path} cannot be locked ({os.strerror(errno.ENOTSUP)}): see to it that "
    "no other run uses it"
  ]


def test_one_process_of_several_claims_for_all(tmp_path, monkeypatch):
  monkeypatch.setattr(workdir.collectives, "is_main", lambda: False)
  assert claim(config_of(tmp_path / "run")) == tmp_path / "run"
  assert not (tmp_path / "run").exists()


def test_what_the_system_says_of_the_directory_is_one_error(tmp_path):
  config = config_of(tmp_path)
  with pytest.raises(WorkdirError) as error, workdir.writing(config):
    (tmp_path / "none" / "file").write_text("")
  assert str(error.value).startswith(f"--workdir={tmp_path} cannot be used: ")
  with pytest.raises(KeyError), workdir.writing(config):
    raise KeyError


def test_room_is_asked_for_before_training(tmp_path):
  free = shutil.disk_usage(tmp_path).free
  workdir.check_space(tmp_path, free // 2)
  with pytest.raises(WorkdirError) as error:
    workdir.check_space(tmp_path, 2 * free + 10**15)
  message = str(error.value)
  assert message.startswith(f"{tmp_path} has ")
  assert "PB" in message
  assert "--checkpoints_kept" in message
  assert "\n" not in message


# Files -----------------------------------------------------------------------------------


def test_write_json_replaces_the_file(tmp_path):
  path = tmp_path / "results.json"
  system.write_json(path, {"a": 1})
  system.write_json(path, {"b": [2, None]})
  assert json.loads(path.read_text()) == {"b": [2, None]}
  assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("value", [float("nan"), {"deep": [object()]}])
def test_write_json_keeps_the_old_file_if_it_fails(tmp_path, value):
  path = tmp_path / "results.json"
  system.write_json(path, {"a": 1})
  with pytest.raises((ValueError, TypeError)):
    system.write_json(path, {"long": list(range(10_000)), "bad": value})
  assert json.loads(path.read_text()) == {"a": 1}


def test_write_json_never_writes_into_the_file_itself(tmp_path):
  path, other_name = tmp_path / "results.json", tmp_path / "hard_link"
  system.write_json(path, {"a": 1})
  other_name.hardlink_to(path)
  system.write_json(path, {"b": 2})
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


def line(step):
  return json.dumps(record(1, step)) + "\n"


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
  with Journal(tmp_path, steps_done=0, steps_recorded=0) as journal:
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
  with Journal(tmp_path, steps_done=20, steps_recorded=20) as journal:
    assert path.read_bytes() == kept
    journal.train(record(3, 25))
  assert path.read_bytes() == kept + json.dumps(record(3, 25)).encode() + b"\n"


def test_a_whole_record_without_its_line_end_is_dropped(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"state": 1, "step": 10}\n{"state": 1, "step": 20}')
  with Journal(tmp_path, steps_done=10, steps_recorded=10):
    assert path.read_text() == '{"state": 1, "step": 10}\n'


def opened(folder, *, steps_done, steps_recorded=None, warnings=None):
  """Opens the journal and closes it; returns its lines."""
  warn = (lambda line: pytest.fail(line)) if warnings is None else warnings.append
  recorded = steps_done if steps_recorded is None else steps_recorded
  with Journal(folder, steps_done=steps_done, steps_recorded=recorded, warn=warn):
    return (folder / "metrics.jsonl").read_text().splitlines(keepends=True)


def test_records_after_the_checkpoint_are_dropped(tmp_path):
  (tmp_path / "metrics.jsonl").write_text("".join(map(line, (10, 20, 30, 40))))
  assert opened(tmp_path, steps_done=40) == [*map(line, (10, 20, 30, 40))]
  # The checkpoint has the metrics of steps 31 to 37, and will record them again.
  kept = opened(tmp_path, steps_done=37, steps_recorded=30)
  assert kept == [*map(line, (10, 20, 30))]
  assert opened(tmp_path, steps_done=20) == [*map(line, (10, 20))]
  assert opened(tmp_path, steps_done=0) == []


def test_records_of_a_window_are_dropped(tmp_path):
  # Recorded with a smaller --log_every, between the checkpoint and a kill.
  (tmp_path / "metrics.jsonl").write_text("".join(map(line, (10, 12, 14, 16))))
  assert opened(tmp_path, steps_done=14, steps_recorded=10) == [line(10)]


@pytest.mark.parametrize("garbage", [b"\0" * 50 + b"\n", b"{]\n", b"\xff\xfe\n[", b"3\n\n"])
@pytest.mark.parametrize("kept", [[], [10, 20]])
def test_lines_after_the_checkpoint_may_be_anything(tmp_path, garbage, kept):
  # They were not yet on the disk when the power went.
  path = tmp_path / "metrics.jsonl"
  before = "".join(map(line, kept)).encode()
  path.write_bytes(before + garbage + line(30).encode() + b'{"st')
  opened(tmp_path, steps_done=20 if kept else 0)
  assert path.read_bytes() == before


@pytest.mark.parametrize(
  ("lines", "message"),
  [
    ([line(10), "{]\n", line(20)], "line 2 is no record"),
    ([line(10), "[]\n", line(20)], "line 2 is no record"),
    (["\n", line(10), line(20)], "line 1 is no record"),
    ([line(10), '{"step": "11"}\n', line(20)], "line 2 has no step"),
    ([line(10), '{"step": true}\n', line(20)], "line 2 has no step"),
    ([line(10), line(5), line(20)], "line 2 is not in the order of steps"),
    ([line(10), line(10), line(20)], "line 2 is not in the order of steps"),
    ([line(10)], "ends with step 10, not 20"),
    ([line(10), line(15), line(30)], "ends with step 15, not 20"),
    ([line(10), line(20)[:-5]], "ends with step 10, not 20"),
  ],
)
def test_damaged_and_missing_records_are_named(tmp_path, lines, message):
  path = tmp_path / "metrics.jsonl"
  path.write_text("".join(lines))
  with pytest.raises(WorkdirError) as error:
    opened(tmp_path, steps_done=23, steps_recorded=20)
  assert str(error.value) == (
    f"{path}{' ' if message.startswith('ends') else ': '}{message}: put the file right, or "
    "delete it and records begin after step 20"
  )
  assert path.read_text() == "".join(lines)


def test_a_journal_that_is_gone_begins_again_with_a_warning(tmp_path):
  path, warnings = tmp_path / "metrics.jsonl", []
  assert opened(tmp_path, steps_done=23, steps_recorded=20, warnings=warnings) == []
  assert warnings == [f"warning: {path} is gone; it begins again after step 20"]
  # And goes on so, when it is killed once more.
  with Journal(tmp_path, steps_done=23, steps_recorded=20) as journal:
    journal.train(record(2, 30))
  assert opened(tmp_path, steps_done=25, steps_recorded=20) == []
  with Journal(tmp_path, steps_done=23, steps_recorded=20) as journal:
    journal.train(record(2, 30))
    journal.train(record(2, 40))
  assert opened(tmp_path, steps_done=30) == [line(30).replace('"state": 1', '"state": 2')]


def test_tensorboard_gets_the_scores(tmp_path):
  with Journal(tmp_path, steps_done=0, steps_recorded=0) as journal:
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
  (tmp_path / "metrics.jsonl").write_text(line(10) + line(20) + line(30))
  # Killed at step 30 of state 2; state 1 was done, and evaluated, at step 20.
  with Journal(tmp_path, steps_done=20, steps_recorded=20):
    pass
  (start,) = [e for e in events(tmp_path) if e.session_log.status == SessionLog.START]
  # TensorBoard hides earlier events at this step and after it.
  hidden = [step for step in (10, 20, 21, 30) if step >= start.step]
  assert hidden == [21, 30]
