"""From miniature official archives to runs, by the commands of the README."""

import json
import sys

import archives
import numpy as np
import pytest
from folders import save

from ssil_jax.commands import prepare, run
from ssil_jax.data import fingerprint, loader
from ssil_jax.sampling import Key, Pool
from ssil_jax.training.plan import make_plan

# A step or two on two images and an exemplar; large enough to be streamed.
TINY = (
  "--method=ft",
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


def prepared(dataset, folder):
  """Prepares what the folder has; returns the data directory."""
  data_dir = folder.parent / "data"
  argv = ["prepare.py", dataset, f"--archives={folder}", f"--data_dir={data_dir}"]
  assert prepare.main([*argv, "--allow_partial"]) == 0
  return data_dir


def test_imagenet(tmp_path, capsys):
  data_dir = prepared("imagenet", archives.imagenet(tmp_path / "archives"))
  argv = ["run.py", "--flagfile=imagenet.cfg", f"--data_dir={data_dir}", *TINY]
  assert run.main([*argv, f"--workdir={tmp_path / 'run'}"]) == 0
  results = json.loads((tmp_path / "run" / "results.json").read_text())
  assert results["dataset"] == "imagenet"
  assert [state["num_seen"] for state in results["states"]] == [1, 2]
  for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
    assert 0 <= json.loads(line)["input_wait"] <= 1
  # What the preparation lacked is said again before training.
  assert "lacks 998 classes" in " ".join(capsys.readouterr().out.split())


def plan_of(flagfile, data_dir, *flags):
  argv = ["run.py", f"--flagfile={flagfile}", f"--data_dir={data_dir}", *TINY, *flags]
  return make_plan(run.parse(argv).config)


def batches(plan):
  """Yields the training batches of a run, with the first two images as exemplars."""
  for state, phase in plan.phases():
    yield from loader.TrainBatches(
      dataset=plan.dataset,
      pool=Pool(np.arange(len(plan.dataset.train.labels)), np.arange(2)),
      sampling=phase.sampling,
      key=Key(0, state.index, 0),
      batch_size_new=2,
      batch_size_memory=1,
      num_devices=1,
      num_steps=phase.num_steps,
    )


def test_landmarks(tmp_path):
  archives.landmarks(tmp_path / "archives", {3: 13, 1: 12})
  data_dir = prepared("landmarks_v2/10k", tmp_path / "archives")
  plan = plan_of("landmark10k.cfg", data_dir)
  names = np.array(plan.dataset.class_names)
  found = list(batches(plan))
  assert found
  for inputs, labels, _, records in found:
    assert inputs.shape[2:] == (72, 72, 3)
    # Ten images of each are held out for testing.
    assert [names[i] for i in labels.flat] == ["11333"[record] for record in records.flat]


def test_cifar100_is_the_image_folder_batch_for_batch(tmp_path):
  data_dir = prepared("cifar100", archives.cifar(tmp_path / "archives"))
  for split, images in (("train", archives.CIFAR_TRAIN), ("test", archives.CIFAR_TEST)):
    for i, (_, label, pixels) in enumerate(images):
      if label != 50:  # it has no training image
        path = tmp_path / "folder" / split / f"fine_{label:02}" / f"{split}_{i:05}.png"
        save(path, pixels.transpose(1, 2, 0))
  flags = ("--image_size=32", "--num_states=3", "--memory_size=3", "--epochs=4")
  one = plan_of("cifar100.cfg", data_dir, *flags)
  other = plan_of("cifar100.cfg", tmp_path / "folder", *flags, "--dataset=image_folder")
  assert one.dataset.class_names == other.dataset.class_names
  assert one.dataset.augmentation == other.dataset.augmentation
  assert np.array_equal(one.dataset.train.images, other.dataset.train.images)
  assert fingerprint.parts(one.dataset) == fingerprint.parts(other.dataset)
  count = 0
  for left, right in zip(batches(one), batches(other), strict=True):
    count += 1
    for a, b in zip(left, right, strict=True):
      assert np.array_equal(a, b)
  assert count > 3


def test_tensorflow_is_not_there():
  assert "tensorflow" not in sys.modules
  with pytest.raises(ImportError):
    __import__("tensorflow")
