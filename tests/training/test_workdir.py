"""The work directory: claiming it, its lock, its config.json."""

import datetime
import errno
import json
import os
import platform
import shutil

import pytest
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
  begun = workdir.beginning(folder)
  assert datetime.datetime.fromisoformat(begun["started"]).tzinfo == datetime.UTC
  assert saved == {
    **begun,
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


def test_how_a_run_began_stays_whatever_command_resumes_it(tmp_path, monkeypatch):
  monkeypatch.setattr("sys.argv", ["run.py", "--workdir=a b", "--method=\n"])
  claim(config_of(tmp_path))
  begun = workdir.beginning(tmp_path)
  assert begun["command"] == "run.py '--workdir=a b' '--method= '"
  monkeypatch.setattr("sys.argv", ["run.py", "--num_devices=2"])
  claim(config_of(tmp_path))  # before anything was saved
  assert workdir.beginning(tmp_path) == begun
  finish_a_state(tmp_path)
  claim(config_of(tmp_path, num_devices=2))
  assert workdir.beginning(tmp_path) == begun
  # One of an earlier version told nothing of it.
  path = tmp_path / "config.json"
  there = json.loads(path.read_text())
  path.write_text(json.dumps({n: v for n, v in there.items() if n not in begun}))
  claim(config_of(tmp_path))
  assert workdir.beginning(tmp_path) == {"started": None, "command": None}


def contents(folder):
  return {path: path.read_bytes() for path in folder.glob("*.json")}


@pytest.fixture
def saved(tmp_path):
  """A directory in which a run has saved a checkpoint."""
  claim(config_of(tmp_path))
  finish_a_state(tmp_path)
  return tmp_path


@pytest.mark.parametrize(
  ("values", "origin", "lines"),
  [
    (
      {"seed": 5, "learning_rate": 0.2},
      {},
      [
        "with another configuration; use another --workdir, or the same flags:",
        "--learning_rate: 0.1 there, 0.2 now",
        "--seed: 0 there, 5 now",
      ],
    ),
    (
      {},
      {"parts": {"classes": 4, "labels of test images": "ffff", "image size": 8}},
      [
        "on other data than --data_dir= has: use another --workdir, or that run's data",
        "classes: 3 there, 4 now",
        "labels of test images: different",
      ],
    ),
    (
      {},
      {"source": "other"},
      [
        "of --method=ssil, whose source has changed since: use another --workdir, or put "
        "the source back"
      ],
    ),
  ],
)
def test_another_run_is_refused_and_nothing_changes(saved, values, origin, lines):
  before = contents(saved)
  first, *others = refusal(config_of(saved, **values), **origin).splitlines()
  assert first.startswith(f"{saved} holds a run")
  assert [first.removeprefix(f"{saved} holds a run "), *others] == lines
  assert contents(saved) == before
  claim(config_of(saved))


def test_what_is_known_only_now_is_compared_from_then_on(saved):
  path, known, warnings = saved / "config.json", {**PARTS, "contents": "ffff"}, []
  new = json.loads(path.read_text())
  # As a run from before sources were kept has left it.
  path.write_text(json.dumps({k: v for k, v in new.items() if k != "method_source"}))
  claim(config_of(saved), parts=known, warnings=warnings)
  assert json.loads(path.read_text()) == {
    **new,
    "data": known,
    "data_fingerprint": fingerprint.fingerprint(known),
  }
  claim(config_of(saved), parts=known)  # without a warning
  assert "contents: different" in refusal(
    config_of(saved), parts={**known, "contents": "0"}
  )
  assert "source has changed" in refusal(config_of(saved), parts=known, source="other")
  before = contents(saved)
  claim(config_of(saved), warnings=warnings)  # with --noverify_data
  assert contents(saved) == before
  start = f"warning: not compared with the run in {saved}: "
  assert warnings == [f"{start}contents, source of --method", f"{start}contents"]


@pytest.mark.parametrize("parts", [None, "0a", {}, {"editor": "dark"}])
def test_a_run_that_does_not_tell_its_data_is_refused(saved, parts):
  path = saved / "config.json"
  path.write_text(json.dumps({**json.loads(path.read_text()), "data": parts}))
  assert "of an earlier version" in refusal(config_of(saved))


@pytest.mark.parametrize("changes", [{"seed": 5}, {"method": "lucir"}])
def test_a_run_that_saved_no_state_is_replaced(tmp_path, changes):
  claim(config_of(tmp_path))
  other, config = {**PARTS, "classes": 4}, config_of(tmp_path, **changes)
  claim(config, parts=other)
  found = json.loads((tmp_path / "config.json").read_text())
  assert found == origin_of(config, parts=other).to_json() | workdir.beginning(tmp_path)


def test_resume_never_refuses_a_run(tmp_path):
  claim(config_of(tmp_path, resume="never"))
  finish_a_state(tmp_path)
  assert "--resume=never" in refusal(config_of(tmp_path, resume="never"))
  assert claim(config_of(tmp_path)) == tmp_path


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[1, 2]", b'{"editor": "dark"}'])
def test_a_corrupt_config_is_refused_and_kept(tmp_path, content):
  path = tmp_path / "config.json"
  path.write_bytes(content)
  message = refusal(config_of(tmp_path))
  assert str(path) in message or "another configuration" in message
  assert path.read_bytes() == content


def test_checkpoints_without_a_config_are_refused(tmp_path):
  finish_a_state(tmp_path)
  assert "no config.json" in refusal(config_of(tmp_path))


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


# The lock --------------------------------------------------------------------------------


def test_a_directory_in_use_is_refused(tmp_path):
  config = config_of(tmp_path)
  with workdir.claimed(config, origin_of(config), pytest.fail):
    before = contents(tmp_path)
    for _ in range(2):
      message = refusal(config)
      assert f"{tmp_path} is in use by another run" in message
      assert f"(process {os.getpid()} on {platform.node()})" in message
      assert "\n" not in message
    assert contents(tmp_path) == before
  assert claim(config) == tmp_path


def test_the_lock_is_given_back_whatever_happens(tmp_path):
  config = config_of(tmp_path)
  with pytest.raises(RuntimeError), workdir.claimed(config, origin_of(config), pytest.fail):
    raise RuntimeError
  finish_a_state(tmp_path)
  for _ in range(2):
    refusal(config_of(tmp_path, seed=5))
  claim(config)


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


def test_write_json_keeps_the_old_file_if_it_fails(tmp_path):
  path = tmp_path / "results.json"
  system.write_json(path, {"a": 1})
  with pytest.raises(ValueError, match="JSON"):
    system.write_json(path, {"long": list(range(10_000)), "bad": float("nan")})
  assert json.loads(path.read_text()) == {"a": 1}
  assert list(tmp_path.iterdir()) == [path]


def test_write_json_never_writes_into_the_file_itself(tmp_path):
  path, other_name = tmp_path / "results.json", tmp_path / "hard_link"
  system.write_json(path, {"a": 1})
  other_name.hardlink_to(path)
  system.write_json(path, {"b": 2})
  assert json.loads(other_name.read_text()) == {"a": 1}


def test_what_makes_other_data_is_named(tmp_path):
  finish_a_state(claim(config_of(tmp_path, class_order="a.txt")))
  parts = {**PARTS, "labels of test images": "ffff"}
  lines = refusal(config_of(tmp_path, test_fraction=0.5), parts=parts).splitlines()
  assert lines[1:] == [
    "labels of test images: different",
    "--class_order: 'a.txt' there, '' now",
    "--test_fraction: 0.2 there, 0.5 now",
  ]
