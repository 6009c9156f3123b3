"""Joins the processes of a run, by `jax.distributed`, and ends them.

The flags, SLURM or a TPU pod say which processes there are. jax lets them meet, and aborts
all when process 0 is gone or when one has been silent for a minute. What is added here is a
message and an exit code wherever jax leaves the time to give one.
"""

import concurrent.futures
import contextlib
import math
import os
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any

import jax

from ssil_jax.config import Config
from ssil_jax.errors import ConfigError, LostProcessError

START_SECONDS = 300.0  # enough to start all processes by hand
_HEARTBEAT_SECONDS = 60  # jax aborts all when it has not heard of one for so long
_SHUTDOWN_SECONDS = 90  # or when one that ends has waited so long for the others
_FAREWELL_SECONDS = 5.0  # how long one with an error waits for others that have it too

# How jax's errors begin when another process is gone.
_LOSS = re.compile(r"UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|.*(Gloo|NCCL|nccl)")


def find_launch(config: Config) -> dict[str, Any] | None:
  """Returns what `jax.distributed.initialize` needs to know; None for a single process."""
  if config.coordinator_address:
    return {
      "coordinator_address": config.coordinator_address,
      "num_processes": config.num_processes,
      "process_id": config.process_id,
      "cluster_detection_method": "deactivate",
    }
  # Also set, but 1, where jax would wait for tasks that do not exist: `salloc` may give a
  # shell that is a step itself, with SLURM_NTASKS of the allocation.
  if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
    return {
      "num_processes": int(os.environ["SLURM_STEP_NUM_TASKS"]),
      "local_device_ids": _slurm_gpus(),
      "cluster_detection_method": "slurm",
    }
  # jax sets it on a Cloud TPU VM, unless JAX_PLATFORMS says otherwise.
  if "tpu" in (jax.config.jax_platforms or ""):
    return {}
  return None


def _slurm_gpus() -> list[int]:
  """Returns which of the visible GPUs are this SLURM task's; none for all."""
  # "4(x2),3": tasks of the machines of the step. All take as many GPUs.
  per_machine = re.findall(r"(?:^|,)(\d+)", os.environ["SLURM_STEP_TASKS_PER_NODE"])
  tasks, place = max(map(int, per_machine)), int(os.environ["SLURM_LOCALID"])
  if tasks == 1:
    return []
  if "CUDA_VISIBLE_DEVICES" not in os.environ:
    return [place]
  share = len(os.environ["CUDA_VISIBLE_DEVICES"].split(",")) // tasks
  # With less than one for each, SLURM has given every task its own.
  return list(range(place * share, (place + 1) * share))


@contextlib.contextmanager
def connected(config: Config, *, start_seconds: float = START_SECONDS) -> Iterator[None]:
  """Joins the other processes of the run, if there are any and that is not done yet.

  Call it before anything else touches jax. A program that ends with an error in one of
  several processes should do so by `os._exit`: jax would wait for the others at exit.

  Args:
    config: whose flags may name the processes.
    start_seconds: how long to wait for the others.

  Raises:
    ConfigError: the processes do not find each other.
    LostProcessError: another one ended within the block.
  """
  launch = find_launch(config)
  if launch is not None and not jax.distributed.is_initialized():
    _join(launch, start_seconds)
  try:
    yield
  except BaseException as error:
    if jax.distributed.is_initialized() and (loss := _loss(error)):
      raise LostProcessError(
        "another process of this run ended early, or its machine is gone: see its output, "
        f"and rerun the command in all to resume from the last checkpoint ({loss})"
      ) from error
    if jax.distributed.is_initialized() and hasattr(error, "exit_code"):
      # The others may be ending for the same reason. Without process 0, jax aborts them,
      # perhaps before they have said what it is.
      farewell = threading.Thread(target=jax.distributed.shutdown, daemon=True)
      farewell.start()
      farewell.join(_FAREWELL_SECONDS)
    raise


def _join(launch: dict[str, Any], seconds: float) -> None:
  joined = concurrent.futures.Future()

  def join():
    try:
      jax.distributed.initialize(
        **launch,
        # jax aborts the process when it gives up, so this has to give up first.
        initialization_timeout=math.ceil(seconds) + 60,
        heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
      )
      joined.set_result(None)
    except Exception as error:
      joined.set_exception(error)

  address = launch.get("coordinator_address")
  if address and launch["process_id"] == 0:
    _check_port(address)
  # Not this thread, which could neither give up nor obey Ctrl-C.
  threading.Thread(target=join, daemon=True).start()
  try:
    joined.result(seconds)
  except TimeoutError:
    raise ConfigError(_who_is_missing(launch, seconds)) from None
  except ValueError:
    if launch:
      raise
    # A TPU, but none that tells of its hosts: there is one.
  except (RuntimeError, OSError) as error:
    hint = (
      "; if this TPU has one host, give --coordinator_address=localhost:8482 "
      "--num_processes=1 --process_id=0"
    )
    raise ConfigError(
      f"the processes do not find each other: {_first_line(error)}{'' if launch else hint}"
    ) from error


def _check_port(address: str) -> None:
  """Raises ConfigError if process 0 cannot listen there, of which jax often crashes."""
  port = int(address.rpartition(":")[2])
  try:
    socket.create_server(("", port)).close()
  except OSError as error:
    raise ConfigError(
      f"port {port} of --coordinator_address={address} cannot be used on this machine "
      f"({os.strerror(error.errno)}): choose another"
    ) from error


def _who_is_missing(launch: dict[str, Any], seconds: float) -> str:
  address, count = launch.get("coordinator_address"), launch.get("num_processes")
  if not address:
    return (
      f"not all {f'{count} tasks of this SLURM step' if launch else 'hosts of this TPU'} "
      f"came within {seconds:.0f} seconds: see the output of the others"
    )
  host, _, port = address.rpartition(":")
  reason = ""
  try:
    socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
  except OSError as error:
    reason = f" ({error.strerror or error})"
  return (
    f"process {launch['process_id']} did not meet all others at --coordinator_address="
    f"{address}{reason} within {seconds:.0f} seconds: start all, with --num_processes="
    f"{count} and each with a --process_id of its own, and give an address of process 0 "
    "that all can reach"
  )


def _loss(error: BaseException | None) -> str:
  """Returns what jax said of the end of another process, if the error comes from that."""
  while error is not None:
    # pmap's own path raises the same as ValueError.
    if isinstance(error, (jax.errors.JaxRuntimeError, ValueError)):
      text = _first_line(error)
      if _LOSS.match(text):
        return text
    error = error.__cause__ or error.__context__
  return ""


def _first_line(error: BaseException) -> str:
  return str(error).partition("\n")[0][:200] or type(error).__name__
