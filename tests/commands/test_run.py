"""The command line of run.py, its help, and what a signal leaves."""

import json
import os
import signal
import subprocess
import sys

import arranging
import pytest
from folders import ROOT
from small_runs import records

from ssil_jax import commands
from ssil_jax.commands import command_line, compare, prepare, run, sweep
from ssil_jax.config import Config, fields_of
from ssil_jax.methods import METHODS

SCRIPT = ROOT / "experiments" / "run.py"


def config_of(*arguments):
  return run.parse(["run.py", *arguments]).config


def test_later_flags_win_over_a_flag_file():
  config = config_of("--flagfile=quickstart.cfg", "--epochs=3")
  assert (config.epochs, config.num_states, config.memory_size) == (3, 5, 10)


def test_a_flag_file_is_looked_up_as_given_first(tmp_path):
  (tmp_path / "mine.cfg").write_text("--seed=7\n")
  assert config_of(f"--flagfile={tmp_path / 'mine.cfg'}").seed == 7


@pytest.mark.parametrize("name", command_line.flagfile_names())
def test_flag_files_are_valid_with_an_image_folder(name):
  config = config_of(f"--flagfile={name}", "--dataset=image_folder")
  assert config.dataset == "image_folder"


def test_flag_files_of_the_paper_keep_its_settings():
  config = config_of("--flagfile=imagenet.cfg", "--dataset=image_folder")
  assert (config.num_states, config.memory_size) == (10, 10_000)
  assert (config.batch_size_new, config.batch_size_memory) == (128, 32)
  assert (config.epochs_first, config.milestones_first) == (100, (40, 80))
  assert (config.epochs, config.milestones) == (20, (8, 16))


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
    [sys.executable, "-u", SCRIPT, *flags],
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
    f"stopped by {number.name}; rerun the command to resume from the last checkpoint",
  ]
  results = json.loads((tmp_path / "results.json").read_text())
  assert [state["state"] for state in results["states"]] == [1]
  steps = json.loads((tmp_path / "schedule.json").read_text())[0]["steps"]
  # A checkpoint's number is that of the steps and of the finished states together.
  assert (tmp_path / "checkpoints" / str(steps + 1)).is_dir()


# Settings of other methods ---------------------------------------------------------------


def test_a_setting_of_another_method_is_named_and_is_no_part_of_the_run(tmp_path):
  request = run.parse(["run.py", "--method=ssil", "--lucir_lambda=5", "--width=4"])
  assert request.ignored == ("--lucir_lambda (lucir)",)
  assert request.given == {"method": "ssil", "width": 4}
  own = config_of("--method=lucir", "--lucir_lambda=5")
  assert own.method_settings.lucir_lambda == 5.0


def test_an_ignored_setting_is_checked_all_the_same(capsys):
  # As a flag only: its limits are those of a method that does not run.
  assert run.main(["run.py", "--method=ssil", "--lucir_lambda=much"]) == 2
  assert capsys.readouterr().err == "error: --lucir_lambda=much must be a number\n"


def test_a_run_goes_on_with_a_setting_of_another_method(tmp_path, capsys):
  (tmp_path / "small.cfg").write_text(arranging.SMALL)
  arranging.FINISHED(tmp_path)
  capsys.readouterr()
  assert run.main([*arranging.SAME.split(), "--lucir_lambda=5"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == "no effect on --method=ft: --lucir_lambda (lucir)"
  assert any("states 1 to 2 are done already" in line for line in lines)
  saved = json.loads((tmp_path / "run" / "config.json").read_text())
  assert not {f.name for f in fields_of(METHODS["lucir"].settings)} & set(saved)


@pytest.mark.parametrize("scores", ["softmax", "logits"])
def test_il2m_takes_all_of_ft_whichever_scores_it_rectifies(tmp_path, scores):
  (tmp_path / "small.cfg").write_text(arranging.SMALL)
  arranging.FINISHED(tmp_path)
  command = [*arranging.BORROWING.split(), "--method=il2m", f"--il2m_scores={scores}"]
  assert run.main(command) == 0
  results = json.loads((tmp_path / "new" / "results.json").read_text())
  taken = [state["from_workdir"] for state in results["states"]]
  assert taken == [str(tmp_path / "run")] * 2
  assert records(tmp_path / "new") == records(tmp_path / "run")


# Help and the command ssil-jax -----------------------------------------------------------


def test_help_has_all_settings_in_eighty_columns(capsys):
  texts = {}
  for name, command in (
    ("run", run),
    ("sweep", sweep),
    ("prepare", prepare),
    ("compare", compare),
  ):
    assert command.main([f"{name}.py", "--help"]) == 0
    texts[name] = capsys.readouterr().out
    assert max(map(len, texts[name].splitlines())) <= 80
  lines = texts["run"].splitlines()
  shared = [f"  --{field.name}" for field in fields_of(Config)]
  assert sorted(set(lines) & set(shared)) == sorted(shared)
  own = [f"      --{f.name}" for m in METHODS.values() for f in fields_of(m.settings)]
  assert sorted(line for line in lines if line.startswith("      --")) == sorted(own)
  assert len(own) >= 10
  for name in command_line.flagfile_names():
    assert name in texts["run"]
  # A method is followed by its own settings.
  place = lines.index("      --lucir_lambda")
  assert [line for line in lines[:place] if line[:4].strip()][-1] == "  lucir"


def test_help_imports_nothing_heavy():
  heavy = ("orbax", "grain", "sklearn", "tensorflow_datasets", "matplotlib", "tensorstore")
  code = (
    "import sys\nfrom ssil_jax.commands import run\nrun.main(['run.py', '--help'])\n"
    f"print('imported:', *[name for name in {heavy} if name in sys.modules])"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.splitlines()[-1] == "imported:"


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_ssil_jax_tells_its_commands(arguments, monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["ssil-jax", *arguments])
  commands.main()
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].startswith("Usage: ssil-jax COMMAND")
  assert [line.split()[0] for line in lines[2:]] == ["run", "sweep", "prepare", "compare"]


def test_ssil_jax_refuses_other_commands(monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["ssil-jax", "train"])
  with pytest.raises(SystemExit) as caught:
    commands.main()
  assert caught.value.code == 2
  out, error = capsys.readouterr()
  assert out == ""
  assert error.startswith("error: there is no command 'train'\nUsage: ssil-jax COMMAND")


@pytest.mark.parametrize("command", [[SCRIPT], ["-m", "ssil_jax.commands", "run"]])
def test_the_command_runs_from_anywhere_without_being_installed(tmp_path, command):
  done = subprocess.run(
    [sys.executable, *command, "--dataset=none"],
    cwd=tmp_path,
    env={**os.environ, "PYTHONPATH": str(ROOT) if "-m" in command else ""},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  assert done.stderr.startswith("error: --dataset=none is unknown")
