"""Small real runs, what they left, and what they did on the devices."""

import dataclasses
import json
from typing import Any, NamedTuple

import numpy as np
import pytest
from folders import config_of
from rich.console import Console

from ssil_jax import resnet
from ssil_jax.training import loop, numerics, session

# What the programs on the devices do not depend on.
_FREE = {
  "workdir": "",
  "from_workdir": "",
  "log_every": 1,
  "checkpoint_minutes": 0.0,
  "memory_size": 1000,
  "learning_rate": 0.1,
  "reset_momentum": True,
  "selection": "ring",
}
_MADE = {}
make_session = session.make_session


SETTINGS = {
  "dataset": "digits",
  "num_classes": 6,
  "num_states": 3,
  "memory_size": 18,
  "batch_size_new": 32,
  "batch_size_memory": 8,
  "epochs_first": 1,
  "epochs": 1,
  "width": 4,
  # So small that a rounding error, where it flips a ReLU, does not grow into another run.
  "learning_rate": 1e-5,
  "log_every": 1,
}


def small_config(workdir, **changes):
  return config_of(**SETTINGS | {"workdir": str(workdir)} | changes)


def run(workdir, **changes):
  return loop.run(small_config(workdir, **changes), Console(quiet=True))


def records(workdir):
  """All that are whole."""
  return [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().split("\n")[:-1]]


def untimed_records(workdir):
  """Without what depends on the machine's speed."""
  return [row | {"images_per_second": 0, "input_wait": 0} for row in records(workdir)]


def untimed(results):
  """Without what depends on the time, and on where and how the run was trained."""
  depends = dict.fromkeys(
    (
      *("train_seconds", "seconds", "programs"),
      *("peak_host_memory", "peak_device_memory", "from_workdir"),
    )
  )
  states = [row | depends for row in results["states"]]
  environment = results["environment"] | {"started": None, "command": None}
  return results | {"states": states, "environment": environment, "seconds": None}


def last_checkpoint(workdir):
  """The folder of the newest one."""
  return max((workdir / "checkpoints").iterdir(), key=lambda path: int(path.name))


class Call(NamedTuple):
  """What a run did on the devices, or that it asked whether to stop."""

  kind: str  # ask, train, eval or extract
  records: Any = None  # of the batch, in the order of positions, whatever the devices
  split: str = ""


class WatchedDevices:
  """Devices that note what is called."""

  def __init__(self, devices, calls, bad_step):
    self._devices = devices
    self._calls = calls
    self._bad_step = bad_step

  def __getattr__(self, name):
    return getattr(self._devices, name)

  def _note(self, kind, batch, split=""):
    positions, numbers = (np.asarray(x).ravel() for x in (batch.positions, batch.records))
    order = np.argsort(positions, kind="stable")
    self._calls.append(Call(kind, numbers[order][np.sort(positions) >= 0], split))

  def train_step(self, train_state, batch, context, learning_rate, *, later):
    self._note("train", batch)
    step = int(np.asarray(train_state.step)[0]) + 1
    after, metrics = self._devices.train_step(
      train_state, batch, context, learning_rate, later=later
    )
    if step == self._bad_step:
      nan = np.full(metrics["loss"].shape, np.nan, np.float32)
      metrics = {**metrics, "loss": self._devices.shard(nan)}
    return after, metrics

  def eval_step(self, train_state, batch, context):
    self._note("eval", batch)
    return self._devices.eval_step(train_state, batch, context)

  def extract_step(self, train_state, batch, context, output_fn, split):
    self._note("extract", batch, split)
    return self._devices.extract_step(train_state, batch, context, output_fn, split)


def watched_run(config, *, ask=lambda: None, bad_step=None, console=None):
  """`loop.run` that tells what it did; its programs are shared by all such runs.

  Args:
    config: of the run.
    ask: called where it asks whether to stop.
    bad_step: the step, if any, whose loss becomes NaN.
    console: of the run.

  Returns:
    The contents of results.json, or what ended the run, and its calls, one by one.
  """
  calls, console, is_open = [], console or Console(quiet=True), []

  def check_interrupt():
    if is_open:  # else the data are being opened
      calls.append(Call("ask"))
      ask()

  def shared(plan, mesh, check_interrupt):
    key = dataclasses.replace(config, **_FREE), resnet.BasicBlock
    if key not in _MADE:
      made = make_session(plan, mesh)
      _MADE[key] = made.devices, made.initial
    devices, initial = _MADE[key]
    return session.Session(
      plan=plan,
      devices=WatchedDevices(devices, calls, bad_step),
      initial=initial,
      check_interrupt=check_interrupt,
    )

  try:
    with (
      numerics.standard(config, warn=lambda line: None),
      pytest.MonkeyPatch.context() as patch,
    ):
      # Compiling, and drawing parameters, would take longer than all the rest.
      patch.setattr(session, "make_session", shared)
      with session.open_session(config, console, check_interrupt) as (opened, state):
        is_open.append(True)
        return opened.results(loop.train(opened, state)), calls
  except (Exception, KeyboardInterrupt) as error:
    return error, calls


def count(calls, kind):
  return sum(call.kind == kind for call in calls)
