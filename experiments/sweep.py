"""Runs several methods with several seeds, one after the other, and compares them.

Examples:
  python experiments/sweep.py --methods=ft,ssil --seeds=0,1,2 --output=runs/digits \\
      -- --flagfile=quickstart.cfg
  python experiments/sweep.py --methods=all --output=runs/cifar100 \\
      -- --flagfile=cifar100.cfg --data_dir=DIR

What follows -- goes to run.py. The first method of a seed trains first, and lends the
others the states that they would train alike (run.py --from_workdir). The same command
line again continues: finished runs are not repeated.
"""

import concurrent.futures
import os
import pathlib
import queue
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

import command_line
import compare
import run
from absl import flags

from ssil_jax import config as config_lib
from ssil_jax import reuse
from ssil_jax.errors import ConfigError, UserError
from ssil_jax.host import usable_cores
from ssil_jax.methods import METHODS, get_method

_RUN = pathlib.Path(run.__file__).resolve()
_HELP = {
  "methods": "names of methods with commas between, or all",
  "seeds": "seeds with commas between (default: 0)",
  "output": "folder for the runs, OUTPUT/METHOD-SEED, their logs and report.html",
  "jobs": "runs at a time, for a CPU: each gets its share of the cores (default: 1)",
}


class Job(NamedTuple):
  """One run."""

  workdir: pathlib.Path
  arguments: list[str]  # of run.py
  lender: pathlib.Path | None  # the work directory that it may take states from


class Sweep(NamedTuple):
  """All runs; those of `first` come before the others."""

  output: pathlib.Path
  num_jobs: int
  first: list[Job]
  others: list[Job]


def help_text() -> str:
  """All flags."""
  flags_help = [command_line.flag_help(name, text) for name, text in _HELP.items()]
  return "\n".join([__doc__, "Flags:", *flags_help])


def parse(argv: Sequence[str]) -> Sweep:
  """The runs that a command line asks for; raises ConfigError."""
  argv = list(argv)
  cut = argv.index("--") if "--" in argv else len(argv)
  own, passed_on = argv[:cut], argv[cut + 1 :]
  flag_values = flags.FlagValues()
  flags.DEFINE_list("methods", None, _HELP["methods"], flag_values=flag_values)
  flags.DEFINE_list("seeds", ["0"], _HELP["seeds"], flag_values=flag_values)
  flags.DEFINE_string("output", None, _HELP["output"], flag_values=flag_values)
  flags.DEFINE_integer("jobs", 1, _HELP["jobs"], lower_bound=1, flag_values=flag_values)
  command_line.read_flags(flag_values, own)
  for name in ("methods", "output"):
    if not getattr(flag_values, name):
      raise ConfigError(f"--{name} is missing: {_HELP[name]}")
  if flag_values.jobs > usable_cores():
    raise ConfigError(f"--jobs={flag_values.jobs}, but there are {usable_cores()} cores")
  methods = list(METHODS) if flag_values.methods == ["all"] else flag_values.methods
  for name in methods:
    get_method(name)
  if not all(seed.isdecimal() for seed in flag_values.seeds):
    raise ConfigError(
      f"--seeds={','.join(flag_values.seeds)} must be whole numbers with commas between"
    )
  output = pathlib.Path(flag_values.output).expanduser().resolve()
  first, others = [], []
  for seed in flag_values.seeds:
    lender = None
    for method in methods:
      workdir = output / f"{method}-{seed}"
      arguments = [
        *passed_on,
        f"--method={method}",
        f"--seed={seed}",
        f"--workdir={workdir}",
      ]
      config = run.parse(["run.py", *arguments])  # so that mistakes show before training
      if lender is None:
        lender, lent = workdir, config_lib.to_json(config)
        first.append(Job(workdir, arguments, None))
      else:
        num_states, _ = reuse.shared_states(config, lent)
        others.append(Job(workdir, arguments, lender if num_states else None))
  return Sweep(output, flag_values.jobs, first, others)


def run_job(job: Job) -> int:
  """The exit code of a run; its output goes to WORKDIR.log."""
  arguments = list(job.arguments)
  if job.lender is not None:
    arguments.append(f"--from_workdir={job.lender}")
  print(f"{job.workdir.name} ...", flush=True)
  with open(f"{job.workdir}.log", "a", encoding="utf-8") as log:
    code = subprocess.run(
      [sys.executable, str(_RUN), *arguments],
      stdout=log,
      stderr=subprocess.STDOUT,
      check=False,
    ).returncode
  outcome = "done" if code == 0 else f"failed with exit code {code}, see {log.name}"
  print(f"{job.workdir.name} {outcome}", flush=True)
  return code


def run_all(jobs: list[Job], num_jobs: int) -> bool:
  """Runs them, `num_jobs` at a time; whether all went well."""
  shares = queue.SimpleQueue()
  if hasattr(os, "sched_getaffinity"):  # not on macOS
    cores = sorted(os.sched_getaffinity(0))
    for number in range(num_jobs):
      shares.put(cores[number::num_jobs])

  def take_share():
    # Children inherit the cores of the thread that starts them.
    if not shares.empty():
      os.sched_setaffinity(0, shares.get())

  with concurrent.futures.ThreadPoolExecutor(num_jobs, initializer=take_share) as pool:
    futures = [pool.submit(run_job, job) for job in jobs]
    try:
      codes = [future.result() for future in futures]
    except KeyboardInterrupt:
      # The runs under way hear of it themselves, and stop where they can go on.
      pool.shutdown(wait=False, cancel_futures=True)
      raise
  return not any(codes)


def main(argv: Sequence[str]) -> int:
  """Returns the exit code."""
  if command_line.wants_help(argv):
    print(help_text())
    return 0
  try:
    sweep = parse(argv)
    sweep.output.mkdir(parents=True, exist_ok=True)
  except UserError as error:
    return command_line.print_error(error)
  except OSError as error:
    return command_line.print_error(ConfigError(f"--output cannot be used: {error}"))
  try:
    # Without the first runs, the others would have nothing to take states from.
    done = run_all(sweep.first, sweep.num_jobs) and run_all(sweep.others, sweep.num_jobs)
  except KeyboardInterrupt:
    print("interrupted: the same command continues", file=sys.stderr)
    return run.INTERRUPTED
  if not done:
    print("error: not all runs are done; the same command continues", file=sys.stderr)
    return 1
  workdirs = [f"--workdir={job.workdir}" for job in (*sweep.first, *sweep.others)]
  return compare.main(["compare.py", *workdirs, f"--output={sweep.output}"])


if __name__ == "__main__":
  sys.exit(main(sys.argv))
