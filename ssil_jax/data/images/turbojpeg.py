"""Calls libjpeg-turbo for more than whole images: parts of one, and restart markers.

No Python package that we found offers either, so its own C interface (TurboJPEG 3.1) is
called by ctypes. The package `pylibjxl` carries the library inside its extension module;
where there are no wheels of it, a `libturbojpeg` of the system will do. A library is used
if it proves, on a small image, to give the very pixels that simplejpeg gives.
"""

import contextlib
import ctypes
import functools
import importlib.machinery
import importlib.util
import os
from collections.abc import Iterator

import numpy as np
import simplejpeg
from absl import logging

from ssil_jax.data.images import jpeg_layout
from ssil_jax.data.images.crop import Box

NEEDED = (
  "libjpeg-turbo 3.1 or newer: pip install pylibjxl==0.5.0, or conda install libjpeg-turbo"
)

_WHEEL, _MODULE = "pylibjxl", "_pylibjxl"
_OF_SYSTEM = (
  "libturbojpeg.so.0",
  "libturbojpeg.0.dylib",
  "/opt/homebrew/lib/libturbojpeg.0.dylib",
)
# Values of turbojpeg.h.
_DECOMPRESS, _TRANSFORM = 1, 2  # TJINIT
_RGB = 0  # TJPF
_RESTART_BLOCKS = 18  # TJPARAM
_COPY_NONE, _OPTIMIZE = 1 << 6, 1 << 8  # TJXOPT
_WARNING = 0  # TJERR
_END = b"\xff\xd9"  # of a JPEG file
# MCUs on both sides of a part, without which its outermost pixels would differ: upsampled
# chroma takes from the sample before and after it, and where a progressive file lacks bits
# of coefficients, libjpeg smooths over two blocks each way.
_UPSAMPLED, _SMOOTHED = 1, 3


class _Region(ctypes.Structure):
  _fields_ = [(name, ctypes.c_int) for name in ("x", "y", "w", "h")]


class _Transform(ctypes.Structure):
  _fields_ = [
    ("region", _Region),
    ("operation", ctypes.c_int),
    ("options", ctypes.c_int),
    ("data", ctypes.c_void_p),
    ("filter", ctypes.c_void_p),
  ]


_HANDLE, _BYTES = ctypes.c_void_p, ctypes.c_char_p
_SIZE, _INT = ctypes.c_size_t, ctypes.c_int
# Of each function what it returns and takes. Python's interpreter lock is kept during the
# short ones: to get it back costs more.
_SHORT = {
  "tj3Init": (_HANDLE, _INT),
  "tj3Destroy": (None, _HANDLE),
  "tj3Free": (None, ctypes.c_void_p),
  "tj3Set": (_INT, _HANDLE, _INT, _INT),
  "tj3GetErrorStr": (_BYTES, _HANDLE),
  "tj3GetErrorCode": (_INT, _HANDLE),
  "tj3DecompressHeader": (_INT, _HANDLE, _BYTES, _SIZE),
  "tj3SetCroppingRegion": (_INT, _HANDLE, _Region),
}
_LONG = {
  "tj3Decompress8": (_INT, _HANDLE, _BYTES, _SIZE, ctypes.c_void_p, _INT, _INT),
  "tj3Transform": (
    *(_INT, _HANDLE, _BYTES, _SIZE, _INT),
    *(ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(_SIZE), ctypes.POINTER(_Transform)),
  ),
}


class Library:
  """Functions of a shared library; threads may call them at once."""

  def __init__(self, path: str):
    """Raises OSError if it cannot be loaded, AttributeError if it lacks a function."""
    self.path = path
    for loaded, functions in ((ctypes.PyDLL(path), _SHORT), (ctypes.CDLL(path), _LONG)):
      for name, (result, *arguments) in functions.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
        setattr(self, "_" + name, function)

  def decode(self, data: bytes, header: jpeg_layout.Header, box: Box) -> np.ndarray:
    """Decodes a box of a JPEG in gray or colour, uint8 [h, w, 3]; perhaps a view.

    The box is not empty. Damage below it is found only if there are several scans.

    Raises ValueError, with libjpeg's words, if it cannot be decoded or libjpeg warns.
    """
    left, top, right, bottom = box
    step, around = header.mcu_width, _SMOOTHED
    if header.one_scan:
      around = _UPSAMPLED if step > 8 else 0
    with self._handle(_DECOMPRESS) as handle:
      self._check(handle, self._tj3DecompressHeader(handle, data, len(data)))
      x = max(left // step - around, 0) * step
      end = min((-(-right // step) + around) * step, header.width)
      region = _Region(x, top, end - x, bottom - top)
      if region.w <= 0 or region.h <= 0:  # 0 would mean: up to the end
        raise ValueError(f"a box of {region.w} x {region.h} pixels")
      self._check(handle, self._tj3SetCroppingRegion(handle, region))
      pixels = np.empty((region.h, region.w, 3), np.uint8)
      self._check(
        handle,
        self._tj3Decompress8(
          handle, data, len(data), pixels.ctypes.data, pixels.strides[0], _RGB
        ),
      )
    return pixels[:, left - x : right - x]

  def add_restart_markers(self, data: bytes, interval: int) -> bytes:
    """Rewrites a JPEG without loss: one scan, a restart marker after every `interval` MCUs.

    It gets Huffman tables of its own, and loses its metadata. What libjpeg only warns of is
    passed over. Raises ValueError, with libjpeg's words.
    """
    buffer, size = ctypes.c_void_p(), _SIZE()
    transform = _Transform(options=_COPY_NONE | _OPTIMIZE)
    with self._handle(_TRANSFORM) as handle:
      try:
        self._check(handle, self._tj3Set(handle, _RESTART_BLOCKS, interval))
        outputs = ctypes.byref(buffer), ctypes.byref(size), ctypes.byref(transform)
        status = self._tj3Transform(handle, data, len(data), 1, *outputs)
        marked = ctypes.string_at(buffer, size.value)
        # An error after a warning is also said to be one: then no whole file is written.
        if self._tj3GetErrorCode(handle) != _WARNING or not marked.endswith(_END):
          self._check(handle, status)
        return marked
      finally:
        self._tj3Free(buffer)

  @contextlib.contextmanager
  def _handle(self, kind: int) -> Iterator[int]:
    """Makes what a call needs; one that has met an error could not be used again."""
    handle = self._tj3Init(kind)
    if handle is None:
      raise MemoryError("TurboJPEG cannot be initialized")
    try:
      yield handle
    finally:
      self._tj3Destroy(handle)

  def _check(self, handle: int, status: int) -> None:
    if status:
      raise ValueError(self._tj3GetErrorStr(handle).decode(errors="replace"))


@functools.cache
def library() -> Library | None:
  """Returns the library to use; without one, says so once."""
  reasons = []
  for path in _candidates():
    try:
      found = Library(path)
      _check_pixels(found)
    except (OSError, AttributeError, ValueError) as error:
      reasons.append(f"{path}: {error}")
    else:
      return found
  logging.warning(
    "crops of JPEG files are cut out of whole images, which takes longer and gives the "
    "same pixels: there is no %s%s",
    NEEDED,
    f" ({'; '.join(reasons)})" if reasons else "",
  )
  return None


def _candidates() -> Iterator[str]:
  # The package itself is of no use here, and need not be imported.
  spec = importlib.util.find_spec(_WHEEL)
  for folder in (spec and spec.submodule_search_locations) or ():
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
      if os.path.exists(path := os.path.join(folder, _MODULE + suffix)):
        yield path
  yield from _OF_SYSTEM


def _check_pixels(found: Library) -> None:
  """Raises ValueError if a library does not do what is expected of one."""
  y, x = np.mgrid[:40, :64]
  pixels = np.stack([5 * x * y % 256, 4 * x, 6 * y], -1).astype(np.uint8)
  data = simplejpeg.encode_jpeg(pixels, colorsubsampling="420")
  header, whole = jpeg_layout.read_header(data), simplejpeg.decode_jpeg(data)
  left, top, right, bottom = box = (33, 9, 41, 30)
  if not np.array_equal(found.decode(data, header, box), whole[top:bottom, left:right]):
    raise ValueError("it gives other pixels than simplejpeg")
  marked = found.add_restart_markers(data, 2)
  if jpeg_layout.read_header(marked).restart_interval != 2:
    raise ValueError("it is older than 3.1")
  if not np.array_equal(simplejpeg.decode_jpeg(marked), whole):
    raise ValueError("restart markers change the pixels")
