"""Encoded images to uint8 RGB arrays on the host.

JPEG, told by its magic bytes, goes through libjpeg-turbo in strict mode, which refuses what
is truncated or corrupt; PNG and WebP through Pillow, and the rare JPEG of a chroma sampling
that TurboJPEG has no name for. EXIF orientation and transparency are ignored, as in the
reference runs.
"""

import io
import re
from collections.abc import Callable

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from ssil_jax.data import jpeg
from ssil_jax.data.crop import Box

# A header may promise more pixels than there is memory; ten times those of any photo of
# the paper's data sets are enough.
MAX_PIXELS = 100_000_000

_OTHER_FORMATS = ("PNG", "WEBP")

# What Pillow raises for files that it cannot read.
_PILLOW_ERRORS = (
  UnidentifiedImageError,
  OSError,  # truncated
  SyntaxError,  # a broken PNG chunk
  ValueError,  # a broken header
)


# Warnings of libjpeg that mostly tell of something odd beside the pixels. 0xd0 to 0xd7 are
# restart markers, between which pixels would be lost.
_TOLERABLE = re.compile(
  r"extraneous bytes before marker 0x(?!d[0-7])"
  r"|unknown JFIF revision|Invalid SOS parameters|Unknown Adobe color transform"
)
_ODD_SAMPLING = "Could not determine subsampling level"


class ImageError(ValueError):
  """The bytes are not those of a whole image; says why, and not of which image.

  Attributes:
    tolerable: every pixel can be decoded, but libjpeg warned, of damage perhaps.
  """

  def __init__(self, reason: str):
    super().__init__(reason)
    self.tolerable = bool(_TOLERABLE.search(reason))


def size_of(data: bytes) -> tuple[int, int]:
  """(width, height) in pixels, from the header. Raises ImageError."""
  if data.startswith(jpeg.MAGIC):
    header = _jpeg_header(data)
    return header.width, header.height
  with _open_other(data) as image:
    return image.size


def read_rgb(data: bytes, *, strict: bool = True) -> np.ndarray:
  """The whole image, uint8 [H, W, 3]; see `read_box`."""
  return read_box(data, lambda width, height: (0, 0, width, height), strict=strict)


def read_box(
  data: bytes, choose_box: Callable[[int, int], Box], *, strict: bool = True
) -> np.ndarray:
  """A part of an image; no more than needs be is decoded.

  Args:
    data: an encoded image.
    choose_box: (width, height) -> left, top, right, bottom, in pixels.
    strict: whether to refuse a JPEG of which libjpeg warns. Otherwise only one that is
      truncated is refused.

  Returns:
    uint8 [bottom - top, right - left, 3], perhaps a view.

  Raises:
    ImageError: the image is truncated, corrupt, of another format or absurdly large.
  """
  if not data.startswith(jpeg.MAGIC):
    with _open_other(data) as image:
      left, top, right, bottom = choose_box(*image.size)
      return _other_to_rgb(image)[top:bottom, left:right]
  header = _jpeg_header(data)
  box = left, top, right, bottom = choose_box(header.width, header.height)
  try:
    if header.num_indexed:
      data, x, y = jpeg.cut(data, header, box)
      left, top, right, bottom = left - x, top - y, right - x, bottom - y
    if strict:
      pixels = simplejpeg.decode_jpeg(data, "RGB", strict=True)
    else:
      pixels = _read_by_pillow(data)
  except ValueError as error:
    if _ODD_SAMPLING not in str(error):
      raise ImageError(str(error)) from error
    pixels = _read_by_pillow(data)
  return pixels[top:bottom, left:right]


def _read_by_pillow(data: bytes) -> np.ndarray:
  """Pixels of a JPEG, which Pillow refuses only if it breaks off."""
  try:
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
      return np.asarray(image.convert("RGB"))
  except _PILLOW_ERRORS as error:
    raise ImageError(str(error)) from error


def _jpeg_header(data: bytes) -> jpeg.Header:
  try:
    header = jpeg.read_header(data)
  except ValueError as error:
    raise ImageError(str(error)) from error
  _check_size(header.width, header.height)
  return header


def _open_other(data: bytes) -> Image.Image:
  try:
    image = Image.open(io.BytesIO(data), formats=_OTHER_FORMATS)
  except Image.DecompressionBombError as error:  # Pillow has a limit of its own
    raise ImageError(str(error)) from error
  except _PILLOW_ERRORS as error:
    raise ImageError("not a JPEG, PNG or WebP image, or its header is broken") from error
  _check_size(*image.size)
  return image


def _other_to_rgb(image: Image.Image) -> np.ndarray:
  try:
    if image.mode.startswith("I"):
      # 16-bit grayscale, which Pillow would clip: 65535 is 257 times 255.
      gray = np.asarray(image).astype(np.uint32) // 257
      return np.repeat(gray.astype(np.uint8)[..., None], 3, axis=-1)
    image.load()
    image.info.pop("transparency", None)  # Pillow would warn that it gets lost
    return np.asarray(image.convert("RGB"))
  except _PILLOW_ERRORS as error:
    raise ImageError(str(error)) from error


def _check_size(width: int, height: int) -> None:
  if width * height > MAX_PIXELS:
    raise ImageError(f"{width}x{height} pixels, more than the {MAX_PIXELS} allowed")
