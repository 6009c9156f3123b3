"""What benchmarks share: invented images, alternated rounds, a table and a JSON file."""

import argparse
import datetime
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ssil_jax.commands import run as command
from ssil_jax.data.dataset import LARGEST_RESIDENT, Dataset, Split
from ssil_jax.data.images.augment import Augmentation
from ssil_jax.errors import UserError


def parser(doc: str, *, rounds: int = 3) -> argparse.ArgumentParser:
  """Returns a parser of what all benchmarks take; `doc` is the module's docstring."""
  as_it_is = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(
    description=doc, formatter_class=as_it_is, allow_abbrev=False
  )
  parser.add_argument("--rounds", type=_at_least_one, default=rounds)
  parser.add_argument("--json", type=pathlib.Path, help="file for the table and its values")
  return parser


def parse_beside_run(
  parser: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
  """Reads a parser's own flags; returns them, and an argv of experiments/run.py.

  Ends the process where `run.py` does not know one of the others, or its value is wrong.
  """
  args, flags = parser.parse_known_args(argv)
  flags = ["run.py", *flags]
  try:
    command.parse(flags)
  except UserError as error:
    parser.error(str(error))
  return args, flags


def _at_least_one(text: str) -> int:
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(f"{text!r}: give a whole number from 1 on")
  return int(text)


def generated_images(count: int, size: int, labels: np.ndarray, seed: int) -> np.ndarray:
  """Invents images, uint8 [count, size, size, 3]: a pattern for each class, and noise."""
  rng = np.random.default_rng(seed)
  patterns = np.random.default_rng(0).integers(64, 192, (labels.max() + 1, 4, 4, 3))
  images = np.empty((count, size, size, 3), np.uint8)
  for part in np.array_split(np.arange(count), max(1, count // 1000)):
    large = patterns[labels[part]].repeat(size // 4, 1).repeat(size // 4, 2)
    images[part] = large + rng.integers(-60, 61, large.shape, np.int16)
  return images


def generated(
  *, num_classes: int, train: int, test: int, size: int, shift: int = 4
) -> Dataset:
  """Returns a data set of invented images, so many of each class.

  Those that a run would stream are not made: `images` of its splits are None.
  """
  splits = []
  for seed, of_class in enumerate((train, test), start=1):
    labels = np.repeat(np.arange(num_classes, dtype=np.int32), of_class)
    images = None
    if size <= LARGEST_RESIDENT:
      images = generated_images(len(labels), size, labels, seed)
    splits.append(Split(images, labels))
  return Dataset(
    class_names=tuple(map(str, range(num_classes))),
    train=splits[0],
    test=splits[1],
    image_size=size,
    flip=True,
    augmentation=Augmentation(shift if size <= LARGEST_RESIDENT else 0, flip=True),
    random_resized_crop=size > LARGEST_RESIDENT,
    normalization=None,
    ignored_files=0,
    skipped_records={},
    notes=(),
  )


def torch_environment() -> dict[str, Any]:
  """Returns what the environment says of PyTorch, which must be there."""
  import torch

  return {"torch": torch.__version__, "torch_threads": torch.get_num_threads()}


def rate(
  step: Callable[[], Any], wait: Callable[[], Any], *, seconds: float, images: int
) -> float:
  """Returns the images per second of a step of so many, sent for about some seconds.

  `wait` returns when all that was sent is done.
  """
  wait()
  start = time.perf_counter()
  step()
  wait()
  count = max(1, round(seconds / (time.perf_counter() - start)))
  start = time.perf_counter()
  for _ in range(count):
    step()
  wait()
  return count * images / (time.perf_counter() - start)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
  """Returns median, smallest and largest ratio of values measured in pairs."""
  ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
  return statistics.median(ratios), min(ratios), max(ratios)


def told(ratios: tuple[float, float, float]) -> str:
  return "{:.2f} ({:.2f} to {:.2f})".format(*ratios)


def shown(value: Any) -> str:
  """Returns a value as tables have it: floats with four digits, 46,010 and 0.1235."""
  if not isinstance(value, float):
    return str(value)
  rounded = float(f"{value:.4g}")
  return f"{rounded:,.0f}" if abs(rounded) >= 1000 else f"{rounded:.4g}"


def show(
  title: str,
  rows: Sequence[Mapping[str, Any]],
  *,
  environment: Mapping[str, Any],
  file: pathlib.Path | None,
) -> None:
  """Prints rows of the same names as a table; writes them to a JSON file, if there is one.

  Values that are lists are written alone.
  """
  columns = [name for name, value in rows[0].items() if not isinstance(value, list)]
  table = Table(*columns, title=title)
  for row in rows:
    table.add_row(*(shown(row[name]) for name in columns))
  console = Console(width=120)
  console.print(table)
  console.print({name: value for name, value in environment.items() if value is not None})
  if file is not None:
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    whole = {"title": title, "when": when, "environment": environment, "rows": rows}
    file.write_text(json.dumps(whole, indent=1) + "\n")
