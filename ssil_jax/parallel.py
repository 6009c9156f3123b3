"""Devices: the only file that maps a step over them, or moves arrays to and from them.

Everything on the devices has a leading axis over those of this process: one copy a device
of parameters, images and scalars, one share a device of a batch. `jax.pmap` with that one
layout works with donation in one process and in many, which hold no more than their own
devices' part each. What all processes must do together, in the same order, says so.
"""

import atexit
import collections
import contextlib
import functools
import math
import os
import re
import signal
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax._src import cloud_tpu_init  # the one place that tells; no public name has it
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ssil_jax import step as step_lib
from ssil_jax.config import Config
from ssil_jax.errors import ConfigError, UserError
from ssil_jax.host import usable_cores
from ssil_jax.methods.base import Measure
from ssil_jax.peers import Meeting, Peers, meet

_THREADS_PER_DEVICE = 2
_STEPS_AHEAD = 8
_MOST_AUTOMATIC = 8  # virtual CPU devices: each holds a copy of the images
_HEARTBEAT_SECONDS = 60  # without any, jax takes a process for dead, and aborts the others
_LOSS_SECONDS = 5  # between a failed collective and the news of why it failed


class Launch(NamedTuple):
  """How this process belongs to a run of several."""

  meeting: Meeting
  local_devices: list[int]  # accelerators of its machine that it uses; empty for all


def find_launch(config: Config) -> Launch | None:
  """What --coordinator_address or SLURM says; None for a process of its own."""
  if config.coordinator_address:
    meeting = Meeting(config.coordinator_address, config.num_processes, config.process_id)
    return Launch(meeting, [])
  # Also set, but 1, in the shell of an allocation, whose other tasks do not exist yet.
  if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
    return _slurm_launch(os.environ)
  return None


def _slurm_launch(env: Mapping[str, str]) -> Launch:
  """Of a task of `srun`: as many processes as tasks, a machine's GPUs dealt out to them."""
  # node07 of "node[07-12,15],other3"
  start, number, end = re.match(
    r"([^,\[]*)(?:\[([^,\-\]]+)[^\]]*\]([^,\[]*))?", env["SLURM_STEP_NODELIST"]
  ).groups(default="")
  # Steps of one job may run beside each other.
  port = 61440 + (int(env["SLURM_JOB_ID"]) + 997 * int(env["SLURM_STEP_ID"])) % 4096
  meeting = Meeting(
    f"{start}{number}{end}:{port}",
    int(env["SLURM_STEP_NUM_TASKS"]),
    int(env["SLURM_PROCID"]),
  )
  # "4(x2),3": of the machines of the step
  tasks = max(map(int, re.findall(r"(?:^|,)(\d+)", env["SLURM_STEP_TASKS_PER_NODE"])))
  place = int(env["SLURM_LOCALID"])
  if tasks == 1:
    return Launch(meeting, [])
  if "CUDA_VISIBLE_DEVICES" not in env:
    return Launch(meeting, [place])
  share = len(env["CUDA_VISIBLE_DEVICES"].split(",")) // tasks
  # With none for each, SLURM has bound its own to every task.
  return Launch(meeting, list(range(place * share, (place + 1) * share)))


@contextlib.contextmanager
def connected(config: Config) -> Iterator[None]:
  """Joins the other processes of the run, if there are any, until all have left the block.

  Call it before anything else touches jax. Where the block fails in one of several
  processes, the program ends with the error's exit code without waiting for the others.

  Raises:
    ConfigError: the processes do not find each other, or were started differently.
    LostProcessError: another one ended within the block.
  """
  launch = find_launch(config)
  peers = None
  try:
    if launch is None:
      _connect_tpu_pod()
    else:
      peers, address = meet(launch.meeting)
      jax.distributed.initialize(
        address,
        launch.meeting.num_processes,
        launch.meeting.process_id,
        local_device_ids=launch.local_devices,
        cluster_detection_method="deactivate",
        heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
      )
    with _losses_named(peers):
      yield
    if peers:
      peers.part()
  except BaseException as error:
    if jax.distributed.is_initialized():
      # Before jax's farewell, which was registered earlier and waits for the others.
      atexit.register(_end, getattr(error, "exit_code", 1))
    if peers:
      peers.leave(str(error) or type(error).__name__)
    raise


def _end(exit_code: int) -> None:
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(exit_code)


@contextlib.contextmanager
def _losses_named(peers: Peers | None) -> Iterator[None]:
  """Raises LostProcessError for what follows from the end of another process."""
  try:
    yield
  except Exception as error:
    known = isinstance(error, UserError)
    lost = peers and peers.wait_for_loss(0 if known else _LOSS_SECONDS)
    # A mistake of all processes is better told by each than by the first that found it.
    if lost and (lost.died or not known):
      raise lost from error
    raise


def _connect_tpu_pod() -> None:
  """On a Cloud TPU VM, joins the other hosts of its slice."""
  platforms = jax.config.jax_platforms or "tpu"
  if not cloud_tpu_init.running_in_cloud_tpu_vm or "tpu" not in platforms:
    return
  try:
    jax.distributed.initialize(heartbeat_timeout_seconds=_HEARTBEAT_SECONDS)
  except ValueError:
    pass  # a TPU, but none that tells of its hosts: there is one
  except RuntimeError as error:
    raise ConfigError(f"the hosts of this TPU do not find each other: {error}") from error


def prepare_cpu_devices(config: Config) -> None:
  """Splits a CPU into virtual devices; call it before anything else touches jax.

  XLA runs parts of a training step on one thread per device, so several devices use a CPU
  better than one (benchmarks/README.md). Without --num_devices it is one a core, up to
  eight, or fewer if the batch sizes are not multiples of that; one in each of several
  processes, which may share a machine. Accelerators are not affected.
  """
  if find_launch(config):
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
  where = " in each process" if several() else ""
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


def own_devices(mesh: Mesh) -> range:
  """Which of the mesh's devices are this process's."""
  size = mesh.local_mesh.size
  start = jax.process_index() * size
  return range(start, start + size)


def several() -> bool:
  """Whether the run has several processes."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def is_main() -> bool:
  """Whether this is the process that writes the results."""
  return not several() or jax.process_index() == 0


def agree(flag: bool) -> bool:
  """What it is in process 0; all processes call it together."""
  return bool(multihost_utils.broadcast_one_to_all(np.int32(flag)))


def of_main(tree: Any) -> Any:
  """Process 0's arrays, on the host, in all processes; all call it together."""
  if not several():
    return tree
  there = multihost_utils.broadcast_one_to_all(tree)  # without 64 bits
  return jax.tree.map(lambda own, x: np.asarray(x).astype(own.dtype), tree, there)


def check_same(values: Mapping[str, str]) -> None:
  """Compares, entry by entry, what must be the same in all; all call it together.

  Args:
    values: what it is ("flags") -> anything short that tells, such as a hash.

  Raises:
    ConfigError: in all processes, a line for each entry that differs in some.
  """
  if not several():
    return
  own = [zlib.crc32(f"{name}={value}".encode()) for name, value in values.items()]
  sums = multihost_utils.process_allgather(np.array(own, np.uint32))
  mistakes = []
  for name, column in zip(values, sums.T, strict=True):
    others = np.flatnonzero(column != column[0])
    if len(others):
      mistakes.append(
        f"process {others[0]} has other {name} than process 0: start all with the same "
        "flags, and on the same data"
      )
  if mistakes:
    raise ConfigError("\n".join(mistakes))


def barrier() -> None:
  """Waits until all processes are here."""
  if several():
    multihost_utils.sync_global_devices("ssil_jax")


def stops_together() -> bool:
  """Whether jax takes SIGTERM, for `stop_reached`, and must not be deprived of it."""
  return jax.distributed.is_initialized()


def ask_to_stop() -> None:
  """Has `stop_reached` become true soon, in all processes."""
  os.kill(os.getpid(), signal.SIGTERM)


def stop_reached(step: int) -> bool:
  """Whether all processes stop before this step, since SIGTERM came to one of them.

  Args:
    step: steps done in the whole run; every process asks before every step.
  """
  return multihost_utils.reached_preemption_sync_point(step)


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
  if not several():
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
