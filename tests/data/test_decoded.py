"""Decoded images that are kept: the next start has the same, and reads none of them."""

import os

import numpy as np
import pytest
from folders import noise, open_folder, save

from ssil_jax.data import decoded, fingerprint
from ssil_jax.data.images import decode
from ssil_jax.data.resident import central_squares
from ssil_jax.errors import DataError


def open_small(root, **values):
  return open_folder(root, **{"image_size": 16, "num_states": 3, **values})


@pytest.fixture
def reads(monkeypatch):
  """The number of images decoded."""
  count, read = [], decode.EncodedImage.read
  monkeypatch.setattr(
    decode.EncodedImage, "read", lambda *args, **kw: (count.append(1), read(*args, **kw))[1]
  )
  return count


def files_in(cache_home):
  return sorted((cache_home / "ssil_jax" / "decoded").glob("*"))


def same(one, other):
  """Whether two data sets have the same images, labels, and counts."""
  assert fingerprint.parts(one) == fingerprint.parts(other)
  for ours, theirs in ((one.train, other.train), (one.test, other.test)):
    assert np.array_equal(ours.images, theirs.images)
    assert np.array_equal(ours.labels, theirs.labels)
  assert one.skipped_records == other.skipped_records
  assert one.notes == other.notes


def test_the_second_start_decodes_nothing_and_has_the_same(root, reads, cache_home):
  first = open_small(root)
  count = len(reads)
  assert count == 12
  same(open_small(root), first)
  assert len(reads) == count
  assert len(files_in(cache_home)) == 2  # train and test
  squares, _, _ = central_squares(first.train.files, 16)
  assert np.array_equal(first.train.images, squares)


@pytest.mark.parametrize("likely", [None, 12, 224])
def test_images_whose_size_no_flag_tells_are_decoded_once(root, reads, monkeypatch, likely):
  (root / "train/b/1.png").write_bytes(b"text")
  if likely:  # else it is what the headers tell
    monkeypatch.setattr(decoded, "likely_size", lambda images: likely)
  first = open_small(root, image_size=0, skip_bad_records=True)
  assert first.train.images.shape == (5, 8, 8, 3)
  # The bad one has no header. Where the likely size is another one, all are decoded again.
  assert len(reads) == (22 if likely else 11)
  for split in (first.train, first.test):
    squares, _, _ = central_squares(split.files, 8)
    assert np.array_equal(split.images, squares)
  del reads[:]
  same(open_small(root, image_size=0, skip_bad_records=True), first)
  assert not reads


def test_another_size_other_files_and_other_decoders_are_decoded_anew(
  root, reads, cache_home, monkeypatch
):
  open_small(root)
  assert open_small(root, image_size=8).train.images.shape == (6, 8, 8, 3)
  assert len(reads) == 24
  save(root / "train/a/0.png", noise(8, 8, seed=99))
  changed = open_small(root)
  assert len(reads) == 24 + 6  # the training images; the test images are as they were
  squares, _, _ = central_squares(changed.train.files, 16)
  assert np.array_equal(changed.train.images, squares)
  count = len(reads)
  monkeypatch.setattr(decoded.metadata, "version", lambda name: "99")
  same(open_small(root), changed)
  assert len(reads) == count + 12


def test_bad_images_are_left_out_and_counted_every_time(root, reads):
  (root / "train/b/1.png").write_bytes(b"text")
  (root / "test/c/0.png").unlink()
  (root / "test/c/0.png").symlink_to("nowhere")
  first = open_small(root, skip_bad_records=True)
  assert first.skipped_records == {"train": 1, "test": 1}
  count = len(reads)
  same(open_small(root, skip_bad_records=True), first)
  assert len(reads) == count
  with pytest.raises(DataError, match="cannot read 2 of 12 images"):
    open_small(root)


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_damaged_file_is_named_and_made_anew(root, reads, cache_home, damage):
  first = open_small(root)
  for path in files_in(cache_home):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes({"cut": content[:-1], "changed": content, "empty": b""}[damage])
  again = open_small(root)
  assert len(reads) == 24
  notes = [note for note in again.notes if "is damaged" in note]
  assert len(notes) == 2
  assert all(any(str(path) in note for path in files_in(cache_home)) for note in notes)
  same(again._replace(notes=first.notes), first)
  same(open_small(root), first)
  assert len(reads) == 24


def test_what_cannot_be_kept_is_said_once_and_the_run_goes_on(root, cache_home, reads):
  (cache_home / "ssil_jax").write_text("a file")
  dataset = open_small(root)
  assert len(reads) == 12
  (line,) = [note for note in dataset.notes if "the next run will decode" in note]
  assert "XDG_CACHE_HOME" in line


def test_a_full_disk_is_named(root, cache_home, monkeypatch):
  def full(path, *parts):
    raise OSError(28, os.strerror(28))

  monkeypatch.setattr(decoded, "write_bytes", full)
  (line,) = [note for note in open_small(root).notes if "the next run" in note]
  assert f"{cache_home / 'ssil_jax' / 'decoded'}: No space left on device" in line


def test_files_used_longest_ago_are_deleted_first(root, cache_home, monkeypatch):
  images = open_small(root).train.files
  for path in files_in(cache_home):
    path.unlink()

  def kept_after(size, now):
    """Which sizes are kept, by the bytes that their files have."""
    before = set(files_in(cache_home))
    decoded.kept_squares(images, size)
    for path in {*files_in(cache_home)} - before:
      names[size] = path
    os.utime(names[size], (now, now))
    return [size for size, path in sorted(names.items()) if path.exists()]

  names, most = {}, sum(4 + 6 * 8 + 6 * size * size * 3 for size in (9, 10))
  monkeypatch.setattr(decoded, "MOST_BYTES", most)
  assert kept_after(8, 1) == [8]
  assert kept_after(9, 2) == [8, 9]
  assert kept_after(8, 3) == [8, 9]  # used again, it is not the oldest
  assert kept_after(10, 4) == [8, 10]


def test_neither_the_newest_nor_what_another_run_writes_is_deleted(
  root, cache_home, monkeypatch
):
  open_small(root)
  (kept, *_) = files_in(cache_home)
  folder = kept.parent
  writing, left = folder / "other.tmp", folder / "left.tmp"
  for path in (writing, left):
    path.write_bytes(b"part")
  os.utime(left, (1, 1))
  (folder / "subfolder").mkdir()
  os.utime(kept, (2, 2))
  monkeypatch.setattr(decoded, "MOST_BYTES", 0)
  decoded._delete_oldest(folder, but=kept)
  assert sorted(folder.iterdir()) == sorted([kept, writing, folder / "subfolder"])


def test_images_without_stamps_or_of_too_many_bytes_are_not_kept(
  root, cache_home, monkeypatch
):
  images = open_small(root).train.files
  for path in files_in(cache_home):
    path.unlink()
  monkeypatch.setattr(decoded, "MOST_BYTES", 100)
  (note,) = decoded.kept_squares(images, 16).notes
  assert "they take more than" in note
  monkeypatch.setattr(decoded, "MOST_BYTES", 1 << 20)
  monkeypatch.setattr(type(images.store), "stamps", lambda self, n: np.zeros(len(n), "u8"))
  squares = decoded.kept_squares(images, 16)
  assert files_in(cache_home) == []
  assert squares.notes == ()
  assert np.array_equal(squares.pixels, central_squares(images, 16)[0])
