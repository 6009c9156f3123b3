"""The run: for every incremental state, train it, look back at it, and save.

It knows states, phases and the `Method` contract; no method's and no data set's name.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console

from ssil_jax import config as config_lib
from ssil_jax import memory, metrics
from ssil_jax.config import Config
from ssil_jax.data import fingerprint
from ssil_jax.distributed import collectives
from ssil_jax.distributed.preemption import Interrupted
from ssil_jax.errors import DivergedError
from ssil_jax.methods.base import Sizes
from ssil_jax.progress import ProgressDisplay
from ssil_jax.system import write_json
from ssil_jax.training import devices, incremental, numerics, reuse, workdir
from ssil_jax.training.checkpoint import Checkpoints, Networks, Progress, Underway
from ssil_jax.training.keeper import Keeper
from ssil_jax.training.meter import Meter
from ssil_jax.training.plan import (
  PhasePlan,
  Plan,
  check_shares,
  make_plan,
  phase_plans,
  schedule_rows,
  schedule_table,
)
from ssil_jax.training.recorder import open_journal
from ssil_jax.training.trainer import Trainer, make_trainer


def run(
  config: Config, console: Console, *, check_interrupt: Callable[[], None] = lambda: None
) -> dict[str, Any]:
  """Trains and evaluates every incremental state that the work directory lacks.

  Args:
    config: of the run.
    console: where progress is shown.
    check_interrupt: called before every step and every test batch; if it raises
      Interrupted, the run is saved and ends. With several processes it must do so in all of
      them at the same call.

  Returns:
    The contents of results.json.

  Raises:
    UserError: bad input, named, before any training; or DivergedError.
    Interrupted: `check_interrupt` did; the same run goes on from there.
  """
  with numerics.standard(config, warn=_printer(console)):
    return _run(config, console, check_interrupt)


def _run(
  config: Config, console: Console, check_interrupt: Callable[[], None]
) -> dict[str, Any]:
  """See `run`."""
  # What processes do not do together must not count for their stopping together.
  alone = check_interrupt if not collectives.is_multiprocess() else lambda: None
  plan = make_plan(config, check_interrupt=alone)
  mesh = devices.choose_devices(config)
  check_shares(plan, mesh.size)
  data_parts = fingerprint.parts(plan.dataset)
  source = reuse.open_source(plan, data_parts=data_parts, warn=_printer(console))
  flags = config_lib.to_json(config)
  for name in ("process_id", "data_dir"):  # may differ from process to process
    del flags[name]
  collectives.check_same(
    {name: str(value) for name, value in {**flags, **data_parts}.items()}
  )
  with (
    workdir.claimed(config, data_parts=data_parts, warn=_printer(console)) as folder,
    workdir.writing(config),
  ):
    if collectives.is_main():
      write_json(folder / "schedule.json", schedule_rows(plan))
    _show(plan, console)
    trainer = make_trainer(plan, mesh, check_interrupt=check_interrupt)
    beginning = start(plan, trainer)
    workdir.check_space(folder, _bytes_needed(plan, beginning, folder))
    with (
      Checkpoints(
        folder,
        kept=config.checkpoints_kept,
        origin={**config_lib.identity(config), **data_parts},
        warn=_printer(console),
      ) as checkpoints,
      Networks(folder) as networks,
    ):
      progress = checkpoints.latest(otherwise=beginning)
      if progress.underway:  # a state that was begun here is finished here
        there = min(source.num_states, len(progress.results))
        source = source._replace(num_states=there)
      collectives.check_same(
        {
          "checkpoints in --workdir (which all must share)": str(progress.number),
          "states in --from_workdir": str(source.num_states),
        }
      )
      environment = devices.describe(mesh)
      _show_progress(source, progress, folder, environment, console)
      try:
        return _run_states(
          plan, trainer, source, progress, checkpoints, networks, folder, console
        )
      except DivergedError as error:
        raise DivergedError(f"{error}; {_way_back(checkpoints)}") from error


def _run_states(
  plan: Plan,
  trainer: Trainer,
  source: reuse.Source,
  progress: Progress,
  checkpoints: Checkpoints,
  networks: Networks,
  folder: pathlib.Path,
  console: Console,
) -> dict[str, Any]:
  """All states from `progress` on; see `run`."""
  config = plan.config
  done, underway = len(progress.results), progress.underway
  first_trained = max(done, source.num_states) + 1
  phases = [p for p in phase_plans(plan) if p.state.index >= first_trained]

  def write_results():
    results = _results(plan, trainer.mesh, progress.results)
    if collectives.is_main():
      write_json(folder / "results.json", results)
    return results

  if not checkpoints.damaged:  # else it may know more states than the good checkpoint
    write_results()
  steps_done = int(progress.train_state.step)
  with (
    open_journal(
      folder,
      steps_done=steps_done,
      steps_recorded=steps_done - (len(underway.window) if underway else 0),
      warn=_printer(console),
    ) as journal,
    ProgressDisplay(
      console,
      num_states=len(plan.states),
      num_images=sum(p.num_images for p in phases) - _images_done(phases, underway),
    ) as display,
  ):
    keeper = Keeper(
      checkpoints,
      journal,
      minutes=config.checkpoint_minutes,
      check_interrupt=trainer.check_interrupt,
    )
    for state in plan.states[done:]:
      if state.index <= source.num_states:
        trained = incremental.take_state(plan, source, progress, state, journal)
      else:
        trained = incremental.train_state(
          plan,
          trainer,
          progress,
          state,
          [p for p in phases if p.state is state],
          make_meter=functools.partial(
            Meter, log_every=config.log_every, journal=journal, display=display
          ),
          keeper=keeper,
        )
      try:
        progress = incremental.finish_state(plan, trainer, progress, state, trained)
      except Interrupted:
        if trained.here is not None:
          keeper.save(trained.here)
        raise
      # Each process has worked them out by itself, perhaps on another kind of machine.
      train_state, exemplars, stats = collectives.broadcast_from_main(progress[:3])
      progress = progress._replace(train_state=train_state, memory=exemplars, stats=stats)
      networks.save(progress.train_state, state=state.index)
      keeper.save(progress)
      write_results()
      result = progress.results[-1]
      journal.evaluation(result, step=int(progress.train_state.step))
      display.print(_one_line(result, len(plan.states)))
  return write_results()


def start(plan: Plan, trainer: Trainer) -> Progress:
  """A run that has done nothing yet."""
  params = trainer.initial.params
  sizes = Sizes(
    num_classes=len(plan.dataset.class_names),
    num_features=params["head"]["kernel"].shape[0],
    num_records=len(plan.dataset.train.labels),
    memory_size=plan.config.memory_size,
  )
  return Progress(trainer.initial, memory.empty(), plan.method.init_stats(sizes), [])


def _printer(console: Console) -> Callable[[str], None]:
  return functools.partial(console.print, markup=False, emoji=False, soft_wrap=True)


def _show(plan: Plan, console: Console) -> None:
  """What is to be done, and on what."""
  if plan.dataset.ignored_files:
    console.print(
      f"{plan.dataset.ignored_files} files or folders beside the images are ignored"
    )
  for note in plan.dataset.notes:
    _printer(console)(note)
  console.print(schedule_table(plan))


def _show_progress(
  source: reuse.Source,
  progress: Progress,
  folder: pathlib.Path,
  environment: Mapping[str, Any],
  console: Console,
) -> None:
  """What needs not be done, and whether it was done in another environment."""
  say = _printer(console)
  done, underway = len(progress.results), progress.underway
  if done:
    say(f"states 1 to {done} are done already, in {folder}")
  if underway:
    say(f"state {done + 1} goes on after step {int(progress.train_state.step)}")
  if source.num_states > done:
    say(f"states {done + 1} to {source.num_states} are taken from {source.folder}")
  places = []
  if progress.number:
    places.append(folder)
  if source.num_states > done:
    places.append(source.folder)
  for place in places:
    there = workdir.saved_environment(place)
    different = [
      f"{name}: {there.get(name)} there, {environment.get(name)} now"
      for name in dict.fromkeys((*there, *environment))
      if there and there.get(name) != environment.get(name)
    ]
    if different:
      say(
        f"note: what {place} has was computed in another environment, and numbers may be "
        f"rounded otherwise ({'; '.join(different)})"
      )


def _images_done(phases: list[PhasePlan], underway: Underway | None) -> int:
  """Training images of a state underway, the first of `phases`, that are behind it."""
  if underway is None:
    return 0
  images = sum(p.num_images for p in phases[: underway.phase])
  return images + underway.steps_done * sum(phases[underway.phase].group_sizes)


def _bytes_needed(plan: Plan, beginning: Progress, folder: pathlib.Path) -> int:
  """Room for what is still to be saved; an old checkpoint goes after a new one came."""
  network = _size((beginning.train_state.params, beginning.train_state.batch_stats))
  teacher = network if plan.method.has_teacher else 0
  saved = _size((beginning.train_state, beginning.stats)) + teacher
  there = len(workdir.saved(folder, "checkpoints"))
  checkpoints = max(1, plan.config.checkpoints_kept + 1 - there)
  states = len(plan.states) - len(workdir.saved(folder, "networks"))
  return checkpoints * saved + states * network


def _size(tree: Any) -> int:
  """Bytes of all arrays."""
  return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def _way_back(checkpoints: Checkpoints) -> str:
  """What to do after a divergence."""
  checkpoints.wait()
  if checkpoints.last is None:
    return "there is no checkpoint before that: lower --learning_rate"
  return (
    f"the last good checkpoint is {checkpoints.last}: lower --learning_rate, with another "
    "--workdir"
  )


def _results(plan: Plan, mesh: Mesh, states: list[dict[str, Any]]) -> dict[str, Any]:
  return {
    "dataset": plan.config.dataset,
    "method": plan.config.method,
    "method_title": plan.method.title,
    "num_states": plan.config.num_states,
    "num_classes": len(plan.dataset.class_names),
    "memory_size": plan.config.memory_size,
    "seed": plan.config.seed,
    "ignored_files": plan.dataset.ignored_files,
    "skipped_records": plan.dataset.skipped_records,
    "environment": devices.describe(mesh),
    "states": states,
    "average": metrics.average(states),
  }


def _one_line(result: dict[str, Any], num_states: int) -> str:
  errors = ""
  if result["imbalance"] is not None:
    errors = (
      f"e(p,n) {result['error_old_as_new']:.1%}  e(n,p) {result['error_new_as_old']:.1%}  "
    )
  return (
    f"state {result['state']}/{num_states} done  {result['num_seen']} classes  "
    f"top-1 {result['top1']:.1%}  {errors}{result['train_seconds']:.0f} s"
  )
