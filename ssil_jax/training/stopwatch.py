"""Tells what the time of a run was spent on, for results.json; every moment counts once."""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from ssil_jax.reports.times import PARTS

_COMPILING = "/jax/core/compile/"  # events of tracing, lowering and compiling
_MADE = "/jax/core/compile/backend_compile_duration"  # of each program, kept or not
_FOUND = "/jax/compilation_cache/cache_hits"
_JITTER = 1e-3  # seconds between jax's clock and this one


class Stopwatch:
  """Divides time into parts, from its making on, and counts programs that were compiled."""

  def __init__(self, part: str = "other"):
    """Begins with a part, one of `PARTS`."""
    self._part, self._since = part, time.monotonic()
    self._thread = threading.get_ident()
    self._reset()

  def _reset(self) -> None:
    self._seconds = dict.fromkeys(PARTS, 0.0)
    self._programs = {"compiled": 0, "cached": 0}
    self._compiled: list[tuple[float, float]] = []  # from when to when, none in another

  @contextlib.contextmanager
  def of(self, part: str) -> Iterator[None]:
    """Counts what the context takes to a part, but for contexts within."""
    before = self._part
    self.switch(part)
    try:
      yield
    finally:
      self.switch(before)

  def switch(self, part: str) -> None:
    """Counts what follows to a part."""
    now = time.monotonic()
    self._seconds[self._part] += now - self._since
    self._part, self._since = part, now

  def move(self, seconds: float, part: str) -> None:
    """Counts that much of the time just spent to another part."""
    self._seconds[self._part] -= seconds
    self._seconds[part] += seconds

  def so_far(self) -> dict[str, dict[str, float]]:
    """Returns what was counted since the last `lap`, as `add` takes it; JSON types."""
    self.switch(self._part)
    # Clocks differ by so little that a time may come out below 0.
    seconds = {part: max(0.0, round(s, 3)) for part, s in self._seconds.items()}
    return {"seconds": seconds, "programs": dict(self._programs)}

  def add(self, earlier: Mapping[str, Mapping[str, float]]) -> None:
    """Adds what an earlier process counted."""
    for counted, more in (
      (self._seconds, earlier.get("seconds", {})),
      (self._programs, earlier.get("programs", {})),
    ):
      for name in counted:
        counted[name] += more.get(name, 0)

  def lap(self) -> dict[str, dict[str, float]]:
    """Returns `so_far`, and begins anew."""
    found = self.so_far()
    self._reset()
    return found

  @contextlib.contextmanager
  def watching_compiler(self) -> Iterator[None]:
    """Counts what this thread waits for the compiler to "compiling", in the context."""
    jax.monitoring.register_event_duration_secs_listener(self._on_duration)
    jax.monitoring.register_event_listener(self._on_event)
    try:
      yield
    finally:
      jax.monitoring.unregister_event_listener(self._on_event)
      jax.monitoring.unregister_event_duration_listener(self._on_duration)

  def _on_duration(self, event: str, seconds: float, **told: Any) -> None:
    if not event.startswith(_COMPILING) or threading.get_ident() != self._thread:
      return
    self._programs["compiled"] += event == _MADE
    # What is traced within another trace has an event of its own before the other one's.
    end = time.monotonic()
    start, more = end - seconds, seconds
    while self._compiled and self._compiled[-1][0] > start - _JITTER:
      inner_start, inner_end = self._compiled.pop()
      more -= inner_end - inner_start
    self._compiled.append((start, end))
    self.move(more, "compiling")

  def _on_event(self, event: str, **told: Any) -> None:
    if event == _FOUND and threading.get_ident() == self._thread:
      self._programs["compiled"] -= 1
      self._programs["cached"] += 1
