"""The command line: help, flag files, and one clear line for each mistake."""

import json
import pathlib
import signal
import subprocess
import sys

import pytest
from PIL import Image

from ssil_jax.commands import run
from ssil_jax.config import Config
from ssil_jax.errors import ConfigError

EXPERIMENTS = pathlib.Path(run.__file__).parent


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)


def fails(capsys, *arguments):
  """Runs main; returns what it prints on standard error."""
  assert run.main(["run.py", *arguments]) == 2
  return capsys.readouterr().err


def make_folder(root, *, images=4):
  for split in ("train", "test"):
    for name in ("cat", "dog"):
      (root / split / name).mkdir(parents=True)
      for i in range(images):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(root / split / name / f"{i}.png")
  return root


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--method=svm"], "--method=svm is unknown; choose from: ssil, ft"),
    (["--dataset=mnist"], "--dataset=mnist is unknown; choose from: digits, image_folder"),
    (["--dataset=imagenet"], "--dataset=imagenet needs --data_dir=DIR"),
    (["--flagfile=none.cfg"], "--flagfile=none.cfg was not found"),
    (["--flagfile"], "--flagfile= was not found"),
    (["--no_such_flag=1"], "Unknown command line flag 'no_such_flag'"),
    (["--epochs=many"], "--epochs=many"),
    (["--epochs"], "epochs"),
    (["--milestones=4,x"], "--milestones=4,x must be whole numbers"),
    (["--milestones=8,4"], "--milestones=8,4 must rise"),
    (["stray"], "'stray' is not a flag"),
    (["--num_states=3"], "10 classes cannot be divided into --num_states=3"),
    (["--memory_size=9"], "--memory_size=9 cannot hold one exemplar of each of the 10"),
    (["--batch_size_new=30"], "--batch_size_new=30 cannot be shared equally by 4 devices"),
    (["--dataset=image_folder"], "needs --data_dir=DIR"),
    (
      ["--dataset=image_folder", "--data_dir=/no/such"],
      "--data_dir=/no/such is not a folder",
    ),
    (["--workdir=/dev/null/run"], "--workdir=/dev/null/run cannot be used"),
  ],
)
def test_each_mistake_is_one_clear_line(capsys, arguments, message):
  sizes = ["--batch_size_new=32", "--batch_size_memory=8", "--num_devices=4"]
  error = fails(capsys, *sizes, *arguments)
  assert message in error
  assert error.startswith("error: ")
  assert error.count("\n") == 1


def test_several_mistakes_are_named_together(capsys):
  error = fails(capsys, "--num_states=0", "--learning_rate=-1", "--precision=int8")
  assert [line.split("=")[0] for line in error.splitlines()] == [
    "error: --num_states",
    "error: --learning_rate",
    "error: --precision",
  ]


@pytest.mark.parametrize(
  ("break_folder", "message"),
  [
    (lambda root: [p.unlink() for p in (root / "train/cat").iterdir()], "train/cat has no"),
    (lambda root: (root / "train/dog/1.png").write_bytes(b"\x89PNG"), "train/dog/1.png"),
    (lambda root: (root / "test/cat/0.png").write_bytes(b""), "test/cat/0.png"),
    (lambda root: (root / "test").rename(root / "other"), "val is missing"),
    (lambda root: (root / "test/cat").rename(root / "test/cow"), "class cat"),
  ],
)
def test_a_broken_image_folder_is_named_before_training(
  capsys, tmp_path, break_folder, message
):
  break_folder(make_folder(tmp_path / "data"))
  flags = [
    "--num_states=2",
    "--batch_size_new=4",
    "--batch_size_memory=4",
    "--num_devices=4",
  ]
  folder = ["--dataset=image_folder", f"--data_dir={tmp_path / 'data'}"]
  error = fails(capsys, *flags, *folder, f"--workdir={tmp_path / 'run'}")
  assert message in error
  assert error.count("\n") == 1
  assert not (tmp_path / "run").exists()


def test_later_flags_win_over_a_flag_file():
  config = run.parse(["run.py", "--flagfile=quickstart.cfg", "--epochs=3"])
  assert (config.epochs, config.num_states, config.memory_size) == (3, 5, 10)


def test_a_flag_file_is_looked_up_as_given_first(tmp_path):
  (tmp_path / "mine.cfg").write_text("--seed=7\n")
  assert run.parse(["run.py", f"--flagfile={tmp_path / 'mine.cfg'}"]).seed == 7


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.cfg")), ids=lambda p: p.name)
def test_flag_files_are_valid_with_an_image_folder(path):
  config = run.parse(["run.py", f"--flagfile={path.name}", "--dataset=image_folder"])
  assert config.dataset == "image_folder"


def test_flag_files_of_the_paper_keep_its_settings():
  config = run.parse(["run.py", "--flagfile=imagenet.cfg", "--dataset=image_folder"])
  assert (config.num_states, config.memory_size) == (10, 10_000)
  assert (config.batch_size_new, config.batch_size_memory) == (128, 32)
  assert (config.epochs_first, config.milestones_first) == (100, (40, 80))
  assert (config.epochs, config.milestones) == (20, (8, 16))


def test_help_names_every_flag(capsys):
  assert run.main(["run.py", "--help"]) == 0
  text = capsys.readouterr().out
  for name in Config.__dataclass_fields__:
    assert f"  --{name}\n" in text


def test_parse_raises_config_error_only():
  with pytest.raises(ConfigError):
    run.parse(["run.py", "--momentum=2"])


def test_script_runs_from_anywhere_without_being_installed(tmp_path):
  done = subprocess.run(
    [sys.executable, EXPERIMENTS / "run.py", "--dataset=none"],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  assert done.stderr.startswith("error: --dataset=none is unknown")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_the_finished_states(tmp_path, number, code):
  flags = [
    "--flagfile=quickstart.cfg",
    "--width=4",
    "--epochs_first=1",
    "--epochs=10000",
    f"--workdir={tmp_path}",
  ]
  child = subprocess.Popen(
    [sys.executable, "-u", EXPERIMENTS / "run.py", *flags],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  for line in child.stdout:
    if line.startswith("state 1/5 done"):  # and saved; state 2 is about to compile
      child.send_signal(number)
      break
  _, error = child.communicate(timeout=60)
  assert child.returncode == code
  assert error.splitlines() == [
    "stopping after this step; Ctrl-C again stops at once",
    f"stopped by {number.name}; the same command continues from the last checkpoint",
  ]
  results = json.loads((tmp_path / "results.json").read_text())
  assert [state["state"] for state in results["states"]] == [1]
  steps = json.loads((tmp_path / "schedule.json").read_text())[0]["steps"]
  # A checkpoint's number is that of the steps and of the finished states together.
  assert (tmp_path / "checkpoints" / str(steps + 1)).is_dir()
