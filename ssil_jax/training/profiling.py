"""Traces some training steps, to be looked at with XProf or Perfetto; see docs/speed.md."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax

# By the tenth step all is compiled and the loader is ahead.
_FIRST, _LAST = 10, 19


class Profile:
  """Traces the steps 10 to 19 that a process sends to the devices; a context manager."""

  def __init__(
    self,
    folder: pathlib.Path | None = None,
    warn: Callable[[str], None] = lambda line: None,
  ):
    """Takes where the trace goes, None for nowhere, and what tells that there is none."""
    self._folder = folder
    self._warn = warn
    self._count = 0  # steps begun
    self._is_tracing = False

  def __enter__(self) -> "Profile":
    return self

  def __exit__(self, *exc_info) -> None:
    if self._is_tracing:
      self._stop()
    elif self._folder is not None and self._count < _FIRST:
      self._warn(
        f"note: --profile traces what is trained {_FIRST}th to {_LAST}th, by steps or by "
        f"groups of them, and there were {self._count}: {self._folder} has no trace"
      )

  def step(self, train_step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Returns what `train_step` of the arguments does, traced if it is its turn."""
    self._count += 1
    if self._folder is not None and self._count == _FIRST:
      jax.profiler.start_trace(self._folder)
      self._is_tracing = True
    if not self._is_tracing:
      return train_step(*args, **kwargs)
    with jax.profiler.StepTraceAnnotation("train", step_num=self._count):
      found = train_step(*args, **kwargs)
    if self._count == _LAST:
      jax.block_until_ready(found)  # else the devices' part would be cut off
      self._stop()
    return found

  def _stop(self) -> None:
    jax.profiler.stop_trace()
    self._is_tracing = False
