"""Sweeps: which runs a command line means, what is wrong with it, and what is repeated."""

import dataclasses
import functools
import json
import os
import pathlib
import re
import shutil
import signal
import sys
import threading
import time

import bad_inputs
import pytest
from folders import ROOT
from written_runs import RESULTS, Page, one_state, write_run

from ssil_jax.commands import run, sweep
from ssil_jax.methods import METHODS
from ssil_jax.system import usable_cores

# Stands in for run.py: writes down its arguments, and fails where it is told to.
STAND_IN = """
import json, os, pathlib, sys
flags = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:])
workdir = pathlib.Path(flags["workdir"])
workdir.mkdir(parents=True, exist_ok=True)
cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
call = {{"flags": flags, "cores": cores, "session": os.getsid(0)}}
with open(workdir.parent / "calls.jsonl", "a") as file:
  file.write(json.dumps(call) + "\\n")
print("output of", workdir.name)
print("errors of", workdir.name, file=sys.stderr)
code = int(flags.get("seed")) if workdir.name.startswith("ft") else 0
results = {{**{results}, "method_title": workdir.name, "seed": int(flags["seed"])}}
if not code:
  (workdir / "results.json").write_text(json.dumps(results))
  print("error: only a warning")
else:
  print("error: this of", workdir.name, "\\nnoise\\nerror: and \\x1b[31m that\\nnoise")
sys.exit(code)
"""

STOPPED = "error: not all runs are done; rerun the command to resume\n"
FAILED = (
  "error: not all runs are done; fix what their logs say and rerun the command to resume\n"
)


def parse(*arguments):
  """The jobs that a command line means, by the names of their folders."""
  found = sweep.parse(["sweep.py", "--output=runs", *arguments])
  return {job.workdir.name: job for job in found.jobs}


def config_of(job):
  """As the run itself reads its arguments."""
  return run.parse(["run.py", *job.arguments]).config


def lenders_of(jobs):
  return {name: job.lender and job.lender.name for name, job in jobs.items()}


# Command lines --------------------------------------------------------------------------


def test_runs_take_states_from_the_first_that_has_most_of_them(tmp_path):
  jobs = parse("--methods=ssil,il2m,ft,joint", "--seeds=3,5")
  # il2m has ssil's first state, ft all of il2m's. A lender comes before its borrowers.
  lenders = {"ssil": None, "il2m": "ssil", "joint": "ssil", "ft": "il2m"}
  assert list(jobs) == [
    f"{method}-{seed}"
    for methods in (["ssil"], ["il2m", "joint"], ["ft"])
    for seed in (3, 5)
    for method in methods
  ]
  for name, job in jobs.items():
    method, seed = name.split("-")
    config = config_of(job)
    assert (config.method, config.seed) == (method, int(seed))
    assert pathlib.Path(config.workdir) == job.workdir == tmp_path / "runs" / name
    lender = lenders[method] and tmp_path / "runs" / f"{lenders[method]}-{seed}"
    assert job.lender == lender
    assert config.from_workdir == str(lender or "")


def test_all_means_every_method():
  jobs = parse("--methods=all", "--", "--epochs_first=2")
  assert sorted(jobs) == sorted(f"{name}-0" for name in METHODS)
  lenders = lenders_of(jobs)
  assert lenders["ft-0"] == lenders["lwf-0"] == "ssil-0"
  assert lenders["il2m-0"] == "ft-0"
  # Their first states differ, by the method or by its schedule.
  for name in ("lucir-0", "wa-0", "bic-0", "er_ace-0", "joint_full-0"):
    assert lenders[name] is None


def test_runs_that_can_lend_nothing():
  # A first method does not keep others from lending.
  lenders = lenders_of(parse("--methods=joint_full,ft,il2m"))
  assert lenders == {"joint_full-0": None, "ft-0": None, "il2m-0": "ft-0"}
  # run.py refuses --from_workdir where a state starts with momentum.
  jobs = parse("--methods=ft,il2m,ssil", "--", "--reset_momentum=false")
  assert set(lenders_of(jobs).values()) == {None}


def test_what_follows_the_dashes_goes_to_each_run_but_for_settings_of_other_methods():
  given = ["--lucir_lambda=5.0", "--il2m_scores=logits", "--milestones=8,16", "--width=4"]
  passed = ["--flagfile=quickstart.cfg", *given]
  jobs = parse("--methods=lucir,il2m,ft", "--jobs=1", "--", *passed)
  own = {"lucir-0": given[:1], "il2m-0": given[1:2], "ft-0": []}
  for name, job in jobs.items():
    assert {*job.arguments} & {*given} == {*own[name], *given[2:]}
    config = config_of(job)
    assert (config.width, config.num_states, config.memory_size) == (4, 2, 10)
    assert dataclasses.replace(config, from_workdir="") == job.config


def test_the_output_may_start_at_home(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  found = sweep.parse(["sweep.py", "--methods=ft", "--output=~/runs"])
  assert found.output == tmp_path / "home" / "runs"


def test_a_mistake_leaves_no_folder(tmp_path, capsys):
  passed = ["--flagfile=quickstart.cfg"]
  assert sweep.main(["sweep.py", "--methods=ft,eeil", "--output=runs", "--", *passed]) == 2
  assert "--methods: eeil: state 2" in capsys.readouterr().err
  assert not (tmp_path / "runs").exists()


# Jobs -----------------------------------------------------------------------------------


def use(monkeypatch, path):
  """Makes the runs of sweeps those of a script."""
  command = [sys.executable, str(path)]
  monkeypatch.setattr(sweep, "Runner", functools.partial(sweep.Runner, command=command))


@pytest.fixture
def calls(tmp_path, monkeypatch):
  """Runs a script in run.py's place; () -> what it was called with."""
  script = tmp_path / "stand_in.py"
  script.write_text(STAND_IN.format(results=RESULTS))
  use(monkeypatch, script)
  return lambda: [json.loads(line) for line in open(tmp_path / "runs" / "calls.jsonl")]


def compared(text):
  """The runs in the table of a comparison."""
  _, _, table = text.partition("Comparison")
  return re.findall(r"\b(?:ft|il2m|wa)-\d+\b", table.partition("report:")[0])


def test_the_runs_of_a_sweep_and_their_logs(calls, tmp_path, capsys):
  command = ["--methods=ft,il2m,wa", "--seeds=0", "--output=runs", "--", "--width=4"]
  assert sweep.main(["sweep.py", *command]) == 0
  runs = tmp_path / "runs"
  common = {"width": "4", "seed": "0"}
  assert [call["flags"] for call in calls()] == [
    common | {"method": "ft", "workdir": f"{runs}/ft-0"},
    common | {"method": "wa", "workdir": f"{runs}/wa-0"},
    common
    | {"method": "il2m", "workdir": f"{runs}/il2m-0", "from_workdir": f"{runs}/ft-0"},
  ]
  assert (runs / "report.html").is_file()
  log = (runs / "il2m-0.log").read_text().splitlines()
  assert sorted(log)[1:] == ["errors of il2m-0", "output of il2m-0"]
  out = capsys.readouterr().out
  assert out.splitlines()[:6] == [
    line for name in ("ft-0", "wa-0", "il2m-0") for line in (f"{name} ...", f"{name} done")
  ]
  assert compared(out) == ["ft-0", "wa-0", "il2m-0"]
  # The same runs are resumed, and logs grow: the story of an interrupted run stays.
  first = [call["flags"] for call in calls()]
  assert sweep.main(["sweep.py", *command]) == 0
  assert [call["flags"] for call in calls()] == first * 2
  assert len((runs / "il2m-0.log").read_text().splitlines()) == 6
  # A terminal sends Ctrl-C to all of its session: it reaches the runs from here alone.
  sessions = [os.getsid(0), *(call["session"] for call in calls())]
  assert len(set(sessions)) == len(sessions) == 7


def test_a_run_that_fails_is_named_and_stops_those_alone_that_need_it(
  calls, tmp_path, capsys
):
  # As an earlier sweep has left it, say, before a method was edited.
  for name in ("ft-3", "il2m-3"):
    write_run(tmp_path / "runs" / name, method_title=name, seed=3)
  log = tmp_path / "runs" / "ft-3.log"
  log.write_text("error: long ago\n")
  command = ["--methods=ft,il2m,wa", "--seeds=0,3", "--output=runs"]
  assert sweep.main(["sweep.py", *command]) == 1
  called = [pathlib.Path(call["flags"]["workdir"]).name for call in calls()]
  assert called == ["ft-0", "wa-0", "ft-3", "wa-3", "il2m-0"]
  out, error = capsys.readouterr()
  # What is finished is compared all the same, but no results from before.
  assert compared(out) == ["ft-0", "wa-0", "wa-3", "il2m-0"]
  assert "ft-3" not in Page(tmp_path / "runs" / "report.html").text
  lines = out.splitlines()
  assert "il2m-3 needs ft-3, and is not run" in lines
  failed = lines.index(f"ft-3 failed with exit code 3, see {log}:")
  reasons = ["  error: this of ft-3 ", "  error: and \\x1b[31m that"]
  assert lines[failed + 1 : failed + 3] == reasons
  assert out.count("error: ") == 2
  assert error == FAILED


def test_runs_that_all_fail_are_not_compared(calls, tmp_path, capsys):
  write_run(tmp_path / "runs" / "ft-3", method_title="ft-3", seed=3)
  assert sweep.main(["sweep.py", "--methods=ft", "--seeds=3", "--output=runs"]) == 1
  out, error = capsys.readouterr()
  assert "Comparison" not in out
  assert error == FAILED
  assert not (tmp_path / "runs" / "report.html").exists()


@pytest.mark.parametrize(
  ("end", "stopped"),
  [
    ("sys.exit(130)", True),
    ("sys.exit(143)", True),
    ("os.kill(os.getpid(), 15)", True),  # before it handles signals
    ("os.kill(os.getpid(), 9)", True),
    ("os.abort()", False),
    ("raise ValueError('no \\b such shape')", False),
    ("sys.exit(1)", False),
  ],
)
def test_runs_that_were_stopped_are_compared_and_resumed_by_rerunning(
  tmp_path, monkeypatch, capsys, end, stopped
):
  write_run(tmp_path / "runs" / "ft-0", results=one_state(method_title="ft-0"))
  script = tmp_path / "ending.py"
  script.write_text(f"import os, sys\n{end}\n")
  use(monkeypatch, script)
  assert sweep.main(["sweep.py", "--methods=ft", "--output=runs"]) == 1
  out, error = capsys.readouterr()
  assert compared(out) == ["ft-0"] * stopped
  assert error == (STOPPED if stopped else FAILED)
  assert ("ft-0 stopped" in out.splitlines()) == stopped
  # A crash has no error lines, but it may have a last one.
  assert ("\n  ValueError: no \\x08 such shape\n" in out) == ("shape" in end)


def test_settings_that_no_method_of_the_sweep_has_are_named_once(calls, capsys):
  command = ["--methods=ft,il2m", "--seeds=0,1", "--output=runs", "--"]
  given = ["--il2m_scores=logits", "--lucir_lambda=5", "--bic_held_out=0.2"]
  for passed, line in (
    (given, "no effect on any of --methods: --bic_held_out (bic), --lucir_lambda (lucir)"),
    (given[:1], None),
  ):
    sweep.main(["sweep.py", *command, *passed])
    lines = capsys.readouterr().out.splitlines()
    assert [text for text in lines if "no effect" in text] == [line] * bool(line)
    assert lines[0] == (line or "ft-0 ...")


@pytest.mark.skipif(
  usable_cores() < 2 or not hasattr(os, "sched_getaffinity"), reason="needs two cores"
)
def test_jobs_at_a_time_share_the_cores(calls):
  mine = os.sched_getaffinity(0)
  command = ["--methods=il2m,wa,icarl", "--seeds=0,1", "--output=runs", "--jobs=2"]
  assert sweep.main(["sweep.py", *command]) == 0
  called = calls()
  assert len(called) == 6
  shares = {tuple(call["cores"]) for call in called}
  # Which thread is given a job is a matter of luck.
  assert len(shares) <= 2
  halves = [sorted(mine)[n::2] for n in (0, 1)]
  assert all(list(share) in halves for share in shares)
  assert os.sched_getaffinity(0) == mine


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_interrupts_its_run_and_starts_no_more(
  tmp_path, monkeypatch, capsys, number
):
  # A run that ends only when it is interrupted, and ends well.
  script = tmp_path / "waiting.py"
  script.write_text(
    "import pathlib, time\n"
    "try:\n"
    "  print('started', flush=True)\n"
    "  time.sleep(60)\n"
    "except KeyboardInterrupt:\n"
    "  print('interrupted')\n"
  )
  use(monkeypatch, script)

  def interrupt():
    log = tmp_path / "runs" / "ft-0.log"
    while not log.exists() or not log.read_text():
      time.sleep(0.05)
    os.kill(os.getpid(), number)

  thread = threading.Thread(target=interrupt, daemon=True)
  thread.start()
  assert sweep.main(["sweep.py", "--methods=ft,wa", "--output=runs"]) == 130
  thread.join()
  assert capsys.readouterr().err.splitlines() == [
    "the runs stop after their step; Ctrl-C again kills them",
    "interrupted: rerun the command to resume",
  ]
  # No log of a run that was never started.
  logs = {log.name: log.read_text() for log in (tmp_path / "runs").glob("*.log")}
  assert logs == {"ft-0.log": "started\ninterrupted\n"}


def test_a_sweep_with_a_method_of_ones_own_by_the_default_command(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
  shutil.copy(ROOT / "examples" / "focal_ssil.py", tmp_path)
  monkeypatch.delenv("PYTHONPATH", raising=False)
  # A module that the program needs comes before one in the current folder.
  (tmp_path / "absl.py").write_text("raise ImportError('the wrong one')")
  (tmp_path / "small.cfg").write_text(bad_inputs.SMALL)
  output = " [2024] *? $ % :smile: é ~ "  # which must make no difference
  methods = "--methods=focal_ssil:FOCAL"
  passed = ["--flagfile=small.cfg", "--num_states=1", "--width=1", "--focal_gamma=1"]
  command = ["sweep.py", methods, f"--output={output}", "--", *passed]
  code = sweep.main(command)
  assert code == 0, [path.read_text() for path in (tmp_path / output).glob("*.log")]
  assert (tmp_path / output / "report.html").is_file()
  assert "SS-IL, focal" in capsys.readouterr().out
  workdir = tmp_path / output / "focal_ssil-FOCAL-0"
  results = json.loads((workdir / "results.json").read_text())
  assert results["method_title"] == "SS-IL, focal"
  assert json.loads((workdir / "config.json").read_text())["focal_gamma"] == 1.0

  # The results of an edited method are not those of the new one.
  text = (tmp_path / "focal_ssil.py").read_text()
  (tmp_path / "focal_ssil.py").write_text(text.replace("loss = ", "loss = 2 * ", 1))
  del sys.modules["focal_ssil"]
  assert sweep.main(command) == 1
  out, error = capsys.readouterr()
  assert "SS-IL, focal" not in out
  assert "whose source has changed since" in out
  assert error == FAILED
