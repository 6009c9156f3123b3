"""Bad images: each of them named before training, or left out and counted."""

import os
import shutil

import numpy as np
import pytest
from folders import encode, noise, open_folder, photo, save

from ssil_jax.data import fingerprint, loader, verify
from ssil_jax.data.encoded import EncodedImages
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


NOT_A_FILE = "it is a folder, pipe or device, and not a file"
# What is refused of each format is in test_decode.py.
CONTENTS = {
  "zero bytes": (b"", "it is empty"),
  "text": (b"not an image\n", "not a JPEG, PNG or WebP image"),
  "truncated JPEG": (encode(noise(70, 80))[:-200], "Premature end of JPEG file"),
  "truncated PNG": (encode(noise(70, 80), "PNG")[:-500], "image file is truncated"),
  "PNG header": (
    encode(noise(70, 80), "PNG")[:20],
    "a PNG image that is truncated or corrupt",
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
  assert "fix or remove it, or leave it out with --skip_bad_records" in message
  dataset = open_it(large, skip_bad_records=True)
  assert dataset.skipped_records == {"train": 1, "test": 0}
  assert len(dataset.train.labels) == TOTAL // 2 - 1


def make_endless(path):
  path.symlink_to("/dev/zero")


def make_enormous(path):
  with open(path, "wb") as file:
    file.truncate(folder.MAX_BYTES + 1)


FILES = {
  "folder": (os.mkdir, NOT_A_FILE),
  "named pipe": (os.mkfifo, NOT_A_FILE),
  "device": (make_endless, NOT_A_FILE),
  "broken link": (lambda path: path.symlink_to("nowhere"), "No such file or directory"),
  "link to itself": (lambda path: path.symlink_to(path), "Too many levels of symbolic"),
  "enormous": (make_enormous, "1073741825 bytes, more than the 1073741824 allowed"),
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
@pytest.mark.parametrize("skip", [False, True])
def test_many_bad_images_are_listed_in_a_file(
  large, open_it, skip, cache_home, tmp_path, monkeypatch
):
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
  if not skip:
    assert message == (
      f"cannot read 8 of {TOTAL} images (fix or remove them, or leave them out with "
      f"--skip_bad_records): {'; '.join(lines[:5])}; and 3 more, all in {path}"
    )
  (tmp_path / "file").touch()
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  if not skip:
    assert refusal(open_it, large).endswith("; and 3 more")


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
    f"{EACH} can be read; fix them, or remove the class"
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
    dataset.train.images.open(1).read()


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


def test_good_images_are_decoded_once(large, decoded, capsys):
  path = large / "train" / "c" / "2.jpg"
  path.write_bytes(path.read_bytes()[:-100])
  first = refusal(open_large, large)
  assert len(decoded) == TOTAL
  assert refusal(open_large, large) == first
  kept = open_large(large, skip_bad_records=True)
  assert kept.skipped_records["train"] == 1
  assert len(kept.train.images.contents) == TOTAL // 2 - 1
  assert (kept.train.images.contents != 0).all()
  assert decoded[TOTAL:] == [path.read_bytes()] * 2  # the bad one is tried again
  assert capsys.readouterr() == ("", "")  # few images take no time worth showing


def comment(path):
  """Another photo of the same size in bytes and time of change, and the same pixels."""
  before = path.stat()
  path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
  os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES = {
  "time": lambda path: os.utime(path, ns=(1, 1)),
  "size": lambda path: path.write_bytes(path.read_bytes() + bytes(3)),
  "name": lambda path: path.rename(path.with_name("other.jpg")),
  "content": comment,
  "added": lambda path: shutil.copy(path, path.with_name("more.jpg")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_file_is_decoded_again_and_no_other(large, decoded, change):
  path = large / "train" / "b" / "2.jpg"
  path.write_bytes(path.read_bytes() + b"1")  # a comment
  first = contents_of(open_large(large))
  data = path.read_bytes()
  del decoded[:]
  CHANGES[change](path)
  now = contents_of(open_large(large))
  assert [image[: len(data) - 1] for image in decoded] == [data[:-1]]
  same = now["contents of training images"] == first["contents of training images"]
  assert same == (change == "time")
  del decoded[:]
  assert contents_of(open_large(large)) == now
  assert decoded == []


def test_a_file_that_was_fixed_is_good_and_one_that_turned_bad_is_found(large):
  path = large / "train" / "b" / "2.jpg"
  data = path.read_bytes()
  for _ in range(2):
    path.write_bytes(data)
    assert open_large(large).skipped_records == {"train": 0, "test": 0}
    path.write_bytes(data[:-100])
    assert f"cannot read image {path}: " in refusal(open_large, large)


def contents_of(dataset):
  """The parts of the identity of the data that tell of the images' bytes."""
  return {
    name: part for name, part in fingerprint.parts(dataset).items() if "contents" in name
  }


def test_photos_that_changed_their_names_are_other_data(large, decoded):
  first = contents_of(open_large(large))
  assert set(first) == {"contents of training images", "contents of test images"}
  one, other = (large / "train" / "b" / f"{i}.jpg" for i in (1, 2))
  contents = one.read_bytes(), other.read_bytes()
  for path, content in zip((other, one), contents, strict=True):
    path.write_bytes(content)
  del decoded[:]
  swapped = contents_of(open_large(large))
  assert len(decoded) == 2
  assert swapped["contents of test images"] == first["contents of test images"]
  assert swapped["contents of training images"] != first["contents of training images"]
  for path, content in zip((one, other), contents, strict=True):
    path.write_bytes(content)
  assert contents_of(open_large(large)) == first


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


DAMAGES = {
  **{f"bit {n}": lambda data, n=n: flipped(data, n) for n in (0, 8, 20, 200, -30, -1)},
  **{f"cut {n}": lambda data, n=n: data[:n] for n in (0, 3, 100, -5)},
}


def flipped(data, place):
  damaged = bytearray(data)
  damaged[place] ^= 1
  return bytes(damaged)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_memory_is_not_trusted(large, cache_home, decoded, damage):
  open_large(large)
  for path in memories(cache_home):
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
  del decoded[:]
  open_large(large)
  assert len(decoded) == TOTAL


def test_a_memory_that_cannot_be_written_is_no_error(large, tmp_path, monkeypatch):
  (tmp_path / "file").touch()
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  note, _ = open_large(large).notes
  assert "will decode every image again, for this one cannot remember it: " in note
  assert "XDG_CACHE_HOME" in note


class Memorized:
  """A store of many small PNGs that are not on the disk."""

  has_checksums = was_verified = False
  content = None

  def __init__(self, directory, count):
    self.directory, self.read_numbers = directory, []
    self.files = [encode(noise(2, 2, seed=n), "PNG") for n in range(count)]

  def read(self, number, num_bytes=None):
    self.read_numbers.append(number)
    return self.files[number]

  def stamps(self, numbers):
    return (numbers + 1).astype(np.uint64)

  def all(self):
    return {"train": EncodedImages(self, np.arange(len(self.files)))}


def test_an_interrupted_pass_resumes_where_it_was(tmp_path):
  store, calls = Memorized(tmp_path, 1000), []

  def check_interrupt():
    calls.append(len(store.read_numbers))
    if len(calls) == 4:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    verify.verify(store.all(), check_interrupt)
  first = len(store.read_numbers)
  assert 0 < first < 1000
  assert verify.verify(store.all()).bad == {"train": {}}
  # What was finished is not read again; threads may have been at what comes next.
  again = store.read_numbers[first:]
  assert 0 < len(again) < 1000
  assert set(again).isdisjoint(range(1000 - len(again)))
  assert sorted({*store.read_numbers}) == list(range(1000))


def test_the_memory_of_many_images_is_small(tmp_path, cache_home, capsys):
  store = Memorized(tmp_path, 1000)
  for _ in range(3):
    verify.verify(store.all())
  assert len(store.read_numbers) == 1000
  (path,) = cache_home.glob("ssil_jax/*/verified")
  assert path.stat().st_size < 1000 * 24 + 2000
  out, err = capsys.readouterr()
  assert out == ""
  assert "decoding every image, once: 1,000 of 1,000 images" in err
  assert err.count("once") == 2  # at the first pass's begin and end


def test_images_without_a_stamp_are_not_remembered(tmp_path):
  store = Memorized(tmp_path, 3)
  store.stamps = lambda numbers: np.zeros(len(numbers), np.uint64)
  for count in (3, 6):
    verify.verify(store.all())
    assert len(store.read_numbers) == count
