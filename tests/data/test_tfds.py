"""Data sets that TFDS prepared: found, checked, labels kept, and read in class order."""

import json
import os
import shutil

import cloudpickle
import numpy as np
import pytest
import tensorflow_datasets as tfds
from folders import config_of, encode, noise
from stores import contents_of

from ssil_jax.data import fingerprint, loader
from ssil_jax.data.images.augment import IMAGENET_NORMALIZATION
from ssil_jax.data.opening import open_dataset
from ssil_jax.data.sources import labels
from ssil_jax.errors import ConfigError, DataError
from ssil_jax.sampling import RATIO_PRESERVING, Key, Pool

NUM_CLASSES = 3
# Split -> the labels of each shard; imagenet2012's test images have none.
SHARDS = {
  "train": [[2, 0, 1, 0], [1, 2, 2, 0]],
  "validation": [[1, 0], [2]],
  "test": [[-1, -1]],
}


def jpeg(seed):
  return encode(noise(70, 90, seed=seed))


with tfds.core.registered.skip_registration():

  class Imagenet2012(tfds.core.ShardBasedBuilder):
    """What TFDS' own builder of that name writes, in little."""

    VERSION = tfds.core.Version("5.1.0")

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(
          {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=["n0", "n1", "n2"]),
            "file_name": tfds.features.Text(),
          }
        ),
      )

    def _shard_iterators_per_split(self, dl_manager):
      def shard(split, number, labels):
        for i, label in enumerate(labels):
          data = jpeg((list(SHARDS).index(split), number, i))
          yield i, {"image": data, "label": label, "file_name": f"{number}_{i}"}

      return {
        split: [lambda s=split, n=n, ls=ls: shard(s, n, ls) for n, ls in enumerate(shards)]
        for split, shards in SHARDS.items()
      }


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
  root = tmp_path_factory.mktemp("tfds")
  Imagenet2012(data_dir=root, file_format="array_record").download_and_prepare()
  return root


@pytest.fixture
def root(prepared, tmp_path):
  return shutil.copytree(prepared, tmp_path / "data")


def version_of(root):
  return root / "imagenet2012" / "5.1.0"


def open_imagenet(root, **values):
  return open_dataset(
    config_of(**{"dataset": "imagenet", "num_states": 3, "data_dir": str(root), **values})
  )


def shard_of(root, split="train", number=1):
  (path,) = version_of(root).glob(f"*-{split}.array_record-{number:05}*")
  return path


def edit_info(root, *, shard_lengths=None, **values):
  """Changes fields of the description, or the lengths of the shards of some splits."""
  path = version_of(root) / "dataset_info.json"
  info = {**json.loads(path.read_text()), **values}
  for split in info["splits"]:
    split["shardLengths"] = (shard_lengths or {}).get(split["name"], split["shardLengths"])
  path.write_text(json.dumps(info))


# Reading.


def test_a_standard_imagenet2012_is_read(root):
  dataset = open_imagenet(root, class_order_seed=0)
  order = np.random.RandomState(0).permutation(NUM_CLASSES)
  assert dataset.class_names == tuple(f"n{c}" for c in order)
  assert dataset.image_size == 224
  assert dataset.normalization == IMAGENET_NORMALIZATION
  assert dataset.random_resized_crop
  assert dataset.augmentation.flip
  assert len(dataset.train.images) == 8
  # Sorted by TFDS' class, and in the order of the records in each.
  found = [
    (shard, i)
    for c in range(NUM_CLASSES)
    for shard, labels in enumerate(SHARDS["train"])
    for i, label in enumerate(labels)
    if label == c
  ]
  classes = np.repeat(np.arange(NUM_CLASSES), [3, 2, 3])
  assert dataset.train.labels.tolist() == np.argsort(order)[classes].tolist()
  for record, (shard, i) in enumerate(found):
    assert dataset.train.images.open(record).data == jpeg((0, shard, i))
  # Those without labels are not the test images.
  assert dataset.test.images.open(0).data == jpeg((1, 0, 1))
  assert len(dataset.test.labels) == 3


def test_validation_images_are_records_of_the_training_split(root):
  whole = open_imagenet(root)
  dataset = open_imagenet(root, validation_fraction=0.4)
  assert dataset.train.images.store is dataset.test.images.store
  numbers = np.concatenate([dataset.train.images.numbers, dataset.test.images.numbers])
  assert sorted(numbers) == sorted(whole.train.images.numbers)
  assert {*dataset.train.labels} == {*dataset.test.labels} == {0, 1, 2}
  differing = fingerprint.differences(fingerprint.parts(dataset), fingerprint.parts(whole))
  assert "training images: 8 there" in " ".join(differing)
  with pytest.raises(ConfigError, match="--noverify_data and --validation_fraction"):
    open_imagenet(root, validation_fraction=0.4, verify_data=False)


@pytest.mark.parametrize("writable", [True, False])
def test_labels_are_read_once(root, writable, monkeypatch, capsys):
  if not writable:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
  first = open_imagenet(root)
  assert "labels of train" in capsys.readouterr().err
  path = version_of(root) / "labels.npy"
  assert path.exists() == writable
  if writable:
    assert np.load(path).tolist() == [2, 0, 1, 0, 1, 2, 2, 0, 1, 0, 2]
  again = open_imagenet(root)
  assert capsys.readouterr().err == ""
  assert np.array_equal(again.train.labels, first.train.labels)
  assert fingerprint.parts(again) == fingerprint.parts(first)


def test_the_fingerprint_is_that_of_the_data_wherever_they_lie(root, tmp_path):
  here = fingerprint.parts(open_imagenet(root))
  moved = shutil.move(root, tmp_path / "moved")
  assert fingerprint.parts(open_imagenet(moved)) == here
  assert fingerprint.parts(open_imagenet(moved, class_order_seed=5)) != here


def test_what_was_noted_when_the_data_were_prepared_is_taken(root, decoded):
  read = contents_of(open_imagenet(root))
  assert set(read) == {"contents of training images", "contents of test images"}
  decoded.clear()
  path = version_of(root) / "prepare.json"
  for content in ("0a", "0b"):
    splits = {name: {"content": content} for name in ("train", "validation")}
    path.write_text(json.dumps({"differences": [], "splits": splits}))
    assert contents_of(open_imagenet(root)) == dict.fromkeys(read, content)
  path.write_text('{"differences": ["8 images instead of 9"]}')  # by an earlier version
  # The version directory may be given, and what was decoded then need not be now.
  dataset = open_imagenet(version_of(root), skip_bad_records=True, verify_data=False)
  assert dataset.skipped_records == {"train": 0, "test": 0}
  assert "8 images instead of 9" in dataset.notes[0]
  assert contents_of(dataset) == {}
  assert decoded == []
  path.write_text('{"differences": 5}')
  assert_refused(root, "prepare.json is damaged")


def test_batches_are_decoded_from_the_records(root):
  dataset = open_imagenet(root, image_size=72)
  batches = loader.TrainBatches(
    dataset=dataset,
    pool=Pool(np.arange(6), np.array([6, 7])),
    sampling=RATIO_PRESERVING,
    key=Key(0, 2, 0),
    batch_size_new=4,
    batch_size_memory=2,
    num_devices=2,
    num_steps=3,
  )
  made = list(loader.prefetched(batches, lambda batch: batch))
  assert [batch.inputs.shape for batch in made] == [(2, 3, 72, 72, 3)] * 3
  # As worker processes get them.
  again = cloudpickle.loads(cloudpickle.dumps(batches))
  for n, batch in enumerate(made):
    assert np.array_equal(batch.inputs, again[n].inputs)


# What can be wrong.


def assert_refused(root, *words, **values):
  with pytest.raises(DataError) as caught:
    open_imagenet(root, **values)
  message = str(caught.value)
  assert "\n" not in message
  for word in words:
    assert str(word) in message


def test_a_data_dir_of_other_data_sets(root):
  assert_refused(
    root, "has no cifar100", "imagenet2012/5.1.0", "prepare.py cifar100", dataset="cifar100"
  )
  assert_refused(version_of(root), "holds imagenet2012, not cifar100", dataset="cifar100")
  other = shutil.copytree(version_of(root), root / "imagenet" / "1.0.0")
  assert_refused(root, other, version_of(root), "give one of them as --data_dir")


@pytest.mark.parametrize("name", ["incomplete.ABC123_5.1.0", ".preparing_5.1.0"])
def test_what_is_not_finished_is_not_read(root, name):
  # TFDS describes a data set in its temporary directory before it is complete.
  temporary = version_of(root).rename(version_of(root).with_name(name))
  assert_refused(root, "has no imagenet")
  assert_refused(temporary, "has no imagenet")
  (temporary / "dataset_info.json").unlink()
  half = f"{temporary} is half prepared" if "preparing" in name else "no prepared data set"
  assert_refused(root, half, "prepare.py imagenet")


def test_a_damaged_description(root):
  info = version_of(root) / "dataset_info.json"
  whole = info.read_bytes()
  edit_info(root, fileFormat="tfrecord")
  assert_refused(root, "tfrecord", "--file_format=array_record")
  edit_info(root, fileFormat="array_record", noSuchField=1)  # from the future
  assert_refused(root, "is not a TFDS data set", "noSuchField")
  info.write_bytes(whole)
  edit_info(root, shard_lengths={"validation": ["0"]})
  assert_refused(root, "has no images in validation")
  info.write_bytes(whole)
  edit_info(root, shard_lengths={"train": ["4", "5"]})
  assert_refused(root, shard_of(root), "has 4 records", "says 5")
  info.write_bytes(whole)
  names = version_of(root) / "label.labels.txt"
  names.write_text("n0\nn1\n")
  assert_refused(root, f"{names} names 2 classes, and there are 3")
  features = version_of(root) / "features.json"
  features.write_text(
    features.read_text().replace('"numClasses": "3"', '"numClasses": "2"')
  )
  assert_refused(root, "labels from 0 to 2, and 2 classes")
  names.unlink()
  assert_refused(root, "label.labels.txt")


def test_a_truncated_or_missing_shard(root):
  path = shard_of(root)
  path.write_bytes(path.read_bytes()[:-2000])
  assert_refused(root, path, "prepare the data again")
  path.unlink()
  assert_refused(root, f"{path} is missing")


def test_labels_that_can_be_kept_nowhere(root, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(os, "access", lambda path, mode: False)
  (tmp_path / "file").touch()
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  assert_refused(root, "labels cannot be kept in", "XDG_CACHE_HOME")
  assert capsys.readouterr().err == ""  # said before they are read


def corrupt_record(root):
  """Damages record 1 of the last shard; its path."""
  open_imagenet(root)  # reads the labels
  path = shard_of(root)
  data = bytearray(path.read_bytes())
  place = data.index(jpeg((0, 1, 1))[2000:2060])  # of the scan, unlike any other
  data[place : place + 60] = bytes(60)
  path.write_bytes(data)
  return path


def test_a_corrupt_record_is_named_or_skipped(root):
  path = corrupt_record(root)
  assert_refused(root, f"cannot read image 1 of shard {path}", "prepare the data again")
  for _ in range(2):
    dataset = open_imagenet(root, skip_bad_records=True)
    assert dataset.skipped_records == {"train": 1, "test": 0}
    assert len(dataset.train.labels) == 7
    note = dataset.notes[-1]
    assert f"1 of 11 images are left out as bad: 1 of shard {path}: " in note
  dataset = open_imagenet(root, verify_data=False)
  # The first one of its class is in the other shard.
  second = np.flatnonzero(dataset.train.labels == dataset.class_names.index("n2"))[1]
  with pytest.raises(DataError, match=f"cannot read image 1 of shard {path}"):
    dataset.train.images.open(second).read()
  for name in labels.FILES:
    (version_of(root) / name).unlink()
  # Nor is its label made up.
  assert_refused(root, f"cannot read image 1 of shard {path}", verify_data=False)
  assert labels.load(version_of(root)) is None


def test_every_record_is_decoded_once(root, decoded):
  for _ in range(2):
    open_imagenet(root)
    assert len(decoded) == 11
  os.utime(shard_of(root), (1, 1))  # as if it were another one
  open_imagenet(root)
  assert len(decoded) == 11 + 4


def test_labels_of_other_records(root):
  open_imagenet(root)
  # As if two images in the middle of a shard had other labels by now: no size tells.
  saved = labels.load(version_of(root))
  swapped = {**saved, "train": saved["train"].copy()}
  swapped["train"][[1, 2]] = saved["train"][[2, 1]]
  labels.save(version_of(root), swapped)
  assert_refused(root, "labels.npy", "calls record 1 of shard", "delete")
  labels.save(version_of(root), saved)
  # Other records, as many of them.
  shutil.copy(shard_of(root, number=0), shard_of(root, number=1))
  assert_refused(root, "labels.npy", "calls record 0 of shard", "delete")
