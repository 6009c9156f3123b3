"""How far a run is: a bar on a terminal, a line now and then elsewhere."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

_SECONDS_BETWEEN_LINES = 10.0


class ProgressDisplay:
  """Shows state, epoch, loss, images/s and time left; a context manager."""

  def __init__(self, console: Console, *, num_states: int, num_images: int):
    """`num_images`: to be trained on until the run ends."""
    self._console = console
    self._num_states = num_states
    self._images_left = num_images
    self._next_line = 0.0
    self._bar = Progress(
      TextColumn("{task.description}"),
      BarColumn(),
      TextColumn("{task.percentage:>3.0f}%"),
      console=console,
      refresh_per_second=2,
      transient=True,
      disable=not console.is_terminal,
    )
    self._task = self._bar.add_task("compiling", total=num_images)

  def __enter__(self) -> "ProgressDisplay":
    self._bar.start()
    return self

  def __exit__(self, *exc_info) -> None:
    self._bar.stop()

  def print(self, text: str) -> None:
    """Prints a line that stays, above the bar."""
    self._console.print(text)

  def update(self, record: dict[str, Any], *, epochs: int, images: int) -> None:
    """Shows a record of metrics.jsonl, in which `images` more were trained on."""
    self._images_left -= images
    speed = record["images_per_second"]
    text = (
      f"state {record['state']}/{self._num_states}  "
      f"epoch {record['epoch']}/{epochs}  loss {record['loss']:.3f}  "
      f"{speed:,.0f} img/s  {_duration(self._images_left / speed)} left"
    )
    self._bar.update(self._task, description=text, advance=images)
    if not self._console.is_terminal and time.monotonic() >= self._next_line:
      self._console.print(text)
      self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES


def _duration(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
