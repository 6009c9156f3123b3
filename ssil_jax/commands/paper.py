"""Reproduces tables and figures of the SS-IL paper, beside the published numbers."""

import pathlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from absl import flags

from ssil_jax.commands import command_line, compare, execution, planning, sweep
from ssil_jax.commands.planning import Job
from ssil_jax.commands.runner import INTERRUPTED, Runner, signals_as_interrupts
from ssil_jax.errors import ConfigError, DataError, UserError
from ssil_jax.paper.protocol import PARTS, SCALES, Cell, Scale
from ssil_jax.paths import real_path, run_mistakes

# Not the docstring, which `python -OO` leaves out.
_USAGE = """Reproduces tables and figures of the SS-IL paper, beside the published numbers.

  python experiments/paper.py table1 table2 --data_dir=DIR
  python experiments/paper.py all --scale=small --data_dir=DIR
  python experiments/paper.py all --scale=digits --seeds=0,1,2

Parts: table1, table2, figure1 to figure7, or all.
Runs that several parts need are done once. What follows -- goes to run.py.
Rerun the command to resume: finished runs are not repeated.
"""
_HELP = {
  "scale": "paper: ImageNet and Landmarks as prepare.py leaves them, those that are in "
  "--data_dir; small: 60 classes of CIFAR-100; digits: the scanned digits that come with "
  "the package",
  "seeds": "seeds with commas between (default: 0)",
  "data_dir": "folder of the data sets",
  "output": "folder for the runs, OUTPUT/runs/..., and the page, OUTPUT/report.html "
  "(default: runs/paper-SCALE)",
  "export": compare.HELP["export"],
  **execution.HELP,
}
_VARIED = ("num_states", "memory_size", "batch_size_memory")


class Request(NamedTuple):
  """What a command line asks for."""

  parts: list[str]
  scale: Scale
  output: pathlib.Path
  execution: execution.Execution
  seeds: list[int]
  data_dir: str
  exports: list[str]  # kinds of `exports.KINDS`
  passed_on: list[str]  # to run.py


class Study(NamedTuple):
  """The runs of a request."""

  jobs: list[Job]  # a lender before those that borrow from it
  cells: dict[pathlib.Path, Cell]  # work directory -> what it is in the paper
  left_out: list[str]  # a line for each data set that is not there


def help_text() -> str:
  """Returns all flags."""
  return command_line.help_of_flags(_USAGE, _HELP)


def parse(argv: Sequence[str]) -> Request:
  """Returns what a command line asks for; raises ConfigError."""
  argv = list(argv)
  cut = argv.index("--") if "--" in argv else len(argv)
  own, passed_on = argv[:cut], argv[cut + 1 :]
  values = flags.FlagValues()
  flags.DEFINE_enum("scale", "paper", [*SCALES], _HELP["scale"], flag_values=values)
  flags.DEFINE_list("seeds", ["0"], _HELP["seeds"], flag_values=values)
  for name in ("data_dir", "output", "export"):
    flags.DEFINE_string(name, "", _HELP[name], flag_values=values)
  execution.define_flags(values)
  parts = command_line.read_flags(values, own, takes_paths=True)
  if not parts:
    raise ConfigError(f"name what to reproduce: {', '.join(PARTS)}, or all")
  if unknown := [part for part in parts if part not in (*PARTS, "all")]:
    raise ConfigError(
      f"{unknown[0]!r} is no part of the paper; choose from: {', '.join(PARTS)}; or all"
    )
  how = execution.read_flags(values)
  planning.check_passed_on(
    passed_on, by="the protocol", names=(*planning.SET_BY_THE_PLAN, *_VARIED)
  )
  seeds = sweep.seeds_of(values.seeds)
  if len(set(seeds)) < len(seeds):
    raise ConfigError(f"--seeds={','.join(values.seeds)} names a seed twice")
  if not values.data_dir and values.scale != "digits":
    raise ConfigError(f"--data_dir is missing: {_HELP['data_dir']}")
  output = values.output or f"runs/paper-{values.scale}"
  if mistakes := run_mistakes("output", output):
    raise ConfigError("\n".join(mistakes))
  chosen = [part for part in PARTS if part in parts or "all" in parts]
  return Request(
    chosen,
    SCALES[values.scale],
    real_path(output),
    how,
    seeds,
    values.data_dir,
    compare.kinds_of(values.export),
    passed_on,
  )


def plan_study(request: Request) -> Study:
  """Returns all runs of a request, seed by seed.

  Raises:
    ConfigError: what follows -- does not go together with the protocol.
    DataError: none of the data sets that it needs is there.
  """
  cells = request.scale.cells(request.parts)
  left_out: dict[str, str] = {}
  if len(request.scale.datasets) > 1:
    for name in dict.fromkeys(one.dataset for one in cells):
      one = next(one for one in cells if one.dataset == name)
      try:
        _open(_job(request, one, request.seeds[0]))
      except DataError as error:
        left_out[name] = f"{name} is left out: {error}"
  present = [one for one in cells if one.dataset not in left_out]
  if cells and not present:
    raise DataError("\n".join(left_out.values()))
  jobs, of_workdir = [], {}
  for seed in request.seeds:
    of_seed = [_job(request, one, seed) for one in present]
    of_workdir |= {job.workdir: one for job, one in zip(of_seed, present, strict=True)}
    jobs += planning.with_lenders(of_seed)
  return Study(jobs, of_workdir, [*left_out.values()])


def _job(request: Request, one: Cell, seed: int) -> Job:
  settings = request.scale.settings(one)
  varied = {name: settings.pop(name) for name in _VARIED}
  of_cell = {"epochs": settings.pop("epochs")} if one.epochs else {}
  method = settings.pop("method")
  if request.data_dir:
    settings["data_dir"] = request.data_dir
  name = "-".join(
    [
      settings["dataset"].replace("/", "-"),
      method,
      f"T{varied['num_states']}",
      f"M{varied['memory_size']}",
      f"N{varied['batch_size_memory']}",
      *(f"E{epochs}" for epochs in of_cell.values()),
      str(seed),
    ]
  )
  chosen = {**varied, **of_cell, "method": method, "seed": seed}
  arguments = [
    *(f"--{name}={value}" for name, value in settings.items()),
    *request.passed_on,
    *(f"--{name}={value}" for name, value in chosen.items()),
  ]
  return planning.make_job(request.output / "runs" / name, arguments, methods=())


def _open(job: Job) -> None:
  """Raises DataError unless the data set of a run is there."""
  from ssil_jax.data.opening import open_dataset

  open_dataset(job.config)


def main(argv: Sequence[str]) -> int:
  """Returns the exit code."""
  if command_line.wants_help(argv):
    print(help_text())
    return 0
  try:
    with signals_as_interrupts():
      request = parse(argv)
      how, output = request.execution, request.output
      study = plan_study(request)
      for line in study.left_out:
        print(f"note: {line}", flush=True)
      planned = planning.examine(study.jobs)
      if how.dry_run:
        execution.print_plan(planned)
        return 0
      (output / "runs").mkdir(parents=True, exist_ok=True)
      if how.num_slurm_jobs:
        names = execution.submit(how, "paper", argv[1:], output)
        print(f"submitted: {', '.join(names)}; logs: {output / 'slurm'}")
        return 0
      finished = execution.carry_out(how, planned, Runner(how.num_jobs))
      if not how.shard:
        from ssil_jax.paper import report

        cells = {workdir: study.cells[workdir] for workdir in finished.workdirs}
        lines = report.write(
          output,
          request.parts,
          request.scale,
          cells,
          notes=study.left_out,
          exports=request.exports,
        )
        print("\n".join(map(command_line.printable, lines)))
  except UserError as error:
    return command_line.print_error(error)
  except OSError as error:
    what = f"--output cannot be used: {error}; name a folder that can be written"
    return command_line.print_error(ConfigError(what))
  except KeyboardInterrupt:
    print("interrupted: rerun the command to resume", file=sys.stderr)
    return INTERRUPTED
  if finished.all_done:
    return 0
  print(f"error: {execution.remedy(finished)}", file=sys.stderr)
  return 1
