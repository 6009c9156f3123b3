"""States that another run has trained already, just as this one would.

IL2M trains as FT does and differs in its predictions; and the first state of most methods
is the same plain training, whatever the memory's size and the later states' settings. With
`--from_workdir`, such states are taken from a finished run.
"""

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ssil_jax import config as config_lib
from ssil_jax.config import Config
from ssil_jax.errors import ConfigError
from ssil_jax.methods import METHODS, Method, get_method
from ssil_jax.methods.base import one_phase
from ssil_jax.methods.source import source_hash
from ssil_jax.paths import real_path
from ssil_jax.reports.results import load_journal, load_run
from ssil_jax.sampling import SHUFFLED, Key, Pool
from ssil_jax.schedule import IncrementalState
from ssil_jax.settings import check_types, fields_of
from ssil_jax.training import workdir
from ssil_jax.training.plan import Plan
from ssil_jax.training.run_state import TrainState
from ssil_jax.training.storage import Networks


class Lender(NamedTuple):
  """Another run's states, from the first on, that need no training; none by default."""

  folder: pathlib.Path | None = None
  num_states: int = 0
  train_seconds: tuple[float, ...] = ()  # of each state
  journal: tuple[dict[str, Any], ...] = ()  # the lines of its metrics.jsonl

  def has(self, state: IncrementalState) -> bool:
    """Returns whether a state is taken from there."""
    return state.index <= self.num_states

  def train_state(self, state: IncrementalState, *, like: TrainState) -> TrainState:
    """Returns the network at the end of a state; host arrays."""
    with Networks(self.folder, own=False) as networks:
      return networks.load(state.index, like=like)

  def records(self, state: IncrementalState) -> list[dict[str, Any]]:
    """Returns the lines of its metrics.jsonl that belong to a state."""
    return [row for row in self.journal if row["state"] == state.index]


def open_lender(
  plan: Plan, origin: workdir.Origin, *, warn: Callable[[str], None] = lambda line: None
) -> Lender:
  """Finds the states that `--from_workdir` has for this run; none without the flag.

  Args:
    plan: of this run.
    origin: of this run.
    warn: called with a line if not all can be compared.

  Raises:
    ConfigError: there is no finished state of a run on these data, or it was trained in
      another way; every difference is named.
    DataError, WorkdirError: one of its files is damaged.
  """
  flag = f"--from_workdir={plan.config.from_workdir}"
  if not plan.config.from_workdir:
    return Lender()
  folder = real_path(plan.config.from_workdir)
  if folder == config_lib.workdir_path(plan.config):
    raise ConfigError(f"{flag} is --workdir itself: leave the flag out")
  if not os.path.isfile(folder / "config.json"):
    raise ConfigError(
      f"{flag} is not the work directory of a run: give one, or leave it out"
    )
  saved = workdir.read_config(folder / "config.json")
  there = workdir.saved_origin(saved)
  if there is None:
    raise ConfigError(
      f"{flag} is a run of an earlier version of this program: repeat it, or leave the "
      "flag out"
    )
  different, unknown = origin.compare(there)
  if different:
    raise ConfigError(
      f"{flag} was trained on other data: repeat it on these, or leave the flag out\n"
      + "\n".join(different)
    )
  workdir.warn_uncompared(folder, unknown, warn)
  num_states, different = shared_states(plan.config, saved)
  if not num_states:
    raise ConfigError(
      f"{flag} was not trained as this run would be, not even in its first state; leave "
      "the flag out, or give the same settings:\n" + "\n".join(different)
    )
  rows = load_run(folder).results["states"]
  consecutive = itertools.takewhile(
    lambda t: (folder / "networks" / str(t)).is_dir(), range(1, num_states + 1)
  )
  num_states = min(len(list(consecutive)), len(rows))
  if not num_states:
    raise ConfigError(
      f"{flag} has no network of its first state: continue that run, or repeat it if it is "
      "of an earlier version"
    )
  seconds = tuple(row["train_seconds"] for row in rows)
  return Lender(folder, num_states, seconds, tuple(load_journal(folder)))


def shared_states(config: Config, saved: Mapping[str, Any]) -> tuple[int, list[str]]:
  """Returns how many states, from the first on, this run and another one train alike.

  Args:
    config: of this run.
    saved: contents of the other's config.json.

  Returns:
    T, 1 or 0, and if 0, what is different, a line each.
  """
  saved = {**config_lib.DEFAULTS, **saved}
  # No other method is loaded: a config.json from elsewhere must not have code imported.
  if saved["method"] not in [*METHODS, config.method]:  # it may be of any type
    return 0, [f"--method: {saved['method']!r} there"]
  if saved.get("method_source") not in (None, source_hash(saved["method"])):
    return 0, [f"source of --method={saved['method']}: changed since"]
  if not config.reset_momentum:  # which a network without its optimizer cannot give
    return 0, ["--noreset_momentum: no momentum can be taken; leave --reset_momentum on"]
  names = config.method, saved["method"]
  ours, theirs = map(get_method, names)
  if ours.carries:
    return 0, [f"--method: what steps of {names[0]!r} carry along is not kept there"]
  trained, trained_there = (
    (method.trains_as or name, method.training)
    for name, method in zip(names, (ours, theirs), strict=True)
  )
  later = config_lib.differences(config, saved, changes="later_states")
  if trained == trained_there and not later:
    return config.num_states, []
  different = config_lib.differences(config, saved, changes="every_state")
  if names[0] != names[1] and not (
    _has_plain_first_state(ours, config)
    and _has_plain_first_state(theirs, _with_settings_of(theirs, config, saved))
  ):
    different.append(f"--method: {names[1]!r} there, {names[0]!r} now")
  if not (saved["initial_classes"] == config.initial_classes != 0):
    dealt = ("--num_states:", "--initial_classes:")
    different += [line for line in later if line.startswith(dealt)]
  return (0, different) if different else (1, [])


def _with_settings_of(method: Method, config: Config, saved: Mapping[str, Any]) -> Config:
  """Returns a config whose own settings are those of another run with that method."""
  fields = fields_of(method.settings)
  values = {field.name: saved[field.name] for field in fields if field.name in saved}
  own = method.settings(**check_types(values, fields))
  return dataclasses.replace(config, method_settings=own)


def _has_plain_first_state(method: Method, config: Config) -> bool:
  """Returns whether a method's first state is one phase of plain softmax training."""
  if not method.steps_like_softmax_first:
    return False
  phases = method.phases(config, 1)
  sampling = phases[0].sampling
  # Where nothing is old, many ways to draw batches are the same.
  new = np.arange(8)
  pool = Pool(
    new=new,
    memory=new[:0],
    new_ranks=new,
    new_labels=np.zeros_like(new),
    unlabeled=new + len(new),
  )
  key = Key(seed=0, state=1, phase=0)
  batch, plain = (way.batch(pool, key, 1, 3, 1) for way in (sampling, SHUFFLED))
  return phases == one_phase(config, 1, sampling) and np.array_equal(batch, plain)
