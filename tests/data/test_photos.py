"""Archives of photos: every byte comes back, and what is damaged is named."""

import json
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest
from folders import encode, folder_of, noise, open_folder
from stores import images_of

from ssil_jax.data import photos
from ssil_jax.data.dataset import Split
from ssil_jax.data.encoded import BadImage, EncodedImages
from ssil_jax.data.images import decode
from ssil_jax.errors import DataError

FILES = (
  encode(noise(9, 12, seed=0)),
  encode(noise(7, 5, seed=1), "PNG"),
  encode(noise(8, 8, seed=2), "WEBP"),
  encode(noise(30, 20, seed=3)),
)
LABELS = np.array([1, 0, 1, 2], np.int32)
NAMES = ("ape", "bat", "cat")


def encoded_split():
  return Split(images_of(*FILES), LABELS)


def archive_of(path, split=None, records=(3, 0, 2, 1), ranks=(0, 1, 0, 0), names=NAMES):
  split = encoded_split() if split is None else split
  photos.write_photos(path, split, np.int64(records), np.int32(ranks), names)
  return path


def test_bytes_labels_and_ranks_come_back_in_their_order(tmp_path):
  found = photos.open_photos(archive_of(tmp_path / "a.zip"))
  assert found.labels.tolist() == [2, 1, 1, 0]
  assert found.ranks.tolist() == [0, 1, 0, 0]
  assert found.labels.dtype == found.ranks.dtype == np.int32
  store = found.images.store
  assert [store.read(n) for n in range(4)] == [FILES[r] for r in (3, 0, 2, 1)]
  assert store.read(1, 4).startswith(FILES[0][:4])
  sizes = store.sizes(np.array([2, 0]))
  assert sizes.tolist() == [len(FILES[2]), len(FILES[3])]
  assert sizes.dtype == np.int64
  assert store.stamps(np.arange(4)).tolist() == [0] * 4
  assert found.images.size(1) == (12, 9)
  expected = decode.read_rgb(FILES[1])
  np.testing.assert_array_equal(found.images.open(3).read(), expected)


def test_any_program_can_unpack_it(tmp_path):
  path = archive_of(tmp_path / "a.zip")
  with zipfile.ZipFile(path) as file:
    assert file.testzip() is None
    assert file.namelist() == [
      "index.json",
      "00002 cat/00000.jpg",
      "00001 bat/00001.jpg",
      "00001 bat/00000.webp",
      "00000 ape/00000.png",
    ]
    index = json.loads(file.read("index.json"))
    assert index == {"labels": [2, 1, 1, 0], "ranks": [0, 1, 0, 0]}
  # The same photos make the same archive, whenever they are written.
  assert archive_of(tmp_path / "b.zip").read_bytes() == path.read_bytes()


def test_images_on_the_device_keep_their_files_or_every_pixel(tmp_path):
  pixels = np.stack([noise(8, 8, seed=(9, n)) for n in range(4)])
  plain = photos.open_photos(archive_of(tmp_path / "plain.zip", Split(pixels, LABELS)))
  for place, record in enumerate((3, 0, 2, 1)):
    assert plain.images.name(place).endswith(".png")
    np.testing.assert_array_equal(plain.images.open(place).read(), pixels[record])
  kept = Split(pixels, LABELS, files=images_of(*FILES))
  found = photos.open_photos(archive_of(tmp_path / "kept.zip", kept))
  assert [found.images.store.read(n) for n in range(4)] == [FILES[r] for r in (3, 0, 2, 1)]
  # Records of a part are the records of their files.
  part = kept.take(np.array([2, 0]))
  assert [part.encoded(0), part.encoded(1)] == [FILES[2], FILES[0]]


def test_a_folder_that_is_decoded_at_once_keeps_its_files(tmp_path):
  root = folder_of(tmp_path / "images", shape=(20, 30), suffix="jpg")
  split = open_folder(root, image_size=8).train
  assert split.on_device
  found = photos.open_photos(
    archive_of(tmp_path / "a.zip", split, records=range(6), ranks=[0, 1] * 3)
  )
  for record in range(6):
    name = split.files.name(record)
    with open(name, "rb") as file:
      assert found.images.store.read(record) == file.read()


@pytest.mark.parametrize(
  ("name", "shown"),
  [
    ("n" * 300, "n" * 50),
    ("../a/b\\c", ".._a_b_c"),
    ("кот 猫", "кот 猫"),
    ("\udcff\x1b[31m", "__[31m"),
    ('a:*?"<>|', "a_______"),
    ("", ""),
  ],
)
def test_class_names_of_any_kind(tmp_path, name, shown):
  path = archive_of(tmp_path / "a.zip", names=(name, *NAMES[1:]))
  found = photos.open_photos(path)
  assert found.images.store.read(3) == FILES[1]
  assert found.images.name(3) == f"{path}/00000 {shown}/00000.png"


def test_no_photos_are_an_archive_too(tmp_path):
  found = photos.open_photos(archive_of(tmp_path / "a.zip", records=[], ranks=[]))
  assert len(found.images) == len(found.labels) == len(found.ranks) == 0


def test_a_photo_that_is_gone_leaves_the_archive_that_there_was(tmp_path):
  path = archive_of(tmp_path / "a.zip")
  before = path.read_bytes()
  root = folder_of(tmp_path / "images")
  split = open_folder(root).train
  (root / "train" / "c" / "1.png").unlink()
  with pytest.raises(BadImage, match="c/1.png: No such file"):
    archive_of(path, split, records=range(6), ranks=[0, 1] * 3)
  assert path.read_bytes() == before
  assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "images"]


# Damage ----------------------------------------------------------------------------------


def test_a_flipped_byte_is_an_error_that_names_file_and_photo(tmp_path):
  path = archive_of(tmp_path / "a.zip")
  data = bytearray(path.read_bytes())
  place = data.index(FILES[1]) + len(FILES[1]) // 2
  data[place] ^= 1
  path.write_bytes(data)
  found = photos.open_photos(path)
  with pytest.raises(BadImage) as caught:
    found.images.open(3)
  assert f"{path}/00000 ape/00000.png" in str(caught.value)
  assert "CRC" in str(caught.value)
  assert found.images.store.read(2) == FILES[2]


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.98])
def test_an_archive_that_breaks_off_is_named(tmp_path, kept):
  path = archive_of(tmp_path / "a.zip")
  data = path.read_bytes()
  path.write_bytes(data[: int(kept * len(data)) if kept < 1 else kept])
  with pytest.raises(DataError, match=f"{path} cannot be read .*: put a good one back"):
    photos.open_photos(path)


@pytest.mark.parametrize(
  "index",
  [
    b"",
    b"{",
    b"[]",
    b"{}",
    b'{"labels": [2, 1, 1], "ranks": [0, 1, 0]}',
    b'{"labels": [2, 1, 1, 0], "ranks": [0, 1, 0]}',
    b'{"labels": [2, 1, 1, "x"], "ranks": [0, 1, 0, 0]}',
    b'{"labels": [2, 1, 1, 99999999999], "ranks": [0, 1, 0, 0]}',
    b'{"labels": {"a": 1}, "ranks": [0, 1, 0, 0]}',
    b'{"labels": [[2], [1], [1], [0]], "ranks": [0, 1, 0, 0]}',
    b'{"labels": [2, 1, 1, -1], "ranks": [0, 1, 0, 0]}',
    b"[" * 100_000,
    None,
  ],
)
def test_an_index_that_does_not_fit_is_refused(tmp_path, index):
  path = archive_of(tmp_path / "a.zip")
  with zipfile.ZipFile(path) as file:
    entries = {name: file.read(name) for name in file.namelist()[1:]}
  with zipfile.ZipFile(path, "w") as file:
    if index is not None:
      file.writestr("index.json", index)
    for name, content in entries.items():
      file.writestr(name, content)
  with pytest.raises(DataError, match=f"{path} cannot be read .*: put a good one back"):
    photos.open_photos(path)


def test_a_missing_archive_is_named(tmp_path):
  with pytest.raises(DataError, match=r"a\.zip cannot be read \(No such file"):
    photos.open_photos(tmp_path / "a.zip")


# For workers, and of several stores ------------------------------------------------------


def test_it_is_sent_to_other_processes(tmp_path):
  found = photos.open_photos(archive_of(tmp_path / "a.zip"))
  images = pickle.loads(pickle.dumps(found.images))
  assert images.store.read(0) == FILES[3]
  joined = photos.join(found.images, encoded_split().images)
  again = pickle.loads(pickle.dumps(joined))
  assert again.store.read(0) == FILES[3]
  assert again.store.read(4) == FILES[0]


def test_joined_images_are_those_of_the_parts(tmp_path):
  root = folder_of(tmp_path / "images")
  first = open_folder(root).train.files.take(np.array([4, 1]))
  second = photos.open_photos(archive_of(tmp_path / "a.zip")).images
  third = EncodedImages(second.store, np.array([2, 2, 0]))
  nothing = second.take(np.zeros(0, np.int64))
  joined = photos.join(first, nothing, second, third)
  parts = [(part, r) for part in (first, second, third) for r in range(len(part))]
  assert len(joined) == len(parts) == 9
  store, numbers = joined.store, joined.numbers
  sizes, stamps = store.sizes(numbers), store.stamps(numbers)
  assert (sizes.dtype, stamps.dtype) == (np.int64, np.uint64)
  assert stamps[:2].all()  # those of a folder
  for record, (part, own) in enumerate(parts):
    number = int(part.numbers[own])
    assert joined.name(record) == part.name(own)
    assert joined.open(record).data == part.open(own).data
    assert store.read(int(numbers[record]), 5)[:5] == part.open(own).data[:5]
    assert sizes[record] == part.store.sizes(np.array([number]))[0]
    assert stamps[record] == part.store.stamps(np.array([number]))[0]
  backwards = numbers[::-1]
  assert store.sizes(backwards).tolist() == sizes[::-1].tolist()
  assert store.stamps(backwards).tolist() == stamps[::-1].tolist()
  # Which images in which order is known of it.
  assert store.digest() != photos.join(second, first, third).store.digest()
  assert photos.join(second) is second
  assert photos.join(nothing, second) is second


def test_a_joined_store_promises_no_more_than_each_part_does(tmp_path):
  archive = photos.open_photos(archive_of(tmp_path / "a.zip")).images
  certain = images_of(*FILES, has_checksums=True)
  uncertain = images_of(*FILES)
  assert photos.join(archive, certain).store.has_checksums
  assert not photos.join(archive, uncertain).store.has_checksums
  assert not photos.join(archive, certain).store.was_verified


def with_size(path, name, size):
  """Has the directory of an archive say that an entry unpacks to so many bytes."""
  data = bytearray(path.read_bytes())
  place = data.rindex(name.encode()) - 46  # its last mention is in the directory
  assert data[place : place + 4] == b"PK\x01\x02"
  data[place + 24 : place + 28] = size.to_bytes(4, "little")
  path.write_bytes(data)
  return path


def test_what_would_unpack_to_more_than_is_allowed_is_not_unpacked(tmp_path):
  path = with_size(archive_of(tmp_path / "a.zip"), "index.json", 1 << 31)
  message = r"cannot be read \(index.json has 2147483648 bytes, more than the 268435456 all"
  with pytest.raises(DataError, match=message):
    photos.open_photos(path)
  name = "00000 ape/00000.png"
  found = photos.open_photos(with_size(archive_of(tmp_path / "b.zip"), name, 1 << 31))
  for num_bytes in (None, 10):
    with pytest.raises(BadImage, match="2147483648 bytes, more than the 1073741824 all"):
      found.images.store.read(3, num_bytes)
  assert found.images.store.read(2) == FILES[2]


def test_no_more_is_unpacked_than_an_archive_says(tmp_path):
  path, content = archive_of(tmp_path / "a.zip"), b"\0" * (1 << 25)
  with zipfile.ZipFile(path) as file:
    index = file.read("index.json")
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
    file.writestr("index.json", index)
    for name in ("0.png", "1.png", "2.png", "bomb.png"):
      file.writestr(name, content if name == "bomb.png" else b"")
  found = photos.open_photos(with_size(path, "bomb.png", 1000))
  tracemalloc.start()
  with pytest.raises(BadImage, match="CRC"):
    found.images.store.read(3)
  _, most = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert most < 1 << 22
