"""The layout of JPEG files, and pieces cut out of them without decoding."""

import struct

import numpy as np
import pytest
import simplejpeg
from folders import encode, noise
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ssil_jax.data.images import jpeg_layout

# Name -> Pillow's options, image mode, and an MCU's width and height.
ENCODINGS = {
  "4:4:4": ({"subsampling": "4:4:4"}, "RGB", (8, 8)),
  "4:2:2": ({"subsampling": "4:2:2"}, "RGB", (16, 8)),
  "4:2:0": ({"subsampling": "4:2:0"}, "RGB", (16, 16)),
  "gray": ({}, "L", (8, 8)),
}


def pixels_of(data):
  return simplejpeg.decode_jpeg(data, "RGB", strict=True)


def plain_file(height, width, name, blocks=None):
  """A JPEG of noise; restart intervals of whole rows, or of so many MCUs."""
  options, mode, _ = ENCODINGS[name]
  restarts = {"restart_marker_blocks": blocks} if blocks else {"restart_marker_rows": 1}
  # Colours change from block to block, so that a wrong neighbour would show.
  return encode(noise(height, width), mode=mode, quality=80, **restarts, **options)


def indexed_file(*args):
  indexed = jpeg_layout.add_index(plain_file(*args))
  assert jpeg_layout.read_header(indexed).num_indexed > 0
  return indexed


# Headers.


@pytest.mark.parametrize(
  ("options", "fields"),
  [
    ({}, {"num_components": 3, "one_scan": True, "restart_interval": 0, "num_indexed": 0}),
    ({"subsampling": "4:4:4"}, {"mcu_width": 8, "mcu_height": 8}),
    ({"subsampling": "4:2:2"}, {"mcu_width": 16, "mcu_height": 8}),
    ({"subsampling": "4:2:0"}, {"mcu_width": 16, "mcu_height": 16}),
    ({"mode": "L"}, {"num_components": 1, "mcu_width": 8, "mcu_height": 8}),
    ({"mode": "CMYK"}, {"num_components": 4, "one_scan": True}),
    ({"progressive": True}, {"num_components": 3, "one_scan": False}),
    # It counts MCUs: 100 columns are 7 of 16 columns, or 13 of 8.
    ({"subsampling": "4:2:0", "restart_marker_rows": 1}, {"restart_interval": 7}),
    ({"subsampling": "4:2:0", "restart_marker_rows": 2}, {"restart_interval": 14}),
    ({"subsampling": "4:4:4", "restart_marker_rows": 1}, {"restart_interval": 13}),
    ({"subsampling": "4:4:4", "restart_marker_blocks": 5}, {"restart_interval": 5}),
  ],
)
def test_headers(options, fields):
  found = jpeg_layout.read_header(encode(noise(33, 100), **options))._asdict()
  assert found.items() >= {"width": 100, "height": 33, **fields}.items()


def test_segments_and_fill_bytes_before_the_frame_are_skipped():
  exif = Image.Exif()
  exif[0x010E] = "a description, \xff\xc0 and all"
  # Markers in a segment are no markers.
  profile = b"\xff\xc0\x00\x11\x08\xff\xda\xff\xdd\x00\x04\x00\x01" * 6000
  plain = encode(noise(30, 50))
  data = encode(noise(30, 50), exif=exif, icc_profile=profile, comment=b"\xff\xda" * 9)
  assert len(data) > 70_000  # the profile takes two segments
  before, start = jpeg_layout.read_header(plain), jpeg_layout.read_header(data).frame_start
  added = len(data) + 3 - len(plain)
  assert jpeg_layout.read_header(
    data[:start] + b"\xff" * 3 + data[start:]
  ) == before._replace(
    frame_start=before.frame_start + added, scan_start=before.scan_start + added
  )


# Broken headers.


@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}, {"progressive": True}])
def test_a_header_that_breaks_off_is_refused_wherever_it_does(options):
  data = jpeg_layout.add_index(encode(noise(20, 20), **options))
  scan_start = jpeg_layout.read_header(data).scan_start
  # The last segment's length is read, and its content is the decoder's business.
  last = data.rindex(b"\xff\xda", 0, scan_start) + 5
  for length in range(last):
    with pytest.raises(ValueError, match="JPEG"):
      jpeg_layout.read_header(data[:length])
  for length in range(last, scan_start):
    assert jpeg_layout.read_header(data[:length]).scan_start == scan_start


@pytest.mark.parametrize(
  ("place", "content", "reason"),  # place in the frame
  [
    (5, b"\0\0", "frame of"),  # height
    (7, b"\0\0", "frame of"),  # width
    *((11, bytes([factors]), "sampling factors") for factors in (0, 0x10, 1, 0x51, 0x15)),
  ],
)
def test_an_impossible_frame_is_refused(place, content, reason):
  data = bytearray(encode(noise(20, 20)))
  place += jpeg_layout.read_header(data).frame_start
  data[place : place + len(content)] = content
  with pytest.raises(ValueError, match=reason):
    jpeg_layout.read_header(bytes(data))


# The index.


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("blocks", [None, 1, 2])
def test_an_index_holds_the_length_of_every_interval(name, blocks):
  data = indexed_file(40, 64, name, blocks)
  header = jpeg_layout.read_header(data)
  mcu_width, mcu_height = ENCODINGS[name][2]
  per_row = 1 if blocks is None else 64 // mcu_width // blocks
  assert header.num_indexed == -(-40 // mcu_height) * per_row
  lengths = struct.unpack_from(f">{header.num_indexed}H", data, header.index_start)
  place = header.scan_start
  for number, length in enumerate(lengths):
    scan = data[place : place + length]
    assert b"\xff" not in scan.replace(b"\xff\0", b"")  # no marker inside
    place += length + 2
    last = number == len(lengths) - 1
    assert data[place - 2 : place] == bytes([0xFF, 0xD9 if last else 0xD0 + number % 8])
  assert place == len(data)
  # No other byte has changed.
  plain = plain_file(40, 64, name, blocks)
  start = jpeg_layout.read_header(plain).frame_start
  assert data[:start] + data[start + len(data) - len(plain) :] == plain


def test_what_follows_the_image_is_not_indexed():
  data = encode(noise(40, 64), restart_marker_rows=1)
  with_more = data + b"\xff\xd8 another image \xff\xd0\xff\xd9"
  count = jpeg_layout.read_header(jpeg_layout.add_index(data)).num_indexed
  indexed = jpeg_layout.add_index(with_more)
  header = jpeg_layout.read_header(indexed)
  assert header.num_indexed == count
  piece, _, _ = jpeg_layout.cut(indexed, header, (0, 0, 64, 40))
  np.testing.assert_array_equal(pixels_of(piece), pixels_of(data))


def several_sequential_scans():
  """One component a scan: of a gray file, frame and scan are made to say three."""
  data = bytearray(encode(noise(48, 64), mode="L", restart_marker_rows=1))
  start = jpeg_layout.read_header(data).frame_start
  data[start + 2 : start + 13] = (
    struct.pack(">H", 17) + data[start + 4 : start + 9] + b"\3\1\x11\0"
  )
  data[start + 13 : start + 13] = b"\2\x11\0\3\x11\0"
  header = jpeg_layout.read_header(bytes(data))
  assert (header.num_components, header.one_scan) == (3, False)
  return bytes(data)


def lacking_an_interval():
  data = encode(noise(48, 64), restart_marker_rows=1)
  return data[: data.index(b"\xff\xd0")] + data[data.index(b"\xff\xd1") :]


# A segment has room for 32,757 lengths: 181 x 181 are 32,761.
LARGE = np.zeros((181 * 8, 181 * 8), np.uint8)


@pytest.mark.parametrize(
  "data",
  [
    encode(noise(48, 64)),
    encode(noise(48, 64), progressive=True, restart_marker_rows=1),
    encode(noise(48, 64), restart_marker_rows=2),
    encode(noise(48, 64), restart_marker_blocks=3),  # of 4 in a row
    encode(noise(48, 100), restart_marker_blocks=2),  # of 7
    encode(noise(48, 64), restart_marker_blocks=8),  # two rows
    several_sequential_scans(),
    lacking_an_interval(),
    # Too long: at quality 100, more than a byte a sample, 16 x 4000 x 3 / 2 > 65535.
    encode(noise(16, 4000), quality=100, restart_marker_rows=1),
    encode(LARGE, restart_marker_blocks=1),  # too many
  ],
  ids=range(10),
)
def test_a_file_that_cannot_be_cut_gets_no_index(data):
  assert jpeg_layout.add_index(data) == data


def test_the_most_intervals_that_an_index_holds():
  data = encode(LARGE[8:], restart_marker_blocks=1)
  assert jpeg_layout.read_header(jpeg_layout.add_index(data)).num_indexed == 180 * 181
  with pytest.raises(ValueError, match="no end"):
    jpeg_layout.add_index(data[:-1])


# Pieces.


def check_piece(data, whole, box):
  """Where the piece lies; it has the pixels of the box, where it says."""
  left, top, right, bottom = box
  piece, x, y = jpeg_layout.cut(data, jpeg_layout.read_header(data), box)
  assert 0 <= x <= left
  assert 0 <= y <= top
  pixels = pixels_of(piece)[top - y :, left - x :]
  found = pixels[: bottom - top, : right - left]
  np.testing.assert_array_equal(found, whole[top:bottom, left:right], err_msg=str(box))
  header = jpeg_layout.read_header(piece)
  return x, y, header.width, header.height


@st.composite
def cases(draw):
  """A file's encoding, size and interval, and a box in it."""
  name = draw(st.sampled_from(list(ENCODINGS)))
  height, width = draw(st.integers(1, 70)), draw(st.integers(1, 110))
  in_row = -(-width // ENCODINGS[name][2][0])
  divisors = [n for n in range(1, in_row + 1) if in_row % n == 0]
  blocks = draw(st.sampled_from([None, *divisors]))
  left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
  right = draw(st.integers(left + 1, width))
  bottom = draw(st.integers(top + 1, height))
  return name, height, width, blocks, (left, top, right, bottom)


@settings(derandomize=True, deadline=None, max_examples=250)
@given(cases())
def test_a_piece_has_the_pixels_of_the_whole(case):
  name, height, width, blocks, box = case
  data = indexed_file(height, width, name, blocks)
  check_piece(data, pixels_of(data), box)


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("width", [33, 34, 35, 36, 37])
def test_a_narrow_last_interval(name, width):
  # libjpeg interpolates chroma only in images of 5 columns or more: a piece of the last
  # MCU alone would have other pixels than the whole. Nor is a low one special.
  wide, high = indexed_file(16, width, name, 1), indexed_file(width, 16, name, 1)
  for place in range(24, width):
    check_piece(high, pixels_of(high), (3, place, 9, place + 1))
    for y in (0, 9, 15):
      check_piece(wide, pixels_of(wide), (place, y, place + 1, y + 1))


@pytest.mark.parametrize("blocks", [None, 1])
def test_sampling_factors_of_a_gray_file_mean_nothing(blocks):
  # Many gray photos say 2 x 2. A scan of one component has no interleaving (T.81, A.2.2).
  plain = indexed_file(45, 61, "gray", blocks)
  data = bytearray(plain)
  data[jpeg_layout.read_header(plain).frame_start + 11] = 0x22
  data = bytes(data)
  assert jpeg_layout.read_header(data) == jpeg_layout.read_header(plain)
  whole = pixels_of(data)
  np.testing.assert_array_equal(whole, pixels_of(plain))
  for box in ((0, 0, 61, 45), (20, 20, 30, 30), (60, 44, 61, 45)):
    check_piece(data, whole, box)


@pytest.mark.parametrize(
  ("name", "blocks", "box", "expected"),
  [
    # No chroma to interpolate: the blocks of the box alone.
    ("4:4:4", 1, (16, 24, 24, 32), (16, 24, 8, 8)),
    ("4:4:4", 1, (15, 23, 25, 33), (8, 16, 24, 24)),
    ("4:4:4", 4, (16, 24, 24, 32), (0, 24, 32, 8)),
    ("gray", 2, (16, 24, 24, 32), (16, 24, 16, 8)),
    ("gray", None, (16, 24, 24, 32), (0, 24, 64, 8)),
    # A box inside of a block, away from its edges.
    ("4:2:0", 1, (20, 38, 25, 42), (16, 32, 16, 16)),
    ("4:2:0", 1, (16, 38, 25, 42), (0, 32, 32, 16)),
    ("4:2:0", 1, (20, 32, 25, 48), (16, 16, 16, 48)),
    # Chroma has all rows: neighbours are needed to the left and right only.
    ("4:2:2", 1, (20, 24, 25, 32), (16, 24, 16, 8)),
    ("4:2:2", 1, (16, 24, 32, 32), (0, 24, 48, 8)),
  ],
)
def test_a_piece_is_no_larger_than_needed(name, blocks, box, expected):
  data = indexed_file(64, 64, name, blocks)
  assert check_piece(data, pixels_of(data), box) == expected


# An index that is not the file's.


def test_an_index_that_does_not_end_with_the_scan_is_refused():
  data = indexed_file(48, 64, "4:4:4")
  header = jpeg_layout.read_header(data)
  for place in range(header.index_start, header.index_start + 12):
    for change in (1, 255):
      wrong = bytearray(data)
      wrong[place] = (wrong[place] + change) % 256
      with pytest.raises(ValueError, match="index"):
        jpeg_layout.cut(bytes(wrong), header, (0, 0, 8, 8))
  with pytest.raises(ValueError, match="index"):
    jpeg_layout.cut(data, header._replace(restart_interval=0), (0, 0, 8, 8))


def test_a_truncated_file_with_an_index_is_refused():
  data = indexed_file(48, 64, "4:4:4")
  header = jpeg_layout.read_header(data)
  for length in (header.scan_start, header.scan_start + 9, len(data) - 2, len(data) - 1):
    with pytest.raises(ValueError, match="index"):
      jpeg_layout.cut(data[:length], header, (0, 0, 8, 8))
  with pytest.raises(ValueError, match="buffer"):
    jpeg_layout.cut(data[: header.index_start + 5], header, (0, 0, 8, 8))
