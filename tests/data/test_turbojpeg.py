"""Parts of JPEG files, and restart markers, by a library that may be missing."""

import contextlib
import importlib.metadata
import itertools
import pathlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import simplejpeg
from absl import logging as absl_logging
from folders import ROOT, encode, needs_turbojpeg, noise, photo
from packaging.requirements import Requirement

from ssil_jax.data.images import decode, jpeg_layout, turbojpeg

END = b"\xff\xd9"


def random_boxes(height, width, count, seed=0):
  rng = np.random.default_rng(seed)
  for _ in range(count):
    left, top = int(rng.integers(width)), int(rng.integers(height))
    yield left, top, int(rng.integers(left, width)) + 1, int(rng.integers(top, height)) + 1


def without_last_scans(data, count):
  """A progressive JPEG that lacks bits of its coefficients, which is allowed."""
  for _ in range(count):
    data = data[: data.rindex(b"\xff\xda")] + END
  return data


def files(height, width):
  """JPEG files of every kind, of noise: all that a pixel depends on shows."""
  pixels = noise(height, width)
  for sampling in ("444", "422", "420", "440", "411"):
    yield simplejpeg.encode_jpeg(pixels, 60, "RGB", sampling)
  yield encode(pixels, mode="L")
  yield encode(pixels, keep_rgb=True)
  yield encode(pixels, restart_marker_blocks=3)
  for sampling, scans in itertools.product((0, 1, 2), (0, 1, 4)):
    data = encode(pixels, progressive=True, subsampling=sampling, quality=90)
    yield without_last_scans(data, scans)


# The library.


def test_requirements_bring_a_library():
  lines = (ROOT / "requirements.txt").read_text().splitlines()
  (line,) = (line for line in lines if line.startswith("pylibjxl"))
  needed = Requirement(line.partition("#")[0])
  assert str(needed).partition(";")[0] in turbojpeg.NEEDED
  if not needed.marker.evaluate():
    pytest.skip("pylibjxl has no wheel for this machine: see docs/data.md")
  version = importlib.metadata.version("pylibjxl")
  assert version in needed.specifier
  assert "pylibjxl" in pathlib.Path(turbojpeg.library().path).parts


@pytest.fixture
def candidates(monkeypatch):
  """Sets the paths where a library is looked for."""
  paths = []
  monkeypatch.setattr(turbojpeg, "_candidates", lambda: paths)
  turbojpeg.library.cache_clear()
  yield paths
  turbojpeg.library.cache_clear()


def test_without_a_library_the_pixels_are_the_same(candidates, caplog):
  absl_logging.use_absl_handler()
  data = encode(photo(90, 120))
  image = decode.EncodedImage(data)
  part = image.read((17, 20, 100, 33))
  assert turbojpeg.library() is None
  np.testing.assert_array_equal(part, image.read()[20:33, 17:100])
  (message,) = caplog.messages
  assert "there is no libjpeg-turbo 3.1 or newer: pip install pylibjxl" in message


class Broken(turbojpeg.Library):
  """A library as it must not be."""

  def __init__(self, fault):
    super().__init__(GOOD.path)
    self._fault = fault

  def decode(self, data, header, box):
    pixels = super().decode(data, header, box)
    return pixels ^ (self._fault == "pixels")

  def add_restart_markers(self, data, interval):
    marked = super().add_restart_markers(data, interval)
    return {"old": data, "marked": encode(noise(40, 64), restart_marker_blocks=2)}.get(
      self._fault, marked
    )


GOOD = turbojpeg.library()


@needs_turbojpeg
@pytest.mark.parametrize(
  ("fault", "reason"),
  [
    ("pixels", "other pixels than simplejpeg"),
    ("old", "older than 3.1"),
    ("marked", "markers change the pixels"),
    (None, None),
  ],
)
def test_a_library_is_tried_before_it_is_used(
  candidates, monkeypatch, caplog, fault, reason
):
  candidates[:] = ["broken", GOOD.path]
  load = turbojpeg.Library
  monkeypatch.setattr(
    turbojpeg, "Library", lambda path: Broken(fault) if path == "broken" else load(path)
  )
  assert isinstance(turbojpeg.library(), Broken) == (fault is None)
  with pytest.raises(ValueError, match=reason) if reason else contextlib.nullcontext():
    turbojpeg._check_pixels(Broken(fault))


def test_what_is_no_such_library_is_passed_over(candidates, tmp_path, caplog):
  absl_logging.use_absl_handler()
  (tmp_path / "text.so").write_text("text")
  candidates[:] = [str(tmp_path / "none.so"), str(tmp_path / "text.so")]
  assert turbojpeg.library() is None
  assert "none.so" in caplog.text
  assert "text.so" in caplog.text


# Parts of images.


@needs_turbojpeg
@pytest.mark.parametrize(("height", "width"), [(75, 110), (64, 130), (33, 17), (1, 40)])
def test_a_part_has_the_pixels_of_the_whole(height, width):
  for number, data in enumerate(files(height, width)):
    header = jpeg_layout.read_header(data)
    whole = simplejpeg.decode_jpeg(data, strict=True)
    for box in random_boxes(height, width, 40, seed=number):
      left, top, right, bottom = box
      part = GOOD.decode(data, header, box)
      assert np.array_equal(part, whole[top:bottom, left:right]), (number, box)


@needs_turbojpeg
def test_threads_decode_at_once():
  images = [photo(200, 260, seed) for seed in range(8)]
  data = [encode(pixels) for pixels in images]
  whole = [simplejpeg.decode_jpeg(one) for one in data]
  boxes = list(random_boxes(200, 260, 400))

  def is_right(number):
    left, top, right, bottom = box = boxes[number]
    header = jpeg_layout.read_header(data[number % 8])
    part = GOOD.decode(data[number % 8], header, box)
    return np.array_equal(part, whole[number % 8][top:bottom, left:right])

  with ThreadPoolExecutor(8) as threads:
    assert all(threads.map(is_right, range(400)))


def test_parts_of_four_inks():
  data = encode(photo(60, 80), mode="CMYK")
  image = decode.EncodedImage(data)
  np.testing.assert_array_equal(image.read((3, 9, 30, 20)), image.read()[9:20, 3:30])


@needs_turbojpeg
def test_only_what_a_part_needs_is_decoded():
  data, box = encode(noise(64, 64)), (0, 20, 64, 28)
  start = jpeg_layout.read_header(data).scan_start
  place = start + (len(data) - start) * 3 // 4
  damaged = data[:place] + b"\xff\x00" * 8 + data[place + 16 :]
  image = decode.EncodedImage(damaged)
  np.testing.assert_array_equal(image.read(box), decode.read_rgb(data)[20:28])
  with pytest.raises(decode.ImageError) as of_whole:
    image.read()
  # Through the damage, and below it: refused in the same words.
  for box in ((0, 40, 64, 60), (9, 63, 10, 64)):
    with pytest.raises(decode.ImageError) as of_part:
      image.read(box)
    assert str(of_part.value) == str(of_whole.value)


@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}, {"progressive": True}])
def test_of_a_truncated_file_no_part_is_read(options):
  data = encode(noise(64, 64), **options)
  start = jpeg_layout.read_header(data).scan_start
  for kept in (start + 9, (start + len(data)) // 2, len(data) - 2, len(data) - 1):
    image = decode.EncodedImage(data[:kept])
    with pytest.raises(decode.ImageError) as of_whole:
      image.read()
    with pytest.raises(decode.ImageError) as of_part:
      image.read((0, 0, 64, 1))
    assert str(of_part.value) == str(of_whole.value)


# Restart markers.


@needs_turbojpeg
def test_words_of_libjpeg():
  data = encode(photo(40, 60))
  for junk in (b"", b"text", data[:20]):
    with pytest.raises(ValueError, match=r"\w"):
      GOOD.add_restart_markers(junk, 1)
  header = jpeg_layout.read_header(data)
  with pytest.raises(ValueError, match="exceeds the scaled image dimensions"):
    GOOD.decode(data, header, (0, 39, 60, 41))
  with pytest.raises(ValueError, match="60 x 0 pixels"):
    GOOD.decode(data, header, (0, 7, 60, 7))
  # Only a warning, of bytes that belong to nothing.
  odd = data[:-2] + bytes(9) + data[-2:]
  assert GOOD.add_restart_markers(odd, 4) == GOOD.add_restart_markers(data, 4)
