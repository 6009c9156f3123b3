"""Cores, open files, locks."""

import errno
import fcntl
import os
import platform
import resource
import subprocess
import sys
import types

import pytest

from ssil_jax import system
from ssil_jax.errors import DataError


def test_cores_are_those_the_process_may_use(monkeypatch):
  monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
  assert system.usable_cores() == 2
  monkeypatch.delattr(os, "sched_getaffinity")
  monkeypatch.setattr(os, "cpu_count", lambda: 7)
  assert system.usable_cores() == 7


def test_the_limit_of_open_files_is_raised_as_far_as_needed_or_named(monkeypatch):
  infinite = resource.RLIM_INFINITY
  now = {}
  monkeypatch.setattr(resource, "getrlimit", now.get)
  monkeypatch.setattr(resource, "setrlimit", now.__setitem__)
  for limits, after in (
    ((1024, 1_048_576), (2348, 1_048_576)),
    ((1024, infinite), (2348, infinite)),
    ((4096, 4096), (4096, 4096)),
    ((infinite, infinite), (infinite, infinite)),
  ):
    now[resource.RLIMIT_NOFILE] = limits
    system.allow_open_files(2148)
    assert now[resource.RLIMIT_NOFILE] == after
  now[resource.RLIMIT_NOFILE] = (256, 1024)
  with pytest.raises(DataError, match="2348 open files.*1024.*ulimit -n 2348"):
    system.allow_open_files(2148)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc alone")
def test_memory_that_was_freed_is_there_for_the_next_block():
  program = """
import resource, threading
import numpy as np
from ssil_jax import system

def new_pages():
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  np.ones(10**8, np.uint8)
  print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

if KEPT:
  system.keep_freed_memory()
for _ in range(2):
  thread = threading.Thread(target=new_pages)
  thread.start()
  thread.join()
"""
  found = [
    subprocess.check_output([sys.executable, "-c", program.replace("KEPT", kept)])
    for kept in ("False", "True")
  ]
  (_, again), (_, again_kept) = (map(int, pages.split()) for pages in found)
  # Of 100 MB: 24,000 pages of 4 KiB, or fewer larger ones.
  assert again_kept < 10 < again


@pytest.mark.parametrize(
  ("plugin", "spec", "calls"), [(0, None, 3), (1, None, 0), (0, 1, 0)]
)
def test_memory_is_kept_on_cpus_alone(monkeypatch, plugin, spec, calls):
  set_ = {}
  library = types.SimpleNamespace(mallopt=set_.__setitem__)
  monkeypatch.setattr(system.ctypes, "CDLL", lambda name: library)
  monkeypatch.setattr(system.metadata, "entry_points", lambda group: ["cuda"] * plugin)
  monkeypatch.setattr(system.util, "find_spec", {"libtpu": spec}.get)
  system.keep_freed_memory()
  assert len(set_) == calls
  library.__dict__.clear()  # another C library
  system.keep_freed_memory()


def test_a_file_that_cannot_be_replaced_leaves_nothing_beside_it(tmp_path):
  (tmp_path / "taken").mkdir()
  with pytest.raises(OSError, match="directory"):
    system.write_bytes(tmp_path / "taken", b"content")
  assert os.listdir(tmp_path) == ["taken"]


def test_a_lock_has_one_owner_and_tells_which(tmp_path):
  path = tmp_path / "lock"
  path.write_text("process 123456789 on a host with a very long name\n")
  for _ in range(2):
    with system.locked(path):
      owner = f"process {os.getpid()} on {platform.node()}"
      assert path.read_text() == f"{owner}\n"
      with pytest.raises(system.LockedError, match=owner), system.locked(path):
        pytest.fail("locked twice")
  assert path.exists()


def test_a_lock_that_is_a_link_is_not_written_to(tmp_path):
  (tmp_path / "precious").write_text("mine")
  (tmp_path / "lock").symlink_to(tmp_path / "precious")
  with pytest.raises(OSError, match="symbolic links"), system.locked(tmp_path / "lock"):
    pass
  assert (tmp_path / "precious").read_text() == "mine"


def test_a_lock_that_its_owner_has_just_removed_is_not_one(tmp_path, monkeypatch):
  path, flock = tmp_path / "lock", fcntl.flock

  def removed_meanwhile(file, how):
    path.unlink()
    flock(file, how)

  monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
  with pytest.raises(system.LockedError), system.locked(path):
    pass


def test_a_file_system_without_locks_is_an_error_or_a_warning(tmp_path, monkeypatch):
  def flock(file, how):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(fcntl, "flock", flock)
  reasons = []
  with system.locked(tmp_path / "lock", reasons.append):
    assert reasons == ["No locks available"]
  with pytest.raises(OSError, match="No locks"), system.locked(tmp_path / "lock"):
    pass


def test_a_module_is_hidden_only_meanwhile_and_only_if_it_is_not_there(monkeypatch):
  monkeypatch.delitem(sys.modules, "wave", raising=False)
  with pytest.raises(ImportError), system.hidden_module("wave"):
    import wave
  import wave

  with system.hidden_module("wave"):
    import wave as again
  assert again is wave
