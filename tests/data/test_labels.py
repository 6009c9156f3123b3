"""Labels kept beside the shards: as they were saved, or refused."""

import json
import zlib

import numpy as np
import pytest

from ssil_jax.data.sources import labels
from ssil_jax.errors import DataError

LABELS = {
  "train": np.array([2, 0, 1, 0, 1, 2, 70_000], np.int32),
  "test": np.array([1, 0, 2], np.int32),
}

TRAIN_SHARD, TEST_SHARD, RENAMED = (
  f"x-{name}.array_record-00000-of-00001" for name in ("train", "test", "more")
)


@pytest.fixture
def directory(tmp_path):
  """Two shards, of which only names and lengths matter, and the labels of both."""
  path = tmp_path / "1.0.0"
  path.mkdir()
  (path / TRAIN_SHARD).write_bytes(b"train")
  (path / TEST_SHARD).write_bytes(b"test")
  (path / "dataset_info.json").write_text("{}")
  labels.save(path, LABELS)
  return path


def assert_same(found):
  assert list(found) == list(LABELS)
  for split, expected in LABELS.items():
    assert found[split].dtype == np.int32
    assert found[split].tolist() == expected.tolist()


def assert_refused(directory, *fragments, folder=None):
  """In one line that names the array, and says how to get out."""
  with pytest.raises(DataError) as info:
    labels.load(directory, folder := folder or directory)
  message = str(info.value)
  remedy = f"delete labels.npy and labels.json in {folder}"
  for fragment in (str(folder / "labels.npy"), remedy, *fragments):
    assert fragment in message
  assert "\n" not in message


def test_what_was_saved_is_loaded_wherever_the_directory_lies(directory, tmp_path):
  assert_same(labels.load(directory))
  assert np.load(directory / "labels.npy").tolist() == [2, 0, 1, 0, 1, 2, 70_000, 1, 0, 2]
  (directory / "dataset_info.json").write_text('{"changed": true}')
  moved = directory.rename(tmp_path / "elsewhere")
  assert_same(labels.load(moved))
  assert sorted(path.name for path in moved.iterdir() if "array" not in path.name) == [
    "dataset_info.json",
    "labels.json",
    "labels.npy",
  ]
  labels.save(moved, {"train": np.arange(3), "test": np.arange(0)})
  found = labels.load(moved)
  assert found["train"].tolist() == [0, 1, 2]
  assert found["test"].tolist() == []


def test_labels_may_lie_elsewhere(directory, tmp_path):
  for name in labels.FILES:
    (directory / name).unlink()
  cache = tmp_path / "cache"
  cache.mkdir()
  labels.save(directory, LABELS, cache)
  assert sorted(path.name for path in cache.iterdir()) == ["labels.json", "labels.npy"]
  assert labels.load(directory) is None
  assert labels.load(directory, tmp_path / "missing") is None
  assert_same(labels.load(directory, cache))
  (directory / TEST_SHARD).write_bytes(b"other")
  assert_refused(directory, "other shards", folder=cache)


# What is refused.

CHANGES = {  # the first shard that differs, how many do, and the change
  "longer": (TEST_SHARD, 1, lambda folder: (folder / TEST_SHARD).write_bytes(b"longer")),
  "gone": (TRAIN_SHARD, 1, lambda folder: (folder / TRAIN_SHARD).unlink()),
  "renamed": (
    RENAMED,
    2,
    lambda folder: (folder / TRAIN_SHARD).rename(folder / RENAMED),
  ),
  "added": (RENAMED, 1, lambda folder: (folder / RENAMED).write_bytes(b"more")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_labels_of_other_shards_are_refused(directory, change):
  first, count, make = CHANGES[change]
  make(directory)
  assert_refused(directory, f"other shards than those in {directory}", first, f"{count} in")


@pytest.mark.parametrize("name", labels.FILES)
def test_a_truncated_file_is_refused_wherever_it_ends(directory, name):
  path = directory / name
  content = path.read_bytes()
  for length in [*range(0, len(content), 7), len(content) - 1]:
    path.write_bytes(content[:length])
    assert_refused(directory, name)
  if name == "labels.npy":
    path.unlink()
    assert_refused(directory)
    for place in range(0, len(content), 7):
      path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
      assert_refused(directory, "damaged or of another version")


def edit_origin(directory, **values):
  path = directory / "labels.json"
  path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


class Executed:
  """Does something when it is unpickled."""

  def __reduce__(self):
    return pytest.fail, ("labels.npy was unpickled",)


OTHER_ARRAYS = [
  np.zeros((2, 5)),
  np.array("a"),
  np.zeros(10, ">i4"),
  np.array([Executed()] * 10, object),
]


@pytest.mark.parametrize("other", OTHER_ARRAYS, ids=["shape", "text", "order", "objects"])
def test_another_array_is_refused(directory, other):
  np.save(directory / "labels.npy", other, allow_pickle=True)
  assert_refused(directory, "damaged or of another version")
  content = (directory / "labels.npy").read_bytes()
  edit_origin(directory, crc32=zlib.crc32(content))
  assert_refused(directory)


def test_an_origin_that_is_something_else_is_refused(directory):
  path = directory / "labels.json"
  origin = path.read_bytes()
  for content in (b"null", b"[]", b"3", b'"text"', b"{}", b"\xff\xfe"):
    path.write_bytes(content)
    assert_refused(directory, "labels.json")
  for key in ("splits", "shards", "crc32"):
    for value in (None, [], 3, "text", [1, 2], {"train": 7}, {}):
      path.write_bytes(origin)
      edit_origin(directory, **{key: value})
      assert_refused(directory)


# Interrupted saving.


def test_new_labels_without_their_origin_are_refused_not_taken(directory, tmp_path):
  before = {name: (directory / name).read_bytes() for name in labels.FILES}
  for name in labels.FILES:
    (tmp_path / name).hardlink_to(directory / name)
  labels.save(directory, {"train": np.zeros(7, np.int32), "test": np.zeros(3, np.int32)})
  assert labels.load(directory)["train"].tolist() == [0] * 7
  # Not written into the files themselves.
  assert {name: (tmp_path / name).read_bytes() for name in labels.FILES} == before
  # As a kill between the two writes leaves them: labels.json vouches for other ones.
  (directory / "labels.json").write_bytes(before["labels.json"])
  assert_refused(directory, "damaged or of another version")
  (directory / "labels.json").unlink()
  assert labels.load(directory) is None
