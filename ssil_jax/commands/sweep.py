"""Runs several methods with several seeds, one after the other, and compares them."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from absl import flags

from ssil_jax import methods as methods_lib
from ssil_jax.commands import command_line, costs, execution, planning
from ssil_jax.commands.planning import Job, PlannedJob
from ssil_jax.commands.runner import Runner
from ssil_jax.commands.tuning import SET_BY_THE_GRID, Tuning, read_grid
from ssil_jax.errors import ConfigError

# Not the docstring, which `python -OO` leaves out.
_USAGE = """Runs several methods with several seeds, one after the other, and compares them.

Examples:
  python experiments/sweep.py --methods=ft,ssil --seeds=0,1,2 \\
      --output=runs/digits -- --flagfile=quickstart.cfg
  python experiments/sweep.py --methods=all --output=runs/cifar100 \\
      -- --flagfile=cifar100.cfg --data_dir=DIR

With --grid, settings are chosen on validation images first: each combination
is run with --validation_fraction (0.1, or as given after --) under
OUTPUT/tuning, and the final runs train on all training images with the best.

  python experiments/sweep.py --methods=ft,ssil --output=runs/tuned \\
      --grid="learning_rate=0.05,0.1 epochs=6,12" -- --flagfile=quickstart.cfg

What follows -- goes to run.py; a setting of one of the methods has no effect on
the others. A run takes the states that one before it has trained alike (run.py
--from_workdir). Rerun the command to resume: finished runs are not repeated.
"""
_HELP = {
  "methods": "names of methods with commas between, or all; MODULE:NAME for your own",
  "seeds": "seeds with commas between (default: 0)",
  "output": "folder for the runs, OUTPUT/METHOD-SEED, their logs and report.html",
  "grid": "settings to choose, with the values to try: NAME=VALUE,VALUE parts with spaces "
  "between; all combinations are run, those of a method's own setting by that method alone",
  **execution.HELP,
}


class Sweep(NamedTuple):
  """Holds what a command line asks for."""

  output: pathlib.Path
  execution: execution.Execution
  jobs: list[Job]  # a lender before those that borrow from it; with a grid, the first ones
  tuning: Tuning | None = None  # with a grid


def help_text() -> str:
  """Returns all flags."""
  return command_line.help_of_flags(_USAGE, _HELP)


def parse(argv: Sequence[str]) -> Sweep:
  """Returns what a command line asks for; raises ConfigError."""
  own, passed_on = command_line.split_passed_on(argv)
  flag_values = flags.FlagValues()
  flags.DEFINE_list("methods", None, _HELP["methods"], flag_values=flag_values)
  flags.DEFINE_list("seeds", ["0"], _HELP["seeds"], flag_values=flag_values)
  flags.DEFINE_string("output", None, _HELP["output"], flag_values=flag_values)
  flags.DEFINE_string("grid", None, _HELP["grid"], flag_values=flag_values)
  execution.define_flags(flag_values)
  command_line.read_flags(flag_values, own)
  for name in ("methods", "seeds", "output"):
    if not getattr(flag_values, name):
      raise ConfigError(f"--{name} is missing: {_HELP[name]}")
  how = execution.read_flags(flag_values)
  planning.check_passed_on(passed_on, by="the sweep")
  methods = _methods(flag_values.methods)
  if len(set(methods)) < len(methods):
    raise ConfigError(f"--methods={','.join(flag_values.methods)} names a method twice")
  seeds = planning.read_seeds(flag_values.seeds)
  output = planning.read_output(flag_values.output)
  if flag_values.grid is not None:
    planning.check_passed_on(passed_on, by="--grid", names=SET_BY_THE_GRID)
    grid = read_grid(flag_values.grid, passed_on, methods)
    tuning = Tuning(output, passed_on, methods, seeds, grid)
    return Sweep(output, how, tuning.jobs(), tuning)
  jobs = [
    planning.make_job(
      output / f"{method.replace(':', '-')}-{seed}",
      [*passed_on, f"--method={method}", f"--seed={seed}"],
      methods=methods,
    )
    for seed in seeds
    for method in methods
  ]
  return Sweep(output, how, planning.with_lenders(jobs))


def _methods(names: list[str]) -> list[str]:
  if names == ["all"]:
    return list(methods_lib.METHODS)
  for name in names:
    if ":" in name:
      methods_lib.get_method(name)
    elif name not in methods_lib.METHODS:
      raise ConfigError(
        f"--methods={','.join(names)}: {name!r} is unknown; choose from: "
        f"{', '.join(methods_lib.METHODS)}; or all"
      )
  return names


def _examine(jobs: Sequence[Job]) -> list[PlannedJob]:
  return planning.examine(jobs, lambda job: f"--methods: {job.config.method}")


def _carry_out(
  how: execution.Execution, planned: Sequence[PlannedJob]
) -> execution.Finished:
  return execution.carry_out(how, planned, Runner(min(how.num_jobs, len(planned))))


def main(argv: Sequence[str]) -> int:
  """Returns the exit code."""
  if command_line.wants_help(argv):
    print(help_text())
    return 0
  return execution.guarded(lambda: _sweep(argv))


def _sweep(argv: Sequence[str]) -> int:
  from ssil_jax.commands import compare  # only now: help is there at once
  from ssil_jax.reports.tuning import load_tuning, tuning_note

  output, how, jobs, tuning = parse(argv)
  planned = _examine(jobs)
  # What rules the final runs out shows before any training, whatever will be chosen.
  finals = _examine(tuning.final_jobs(tuning.first())) if tuning else []
  if how.dry_run:
    costs.print_plan(planned, output, shard=how.shard)
    if tuning:
      print("then, with what is chosen instead of the first values:")
      costs.print_plan(finals, output, shard=how.shard)
    return 0
  folder = tuning.folder if tuning else output
  folder.mkdir(parents=True, exist_ok=True)
  no_effect = [
    setting for setting in jobs[0].ignored if all(setting in job.ignored for job in jobs)
  ]
  if no_effect:
    print(f"no effect on any of --methods: {', '.join(no_effect)}", flush=True)
  if how.num_slurm_jobs:
    return execution.submit(how, "sweep", argv[1:], output)
  finished = _carry_out(how, planned)
  if tuning:
    if not finished.all_done:
      return execution.exit_code(finished)
    if how.shard and not all(one.is_finished for one in _examine(jobs)):
      print("other shards are not done: when they are, rerun the command to go on")
      return 0
    chosen = tuning.choose()
    for method in chosen:
      note = tuning_note(load_tuning(str(tuning.path(method))))
      print(f"{method}: {note}", flush=True)
    finished = _carry_out(how, _examine(tuning.final_jobs(chosen)))
  compared = 0
  if finished.workdirs and not how.shard:
    workdirs = [f"--workdir={workdir}" for workdir in finished.workdirs]
    compared = compare.main(["compare.py", *workdirs, f"--output={output}"])
  return execution.exit_code(finished) or compared
