"""Runs several methods with several seeds, one after the other, and compares them."""

import concurrent.futures
import contextlib
import enum
import graphlib
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from absl import flags

from ssil_jax import config as config_lib
from ssil_jax.commands import command_line, run
from ssil_jax.errors import ConfigError, UserError
from ssil_jax.methods import METHODS, get_method
from ssil_jax.methods.source import source_hash
from ssil_jax.paths import real_path, run_mistakes
from ssil_jax.system import usable_cores

# Not the docstring, which `python -OO` leaves out.
_USAGE = """Runs several methods with several seeds, one after the other, and compares them.

Examples:
  python experiments/sweep.py --methods=ft,ssil --seeds=0,1,2 \\
      --output=runs/digits -- --flagfile=quickstart.cfg
  python experiments/sweep.py --methods=all --output=runs/cifar100 \\
      -- --flagfile=cifar100.cfg --data_dir=DIR

What follows -- goes to run.py; a setting of one of the methods has no effect on
the others. A run takes the states that one before it has trained alike (run.py
--from_workdir). Rerun the command to resume: finished runs are not repeated.
"""
_HELP = {
  "methods": "names of methods with commas between, or all; MODULE:NAME for your own",
  "seeds": "seeds with commas between (default: 0)",
  "output": "folder for the runs, OUTPUT/METHOD-SEED, their logs and report.html",
  "jobs": "runs at a time, for a CPU: each gets its share of the cores (default: 1)",
}
# -P: without the current folder, which a method of one's own is looked up in last.
_RUN = (sys.executable, "-P", "-m", "ssil_jax.commands", "run")
_INTERRUPTED = 128 + signal.SIGINT  # what a shell reports after Ctrl-C
_STOPPED = {  # exit codes of runs that saved first, and of those that could not
  code
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
  for code in (128 + number, -number)
}
_SET_HERE = ("method", "seed", "workdir", "from_workdir")  # flags of run.py


class Job(NamedTuple):
  """One run."""

  workdir: pathlib.Path
  config: config_lib.Config
  arguments: list[str]  # of run.py
  ignored: tuple[str, ...]  # settings of other methods
  lender: pathlib.Path | None = None  # the work directory that states are taken from


class Outcome(enum.Enum):
  """Tells how a job ended."""

  DONE = enum.auto()
  STOPPED = enum.auto()  # by a signal
  FAILED = enum.auto()
  NOT_RUN = enum.auto()


def help_text() -> str:
  """Returns all flags."""
  return command_line.help_of_flags(_USAGE, _HELP)


def parse(argv: Sequence[str]) -> tuple[pathlib.Path, int, list[Job]]:
  """Returns what a command line asks for; raises UserError.

  Returns:
    The output folder; how many run at a time; all runs, a lender before those that borrow
    from it.
  """
  argv = list(argv)
  cut = argv.index("--") if "--" in argv else len(argv)
  own, passed_on = argv[:cut], argv[cut + 1 :]
  flag_values = flags.FlagValues()
  flags.DEFINE_list("methods", None, _HELP["methods"], flag_values=flag_values)
  flags.DEFINE_list("seeds", ["0"], _HELP["seeds"], flag_values=flag_values)
  flags.DEFINE_string("output", None, _HELP["output"], flag_values=flag_values)
  flags.DEFINE_integer("jobs", 1, _HELP["jobs"], lower_bound=1, flag_values=flag_values)
  command_line.read_flags(flag_values, own)
  for name in ("methods", "seeds", "output"):
    if not getattr(flag_values, name):
      raise ConfigError(f"--{name} is missing: {_HELP[name]}")
  if flag_values.jobs > usable_cores():
    raise ConfigError(f"--jobs={flag_values.jobs}, but there are {usable_cores()} cores")
  for name in _SET_HERE:
    if any(argument.lstrip("-").split("=")[0] == name for argument in passed_on):
      raise ConfigError(f"--{name} after -- is set by the sweep itself: leave it out")
  methods = _methods(flag_values.methods)
  if not all(text.isdecimal() for text in flag_values.seeds):
    given = ",".join(flag_values.seeds)
    raise ConfigError(f"--seeds={given} must be whole numbers with commas between")
  seeds = [int(text) for text in flag_values.seeds]
  for what, chosen in (("method", methods), ("seed", seeds)):
    if len(set(chosen)) < len(chosen):
      given = ",".join(flag_values[f"{what}s"].value)
      raise ConfigError(f"--{what}s={given} names a {what} twice")
  if mistakes := run_mistakes("output", flag_values.output):
    raise ConfigError("\n".join(mistakes))
  output = real_path(flag_values.output)
  jobs = []
  for seed in seeds:
    of_seed: list[Job] = []
    for method in methods:
      workdir = output / f"{method.replace(':', '-')}-{seed}"
      chosen = [f"--method={method}", f"--seed={seed}", f"--workdir={workdir}"]
      request = run.parse(["run.py", *passed_on, *chosen], methods=methods)
      # Without the settings of other methods, which its process may not know.
      arguments = run.arguments_of(request.given)
      job = Job(workdir, request.config, arguments, request.ignored)
      of_seed.append(_with_lender(job, of_seed))
    jobs += of_seed
  _check_plans(jobs)
  # Those without a lender, then those that borrow from these, and so on: few wait in vain.
  named = {job.workdir: job for job in jobs}
  lenders = {job.workdir: [job.lender] if job.lender else [] for job in jobs}
  order = graphlib.TopologicalSorter(lenders).static_order()
  return output, min(flag_values.jobs, len(jobs)), [named[name] for name in order]


def _methods(names: list[str]) -> list[str]:
  if names == ["all"]:
    return list(METHODS)
  for name in names:
    if ":" in name:
      get_method(name)
    elif name not in METHODS:
      raise ConfigError(
        f"--methods={','.join(names)}: {name!r} is unknown; choose from: "
        f"{', '.join(METHODS)}; or all"
      )
  return names


def _with_lender(job: Job, earlier: list[Job]) -> Job:
  """Gives it the first of the earlier ones that trains as many states as possible alike."""
  from ssil_jax.training import reuse

  shared = []
  for config in (other.config for other in earlier):
    saved = {**config_lib.to_json(config), "method_source": source_hash(config.method)}
    shared.append(reuse.shared_states(job.config, saved)[0])
  if not any(shared):
    return job
  lender = earlier[shared.index(max(shared))].workdir
  arguments = [*job.arguments, f"--from_workdir={lender}"]
  return job._replace(lender=lender, arguments=arguments)


def _check_plans(jobs: list[Job]) -> None:
  """Raises UserError, before any training, for what the data and a method rule out."""
  from ssil_jax.data.opening import open_dataset
  from ssil_jax.training.plan import make_plan

  dataset = open_dataset(jobs[0].config)  # the same for all
  for method, job in {job.config.method: job for job in jobs}.items():
    try:
      make_plan(job.config, dataset)
    except UserError as error:
      lines = str(error).splitlines()
      raise ConfigError(
        "\n".join(f"--methods: {method}: {line}" for line in lines)
      ) from error


class Runner:
  """Runs jobs, several at a time, each on its share of the cores."""

  def __init__(self, num_jobs: int, command: Sequence[str] = _RUN):
    """Takes how many run at a time, and the command that takes a job's arguments."""
    self._num_jobs = num_jobs
    self._command = [*command]
    self._lock = threading.Lock()  # of the two below
    self._stopped = False
    self._processes: set[subprocess.Popen] = set()
    self._finished: dict[pathlib.Path, concurrent.futures.Future] = {}
    self._shares: queue.SimpleQueue = queue.SimpleQueue()
    if hasattr(os, "sched_getaffinity"):  # not on macOS
      cores = sorted(os.sched_getaffinity(0))
      for number in range(num_jobs):
        self._shares.put(cores[number::num_jobs])

  def run(self, jobs: list[Job]) -> list[Outcome]:
    """Returns how each ended; on KeyboardInterrupt, interrupts the runs, too."""
    with concurrent.futures.ThreadPoolExecutor(
      self._num_jobs, initializer=self._take_share
    ) as pool:
      try:
        for job in jobs:
          self._finished[job.workdir] = pool.submit(self._run, job)
        outcomes = [future.result() for future in self._finished.values()]
      except KeyboardInterrupt:
        self._stop(signal.SIGINT)
        print("the runs stop after their step; Ctrl-C again kills them", file=sys.stderr)
        try:
          concurrent.futures.wait(self._finished.values())
        except KeyboardInterrupt:
          self._stop(signal.SIGKILL)
        raise
    return outcomes

  def _stop(self, number: signal.Signals) -> None:
    """Starts nothing more, and sends a signal to what runs."""
    with self._lock:
      self._stopped = True
      for process in self._processes:
        process.send_signal(number)

  def _take_share(self) -> None:
    # Children inherit the cores of the thread that starts them.
    if not self._shares.empty():
      os.sched_setaffinity(0, self._shares.get())

  def _run(self, job: Job) -> Outcome:
    """Returns how the job ended; its output goes to WORKDIR.log."""
    name = job.workdir.name
    # So that it finds this package where it is, installed or not.
    root = str(pathlib.Path(__file__).resolve().parents[2])
    python_path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    # The lender was submitted earlier, so that it has been started.
    if job.lender and self._finished[job.lender].result() is not Outcome.DONE:
      if not self._stopped:
        print(f"{name} needs {job.lender.name}, and is not run", flush=True)
      return Outcome.NOT_RUN
    try:
      with open(f"{job.workdir}.log", "a", encoding="utf-8") as log:
        start = log.tell()
        with self._lock:
          if self._stopped:
            return Outcome.NOT_RUN
          print(f"{name} ...", flush=True)
          process = subprocess.Popen(
            [*self._command, *job.arguments],
            env={**os.environ, "PYTHONPATH": python_path},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that Ctrl-C reaches it once, from here
          )
          self._processes.add(process)
        code = process.wait()
        with self._lock:
          self._processes.remove(process)
    except OSError as error:
      print(f"{name} cannot be run: {error}", flush=True)
      return Outcome.FAILED
    if code == 0:
      print(f"{name} done", flush=True)
      return Outcome.DONE
    if code in _STOPPED:
      print(f"{name} stopped", flush=True)
      return Outcome.STOPPED
    failed = f"{name} failed with exit code {code}, see {log.name}"
    reasons = _reasons(log.name, start)
    # At once: other threads print, too.
    print("\n  ".join([f"{failed}:" if reasons else failed, *reasons]), flush=True)
    return Outcome.FAILED


def _reasons(log: str, start: int) -> list[str]:
  """Returns the error lines after `start` in a log; if there are none, its last line."""
  try:
    with open(log, encoding="utf-8", errors="replace") as file:
      file.seek(start)
      lines = [line for line in file.read().split("\n") if line.strip()]
  except OSError:
    return []  # its name is said
  errors = [line for line in lines if line.startswith("error: ")]
  return [command_line.printable(line) for line in errors or lines[-1:]]


@contextlib.contextmanager
def _signals_as_interrupts() -> Iterator[None]:
  """SIGTERM and a closed terminal raise KeyboardInterrupt, as Ctrl-C does."""
  numbers = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]
  before = {number: signal.getsignal(number) for number in numbers}
  for number in numbers:
    # nohup ignores SIGHUP. A script's background job ignores SIGINT, and so would its runs.
    if number == signal.SIGINT or before[number] != signal.SIG_IGN:
      signal.signal(number, signal.default_int_handler)
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def main(argv: Sequence[str]) -> int:
  """Returns the exit code."""
  if command_line.wants_help(argv):
    print(help_text())
    return 0
  from ssil_jax.commands import compare  # only now: help is there at once
  from ssil_jax.reports.results import has_finished_state

  try:
    with _signals_as_interrupts():
      output, num_jobs, jobs = parse(argv)
      output.mkdir(parents=True, exist_ok=True)
      no_effect = [
        setting
        for setting in jobs[0].ignored
        if all(setting in job.ignored for job in jobs)
      ]
      if no_effect:
        print(f"no effect on any of --methods: {', '.join(no_effect)}", flush=True)
      outcomes = Runner(num_jobs).run(jobs)
      # A work directory that was refused may hold results of other settings or sources.
      accepted = [
        job.workdir
        for job, outcome in zip(jobs, outcomes, strict=True)
        if outcome in (Outcome.DONE, Outcome.STOPPED) and has_finished_state(job.workdir)
      ]
      compared = 0
      if accepted:
        workdirs = [f"--workdir={workdir}" for workdir in accepted]
        compared = compare.main(["compare.py", *workdirs, f"--output={output}"])
  except UserError as error:
    return command_line.print_error(error)
  except OSError as error:
    what = f"--output cannot be used: {error}; name a folder that can be written"
    return command_line.print_error(ConfigError(what))
  except KeyboardInterrupt:
    print("interrupted: rerun the command to resume", file=sys.stderr)
    return _INTERRUPTED
  if all(outcome is Outcome.DONE for outcome in outcomes):
    return compared
  remedy = "fix what their logs say and " if Outcome.FAILED in outcomes else ""
  print(
    f"error: not all runs are done; {remedy}rerun the command to resume", file=sys.stderr
  )
  return 1
