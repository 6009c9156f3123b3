"""Teaches a trained model new classes: its next incremental state.

The state trains on new photos and on the exemplars that the model keeps, by the same steps
as every other one. While it lasts, what is half done lies in `WORKDIR/learning`; the model
that answers stays as it is until the new one is whole.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import shutil
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from ssil_jax import config as config_lib
from ssil_jax import memory
from ssil_jax.config import Config
from ssil_jax.data import fingerprint
from ssil_jax.data.dataset import Dataset, Source, Split
from ssil_jax.data.encoded import EncodedImages
from ssil_jax.data.opening import open_source, with_test
from ssil_jax.data.photos import Photos, join, open_photos
from ssil_jax.data.sources.folder import open_image_folder
from ssil_jax.data.verify import read_each
from ssil_jax.errors import ConfigError, DataError, WorkdirError
from ssil_jax.memory import Memory
from ssil_jax.methods import get_method
from ssil_jax.methods.base import into_corner, normalized_features
from ssil_jax.methods.source import source_hash
from ssil_jax.model.trained import TrainedModel, load, method_of, normalization_of
from ssil_jax.paths import real_path
from ssil_jax.reports.results import Run, load_run
from ssil_jax.reports.tables import schedule_table
from ssil_jax.schedule import IncrementalState
from ssil_jax.system import write_json
from ssil_jax.training import compilation, devices, loop, model_files, numerics, workdir
from ssil_jax.training.evaluate import evaluate, extractor
from ssil_jax.training.plan import Plan, check_shares, plan_next, schedule_rows
from ssil_jax.training.run_state import RunState
from ssil_jax.training.session import Session, bytes_needed, make_session, printer

# What belongs to a run of several states, or to the network as it is.
_FIXED = (
  *("dataset", "method", "classes", "class_order", "num_classes", "num_states"),
  *("initial_classes", "class_order_seed", "epochs_first", "milestones_first"),
  *("width", "image_size", "init_from", "from_workdir", "resume", "workdir", "data_dir"),
  *("coordinator_address", "num_processes", "process_id"),
  *("validation_fraction", "tuned_on"),
)
_REQUEST = "request.json"


class Learnt(NamedTuple):
  """Holds what a model has learnt, and what it cost."""

  workdir: pathlib.Path
  state: int
  new_classes: tuple[str, ...]
  result: dict[str, Any]  # its row of results.json, with "learnt"
  was_known: bool  # whether an earlier call had learnt it


def learn(
  folder: str | os.PathLike,
  data_dir: str | os.PathLike,
  *,
  more_of_known: bool = False,
  method: str | None = None,
  console: Console,
  check_interrupt: Callable[[], None] = lambda: None,
  settings: Mapping[str, Any],
) -> Learnt:
  """Teaches the model in a work directory the classes of a folder of photos.

  Called again after it was interrupted, it goes on; after it was done, it says so.

  Args:
    folder: the work directory; its model must have all the states of its run.
    data_dir: DIR/CLASS/*, or DIR/train/CLASS/* and DIR/test/CLASS/*.
    more_of_known: whether photos of known classes, which are refused otherwise, are added
      to those that the exemplars of their class are chosen from.
    method: as in `load`.
    console: where progress is shown.
    check_interrupt: called often; if it raises Interrupted, what is done is saved.
    settings: those in which this state differs from the one before; kept in the model.

  Raises:
    UserError: bad input, named, before any training; or DivergedError. The model is what
      it was.
    Interrupted: `check_interrupt` did.
  """
  workdir_path, say = real_path(os.fspath(folder)), printer(console)
  card = model_files.read_card(workdir_path)
  if len(card["states"]) < card["planned_states"]:
    raise WorkdirError(
      f"{workdir_path} is trained to state {len(card['states'])} of "
      f"{card['planned_states']}: rerun its command until it is complete, then let it learn"
    )
  with contextlib.ExitStack() as stack:
    stack.enter_context(workdir.locked_by_run(workdir_path, say))
    card = model_files.read_card(workdir_path)  # nobody changes it from here on
    job = _Job(workdir_path, card, data_dir, more_of_known, method, settings)
    shutil.rmtree(job.finished, ignore_errors=True)
    job.known_run = load_run(workdir_path)  # before any time is spent
    new = open_image_folder(job.config)
    if (done := job.find_done(new)) is not None:
      return done
    job.check_classes(new.class_names)
    dataset, photos = job.open_data(new, check_interrupt)
    for note in dataset.notes:
      say(note)
    exemplars = Memory(np.arange(len(photos.labels)), photos.labels, photos.ranks)
    plan = job.plan(dataset, exemplars, say)
    if plan.method.restarts and plan.config.init_from:
      raise ConfigError(
        f"{workdir_path}: every state of --method={plan.config.method} starts from "
        f"--init_from={plan.config.init_from}, which a model does not keep: train it anew "
        "with the new classes, by run.py"
      )
    with (
      workdir.writing(plan.config),
      numerics.standard(plan.config, warn=say),
      compilation.kept("", warn=say),  # that of the training may be of another machine
    ):
      return _train(job, plan, exemplars, new, console, check_interrupt, stack)


class _Job:
  """One call of `learn`: what is asked for, and of which model."""

  def __init__(
    self,
    folder: pathlib.Path,
    card: dict[str, Any],
    data_dir: str | os.PathLike,
    more_of_known: bool,
    method: str | None,
    settings: Mapping[str, Any],
  ):
    """Raises ConfigError for settings that no state may change, or of wrong values."""
    self.folder, self.card, self.method = folder, card, method
    self.more_of_known = more_of_known
    self.learning, self.finished = folder / "learning", folder / "learning.finished"
    self.known = tuple(card["class_names"])
    self.known_run: Run | None = None  # what the work directory holds of its states
    self.data_dir = real_path(os.fspath(data_dir))
    self.settings = dict(settings)
    fixed = [f"--{name}" for name in settings if name in _FIXED]
    if fixed:
      raise ConfigError(
        f"{', '.join(fixed)}: learning one more state cannot change that: leave it out"
      )
    base = dict(card["states"][-1]["settings"])
    # So that milestones follow other epochs, as they do where nothing is given.
    if "epochs" in settings:
      base.pop("milestones", None)
    name = method_of(card, folder, len(card["states"]), method)
    self.config = config_lib.make_config(
      {
        **base,
        "image_size": card["preprocessing"]["image_size"],
        "num_states": len(card["states"]) + 1,
        **settings,
        "method": name,
        "workdir": str(folder),
        "data_dir": str(self.data_dir),
      },
      get_method(name),
    )
    # Without what changes nothing but the course of the command.
    lasting = model_files.settings_of(self.config)
    self.changed = {name: settings[name] for name in settings if name in lasting}

  def find_done(self, new: Source) -> Learnt | None:
    """Returns what is known already if the last state is of files of these names and sizes.

    Raises WorkdirError if another folder, or with other settings, is being learnt.
    """
    last, request = self.card["states"][-1], self.request(new)
    if last.get("request") == request["request"]:
      shutil.rmtree(self.learning, ignore_errors=True)
      row = self.known_run.results["states"][-1]
      return Learnt(self.folder, last["state"], tuple(last["classes"]), row, was_known=True)
    path = self.learning / _REQUEST
    if not path.exists():
      return None
    try:
      found = json.loads(path.read_bytes())
      asked, there = found["asked"], found["request"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
      raise WorkdirError(
        f"{path} cannot be read ({error}): delete {self.learning}, and learning begins anew"
      ) from error
    if there == last.get("request"):  # learnt, and killed before this was removed
      shutil.rmtree(self.learning)
      return None
    if there != request["request"]:
      raise WorkdirError(
        f"{self.folder} is learning state {len(self.card['states']) + 1} already: {asked}; "
        f"rerun that command with the same photos, or delete {self.learning} to give it up"
      )
    return None

  def request(self, new: Source) -> dict[str, Any]:
    """Returns what tells this call from others, and how to make it again."""
    digest = hashlib.blake2b(digest_size=16)
    for split in (new.train, new.test):
      if split is not None:
        digest.update(split.images.store.digest())
        digest.update(split.images.store.sizes(split.images.numbers).tobytes())
    same = {
      "files": digest.hexdigest(),
      "class_names": new.class_names,
      "settings": self.changed,
      "more_of_known": self.more_of_known,
    }
    text = json.dumps(same, sort_keys=True)
    flags = [f"--{name}={value}" for name, value in self.changed.items()]
    flags += ["--more_of_known"] if self.more_of_known else []
    return {
      "request": hashlib.blake2b(text.encode(), digest_size=16).hexdigest(),
      "asked": " ".join([f"--data_dir={self.data_dir}", *flags]),
    }

  def check_classes(self, names: Sequence[str]) -> None:
    """Raises ConfigError for classes that are known, and if none is new."""
    spelled = {unicodedata.normalize("NFC", name): name for name in self.known}
    for name in names:
      other = spelled.setdefault(unicodedata.normalize("NFC", name), name)
      if other != name:
        raise ConfigError(
          f"{self.data_dir}: class {ascii(name)} is {ascii(other)}, spelled with other "
          "characters that look the same: give its folder that name"
        )
    twice = [name for name in names if name in self.known]
    if twice and not self.more_of_known:
      row = next(row for row in self.card["states"] if twice[0] in row["classes"])
      raise ConfigError(
        f"{self.data_dir}: class {twice[0]} ({len(twice)} in all) is known since state "
        f"{row['state']}: take its folder out, or give --more_of_known to add its photos "
        "to those that its exemplars are chosen from"
      )
    if len(twice) == len(names):
      raise ConfigError(
        f"{self.data_dir} has no new class, only {', '.join(twice)[:200]}: a state needs "
        "one at least"
      )

  def open_data(
    self, new: Source, check_interrupt: Callable[[], None]
  ) -> tuple[Dataset, Photos]:
    """Returns exemplars and new photos as one data set, and the exemplars.

    Record i of the training images is exemplar i; new photos follow.

    Raises ConfigError and DataError.
    """
    new = with_test(new, self.config, check_interrupt)
    places = [
      model_files.state_folder(self.folder, row["state"]) for row in self.card["states"]
    ]
    exemplars = open_photos(places[-1] / model_files.EXEMPLARS)
    tests = [open_photos(place / model_files.TEST) for place in places]
    last = self.card["states"][-1]
    _check_labels(exemplars, 0, last["num_seen"], last.get("exemplars"))
    for photos, row in zip(tests, self.card["states"], strict=True):
      _check_labels(photos, row["num_old"], row["num_seen"])
    tests, notes = _readable(tests)
    new, more_notes = self._without_kept(new, [exemplars, *tests])
    names = [*self.known, *(name for name in new.class_names if name not in self.known)]
    label_of = {name: label for label, name in enumerate(names)}
    labels = np.array([label_of[name] for name in new.class_names], np.int32)

    def joined(parts: Sequence[Photos], split: Split) -> Split:
      images = join(*(part.images for part in parts), split.images)
      return Split(
        images, np.concatenate([*(part.labels for part in parts), labels[split.labels]])
      )

    source = Source(
      class_names=tuple(names),
      train=joined([exemplars], new.train),
      test=joined(tests, new.test),
      image_size=None,  # that of the model is in the settings
      flip=self.card["preprocessing"]["flip"],
      normalization=normalization_of(self.card["preprocessing"]),
      ignored_files=new.ignored_files,
      notes=(*new.notes, *notes, *more_notes),
    )
    dataset = open_source(source, self.config, check_interrupt)
    train, count = dataset.train, len(exemplars.labels)
    numbers = (train.files or train.images).numbers[:count]
    if not np.array_equal(numbers, np.arange(count)):
      raise DataError(
        f"{places[-1] / model_files.EXEMPLARS}: exemplars are among the images that cannot "
        "be read: put a good file back, or install what reads them"
      )
    return dataset, exemplars

  def _without_kept(
    self, new: Source, kept: Sequence[Photos]
  ) -> tuple[Source, tuple[str, ...]]:
    """Leaves out photos of known classes that the model keeps already, and says how many.

    Else one photo would be several exemplars, or test photos would be trained on.
    """
    known = [label for label, name in enumerate(new.class_names) if name in self.known]
    if not known:
      return new, ()
    stored = {
      _digest(photos.images, record)
      for photos in kept
      for record in range(len(photos.labels))
    }
    left, dropped = {}, 0
    for name in ("train", "test"):
      split = getattr(new, name)
      again = [
        record
        for record in np.flatnonzero(np.isin(split.labels, known)).tolist()
        if _digest(split.images, record) in stored
      ]
      left[name] = split.take(np.delete(np.arange(len(split.labels)), again))
      dropped += len(again)
    if not dropped:
      return new, ()
    note = f"{dropped} photos of known classes are left out: the model keeps them already"
    return new._replace(**left), (note,)

  def plan(self, dataset: Dataset, exemplars: Memory, say: Callable[[str], None]) -> Plan:
    """Plans the state, with smaller batches if its photos are fewer than one.

    Raises ConfigError if settings and data do not go together.
    """
    done = model_files.class_intervals(self.card["states"])
    more = _more_of_known(dataset, exemplars, done[-1].num_seen)
    if len(more):
      # With any selection, there are as many of each class.
      exemplars = _with_more(
        exemplars,
        more,
        dataset.train.labels,
        lambda candidates, count: np.arange(len(candidates)),
        memory_size=self.config.memory_size,
        num_seen=done[-1].num_seen,
      )
    plan = plan_next(
      self.config,
      dataset,
      done,
      exemplars,
      may_shrink="batch_size_new" not in self.settings,
    )
    if plan.config != self.config:
      changed = [
        f"{name} {getattr(self.config, name)} -> {getattr(plan.config, name)}"
        for name in ("batch_size_new", "batch_size_memory")
      ]
      say(f"the new photos are fewer than a batch: {', '.join(changed)} for this state")
    return plan


def _train(
  job: _Job,
  plan: Plan,
  exemplars: Memory,
  new: Source,
  console: Console,
  check_interrupt: Callable[[], None],
  stack: contextlib.ExitStack,
) -> Learnt:
  """Trains and commits the state, from where an earlier call left it."""
  say, config = printer(console), plan.config
  state, before_it = plan.states[-1], plan.states[-2]
  with contextlib.suppress(RuntimeError):  # jax has its devices already
    devices.prepare_cpu_devices(config)
  model = load(job.folder, method=job.method, warn=say)
  mesh = devices.choose_devices(_on_fitting_devices(config))
  check_shares(plan, mesh.size)
  session = make_session(plan, mesh, check_interrupt)
  stack.enter_context(session.stopwatch.watching_compiler())
  session.tuned_on = job.known_run.results.get("tuned_on")
  was_in = job.known_run.results["environment"]
  session.beginning = {name: was_in.get(name) for name in ("started", "command")}
  request = job.request(new)
  new_classes = plan.dataset.class_names[state.num_old :]
  session.trained_by = {
    "trained_by": "learn",
    "request": request["request"],
    "data_dir": str(job.data_dir),
    "changed": job.changed,
    # The next state goes on with those that were asked for.
    "settings": model_files.settings_of(job.config),
    "batch_sizes": [config.batch_size_new, config.batch_size_memory],
  }
  beginning = _grown(session, model, exemplars, job.known_run.results["states"])
  workdir.check_space(
    job.folder,
    bytes_needed(plan, beginning, checkpoints=0, networks=len(plan.states) - 1),
    "make room, or lower --checkpoints_kept",
  )
  if not (job.learning / _REQUEST).exists():
    # Of a state that was given up, or of another run in the same folder.
    shutil.rmtree(model_files.state_folder(job.folder, state.index), ignore_errors=True)
    shutil.rmtree(job.learning, ignore_errors=True)
    job.learning.mkdir()
    progress = {
      "state": state.index,
      "classes": new_classes,
      "first_step": model.num_steps,
      "num_steps": sum(phase.num_steps for phase in state.phases),
    }
    write_json(job.learning / _REQUEST, {**request, **progress})
  rows = schedule_rows(plan)
  console.print(
    schedule_table(
      rows,
      title=f"{plan.method.title}: state {state.index} of {job.folder.name}",
      drop=config.learning_rate_drop,
      settings={"selection": config.selection} | dataclasses.asdict(config.method_settings),
    )
  )
  origin = workdir.Origin(
    config_lib.to_json(config), source_hash(config.method), fingerprint.parts(plan.dataset)
  )
  run = session.open_files(
    stack, job.folder, job.learning, beginning, identity=origin.identity(config), warn=say
  )
  if run.position:
    say(f"state {state.index} is resumed after step {int(run.train_state.step)}")
  if len(run.results) < state.index:
    with session.recording(run, console, warn=say), session.saving_on_interruption():
      with session.stopwatch.of("evaluation"):
        before = _scores_before(session, before_it, beginning)
      with session.stopwatch.of("state_changes"):
        run = loop.train_state(session, state, run)
        run = loop.finish_state(session, state, run)
      run.results[-1]["learnt"] = _comparison(before, run.results[-1], new_classes)
      # Later ones are of what was given up at this point.
      earlier = [row for row in job.known_run.schedule if row["state"] < state.index]
      write_json(job.folder / "schedule.json", [*earlier, *rows])
      run = session.commit(run)
  session.write_results(run)
  session.save_model(run)
  session.checkpoints.close()
  os.rename(job.learning, job.finished)
  shutil.rmtree(job.finished, ignore_errors=True)
  return Learnt(job.folder, state.index, new_classes, run.results[-1], was_known=False)


def _on_fitting_devices(config: Config) -> Config:
  """Returns a config with as many devices as can share its batches equally."""
  if config.num_devices:
    return config
  shared = math.gcd(config.batch_size_new, config.batch_size_memory)
  count = max(n for n in range(1, jax.local_device_count() + 1) if shared % n == 0)
  return dataclasses.replace(config, num_devices=count)


def _grown(
  session: Session, model: TrainedModel, exemplars: Memory, rows: list[dict[str, Any]]
) -> RunState:
  """Returns the model as a run that has the new state before it.

  The head's new columns start as those of a network that had them from the beginning.
  """
  plan = session.plan
  num_known = plan.states[-1].num_old
  if model.num_columns != num_known:
    raise WorkdirError(
      f"{model.workdir}: the network has {model.num_columns} classes and the card "
      f"{num_known}: put good files back"
    )
  fresh = session.start(num_exemplars=len(exemplars.records))
  initial = {name: getattr(fresh.train_state, name) for name in model.variables}
  grown = jax.tree.map(into_corner, model.variables, initial)
  train_state = fresh.train_state.replace(step=np.int32(model.num_steps), **grown)
  run = fresh._replace(
    train_state=train_state, exemplars=exemplars, results=list(rows[: len(plan.states) - 1])
  )
  num_stored = len(exemplars.records)
  more = _more_of_known(plan.dataset, exemplars, num_known)
  if len(more):
    # The method's statistics before they are grown serve to read features.
    run = run._replace(exemplars=_chosen_anew(session, run, more))
  records = run.exemplars.records
  kept = np.where(records < num_stored, records, -1)
  stats = plan.method.grow_stats(model.stats, fresh.stats, kept)
  return run._replace(stats=stats)


def _chosen_anew(session: Session, run: RunState, more: np.ndarray) -> Memory:
  """Returns the exemplars, chosen anew where there are more photos of their class."""
  plan, labels = session.plan, session.plan.dataset.train.labels
  state, config = plan.states[-2], plan.config
  extract = extractor(session, state, run.train_state, run.stats)

  def priority_of(candidates: np.ndarray, count: int) -> np.ndarray:
    return memory.SELECTIONS[config.selection](
      labels[candidates],
      memory.random_order(len(candidates), seed=config.seed, state=plan.states[-1].index),
      lambda: extract(candidates, normalized_features),
      count=count,
    )

  return _with_more(
    run.exemplars,
    more,
    labels,
    priority_of,
    memory_size=config.memory_size,
    num_seen=state.num_seen,
  )


def _more_of_known(dataset: Dataset, exemplars: Memory, num_known: int) -> np.ndarray:
  """Returns the records of further photos of known classes, int64 [n]."""
  labels = dataset.train.labels
  records = np.arange(len(exemplars.records), len(labels))
  return records[labels[records] < num_known]


def _with_more(
  exemplars: Memory,
  more: np.ndarray,
  labels: np.ndarray,
  priority_of: Callable[[np.ndarray, int], np.ndarray],
  **sizes: int,
) -> Memory:
  """Returns the exemplars with those of some classes chosen among further records, too.

  Args:
    exemplars: the memory.
    more: int64 [n], the records.
    labels: of all records.
    priority_of: (records, exemplars of each class) -> priority for `memory.update`.
    **sizes: as of `memory.update`.
  """
  again = np.isin(exemplars.labels, labels[more])
  candidates = np.concatenate([exemplars.records[again], more])
  others = Memory(*(field[~again] for field in exemplars))
  priority = priority_of(candidates, memory.quota(**sizes))
  return memory.update(others, candidates, labels[candidates], priority, **sizes)


def _check_labels(photos: Photos, low: int, high: int, count: int | None = None) -> None:
  """Raises DataError unless all are of the classes `[low, high)`, and so many."""
  labels = photos.labels
  if ((labels < low) | (labels >= high)).any() or count not in (None, len(labels)):
    raise DataError(
      f"{photos.images.store.path} has other photos than the model's card says: put the "
      "right one back, or repeat the run"
    )


def _readable(tests: Sequence[Photos]) -> tuple[list[Photos], tuple[str, ...]]:
  """Leaves out test photos that can no longer be read, and says which and how many."""
  readable, bad = [], []
  for photos in tests:
    found = read_each(
      np.arange(len(photos.labels)),
      lambda record, images=photos.images: images.open(record).read(),
      lambda count: None,
    )
    bad += [f"{photos.images.name(record)}: {why}" for record, why in found.items()]
    left = np.delete(np.arange(len(photos.labels)), list(found))
    readable.append(
      Photos(photos.images.take(left), photos.labels[left], photos.ranks[left])
    )
  if not bad:
    return readable, ()
  line = f"warning: {len(bad)} kept test photos cannot be read, such as {bad[0]}"
  return readable, (f"{line}: they are left out",)


def _digest(images: EncodedImages, record: int) -> bytes:
  content = images.store.read(int(images.numbers[record]))
  return hashlib.blake2b(content, digest_size=16).digest()


def _scores_before(
  session: Session, state: IncrementalState, run: RunState
) -> dict[str, Any] | None:
  """Returns the scores of the model on the test photos of the classes that it knows."""
  if not (session.plan.dataset.test.labels < state.num_seen).any():
    return None
  return evaluate(session, state, run.train_state, run.stats)


def _comparison(
  before: dict[str, Any] | None, after: dict[str, Any], new_classes: Sequence[str]
) -> dict[str, Any]:
  """Returns what the new classes cost the old ones; fractions."""
  *by_state, of_new = after["top1_by_state"]
  *counts, _ = map(sum, after["confusion"])
  right = sum(part * n for part, n in zip(by_state, counts, strict=True) if n)
  return {
    "new_classes": list(new_classes),
    "top1_new": of_new,
    "top1_old": right / sum(counts) if sum(counts) else None,
    "top1_old_before": before and before["top1"],
    "top1_by_state_before": before and before["top1_by_state"],
  }
