"""Labels kept beside the shards: as they were saved, or refused."""

import io
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


@pytest.fixture
def directory(tmp_path):
  """Two shards, of which only names and lengths matter, and the labels of both."""
  path = tmp_path / "1.0.0"
  path.mkdir()
  (path / "x-train.array_record-00000-of-00001").write_bytes(b"train")
  (path / "x-test.array_record-00000-of-00001").write_bytes(b"test")
  (path / "dataset_info.json").write_text("{}")
  labels.save(path, LABELS)
  return path


def assert_same(found):
  assert list(found) == list(LABELS)
  for split, expected in LABELS.items():
    assert found[split].dtype == np.int32
    assert found[split].tolist() == expected.tolist()


def assert_refused(directory, *fragments, cache=None):
  """In one line that names the array, and says how to get out."""
  with pytest.raises(DataError) as info:
    labels.load(directory, cache=cache)
  message = str(info.value)
  folder = cache or directory
  for fragment in (
    str(folder / "labels.npy"),
    f"delete labels.npy and labels.json in {folder}",
    *fragments,
  ):
    assert fragment in message
  assert "\n" not in message


def test_what_was_saved_is_loaded(directory):
  assert_same(labels.load(directory))


def test_the_array_is_plain_numpy(directory):
  joined = np.load(directory / "labels.npy")
  assert joined.tolist() == [2, 0, 1, 0, 1, 2, 70_000, 1, 0, 2]


def test_nothing_else_is_left(directory):
  assert sorted(path.name for path in directory.iterdir() if "array" not in path.name) == [
    "dataset_info.json",
    "labels.json",
    "labels.npy",
  ]


def test_lists_and_other_integers_may_be_saved(directory):
  labels.save(directory, {split: part.tolist() for split, part in LABELS.items()})
  assert_same(labels.load(directory))


def test_a_split_may_be_empty(directory):
  labels.save(directory, {"train": np.arange(3), "test": np.arange(0)})
  found = labels.load(directory)
  assert found["train"].tolist() == [0, 1, 2]
  assert found["test"].tolist() == []


def test_none_were_saved(tmp_path):
  assert labels.load(tmp_path) is None
  assert labels.load(tmp_path, cache=tmp_path / "missing") is None


def test_a_directory_may_be_moved(directory, tmp_path):
  assert_same(labels.load(directory.rename(tmp_path / "elsewhere")))


def test_other_files_beside_the_shards_do_not_matter(directory):
  (directory / "dataset_info.json").write_text('{"changed": true}')
  (directory / "notes.txt").write_text("new")
  assert_same(labels.load(directory))


def test_labels_may_lie_elsewhere(directory, tmp_path):
  for name in ("labels.npy", "labels.json"):
    (directory / name).unlink()
  cache = tmp_path / "a" / "cache"
  labels.save(directory, LABELS, cache=cache)
  assert sorted(path.name for path in cache.iterdir()) == ["labels.json", "labels.npy"]
  assert labels.load(directory) is None
  assert_same(labels.load(directory, cache=cache))
  (cache / "labels.npy").write_bytes(b"")
  assert_refused(directory, cache=cache)


def test_labels_elsewhere_are_of_these_shards(directory, tmp_path):
  labels.save(directory, LABELS, cache=tmp_path / "cache")
  (directory / "x-test.array_record-00000-of-00001").write_bytes(b"other")
  assert_refused(directory, "other shards", cache=tmp_path / "cache")


# Other shards.


def change_length(directory):
  (directory / "x-test.array_record-00000-of-00001").write_bytes(b"a longer one")
  return "x-test.array_record-00000-of-00001", 1


def remove(directory):
  (directory / "x-train.array_record-00000-of-00001").unlink()
  return "x-train.array_record-00000-of-00001", 1


def rename(directory):
  path = directory / "x-train.array_record-00000-of-00001"
  path.rename(directory / "x-train.array_record-00000-of-00002")
  return path.name, 2


def add(directory):
  (directory / "x-more.array_record-00000-of-00001").write_bytes(b"more")
  return "x-more.array_record-00000-of-00001", 1


@pytest.mark.parametrize("change", [change_length, remove, rename, add])
def test_labels_of_other_shards_are_refused(directory, change):
  first, count = change(directory)
  assert_refused(directory, f"other shards than those in {directory}", first, f"{count} in")


# Damage.


def test_an_origin_without_labels_is_refused(directory):
  (directory / "labels.npy").unlink()
  assert_refused(directory, "labels.npy")


def test_a_truncated_array_is_refused_wherever_it_ends(directory):
  path = directory / "labels.npy"
  content = path.read_bytes()
  for length in range(len(content)):
    path.write_bytes(content[:length])
    assert_refused(directory)
  path.write_bytes(content + b"\0")
  assert_refused(directory)


def test_an_array_with_a_wrong_bit_is_refused_wherever_it_is(directory):
  path = directory / "labels.npy"
  content = path.read_bytes()
  for place in range(len(content)):
    # Not every bit of every byte: one after another.
    damaged = bytearray(content)
    damaged[place] ^= 1 << place % 8
    path.write_bytes(damaged)
    assert_refused(directory)


def test_an_array_in_another_byte_order_is_refused(directory):
  path = directory / "labels.npy"
  path.write_bytes(path.read_bytes().replace(b"<i4", b">i4"))
  assert_refused(directory)


@pytest.mark.parametrize("other", [np.zeros(10, np.int32), np.zeros((2, 5)), np.array("a")])
def test_another_array_is_refused(directory, other):
  np.save(directory / "labels.npy", other)
  assert_refused(directory, "damaged or of another version")


def test_a_truncated_origin_is_refused_wherever_it_ends(directory):
  path = directory / "labels.json"
  content = path.read_bytes()
  for length in range(len(content)):
    path.write_bytes(content[:length])
    assert_refused(directory, "labels.json")


@pytest.mark.parametrize(
  "content", [b"", b"null", b"[]", b"3", b'"text"', b"{}", b"\xff\xfe", b"text"]
)
def test_an_origin_that_is_something_else_is_refused(directory, content):
  (directory / "labels.json").write_bytes(content)
  assert_refused(directory, "labels.json")


@pytest.mark.parametrize("key", ["splits", "shards", "crc32"])
@pytest.mark.parametrize("value", [None, [], 3, "text", [1, 2], {"train": "7"}, "missing"])
def test_an_origin_with_a_damaged_entry_is_refused(directory, key, value):
  path = directory / "labels.json"
  origin = json.loads(path.read_text())
  origin[key] = value
  if value == "missing":
    del origin[key]
  path.write_text(json.dumps(origin))
  assert_refused(directory)


@pytest.mark.parametrize("splits", [{"train": 7}, {"train": 7, "test": 4}, {}])
def test_splits_of_another_length_are_refused(directory, splits):
  path = directory / "labels.json"
  origin = json.loads(path.read_text())
  path.write_text(json.dumps({**origin, "splits": splits}))
  assert_refused(directory)


# Interrupted saving.


class Killed(BaseException):
  pass


def killed(*_):
  raise Killed


OTHER = {"train": np.zeros(7, np.int32), "test": np.zeros(3, np.int32)}


def test_labels_are_never_written_into_the_files_themselves(directory, tmp_path):
  names = ("labels.npy", "labels.json")
  before = {name: (directory / name).read_bytes() for name in names}
  for name in names:
    (tmp_path / name).hardlink_to(directory / name)
  labels.save(directory, OTHER)
  assert {name: (tmp_path / name).read_bytes() for name in names} == before
  assert labels.load(directory)["train"].tolist() == [0] * 7


def test_new_labels_without_their_origin_are_refused_not_taken(directory, monkeypatch):
  # The array was replaced, and the old labels.json does not vouch for it.
  monkeypatch.setattr(labels, "write_json", killed)
  with pytest.raises(Killed):
    labels.save(directory, OTHER)
  assert_refused(directory, "damaged or of another version")
  monkeypatch.undo()
  labels.save(directory, LABELS)
  assert_same(labels.load(directory))


def test_labels_that_were_not_written_to_the_end_are_none(directory, monkeypatch):
  for name in ("labels.npy", "labels.json"):
    (directory / name).unlink()
  monkeypatch.setattr(labels, "write_json", killed)
  with pytest.raises(Killed):
    labels.save(directory, LABELS)
  assert (directory / "labels.npy").exists()
  assert labels.load(directory) is None


class Executed:
  """Does something when it is unpickled."""

  def __reduce__(self):
    return pytest.fail, ("labels.npy was unpickled",)


def test_labels_are_never_unpickled(directory):
  file = io.BytesIO()
  np.save(file, np.array([Executed()] * 3, object), allow_pickle=True)
  (directory / "labels.npy").write_bytes(file.getvalue())
  path = directory / "labels.json"
  origin = json.loads(path.read_text())
  origin["crc32"] = zlib.crc32(file.getvalue())
  path.write_text(json.dumps(origin))
  assert_refused(directory)
