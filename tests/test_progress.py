"""What a long piece of work shows while it works."""

import io

import pytest
from rich.console import Console

from ssil_jax.progress import ProgressBars


def test_lines_without_a_terminal(clock):
  file = io.StringIO()
  with ProgressBars(Console(file=file, width=20)) as bars:
    advance = bars.add("train: 1,000 images to write", 1000, "images")
    for _ in range(200):  # for 200 seconds
      clock[0] += 1
      advance(5)
    advance = bars.add("looking", 4)
    clock[0] += 60
    advance(1)
    clock[0] += 10
    advance(3)
    advance(0)
  text = "train: 1,000 images to write"
  assert file.getvalue().splitlines() == [
    text,
    f"{text}: 150 of 1,000 images, 5/s, 2:50 left",
    f"{text}: 300 of 1,000 images, 5/s, 2:20 left",
    f"{text}: 450 of 1,000 images, 5/s, 1:50 left",
    f"{text}: 600 of 1,000 images, 5/s, 1:20 left",
    f"{text}: 750 of 1,000 images, 5/s, 0:50 left",
    f"{text}: 900 of 1,000 images, 5/s, 0:20 left",
    f"{text}: 1,000 of 1,000 images, 5/s, took 3:20",
    "looking",
    "looking: 25%, 3:00 left",
    "looking: 100%, took 1:10",
  ]


def test_bars_on_a_terminal():
  file = io.StringIO()
  with ProgressBars(Console(file=file, width=100, force_terminal=True)) as bars:
    bars.add("reading", 1)(1)
    advance = bars.add("train", 3, "images")
    for _ in range(3):
      advance(1)
  *_, reading, train = [line for line in file.getvalue().splitlines() if "%" in line][-2:]
  assert "reading" in reading
  assert "100%" in reading
  assert "100%" in train
  assert "3 images" in train


def test_every_step_looks_for_ctrl_c():
  def stop():
    raise KeyboardInterrupt

  with ProgressBars(Console(quiet=True), stop) as bars:
    advance = bars.add("looking", 2)
    for steps in (0, 1):
      with pytest.raises(KeyboardInterrupt):
        advance(steps)
