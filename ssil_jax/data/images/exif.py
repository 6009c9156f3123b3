"""EXIF orientation: how the stored pixels are turned to stand upright.

Cameras store what the sensor saw, and a number from 1 to 8 that says how to hold it (TIFF
6.0, tag 274; Exif 2.32, section 4.6.4). Stored pixels become upright by a transposition (5
to 8) and then by mirroring rows or columns.
"""

import struct

import numpy as np

from ssil_jax.data.images.crop import Box

UPRIGHT = 1

_TAG = 0x0112
_FORMATS = {1: "B", 3: "H", 4: "I"}  # TIFF types of the number: BYTE, SHORT, LONG
_TRANSPOSED = (5, 6, 7, 8)
_ROWS_MIRRORED = (3, 4, 7, 8)  # after the transposition
_COLUMNS_MIRRORED = (2, 3, 6, 7)


def orientation(block: bytes) -> int:
  """Returns the orientation, 1 to 8, that an EXIF block asks for.

  The block is a TIFF header and what follows it, the bytes after `Exif`, 0, 0. If it says
  nothing that can be understood, the orientation is 1, for upright.
  """
  order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
  if order is None:
    return UPRIGHT
  try:
    (entry,) = struct.unpack_from(order + "I", block, 4)
    (count,) = struct.unpack_from(order + "H", block, entry)
    for place in range(entry + 2, entry + 2 + 12 * count, 12):
      tag, kind = struct.unpack_from(order + "HH", block, place)
      if tag == _TAG and kind in _FORMATS:
        (value,) = struct.unpack_from(order + _FORMATS[kind], block, place + 8)
        return value if 1 <= value <= 8 else UPRIGHT
  except struct.error:  # it breaks off
    pass
  return UPRIGHT


def block_of(value: int) -> bytes:
  """Returns the smallest EXIF block with an orientation."""
  header = struct.pack(">2sHI", b"MM", 42, 8)
  return header + struct.pack(">HHHIHHI", 1, _TAG, 3, 1, value, 0, 0)


def upright_size(width: int, height: int, value: int) -> tuple[int, int]:
  """Returns (width, height) of the upright image, from those of the stored one."""
  return (height, width) if value in _TRANSPOSED else (width, height)


def stored_box(box: Box, width: int, height: int, value: int) -> Box:
  """Returns where a box of the upright image, of this size, lies in the stored one."""
  left, top, right, bottom = box
  if value in _COLUMNS_MIRRORED:
    left, right = width - right, width - left
  if value in _ROWS_MIRRORED:
    top, bottom = height - bottom, height - top
  if value in _TRANSPOSED:
    left, top, right, bottom = top, left, bottom, right
  return left, top, right, bottom


def upright(pixels: np.ndarray, value: int) -> np.ndarray:
  """Turns stored pixels [H, W, 3], or a box of them, upright; a view."""
  if value in _TRANSPOSED:
    pixels = pixels.swapaxes(0, 1)
  rows = -1 if value in _ROWS_MIRRORED else 1
  columns = -1 if value in _COLUMNS_MIRRORED else 1
  return pixels[::rows, ::columns]
