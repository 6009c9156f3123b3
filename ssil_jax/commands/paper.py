"""Reproduces tables and figures of the SS-IL paper, beside the published numbers."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from absl import flags

from ssil_jax import methods as methods_lib
from ssil_jax.commands import command_line, compare, costs, execution, planning, run
from ssil_jax.commands.planning import Job, PlannedJob
from ssil_jax.commands.runner import Runner
from ssil_jax.config import DEFAULTS, Config
from ssil_jax.errors import ConfigError, DataError
from ssil_jax.paper.protocol import PARTS, SCALES, Cell, Scale
from ssil_jax.settings import fields_of, owners_of

# Not the docstring, which `python -OO` leaves out.
_USAGE = """Reproduces tables and figures of the SS-IL paper, beside the published numbers.

  python experiments/paper.py table1 table2 --data_dir=DIR
  python experiments/paper.py all --scale=small --data_dir=DIR
  python experiments/paper.py all --scale=digits --seeds=0,1,2

Parts: table1, table2, figure1 to figure7, or all.
Runs that several parts need are done once. What follows -- goes to run.py: how
and where runs are done (--num_devices=1), but no setting of the protocol.
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
# What a machine computes in: no part of the protocol, and the page says where it differs.
_ARITHMETIC = ("precision", "matmul_precision")


class Request(NamedTuple):
  """Holds what a command line asks for."""

  parts: list[str]
  scale: Scale
  output: pathlib.Path
  execution: execution.Execution
  seeds: list[int]
  data_dir: str
  exports: list[str]  # kinds of `exports.KINDS`
  passed_on: list[str]  # to run.py


class Study(NamedTuple):
  """Holds the runs of a request."""

  jobs: list[Job]  # a lender before those that borrow from it
  cells: dict[pathlib.Path, Cell]  # work directory -> what it is in the paper


def help_text() -> str:
  """Returns all flags."""
  return command_line.help_of_flags(_USAGE, _HELP)


def parse(argv: Sequence[str]) -> Request:
  """Returns what a command line asks for; raises ConfigError."""
  own, passed_on = command_line.split_passed_on(argv)
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
  _check_passed_on(passed_on, values.scale)
  seeds = planning.read_seeds(values.seeds)
  if not values.data_dir and values.scale != "digits":
    raise ConfigError(f"--data_dir is missing: {_HELP['data_dir']}")
  chosen = [part for part in PARTS if part in parts or "all" in parts]
  return Request(
    chosen,
    SCALES[values.scale],
    planning.read_output(values.output or f"runs/paper-{values.scale}"),
    how,
    seeds,
    values.data_dir,
    compare.kinds_of(values.export),
    passed_on,
  )


def stated_settings() -> set[str]:
  """Returns the settings that the protocol sets or the page states, by name.

  They are all that change what a run learns, and which classes it learns when.
  """
  shared = {
    field.name
    for field in fields_of(Config)
    if field.metadata["changes"] != "nothing"
    or field.metadata["topic"] == "Incremental states and exemplars"
  }
  return (shared | owners_of(methods_lib.METHODS).keys()) - {*_ARITHMETIC}


def _check_passed_on(passed_on: Sequence[str], scale: str) -> None:
  """Raises ConfigError if what follows -- would make the page say what is not so."""
  values = run.define_settings(methods_lib.METHODS.values())
  command_line.read_flags(values, ["run.py", *passed_on])
  given = run.given_settings(values)
  alike = SCALES[scale].other_datasets
  own = [flags["dataset"] for flags in SCALES[scale].datasets.values()]
  if alike and given.get("dataset") in (*own, *alike):
    del given["dataset"]
  elif alike and "dataset" in given:
    raise ConfigError(
      f"--dataset={given['dataset']} after --: --scale={scale} takes "
      f"{' or '.join([*own, *alike])}"
    )
  fixed = stated_settings() | {*planning.SET_BY_THE_PLAN}
  if names := [f"--{name}" for name in given if name in fixed]:
    *most, last = names
    listed, be, them = last, "is", "it"
    if most:
      listed, be, them = f"{', '.join(most)} and {last}", "are", "them"
    raise ConfigError(
      f"{listed} after -- {be} set by the protocol itself: leave {them} out, or use "
      "sweep.py, which takes any setting"
    )


def plan_study(request: Request) -> Study:
  """Returns all runs of a request, seed by seed.

  Raises:
    ConfigError: what follows -- does not go together with the protocol.
  """
  cells = request.scale.cells(request.parts)
  jobs, of_workdir = [], {}
  for seed in request.seeds:
    of_seed = [_job(request, one, seed) for one in cells]
    of_workdir |= {job.workdir: one for job, one in zip(of_seed, cells, strict=True)}
    jobs += planning.with_lenders(of_seed)
  return Study(jobs, of_workdir)


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


def _other_arithmetic(jobs: Sequence[Job]) -> list[str]:
  """Returns a line for each way in which runs compute otherwise than the paper's."""
  return [
    f"all runs have --{name}={getattr(job.config, name)} instead of {DEFAULTS[name]}"
    for job in jobs[:1]
    for name in _ARITHMETIC
    if getattr(job.config, name) != DEFAULTS[name]
  ]


def _examine(study: Study, request: Request) -> tuple[list[PlannedJob], list[str]]:
  """Returns the runs, and a line for each data set that is not there.

  With --dry_run, runs on such data are planned by its usual size; else they are left out.

  Raises:
    ConfigError, DataError: as `planning.examine`; or no data set is there.
  """
  scale, listed = request.scale, request.execution.dry_run
  lines: list[str] = []

  def size_of(job: Job) -> tuple[int, int] | None:
    return scale.sizes.get(study.cells[job.workdir].dataset)

  def leave_out(job: Job, error: DataError) -> None:
    told = "is left out"
    if listed:
      size = size_of(job)
      of_size = f"of {size[1]:,} training images" if size else "of unknown size"
      told = f"is not there, and its runs are listed as {of_size}"
    label = scale.label(study.cells[job.workdir].dataset)
    lines.append(f"{label} {told}: {error}")

  planned = planning.examine(
    study.jobs, leave_out=leave_out, size_of=size_of if listed else None
  )
  if lines and not planned:
    raise DataError("\n".join(lines))
  return planned, lines


def main(argv: Sequence[str]) -> int:
  """Returns the exit code."""
  if command_line.wants_help(argv):
    print(help_text())
    return 0
  return execution.guarded(lambda: _reproduce(argv))


def _reproduce(argv: Sequence[str]) -> int:
  request = parse(argv)
  how, output = request.execution, request.output
  study = plan_study(request)
  planned, left_out = _examine(study, request)
  notes = [*left_out, *_other_arithmetic(study.jobs)]
  for line in notes:
    print(f"note: {line}", flush=True)
  if how.dry_run:
    costs.print_plan(planned, output, shard=how.shard)
    return 0
  (output / "runs").mkdir(parents=True, exist_ok=True)
  if how.num_slurm_jobs:
    return execution.submit(how, "paper", argv[1:], output)
  finished = execution.carry_out(how, planned, Runner(how.num_jobs))
  if not how.shard:
    from ssil_jax.paper import report

    lines = report.write(
      output,
      request.parts,
      request.scale,
      {workdir: study.cells[workdir] for workdir in finished.workdirs},
      notes=[*notes, *finished.notes],
      exports=request.exports,
    )
    print("\n".join(map(command_line.printable, lines)))
  return execution.exit_code(finished)
