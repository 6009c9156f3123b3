"""Sweeps: which runs a command line means, what is wrong with it, and what is repeated."""

import dataclasses
import functools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from folders import ROOT

from ssil_jax.commands import run, sweep
from ssil_jax.methods import METHODS
from ssil_jax.system import usable_cores

# Stands in for run.py: writes down its arguments, and fails where it is told to.
STAND_IN = """
import json, os, pathlib, sys
sys.path.insert(0, {tests!r})
from written_runs import RESULTS
flags = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:])
workdir = pathlib.Path(flags["workdir"])
workdir.mkdir(parents=True, exist_ok=True)
cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
with open(workdir.parent / "calls.jsonl", "a") as file:
  file.write(json.dumps({{"flags": flags, "cores": cores}}) + "\\n")
print("output of", workdir.name)
print("errors of", workdir.name, file=sys.stderr)
code = int(flags.get("seed")) if workdir.name.startswith("ft") else 0
results = {{**RESULTS, "method_title": workdir.name, "seed": int(flags["seed"])}}
if not code:
  (workdir / "results.json").write_text(json.dumps(results))
sys.exit(code)
"""


def parse(*arguments):
  return sweep.parse(["sweep.py", *arguments])


def names(jobs):
  return [job.workdir.name for job in jobs]


# Command lines --------------------------------------------------------------------------


def test_runs_take_states_from_the_first_that_has_most_of_them(tmp_path):
  found = parse("--methods=ssil,il2m,ft,joint", "--seeds=3,5", "--output=runs", "--jobs=1")
  assert found.output == tmp_path / "runs"
  assert found.num_jobs == 1
  # il2m has ssil's first state, ft all of il2m's. A lender comes before its borrowers.
  lenders = {"ssil": None, "il2m": "ssil", "joint": "ssil", "ft": "il2m"}
  assert names(found.jobs) == [
    f"{method}-{seed}"
    for methods in (["ssil"], ["il2m", "joint"], ["ft"])
    for seed in (3, 5)
    for method in methods
  ]
  for job in found.jobs:
    method, seed = job.workdir.name.split("-")
    config = run.parse(["run.py", *job.arguments]).config
    assert (config.method, config.seed) == (method, int(seed))
    assert (
      pathlib.Path(config.workdir) == job.workdir == tmp_path / "runs" / job.workdir.name
    )
    lender = lenders[method] and tmp_path / "runs" / f"{lenders[method]}-{seed}"
    assert job.lender == lender
    assert config.from_workdir == str(lender or "")


def test_seeds_and_jobs_have_defaults():
  found = parse("--methods=ssil", "--output=runs")
  assert (names(found.jobs), found.num_jobs) == (["ssil-0"], 1)


def test_all_means_every_method():
  found = parse("--methods=all", "--output=runs", "--", "--epochs_first=2")
  assert sorted(names(found.jobs)) == sorted(f"{name}-0" for name in METHODS)
  lenders = {job.workdir.name: job.lender and job.lender.name for job in found.jobs}
  assert lenders["ft-0"] == lenders["lwf-0"] == "ssil-0"
  assert lenders["il2m-0"] == "ft-0"
  # Their first states differ, by the method or by its schedule.
  for name in ("lucir-0", "wa-0", "bic-0", "er_ace-0", "joint_full-0"):
    assert lenders[name] is None


def test_a_first_method_that_can_lend_nothing_does_not_keep_others_from_it():
  found = parse("--methods=joint_full,ft,il2m", "--output=runs")
  lenders = {job.workdir.name: job.lender and job.lender.name for job in found.jobs}
  assert lenders == {"joint_full-0": None, "ft-0": None, "il2m-0": "ft-0"}


def test_what_follows_the_dashes_goes_to_the_runs():
  passed = ["--flagfile=quickstart.cfg", "--width=4"]
  found = parse("--methods=ft,ssil", "--output=runs", "--", *passed)
  for job in found.jobs:
    config = run.parse(["run.py", *job.arguments]).config
    assert (config.width, config.num_states, config.memory_size) == (4, 5, 10)


def test_the_output_may_start_at_home(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  assert parse("--methods=ft", "--output=~/runs").output == tmp_path / "home" / "runs"


def test_nothing_is_lent_to_runs_that_keep_their_momentum():
  # run.py refuses --from_workdir where a state starts with momentum.
  found = parse("--methods=ft,il2m,ssil", "--output=runs", "--", "--reset_momentum=false")
  assert [job.lender for job in found.jobs] == [None] * 3


def test_each_run_gets_its_own_settings_alone():
  given = ["--lucir_lambda=5.0", "--il2m_scores=logits", "--milestones=8,16", "--width=4"]
  found = parse("--methods=lucir,il2m,ft", "--output=runs", "--", *given)
  own = {"lucir-0": given[:1], "il2m-0": given[1:2], "ft-0": []}
  for job in found.jobs:
    passed = set(job.arguments) & {*given}
    assert passed == {*own[job.workdir.name], *given[2:]}
    from_command = run.parse(["run.py", *job.arguments]).config
    assert dataclasses.replace(from_command, from_workdir="") == job.config


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
  script.write_text(STAND_IN.format(tests=str(ROOT / "tests")))
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
  assert sorted(log) == ["errors of il2m-0", "output of il2m-0"]
  out = capsys.readouterr().out
  assert out.splitlines()[:6] == [
    line for name in ("ft-0", "wa-0", "il2m-0") for line in (f"{name} ...", f"{name} done")
  ]
  assert compared(out) == ["ft-0", "wa-0", "il2m-0"]
  # Logs grow: the story of an interrupted run stays.
  assert sweep.main(["sweep.py", *command]) == 0
  assert len((runs / "il2m-0.log").read_text().splitlines()) == 4


def test_a_run_that_fails_is_named_with_its_log_and_stops_those_that_need_it(
  calls, tmp_path, capsys
):
  command = ["--methods=ft,il2m", "--seeds=0,3", "--output=runs"]
  assert sweep.main(["sweep.py", *command]) == 1
  called = [pathlib.Path(call["flags"]["workdir"]).name for call in calls()]
  assert called == ["ft-0", "ft-3", "il2m-0"]
  out, error = capsys.readouterr()
  # What is finished is compared all the same.
  assert compared(out) == ["ft-0", "il2m-0"]
  assert "il2m-3 needs ft-3, and is not run" in out.splitlines()
  log = tmp_path / "runs" / "ft-3.log"
  assert f"ft-3 failed with exit code 3, see {log}" in out.splitlines()
  assert error == "error: not all runs are done; rerun the command to resume\n"


def test_the_others_go_on_when_one_of_them_fails(calls, capsys):
  command = ["--methods=il2m,ft,wa", "--seeds=3", "--output=runs"]
  assert sweep.main(["sweep.py", *command]) == 1
  assert sorted(call["flags"]["method"] for call in calls()) == ["ft", "il2m", "wa"]
  out = capsys.readouterr().out
  assert "ft-3 failed with exit code 3" in out
  assert sorted(compared(out)) == ["il2m-3", "wa-3"]


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


def sweep_with(script, methods):
  """A process of a sweep whose runs are runs of a script beside it."""
  code = (
    "import functools, sys\n"
    f"sys.path.insert(0, {str(ROOT)!r})\n"
    "from ssil_jax.commands import sweep\n"
    f"command = [sys.executable, {str(script)!r}]\n"
    "sweep.Runner = functools.partial(sweep.Runner, command=command)\n"
    f"sys.exit(sweep.main(['sweep.py', '--methods={methods}', '--output=runs']))\n"
  )
  return subprocess.Popen(
    [sys.executable, "-c", code], cwd=script.parent, stderr=subprocess.PIPE, text=True
  )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_interrupts_its_runs(tmp_path, number):
  # A run that ends only when it is interrupted, and says so.
  script = tmp_path / "waiting.py"
  script.write_text(
    "import pathlib, time\n"
    "try:\n"
    "  pathlib.Path('started').touch()\n"
    "  time.sleep(60)\n"
    "except KeyboardInterrupt:\n"
    "  pathlib.Path('interrupted').touch()\n"
  )
  process = sweep_with(script, "ft,wa")
  while not (tmp_path / "started").exists():
    assert process.poll() is None
    time.sleep(0.05)
  process.send_signal(number)
  _, error = process.communicate(timeout=30)
  assert process.returncode == 130
  assert error.splitlines() == [
    "the runs stop after their step; Ctrl-C again kills them",
    "interrupted: rerun the command to resume",
  ]
  assert (tmp_path / "interrupted").exists()


def test_nothing_is_started_after_an_interrupt(tmp_path):
  # A run that is too near its end to be stopped, and ends well.
  script = tmp_path / "deaf.py"
  script.write_text(
    "import pathlib, signal, sys, time\n"
    "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    "pathlib.Path(f'started-{len(list(pathlib.Path().glob(\"started*\")))}').touch()\n"
    "time.sleep(1)\n"
  )
  process = sweep_with(script, "ft,il2m")
  while not (tmp_path / "started-0").exists():
    assert process.poll() is None
    time.sleep(0.05)
  process.send_signal(signal.SIGINT)
  process.communicate(timeout=30)
  assert process.returncode == 130
  assert not (tmp_path / "started-1").exists()


# A whole sweep --------------------------------------------------------------------------

# run.py with a network that compiles in a fraction of the time.
QUICK_RUN = """
import sys
sys.path[:0] = [{tests!r}, {root!r}]
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_disable_most_optimizations", True)
from ssil_jax.commands import run
from quick import quick_network
with quick_network():
  code = run.main(sys.argv)
sys.exit(code)
"""


def test_the_default_command_is_run_py_of_this_package(tmp_path):
  command = ["--methods=ft", "--output=runs", "--", "--flagfile=quickstart.cfg"]
  (job,) = parse(*command).jobs
  # It refuses the first argument that is not its own.
  broken = job._replace(arguments=["--width=0", *job.arguments[:1]])
  job.workdir.parent.mkdir()
  assert not sweep.Runner(1).run([broken])
  log = pathlib.Path(f"{job.workdir}.log").read_text()
  assert log == "error: --width=0 must be 1 or more\n"


def test_a_sweep_with_a_method_of_ones_own_trains_once_and_repeats_nothing(
  tmp_path, monkeypatch, capsys
):
  script = tmp_path / "quick_run.py"
  script.write_text(QUICK_RUN.format(tests=str(ROOT / "tests"), root=str(ROOT)))
  use(monkeypatch, script)
  shutil.copy(ROOT / "examples" / "focal_ssil.py", tmp_path)
  flags = {
    "num_classes": 2,
    "num_states": 2,
    "memory_size": 4,
    "batch_size_new": 32,
    "epochs_first": 1,
    "epochs": 1,
    "width": 1,
    "num_devices": 1,
    "log_every": 1,
    "focal_gamma": 1,
  }
  passed_on = [f"--{name}={value}" for name, value in flags.items()]
  output = " [2024] *? $ % :smile: é ~ "  # which must make no difference
  methods = "--methods=ssil,il2m,focal_ssil:FOCAL"
  command = ["sweep.py", methods, f"--output={output}", "--", *passed_on]

  code = sweep.main(command)
  runs = tmp_path / output
  assert code == 0, [path.read_text() for path in runs.glob("*.log")]
  assert (runs / "report.html").is_file()
  assert "SS-IL, focal" in capsys.readouterr().out
  names = ("ssil-0", "il2m-0", "focal_ssil-FOCAL-0")
  results = {n: json.loads((runs / n / "results.json").read_text()) for n in names}
  configs = {n: json.loads((runs / n / "config.json").read_text()) for n in names}
  taken = {n: [row["from_workdir"] for row in results[n]["states"]] for n in names}
  assert taken["il2m-0"] == [str(runs / "ssil-0"), None]
  # Its first state has another loss.
  assert taken["ssil-0"] == taken["focal_ssil-FOCAL-0"] == [None, None]
  titles = [results[name]["method_title"] for name in names]
  assert titles == ["SS-IL", "IL2M", "SS-IL, focal"]
  assert [configs[n].get("focal_gamma") for n in names] == [None, None, 1.0]
  written = ("results.json", "metrics.jsonl", "config.json")
  before = {path: path.read_bytes() for name in written for path in runs.glob(f"*/{name}")}
  assert len(before) == 9
  networks = {path: path.stat().st_mtime_ns for path in runs.glob("*/networks/*")}
  assert len(networks) == 6

  assert sweep.main(command) == 0
  assert {path: path.read_bytes() for path in before} == before
  assert {path: path.stat().st_mtime_ns for path in runs.glob("*/networks/*")} == networks
  for name in names:
    assert "states 1 to 2 are done already" in (runs / f"{name}.log").read_text()
