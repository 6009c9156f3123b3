"""Sweeps: which runs a command line means, what is wrong with it, and what is repeated."""

import json
import os
import pathlib
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
flags = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:])
workdir = pathlib.Path(flags["workdir"])
workdir.mkdir(parents=True, exist_ok=True)
cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
with open(workdir.parent / "calls.jsonl", "a") as file:
  file.write(json.dumps({"flags": flags, "cores": cores}) + "\\n")
print("output of", workdir.name)
print("errors of", workdir.name, file=sys.stderr)
code = int(flags.get("seed")) if workdir.name.startswith("ft") else 0
# As run.py does, before it trains.
(workdir / "results.json").write_text('{"states": []}' if code else '{"states": [1]}')
sys.exit(code)
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)


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
    config = run.parse(["run.py", *job.arguments])
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
    assert job.arguments[:2] == passed
    config = run.parse(["run.py", *job.arguments])
    assert (config.width, config.num_states, config.memory_size) == (4, 5, 10)


def test_the_output_may_start_at_home(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  assert parse("--methods=ft", "--output=~/runs").output == tmp_path / "home" / "runs"


def test_nothing_is_lent_to_runs_that_keep_their_momentum():
  # run.py refuses --from_workdir where a state starts with momentum.
  found = parse("--methods=ft,il2m,ssil", "--output=runs", "--", "--reset_momentum=false")
  assert [job.lender for job in found.jobs] == [None] * 3


MISTAKES = [
  ([], "--methods is missing"),
  (["--methods=ft"], "--output is missing"),
  (["--methods=", "--output=runs"], "--methods is missing"),
  (
    ["--methods=ft,svm", "--output=runs"],
    "--methods=ft,svm: 'svm' is unknown; choose from: ssil",
  ),
  (["--methods=all,ft", "--output=runs"], "--methods=all,ft: 'all' is unknown"),
  (["--methods=ft,", "--output=runs"], "--methods=ft,: '' is unknown"),
  (["--methods=ft", "--output=runs", "--seeds=0,x"], "--seeds=0,x must be whole"),
  (["--methods=ft", "--output=runs", "--seeds=-1"], "--seeds=-1 must be whole"),
  (["--methods=ft", "--output=runs", "--seeds=1.5"], "--seeds=1.5 must be whole"),
  (["--methods=ft", "--output=runs", "--seeds="], "--seeds is missing"),
  (["--methods=ft,il2m,ft", "--output=runs"], "--methods=ft,il2m,ft names a method twice"),
  (["--methods=ft", "--output=runs", "--seeds=1,01"], "--seeds=1,01 names a seed twice"),
  (["--methods=ft", "--output=runs", "--", "--seed=1"], "--seed after -- is set by"),
  (["--methods=ft", "--output=runs", "--", "--workdir", "a"], "--workdir after -- is set"),
  # What only data and method together rule out.
  (
    ["--methods=ft,eeil", "--output=runs", "--", "--flagfile=quickstart.cfg"],
    "--methods: eeil: state 2 trains on 10 images of new classes",
  ),
  (["--methods=ft", "--output=runs", "--seeds=4294967296"], "must be below 2**32"),
  (["--methods=ft", "--output=runs", "--jobs=0"], "--jobs"),
  (["--methods=ft", "--output=runs", "--jobs=two"], "--jobs=two"),
  (["--methods=ft", "--output=runs", "--jobs=999999"], "--jobs=999999, but there are"),
  (["--methods=ft", "--output=runs", "stray"], "'stray' is not a flag"),
  (["--methods=ft", "--output=runs", "--width=4"], "Unknown command line flag 'width'"),
  (["--methods=ft", "--output=runs", "--", "--wide=4"], "Unknown command line flag 'wide'"),
  (["--methods=ft", "--output=runs", "--", "stray"], "'stray' is not a flag"),
  (["--methods=ft", "--output=runs", "--", "--num_states=0"], "--num_states=0 must be 1"),
  (["--methods=ft", "--output=runs", "--", "--flagfile=no.cfg"], "--flagfile=no.cfg was"),
  (["--methods=ft", "--output=runs", "--", "--dataset=mnist"], "--dataset=mnist is"),
  # Only the second method cannot be run so.
  (
    ["--methods=ft,bic", "--output=runs", "--", "--bic_held_out=1"],
    "--bic_held_out=1.0 must be between",
  ),
  (["--methods=ft", "--output=/dev/null/runs"], "--output cannot be used"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_each_mistake_is_named_before_any_training(
  capsys, tmp_path, monkeypatch, arguments, message
):
  monkeypatch.setattr(sweep, "Runner", None)
  assert sweep.main(["sweep.py", *arguments]) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ")
  assert error.count("\n") == 1
  assert message in error
  assert not (tmp_path / "runs").exists()


def test_help_names_every_flag(capsys):
  assert sweep.main(["sweep.py", "--help"]) == 0
  text = capsys.readouterr().out
  for name in ("methods", "seeds", "output", "jobs"):
    assert f"  --{name}\n" in text


# Jobs -----------------------------------------------------------------------------------


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
  """Calls of a script that takes run.py's place; () -> what it was called with."""
  script = tmp_path / "stand_in.py"
  script.write_text(STAND_IN)
  monkeypatch.setattr(sweep, "_RUN", script)
  compared = []
  monkeypatch.setattr(sweep.compare, "main", lambda argv: compared.append(argv) or 0)

  def calls():
    path = tmp_path / "runs" / "calls.jsonl"
    return [json.loads(line) for line in open(path)], compared

  return calls


def test_the_runs_of_a_sweep_and_their_logs(stand_in, tmp_path, capsys):
  command = ["--methods=ft,il2m,wa", "--seeds=0", "--output=runs", "--", "--width=4"]
  assert sweep.main(["sweep.py", *command]) == 0
  called, compared = stand_in()
  runs = tmp_path / "runs"
  common = {"width": "4", "seed": "0"}
  assert [call["flags"] for call in called] == [
    common | {"method": "ft", "workdir": f"{runs}/ft-0", "from_workdir": ""},
    common | {"method": "wa", "workdir": f"{runs}/wa-0", "from_workdir": ""},
    common
    | {"method": "il2m", "workdir": f"{runs}/il2m-0", "from_workdir": f"{runs}/ft-0"},
  ]
  (argv,) = compared
  assert argv[1:] == [
    *(f"--workdir={runs}/{name}-0" for name in ("ft", "wa", "il2m")),
    f"--output={runs}",
  ]
  log = (runs / "il2m-0.log").read_text().splitlines()
  assert sorted(log) == ["errors of il2m-0", "output of il2m-0"]
  assert capsys.readouterr().out.splitlines() == [
    line for name in ("ft-0", "wa-0", "il2m-0") for line in (f"{name} ...", f"{name} done")
  ]
  # Logs grow: the story of an interrupted run stays.
  assert sweep.main(["sweep.py", *command]) == 0
  assert len((runs / "il2m-0.log").read_text().splitlines()) == 4


def test_a_run_that_fails_is_named_with_its_log_and_stops_those_that_need_it(
  stand_in, tmp_path, capsys
):
  command = ["--methods=ft,il2m", "--seeds=0,3", "--output=runs"]
  assert sweep.main(["sweep.py", *command]) == 1
  called, compared = stand_in()
  assert [call["flags"]["workdir"].split("/")[-1] for call in called] == [
    "ft-0",
    "ft-3",
    "il2m-0",
  ]
  # What is finished is compared all the same.
  ((_, *workdirs, _),) = compared
  assert [workdir.split("/")[-1] for workdir in workdirs] == ["ft-0", "il2m-0"]
  out, error = capsys.readouterr()
  assert "il2m-3 needs ft-3, and is not run" in out.splitlines()
  log = tmp_path / "runs" / "ft-3.log"
  assert f"ft-3 failed with exit code 3, see {log}" in out.splitlines()
  assert error == "error: not all runs are done; the same command continues\n"


def test_the_others_go_on_when_one_of_them_fails(stand_in, capsys):
  command = ["--methods=il2m,ft,wa", "--seeds=3", "--output=runs"]
  assert sweep.main(["sweep.py", *command]) == 1
  called, compared = stand_in()
  assert sorted(call["flags"]["method"] for call in called) == ["ft", "il2m", "wa"]
  assert len(compared) == 1
  assert "ft-3 failed with exit code 3" in capsys.readouterr().out


@pytest.mark.skipif(
  usable_cores() < 2 or not hasattr(os, "sched_getaffinity"), reason="needs two cores"
)
def test_jobs_at_a_time_share_the_cores(stand_in):
  mine = os.sched_getaffinity(0)
  command = ["--methods=il2m,wa,icarl", "--seeds=0,1", "--output=runs", "--jobs=2"]
  assert sweep.main(["sweep.py", *command]) == 0
  called, _ = stand_in()
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
    "import pathlib, sys\n"
    f"sys.path.insert(0, {str(pathlib.Path(sweep.__file__).parent)!r})\n"
    "import sweep\n"
    f"sweep._RUN = pathlib.Path({str(script)!r})\n"
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
    "interrupted: the same command continues",
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
sys.path[:0] = [{experiments!r}, {tests!r}, {root!r}]
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_disable_most_optimizations", True)
from ssil_jax.commands import run
from quick import quick_network
with quick_network():
  code = run.main(sys.argv)
sys.exit(code)
"""


def test_the_script_runs_from_anywhere_and_starts_run_py(tmp_path):
  assert pathlib.Path(sweep.__file__).resolve().parent / "run.py" == sweep._RUN
  done = subprocess.run(
    [sys.executable, sweep.__file__, "--methods=none", "--output=runs"],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  assert done.stderr.startswith("error: --methods=none: 'none' is unknown")


def test_a_sweep_of_two_methods_trains_once_and_repeats_nothing(
  tmp_path, monkeypatch, capsys
):
  tests = ROOT / "tests"
  script = tmp_path / "quick_run.py"
  places = {"experiments": str(sweep._RUN.parent), "tests": str(tests)}
  script.write_text(QUICK_RUN.format(**places, root=str(tests.parent)))
  monkeypatch.setattr(sweep, "_RUN", script)
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
  }
  passed_on = [f"--{name}={value}" for name, value in flags.items()]
  name = " [2024] *? $ % :smile: é ~ "  # which must make no difference
  command = ["sweep.py", "--methods=ft,il2m", f"--output={name}", "--", *passed_on]

  code = sweep.main(command)
  runs = tmp_path / name
  assert code == 0, [path.read_text() for path in runs.glob("*.log")]
  assert (runs / "report.html").is_file()
  table = capsys.readouterr().out
  assert "IL2M" in table
  ft, il2m = (
    json.loads((runs / name / "results.json").read_text()) for name in ("ft-0", "il2m-0")
  )
  assert [row["from_workdir"] for row in ft["states"]] == [None, None]
  assert [row["from_workdir"] for row in il2m["states"]] == [str(runs / "ft-0")] * 2
  written = ("results.json", "metrics.jsonl", "config.json")
  before = {path: path.read_bytes() for name in written for path in runs.glob(f"*/{name}")}
  assert len(before) == 6
  networks = {path: path.stat().st_mtime_ns for path in runs.glob("*/networks/*")}
  assert len(networks) == 4

  assert sweep.main(command) == 0
  assert {path: path.read_bytes() for path in before} == before
  assert {path: path.stat().st_mtime_ns for path in runs.glob("*/networks/*")} == networks
  for name in ("ft-0", "il2m-0"):
    assert "states 1 to 2 are done already" in (runs / f"{name}.log").read_text()
