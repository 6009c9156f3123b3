"""Benchmarks answer --help, refuse unknown flags, and check what they say they check."""

import fcntl
import importlib
import os
import runpy
import sys
import time

import pytest
from folders import ROOT
from quick import quick_network

FOLDER = ROOT / "benchmarks"
COMMANDS = [
  path.name for path in sorted(FOLDER.glob("*.py")) if "__main__" in path.read_text()
]
# What some cannot do without, or without PyTorch.
NEEDED = {
  "exports.py": ["--workdir=none", "--photos=none"],
  "input_peers.py": ["torch", "none"],
  "input_pipeline.py": ["--peers=none"],
  "learn_chain.py": ["--data_dir=none"],
  "predict.py": ["--workdir=none", "none"],
  "protocol.py": ["--torch="],
  "resize_psnr.py": ["none", "none"],
  "startup.py": ["--folder=none"],
  "step.py": ["--torch="],
  "tpu_compile.py": ["--output=none"],
}


@pytest.fixture(autouse=True)
def as_scripts(monkeypatch):
  monkeypatch.syspath_prepend(FOLDER)
  monkeypatch.setattr(os, "environ", dict(os.environ))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_answers_for_help_and_unknown_flags(name, monkeypatch, capsys):
  def ends_with(*flags):
    monkeypatch.setattr(sys, "argv", [str(FOLDER / name), *flags])
    with pytest.raises(SystemExit) as ended:
      runpy.run_path(sys.argv[0], run_name="__main__")
    return ended.value.code, capsys.readouterr()

  code, told = ends_with("--help")
  assert (code, told.err) == (0, "")
  assert told.out.startswith("usage:")
  code, told = ends_with("--nonsense=1", *NEEDED.get(name, ()))
  assert (code, told.out) == (2, "")
  assert "nonsense" in told.err.splitlines()[-1]


def test_what_gpu_runs_has_no_flag_that_is_not_known(monkeypatch, capsys):
  parts = importlib.import_module("gpu").PARTS
  for part in parts.keys() - {"resume"}:  # which is its own
    name, *words = parts[part].command.split()
    flags = [word for word in words if not word.startswith("--torch=")] + ["--nonsense=1"]
    monkeypatch.setattr(sys, "argv", [name, *flags, *NEEDED.get(f"{name}.py", ())])
    with pytest.raises(SystemExit):
      runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    told = capsys.readouterr().err.splitlines()[-1]
    assert "nonsense" in told
    assert not any(word.partition("=")[0] in told for word in flags[:-1])


def test_part_that_takes_too_long_is_ended_with_all_that_it_started(
  tmp_path, monkeypatch, capfd
):
  gpu, lock = importlib.import_module("gpu"), tmp_path / "lock"
  child = (
    f"import fcntl, time; held = open({str(lock)!r}, 'w'); "
    "fcntl.flock(held, fcntl.LOCK_EX); print('held', flush=True); time.sleep(600)"
  )
  (tmp_path / "slow.py").write_text(
    "import subprocess, sys, time\n"
    f"subprocess.Popen([sys.executable, '-c', {child!r}])\n"
    "time.sleep(600)\n"
  )
  monkeypatch.setattr(gpu, "FOLDER", tmp_path)
  monkeypatch.setitem(gpu.PARTS, "slow", gpu.Part("slow", 600))
  assert not gpu.run("slow", dict(os.environ), tmp_path, until=time.monotonic() + 3)
  told = capfd.readouterr().out
  assert told.startswith("held\n")
  assert "out of time" in told
  with open(lock) as file:
    for _ in range(100):  # a killed process may take a moment to let go
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
      except BlockingIOError:
        time.sleep(0.05)
    else:
      pytest.fail("what the part started is still there")


@pytest.mark.parametrize(
  ("value", "text"),
  [(46012.3, "46,010"), (999.96, "1,000"), (3.14159, "3.142"), (0.00051234, "0.0005123")],
)
def test_rates_are_printed_without_exponents(value, text):
  assert importlib.import_module("measured").shown(value) == text


def test_what_is_resumed_for_gpus_was_interrupted_in_training(capsys):
  gpu = importlib.import_module("gpu")
  settings = gpu.RESUMED | {
    "num_classes": 4,
    "image_size": 16,
    "width": 4,
    "num_devices": 2,
  }
  with quick_network():
    assert gpu.resume(interrupted_at=8, **settings)
    told = capsys.readouterr().out
    assert "interrupted before dispatch 8" in told
    assert told.endswith("the same to the bit\n")
