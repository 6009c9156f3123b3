"""Random bytes of images; see fuzzing.py."""

import functools
import struct
import warnings
import zlib

import numpy as np
from folders import encode, photo
from fuzzing import changed_bytes, fuzz
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from ssil_jax.data.images import decode, jpeg_layout


@functools.cache
def images():
  """Valid images of every kind that is read."""
  rgb = photo(24, 31)
  alpha = np.dstack([rgb, rgb[..., :1]])
  frames = [photo(24, 31, seed) for seed in (1, 2)]
  animated = {"save_all": True, "append_images": list(map(Image.fromarray, frames))}
  return (
    encode(rgb),
    encode(rgb, quality=30, subsampling="4:2:0"),
    encode(rgb, progressive=True),
    encode(rgb, mode="L"),
    encode(rgb, mode="CMYK"),
    jpeg_layout.add_index(encode(photo(40, 48), restart_marker_blocks=3)),
    encode(rgb, "PNG"),
    encode(rgb, "PNG", mode="P", transparency=3),
    encode(rgb, "PNG", mode="1"),
    encode(rgb, "PNG", mode="LA"),
    encode(alpha, "PNG"),
    encode(rgb.astype(np.uint16)[..., 0] * 257, "PNG"),
    encode(rgb, "PNG", **animated),
    encode(rgb, "WEBP"),
    encode(rgb, "WEBP", lossless=True),
    encode(alpha, "WEBP"),
    encode(rgb, "WEBP", **animated),
  )


def with_right_checksums(png):
  """A PNG whose chunks have the CRC of what they hold, so that it is looked at."""
  parts, offset = [png[:8]], 8
  while offset + 12 <= len(png):
    (length,) = struct.unpack_from(">I", png, offset)
    end = offset + 8 + length
    if end + 4 > len(png):
      break
    checksum = zlib.crc32(png[offset + 4 : end])
    parts.append(png[offset:end] + struct.pack(">I", checksum))
    offset = end + 4
  return b"".join(parts) + png[offset:]


def with_chunk(png, name, content):
  """A PNG with one more chunk after its header; the CRC is not right."""
  return png[:33] + struct.pack(">I", len(content)) + name + content + bytes(4) + png[33:]


@st.composite
def image_bytes(draw):
  data = draw(st.sampled_from(images()))
  change = draw(st.sampled_from(["bytes", "bytes", "header", "splice", "join", "exif"]))
  if change == "bytes":
    # Most changes of a header end in the header.
    after = draw(st.sampled_from([8, 40, len(data) // 4, len(data) // 2]))
    data = draw(changed_bytes(data, after=after))
  elif change == "header":
    head = draw(changed_bytes(data[:64]))
    data = head + data[64:]
  elif change == "splice":
    other = draw(st.sampled_from(images()))
    place = draw(st.integers(0, min(len(data), len(other))))
    data = data[:place] + other[place:]
  elif change == "join":
    data += draw(st.sampled_from(images()))
  else:
    exif = b"Exif\0\0" + draw(st.binary(max_size=60))
    if data.startswith(jpeg_layout.MAGIC):
      segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
      data = data[:2] + segment + data[2:]
    elif data.startswith(b"\x89PNG"):
      name = draw(st.sampled_from([b"eXIf", b"iCCP", b"zTXt", b"iTXt", b"tRNS", b"gAMA"]))
      data = with_chunk(data, name, draw(st.binary(max_size=40)))
  if data.startswith(b"\x89PNG") and draw(st.booleans()):
    data = with_right_checksums(data)
  return data


def read_middle(data):
  image = decode.EncodedImage(data)
  left, top = image.width // 3, image.height // 3
  return image.read((left, top, left + (image.width + 1) // 2, top + 1))


@fuzz(700)
@given(image_bytes())
@example(b"")
@example(b"\xff\xd8\xff")
def test_image_bytes(data):
  reads = (
    decode.read_rgb,
    functools.partial(decode.read_rgb, strict=False),
    read_middle,
  )
  with warnings.catch_warnings(record=True) as caught:
    for read in reads:
      try:
        found = read(data)
      except decode.ImageError:
        continue
      assert found.dtype == np.uint8
      height, width, channels = found.shape
      assert channels == 3
      assert 0 < height * width <= decode.MAX_PIXELS
  # pytest takes away the filter that decode.py sets; see test_decode.py.
  assert not [warning for warning in caught if "PIL" not in warning.filename]
