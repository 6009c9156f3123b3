"""From archives to TFDS directories: what is written, whatever the data set."""

import hashlib
import io
import os
import pathlib
import resource
import shutil
import types

import archives
import numpy as np
import pytest
import simplejpeg
import tensorflow_datasets as tfds
from archives import GOLDFISH, PARTIAL, TENCH, image, report_of
from folders import needs_turbojpeg
from PIL import Image, ImageOps

from ssil_jax.data import builders
from ssil_jax.data.builders import recode, shards
from ssil_jax.data.builders.base import count_shards
from ssil_jax.data.builders.found import Archive, Records, Tally
from ssil_jax.data.builders.shards import Shard
from ssil_jax.data.builders.tars import Member, as_table
from ssil_jax.data.images import decode as decode_lib
from ssil_jax.data.images import jpeg_layout, turbojpeg
from ssil_jax.data.sources import labels
from ssil_jax.errors import ConfigError, DataError

SHARD_BYTES = 2500  # about three of the images here


@pytest.fixture
def imagenet(tmp_path):
  return archives.imagenet(tmp_path / "archives")


def prepare(folder, data_dir, options=PARTIAL, shard_bytes=SHARD_BYTES):
  return archives.prepare("imagenet", folder, data_dir, options, shard_bytes=shard_bytes)


def hashes(folder):
  return {
    path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }


# What is written.


def test_the_directory_is_one_of_tfds(imagenet, tmp_path):
  builder = prepare(imagenet, tmp_path / "data")
  assert builder.data_dir == str(tmp_path / "data" / "imagenet" / "1.0.0")
  read = tfds.builder_from_directory(builder.data_dir)
  assert read.info.file_format == tfds.core.FileFormat.ARRAY_RECORD
  assert read.info.features["label"].names == [TENCH, GOLDFISH]
  assert read.info.splits["train"].num_examples == 10
  assert [record["image"].shape for record in read.as_data_source("train")] == [
    (40, 48, 3)
  ] * 10
  own = builders.make_builder("imagenet", tmp_path / "data")
  assert own.info.features["label"].names == [TENCH, GOLDFISH]
  assert [record["label"] for record in own.as_data_source("validation")] == [1, 0, 0]
  found = labels.load(pathlib.Path(builder.data_dir))
  assert list(found) == ["train", "validation"]
  for split, array in found.items():
    assert array.dtype == np.int32
    assert array.tolist() == [r["label"] for r in archives.encoded(builder, split)]
  # Nothing else is left, of TFDS or of ours.
  assert os.listdir(tmp_path / "data") == ["imagenet"]
  assert os.listdir(tmp_path / "data" / "imagenet") == ["1.0.0"]


def test_builders_leave_those_of_tfds_alone():
  assert tfds.builder_cls("cifar100") is not builders.BUILDERS["cifar100"][0]
  assert "imagenet" not in tfds.list_builders(with_community_datasets=False)


def test_shards_hold_the_records_in_order(imagenet, tmp_path):
  builder = prepare(imagenet, tmp_path / "data")
  info = tfds.builder_from_directory(builder.data_dir).info
  assert info.splits["train"].shard_lengths == [1, 2, 2, 1, 2, 2]
  assert info.splits["validation"].shard_lengths == [1, 2]
  whole = prepare(imagenet, tmp_path / "whole", shard_bytes=10**9)
  assert whole.info.splits["train"].shard_lengths == [10]
  for split in ("train", "validation"):
    assert archives.encoded(builder, split) == archives.encoded(whole, split)


@pytest.mark.parametrize(
  ("images", "image_bytes", "expected"),
  [
    ((1_281_167, 50_000), 115_000, (231, 9)),  # ImageNet: shards of 0.64 GB
    ((4_000_000, 100_000), 130_000, (248, 7)),  # 2.1 GB each, or there would be too many
    ((50_000, 10_000), 3200, (1, 1)),
    ((2, 1), 10**9, (2, 1)),  # no more shards than images
  ],
)
def test_the_number_of_shards(tmp_path, images, image_bytes, expected):
  def records(n):
    files = np.empty(n, [("size", np.int64)])
    files["size"] = image_bytes
    return Records(np.zeros(n, np.int32), files, {}, ())

  shard_bytes = builders.make_builder("imagenet", tmp_path).shard_bytes
  counts = count_shards({str(n): records(n) for n in images}, shard_bytes)
  assert tuple(counts.values()) == expected
  assert sum(expected) <= 256


def test_a_prepared_directory_is_not_prepared_again(imagenet, tmp_path, monkeypatch):
  builder = prepare(imagenet, tmp_path / "data")
  before = hashes(tmp_path / "data")
  # The same archives elsewhere give the same bytes, whatever the number of threads.
  monkeypatch.setattr(shards, "_THREADS", 1)
  prepare(archives.imagenet(tmp_path / "elsewhere"), tmp_path / "other")
  assert hashes(tmp_path / "other") == before
  assert not builder.prepare(imagenet, PARTIAL, archives.QUIET)
  assert hashes(tmp_path / "data") == before
  with pytest.raises(DataError, match="was prepared with --resize=None, not 64"):
    prepare(imagenet, tmp_path / "data", builders.Options(allow_partial=True, resize=64))


# Corrupt images.


def huge_header():
  data = bytearray(image(1))
  frame = data.index(b"\xff\xc0") + 5
  data[frame : frame + 4] = b"\xff\xff\xff\xff"
  return bytes(data)


CORRUPT = {
  "cut": (image(1)[:-100], "Premature end of JPEG file"),
  "header": (image(1)[:100], "breaks off"),
  "empty": (b"", "it is empty"),
  "text": (b"text, no image", "not a JPEG"),
  "png": (image(1, "RGB", "PNG")[:-50], "truncated"),
  "cmyk": (image(1, "CMYK")[:-300], "Premature end of JPEG file"),
  "huge": (huge_header(), "65535x65535 pixels"),
}


def test_corrupt_images_are_left_out_and_named(tmp_path):
  train = archives.imagenet_train()
  for name, (content, _) in CORRUPT.items():
    train[TENCH][f"{name}.JPEG"] = content
  folder = archives.imagenet(tmp_path / "archives", train)
  builder = prepare(folder, tmp_path / "data", shard_bytes=10**4)
  names = [record["file_name"].decode() for record in archives.encoded(builder, "train")]
  assert len(names) == 10
  assert not {f"{name}.JPEG" for name in CORRUPT} & set(names)
  assert labels.load(pathlib.Path(builder.data_dir))["train"].tolist() == [0] * 5 + [1] * 5
  left_out = report_of(builder)["left_out"]["cannot be decoded"]
  assert left_out["count"] == len(CORRUPT)
  for line, (name, (_, reason)) in zip(left_out["first"], CORRUPT.items(), strict=True):
    assert line.startswith(f"ILSVRC2012_img_train.tar: {name}.JPEG (")
    assert reason in line


@pytest.mark.parametrize(
  ("good", "bad", "allow_partial", "message"),
  [
    (2, 1, False, r"1 of the 3 images for some cannot be decoded: photos: 2.jpg \(not"),
    (1, 7, False, "7 of the 8 images .*; ...: download .*--allow_partial leaves them out"),
    (0, 7, True, "7 of the 7 images for some .*; ...: download the archive again$"),
  ],
)
def test_corrupt_images_make_one_line(tmp_path, good, bad, allow_partial, message):
  contents = [image(1)] * good + [b"text"] * bad
  for number, content in enumerate(contents):
    (tmp_path / f"{number}.jpg").write_bytes(content)
  files = as_table(Member(f"{i}.jpg", -1, len(data)) for i, data in enumerate(contents))
  label = np.zeros(len(files), np.int32)
  records = Records(label, files, {}, (Archive(tmp_path, "photos", 0),))
  span = range(len(files))
  with pytest.raises(DataError, match=message) as error:
    list(Shard("some", records, span, recode_photo, allow_partial).examples())
  assert str(error.value).count("photos: ") == min(bad, 5)
  assert "\n" not in str(error.value)


def test_a_class_of_corrupt_images_only(tmp_path):
  train = {TENCH: {"a": image(1), "b": image(2)}, GOLDFISH: {"c": b"text"}}
  folder = archives.imagenet(tmp_path / "archives", train)
  with pytest.raises(DataError, match=f"class {GOLDFISH} .* has no training image"):
    prepare(folder, tmp_path / "data", shard_bytes=10**9)


def test_an_archive_that_becomes_shorter(tmp_path):
  (tmp_path / "x.tar").write_bytes(bytes(9))
  archive = Archive.file(tmp_path, "x.tar")
  records = Records(np.zeros(1, np.int32), as_table([Member("a", 0, 10)]), {}, (archive,))
  with pytest.raises(DataError, match=r"x\.tar became shorter while it was read"):
    records.read(0)


def test_the_names_of_the_first_images_are_kept():
  tally = Tally()
  for i in range(101):
    tally.add("odd", str(i))
  assert tally == {"odd": {"count": 101, "first": [str(i) for i in range(100)]}}


# Going on after an interruption.


def test_an_interrupted_preparation_goes_on(tmp_path):
  train = archives.imagenet_train()
  train[TENCH]["0.JPEG"] = b"text"
  imagenet = archives.imagenet(tmp_path / "archives", train)
  work = tmp_path / "data" / "imagenet" / ".preparing_1.0.0"

  def interrupt_after_four_shards():
    if len(list(work.glob("files/*"))) == 4:
      raise KeyboardInterrupt

  builder = builders.make_builder("imagenet", tmp_path / "data")
  builder.shard_bytes = SHARD_BYTES
  with pytest.raises(KeyboardInterrupt):
    builder.prepare(
      imagenet, PARTIAL, archives.QUIET, check_interrupt=interrupt_after_four_shards
    )
  finished = {path.name: path.stat().st_ino for path in (work / "files").iterdir()}
  names = [f"imagenet-train.array_record-{i:05}-of-00006" for i in range(4)]
  assert sorted(finished) == names
  assert not (tmp_path / "data" / "imagenet" / "1.0.0").exists()

  # Other options, archives or shards are not mixed with these.
  with pytest.raises(DataError, match="options resize was None and is 64: use the same"):
    prepare(imagenet, tmp_path / "data", builders.Options(allow_partial=True, resize=64))
  with pytest.raises(DataError, match="shards train was 6 and is 3"):
    prepare(imagenet, tmp_path / "data", shard_bytes=6000)
  fewer = dict(list(archives.imagenet_validation().items())[1:])
  other = archives.imagenet(tmp_path / "other", train, fewer)
  with pytest.raises(DataError, match="images and labels of validation was"):
    prepare(other, tmp_path / "data")
  (other / "ILSVRC2012_img_val.tar").write_bytes(
    (imagenet / "ILSVRC2012_img_val.tar").read_bytes() + bytes(512)
  )
  with pytest.raises(DataError, match=r"archives ILSVRC2012_img_val.tar was \d+ and is"):
    prepare(other, tmp_path / "data")

  builder = prepare(imagenet, tmp_path / "data")
  directory = pathlib.Path(builder.data_dir)
  assert {name: (directory / name).stat().st_ino for name in finished} == finished
  prepare(imagenet, tmp_path / "whole")
  assert hashes(tmp_path / "data") == hashes(tmp_path / "whole")


class _Kill(BaseException):
  """Stands for the end of the process."""


def _killed_at(monkeypatch, count, prepare):
  """Prepares until the count-th change of names on the disk; False if there are fewer."""
  seen = 0

  def watched(function):
    def call(*args, **kwargs):
      nonlocal seen
      seen += 1
      # A dead process does nothing any more, so that no clean-up works either.
      if seen >= count:
        raise _Kill
      return function(*args, **kwargs)

    return call

  with monkeypatch.context() as patch:
    for name in ("replace", "rename", "fsync", "unlink", "rmdir"):
      patch.setattr(os, name, watched(getattr(os, name)))
    patch.setattr(shutil, "rmtree", watched(shutil.rmtree))
    try:
      prepare()
    except _Kill:
      return True
  return False


def test_a_kill_at_any_moment(tmp_path, monkeypatch):
  train = {TENCH: {f"{i}": image(i) for i in range(2)}, GOLDFISH: {"2": image(2)}}
  folder = archives.imagenet(tmp_path / "archives", train)
  prepare(folder, tmp_path / "whole", shard_bytes=10**9)
  expected = hashes(tmp_path / "whole")
  for count in range(1, 100):
    data_dir = tmp_path / str(count)
    killed = _killed_at(
      monkeypatch, count, lambda to=data_dir: prepare(folder, to, shard_bytes=10**9)
    )
    # What looks like a data set, to TFDS too, is one.
    for info in data_dir.rglob("dataset_info.json"):
      left = {name.rpartition("/")[2] for name in hashes(info.parent)}
      assert left == {pathlib.Path(name).name for name in expected}
    version = data_dir / "imagenet" / "1.0.0"
    if version.exists():
      in_full = {name: expected[name] for name in hashes(data_dir) if "/.prep" not in name}
      assert in_full == expected
    # Another process would give its temporary files other names.
    for temporary in data_dir.rglob("*.tmp"):
      temporary.rename(temporary.with_suffix(".before.tmp"))
    prepare(folder, data_dir, shard_bytes=10**9)
    assert hashes(data_dir) == expected, count
    assert os.listdir(data_dir / "imagenet") == ["1.0.0"]
    if not killed:
      break
  assert not killed
  assert count > 25


def test_failing_to_write_the_info_keeps_the_shards(imagenet, tmp_path, monkeypatch):
  def fail(*args, **kwargs):
    raise OSError(28, "No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(tfds.core.DatasetInfo, "write_to_directory", fail)
    with pytest.raises(DataError, match="No space left on device; finished shards are"):
      prepare(imagenet, tmp_path / "data")
  (work,) = (tmp_path / "data" / "imagenet").iterdir()
  assert len(list(work.glob("files/imagenet-*"))) == 8


def test_two_preparations_at_once(imagenet, tmp_path):
  (tmp_path / "data").mkdir()
  in_use = pytest.raises(DataError, match="is in use: another process")
  with shards.WorkFolder(tmp_path / "data" / "imagenet" / "1.0.0").locked(), in_use:
    prepare(imagenet, tmp_path / "data")
  prepare(imagenet, tmp_path / "data")


def test_a_failed_check_leaves_nothing(imagenet, tmp_path):
  with pytest.raises(DataError, match="lacks 998 classes"):
    prepare(imagenet, tmp_path / "data", builders.Options())
  assert list((tmp_path / "data" / "imagenet").iterdir()) == []


def test_a_damaged_work_folder(imagenet, tmp_path, monkeypatch):
  assert _killed_at(monkeypatch, 20, lambda: prepare(imagenet, tmp_path / "data"))
  work = tmp_path / "data" / "imagenet" / ".preparing_1.0.0"
  shard, plan = next(work.glob("files/*")), work / "plan.json"
  note = work / "finished" / f"{shard.name}.json"
  for damaged, match in (
    (note, f"{note} is damaged: remove {shard}"),
    (plan, f"{plan} is damaged or of an earlier version: remove the folder {work}"),
  ):
    damaged.write_text("{}")
    with pytest.raises(DataError, match=match):
      prepare(imagenet, tmp_path / "data")


# Failed writes.


def test_a_full_disk_keeps_the_finished_shards(tmp_path):
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  data = archives.imagenet_train()
  data[TENCH]["z.JPEG"] = image(1, width=900, height=900, quality=100)
  folder = archives.imagenet(tmp_path / "archives", data)
  # Only the shard with the large image does not fit: others have 128 KiB. ArrayRecord
  # reports that when it closes the file.
  resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, before[1]))
  try:
    with pytest.raises(DataError, match="cannot be written: .*File too large.*to resume"):
      prepare(folder, tmp_path / "data")
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  work = tmp_path / "data" / "imagenet" / ".preparing_1.0.0"
  assert list((work / "files").iterdir())
  prepare(folder, tmp_path / "data")


def free(monkeypatch, size):
  """Says that so many bytes are free."""
  usage = types.SimpleNamespace(free=size)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def test_too_little_space_is_said_at_once(imagenet, tmp_path, monkeypatch):
  least = 8 * 128 * 1024  # ArrayRecord takes as much for a shard
  free(monkeypatch, least - 1000)
  with pytest.raises(DataError, match="has 1.0 MB free, 1.0 kB too little for the 1.0 MB"):
    prepare(imagenet, tmp_path / "data")
  free(monkeypatch, least)
  builder = prepare(imagenet, tmp_path / "data")
  sizes = [p.stat().st_size for p in pathlib.Path(builder.data_dir).glob("imagenet-*")]
  assert sizes == [128 * 1024] * 8


def test_images_that_will_be_shrunk_may_need_little_space(tmp_path, monkeypatch):
  free(monkeypatch, 1_000_000)
  large = image(1, width=900, height=900, quality=100) + bytes(2_000_000)
  folder = archives.imagenet(tmp_path / "archives", {TENCH: {"5": large}})
  with pytest.raises(DataError, match="too little for the 2"):
    prepare(folder, tmp_path / "data", shard_bytes=10**9)
  options = builders.Options(allow_partial=True, resize=64)
  prepare(folder, tmp_path / "small", options, shard_bytes=10**9)


def test_a_folder_that_cannot_be_written(imagenet, tmp_path):
  (tmp_path / "data").mkdir()
  (tmp_path / "data" / "imagenet").write_text("a file")
  with pytest.raises(DataError, match=r"\.preparing_1\.0\.0 cannot be written: .*director"):
    prepare(imagenet, tmp_path / "data")


# Recoding.


def recode_photo(data, **options):
  return recode.recode_photo(data, builders.Options(**options))


def decode(data):
  return simplejpeg.decode_jpeg(data, strict=True)


def test_untouched_bytes():
  for data in (image(1), image(1, "L"), image(1, progressive=True), image(1, quality=30)):
    assert recode_photo(data) == (data, None)


@pytest.mark.parametrize(
  ("data", "reason"),
  [
    (image(3, "CMYK", quality=100, subsampling=0), "CMYK, made RGB"),
    (image(3, file_format="PNG"), "no JPEG, made one"),
    (image(3, file_format="WEBP", lossless=True), "no JPEG, made one"),
  ],
  ids=["cmyk", "png", "webp"],
)
def test_what_is_converted(data, reason):
  stored, remark = recode_photo(data)
  assert remark == reason
  pixels = decode(stored)
  assert jpeg_layout.read_header(stored)[2:5] == (3, 8, 8)  # RGB, 4:4:4
  close = decode(image(3, quality=100, subsampling=0)).astype(int)
  assert np.abs(pixels - close).mean() < 1.5


@pytest.mark.parametrize(
  "data",
  [
    image(3)[:-2] + bytes(20) + b"\xff\xd9",
    image(3).replace(b"JFIF\0\1", b"JFIF\0\3"),
    image(3).replace(b"\0\x3f\0", b"\0\x3e\0", 1),
  ],
  ids=["surplus", "revision", "scan"],
)
def test_what_libjpeg_warns_of_is_kept_and_remarked_on(data):
  warned = "kept, though libjpeg warns of its bytes"
  assert recode_photo(data) == (data, warned)
  with pytest.raises(recode.CorruptImage):  # it breaks off, too
    recode_photo(data[: len(data) * 2 // 3])
  if turbojpeg.library():
    marked, remark = recode_photo(data, restart_markers=True)
    assert remark == warned
    assert jpeg_layout.read_header(marked).num_indexed
    expected = decode_lib.read_rgb(data, strict=False)
    assert np.array_equal(decode(marked), expected)


def of_odd_sampling():
  """A gray JPEG of 16 x 16 pixels, with twice as much of one chroma as of the other."""
  data = bytearray(image(0, width=16, height=16, subsampling="4:2:0"))
  header = jpeg_layout.read_header(bytes(data))
  data[header.frame_start + 14] = 0x21
  # In the tables of T.81, K.3: no difference, and end of block. Ones fill the last byte.
  bits = 4 * "00 1010" + 2 * "00 00" + "00 00" + "1111"
  scan = int(bits.replace(" ", ""), 2).to_bytes(5, "big")
  return bytes(data[: header.scan_start]) + scan + b"\xff\xd9"


def test_odd_chroma_sampling_is_kept():
  data = of_odd_sampling()
  assert recode_photo(data) == (data, None)
  assert (decode_lib.read_rgb(data) == 128).all()
  part = decode_lib.EncodedImage(data).read((3, 0, 9, 2))
  assert part.shape == (2, 6, 3)


@needs_turbojpeg
def test_odd_chroma_sampling_gets_restart_markers():
  marked, remark = recode_photo(of_odd_sampling(), restart_markers=True)
  assert remark is None
  assert jpeg_layout.read_header(marked).num_indexed
  assert (decode_lib.read_rgb(marked) == 128).all()


def test_resize_makes_the_short_side_as_long():
  for width, height, size in [(200, 120, (160, 96)), (96, 300, None), (97, 97, (96, 96))]:
    data = image(5, width=width, height=height)
    stored, _ = recode_photo(data, resize=96)
    header = jpeg_layout.read_header(stored)
    assert (header.width, header.height) == (size or (width, height))
    assert header.mcu_width == (8 if size else 16)
    assert (stored == data) == (size is None)


@needs_turbojpeg
@pytest.mark.parametrize(
  ("width", "height", "options", "interval"),
  [
    # Intervals are parts of a row, about 64 pixels wide.
    (200, 120, {}, 13),  # a prime number of MCUs of 16 pixels
    (201, 77, {"subsampling": 0}, 13),  # 26 MCUs of 8
    (333, 100, {"mode": "L"}, 7),  # 42
    (200, 90, {"progressive": True, "subsampling": 1}, 13),
    (200, 90, {"keep_rgb": True}, 5),  # 25
    (9, 9, {}, 1),
    (500, 32, {}, 4),  # 32
    (512, 32, {"subsampling": 0}, 8),  # 64
    (96, 32, {}, 3),  # 6: 48 pixels are nearer to 64 than 96 are
  ],
)
def test_restart_markers_keep_the_pixels(width, height, options, interval):
  data = image(1, width=width, height=height, **options)
  stored, _ = recode_photo(data, restart_markers=True)
  header = jpeg_layout.read_header(stored)
  assert header.one_scan
  assert header.num_indexed
  assert header.restart_interval == interval
  assert np.array_equal(decode(stored), decode(data))


@needs_turbojpeg
@pytest.mark.parametrize(
  ("mode", "file_format"), [("RGB", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG")]
)
@pytest.mark.parametrize("orientation", [2, 6, 7])
@pytest.mark.parametrize("resize", [None, 96])
@pytest.mark.parametrize("restart_markers", [False, True])
def test_images_stay_upright(mode, file_format, orientation, resize, restart_markers):
  exif = Image.Exif()
  exif[0x0112] = orientation
  options = {"quality": 100, "subsampling": 0, "exif": exif.tobytes()}
  data = image(4, mode, file_format, width=200, height=130, **options)
  stored, _ = recode_photo(data, resize=resize, restart_markers=restart_markers)
  with Image.open(io.BytesIO(data)) as turned:
    expected = ImageOps.exif_transpose(turned).convert("RGB")
  if resize:
    width, height = expected.size
    size = (round(width * 96 / 130), round(height * 96 / 130))
    expected = expected.resize(size, Image.Resampling.LANCZOS)
  pixels = decode_lib.read_rgb(stored)
  assert pixels.shape == np.asarray(expected).shape
  # By anything like a turn, it would be tens.
  assert np.abs(pixels - np.asarray(expected, np.float64)).mean() < 3
  assert bool(jpeg_layout.read_header(stored).num_indexed) == restart_markers
  assert (stored == data) == (
    (mode, file_format, resize, restart_markers) == ("RGB", "JPEG", None, False)
  )


class Rewriter:
  """A library that rewrites images as a test says."""

  def __init__(self, rewrite):
    self.add_restart_markers = lambda data, interval: rewrite(data)


def refuse(data):
  raise ValueError("Unsupported marker")


@pytest.mark.parametrize(
  ("rewrite", "why"),
  [
    (refuse, "Unsupported marker"),
    (lambda data: image(7), "its pixels would change"),
    (lambda data: image(7)[:300], "the JPEG file breaks off in its header"),
    (lambda data: b"", "not a JPEG file"),
    (lambda data: data, "they have no room in an index"),
  ],
  ids=["fails", "pixels", "cut", "nothing", "unchanged"],
)
def test_an_image_that_cannot_be_marked_is_kept(monkeypatch, rewrite, why):
  monkeypatch.setattr(turbojpeg, "library", lambda: Rewriter(rewrite))
  data = image(3)
  kept = f"kept without restart markers: {why}"
  assert recode_photo(data, restart_markers=True) == (data, kept)
  _, remark = recode_photo(image(3, "CMYK"), restart_markers=True)
  assert remark == f"CMYK, made RGB; {kept}"


@needs_turbojpeg
def test_only_training_images_are_recoded(imagenet, tmp_path):
  plain = prepare(imagenet, tmp_path / "a")
  options = builders.Options(allow_partial=True, restart_markers=True)
  marked = prepare(imagenet, tmp_path / "b", options)
  assert archives.encoded(plain, "validation") == archives.encoded(marked, "validation")
  for record in archives.encoded(marked, "train"):
    assert jpeg_layout.read_header(record["image"]).num_indexed
  assert report_of(marked)["options"]["restart_markers"]


@pytest.mark.parametrize(
  ("dataset", "message"),
  [
    ("imagenet", "needs libjpeg-turbo 3.1 or newer: pip install pylibjxl"),
    ("cifar100", "--resize and --restart_markers are for photos"),
  ],
)
def test_restart_markers_that_cannot_be_had(dataset, message, tmp_path, monkeypatch):
  monkeypatch.setattr(turbojpeg, "library", lambda: None)
  options = builders.Options(restart_markers=True)
  with pytest.raises(ConfigError, match=message):
    archives.prepare(dataset, tmp_path, tmp_path / "data", options)
