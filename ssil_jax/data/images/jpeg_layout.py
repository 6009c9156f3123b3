"""The layout of a JPEG file: its frame, and the cutting out of restart intervals.

Entropy-coded data can only be decoded from its beginning or from a restart marker
(ITU-T T.81, annexes B and F). A file with such markers at the same places of every row of
blocks can be cut, without decoding, to a smaller JPEG of the blocks that a crop needs, with
the same pixels. `add_index` says in the file where the intervals lie.
"""

import re
import struct
from typing import NamedTuple

import numpy as np

from ssil_jax.data.images import exif
from ssil_jax.data.images.crop import Box

MAGIC = b"\xff\xd8\xff"

_SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # frames of every kind
_SOF_SEQUENTIAL = (0xC0, 0xC1)  # baseline and extended, Huffman-coded
_DRI, _SOS, _EOI, _RST0, _TEM = 0xDD, 0xDA, 0xD9, 0xD0, 0x01
# The end of entropy-coded data, where a 0xFF may only be followed by zero or be part of a
# restart marker (T.81, B.1.1.2). Any number of 0xFF may stand before a marker.
_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])", re.DOTALL)
_RESTART_OR_END = re.compile(rb"\xff[\xd0-\xd7\xd9]")
_APP1, _APP15 = 0xE1, 0xEF
_EXIF_NAME = b"Exif\0\0"
# An application segment that begins like this holds the length of every restart interval
# in bytes, its marker left out, as big-endian 16-bit numbers.
_INDEX_NAME = b"ssil_jax intervals\0"
_INDEX_DTYPE = np.dtype(">u2")
_SEGMENT_BYTES = 0xFFFF - 2  # T.81, B.1.1.4: the length counts itself
# Upsampled chroma of a pixel takes from the sample before and after it, 2 pixels away; but
# libjpeg does without in an image of 4 columns or fewer, and no piece may become as narrow.
_CHROMA_REACH = 4


class Header(NamedTuple):
  """Holds what the segments before the first scan tell."""

  width: int  # pixels
  height: int
  num_components: int  # 1: grayscale, 3: colour, 4: CMYK
  mcu_width: int  # pixels of a minimum coded unit
  mcu_height: int
  restart_interval: int  # MCUs between two restart markers; 0: there are none
  one_scan: bool  # sequential, with all components interleaved in the first scan
  frame_start: int  # byte offset of the frame's marker (SOF)
  scan_start: int  # byte offset of the entropy-coded data
  index_start: int  # byte offset of the lengths that `add_index` wrote; 0: there are none
  num_indexed: int  # restart intervals in it
  orientation: int  # how to hold the stored pixels, see `exif`


def read_header(data: bytes) -> Header:
  """Reads the segments up to the first scan.

  Raises ValueError if this is no JPEG, or breaks off before its first scan.
  """
  if not data.startswith(MAGIC):
    raise ValueError("not a JPEG file")
  offset, restart_interval = 2, 0
  index_start = num_indexed = 0
  frame = orientation = None
  try:
    while True:
      if data[offset] != 0xFF:
        raise ValueError(f"no marker at byte {offset} of a JPEG header")
      marker = data[offset + 1]
      if marker == 0xFF:  # a fill byte
        offset += 1
        continue
      (length,) = struct.unpack_from(">H", data, offset + 2)
      if marker in _SOF:
        frame = offset
      elif marker == _DRI:
        (restart_interval,) = struct.unpack_from(">H", data, offset + 4)
      elif marker == _APP1 and data.startswith(_EXIF_NAME, offset + 4):
        block = data[offset + 4 + len(_EXIF_NAME) : offset + 2 + length]
        orientation = orientation or exif.orientation(block)  # the first one counts
      elif marker == _APP15 and data.startswith(_INDEX_NAME, offset + 4):
        index_start = offset + 4 + len(_INDEX_NAME)
        num_indexed = (offset + 2 + length - index_start) // _INDEX_DTYPE.itemsize
      elif marker == _SOS:
        break
      offset += 2 + length
    if frame is None:
      raise ValueError("a JPEG header without a frame")
    height, width, num_components = struct.unpack_from(">HHB", data, frame + 5)
    factors = [data[frame + 11 + 3 * c] for c in range(num_components)]
    in_scan = data[offset + 4]
  except (IndexError, struct.error) as error:
    raise ValueError("the JPEG file breaks off in its header") from error
  if not (width and height and factors):
    raise ValueError(f"a JPEG frame of {width}x{height}, {num_components} components")
  if not all(1 <= f >> 4 <= 4 and 1 <= f & 15 <= 4 for f in factors):  # T.81, B.2.2
    raise ValueError("a JPEG frame with impossible sampling factors")
  if num_components == 1:
    factors = [0x11]  # one scan has no interleaving: its MCU is one block (T.81, A.2.2)
  return Header(
    width=width,
    height=height,
    num_components=num_components,
    mcu_width=8 * max(f >> 4 for f in factors),
    mcu_height=8 * max(f & 15 for f in factors),
    restart_interval=restart_interval,
    one_scan=data[frame + 1] in _SOF_SEQUENTIAL and in_scan == num_components,
    frame_start=frame,
    scan_start=offset + 2 + length,
    index_start=index_start,
    num_indexed=num_indexed,
    orientation=orientation or exif.UPRIGHT,
  )


def count_scans(data: bytes, header: Header, *, most: int) -> int:
  """Counts the scans of a JPEG file up to its end (EOI), or up to `most`."""
  count, place = 1, header.scan_start
  while count < most and (found := _MARKER.search(data, place)):
    (marker,), place = found[1], found.end()
    if marker == _EOI:
      break
    if marker != _TEM:
      # A segment: its bytes may look like markers.
      place += int.from_bytes(data[place : place + 2], "big")
    count += marker == _SOS
  return count


def add_index(data: bytes) -> bytes:
  """Writes the lengths of a file's restart intervals into its header.

  It stays unchanged if `cut` could not use them: the scan is not sequential or not
  interleaved, rows do not start at restart markers, or the lengths do not fit a segment.
  Raises ValueError if it has no readable header or no end.
  """
  header = read_header(data)
  rows, columns = _grid_shape(header)
  if not header.one_scan or not columns:
    return data
  lengths, start = [], header.scan_start
  for marker in _RESTART_OR_END.finditer(data, start):
    lengths.append(marker.start() - start)
    start = marker.end()
    if data[start - 1] == _EOI:
      break
  else:
    raise ValueError("the JPEG file has no end")
  room = (_SEGMENT_BYTES - len(_INDEX_NAME)) // _INDEX_DTYPE.itemsize
  whole = len(lengths) == rows * columns  # more, if rows do not start at markers
  if not whole or len(lengths) > room or max(lengths) > np.iinfo(_INDEX_DTYPE).max:
    return data
  index = _INDEX_NAME + np.array(lengths, _INDEX_DTYPE).tobytes()
  return _with_segment(data, header, _APP15, index)


def add_orientation(data: bytes, orientation: int) -> bytes:
  """Adds EXIF data to a JPEG file without any; raises ValueError as `read_header` does."""
  content = _EXIF_NAME + exif.block_of(orientation)
  return _with_segment(data, read_header(data), _APP1, content)


def _with_segment(data: bytes, header: Header, marker: int, content: bytes) -> bytes:
  segment = struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content
  # After the segments that must come first (JFIF, Adobe): just before the frame.
  return data[: header.frame_start] + segment + data[header.frame_start :]


def cut(data: bytes, header: Header, box: Box) -> tuple[bytes, int, int]:
  """Cuts out the smallest JPEG that holds a box of an image, with the same pixels there.

  The file has an index; the box is not empty, and lies inside the image. The piece ends at
  the next restart markers. Returns it, and its left and top in the whole image, in pixels.
  Raises ValueError if the index is not that of this file.
  """
  left, top, right, bottom = box
  mcu_width, mcu_height = header.mcu_width, header.mcu_height
  across, down = (_CHROMA_REACH if side > 8 else 0 for side in (mcu_width, mcu_height))
  step = header.restart_interval * mcu_width  # pixels
  rows, columns = _grid_shape(header)
  if header.num_indexed != rows * columns:
    raise ValueError(
      f"an index of {header.num_indexed} restart intervals instead of {rows * columns}"
    )
  first_column = max(left - across, 0) // step
  last_column = min(-(-(right + across) // step), columns)
  first_row = max(top - down, 0) // mcu_height
  last_row = min(-(-(bottom + down) // mcu_height), rows)

  lengths = np.frombuffer(data, _INDEX_DTYPE, header.num_indexed, header.index_start)
  lengths = lengths.astype(np.int64)
  ends = header.scan_start + np.cumsum(lengths + 2) - 2  # a marker is two bytes long
  if data[ends[-1] : ends[-1] + 2] != b"\xff\xd9":
    raise ValueError("the index of restart intervals does not end where the scan does")
  starts, ends, lengths = (
    array.reshape(rows, columns)[first_row:last_row, first_column:last_column]
    for array in (ends - lengths, ends, lengths)
  )
  # The intervals of a row lie together, with the markers between them.
  parts = []
  for start, end in zip(starts[:, 0].tolist(), ends[:, -1].tolist(), strict=True):
    parts += (data[start:end], b"\xff\xd0")

  head = bytearray(data[: header.scan_start])
  x, y = first_column * step, first_row * mcu_height
  width = min(last_column * step, header.width) - x
  height = min(last_row * mcu_height, header.height) - y
  struct.pack_into(">HH", head, header.frame_start + 5, height, width)
  piece = np.frombuffer(bytearray(b"".join([head, *parts])), np.uint8)
  # Markers count from 0 to 7 and round again (T.81, B.2.1); the last one ends the image.
  markers = header.scan_start + np.cumsum(lengths + 2) - 1
  piece[markers] = _RST0 + (np.arange(len(markers)) & 7)
  piece[-1] = _EOI
  return piece.tobytes(), x, y


def _grid_shape(header: Header) -> tuple[int, int]:
  """Returns rows of MCUs, and whole restart intervals in a row; 0 without markers."""
  rows = -(-header.height // header.mcu_height)
  in_row, interval = -(-header.width // header.mcu_width), header.restart_interval
  return rows, in_row // interval if interval else 0
