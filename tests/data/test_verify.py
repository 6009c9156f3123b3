"""Bad images: each of them named before training, or left out and counted."""

import io
import os
import pathlib
import shutil
import struct
import zlib

import numpy as np
import pytest
from folders import encode, noise, open_folder, photo, save
from PIL import PngImagePlugin

from ssil_jax.data import fingerprint, loader, verify
from ssil_jax.data.encoded import BadImage
from ssil_jax.data.images import decode, jpeg
from ssil_jax.data.sources import folder
from ssil_jax.errors import ConfigError, DataError

CLASSES = ("a", "b", "c")
EACH = 4  # images of a class and split
TOTAL = 2 * len(CLASSES) * EACH


@pytest.fixture
def large(tmp_path):
  """Images of 70 x 80 pixels, which are streamed."""
  root = tmp_path / "large"
  for split in ("train", "test"):
    for c, name in enumerate(CLASSES):
      for i in range(EACH):
        pixels = photo(70, 80, seed=(split == "test", c, i))
        save(root / split / name / f"{i}.jpg", pixels)
  return root


@pytest.fixture
def decoded(monkeypatch):
  """The images that are decoded whole, as bytes."""
  images, read_rgb = [], decode.read_rgb

  def read(data, **options):
    images.append(data)
    return read_rgb(data, **options)

  monkeypatch.setattr(decode, "read_rgb", read)
  return images


def open_large(root, **values):
  return open_folder(root, **{"image_size": 72, "num_states": 3, **values})


def open_small(root, **values):
  """As images that are decoded on opening."""
  return open_folder(root, **{"image_size": 16, "num_states": 3, **values})


def refusal(open_it, *args, **values):
  with pytest.raises(DataError) as caught:
    open_it(*args, **values)
  assert "\n" not in str(caught.value)
  return str(caught.value)


# What is bad.


def chunk(name, data):
  crc = zlib.crc32(name + data)
  return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)


def zeros_png(side):
  """A real PNG of black pixels, a thousandth of their size."""
  packer = zlib.compressobj(1)
  row = bytes(1 + 3 * side)
  rows = b"".join(packer.compress(row) for _ in range(200)) + packer.flush()
  header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
  chunks = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
  return b"\x89PNG\r\n\x1a\n" + chunks


def huge_jpeg():
  data = bytearray(encode(noise(8, 8)))
  frame = jpeg.read_header(bytes(data)).frame_start
  struct.pack_into(">HH", data, frame + 5, 60_000, 60_000)
  return bytes(data)


def huge_webp():
  data = bytearray(encode(noise(8, 8), "WEBP", lossless=True, exif=b"a"))
  data[24:30] = (12_000 - 1).to_bytes(3, "little") * 2
  return bytes(data)


def text_bomb():
  info = PngImagePlugin.PngInfo()
  info.add_text("a", "b" * (2 * PngImagePlugin.MAX_TEXT_CHUNK), zip=True)
  return encode(noise(8, 8), "PNG", pnginfo=info)


def corrupt_jpeg():
  data = encode(noise(70, 80))
  place = (jpeg.read_header(data).scan_start + len(data)) // 2
  return data[:place] + b"\xff\x00" * 4 + data[place + 8 :]


NOT_A_FILE = "it is a folder, pipe or device, and not a file"
CONTENTS = {
  "zero bytes": (b"", "it is empty"),
  "text": (b"not an image\n", "not a JPEG, PNG or WebP image"),
  "html": (b"<!DOCTYPE html><html></html>", "not a JPEG, PNG or WebP image"),
  "GIF": (encode(noise(8, 8), "GIF"), "not a JPEG, PNG or WebP image"),
  "JPEG without pixels": (encode(noise(70, 80))[:300], "breaks off in its header"),
  "truncated JPEG": (encode(noise(70, 80))[:-200], "Premature end of JPEG file"),
  "JPEG without end": (encode(noise(70, 80))[:-2], "Premature end of JPEG file"),
  "corrupt JPEG": (corrupt_jpeg(), "Corrupt JPEG data"),
  "truncated PNG": (encode(noise(70, 80), "PNG")[:-500], "image file is truncated"),
  "PNG header": (
    encode(noise(70, 80), "PNG")[:20],
    "a PNG image that is truncated or corrupt",
  ),
  "truncated WebP": (
    encode(noise(70, 80), "WEBP")[:-100],
    "a WebP image that is truncated or corrupt",
  ),
  "PNG bomb": (zeros_png(30_000), "30000x30000 pixels, more than the 100000000 allowed"),
  "JPEG bomb": (huge_jpeg(), "60000x60000 pixels, more than the 100000000 allowed"),
  "WebP bomb": (huge_webp(), ""),
  "text bomb": (
    text_bomb(),
    "a PNG image that is truncated or corrupt (Decompressed data too",
  ),
}


@pytest.mark.parametrize("open_it", [open_large, open_small])
@pytest.mark.parametrize("kind", CONTENTS)
def test_a_bad_image_is_named(large, open_it, kind):
  content, reason = CONTENTS[kind]
  path = large / "train" / "b" / "1.jpg"
  path.write_bytes(content)
  message = refusal(open_it, large)
  assert message.startswith(f"cannot read image {path}: ")
  assert reason in message
  assert "mend or remove it, or leave it out with --skip_bad_records" in message
  dataset = open_it(large, skip_bad_records=True)
  assert dataset.skipped_records == {"train": 1, "test": 0}
  assert len(dataset.train.labels) == TOTAL // 2 - 1


def make_endless(path):
  path.symlink_to("/dev/zero")


def make_enormous(path):
  with open(path, "wb") as file:
    file.truncate(folder.MAX_BYTES + 1)


def make_unreadable(path):
  path.write_bytes(encode(noise(70, 80)))
  path.chmod(0)


FILES = {
  "folder": (os.mkdir, NOT_A_FILE),
  "named pipe": (os.mkfifo, NOT_A_FILE),
  "device": (make_endless, NOT_A_FILE),
  "broken link": (lambda path: path.symlink_to("nowhere"), "No such file or directory"),
  "link to itself": (lambda path: path.symlink_to(path), "Too many levels of symbolic"),
  "enormous": (make_enormous, "1073741825 bytes, more than the 1073741824 allowed"),
  "unreadable": pytest.param(
    make_unreadable,
    "Permission denied",
    marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything"),
  ),
}


@pytest.mark.parametrize("open_it", [open_large, open_small])
@pytest.mark.parametrize(("make", "reason"), FILES.values(), ids=FILES)
def test_what_is_no_file_is_named(large, open_it, make, reason):
  path = large / "test" / "c" / "9.jpg"
  make(path)
  message = refusal(open_it, large)
  assert message.startswith(f"cannot read image {path}: {reason}") or reason in message
  for _ in range(2):
    dataset = open_it(large, skip_bad_records=True)
    assert dataset.skipped_records == {"train": 0, "test": 1}
    assert len(dataset.test.labels) == TOTAL // 2


# What is said.


def spoil(root, *places):
  for place in places:
    (root / place).write_bytes(b"")


@pytest.mark.parametrize("open_it", [open_large, open_small])
def test_all_bad_images_are_counted(large, open_it):
  spoil(large, "train/c/0.jpg", "test/a/2.jpg", "train/a/3.jpg")
  message = refusal(open_it, large)
  named = [
    f"{large / place}: it is empty"
    for place in ("train/a/3.jpg", "train/c/0.jpg", "test/a/2.jpg")
  ]
  assert message == (
    f"cannot read 3 of {TOTAL} images (mend or remove them, or leave them out with "
    f"--skip_bad_records): {'; '.join(named)}"
  )


@pytest.mark.parametrize("open_it", [open_large, open_small])
@pytest.mark.parametrize("skip", [False, True])
def test_many_bad_images_are_listed_in_a_file(large, open_it, skip, cache_home):
  places = [
    f"{split}/{c}/{i}.jpg" for split in ("train", "test") for c in "ab" for i in "02"
  ]
  spoil(large, *places)
  if skip:
    *_, message = open_it(large, skip_bad_records=True).notes
  else:
    message = refusal(open_it, large)
  (path,) = cache_home.glob("ssil_jax/*/bad_images.txt")
  assert message.endswith(f"; and 3 more, all in {path}")
  lines = path.read_text().splitlines()
  assert lines == [f"{large / place}: it is empty" for place in places]
  for line in lines[:5]:
    assert line in message
  assert lines[5] not in message


def test_more_bad_images_than_can_be_listed(large, tmp_path, monkeypatch):
  (tmp_path / "file").touch()
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  spoil(large, *(f"train/a/{i}.jpg" for i in range(4)), "train/b/0.jpg", "train/b/1.jpg")
  assert refusal(open_large, large).endswith("; and 1 more")


def test_what_is_left_out_is_said(large):
  spoil(large, "train/b/1.jpg")
  _, note = open_large(large, skip_bad_records=True).notes
  path = large / "train" / "b" / "1.jpg"
  assert note == f"1 of {TOTAL} images are left out as bad: {path}: it is empty"


def test_a_long_pass_shows_how_far_it_is(large, capsys, monkeypatch):
  monkeypatch.setattr(verify, "_SHOWN", TOTAL + 1)
  open_large(large, class_order_seed=1, num_classes=1, num_states=1)
  assert capsys.readouterr() == ("", "")
  monkeypatch.setattr(verify, "_SHOWN", TOTAL - EACH)
  shutil.rmtree(os.environ["XDG_CACHE_HOME"])
  open_large(large)
  out, err = capsys.readouterr()
  assert out == ""
  assert f"decoding every image, once: {TOTAL} of {TOTAL} images" in err
  open_large(large)
  assert capsys.readouterr() == ("", "")


# What is left out.


@pytest.mark.parametrize("open_it", [open_large, open_small])
def test_bad_images_are_left_out_before_anything_sees_them(large, open_it):
  whole = open_it(large)
  assert whole.skipped_records == {"train": 0, "test": 0}
  assert "left out" not in "".join(whole.notes)
  spoil(large, "train/a/0.jpg", "train/b/2.jpg", "train/b/3.jpg", "test/c/1.jpg")
  dataset = open_it(large, skip_bad_records=True)
  assert dataset.skipped_records == {"train": 3, "test": 1}
  assert dataset.class_names == whole.class_names
  kept = np.delete(np.arange(TOTAL // 2), [0, 6, 7])
  assert np.array_equal(dataset.train.labels, whole.train.labels[kept])
  assert np.array_equal(dataset.test.labels, np.delete(whole.test.labels, 9))
  assert fingerprint.parts(dataset) != fingerprint.parts(whole)
  for record, same in enumerate(kept):
    if dataset.train.on_device:
      assert np.array_equal(dataset.train.images[record], whole.train.images[same])
    else:
      assert dataset.train.images.name(record) == whole.train.images.name(same)
  again = open_it(large, skip_bad_records=True)
  assert fingerprint.parts(again) == fingerprint.parts(dataset)


@pytest.mark.parametrize("open_it", [open_large, open_small])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_must_keep_images(large, open_it, split):
  spoil(large, "train/a/0.jpg", *(f"{split}/b/{i}.jpg" for i in range(EACH)))
  assert refusal(open_it, large, skip_bad_records=True) == (
    f"--skip_bad_records leaves class b (1 in all) without images in {split}: none of its "
    f"{EACH} can be read; mend them, or remove the class"
  )


@pytest.mark.parametrize("open_it", [open_large, open_small])
def test_bad_images_of_other_classes_are_not_looked_at(large, open_it):
  assert open_it(large).class_names == ("c", "b", "a")
  spoil(large, "train/a/1.jpg", "test/a/1.jpg")
  dataset = open_it(large, num_classes=2, num_states=2)
  assert dataset.skipped_records == {"train": 0, "test": 0}


def test_bad_images_have_no_say_in_the_size(tmp_path):
  for split in ("train", "test"):
    for i in range(3):
      save(tmp_path / split / "x" / f"{i}.png", noise(20, 20, seed=i))
  path = tmp_path / "train" / "x" / "0.png"
  path.write_bytes(encode(noise(300, 300), "PNG")[:-100])
  assert refusal(open_folder, tmp_path).startswith(f"cannot read image {path}: image file")
  dataset = open_folder(tmp_path, skip_bad_records=True)
  assert dataset.image_size == 20
  assert dataset.train.images.shape == (2, 20, 20, 3)


# When nobody looks.


def test_without_verification_images_are_bad_when_they_are_met(large, decoded):
  path = large / "train" / "a" / "1.jpg"
  path.write_bytes(path.read_bytes()[:-100])
  dataset = open_large(large, verify_data=False)
  assert decoded == []
  with pytest.raises(DataError, match=f"cannot read image {path}: Premature end"):
    dataset.train.images.decode(1, decode.read_rgb)


def test_what_nobody_looks_for_cannot_be_skipped(large):
  with pytest.raises(ConfigError, match="--skip_bad_records needs --verify_data"):
    open_large(large, verify_data=False, skip_bad_records=True)
  spoil(large, "train/a/1.jpg")
  # These are decoded on opening anyway.
  dataset = open_small(large, verify_data=False, skip_bad_records=True)
  assert dataset.skipped_records == {"train": 1, "test": 0}


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("damage", [lambda path: os.truncate(path, 900), os.remove])
def test_an_image_that_turns_bad_later_stops_the_run(large, skip, damage):
  dataset = open_large(large, skip_bad_records=skip)
  path = large / "test" / "b" / "2.jpg"
  damage(path)
  batches = loader.EvalBatches(
    split=dataset.test,
    image_size=72,
    records=np.arange(TOTAL // 2),
    batch_size=4,
    num_devices=1,
  )
  with pytest.raises(DataError, match=f"cannot read image {path}: "):
    list(loader.prefetched(batches, lambda batch: batch))


# What is remembered.


def test_images_are_decoded_once(large, decoded):
  open_large(large)
  assert len(decoded) == TOTAL
  del decoded[:]
  open_large(large)
  assert decoded == []


def test_bad_images_are_remembered(large, decoded):
  path = large / "train" / "c" / "2.jpg"
  path.write_bytes(b"text")
  first = refusal(open_large, large)
  del decoded[:]
  assert refusal(open_large, large) == first
  assert open_large(large, skip_bad_records=True).skipped_records["train"] == 1
  assert decoded == []


def test_what_could_not_be_read_is_tried_again(large):
  path = large / "train" / "c" / "2.jpg"
  data = path.read_bytes()
  path.unlink()
  path.symlink_to(large / "elsewhere")
  assert "No such file" in refusal(open_large, large)
  (large / "elsewhere").write_bytes(data)
  assert len(open_large(large).train.labels) == TOTAL // 2


def test_an_error_of_the_disk_is_not_remembered(large, monkeypatch):
  read = folder.Files.read

  def failing(store, number, *args):
    if number == 5:
      raise BadImage(store.name(number), "Input/output error") from OSError(5, "")
    return read(store, number, *args)

  with monkeypatch.context() as patch:
    patch.setattr(folder.Files, "read", failing)
    assert "of 24 images" in refusal(open_large, large)
  assert open_large(large).skipped_records == {"train": 0, "test": 0}


@pytest.mark.parametrize(
  "change",
  [
    lambda path: os.utime(path, ns=(1, 1)),
    lambda path: path.write_bytes(path.read_bytes() + bytes(3)),
    lambda path: path.rename(path.with_name("other.jpg")),
  ],
  ids=["time", "size", "name"],
)
def test_a_changed_file_is_decoded_again_and_no_other(large, decoded, change):
  open_large(large)
  del decoded[:]
  path = large / "train" / "b" / "2.jpg"
  data = path.read_bytes()
  before = path.stat()
  change(path)
  if path.exists() and path.stat().st_size != before.st_size:
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
  open_large(large)
  assert len(decoded) == 1
  assert decoded[0].startswith(data)
  del decoded[:]
  open_large(large)
  assert decoded == []


def contents_of(dataset):
  """The parts of the identity of the data that tell of the images' bytes."""
  return {
    name: part for name, part in fingerprint.parts(dataset).items() if "contents" in name
  }


def test_other_photos_under_the_same_names_are_other_data(large, decoded):
  first = open_large(large)
  assert set(contents_of(first)) == {
    "contents of training images",
    "contents of test images",
  }
  assert contents_of(open_large(large)) == contents_of(first)
  one, other = (large / "train" / "b" / f"{i}.jpg" for i in (1, 2))
  one_content, other_content = one.read_bytes(), other.read_bytes()
  one.write_bytes(other_content)
  other.write_bytes(one_content)
  del decoded[:]
  swapped = contents_of(open_large(large))
  assert len(decoded) == 2
  assert swapped["contents of test images"] == contents_of(first)["contents of test images"]
  assert (
    swapped["contents of training images"]
    != contents_of(first)["contents of training images"]
  )
  one.write_bytes(one_content)
  other.write_bytes(other_content)
  assert contents_of(open_large(large)) == contents_of(first)


def test_another_photo_of_the_same_size_and_time_is_noticed(large):
  path = large / "train" / "b" / "2.jpg"
  content, before = path.read_bytes(), path.stat()
  first = contents_of(open_large(large))
  # A comment at the end: the same pixels, and as many bytes each time.
  for comment in (b"1", b"2"):
    path.write_bytes(content + comment)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    now = contents_of(open_large(large))
    assert now["contents of training images"] != first["contents of training images"]
    first = now


def test_bad_images_do_not_count_for_the_contents(large):
  spoil(large, "train/b/1.jpg")
  skipping = {"skip_bad_records": True}
  first = open_large(large, **skipping)
  again = open_large(large, **skipping)  # as it is remembered
  assert contents_of(again) == contents_of(first)
  whole = first.train.images.contents
  assert len(whole) == len(first.train.labels) == TOTAL // 2 - 1
  assert (whole != 0).all()


def test_contents_are_not_known_without_a_look(large):
  dataset = open_large(large, verify_data=False)
  assert contents_of(dataset) == {}
  assert "nobody looks whether the images are those" in dataset.notes[-1]
  # Sizes in bytes are.
  before = fingerprint.parts(dataset)
  path = large / "train" / "b" / "2.jpg"
  path.write_bytes(path.read_bytes() + b"1")
  now = open_large(large, verify_data=False)
  assert fingerprint.differences(fingerprint.parts(now), before) == [
    "sizes of training images: different"
  ]


def test_a_mended_file_is_good(large):
  path = large / "train" / "b" / "2.jpg"
  data = path.read_bytes()
  path.write_bytes(data[:-100])
  refusal(open_large, large)
  path.write_bytes(data)
  assert open_large(large).skipped_records == {"train": 0, "test": 0}


def test_a_good_file_that_turned_bad_is_found_in_the_next_run(large):
  open_large(large)
  path = large / "train" / "b" / "2.jpg"
  path.write_bytes(path.read_bytes()[:-100])
  assert f"cannot read image {path}: " in refusal(open_large, large)


def test_the_same_files_elsewhere_are_decoded(large, tmp_path, decoded):
  open_large(large)
  shutil.copytree(large, tmp_path / "copy")  # keeps sizes and times
  del decoded[:]
  open_large(tmp_path / "copy")
  assert len(decoded) == TOTAL


def test_more_classes_of_the_same_folder(large, decoded):
  open_large(large, num_classes=1, num_states=1)
  assert len(decoded) == TOTAL // 3
  open_large(large)
  assert len(decoded) == TOTAL
  open_large(large, num_classes=2, num_states=2)
  assert len(decoded) == TOTAL


def memories(cache_home):
  """What is remembered, a file for each split."""
  found = sorted(cache_home.glob("ssil_jax/*/verified"))
  assert len(found) == 2
  return found


@pytest.mark.parametrize("place", [0, 8, 20, 500, -30, -1])
def test_a_damaged_memory_is_not_trusted(large, cache_home, decoded, place):
  open_large(large)
  for path in memories(cache_home):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
  del decoded[:]
  open_large(large)
  assert len(decoded) == TOTAL


@pytest.mark.parametrize("kept", [0, 3, 100, -5])
def test_a_memory_that_breaks_off_is_not_trusted(large, cache_home, decoded, kept):
  open_large(large)
  for path in memories(cache_home):
    path.write_bytes(path.read_bytes()[:kept])
  del decoded[:]
  open_large(large)
  assert len(decoded) == TOTAL


def test_a_memory_by_other_rules_is_not_trusted(large, decoded, monkeypatch):
  open_large(large)
  monkeypatch.setattr(verify, "_RULES", verify._RULES + 1)
  del decoded[:]
  open_large(large)
  assert len(decoded) == TOTAL


def test_a_memory_that_cannot_be_written_is_no_error(large, tmp_path, monkeypatch):
  (tmp_path / "file").touch()
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  note, _ = open_large(large).notes
  assert "will decode every image again" in note
  assert "XDG_CACHE_HOME" in note


def test_without_a_home_nothing_is_remembered(large, monkeypatch):
  def no_home(path):
    raise RuntimeError("Could not determine home directory.")

  dataset = open_large(large, verify_data=False)
  monkeypatch.setattr(pathlib.Path, "expanduser", no_home)
  (note,) = verify.verify({"train": dataset.train.images}).notes
  assert "for this one cannot remember it: ~: no home folder (set XDG_CACHE_HOME" in note


def test_an_interrupted_pass_goes_on_where_it_was(large, decoded, monkeypatch):
  monkeypatch.setattr(verify, "_CHUNK", 3)
  monkeypatch.setattr(verify, "usable_cores", lambda: 1)
  asked = []

  def check_interrupt():
    asked.append(len(decoded))
    if len(asked) == 3:
      raise KeyboardInterrupt

  images = {
    name: split.images
    for name, split in zip(
      ("train", "test"), open_large(large, verify_data=False)[1:3], strict=True
    )
  }
  del decoded[:]
  with pytest.raises(KeyboardInterrupt):
    verify.verify(images, check_interrupt)
  assert 9 <= len(decoded) < TOTAL
  first = set(decoded[:9])
  del decoded[:]
  assert verify.verify(images).bad == {"train": {}, "test": {}}
  assert len(decoded) == TOTAL - 9
  assert not first & set(decoded)


def test_the_memory_of_many_images_is_small(cache_home, tmp_path):
  memory = verify._Memory(tmp_path)
  stamps = np.zeros(10_000, verify.STAMP)
  stamps["name"], stamps["state"] = np.random.default_rng(0).integers(1, 2**62, (2, 10_000))
  for _ in range(3):
    _, entries, _ = memory.recall(stamps)
    memory.add(entries, [(np.arange(10_000), {})])
    memory.save()
    assert memory.problem is None
  (path,) = cache_home.glob("ssil_jax/*/verified")
  assert path.stat().st_size < 10_000 * 32 + 2000
  known, _, bad = verify._Memory(tmp_path).recall(stamps[::-1])
  assert known.all()
  assert bad == {}


class Executed:
  """Does something when it is unpickled."""

  def __reduce__(self):
    return pytest.fail, ("the memory was unpickled",)


def test_the_memory_is_never_unpickled(large, cache_home, decoded):
  open_large(large)
  for path in memories(cache_home):
    file = io.BytesIO()
    entries = np.array([Executed()], object)
    np.savez(file, rules=verify._RULES, entries=entries, reasons=np.zeros(2, np.uint8))
    path.write_bytes(verify._digest(file.getvalue()) + file.getvalue())
  del decoded[:]
  open_large(large)
  assert len(decoded) == TOTAL
