"""The work directory: claiming it, its lock, its config.json."""

import contextlib
import errno
import json
import os
import platform
import shutil
import signal
import subprocess
import sys

import pytest
from folders import ROOT
from folders import config_of as config_with

import ssil_jax
from ssil_jax import config as config_lib
from ssil_jax import system
from ssil_jax.data import fingerprint
from ssil_jax.errors import WorkdirError
from ssil_jax.training import workdir
from ssil_jax.training.workdir import Origin

PARTS = {"classes": 3, "test images": 20, "labels of test images": "0a1b"}


SOURCE = "0123abcd"


def config_of(path, **values):
  return config_with(workdir=str(path), **values)


def origin_of(config, *, parts=PARTS, source=SOURCE):
  return Origin(config_lib.to_json(config), source, parts)


def claim(config, *, warnings=None, **origin):
  """Claims the directory and leaves it; returns its path."""
  warn = (lambda line: pytest.fail(line)) if warnings is None else warnings.append
  with workdir.claimed(config, origin_of(config, **origin), warn=warn) as folder:
    return folder


def finish_a_state(folder):
  (folder / "checkpoints" / "1").mkdir(parents=True)


def refusal(config, **origin):
  with pytest.raises(WorkdirError) as error:
    claim(config, **origin)
  return str(error.value)


def test_a_new_directory_gets_the_config(tmp_path):
  config = config_of(tmp_path / "a" / "run", seed=3)
  folder = claim(config)
  assert folder == tmp_path / "a" / "run"
  saved = json.loads((folder / "config.json").read_text())
  assert saved == {
    **config_lib.to_json(config),
    "version": ssil_jax.__version__,
    "method_source": SOURCE,
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


# The source of the method ----------------------------------------------------------------


def test_a_run_of_a_method_that_has_changed_since_is_refused(tmp_path):
  claim(config_of(tmp_path))
  finish_a_state(tmp_path)
  before = (tmp_path / "config.json").read_bytes()
  assert refusal(config_of(tmp_path), source="other") == (
    f"{tmp_path} holds a run of --method=ssil, whose source has changed since: use another "
    "--workdir, or put the source back"
  )
  assert (tmp_path / "config.json").read_bytes() == before
  claim(config_of(tmp_path))


def test_a_run_from_before_sources_were_kept_is_resumed_and_knows_its_own_now(tmp_path):
  path = claim(config_of(tmp_path)) / "config.json"
  finish_a_state(tmp_path)
  new = json.loads(path.read_text())
  path.write_text(json.dumps({k: v for k, v in new.items() if k != "method_source"}))
  warnings = []
  claim(config_of(tmp_path), warnings=warnings)
  assert warnings == [
    f"warning: not compared with the run in {tmp_path}: source of --method"
  ]
  assert json.loads(path.read_text()) == new
  claim(config_of(tmp_path))  # without a warning
  assert "source has changed" in refusal(config_of(tmp_path), source="other")


# The lock --------------------------------------------------------------------------------

HOLD = """
import sys
sys.path[:0] = sys.argv[1:3]
from test_workdir import config_of, origin_of, workdir
config = config_of(sys.argv[3])
with workdir.claimed(config, origin_of(config)):
  print("claimed", flush=True)
  sys.stdin.read()
"""


@contextlib.contextmanager
def held(folder):
  """Another process that uses the directory."""
  paths = [ROOT / "tests" / "training", ROOT / "tests"]
  process = subprocess.Popen(
    [sys.executable, "-c", HOLD, *paths, folder],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
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
  with pytest.raises(RuntimeError), workdir.claimed(config, origin_of(config)):
    raise RuntimeError
  finish_a_state(tmp_path)
  for _ in range(2):
    refusal(config_of(tmp_path, seed=5))
  claim(config)


def test_the_lock_tells_its_last_owner_alone(tmp_path):
  (tmp_path / "lock").write_text("process 123456789 on a host with a very long name\n")
  config = config_of(tmp_path)
  with workdir.claimed(config, origin_of(config)):
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


def test_what_was_never_saved_is_replaced_whatever_the_method(tmp_path):
  claim(config_of(tmp_path))
  lucir = config_of(tmp_path, method="lucir")
  claim(lucir)
  assert json.loads((tmp_path / "config.json").read_text())["method"] == "lucir"
