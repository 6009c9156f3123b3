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
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import flax
import jax
import jaxlib
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ssil_jax import metrics
from ssil_jax.config import Config
from ssil_jax.distributed import collectives, launch
from ssil_jax.errors import ConfigError
from ssil_jax.methods.base import ImageFn, OutputFn
from ssil_jax.system import cpu_name, source_commit, usable_cores
from ssil_jax.training import step as step_lib
from ssil_jax.training.run_state import TrainState

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
  """Chooses the devices to train on: a mesh of one axis, process by process.

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


def initial_train_state(model: step_lib.Model, *, image_size: int, seed: int) -> TrainState:
  """Returns `step.create_train_state` as host arrays; one program serves all seeds."""
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
  return jax.device_get(create(jax.device_put(np.uint32(seed))))


class Devices:
  """The devices of a run, with its compiled steps and its resident images.

  Attributes:
    size: number of devices of all processes.
    local: which of them, from 0, are this process's.
    steps_at_once: how many training steps a call of `train_step` does.
  """

  def __init__(
    self,
    mesh: Mesh,
    model: step_lib.Model,
    images: Mapping[str, np.ndarray] = MappingProxyType({}),
    *,
    steps_at_once: int = 1,
  ):
    """Moves the images there; compiles each step when it is first used.

    Args:
      mesh: of `choose_devices`.
      model: what the steps are made of.
      images: train, test -> uint8 [N, S, S, 3], those that are not streamed.
      steps_at_once: how many training steps a call of `train_step` does.
    """
    self._mesh = mesh
    self._model = model
    self._images = {split: self.replicate(array) for split, array in images.items()}
    self._train_steps: dict[bool, Callable] = {}
    self._eval_step = self._map(step_lib.eval_step)
    self._extract_steps: dict[OutputFn, Callable] = {}
    self._total_steps: dict[ImageFn, Callable] = {}
    self.size = mesh.size
    self.steps_at_once = steps_at_once
    start = jax.process_index() * mesh.local_mesh.size
    self.local = range(start, start + mesh.local_mesh.size)

  def _map(self, function: Callable, donate_argnums: Any = (), **kwargs: Any) -> Callable:
    return jax.pmap(
      functools.partial(function, model=self._model, **kwargs),
      axis_name=step_lib.AXIS,
      devices=list(self._mesh.devices),
      donate_argnums=donate_argnums,
    )

  def train_step(self, train_state, batch, context, learning_rate, *, later: bool):
    """Runs `step.train_step`, of a later state or the first; `train_state` is used up.

    With several steps at once it is `step.train_steps`, and batch, learning rate and
    metrics are those of all of them.

    Where they do not differ, one program serves both.
    """
    step = self.mapped_train_step(later=later)
    return step(train_state, batch, context, learning_rate, self._images.get("train"))

  def lower_train_step(self, train_state, batch, context, learning_rate, *, later: bool):
    """Returns `train_step` lowered for shapes, to be compiled without the devices."""
    step = self.mapped_train_step(later=later)
    return step.lower(train_state, batch, context, learning_rate, self._images.get("train"))

  def mapped_train_step(self, *, later: bool) -> Callable:
    """Returns what `train_step` runs, made once."""
    later = later and self._model.method.differs_later
    if later not in self._train_steps:
      one_or_many = step_lib.train_step if self.steps_at_once == 1 else step_lib.train_steps
      self._train_steps[later] = self._map(one_or_many, donate_argnums=0, later=later)
    return self._train_steps[later]

  def eval_step(
    self, train_state, batch, context
  ) -> tuple[metrics.Counts, metrics.Predictions]:
    """Runs `step.eval_step` on test images."""
    return self._eval_step(train_state, batch, context, self._images.get("test"))

  def extract_step(self, train_state, batch, context, output_fn: OutputFn, split: str):
    """Runs `step.extract_step` on images of a split; compiled once for each function."""
    if output_fn not in self._extract_steps:
      self._extract_steps[output_fn] = self._map(step_lib.extract_step, output_fn=output_fn)
    step = self._extract_steps[output_fn]
    return step(train_state, batch, context, self._images.get(split))

  def total_step(self, total, train_state, batch, context, image_fn: ImageFn):
    """Runs `step.total_step` on a training image; compiled once for each function.

    `total` is used up.
    """
    if image_fn not in self._total_steps:
      self._total_steps[image_fn] = self._map(
        step_lib.total_step, donate_argnums=0, image_fn=image_fn
      )
    step = self._total_steps[image_fn]
    return step(total, train_state, batch, context, self._images.get("train"))

  def replicate(self, tree: Any) -> Any:
    """Puts a copy of every host array on each local device: [local devices, ...]."""
    size = self._mesh.local_mesh.size
    copies = jax.tree.map(lambda x: np.broadcast_to(x, (size, *np.shape(x))), tree)
    return self.shard(copies)

  def shard(self, tree: Any) -> Any:
    """Puts host arrays [local devices, ...] on the devices, without waiting for it."""
    sharding = NamedSharding(self._mesh.local_mesh, PartitionSpec(step_lib.AXIS))
    return jax.device_put(tree, sharding)

  def batch_sender(self) -> Callable[[Any], Any]:
    """Returns what does as `shard` to one tree after another, each array of it once.

    An array that is in the tree twice, or was in the one before, is there already.
    """
    sharding = NamedSharding(self._mesh.local_mesh, PartitionSpec(step_lib.AXIS))
    before: dict[int, tuple[np.ndarray, jax.Array]] = {}  # by id of the array, kept alive

    def send(tree: Any) -> Any:
      nonlocal before
      leaves, structure = jax.tree.flatten(tree)
      arrays = {id(array): array for array in leaves}
      new = [name for name in arrays if name not in before]
      sent = jax.device_put([arrays[name] for name in new], sharding)
      there = {name: before[name] for name in arrays if name in before}
      before = there | {n: (arrays[n], x) for n, x in zip(new, sent, strict=True)}
      return structure.unflatten(before[id(array)][1] for array in leaves)

    return send

  def gather(self, tree: Any) -> Any:
    """Returns host copies [all devices, ...] of arrays that each device has a part of.

    All processes call it together, and get the same.
    """
    if not collectives.is_multiprocess():
      return jax.device_get(tree)
    sharding = NamedSharding(self._mesh, PartitionSpec(step_lib.AXIS))

    def whole(own):
      parts = [shard.data for shard in own.addressable_shards]
      shape = (self.size, *own.shape[1:])
      return jax.make_array_from_single_device_arrays(shape, sharding, parts)

    return multihost_utils.process_allgather(jax.tree.map(whole, tree), tiled=True)

  def peak_memory(self) -> int | None:
    """Returns the most bytes that any local device has held; None if it does not tell."""
    stats = [device.memory_stats() or {} for device in self._mesh.local_mesh.devices]
    return max(
      (s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s), default=None
    )

  def describe(self) -> dict[str, Any]:
    """Returns the hardware and versions of the process, for results.json."""
    first = self._mesh.devices[0]
    told = {name: value for name, value in sorted(os.environ.items()) if _TOLD.match(name)}
    return {
      "device": first.device_kind,
      "platform": first.platform,
      "num_devices": self.size,
      "num_processes": jax.process_count(),
      "jax": jax.__version__,
      "jaxlib": jaxlib.__version__,
      "flax": flax.__version__,
      "optax": optax.__version__,
      "python": platform.python_version(),
      "cpu": cpu_name(),
      "commit": source_commit(),
      **told,
    }


def fetch(tree: Any) -> Any:
  """Returns host copies of arrays that are the same on every device; waits for them."""
  # Indexing a mapped array would gather it from all devices first.
  one_device = jax.tree.map(lambda x: x.addressable_data(0), tree)
  # With the dots, a number stays an array, which orbax insists on.
  return jax.tree.map(lambda x: x[0, ...], jax.device_get(one_device))


def wait_for_earlier(outputs: Sequence[Any], *, steps_each: int = 1) -> None:
  """Keeps the host a few steps ahead of the devices, and no more.

  Steps are sent without waiting for their results, and each holds its batch until it has
  run; a fast host could fill a device's memory with batches. Waiting for a step that lies
  `_STEPS_AHEAD` back never leaves the devices without work.

  Args:
    outputs: of what was sent last, in its order; call it after each.
    steps_each: how many steps that is at a time.
  """
  ahead = max(1, _STEPS_AHEAD // steps_each)
  if len(outputs) > ahead:
    jax.block_until_ready(outputs[-1 - ahead])


# What jax, XLA and drivers are told by the environment, which may change the rounding; but
# not of where they run, what they keep, and what they say.
_TOLD = re.compile(
  r"(JAX|XLA|FLAX|LIBTPU|NVIDIA_TF32)_(?!PLATFORM|COMPILATION_CACHE|"
  r"PERSISTENT_CACHE|LOG|DEBUG|NUM_|TRACEBACK|COORDINATOR|PROCESS_ID|PYTHON_CLIENT)"
)
