"""Encoded images to upright uint8 RGB arrays on the host.

JPEG, told by its magic bytes, goes through libjpeg-turbo in strict mode, which refuses what
is truncated or corrupt: whole images by simplejpeg, parts by `turbojpeg`, where there is a
library for that. The rare JPEG of a chroma sampling that TurboJPEG has no name for goes
through Pillow, and so do PNG and WebP; HEIC through pillow-heif, if that is installed.
Images stand as their EXIF orientation asks for (see `exif`); what XMP says of it is not
read. Of an animation the first picture counts. Transparency is dropped: colours are those
that are stored.
"""

import importlib.util
import io
import re
import struct
import warnings
import zlib

import numpy as np
import simplejpeg
from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from ssil_jax.data.images import exif, jpeg_layout, turbojpeg
from ssil_jax.data.images.crop import Box

# A header may promise more pixels than there is memory; ten times those of any photo of
# the paper's data sets are enough.
MAX_PIXELS = 100_000_000
# A scan of a JPEG may take a hundred bytes and cost 0.2 s; programs write about ten.
MAX_SCANS = 100

HAS_HEIC = importlib.util.find_spec("pillow_heif") is not None
HEIC_SUFFIXES = (".heic", ".heif")
# Of files that can be read here.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", *(HEIC_SUFFIXES if HAS_HEIC else ()))

_PNG, _RIFF, _WEBP = b"\x89PNG\r\n\x1a\n", b"RIFF", b"WEBP"
# Brands of HEIF files with HEVC in them (ISO/IEC 23008-12, annex B), and what phones write.
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_JPEG_END = b"\xff\xd9"  # nowhere in entropy-coded data (T.81, B.1.1.5)
_RAW_PROFILE = "Raw profile type exif"  # where PNG had EXIF before it had a chunk for it

# What Pillow raises for files that it cannot read, and pillow-heif, with libheif's words.
_PARSE_ERRORS = (SyntaxError, ValueError, LookupError, TypeError, struct.error, zlib.error)
_HEIF_ERRORS = (EOFError, RuntimeError, MemoryError)
_PILLOW_ERRORS = (Image.DecompressionBombError, OSError, *_PARSE_ERRORS, *_HEIF_ERRORS)
# It warns of what is odd beside the pixels, a line for every such place in its source.
warnings.filterwarnings("ignore", module=r"PIL\.")

# Warnings of libjpeg that mostly tell of something odd beside the pixels. 0xd0 to 0xd7 are
# restart markers, between which pixels would be lost.
_TOLERABLE = re.compile(
  r"extraneous bytes before marker 0x(?!d[0-7])"
  r"|unknown JFIF revision|Invalid SOS parameters|Unknown Adobe color transform"
)
_ODD_SAMPLING = "Could not determine subsampling level"


def suffix(data: bytes) -> str:
  """Returns the ending that the name of an image file usually has."""
  if data.startswith(jpeg_layout.MAGIC):
    return ".jpg"
  if data.startswith(_PNG):
    return ".png"
  return ".webp" if data.startswith(_RIFF) else ".heic"


class ImageError(ValueError):
  """The bytes are not those of a whole image; says why, and not of which image.

  Attributes:
    tolerable: every pixel can be decoded, but libjpeg warned, of damage perhaps.
  """

  def __init__(self, reason: str):
    super().__init__(reason)
    self.tolerable = bool(_TOLERABLE.search(reason))


class EncodedImage:
  """An image file in memory whose header was read; `read` decodes it.

  Until then the header's bytes are enough, but for a PNG whose orientation stands behind
  its pixels. Width and height are those of the upright image, in pixels.
  """

  def __init__(self, data: bytes):
    """Reads the header; raises ImageError for another format, absurd size, or damage."""
    self.data = data
    if data.startswith(jpeg_layout.MAGIC):
      try:
        self._file = file = jpeg_layout.read_header(data)
      except ValueError as error:
        raise ImageError(str(error)) from error
    else:
      self._file = file = _open_other(data)
    if file.width * file.height > MAX_PIXELS:
      raise ImageError(
        f"{file.width}x{file.height} pixels, more than the {MAX_PIXELS} allowed"
      )
    is_jpeg = isinstance(file, jpeg_layout.Header)
    self._orientation = file.orientation if is_jpeg else _orientation(file, data)
    self.width, self.height = exif.upright_size(file.width, file.height, self._orientation)

  def read(self, box: Box | None = None, *, strict: bool = True) -> np.ndarray:
    """Decodes uint8 [H, W, 3], or no more of it than a box needs; perhaps a view.

    Args:
      box: left, top, right, bottom in pixels of the upright image; None for all of it.
      strict: whether to refuse a JPEG of which libjpeg warns, and not only a truncated one.

    Raises ImageError if the image is truncated or corrupt; in parts of it that a box does
    not need, damage may stay unnoticed.
    """
    box = box or (0, 0, self.width, self.height)
    box = exif.stored_box(box, self.width, self.height, self._orientation)
    if isinstance(self._file, jpeg_layout.Header):
      pixels = _read_jpeg(self.data, self._file, box, strict)
    else:
      left, top, right, bottom = box
      pixels = _rgb(self._file)[top:bottom, left:right]
    return exif.upright(pixels, self._orientation)


def read_rgb(data: bytes, *, strict: bool = True) -> np.ndarray:
  """Decodes a whole image, uint8 [H, W, 3]; see `EncodedImage`."""
  return EncodedImage(data).read(strict=strict)


def _read_jpeg(
  data: bytes, header: jpeg_layout.Header, box: Box, strict: bool
) -> np.ndarray:
  """Returns a box of the stored pixels."""
  most = MAX_SCANS + 1
  if not header.one_scan and jpeg_layout.count_scans(data, header, most=most) == most:
    raise ImageError(f"a JPEG of more than the {MAX_SCANS} scans allowed")
  left, top, right, bottom = box
  try:
    if header.num_indexed:
      data, x, y = jpeg_layout.cut(data, header, box)
      left, top, right, bottom = left - x, top - y, right - x, bottom - y
    elif strict and box != (0, 0, header.width, header.height):
      pixels = _part_of_jpeg(data, header, box)
      if pixels is not None:
        return pixels
    if strict:
      pixels = simplejpeg.decode_jpeg(data, "RGB", strict=True)
    else:
      pixels = _read_by_pillow(data)
  except ValueError as error:
    if _ODD_SAMPLING not in str(error):
      raise ImageError(str(error)) from error
    pixels = _read_by_pillow(data)
  return pixels[top:bottom, left:right]


def _part_of_jpeg(data: bytes, header: jpeg_layout.Header, box: Box) -> np.ndarray | None:
  """Decodes no more of a JPEG than a box needs; None if that fails or cannot be done.

  Then the whole image has to be decoded, and it is that which tells what is wrong.
  """
  # A file that just ends is refused, whichever part is asked for.
  is_truncated = data.rfind(_JPEG_END, header.scan_start) < 0
  library = None if is_truncated or header.num_components == 4 else turbojpeg.library()
  if library is None:
    return None
  try:
    return library.decode(data, header, box)
  except ValueError:
    return None


def _read_by_pillow(data: bytes) -> np.ndarray:
  """Returns the stored pixels of a JPEG, which Pillow refuses only if it breaks off."""
  try:
    with JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as image:
      return np.asarray(image.convert("RGB"))
  except _PILLOW_ERRORS as error:
    raise ImageError(str(error)) from error


def _open_other(data: bytes) -> Image.Image:
  # Not by Image.open, which warns of more than 89 million pixels.
  if data.startswith(_PNG):
    name, file_class = "PNG", PngImagePlugin.PngImageFile
  elif data.startswith(_RIFF) and data.startswith(_WEBP, 8):
    name, file_class = "WebP", WebPImagePlugin.WebPImageFile
  elif data.startswith(b"ftyp", 4) and data[8:12] in _HEIC:
    if not HAS_HEIC:
      raise ImageError("a HEIC image, for which pillow-heif is needed: install it")
    import pillow_heif  # an extra, which sets an image upright by itself

    name, file_class = "HEIC", pillow_heif.HeifImageFile
  else:
    raise ImageError("not a JPEG, PNG or WebP image" if data else "it is empty")
  try:
    return file_class(io.BytesIO(data))
  except Image.DecompressionBombError as error:  # Pillow has a limit of its own for WebP
    raise ImageError(str(error)) from error
  except _PILLOW_ERRORS as error:
    raise ImageError(f"a {name} image that is truncated or corrupt ({error})") from error


def _load(image: Image.Image) -> None:
  try:
    image.load()
  except _PILLOW_ERRORS as error:
    raise ImageError(str(error)) from error


def _orientation(image: Image.Image, data: bytes) -> int:
  """Returns what EXIF data say; decodes an image that has them behind its pixels."""
  is_known = "exif" in image.info or _RAW_PROFILE in image.info
  if not is_known and (b"eXIf" in data or _RAW_PROFILE.encode() in data):
    _load(image)
  block = image.info.get("exif")
  if block is None:
    # Three lines of title, then hexadecimal digits.
    lines = str(image.info.get(_RAW_PROFILE, "")).split("\n")[3:]
    try:
      block = bytes.fromhex("".join(lines))
    except ValueError:
      return exif.UPRIGHT
  return exif.orientation(block.removeprefix(b"Exif\0\0"))


def _rgb(image: Image.Image) -> np.ndarray:
  """Returns the stored pixels, uint8 [H, W, 3]."""
  _load(image)
  if image.mode.startswith("I"):
    # 16-bit grayscale, which Pillow would clip: 65535 is 257 times 255.
    gray = (np.asarray(image) // 257).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=-1)
  image.info.pop("transparency", None)  # Pillow would warn that it gets lost
  return np.asarray(image.convert("RGB"))
