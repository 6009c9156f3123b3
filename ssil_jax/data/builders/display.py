"""How far a preparation is: bars on a terminal, a line for each finished part elsewhere."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import (
  BarColumn,
  Progress,
  ProgressColumn,
  Task,
  TaskProgressColumn,
  TextColumn,
  TimeRemainingColumn,
)
from rich.text import Text

_SECONDS_BETWEEN_UPDATES = 0.2


class Display:
  """The bars of a preparation; a context manager."""

  def __init__(self, console: Console, check_interrupt: Callable[[], None] = lambda: None):
    """`check_interrupt` is called with every step; it may raise KeyboardInterrupt."""
    self._console, self._check_interrupt = console, check_interrupt
    self._progress = Progress(
      TextColumn("{task.description}"),
      BarColumn(bar_width=20),
      TaskProgressColumn(),
      _Counts(),
      TimeRemainingColumn(),
      console=console,
      disable=not console.is_terminal,
    )

  def __enter__(self) -> "Display":
    self._progress.start()
    return self

  def __exit__(self, *exc_info) -> None:
    self._progress.stop()

  def bar(self, text: str, total: int, unit: str = "") -> Callable[[int], None]:
    """Adds a bar.

    Args:
      text: what is done.
      total: steps until it is full.
      unit: of the steps, if they are worth showing.

    Returns:
      To be called with the number of steps that were done; cheap.
    """
    if not self._console.is_terminal:
      self._console.print(text, markup=False, soft_wrap=True)
    task = self._progress.add_task(text, total=total, unit=unit)
    waiting, done, next_update = 0, 0, 0.0

    def advance(steps: int) -> None:
      nonlocal waiting, done, next_update
      self._check_interrupt()
      waiting += steps
      done += steps
      if done >= total or time.monotonic() >= next_update:
        self._progress.advance(task, waiting)
        waiting = 0
        next_update = time.monotonic() + _SECONDS_BETWEEN_UPDATES

    return advance


class _Counts(ProgressColumn):
  """Steps done, and how many a second."""

  def render(self, task: Task) -> Text:
    unit = task.fields["unit"]
    speed = task.finished_speed or task.speed or 0
    text = f"{task.completed:,.0f} {unit}, {speed:,.0f}/s" if unit else ""
    return Text(text, no_wrap=True)
