"""What a long piece of work shows while it works."""

import io

import pytest
from rich.console import Console

from ssil_jax.data import display as display_lib
from ssil_jax.data.display import Display


@pytest.fixture
def clock(monkeypatch):
  """A list whose only entry is the time in seconds."""
  now = [100.0]
  monkeypatch.setattr(display_lib.time, "monotonic", lambda: now[0])
  return now


def test_lines_without_a_terminal(clock):
  file = io.StringIO()
  with Display(Console(file=file, width=20)) as display:
    advance = display.bar("train: 1,000 images to write", 1000, "images")
    for _ in range(200):  # for 200 seconds
      clock[0] += 1
      advance(5)
    advance = display.bar("looking", 4)
    clock[0] += 60
    advance(1)
    clock[0] += 10
    advance(3)
    advance(0)
  text = "train: 1,000 images to write"
  assert file.getvalue().splitlines() == [
    text,
    f"{text}: 150 of 1,000 images, 5/s, 0:02:50 left",
    f"{text}: 300 of 1,000 images, 5/s, 0:02:20 left",
    f"{text}: 450 of 1,000 images, 5/s, 0:01:50 left",
    f"{text}: 600 of 1,000 images, 5/s, 0:01:20 left",
    f"{text}: 750 of 1,000 images, 5/s, 0:00:50 left",
    f"{text}: 900 of 1,000 images, 5/s, 0:00:20 left",
    f"{text}: 1,000 of 1,000 images, 5/s, took 0:03:20",
    "looking",
    "looking: 25%, 0:03:00 left",
    "looking: 100%, took 0:01:10",
  ]


def test_bars_on_a_terminal():
  file = io.StringIO()
  with Display(Console(file=file, width=100, force_terminal=True)) as display:
    display.bar("reading", 1)(1)
    advance = display.bar("train", 3, "images")
    for _ in range(3):
      advance(1)
    (reading, train) = display._progress.tasks
    assert reading.finished
    assert train.finished
  assert "3 images" in file.getvalue()


def test_every_step_looks_for_ctrl_c():
  def stop():
    raise KeyboardInterrupt

  with Display(Console(quiet=True), stop) as display:
    advance = display.bar("looking", 2)
    for steps in (0, 1):
      with pytest.raises(KeyboardInterrupt):
        advance(steps)
