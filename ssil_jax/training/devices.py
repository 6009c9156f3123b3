"""Devices: the only file that maps a step over them, or moves arrays to and from them.

Everything on the devices has a leading axis over those of this process: one copy a device
of parameters, images and scalars, one share a device of a batch. `jax.pmap` with that one
layout works with donation in one process and in many, which hold no more than their own
devices' part each. What all processes must do together, in the same order, says so.
"""

import collections
import functools
import math
import os
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ssil_jax.config import Config
from ssil_jax.distributed import collectives, launch
from ssil_jax.errors import ConfigError
from ssil_jax.methods.base import Measure
from ssil_jax.system import usable_cores
from ssil_jax.training import step as step_lib

_THREADS_PER_DEVICE = 2
_STEPS_AHEAD = 8
_MOST_AUTOMATIC = 8  # virtual CPU devices: each holds a copy of the images


def prepare_cpu_devices(config: Config) -> None:
  """Splits a CPU into virtual devices; call it before anything else touches jax.

  XLA runs parts of a training step on one thread per device, so several devices use a CPU
  better than one (benchmarks/README.md). Without --num_devices it is one a core, up to
  eight, or fewer if the batch sizes are not multiples of that; one in each of several
  processes, which may share a machine. Accelerators are not affected.
  """
  if launch.find_launch(config) is not None:
    split_cpu(config.num_devices or 1)
    return
  shared = math.gcd(config.batch_size_new, config.batch_size_memory)
  automatic = max(
    n for n in range(1, min(usable_cores(), _MOST_AUTOMATIC) + 1) if shared % n == 0
  )
  split_cpu(config.num_devices or automatic)


def split_cpu(num_devices: int) -> None:
  """Makes virtual CPU devices of the host's cores, and threads enough for them.

  A device that waits for the others in an all-reduce holds a thread of XLA's pool. With as
  many threads as cores, as is the default, the device waited for may find none left for
  its own work, and the run hangs (benchmarks/README.md).
  """
  threads = max(usable_cores(), _THREADS_PER_DEVICE * num_devices)
  os.environ.setdefault("PJRT_NPROC", str(threads))
  jax.config.update("jax_num_cpu_devices", num_devices)


def choose_devices(config: Config) -> Mesh:
  """The devices to train on, as a mesh of one axis, process by process.

  Raises:
    ConfigError: there are fewer devices than asked for, or not as many in each process.
  """
  of_process = collections.defaultdict(list)
  for device in sorted(jax.devices(), key=lambda device: device.id):
    of_process[device.process_index].append(device)
  counts = {len(devices) for devices in of_process.values()}
  fewest, platform = min(counts), jax.devices()[0].platform
  where = " in each process" if collectives.is_multiprocess() else ""
  if len(counts) > 1:
    raise ConfigError(
      f"some processes have {fewest} {platform} devices, others {max(counts)}: start each "
      "so that it sees as many (CUDA_VISIBLE_DEVICES)"
    )
  if config.num_devices > fewest:
    raise ConfigError(
      f"--num_devices={config.num_devices}, but there are only {fewest} {platform} "
      f"devices{where}"
    )
  chosen = [
    device
    for _, devices in sorted(of_process.items())
    for device in devices[: config.num_devices or fewest]
  ]
  return Mesh(np.asarray(chosen), (step_lib.AXIS,))


def local_devices(mesh: Mesh) -> range:
  """Which of the mesh's devices are this process's."""
  size = mesh.local_mesh.size
  start = jax.process_index() * size
  return range(start, start + size)


def replicate(tree: Any, mesh: Mesh) -> Any:
  """A copy of every host array for each own device: leaves become [own devices, ...]."""
  size = mesh.local_mesh.size
  return shard(jax.tree.map(lambda x: np.broadcast_to(x, (size, *np.shape(x))), tree), mesh)


def shard(tree: Any, mesh: Mesh) -> Any:
  """Puts host arrays [own devices, ...] on the devices, without waiting for it."""
  sharding = NamedSharding(mesh.local_mesh, PartitionSpec(step_lib.AXIS))
  return jax.device_put(tree, sharding)


def fetch(tree: Any) -> Any:
  """Host copies of arrays that are the same on every device; waits for them."""
  # Indexing a mapped array would gather it from all devices first.
  one_device = jax.tree.map(lambda x: x.addressable_shards[0].data, tree)
  # With the dots, a number stays an array, which orbax insists on.
  return jax.tree.map(lambda x: x[0, ...], jax.device_get(one_device))


def initial_train_state(model: step_lib.Model, image_size: int) -> step_lib.TrainState:
  """`step.create_train_state` as host arrays."""
  options = None
  if jax.default_backend() == "cpu":
    # The program runs once, and optimizing its random numbers takes ten seconds.
    options = {
      "xla_backend_optimization_level": 0,
      "xla_llvm_disable_expensive_passes": True,
    }
  create = jax.jit(
    functools.partial(step_lib.create_train_state, model, image_size),
    compiler_options=options,
  )
  return jax.device_get(create())


class Backpressure:
  """Keeps the host a few steps ahead of the devices, and no more.

  Steps are sent without waiting for their results, and each holds its batch until it has
  run; a fast host could fill a device's memory with batches. Waiting for a step that lies
  `_STEPS_AHEAD` back never leaves the devices without work.
  """

  def __init__(self):
    self._sent = collections.deque()

  def add(self, output: Any) -> None:
    """Takes an output of the step just sent."""
    self._sent.append(output)
    if len(self._sent) > _STEPS_AHEAD:
      jax.block_until_ready(self._sent.popleft())


def map_train_step(model: step_lib.Model, mesh: Mesh) -> Callable:
  """`step.train_step` over all devices; the old state's buffers are donated."""
  return jax.pmap(
    functools.partial(step_lib.train_step, model=model),
    axis_name=step_lib.AXIS,
    devices=list(mesh.devices),
    donate_argnums=0,
  )


def map_eval_step(model: step_lib.Model, mesh: Mesh) -> Callable:
  """`step.eval_step` over all devices."""
  return jax.pmap(
    functools.partial(step_lib.eval_step, model=model),
    axis_name=step_lib.AXIS,
    devices=list(mesh.devices),
  )


def map_survey_step(model: step_lib.Model, mesh: Mesh, measure: Measure) -> Callable:
  """`step.survey_step` over all devices."""
  return jax.pmap(
    functools.partial(step_lib.survey_step, model=model, measure=measure),
    axis_name=step_lib.AXIS,
    devices=list(mesh.devices),
  )


def gather(tree: Any, mesh: Mesh) -> Any:
  """Host copies [all devices, ...] of arrays of which each device has its own part.

  All processes call it together, and get the same.
  """
  if not collectives.is_multiprocess():
    return jax.device_get(tree)
  sharding = NamedSharding(mesh, PartitionSpec(step_lib.AXIS))

  def whole(own):
    parts = [shard.data for shard in own.addressable_shards]
    shape = (mesh.size, *own.shape[1:])
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)

  return multihost_utils.process_allgather(jax.tree.map(whole, tree), tiled=True)


# What jax, XLA and drivers are told by the environment, which may change the rounding; but
# not of where they run, what they keep, and what they say.
_TOLD = re.compile(
  r"(JAX|XLA|FLAX|LIBTPU|NVIDIA_TF32)_(?!PLATFORM|COMPILATION_CACHE|"
  r"PERSISTENT_CACHE|LOG|DEBUG|NUM_|TRACEBACK|COORDINATOR|PROCESS_ID|PYTHON_CLIENT)"
)


def describe(mesh: Mesh) -> dict[str, Any]:
  """The hardware and versions of a run, for results.json."""
  first = mesh.devices[0]
  told = {name: value for name, value in sorted(os.environ.items()) if _TOLD.match(name)}
  return {
    "device": first.device_kind,
    "platform": first.platform,
    "num_devices": mesh.size,
    "num_processes": jax.process_count(),
    "jax": jax.__version__,
    **told,
  }
