"""The command line of run.py, its help, and what a signal leaves."""

import importlib
import inspect
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import time

import bad_inputs
import pytest
from folders import ROOT
from small_runs import records

from ssil_jax import commands
from ssil_jax.commands import command_line, run
from ssil_jax.config import Config, fields_of
from ssil_jax.methods import METHODS
from ssil_jax.reports.results import has_finished_state

SCRIPT = ROOT / "experiments" / "run.py"
COMMANDS = {
  name: importlib.import_module(f"ssil_jax.commands.{name}") for name in commands.COMMANDS
}


def config_of(*arguments):
  return run.parse(["run.py", *arguments]).config


def test_later_flags_win_over_a_flag_file_which_is_looked_up_as_given_first(tmp_path):
  config = config_of("--flagfile=quickstart.cfg", "--epochs=3")
  assert (config.epochs, config.num_states, config.memory_size) == (3, 2, 10)
  (tmp_path / "quickstart.cfg").write_text("--seed=7\n")
  config = config_of("--flagfile=quickstart.cfg")
  assert (config.seed, config.memory_size) == (7, 10_000)


def test_flag_files_are_valid_with_an_image_folder_and_keep_the_papers_settings():
  configs = {
    name: config_of(f"--flagfile={name}", "--dataset=image_folder")
    for name in command_line.flagfile_names()
  }
  config = configs["imagenet.cfg"]
  assert (config.num_states, config.memory_size) == (10, 10_000)
  assert (config.batch_size_new, config.batch_size_memory) == (128, 32)
  assert (config.epochs_first, config.milestones_first) == (100, (40, 80))
  assert (config.epochs, config.milestones) == (20, (8, 16))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_the_finished_states(tmp_path, capfd, number, code):
  def send():
    while not has_finished_state(tmp_path / "run"):
      time.sleep(0.01)
    os.kill(os.getpid(), number)

  thread = threading.Thread(target=send, daemon=True)
  thread.start()
  flags = ["--flagfile=quickstart.cfg", "--epochs_first=1", "--epochs=10000", "--width=1"]
  assert run.main(["run.py", *flags, "--num_devices=1", "--workdir=run"]) == code
  thread.join()
  assert capfd.readouterr().err.splitlines() == [
    "stopping after this step; Ctrl-C again stops at once",
    f"stopped by {number.name}; rerun the command to resume from the last checkpoint",
  ]
  results = json.loads((tmp_path / "run" / "results.json").read_text())
  assert [state["state"] for state in results["states"]] == [1]
  steps = json.loads((tmp_path / "run" / "schedule.json").read_text())[0]["steps"]
  # A checkpoint's number is that of the steps and of the finished states together.
  assert (tmp_path / "run" / "checkpoints" / str(steps + 1)).is_dir()


# Settings of other methods ---------------------------------------------------------------


def test_a_setting_of_another_method_is_checked_and_named_and_is_no_part_of_the_run(
  tmp_path, capsys
):
  own = config_of("--method=lucir", "--lucir_lambda=5")
  assert own.method_settings.lucir_lambda == 5.0
  # As a flag only: its limits are those of a method that does not run.
  assert run.main(["run.py", "--method=ssil", "--lucir_lambda=much"]) == 2
  assert capsys.readouterr().err == "error: --lucir_lambda=much must be a number\n"

  (tmp_path / "small.cfg").write_text(bad_inputs.SMALL)
  bad_inputs.FINISHED(tmp_path)
  capsys.readouterr()
  assert run.main([*bad_inputs.SAME.split(), "--lucir_lambda=5"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == "no effect on --method=ft: --lucir_lambda (lucir)"
  assert any("states 1 to 2 are done already" in line for line in lines)
  saved = json.loads((tmp_path / "run" / "config.json").read_text())
  assert not {f.name for f in fields_of(METHODS["lucir"].settings)} & set(saved)

  # What the page shows is in TensorBoard, too.
  events = (tmp_path / "run").glob("tensorboard/*")
  content = max(events, key=lambda path: path.stat().st_mtime_ns).read_bytes()
  tags = ["_hparams_/session_start_info", "average/top1", "settings/text_summary"]
  tags += [f"figures/{p.stem}" for p in (tmp_path / "run").glob("figures/*.png")]
  assert len(tags) > 3
  assert [tag for tag in tags if tag.encode() not in content] == []


@pytest.mark.parametrize("scores", ["softmax", "logits"])
def test_il2m_takes_all_of_ft_whichever_scores_it_rectifies(tmp_path, scores):
  (tmp_path / "small.cfg").write_text(bad_inputs.SMALL)
  bad_inputs.FINISHED(tmp_path)
  command = [*bad_inputs.BORROWING.split(), "--method=il2m", f"--il2m_scores={scores}"]
  assert run.main(command) == 0
  results = json.loads((tmp_path / "new" / "results.json").read_text())
  taken = [state["from_workdir"] for state in results["states"]]
  assert taken == [str(tmp_path / "run")] * 2
  assert records(tmp_path / "new") == records(tmp_path / "run")


# Help and the command ssil-jax -----------------------------------------------------------


def test_help_has_all_settings_in_eighty_columns(capsys):
  texts = {}
  for name, command in COMMANDS.items():
    for flag in ("--help", "-h"):
      assert command.main([f"{name}.py", flag]) == 0
      texts[name], error = capsys.readouterr()
      assert error == ""
    assert max(map(len, texts[name].splitlines())) <= 80
  first_lines = [text.splitlines()[0] for text in texts.values()]
  assert first_lines == [command.__doc__.splitlines()[0] for command in COMMANDS.values()]
  carried_out = "jobs shard slurm slurm_options dry_run"
  for name, flags in (
    ("compare", "workdir output highlight export"),
    ("sweep", f"methods seeds output grid {carried_out}"),
    ("paper", f"scale seeds data_dir output export {carried_out}"),
  ):
    assert re.findall(r"^  --(\w+)$", texts[name], re.MULTILINE) == flags.split()
  lines = texts["run"].splitlines()
  shared = [f"  --{field.name}" for field in fields_of(Config)]
  assert sorted(line for line in lines if line.startswith("  --")) == sorted(shared)
  own = [f"      --{f.name}" for m in METHODS.values() for f in fields_of(m.settings)]
  assert [line for line in lines if line.startswith("      --")] == own
  assert len(own) >= 10
  for name in command_line.flagfile_names():
    assert name in texts["run"]
  # A method is followed by its own settings.
  place = lines.index("      --lucir_lambda")
  assert [line for line in lines[:place] if line[:4].strip()][-1] == "  lucir"


def test_help_has_the_settings_of_a_method_of_ones_own(tmp_path, capsys):
  bad_inputs.mine()(tmp_path)
  (tmp_path / "a.cfg").write_text("--method=mine:MINE\n")
  for argument in ("--method=mine:MINE", "--flagfile=a.cfg"):
    assert run.main(["run.py", "--help", argument]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[lines.index("  mine:MINE") :][-2:] == [
      "      --gamma",
      "          exponent (default: 2.0)",
    ]
  assert run.main(["run.py", "--help", "--method=mine:NONE"]) == 2
  assert capsys.readouterr().err.startswith("error: --method=mine:NONE: NONE is no Method")


def test_help_needs_no_docstrings():  # which `python -OO` leaves out
  for command in COMMANDS.values():
    assert "__doc__" not in inspect.getsource(command)


def test_help_imports_nothing_heavy_and_training_what_it_needs():
  jax = ("jax", "flax", "optax")  # of methods, whose settings run.py --help lists
  heavy = ("orbax", "grain", "tensorstore")
  hardly_used = (
    *("matplotlib", "jinja2", "sklearn", "scipy.special", "scipy.optimize"),
    *("tensorflow_datasets", "torch", "starlette"),
  )
  others = [name for name in COMMANDS if name != "run"]
  code = (
    "import importlib, sys\n"
    "from ssil_jax.commands import command_line\n"
    "def show_help(command):\n"
    "  module = importlib.import_module(f'ssil_jax.commands.{command}')\n"
    "  assert module.main([f'{command}.py', '--help']) == 0\n"
    "def imported(names):\n"
    "  return sorted({*names} & {*sys.modules})\n"
    f"for command in {others}:\n"
    "  show_help(command)\n"
    f"print(imported({jax + heavy + hardly_used}))\n"
    "show_help('run')\n"
    f"print(imported({heavy + hardly_used}))\n"
    "from ssil_jax.training import loop\n"
    "from ssil_jax.commands import learn, predict, run\n"
    f"print(imported({hardly_used}))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=True,
  )
  assert [line for line in done.stdout.splitlines() if line.startswith("[")] == ["[]"] * 3


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_ssil_jax_tells_its_commands(arguments, monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["ssil-jax", *arguments])
  commands.main()
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].startswith("Usage: ssil-jax COMMAND")
  assert [line.split()[0] for line in lines[2:]] == list(COMMANDS)


def test_ssil_jax_refuses_other_commands(monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["ssil-jax", "train"])
  with pytest.raises(SystemExit, match="2"):
    commands.main()
  out, error = capsys.readouterr()
  assert out == ""
  assert error.startswith("error: there is no command 'train'\nUsage: ssil-jax COMMAND")


@pytest.mark.parametrize("name", COMMANDS)
def test_scripts_and_ssil_jax_execute_their_command(monkeypatch, name):
  executed = []
  monkeypatch.setattr(commands, "execute", executed.append)
  runpy.run_path(str(ROOT / "experiments" / f"{name}.py"), run_name="__main__")
  monkeypatch.setattr(sys, "argv", ["ssil-jax", name, "--help"])
  commands.main()
  assert executed == [name, name]
  assert sys.argv == [f"ssil-jax {name}", "--help"]


@pytest.mark.parametrize("command", [[SCRIPT], ["-m", "ssil_jax.commands", "run"]])
def test_the_command_runs_from_anywhere_without_being_installed(tmp_path, command):
  done = subprocess.run(
    [sys.executable, *command, "--dataset=none"],
    env={**os.environ, "PYTHONPATH": str(ROOT) if "-m" in command else ""},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  assert done.stderr.startswith("error: --dataset=none is unknown")
