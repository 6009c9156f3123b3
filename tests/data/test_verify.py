"""Bad images: each of them named before training, or left out and counted."""

import os
import shutil
import threading

import numpy as np
import pytest
from folders import encode, folder_of, noise, open_folder, save
from stores import contents_of, images_of

from ssil_jax.data import fingerprint, loader, verify
from ssil_jax.data.sources import folder
from ssil_jax.errors import ConfigError, DataError

CLASSES = ("a", "b", "c")
EACH = 4  # images of a class and split
TOTAL = 2 * len(CLASSES) * EACH


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """Images that are streamed."""
  return folder_of(
    tmp_path_factory.mktemp("photos"), CLASSES, EACH, shape=(70, 80), suffix="jpg"
  )


@pytest.fixture
def large(photos, tmp_path):
  return shutil.copytree(photos, tmp_path / "large")


def open_large(root, **values):
  return open_folder(root, **{"image_size": 72, "num_states": 3, **values})


def open_small(root, **values):
  """As images that are decoded on opening."""
  return open_folder(root, **{"image_size": 16, "num_states": 3, **values})


large_and_small = pytest.mark.parametrize("open_it", [open_large, open_small])


def refusal(open_it, *args, **values):
  with pytest.raises(DataError) as caught:
    open_it(*args, **values)
  assert "\n" not in str(caught.value)
  return str(caught.value)


def spoil(root, *places):
  for place in places:
    (root / place).write_bytes(b"")


def cut_short(path):
  path.write_bytes(path.read_bytes()[:-100])


# What is bad, and what is said of it.


def make_enormous(path):
  with open(path, "wb") as file:
    file.truncate(folder.MAX_BYTES + 1)


def holding(content):
  return lambda path: path.write_bytes(content)


NOT_A_FILE = "it is a folder, pipe or device, and not a file"
PNG = encode(noise(70, 80), "PNG")
# What is refused of each format is in test_decode.py.
BAD = {
  "broken link": (lambda path: path.symlink_to("nowhere"), "No such file or directory"),
  "device": (lambda path: path.symlink_to("/dev/zero"), NOT_A_FILE),
  "enormous": (make_enormous, "it has 1073741825 bytes, more than the 1073741824 allowed"),
  "folder": (os.mkdir, NOT_A_FILE),
  "link to itself": (lambda path: path.symlink_to(path), "Too many levels of symbolic"),
  "named pipe": (os.mkfifo, NOT_A_FILE),
  "png header": (holding(PNG[:20]), "a PNG image that is truncated or corrupt"),
  "text": (holding(b"not an image\n"), "not a JPEG, PNG or WebP image"),
  "truncated jpeg": (holding(encode(noise(70, 80))[:-200]), "Premature end of JPEG file"),
  "truncated png": (holding(PNG[:-500]), "image file is truncated"),
  "zero bytes": (holding(b""), "it is empty"),
}


@large_and_small
def test_every_bad_image_is_named_with_its_reason(
  large, open_it, cache_home, tmp_path, monkeypatch
):
  for name, (make, _) in BAD.items():
    make(large / "test" / "c" / f"{name}.jpg")
  message = refusal(open_it, large)
  (path,) = cache_home.glob("ssil_jax/*/bad_images.txt")
  lines = path.read_text().splitlines()
  for line, (name, (_, reason)) in zip(lines, BAD.items(), strict=True):
    assert line.startswith(f"{large}/test/c/{name}.jpg: {reason}")
  shown = f"{'; '.join(lines[:5])}; and {len(BAD) - 5} more, all in {path}"
  total = TOTAL + len(BAD)
  assert message == (
    f"cannot read {len(BAD)} of {total} images (fix or remove them, or leave them out "
    f"with --skip_bad_records): {shown}"
  )
  for _ in range(2):
    dataset = open_it(large, skip_bad_records=True)
    assert dataset.skipped_records == {"train": 0, "test": len(BAD)}
    assert len(dataset.test.labels) == TOTAL // 2
    note = f"{len(BAD)} of {total} images are left out as bad: {shown}"
    assert dataset.notes[-1] == note
  (tmp_path / "file").touch()
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  assert refusal(open_it, large).endswith(f"; and {len(BAD) - 5} more")


# What is left out.


@large_and_small
def test_bad_images_are_left_out_before_anything_sees_them(large, open_it):
  whole = open_it(large)
  assert whole.skipped_records == {"train": 0, "test": 0}
  assert "left out" not in "".join(whole.notes)
  spoil(large, "train/a/0.jpg", "train/b/2.jpg", "train/b/3.jpg", "test/c/1.jpg")
  dataset = open_it(large, skip_bad_records=True)
  assert dataset.skipped_records == {"train": 3, "test": 1}
  assert dataset.class_names == whole.class_names == ("c", "b", "a")
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
  # Those of other classes are not looked at.
  fewer = open_it(large, num_classes=1, num_states=1, skip_bad_records=True)
  assert fewer.skipped_records == {"train": 0, "test": 1}


@large_and_small
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_must_keep_images(large, open_it, split):
  spoil(large, "train/a/0.jpg", *(f"{split}/b/{i}.jpg" for i in range(EACH)))
  assert refusal(open_it, large, skip_bad_records=True) == (
    f"--skip_bad_records leaves class b (1 in all) without images in {split}: none of its "
    f"{EACH} can be read; fix them, or remove the class"
  )


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
  cut_short(path)
  dataset = open_large(large, verify_data=False)
  assert decoded == []
  with pytest.raises(DataError, match=f"cannot read image {path}: Premature end"):
    dataset.train.images.open(1).read()
  with pytest.raises(ConfigError, match="--skip_bad_records needs --verify_data"):
    open_large(large, verify_data=False, skip_bad_records=True)
  # These are decoded on opening anyway.
  dataset = open_small(large, verify_data=False, skip_bad_records=True)
  assert dataset.skipped_records == {"train": 1, "test": 0}


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("damage", [cut_short, os.remove])
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
    list(batches)


# What is remembered.


def test_good_images_are_decoded_once(large, decoded, capsys):
  path = large / "train" / "c" / "2.jpg"
  data = path.read_bytes()
  cut_short(path)
  first = refusal(open_large, large)
  assert len(decoded) == TOTAL
  assert refusal(open_large, large) == first
  kept = open_large(large, skip_bad_records=True)
  assert kept.skipped_records["train"] == 1
  assert len(kept.train.images.contents) == TOTAL // 2 - 1
  assert (kept.train.images.contents != 0).all()
  assert decoded[TOTAL:] == [path.read_bytes()] * 2  # the bad one is tried again
  path.write_bytes(data)
  assert open_large(large).skipped_records == {"train": 0, "test": 0}
  cut_short(path)
  assert refusal(open_large, large) == first
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
  decoded.clear()
  CHANGES[change](path)
  now = contents_of(open_large(large))
  assert [image[: len(data) - 1] for image in decoded] == [data[:-1]]
  same = now["contents of training images"] == first["contents of training images"]
  assert same == (change == "time")
  decoded.clear()
  assert contents_of(open_large(large)) == now
  assert decoded == []


def test_photos_that_changed_their_names_are_other_data(large, decoded):
  first = contents_of(open_large(large))
  assert set(first) == {"contents of training images", "contents of test images"}
  one, other = (large / "train" / "b" / f"{i}.jpg" for i in (1, 2))
  contents = one.read_bytes(), other.read_bytes()
  for path, content in zip((other, one), contents, strict=True):
    path.write_bytes(content)
  decoded.clear()
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


def test_only_what_was_not_decoded_of_the_same_folder_is(large, tmp_path, decoded):
  open_large(large, num_classes=1, num_states=1)
  assert len(decoded) == TOTAL // 3
  open_large(large)
  assert len(decoded) == TOTAL
  open_large(large, num_classes=2, num_states=2)
  assert len(decoded) == TOTAL
  open_large(shutil.copytree(large, tmp_path / "copy"))  # keeps sizes and times
  assert len(decoded) == 2 * TOTAL


def flipped(data, place):
  damaged = bytearray(data)
  damaged[place] ^= 1
  return bytes(damaged)


def test_a_damaged_memory_is_not_trusted(large, cache_home, decoded):
  open_large(large)
  one, other = cache_home.glob("ssil_jax/*/verified")  # of each split
  data = one.read_bytes()
  damaged = [flipped(data, place) for place in (0, 8, 20, 200, -30, -1)]
  for content in damaged + [data[:end] for end in (0, 3, 100, -5)]:
    one.write_bytes(content)
    decoded.clear()
    open_large(large)
    assert len(decoded) == TOTAL // 2
    assert one.read_bytes() == data


def test_a_memory_that_cannot_be_written_is_no_error(large, tmp_path, monkeypatch):
  (tmp_path / "file").touch()
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  note, _ = open_large(large).notes
  assert "will decode every image again, for this one cannot remember it: " in note
  assert "XDG_CACHE_HOME" in note


@pytest.fixture
def stored(tmp_path):
  """A thousand small images that are not on the disk."""
  images = images_of(*(encode(noise(2, 2, seed=n), "PNG") for n in range(1000)))
  images.store.directory = tmp_path
  return images


def test_an_interrupted_pass_resumes_where_it_was(stored, cache_home, capsys):
  calls, read_numbers, read = [], stored.store.read_numbers, stored.store.read
  interrupted = threading.Event()

  def read_slowly(number, num_bytes=None):
    if number >= 500:  # else threads may be through before this one looks at all
      assert interrupted.wait(30)
    return read(number, num_bytes)

  def check_interrupt():
    calls.append(len(read_numbers))
    if len(calls) == 4:
      interrupted.set()
      raise KeyboardInterrupt

  stored.store.read = read_slowly
  with pytest.raises(KeyboardInterrupt):
    verify.verify({"train": stored}, check_interrupt)
  assert calls[-1] < 1000
  for _ in range(3):
    assert verify.verify({"train": stored}).bad == {"train": {}}
    # What was finished is not read again.
    assert sorted(read_numbers) == list(range(1000))
  (path,) = cache_home.glob("ssil_jax/*/verified")
  assert path.stat().st_size < 1000 * 24 + 2000
  out, err = capsys.readouterr()
  assert out == ""
  assert "decoding every image, once" in err


def test_a_pass_shows_how_far_it_is(stored, capsys):
  verify.verify({"train": stored})
  err = capsys.readouterr().err
  assert "decoding every image, once: 1,000 of 1,000 images" in err
  assert err.count("once") == 2  # at begin and end


def test_images_without_a_stamp_are_not_remembered(stored):
  stored.store.stamps = lambda numbers: np.zeros(len(numbers), np.uint64)
  for count in (3, 6):
    verify.verify({"train": stored.take(np.arange(3))})
    assert len(stored.store.read_numbers) == count
