"""CIFAR-100 from its binary version."""

import gzip
import hashlib
import tarfile

import archives
import numpy as np
import pytest
import tensorflow_datasets as tfds
from archives import CIFAR_TEST, CIFAR_TRAIN, PARTIAL, report_of

from ssil_jax.data import builders
from ssil_jax.errors import DataError


@pytest.fixture
def folder(tmp_path):
  return archives.cifar(tmp_path / "archives")


def prepare(folder, options=PARTIAL):
  return archives.prepare("cifar100", folder, folder.parent / "data", options)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A builder; not to be changed."""
  return prepare(archives.cifar(tmp_path_factory.mktemp("prepared") / "archives"))


def test_records_and_labels(prepared):
  features = prepared.info.features
  assert features["label"].names == ["fine_07", "fine_30", "fine_99"]
  assert features["coarse_label"].names == [f"coarse_{i:02}" for i in range(20)]
  train, test = (archives.encoded(prepared, split) for split in ("train", "test"))
  # By class, then in the order of the file.
  assert [record["id"].decode() for record in train] == [
    f"train_{i:05}" for i in (1, 3, 6, 0, 4, 2, 5)
  ]
  assert [record["label"] for record in train] == [0, 0, 0, 1, 1, 2, 2]
  assert [record["coarse_label"] for record in train] == [1, 1, 1, 6, 6, 19, 19]
  assert [record["id"].decode() for record in test] == [f"test_{i:05}" for i in range(3)]
  assert [record["label"] for record in test] == [2, 0, 1]


def test_images_are_lossless(prepared):
  read = tfds.builder_from_directory(prepared.data_dir)
  for split, images in (("train", CIFAR_TRAIN), ("test", CIFAR_TEST)):
    for record in read.as_data_source(split):
      _, _, pixels = images[int(record["id"][-5:])]
      assert np.array_equal(record["image"], pixels.transpose(1, 2, 0))
    for record in archives.encoded(prepared, split):
      assert record["image"].startswith(b"\x89PNG")


def test_the_report_says_what_is_not_official(prepared):
  report = report_of(prepared)
  assert report["left_out"] == {
    "class has no training images": {"count": 1, "first": ["test_00003"]}
  }
  checksum, train, test = report["differences"]
  assert "has md5 " in checksum
  assert "fine_00 has 0 images in train instead of 500 (100 such classes)" in train
  assert "fine_00 has 0 images in test instead of 100 (100 such classes)" in test


def test_a_wrong_checksum(folder):
  md5 = hashlib.md5((folder / "cifar-100-binary.tar.gz").read_bytes()).hexdigest()
  message = f"has md5 {md5} instead of 03b5dce01913d631647c71ecec9e9cb8; --allow_partial"
  with pytest.raises(DataError, match=message):
    prepare(folder, builders.Options())


@pytest.mark.parametrize(
  ("member", "content", "reason"),
  [
    ("train", None, "train.bin is missing"),
    ("coarse_label_names", None, "coarse_label_names.txt is missing"),
    ("fine_label_names", b"a\nb\n", "has 2 names instead of 100"),
    ("train", bytes(3075), "multiple"),
    ("train", b"", "train.bin has no images"),
    ("test", b"", "test.bin has no images"),
    ("test", b"\0\x64" + bytes(3072), "fine labels up to 100"),
    ("train", b"\x14\0" + bytes(3072), "coarse labels up to 20"),
  ],
)
def test_a_damaged_member(folder, member, content, reason):
  archives.cifar(folder, **{member: content})
  with pytest.raises(DataError, match=f"cifar-100-binary.tar.gz is damaged .*{reason}"):
    prepare(folder)


def test_a_damaged_archive(folder):
  path = folder / "cifar-100-binary.tar.gz"
  content = path.read_bytes()
  for damaged in (content[:9000], content[:-5], b"text", gzip.compress(b"no tar" * 200)):
    path.write_bytes(damaged)
    for options in (PARTIAL, builders.Options()):  # the checksum says less
      with pytest.raises(DataError, match="cifar-100-binary.tar.gz is damaged .*again"):
        prepare(folder, options)
  path.write_bytes(content[:5000] + bytes(50) + content[5050:])
  with pytest.raises(DataError, match="cifar-100-binary.tar.gz is damaged"):
    prepare(folder)


@pytest.mark.parametrize(
  ("kind", "reason"), [(tarfile.DIRTYPE, "not a file"), (tarfile.SYMTYPE, "missing")]
)
def test_a_folder_or_link_in_the_place_of_a_member(folder, kind, reason):
  with tarfile.open(folder / "cifar-100-binary.tar.gz", "w:gz") as tar:
    info = tarfile.TarInfo("cifar-100-binary/coarse_label_names.txt")
    info.type, info.linkname = kind, "/etc/passwd"
    tar.addfile(info)
  with pytest.raises(DataError, match=f"is damaged .*coarse_label_names.txt is {reason}"):
    prepare(folder)


def test_classes_without_test_images_are_named(folder):
  test = b"".join(bytes([c, f]) + pixels.tobytes() for c, f, pixels in CIFAR_TEST[2:])
  archives.cifar(folder, test=test)
  line = report_of(prepare(folder))["differences"][-1]
  assert line == (
    "2 of 3 classes have no image in test, so that a run cannot be scored on them: "
    "fine_07, fine_99"
  )
