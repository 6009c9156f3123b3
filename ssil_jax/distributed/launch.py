"""How the processes of a run find each other: flags, SLURM, or a TPU pod."""

import atexit
import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
from jax._src import cloud_tpu_init  # the one place that tells; no public name has it

from ssil_jax.config import Config
from ssil_jax.distributed.peers import Meeting, Peers, meet
from ssil_jax.errors import ConfigError, UserError

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
