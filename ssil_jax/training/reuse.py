"""States that another run has trained already, just as this one would.

IL2M trains as FT does and differs in its predictions; and the first state of most methods
is the same plain training, whatever the memory's size and the later states' settings. With
`--from_workdir`, such states are taken from a finished run.
"""

import itertools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ssil_jax import config as config_lib
from ssil_jax.config import Config
from ssil_jax.data import fingerprint
from ssil_jax.errors import ConfigError
from ssil_jax.methods import METHODS
from ssil_jax.paths import real_path
from ssil_jax.reports.results import load_journal, load_run
from ssil_jax.training import workdir
from ssil_jax.training.checkpoint import Networks
from ssil_jax.training.plan import Plan
from ssil_jax.training.step import TrainState


class Source(NamedTuple):
  """Another run's states, from the first on, that need no training."""

  folder: pathlib.Path | None
  num_states: int
  train_seconds: list[float]  # of each state
  journal: list[dict[str, Any]]  # the lines of its metrics.jsonl

  def train_state(self, state: int, *, like: TrainState) -> TrainState:
    """The network at the end of a state; host arrays."""
    with Networks(self.folder, own=False) as networks:
      return networks.load(state, like=like)

  def records(self, state: int) -> list[dict[str, Any]]:
    """The lines of its metrics.jsonl that belong to a state."""
    return [row for row in self.journal if row["state"] == state]


def open_source(
  plan: Plan,
  *,
  data_parts: Mapping[str, str | int],
  warn: Callable[[str], None] = lambda line: None,
) -> Source:
  """The states that `--from_workdir` has for this run; none without the flag.

  Args:
    plan: of this run.
    data_parts: of its data set, see `fingerprint.parts`.
    warn: called with a line if not all of the data can be compared.

  Raises:
    ConfigError: there is no finished state of a run on these data, or it was trained in
      another way; every difference is named.
    DataError, WorkdirError: one of its files is damaged.
  """
  flag = f"--from_workdir={plan.config.from_workdir}"
  if not plan.config.from_workdir:
    return Source(None, 0, [], [])
  folder = real_path(plan.config.from_workdir)
  if folder == config_lib.workdir_path(plan.config):
    raise ConfigError(f"{flag} is --workdir itself: leave the flag out")
  if not os.path.isfile(folder / "config.json"):
    raise ConfigError(
      f"{flag} is not the work directory of a run: give one, or leave it out"
    )
  saved = workdir.read_config(folder / "config.json")
  there = workdir.saved_data(saved)
  if there is None:
    raise ConfigError(
      f"{flag} is a run of an earlier version of this program: repeat it, or leave the "
      "flag out"
    )
  if different := fingerprint.differences(data_parts, there):
    raise ConfigError(
      f"{flag} was trained on other data: repeat it on these, or leave the flag out\n"
      + "\n".join(different)
    )
  if unknown := fingerprint.uncompared(data_parts, there):
    warn(f"warning: not compared with the run in {folder}: {', '.join(unknown)}")
  num_states, different = shared_states(plan.config, saved)
  if not num_states:
    raise ConfigError(
      f"{flag} was not trained as this run would be, not even in its first state; leave "
      "the flag out, or give the same settings:\n" + "\n".join(different)
    )
  rows = load_run(folder).results["states"]
  there: list[int] = []
  if (folder / "networks").is_dir():  # not of a run by an earlier version
    with Networks(folder, own=False) as networks:
      there = networks.states()
  consecutive = itertools.takewhile(lambda t: t in there, range(1, num_states + 1))
  num_states = min(len(list(consecutive)), len(rows))
  if not num_states:
    raise ConfigError(
      f"{flag} has no network of its first state: continue that run, or repeat it if it is "
      "of an earlier version"
    )
  seconds = [row["train_seconds"] for row in rows]
  return Source(folder, num_states, seconds, load_journal(folder))


def shared_states(config: Config, saved: Mapping[str, Any]) -> tuple[int, list[str]]:
  """How many states, from the first on, this run and another one train alike.

  Args:
    config: of this run.
    saved: contents of the other's config.json.

  Returns:
    T, 1 or 0, and if 0, what is different, a line each.
  """
  saved = {**config_lib.DEFAULTS, **saved}
  if saved["method"] not in list(METHODS):  # which may be of any type
    return 0, [f"--method: {saved['method']!r} there"]
  if not config.reset_momentum:  # which a network without its optimizer cannot give
    return 0, ["--noreset_momentum: no momentum can be taken; leave --reset_momentum on"]
  names = (config.method, saved["method"])
  ours, theirs = (METHODS[name].trains_as or name for name in names)
  if ours == theirs and not config_lib.differences(config, saved, aspect="training"):
    return config.num_states, []
  different = config_lib.differences(config, saved, aspect="first_state")
  if ours != theirs and not all(METHODS[name].plain_first_state for name in names):
    different.append(f"--method: {saved['method']!r} there, {config.method!r} now")
  now = config_lib.to_json(config)
  if not (saved["initial_classes"] == config.initial_classes != 0):
    different += [
      f"--{name}: {saved[name]!r} there, {now[name]!r} now"
      for name in ("num_states", "initial_classes")
      if saved[name] != now[name]
    ]
  return (0, different) if different else (1, [])
