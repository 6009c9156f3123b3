"""From miniature official archives to a trained run, by the commands of the README."""

import json
import sys

import archives
import numpy as np
import pytest
from folders import config_of, save

from ssil_jax.commands import prepare, run
from ssil_jax.data import fingerprint, loader
from ssil_jax.data.opening import open_dataset
from ssil_jax.sampling import Key, Pool
from ssil_jax.training.plan import make_plan

# A step or two on two images and an exemplar; large enough to be streamed.
TINY = (
  "--num_devices=1",
  "--num_states=2",
  "--epochs_first=1",
  "--epochs=1",
  "--batch_size_new=2",
  "--batch_size_memory=1",
  "--batch_size_test=4",
  "--memory_size=2",
  "--width=1",
  "--image_size=72",
  "--log_every=1",
)


def train(flagfile, data_dir, workdir, *flags):
  """Runs a flag file in little; returns results.json and the lines of metrics.jsonl."""
  argv = [f"--flagfile={flagfile}", f"--data_dir={data_dir}", *TINY, *flags]
  assert run.main(["run.py", *argv, f"--workdir={workdir}"]) == 0
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  run_results = json.loads((workdir / "results.json").read_text())
  return run_results, [json.loads(line) for line in lines]


@pytest.fixture
def folders(tmp_path):
  (tmp_path / "data").mkdir()
  return tmp_path / "archives", tmp_path / "data"


def prepared(dataset, folders, *flags):
  source, data_dir = folders
  argv = ["prepare.py", dataset, f"--archives={source}", f"--data_dir={data_dir}"]
  assert prepare.main([*argv, "--allow_partial", *flags]) == 0
  return data_dir


def test_imagenet(folders, tmp_path, capsys):
  archives.imagenet(folders[0])
  data_dir = prepared("imagenet", folders)
  run_results, lines = train("imagenet.cfg", data_dir, tmp_path / "run")
  assert run_results["dataset"] == "imagenet"
  assert [state["num_seen"] for state in run_results["states"]] == [1, 2]
  for line in lines:
    assert 0 <= line["input_wait"] <= 1
  # What the preparation lacked is said again before training.
  assert "lacks 998 classes" in " ".join(capsys.readouterr().out.split())


def test_landmarks(folders, tmp_path):
  archives.landmarks(folders[0], {3: 13, 1: 12})
  data_dir = prepared("landmarks_v2/10k", folders)
  run_results, _ = train("landmark10k.cfg", data_dir, tmp_path / "run")
  assert [state["num_seen"] for state in run_results["states"]] == [1, 2]


def cifar_as_a_folder(root):
  for split, images in (("train", archives.CIFAR_TRAIN), ("test", archives.CIFAR_TEST)):
    for i, (_, label, pixels) in enumerate(images):
      if label != 50:  # it has no training image
        name = f"{split}_{i:05}.png"
        save(root / split / f"fine_{label:02}" / name, pixels.transpose(1, 2, 0))
  return root


def test_cifar100_is_the_image_folder_batch_for_batch(folders, tmp_path):
  archives.cifar(folders[0])
  data_dir = prepared("cifar100", folders)
  root = cifar_as_a_folder(tmp_path / "folder")
  shared = {
    "num_states": 3,
    "batch_size_new": 2,
    "batch_size_memory": 1,
    "epochs": 4,
    "memory_size": 3,
  }
  one, other = (
    open_dataset(config_of(**shared, dataset=name, data_dir=str(folder)))
    for name, folder in (("cifar100", data_dir), ("image_folder", root))
  )
  assert one.class_names == other.class_names
  assert np.array_equal(one.train.images, other.train.images)
  assert fingerprint.parts(one) == fingerprint.parts(other)
  plan = make_plan(config_of(**shared, dataset="cifar100", data_dir=str(data_dir)))
  for state, phase in plan.phases():
    for dataset in (one, other):
      assert dataset.augmentation == one.augmentation
    batches = [
      loader.TrainBatches(
        dataset=dataset,
        pool=Pool(np.arange(7), np.arange(2)),
        sampling=phase.sampling,
        key=Key(0, state.index, 0),
        batch_size_new=2,
        batch_size_memory=1,
        num_devices=1,
        num_steps=phase.num_steps,
      )
      for dataset in (one, other)
    ]
    assert len(batches[0]) > 0
    for left, right in zip(*batches, strict=True):
      for a, b in zip(left, right, strict=True):
        assert np.array_equal(a, b)


def test_cifar100_trains(folders, tmp_path):
  archives.cifar(folders[0])
  data_dir = prepared("cifar100", folders)
  small = ("--image_size=32", "--num_states=3", "--memory_size=3")
  run_results, _ = train("cifar100.cfg", data_dir, tmp_path / "run", *small)
  assert [state["num_seen"] for state in run_results["states"]] == [1, 2, 3]


def test_tensorflow_is_not_there():
  assert "tensorflow" not in sys.modules
  with pytest.raises(ImportError):
    __import__("tensorflow")
