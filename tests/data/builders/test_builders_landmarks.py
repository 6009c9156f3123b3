"""Google Landmarks v2 from train.csv and its tars."""

import json
import pathlib
import tarfile
from unittest import mock

import archives
import pytest
from archives import PARTIAL, report_of

from ssil_jax.data import builders
from ssil_jax.data.builders import landmarks
from ssil_jax.errors import DataError

# landmark id -> images
COUNTS = {500: 12, 7: 14, 40: 11}
# What is left of each in the order of image ids, after ten were held out for testing.
TRAINING = {7: [3, 4, 10, 13], 40: [10], 500: [0, 8]}
NAME = "landmarks_v2/10k"  # ten test images a class


@pytest.fixture
def folder(tmp_path):
  return tmp_path / "archives"


def prepare(folder, options=PARTIAL):
  return archives.prepare(NAME, folder, folder.parent / "data", options)


def ids_of(builder, split):
  return [record["id"].decode() for record in archives.encoded(builder, split)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A builder of COUNTS; not to be changed."""
  folder = tmp_path_factory.mktemp("prepared") / "archives"
  archives.landmarks(folder, COUNTS)
  return prepare(folder)


def test_records_and_labels(prepared):
  folder = pathlib.Path(prepared.data_dir).parents[3] / "archives"
  assert prepared.data_dir == str(folder.parent / "data" / "landmarks_v2" / "10k" / "1.0.0")
  metadata = folder.parent / "data" / "landmarks_v2" / ".config" / "metadata.json"
  assert json.loads(metadata.read_text()) == {"default_config_name": "1k"}
  assert prepared.info.features["label"].names == ["7", "40", "500"]
  tars = []
  for path in sorted(folder.glob("*.tar")):
    with tarfile.open(path) as tar:
      tars += [pathlib.PurePosixPath(name).stem for name in tar.getnames()]
  ids, everything = archives.landmark_ids(COUNTS), []
  for split, count in (("train", 4 + 1 + 2), ("test", 30)):
    records = archives.encoded(prepared, split)
    assert prepared.info.splits[split].num_examples == len(records) == count
    places = []
    for record in records:
      name = record["id"].decode()
      assert record["landmark_id"] == ids[name] == (7, 40, 500)[record["label"]]
      assert record["image"] == archives.landmark_image(name)
      places.append((record["label"], tars.index(name)))
      everything.append(name)
    assert places == sorted(places)
  assert sorted(everything) == sorted(ids)


def test_the_test_images_are_always_the_same(prepared):
  kept = set(ids_of(prepared, "train"))
  for landmark, places in TRAINING.items():
    ids = sorted(n for n, c in archives.landmark_ids(COUNTS).items() if c == landmark)
    assert [place for place, name in enumerate(ids) if name in kept] == places


def test_the_test_images_do_not_depend_on_what_is_there(prepared, folder):
  train, test = (set(ids_of(prepared, split)) for split in ("train", "test"))
  missing = {min(train), min(test)}
  archives.landmarks(folder, COUNTS, left_out=missing, num_tars=2, prefix="")
  builder = prepare(folder)
  assert set(ids_of(builder, "test")) == test - missing
  assert set(ids_of(builder, "train")) == train - missing


def test_the_landmarks_with_most_images_are_taken(folder, monkeypatch):
  archives.landmarks(folder, {9: 12, 3: 13, 8: 12, 5: 11, 6: 12})
  assert landmarks.CHOICES == {"1k": (1000, 50), "10k": (10_000, 10)}
  monkeypatch.setitem(landmarks.CHOICES, "10k", (3, 10))
  builder = prepare(folder)
  assert builder.info.features["label"].names == ["3", "6", "8"]  # 9 has as many as 8
  assert report_of(builder)["left_out"] == {}


@pytest.mark.parametrize(("place", "prefix"), [("", "train/"), ("train", ""), ("", "./")])
def test_tars_or_unpacked_folders(prepared, folder, place, prefix):
  archives.landmarks(folder, COUNTS, prefix=prefix)
  packed = prepare(folder)
  (folder / place).mkdir(exist_ok=True)
  for path in sorted(folder.glob("*.tar")):
    with tarfile.open(path) as tar:
      for member in tar:
        member.name = member.name.removeprefix(prefix)
        tar.extract(member, folder / place, filter="data")
    path.unlink()
  (folder / place / "0" / "._x.jpg").write_text("of macOS")
  unpacked = archives.prepare(NAME, folder, folder.parent / "unpacked")
  for split in ("train", "test"):
    assert archives.encoded(packed, split) == archives.encoded(prepared, split)
    expected, found = (
      {(record["label"], record["id"]): record["image"] for record in records}
      for records in (archives.encoded(packed, split), archives.encoded(unpacked, split))
    )
    assert found == expected
    assert list(found) == sorted(found)  # of classes, then of names
  total = sum(len(archives.landmark_image(name)) for name in archives.landmark_ids(COUNTS))
  assert {"name": f"{place or '.'}/", "bytes": total} in report_of(unpacked)["archives"]


def test_images_that_are_there_twice_count_once(folder):
  archives.landmarks(folder, COUNTS)
  (folder / "train").mkdir()
  with tarfile.open(folder / "images_000.tar") as tar:
    members = tar.getmembers()
    tar.extractall(folder, filter="data")
  with tarfile.open(folder / "images_000.tar", "a") as tar:
    tar.add(folder / members[0].name, members[0].name)
  builder = prepare(folder)
  assert report_of(builder)["left_out"]["there already"]["count"] == len(members) + 1
  assert sum(split.num_examples for split in builder.info.splits.values()) == 37


def test_a_partial_set_says_what_it_lacks(folder):
  names = sorted(archives.landmark_ids(COUNTS))
  archives.landmarks(folder, COUNTS, left_out=names[5:7], extra=["f" * 16, "e" * 16])
  report = report_of(prepare(folder))
  assert report["left_out"] == {
    "not in the archives": {"count": 2, "first": names[5:7]},
    "not in train.csv": {"count": 2, "first": ["e" * 16, "f" * 16]},
  }
  differences = "\n".join(report["differences"])
  assert "lists 37 images of 3 landmarks instead of 4,132,914 of 203,094" in differences
  assert "has 3 landmarks, fewer than the 10,000 of landmarks_v2/10k" in differences
  assert "2 of the 37 images that train.csv lists for the" in differences
  assert f"in no archive, first {names[5]}" in differences
  assert "2 images of the archives are not in" in differences


# Bad input.


def test_a_class_without_training_images(folder):
  archives.landmarks(folder, COUNTS | {3: 10})
  with pytest.raises(DataError, match=r"landmark 3 \(1 in all\) keeps no training image"):
    prepare(folder)


def test_missing_archives(prepared, folder):
  archives.landmarks(folder, COUNTS, left_out=ids_of(prepared, "test"))
  with pytest.raises(DataError, match=f"none of the test images is in .* {folder}"):
    prepare(folder)
  for path in folder.glob("*.tar"):
    path.unlink()
  with pytest.raises(DataError, match=f"{folder} has no images_.*tar, nor images"):
    prepare(folder)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("", "is empty"),
    ("id,url,landmark_id\n", "lists no images"),
    ("id,url\na,b\n", "has no column landmark_id, only id, url"),
    ("name,url,landmark_id\na,b,1\n", "has no column id"),
    ("id,url,landmark_id\na,b\n", "is damaged .invalid column index 2 at row 1 "),
    ("id,url,landmark_id\na,b,x\n", "is damaged .*'x' to int64 at row 0, column 3"),
    ('id,url,landmark_id\na,"b\nb",1\n\nb,b,x\n', "is damaged .*'x' to int64 at row 1"),
    ("id,url,landmark_id\na,b,1\nb,b,-1\n", "is damaged .-1 is not a landmark id"),
    (f"id,url,landmark_id\na,b,{2**32}\n", "is damaged .4294967296 is not a landmark id"),
    ("\ufeff", "has no column id, only an empty line"),
    ("\n", "has no column id, only an empty line"),
    ("id,url,landmark_id\n,b,1\n", "is damaged .b'' is not an image id"),
    ("id,url,landmark_id\n0123456789abcdef0,b,1\n", "is damaged .*def0' is not an image"),
    ("id,url,landmark_id\nä,b,1\n", "is damaged .*is not an image id"),
    ("id,url,landmark_id\n中,b,1\n", "is damaged .could not convert string"),
    ("id,url,landmark_id\na,b,1\nc,b,2\na,b,1\n", "lists a twice"),
    (f"id,url,landmark_id\na,b,{10**30}\n", "is damaged"),
    ('id,url,landmark_id\na,"b,1\nc,d,2\n', "is damaged"),
  ],
)
def test_a_bad_csv(folder, content, message):
  archives.landmarks(folder, COUNTS)
  (folder / "train.csv").write_text(content)
  with pytest.raises(DataError, match=f"{folder / 'train.csv'} {message}"):
    prepare(folder)


def test_a_csv_that_other_programs_saved(prepared, folder):
  archives.landmarks(folder, COUNTS)
  content = (folder / "train.csv").read_text()
  (folder / "train.csv").write_text(f"\ufeff{content}\n\n", encoding="utf-8")
  other = prepare(folder)
  for split in ("train", "test"):
    assert archives.encoded(prepared, split) == archives.encoded(other, split)


def test_what_passes_for_official(folder, monkeypatch):
  archives.landmarks(folder, COUNTS)
  with pytest.raises(DataError, match="37 images of 3 landmarks instead of 4,132,914"):
    prepare(folder, builders.Options())
  monkeypatch.setattr(landmarks, "_NUM_IMAGES", 37)
  monkeypatch.setattr(landmarks, "_NUM_LANDMARKS", 3)
  monkeypatch.setitem(landmarks.CHOICES, "10k", (3, 10))
  assert report_of(prepare(folder, builders.Options()))["differences"] == []
  archives.landmarks(folder, COUNTS, extra=["0123456789abcdef"])
  with pytest.raises(DataError, match="1 images of the .* first 0123456789abcdef; --allow"):
    archives.prepare(NAME, folder, folder.parent / "other", builders.Options())


def test_ctrl_c_is_heard_between_unpacked_folders(folder):
  archives.landmarks(folder, COUNTS, num_tars=0)
  for n in range(50):
    (folder / "0" / f"{n:02}").mkdir(parents=True)
  check = mock.Mock(side_effect=[*[None] * 40, KeyboardInterrupt])
  builder = builders.make_builder(NAME, folder.parent / "data")
  with pytest.raises(KeyboardInterrupt):
    builder.prepare(folder, PARTIAL, archives.QUIET, check_interrupt=check)
