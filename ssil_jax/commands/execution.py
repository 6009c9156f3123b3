"""Carries planned runs out: here, a share of them, or by jobs of a SLURM cluster."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from ssil_jax.commands import command_line, planning
from ssil_jax.commands.planning import PlannedJob
from ssil_jax.commands.runner import (
  INTERRUPTED,
  Outcome,
  Runner,
  python_path,
  signals_as_interrupts,
)
from ssil_jax.errors import ConfigError, UserError
from ssil_jax.reports.results import has_finished_state
from ssil_jax.system import usable_cores

HELP = {
  "jobs": "runs at a time, for a CPU: each gets its share of the cores (default: 1)",
  "shard": "i/n: only the i-th of n parts of the runs, of about the same cost; start one "
  "on each of n machines that share --output, and the same command without the flag "
  "afterwards, which runs what is missing and writes the page",
  "slurm": "n: submit the n parts as jobs of a SLURM cluster, and return (extra [slurm])",
  "slurm_options": "what submitit is told of these jobs, such as "
  "slurm_partition=gpu,timeout_min=600,gpus_per_node=1",
  "dry_run": "list the runs, or those of --shard, with epochs, images and the hours of "
  "training that a measured step promises on this machine, and run nothing",
}
_TOLD = {
  Outcome.FAILED: "failed ({})",
  Outcome.NOT_RUN: "was not run, as {}",
  Outcome.STOPPED: "was stopped before a state was done",
}
_OPTION = re.compile(r"(\w+)=([^,=]+)")


class Execution(NamedTuple):
  """Says how runs are carried out."""

  num_jobs: int = 1
  shard: tuple[int, int] | None = None  # number, from 1, and count
  num_slurm_jobs: int = 0
  slurm_options: Mapping[str, Any] = {}
  dry_run: bool = False


def define_flags(flag_values: flags.FlagValues) -> None:
  """Defines the flags of `HELP`."""
  flags.DEFINE_integer("jobs", 1, HELP["jobs"], lower_bound=1, flag_values=flag_values)
  flags.DEFINE_string("shard", "", HELP["shard"], flag_values=flag_values)
  flags.DEFINE_integer("slurm", 0, HELP["slurm"], lower_bound=0, flag_values=flag_values)
  flags.DEFINE_string("slurm_options", "", HELP["slurm_options"], flag_values=flag_values)
  flags.DEFINE_boolean("dry_run", False, HELP["dry_run"], flag_values=flag_values)


def read_flags(flag_values: flags.FlagValues) -> Execution:
  """Returns what the flags say.

  Raises:
    ConfigError: a value is wrong, or two contradict each other.
  """
  if flag_values.jobs > usable_cores():
    raise ConfigError(f"--jobs={flag_values.jobs}, but there are {usable_cores()} cores")
  shard, given = None, flag_values.shard
  if given:
    match = re.fullmatch(r"(\d+)/(\d+)", given)
    shard = match and (int(match[1]), int(match[2]))
    if not shard or not 1 <= shard[0] <= shard[1]:
      raise ConfigError(f"--shard={given} must be i/n, from 1/n to n/n, such as 1/4")
  options = _slurm_options(flag_values.slurm_options)
  if options and not flag_values.slurm:
    raise ConfigError("--slurm_options needs --slurm=n: how many jobs are submitted")
  if flag_values.slurm:
    if shard:
      raise ConfigError("--slurm deals the shards out itself: leave --shard out")
    if importlib.util.find_spec("submitit") is None:
      raise ConfigError("--slurm needs submitit: pip install 'ssil-jax[slurm]'")
  return Execution(flag_values.jobs, shard, flag_values.slurm, options, flag_values.dry_run)


def _slurm_options(given: str) -> dict[str, Any]:
  options: dict[str, Any] = {}
  for part in filter(None, given.split(",")):
    match = _OPTION.fullmatch(part)
    if not match:
      raise ConfigError(
        f"--slurm_options={given}: {part!r} must be NAME=VALUE, with commas between"
      )
    name, value = match.groups()
    options[name] = int(value) if value.isdecimal() else value
  return options


class Finished(NamedTuple):
  """Holds what carrying runs out has come to."""

  outcomes: list[Outcome]
  workdirs: list[pathlib.Path]  # that hold states of these very runs
  notes: list[str]  # a line for each other run, and why there is nothing of it

  @property
  def all_done(self) -> bool:
    """Says whether every run is complete."""
    return all(outcome is Outcome.DONE for outcome in self.outcomes)


def carry_out(
  execution: Execution, planned: Sequence[PlannedJob], runner: Runner
) -> Finished:
  """Runs what is not finished of all runs, or of a shard of them."""
  mine = planned
  if execution.shard:
    number, count = execution.shard
    mine = planning.shards(planned, count)[number - 1]
  jobs = [one.job for one in mine]
  finished = {one.job.workdir for one in planned if one.is_finished}
  if done := [job for job in jobs if job.workdir in finished]:
    print(f"{len(done)} of {len(jobs)} runs are finished", flush=True)
  for job in jobs:
    if job.workdir not in finished and (broken := planning.broken_results(job.workdir)):
      print(f"note: {broken}; its run is resumed and writes it anew", flush=True)
  ended = runner.run(jobs, finished=finished)
  workdirs, notes = [], []
  for job, (outcome, reason) in zip(jobs, ended, strict=True):
    # A work directory that was refused may hold results of other settings or sources.
    can_be_read = outcome in (Outcome.DONE, Outcome.STOPPED)
    if can_be_read and has_finished_state(job.workdir):
      workdirs.append(job.workdir)
    elif outcome in _TOLD:
      told = _TOLD[outcome].format(reason)
      notes.append(f"{job.workdir.name} {told}: what needs it is missing")
  return Finished([outcome for outcome, _ in ended], workdirs, notes)


def exit_code(finished: Finished) -> int:
  """Returns 0 if all runs are done; else 1, having said what to do."""
  if finished.all_done:
    return 0
  first = "fix what their logs say and " if Outcome.FAILED in finished.outcomes else ""
  print(
    f"error: not all runs are done; {first}rerun the command to resume", file=sys.stderr
  )
  return 1


def guarded(command: Callable[[], int]) -> int:
  """Returns the exit code of a command that carries runs out, also where it fails.

  Signals interrupt it, and with it its runs.
  """
  try:
    with signals_as_interrupts():
      return command()
  except UserError as error:
    return command_line.print_error(error)
  except OSError as error:
    what = f"--output cannot be used: {error}; name a folder that can be written"
    return command_line.print_error(ConfigError(what))
  except KeyboardInterrupt:
    print("interrupted: rerun the command to resume", file=sys.stderr)
    return INTERRUPTED


class ShardTask:
  """Runs the command again as a SLURM job, with its `--shard`."""

  def __init__(self, command: Sequence[str]):
    """Takes the whole command."""
    self.command = [*command]

  def __call__(self) -> int:
    """Runs it; a run that SLURM ends saves first, as after any SIGTERM."""
    return subprocess.run(self.command, check=False).returncode

  def checkpoint(self, *args: Any) -> Any:
    """Submits the same command again when SLURM takes the node away: it resumes."""
    from submitit.helpers import DelayedSubmission

    return DelayedSubmission(self)


def submit(
  execution: Execution, command: str, argv: Sequence[str], output: pathlib.Path
) -> int:
  """Submits a job for each shard, and prints their names; returns the exit code.

  Args:
    execution: of the command line.
    command: of `ssil_jax.commands`.
    argv: its arguments, without the program's name.
    output: where submitit's own files and logs go, in the folder `slurm`.

  Raises:
    ConfigError: submitit knows no such option, or finds no SLURM here.
  """
  submitit = _import_submitit()
  options = dict(execution.slurm_options)
  own = _without_slurm(argv)
  # The jobs inherit it, so that they find this package where it is, installed or not.
  os.environ["PYTHONPATH"] = python_path()
  try:
    executor = submitit.AutoExecutor(
      folder=output / "slurm", cluster=options.pop("cluster", "slurm")
    )
    executor.update_parameters(name=f"ssil-jax-{command}", **options)
    count = execution.num_slurm_jobs
    with executor.batch():
      jobs = [
        executor.submit(
          ShardTask(
            [
              sys.executable,
              *("-P", "-m", "ssil_jax.commands", command),
              *_with_shard(own, f"{number}/{count}"),
            ]
          )
        )
        for number in range(1, count + 1)
      ]
  except (RuntimeError, NameError, ValueError, TypeError) as error:
    what = " ".join(str(error).split())
    raise ConfigError(f"--slurm={execution.num_slurm_jobs}: {what}") from error
  names = ", ".join(str(job.job_id) for job in jobs)
  print(f"submitted: {names}; logs: {output / 'slurm'}")
  return 0


def _import_submitit() -> Any:
  # It would configure logging when it is imported, which closes all handlers that are
  # there, and absl's closes standard error.
  level = "SUBMITIT_LOG_LEVEL"
  before = os.environ.get(level)
  os.environ[level] = "NOCONFIG"
  try:
    import submitit

    return submitit
  finally:
    os.environ.pop(level)
    if before is not None:
      os.environ[level] = before


def _with_shard(argv: Sequence[str], shard: str) -> list[str]:
  """Returns the arguments with --shard before --, after which others' flags stand."""
  cut = argv.index("--") if "--" in argv else len(argv)
  return [*argv[:cut], f"--shard={shard}", *argv[cut:]]


def _without_slurm(argv: Sequence[str]) -> list[str]:
  cut = argv.index("--") if "--" in argv else len(argv)
  own, skip = [], False
  for text in argv[:cut]:
    name, equals, _ = text.lstrip("-").partition("=")
    if skip:
      skip = False
    elif text.startswith("-") and name in ("slurm", "slurm_options"):
      skip = not equals  # its value is the next argument
    else:
      own.append(text)
  return [*own, *argv[cut:]]
