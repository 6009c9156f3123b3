"""What this process may use of the machine it runs on."""

import os
import resource

from ssil_jax.errors import DataError

_SPARE_FILES = 200  # descriptors that everything but data shards needs


def usable_cores() -> int:
  """CPU cores that the process may run on; a scheduler may have given it a part only."""
  if hasattr(os, "sched_getaffinity"):  # not on macOS
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def allow_open_files(number: int) -> None:
  """Lets the process have so many files open, as far as it may decide that itself.

  Raises:
    DataError: the limit is lower, and only the system's administrator can raise it.
  """
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
