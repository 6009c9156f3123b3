"""How far a long piece of work is: bars on a terminal, lines now and then elsewhere."""

import datetime
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
_SECONDS_BETWEEN_LINES = 30.0


class Display:
  """The bars of a piece of work; a context manager.

  Without a terminal, each part of the work gets a line when it begins and when it ends, and
  one every 30 seconds in between.
  """

  def __init__(self, console: Console, check_interrupt: Callable[[], None] = lambda: None):
    """`check_interrupt` is called with every step; it may raise KeyboardInterrupt."""
    self._console, self._check_interrupt = console, check_interrupt
    self._progress = Progress(
      TextColumn("{task.description}", markup=False),
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
      To be called with the number of steps that were done; cheap. With 0 it looks for
      Ctrl-C.
    """
    if self._console.is_terminal:
      show, seconds = self._shown_as_bar(text, total, unit), _SECONDS_BETWEEN_UPDATES
      next_update = 0.0
    else:
      show, seconds = self._shown_in_lines(text, total, unit), _SECONDS_BETWEEN_LINES
      next_update = time.monotonic() + seconds
    done = 0

    def advance(steps: int) -> None:
      nonlocal done, next_update
      self._check_interrupt()
      was_full = done >= total
      done += steps
      now = time.monotonic()
      if now >= next_update or (done >= total and not was_full):
        show(done)
        next_update = now + seconds

    return advance

  def _shown_as_bar(self, text: str, total: int, unit: str) -> Callable[[int], None]:
    task = self._progress.add_task(text, total=total, unit=unit)
    return lambda done: self._progress.update(task, completed=done)

  def _shown_in_lines(self, text: str, total: int, unit: str) -> Callable[[int], None]:
    self._print(text)
    start = time.monotonic()

    def show(done: int) -> None:
      seconds = time.monotonic() - start
      parts = [f"{done:,} of {total:,} {unit}" if unit else f"{done / total:.0%}"]
      if unit and seconds:
        parts.append(f"{done / seconds:,.0f}/s")
      if done >= total:
        parts.append(f"took {_duration(seconds)}")
      elif done:
        parts.append(f"{_duration(seconds * (total - done) / done)} left")
      self._print(f"{text}: {', '.join(parts)}")

    return show

  def _print(self, line: str) -> None:
    self._console.print(line, markup=False, emoji=False, soft_wrap=True)


def _duration(seconds: float) -> str:
  return str(datetime.timedelta(seconds=round(seconds)))


class _Counts(ProgressColumn):
  """Steps done, and how many a second."""

  def render(self, task: Task) -> Text:
    unit = task.fields["unit"]
    speed = task.finished_speed or task.speed or 0
    text = f"{task.completed:,.0f} {unit}, {speed:,.0f}/s" if unit else ""
    return Text(text, no_wrap=True)
