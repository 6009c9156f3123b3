"""Opens what a run needs: its plan, devices, files and console."""

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from ssil_jax import config as config_lib
from ssil_jax import memory, metrics
from ssil_jax.config import Config
from ssil_jax.data import fingerprint
from ssil_jax.data.dataset import LARGEST_RESIDENT
from ssil_jax.data.encoded import BadImage
from ssil_jax.distributed import collectives
from ssil_jax.distributed.preemption import Interrupted
from ssil_jax.errors import DataError, DivergedError
from ssil_jax.methods.base import Sizes
from ssil_jax.methods.source import source_hash
from ssil_jax.paths import real_path
from ssil_jax.progress import ProgressDisplay
from ssil_jax.reports.tables import schedule_table
from ssil_jax.reports.times import total
from ssil_jax.reports.tuning import load_tuning
from ssil_jax.resnet import ResNet18
from ssil_jax.schedule import state_of_class
from ssil_jax.system import write_json
from ssil_jax.training import model_files, pretrained, step, workdir, writers
from ssil_jax.training.checkpoint import Checkpoints
from ssil_jax.training.devices import Devices, choose_devices, initial_train_state
from ssil_jax.training.dispatches import steps_together
from ssil_jax.training.plan import Plan, check_shares, make_plan, schedule_rows
from ssil_jax.training.profiling import Profile
from ssil_jax.training.recorder import Recorder
from ssil_jax.training.reuse import Lender, open_lender
from ssil_jax.training.run_state import RunState, TrainState, with_own
from ssil_jax.training.stopwatch import Stopwatch
from ssil_jax.training.storage import Networks

_ASKED_EVERY = 50  # calls
# Of an environment, what numbers do not depend on, and what earlier versions did not note.
_NOT_OF_ROUNDING = ("started", "command", "commit", "python")
_NOTED_LATER = ("jaxlib", "flax", "optax", "cpu")


@dataclasses.dataclass(kw_only=True)
class Session:
  """Holds what a run has open.

  A session without files (`folder` is None) trains and evaluates in memory.
  """

  plan: Plan
  devices: Devices
  initial: TrainState  # host arrays
  # Raises Interrupted if the run is to stop, after the same call in all processes.
  check_interrupt: Callable[[], None] = lambda: None
  lender: Lender = Lender()
  folder: pathlib.Path | None = None
  checkpoints: Checkpoints | None = None
  networks: Networks | None = None
  recorder: Recorder | None = None
  # What the model's files say of how its states are trained, beside settings and data.
  trained_by: Mapping[str, Any] = dataclasses.field(
    default_factory=lambda: {"trained_by": "run"}
  )
  # For results.json: what its settings were chosen on; when and how it was first started.
  tuned_on: Mapping[str, Any] | None = None
  beginning: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  display: ProgressDisplay | None = None
  profile: Profile = dataclasses.field(default_factory=Profile)
  stopwatch: Stopwatch = dataclasses.field(default_factory=Stopwatch)
  # The run at the last moment from which it can be resumed, if that is not saved.
  _unsaved: Callable[[], RunState] | None = None
  _saved_at: float = dataclasses.field(default_factory=time.monotonic)
  _calls: int = 0

  def start(self, *, num_exemplars: int = 0) -> RunState:
    """Returns a run that has done nothing yet, with room for so many exemplars at least."""
    sizes = Sizes(
      num_classes=len(self.plan.dataset.class_names),
      num_features=self.initial.params["head"]["kernel"].shape[0],
      num_records=len(self.plan.dataset.train.labels),
      memory_size=max(self.plan.config.memory_size, num_exemplars),
      params=self.initial.params,
      image_size=self.plan.dataset.image_size,
      config=self.plan.config,
    )
    method, config = self.plan.method, self.plan.config
    stats = method.init_stats(sizes)
    train_state = with_own(self.initial, method, stats, config)
    return RunState(train_state, memory.empty(), stats, [])

  def open_files(
    self,
    stack: contextlib.ExitStack,
    folder: pathlib.Path,
    checkpoints_in: pathlib.Path,
    beginning: RunState,
    *,
    identity: Mapping[str, Any],
    warn: Callable[[str], None],
  ) -> RunState:
    """Opens the files that hold a run, until `stack` is closed.

    Args:
      stack: what closes them.
      folder: the work directory.
      checkpoints_in: the folder of `checkpoints` and damaged ones.
      beginning: the run of which nothing is saved yet.
      identity: of the run, without which a checkpoint means nothing.
      warn: called with a line for each damaged one.

    Returns:
      The run as it was saved last.
    """
    self.folder = folder
    self.checkpoints = stack.enter_context(
      Checkpoints(
        checkpoints_in,
        kept=self.plan.config.checkpoints_kept,
        origin=identity,
        warn=warn,
      )
    )
    self.networks = stack.enter_context(Networks(folder))
    run = self.checkpoints.latest(default=beginning)
    if run.position and run.position.spent:
      self.stopwatch.add(run.position.spent)
    return run

  @contextlib.contextmanager
  def recording(
    self,
    run: RunState,
    console: Console,
    *,
    warn: Callable[[str], None],
    openers: Sequence[writers.Opener] = (writers.TensorBoard,),
  ) -> Iterator[None]:
    """Records and shows the training that `run` lacks, and tells what to do if it diverges.

    `warn` is called with a line if records are missing; `openers` open who is told of them.
    """
    steps_done = int(run.train_state.step)
    recorded = steps_done - (len(run.position.window) if run.position else 0)
    images_left = _images_left(self, run)
    with (
      Recorder(
        self.folder,
        steps_done=steps_done,
        steps_recorded=recorded,
        warn=warn,
        openers=openers,
      ) as self.recorder,
      ProgressDisplay(
        console, num_states=len(self.plan.states), num_images=images_left
      ) as self.display,
    ):
      try:
        yield
      except DivergedError as error:
        self.checkpoints.wait()
        last = self.checkpoints.last
        raise DivergedError(
          f"{error}; there is no checkpoint before that: lower --learning_rate"
          if last is None
          else f"{error}; the last good checkpoint is {last}: lower --learning_rate, with "
          "another --workdir"
        ) from error

  @contextlib.contextmanager
  def saving_on_interruption(self) -> Iterator[None]:
    """Saves the run where it can be resumed from, if it is interrupted."""
    try:
      yield
    except Interrupted:
      if self._unsaved is not None and self.checkpoints is not None:
        self._save(self._unsaved())
      raise

  def maybe_save(self, run: Callable[[], RunState]) -> None:
    """Saves `run()` in the background if it is time to, and makes it what is resumed from.

    All processes call it together.

    Raises:
      Interrupted: the run is to stop.
    """
    self._unsaved = run
    self.check_interrupt()
    self._calls += 1
    if self._is_time():
      self._save(run(), wait=False)

  def _is_time(self) -> bool:
    seconds = 60 * self.plan.config.checkpoint_minutes
    if not seconds or self.checkpoints is None:
      return False
    late = time.monotonic() - self._saved_at >= seconds
    if not collectives.is_multiprocess():
      return late
    # Process 0 tells the time, now and then: the others wait for its answer.
    ask = self._calls % _ASKED_EVERY == 0
    return ask and bool(collectives.broadcast_from_main(np.int32(late)))

  def _save(self, run: RunState, *, wait: bool = True) -> None:
    with self.stopwatch.of("checkpoints"):
      self.recorder.sync()
      self.checkpoints.save(run, spent=self.stopwatch.so_far())
      if wait:
        self.checkpoints.wait()
    self._saved_at = time.monotonic()

  def commit(self, run: RunState) -> RunState:
    """Saves and shows a run that has just finished a state; returns what was saved."""
    # Each process has worked them out by itself, perhaps on another kind of machine.
    shared = collectives.broadcast_from_main((run.train_state, run.exemplars, run.stats))
    run = RunState(*shared, run.results)
    if self.folder is None:
      return run
    with self.stopwatch.of("checkpoints"):
      self._write(run)
    return run

  def _write(self, run: RunState) -> None:
    """Writes all that a finished state leaves, the checkpoint first."""
    # Orbax's barriers for both have the same names: several processes would mix them up.
    self.checkpoints.wait()
    self.networks.save(run.train_state, state=len(run.results))
    self._save(run)
    self._unsaved = None
    self.write_results(run)
    self.save_model(run)
    result = run.results[-1]
    self.recorder.add_scores(
      result, step=int(run.train_state.step), scored=self.plan.config.scored
    )
    self.display.print(_one_line(result, len(self.plan.states)))

  def results(self, run: RunState) -> dict[str, Any]:
    """Returns the contents of results.json."""
    config, dataset = self.plan.config, self.plan.dataset
    return {
      "dataset": config.dataset,
      "method": config.method,
      "method_title": self.plan.method.title,
      "num_states": config.num_states,
      "num_classes": len(dataset.class_names),
      "memory_size": config.memory_size,
      "seed": config.seed,
      "ignored_files": dataset.ignored_files,
      "skipped_records": dataset.skipped_records,
      "class_names": list(dataset.class_names),
      "split": config.scored,
      "validation_fraction": config.validation_fraction,
      "tuned_on": self.tuned_on,
      "environment": {**self.devices.describe(), **self.beginning},
      "seconds": total(run.results),
      "states": run.results,
      "average": metrics.average(run.results),
    }

  def save_model(self, run: RunState) -> None:
    """Makes the last finished state the model that answers, unless it is already."""
    if not run.results or not collectives.is_main():
      return
    if model_files.is_saved(self.folder, run):
      model_files.tidy(self.folder, len(run.results))
      return
    if run.position:  # its network is on the way to the next state's
      last = len(run.results)
      with Networks(self.folder, own=False) as networks:
        if last not in networks.states():
          return
        saved = networks.read(last)
      run = run._replace(train_state=run.train_state.replace(**saved), position=None)
    try:
      model_files.save(
        self.folder,
        self.plan,
        run,
        environment=self.devices.describe(),
        origin=self.trained_by,
      )
    except BadImage as error:
      raise DataError(
        f"{error}: it belongs to the model from now on; put it back, and rerun the command "
        "to resume"
      ) from error

  def write_summary(self, run: RunState, figures: Mapping[str, bytes]) -> None:
    """Records a finished run: its settings, scores and figures (name -> PNG file)."""
    self.recorder.add_summary(
      config_lib.to_json(self.plan.config),
      self.results(run),
      figures,
      step=int(run.train_state.step),
    )

  def write_results(self, run: RunState) -> None:
    if collectives.is_main():
      write_json(self.folder / "results.json", self.results(run))


def make_session(
  plan: Plan, mesh: Mesh, check_interrupt: Callable[[], None] = lambda: None
) -> Session:
  """Returns a session without files: the network, its steps, and images in place."""
  config, dataset = plan.config, plan.dataset
  model = step.Model(
    network=ResNet18(
      num_classes=len(dataset.class_names),
      **plan.method.network,
      width=config.width,
      small_images=dataset.image_size <= LARGEST_RESIDENT,
      dtype=jnp.dtype(config.precision),
      axis_name=step.AXIS,
    ),
    method=plan.method,
    optimizer=step.make_optimizer(
      momentum=config.momentum,
      weight_decay=config.weight_decay,
      nesterov=config.nesterov,
    ),
    augmentation=dataset.augmentation,
    normalization=dataset.normalization,
    config=config,
    state_of_class=tuple(state_of_class(plan.states).tolist()),
  )
  splits = {"train": dataset.train, "test": dataset.test}
  images = {name: split.images for name, split in splits.items() if split.on_device}
  if dataset.unlabeled is not None and dataset.unlabeled.on_device:
    images["train"] = np.concatenate([images["train"], dataset.unlabeled.images])
  return Session(
    plan=plan,
    devices=Devices(mesh, model, images, steps_at_once=_steps_at_once(plan)),
    initial=initial_train_state(model, image_size=dataset.image_size, seed=config.seed),
    check_interrupt=check_interrupt,
  )


def _steps_at_once(plan: Plan) -> int:
  """Returns how many training steps are sent to the devices together."""
  if plan.config.steps_per_dispatch:
    return plan.config.steps_per_dispatch
  # Steps on streamed images are long, and their batches are large.
  is_short = plan.dataset.train.on_device and jax.default_backend() != "cpu"
  return steps_together(phase for _, phase in plan.phases()) if is_short else 1


@contextlib.contextmanager
def open_session(
  config: Config, console: Console, check_interrupt: Callable[[], None]
) -> Iterator[tuple[Session, RunState]]:
  """Opens a run's data, devices and work directory; arguments as of `loop.run`.

  Yields:
    The session, and the run as it was saved last.

  Raises:
    UserError: bad input, named, before any training; or DivergedError, with what to do.
  """
  stopwatch = Stopwatch("opening")
  writers.check(config)
  warn = printer(console)
  tuned_on = load_tuning(config.tuned_on) if config.tuned_on else None
  # What processes do not do together must not count for their stopping together.
  alone = check_interrupt if not collectives.is_multiprocess() else lambda: None
  plan = make_plan(config, check_interrupt=alone)
  mesh = choose_devices(config)
  check_shares(plan, mesh.size)
  if weights := pretrained.read(plan):
    plan = weights.normalized(plan)
  parts = fingerprint.parts(plan.dataset) | (weights.parts() if weights else {})
  origin = workdir.Origin(config_lib.to_json(config), source_hash(config.method), parts)
  lender = open_lender(plan, origin, warn=warn)
  collectives.check_same(origin.comparable())
  with contextlib.ExitStack() as stack:
    stack.enter_context(stopwatch.watching_compiler())
    folder = stack.enter_context(workdir.claimed(config, origin, warn=warn))
    stack.enter_context(workdir.writing(config))
    if collectives.is_main():
      write_json(folder / "schedule.json", schedule_rows(plan))
    _show_plan(plan, console)
    session = make_session(plan, mesh, check_interrupt)
    session.stopwatch = stopwatch
    if weights:
      session.initial = weights.into(session.initial)
    beginning = session.start()
    needed = bytes_needed(
      plan,
      beginning,
      checkpoints=len(workdir.saved(folder, "checkpoints")),
      networks=len(workdir.saved(folder, "networks")),
    )
    workdir.check_space(folder, needed)
    run = session.open_files(
      stack, folder, folder, beginning, identity=origin.identity(config), warn=warn
    )
    if run.position:  # a state that was begun here is finished here
      lender = lender._replace(num_states=min(lender.num_states, len(run.results)))
    session.lender = lender
    session.tuned_on = tuned_on
    session.beginning = workdir.beginning(folder)
    collectives.check_same(
      {
        "checkpoints in --workdir (which all must share)": str(run.number),
        "states in --from_workdir": str(lender.num_states),
      }
    )
    _show_progress(session, run, console)
    # Else it may know more states than the good checkpoint.
    if not session.checkpoints.damaged:
      session.write_results(run)
      session.save_model(run)
    if config.profile:
      session.profile = stack.enter_context(Profile(real_path(config.profile), warn))
    openers = writers.openers(config)
    with session.recording(run, console, warn=warn, openers=openers):
      stopwatch.switch("other")
      yield session, run


def printer(console: Console) -> Callable[[str], None]:
  """Returns what prints a line as it is, whatever it holds."""
  return functools.partial(console.print, markup=False, emoji=False, soft_wrap=True)


def _show_plan(plan: Plan, console: Console) -> None:
  """Prints what is to be done, and on what."""
  dataset, config = plan.dataset, plan.config
  for note in dataset.notes:
    printer(console)(note)
  shared = ("momentum", "nesterov", "weight_decay", "selection")
  own = dataclasses.asdict(config.method_settings)
  console.print(
    schedule_table(
      schedule_rows(plan),
      title=f"{plan.method.title} on {config.dataset}",
      drop=config.learning_rate_drop,
      settings={name: getattr(config, name) for name in shared} | own,
    )
  )


def _show_progress(session: Session, run: RunState, console: Console) -> None:
  """Prints what is done already, and whether that was in another environment."""
  say, done, lender = printer(console), len(run.results), session.lender
  places = [session.folder] if run.number else []
  if done:
    say(f"states 1 to {done} are done already, in {session.folder}")
  if run.position:
    say(f"state {done + 1} is resumed after step {int(run.train_state.step)}")
  if lender.num_states > done:
    say(f"states {done + 1} to {lender.num_states} are taken from {lender.folder}")
    places.append(lender.folder)
  for place in places:
    there, now = workdir.saved_environment(place), session.devices.describe()
    different = [
      f"{name}: {there.get(name)} there, {now.get(name)} now"
      for name in (there | now if there else ())
      if there.get(name) != now.get(name)
      and name not in _NOT_OF_ROUNDING
      and (name in there or name not in _NOTED_LATER)
    ]
    if different:
      say(
        f"note: what {place} has was computed in another environment, and numbers may be "
        f"rounded differently ({'; '.join(different)})"
      )


def _images_left(session: Session, run: RunState) -> int:
  """Counts training images between `run` and the end, repetitions counted."""
  first = max(len(run.results), session.lender.num_states) + 1
  images = sum(p.num_images for s, p in session.plan.phases() if s.index >= first)
  if run.position:
    phases = session.plan.states[len(run.results)].phases
    images -= sum(p.num_images for p in phases[: run.position.phase])
    images -= run.position.steps_done * phases[run.position.phase].batch_size
  return images


def bytes_needed(
  plan: Plan, beginning: RunState, *, checkpoints: int, networks: int
) -> int:
  """Returns the room for what is still to be saved, where so many of both are there."""
  network = _size((beginning.train_state.params, beginning.train_state.batch_stats))
  has_expert = any(phase.new_expert for _, phase in plan.phases())
  teachers = network * (plan.method.has_teacher + has_expert)
  saved = _size((beginning.train_state, beginning.stats)) + teachers
  # An old checkpoint is deleted after a new one is whole.
  more = max(1, plan.config.checkpoints_kept + 1 - checkpoints)
  return more * saved + (len(plan.states) - networks) * network


def _size(tree: Any) -> int:
  """Returns the bytes of all arrays."""
  return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


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
