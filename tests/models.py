"""Finished runs on folders of tiny photos: models for tests to ask."""

import functools
import pathlib
import shutil
import tempfile

from folders import photo, save
from quick import quick_network
from small_runs import run, small_config

CLASSES = ("猫", "<b>&amp;", "n" * 200, "a b", "e", "-f")
PER_CLASS = {"train": 9, "test": 5}
SETTINGS = {
  "dataset": "image_folder",
  "num_classes": 6,
  "num_states": 3,
  "memory_size": 13,
  "batch_size_new": 8,
  "batch_size_memory": 4,
  "batch_size_test": 8,
  "learning_rate": 1e-2,
  "image_size": 16,
  "keep_test": 100,
  "num_devices": 1,
  "checkpoint_minutes": 0.0,
}
_TEMPORARY = tempfile.TemporaryDirectory()


def photos_in(root, *, scale=1):
  """Photos of six classes and several formats and sizes; returns `root`."""
  for split, count in PER_CLASS.items():
    for c, name in enumerate(CLASSES):
      for i in range(count):
        suffix = ("jpg", "png", "webp")[i % 3]
        pixels = photo(scale * (20 + i), scale * (18 + c), seed=(split == "test", c, i))
        save(root / split / name / f"{i}.{suffix}", pixels)
  return root


def config_of(workdir, root, **changes):
  return small_config(workdir, **SETTINGS | {"data_dir": str(root)} | changes)


def train(workdir, root, **changes):
  """Runs to the end, or on from where it was; returns the contents of results.json."""
  with quick_network():
    return run(workdir, **SETTINGS | {"data_dir": str(root)} | changes)


@functools.cache
def finished(*, scale=1, **changes):
  """The work directory of a run, not to be changed; its photos are in `images` beside."""
  folder = pathlib.Path(tempfile.mkdtemp(dir=_TEMPORARY.name))
  root = photos_in(folder / "images", scale=scale)
  train(folder / "run", root, **changes)
  return folder / "run"


def copy_of(workdir, place):
  """A copy that may be changed."""
  return shutil.copytree(workdir, place)


def model_alone(workdir, place):
  """Copies what the model needs to answer, and nothing else."""
  place.mkdir()
  shutil.copy(workdir / "model.json", place)
  for name in ("model", "networks"):
    shutil.copytree(workdir / name, place / name)
  return place
