"""Asks the system for what a process needs: cores, files, locks, modules."""

import contextlib
import ctypes
import fcntl
import functools
import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata, util
from typing import Any, BinaryIO

from ssil_jax.errors import DataError

_SPARE_FILES = 200  # descriptors that everything but data shards needs
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def usable_cores() -> int:
  """Returns the CPU cores that the process may run on; a scheduler may limit them."""
  if hasattr(os, "sched_getaffinity"):  # not on macOS
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def allow_open_files(number: int) -> None:
  """Lets the process have so many files open; raises DataError if it may not."""
  wanted = number + _SPARE_FILES
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if soft == resource.RLIM_INFINITY or soft >= wanted:
    return
  if hard != resource.RLIM_INFINITY and hard < wanted:
    raise DataError(
      f"the data need {wanted} open files, and this system allows a process {hard}: raise "
      f"its limit (ulimit -n {wanted}, or LimitNOFILE)"
    )
  resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def keep_freed_memory() -> None:
  """Makes a process that trains on CPUs keep memory that it frees, for later blocks.

  Otherwise glibc gives large blocks back at once, and the system clears the pages of the
  next block one by one: an eighth of a training step's CPU time (benchmarks/README.md).
  Call it before any thread has allocated, for its arena would pass on to later threads,
  and give large blocks back. With an accelerator's plugin for jax, or another C library
  than glibc, everything stays as it is.
  """
  accelerated = metadata.entry_points(group="jax_plugins") or util.find_spec("libtpu")
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt is not None and not accelerated:
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)
    mallopt(_M_ARENA_MAX, 1)  # others than the first hold no large blocks


def peak_memory() -> int:
  """Returns the most main memory that the process has held so far, in bytes."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == "darwin" else 1024 * peak  # elsewhere in KiB


@functools.cache
def source_commit() -> str | None:
  """Returns the commit of the checkout that this code is in, "+" if it was changed since.

  None if it is in none, or git is not there.
  """
  root = pathlib.Path(__file__).resolve().parents[1]
  if not (root / ".git").exists():
    return None
  try:
    done = subprocess.run(
      ["git", "-C", root, "describe", "--always", "--exclude=*", "--dirty=+"],
      capture_output=True,
      timeout=10,
      text=True,
    )
  except (OSError, subprocess.SubprocessError):
    return None
  return done.stdout.strip() or None


@functools.cache
def cpu_name() -> str:
  """Returns the model of the CPU; where the system does not tell, its architecture."""
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
  except OSError:  # not Linux
    lines = []
  named = (line.partition(":")[2] for line in lines if line.startswith("model name"))
  return next(named, "").strip() or platform.processor() or platform.machine()


@contextlib.contextmanager
def hidden_module(name: str) -> Iterator[None]:
  """Lets imports within fail to find a module, unless it is there already.

  For libraries that import a large one where they can, and do without it where they cannot.
  """
  if name in sys.modules:
    yield
    return
  sys.modules[name] = None
  try:
    yield
  finally:
    del sys.modules[name]


class LockedError(Exception):
  """Another process has the lock; the text says which, as far as it is known."""


@contextlib.contextmanager
def locked(path: pathlib.Path, warn: Callable[[str], None] | None = None) -> Iterator[None]:
  """Holds the lock of a file, which is made, while the context lasts.

  The lock goes with the process, however it ends. The file says who had it last.

  Raises:
    LockedError: another process has it.
    OSError: the file cannot be written, is a link, or cannot be locked; if the file system
      has no locks, only without `warn`, which else is called with the reason.
  """
  # The lock of a folder from elsewhere may be a link to something precious. The file is
  # open for writing, for NFS refuses to lock anything else.
  number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
  with open(number, "r+") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise LockedError(file.read(200).strip()) from error
    except OSError as error:
      if warn is None:
        raise
      warn(error.strerror)
    if not os.fstat(number).st_nlink:  # removed by another process before it let go
      raise LockedError("removed")
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}\n")
    file.flush()
    yield


def write_json(path: pathlib.Path, value: Any) -> None:
  """Replaces a JSON file as `write_bytes` does."""
  write_bytes(path, json.dumps(value, indent=1, allow_nan=False).encode())


def write_bytes(path: pathlib.Path, *parts: bytes | memoryview) -> None:
  """Replaces a file as `replaced` does; the parts follow one another."""
  with replaced(path) as file:
    for part in parts:
      file.write(part)


@contextlib.contextmanager
def replaced(path: pathlib.Path) -> Iterator[BinaryIO]:
  """Replaces a file whole: a reader, a kill or another writer never meets half of it.

  Yields the file to write to; raises OSError, after which the old one is there.
  """
  # Hosts that share a disk may write the same file at the same time.
  ending = f".{platform.node()}.{os.getpid()}.tmp"
  room = os.pathconf(path.parent, "PC_NAME_MAX") - len(os.fsencode(ending))
  # Cut in bytes, which must not end within a character.
  start = os.fsencode(path.name)[:room].decode(errors="ignore")
  temporary = path.with_name(start + ending)
  try:
    with open(temporary, "wb") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise
