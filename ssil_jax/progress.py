"""Shows how far a long piece of work is: by bars on a terminal, elsewhere by lines."""

import time
from collections.abc import Callable
from typing import Any

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
_SECONDS_BETWEEN_TRAINING_LINES = 10.0


def duration_text(seconds: float) -> str:
  """Returns a duration as [hours:]minutes:seconds."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class ProgressDisplay(Progress):
  """Shows state, epoch, loss, images/s and time left of training; a context manager."""

  def __init__(self, console: Console, *, num_states: int, num_images: int):
    """`num_images`: to be trained on until the run ends."""
    super().__init__(
      TextColumn("{task.description}"),
      BarColumn(),
      TextColumn("{task.percentage:>3.0f}%"),
      console=console,
      refresh_per_second=2,
      transient=True,
      disable=not console.is_terminal,
    )
    self._num_states = num_states
    self._images_left = num_images
    self._next_line = 0.0
    self._task = self.add_task("compiling", total=num_images)

  def show(self, record: dict[str, Any], *, epochs: int, images: int) -> None:
    """Shows a record of metrics.jsonl, in which `images` more were trained on."""
    self._images_left -= images
    speed = record["images_per_second"]
    text = (
      f"state {record['state']}/{self._num_states}  "
      f"epoch {record['epoch']}/{epochs}  loss {record['loss']:.3f}  "
      f"{speed:,.0f} img/s  {duration_text(self._images_left / speed)} left"
    )
    self.update(self._task, description=text, advance=images)
    if not self.console.is_terminal and time.monotonic() >= self._next_line:
      self.print(text)
      self._next_line = time.monotonic() + _SECONDS_BETWEEN_TRAINING_LINES


class ProgressBars(Progress):
  """Shows the parts of a piece of work; a context manager.

  Without a terminal, each part gets a line when it begins, one every 30 seconds, and one
  when it ends.
  """

  def __init__(self, console: Console, check_interrupt: Callable[[], None] = lambda: None):
    """`check_interrupt` is called with every step; it may raise KeyboardInterrupt."""
    self._check_interrupt = check_interrupt
    super().__init__(
      TextColumn("{task.description}", markup=False),
      BarColumn(bar_width=20),
      TaskProgressColumn(),
      _CountColumn(),
      TimeRemainingColumn(),
      console=console,
      disable=not console.is_terminal,
    )

  def add(self, text: str, total: int, unit: str = "") -> Callable[[int], None]:
    """Adds a bar of `total` steps, whose `unit` is shown if there is one.

    Returns:
      A function to be called with the number of steps that were done; cheap. With 0 it
      checks for Ctrl-C alone.
    """
    on_terminal, start, done = self.console.is_terminal, time.monotonic(), 0
    if on_terminal:
      task, next_update = self.add_task(text, total=total, unit=unit), 0.0
    else:
      self._print(text)
      next_update = start + _SECONDS_BETWEEN_LINES

    def advance(steps: int) -> None:
      nonlocal done, next_update
      self._check_interrupt()
      was_full = done >= total
      done += steps
      now = time.monotonic()
      if now < next_update and (done < total or was_full):
        return
      if on_terminal:
        self.update(task, completed=done)
        next_update = now + _SECONDS_BETWEEN_UPDATES
      else:
        self._print(f"{text}: {_progress_text(done, total, unit, now - start)}")
        next_update = now + _SECONDS_BETWEEN_LINES

    return advance

  def _print(self, line: str) -> None:
    self.print(line, markup=False, emoji=False, soft_wrap=True)


def _progress_text(done: int, total: int, unit: str, seconds: float) -> str:
  parts = [f"{done:,} of {total:,} {unit}" if unit else f"{done / total:.0%}"]
  if unit and seconds:
    parts.append(f"{done / seconds:,.0f}/s")
  if done >= total:
    parts.append(f"took {duration_text(seconds)}")
  elif done:
    parts.append(f"{duration_text(seconds * (total - done) / done)} left")
  return ", ".join(parts)


class _CountColumn(ProgressColumn):
  """Steps done, and how many a second."""

  def render(self, task: Task) -> Text:
    unit = task.fields["unit"]
    speed = task.finished_speed or task.speed or 0
    text = f"{task.completed:,.0f} {unit}, {speed:,.0f}/s" if unit else ""
    return Text(text, no_wrap=True)
