"""One process of several; test_processes.py starts it, and reads what it prints."""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import numpy as np
from quick import quick_network
from rich.console import Console

import ssil_jax
from ssil_jax.config import make_config
from ssil_jax.distributed import collectives, launch, preemption
from ssil_jax.errors import ConfigError, DataError, UserError
from ssil_jax.methods import get_method
from ssil_jax.training import devices
from ssil_jax.training.step import AXIS


def together(config):
  mesh = devices.choose_devices(config)
  held = devices.Devices(mesh, model=None)
  own = held.local
  print("own", list(own), "of", mesh.size, "main" if collectives.is_main() else "")
  total = jax.pmap(
    lambda x, scale: {"sum": jax.lax.psum(scale * x, AXIS), "own": x},
    axis_name=AXIS,
    devices=list(mesh.devices),
  )
  parts = np.arange(mesh.size * 3.0, dtype=np.float32).reshape(mesh.size, 3)
  mine = held.shard(parts[own.start : own.stop])
  found = total(mine, held.replicate(np.float32(2)))
  np.testing.assert_array_equal(devices.fetch(found["sum"]), 2 * parts.sum(axis=0))
  gathered = held.gather({"x": found["own"]})["x"]
  assert isinstance(gathered, np.ndarray)
  np.testing.assert_array_equal(gathered, parts)
  collectives.barrier()
  own = {"rank": np.int32(jax.process_index()), "rows": np.arange(3) + jax.process_index()}
  agreed = collectives.broadcast_from_main(own)
  print("agree", agreed["rank"], agreed["rows"], agreed["rows"].dtype)
  collectives.check_same({"--seed": "1", "data": "a"})
  try:
    collectives.check_same({"--seed": "1", "data": f"a{jax.process_index() // 2}"})
  except ConfigError as error:
    print(error)


def run_on(config):
  """Steps until a signal comes."""
  mesh = devices.choose_devices(config)
  step = jax.pmap(
    lambda x: jax.lax.pmean(x, AXIS), axis_name=AXIS, devices=list(mesh.devices)
  )
  value, number = devices.Devices(mesh, model=None).replicate(np.float32(1)), 0
  with preemption.interrupts() as check, contextlib.suppress(preemption.Interrupted):
    while True:
      check()
      value, number = step(value), number + 1
      jax.block_until_ready(value)
      if number == 1:
        print("running", flush=True)
      yield number
  print("stopped at step", number)


def fail_in_one(config):
  for number in run_on(config):
    if number == 50 and not collectives.is_main():
      raise DataError("cannot read image 7.jpg")


def fail_in_all(config):
  for _ in run_on(config):
    time.sleep(jax.process_index())  # the others find it later
    raise DataError("cannot read image 7.jpg")


def run_twice(config):
  """Does two runs from Python, in folders of this one."""
  with quick_network():
    for name in ("first", "second"):
      sizes = {"num_classes": 4, "num_states": 2, "width": 1}
      epochs = {"epochs_first": 1, "epochs": 1}
      small = dataclasses.replace(config, workdir=name, **sizes, **epochs)
      results = ssil_jax.run(small, console=Console(quiet=True))
      print(name, "has states:", len(results["states"]))


def join(config):
  """Without asking for devices, which a machine that poses as a TPU has not."""
  print("joined", jax.distributed.is_initialized())


parser = argparse.ArgumentParser()
parser.add_argument("what")
for name in ("num_processes", "process_id", "num_devices"):
  parser.add_argument(f"--{name}", type=int)
parser.add_argument("--coordinator_address")
parser.add_argument("--start_seconds", type=float, default=launch.START_SECONDS)
values = vars(parser.parse_args())
what, start_seconds = globals()[values.pop("what")], values.pop("start_seconds")
method = get_method("ssil")
try:
  config = make_config(values, method)
  devices.prepare_cpu_devices(config)
  with launch.connected(config, start_seconds=start_seconds):
    for _ in what(config) or ():
      pass
except UserError as error:
  print(error, flush=True)
  os._exit(error.exit_code)  # as experiments/command_line.py does
