"""Image files to pixels: formats, colors, and what is refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from folders import BLUE, GREEN, RED, encode, noise, photo
from PIL import Image, PngImagePlugin

from ssil_jax.data import decode, jpeg


def pillow_rgb(data):
  return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def png(width, height, content, *, bits=8, color_type=2):
  """A PNG by its specification; `content` is zlib-compressed rows, or is not."""

  def chunk(name, data):
    crc = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)

  header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
  chunks = chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")
  return b"\x89PNG\r\n\x1a\n" + chunks


def with_frame_size(data, width, height):
  """A JPEG whose header claims another size."""
  changed = bytearray(data)
  struct.pack_into(">HH", changed, jpeg.read_header(data).frame_start + 5, height, width)
  return bytes(changed)


# JPEG.


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_is_decoded_as_by_pillow(subsampling, progressive):
  # Pillow brings libjpeg-turbo, too.
  data = encode(photo(75, 110), subsampling=subsampling, progressive=progressive)
  pixels = decode.read_rgb(data)
  assert pixels.dtype == np.uint8
  assert pixels.shape == (75, 110, 3)
  np.testing.assert_array_equal(pixels, pillow_rgb(data))


def test_gray_jpeg_becomes_equal_channels():
  data = encode(photo(40, 50), mode="L")
  pixels = decode.read_rgb(data)
  assert pixels.shape == (40, 50, 3)
  np.testing.assert_array_equal(pixels, pillow_rgb(data))
  assert (pixels == pixels[..., :1]).all()


def test_cmyk_jpeg():
  # No ink is white; cyan ink alone takes all red away.
  for ink, expected in [((0, 0, 0, 0), (255, 255, 255)), ((255, 0, 0, 0), (0, 255, 255))]:
    pixels = decode.read_rgb(encode(Image.new("CMYK", (8, 8), ink)))
    assert np.abs(pixels.astype(int) - expected).max() <= 5
  data = encode(photo(40, 50), mode="CMYK")
  difference = decode.read_rgb(data).astype(int) - pillow_rgb(data)
  assert np.abs(difference).max() <= 2


def test_a_box_of_a_jpeg_is_that_part_of_the_whole():
  data = encode(photo(50, 70))
  asked = []

  def choose_box(width, height):
    asked.append((width, height))
    return 11, 7, 60, 30

  part = decode.read_box(data, choose_box)
  assert asked == [(70, 50)]
  np.testing.assert_array_equal(part, decode.read_rgb(data)[7:30, 11:60])


def test_with_an_index_only_what_the_box_needs_is_decoded():
  data = jpeg.add_index(encode(noise(64, 64), restart_marker_rows=1))
  header, whole = jpeg.read_header(data), decode.read_rgb(data)
  damaged = bytearray(data)
  damaged[header.scan_start + 20 : header.scan_start + 28] = b"\xff\x00" * 4  # first row
  with pytest.raises(decode.ImageError, match="bad Huffman code"):
    decode.read_rgb(bytes(damaged))
  below = decode.read_box(bytes(damaged), lambda width, height: (5, 40, 60, 64))
  np.testing.assert_array_equal(below, whole[40:64, 5:60])


# PNG and WebP.


def test_rgb_png_is_exact():
  np.testing.assert_array_equal(decode.read_rgb(encode(noise(9, 7), "PNG")), noise(9, 7))


def test_a_box_of_a_png():
  part = decode.read_box(encode(noise(9, 7), "PNG"), lambda width, height: (1, 2, 6, 9))
  np.testing.assert_array_equal(part, noise(9, 7)[2:9, 1:6])


def test_gray_png_becomes_equal_channels():
  pixels = decode.read_rgb(encode(np.array([[0, 77], [3, 255]], np.uint8), "PNG"))
  assert pixels[..., 2].tolist() == [[0, 77], [3, 255]]
  assert (pixels == pixels[..., :1]).all()


def test_16_bit_gray_png_is_scaled():
  # 65535 / 257 = 255 and 32896 / 257 = 128; 256 and 65534 are just below 1 and 255.
  gray = np.array([[0, 257, 256], [32896, 65535, 65534]], np.uint16)
  pixels = decode.read_rgb(encode(gray, "PNG"))
  assert pixels.dtype == np.uint8
  assert pixels.shape == (2, 3, 3)
  assert pixels[:, :, 1].tolist() == [[0, 1, 0], [128, 255, 254]]
  assert (pixels == pixels[:, :, :1]).all()


def test_16_bit_rgb_png_is_scaled():
  row = struct.pack(">B6H", 0, 65535, 257, 32896, 0, 51400, 771)
  pixels = decode.read_rgb(png(2, 1, zlib.compress(row), bits=16))
  assert pixels.tolist() == [[[255, 1, 128], [0, 200, 3]]]


def test_black_and_white_png():
  pixels = decode.read_rgb(encode(np.array([[False, True]]), "PNG"))
  assert pixels.tolist() == [[[0] * 3, [255] * 3]]


def test_palette_png():
  pixels = decode.read_rgb(encode(np.array([[RED, GREEN, BLUE]], np.uint8), "PNG", "P"))
  assert pixels[0].tolist() == [list(RED), list(GREEN), list(BLUE)]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_of_a_png_is_dropped(mode):
  image = Image.new("RGBA", (2, 2), (90, 90, 90, 10))
  assert (decode.read_rgb(encode(image, "PNG", mode)) == 90).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("transparency", [0, b"\0\x80"])
def test_transparent_colors_of_a_png_palette_are_colors(transparency):
  pixels = np.array([[RED, BLUE]], np.uint8)
  data = encode(pixels, "PNG", "P", transparency=transparency)
  assert decode.read_rgb(data)[0].tolist() == [list(RED), list(BLUE)]


def test_webp():
  lossless = decode.read_rgb(encode(noise(20, 30), "WEBP", lossless=True))
  np.testing.assert_array_equal(lossless, noise(20, 30))
  data = encode(photo(60, 80), "WEBP")
  np.testing.assert_array_equal(decode.read_rgb(data), pillow_rgb(data))


def test_transparency_of_webp_is_dropped():
  image = Image.new("RGBA", (8, 8), (90, 120, 30, 10))
  pixels = decode.read_rgb(encode(image, "WEBP", lossless=True, exact=True))
  assert (pixels == (90, 120, 30)).all()


# All formats.


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_ignored(file_format):
  exif = Image.Exif()
  exif[0x0112] = 6  # a quarter turn
  turned = encode(photo(20, 30), file_format, exif=exif)
  assert b"MM\0*" in turned or b"II*\0" in turned  # it is there
  assert decode.size_of(turned) == (30, 20)
  plain = encode(photo(20, 30), file_format)
  np.testing.assert_array_equal(decode.read_rgb(turned), decode.read_rgb(plain))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_size_is_width_and_height(file_format, mode):
  assert decode.size_of(encode(noise(20, 33), file_format, mode)) == (33, 20)


def test_size_needs_the_header_alone():
  data = encode(photo(200, 300))
  header = jpeg.read_header(data)
  assert decode.size_of(data[: header.scan_start]) == (300, 200)
  assert decode.size_of(encode(photo(200, 300), "PNG")[:100]) == (300, 200)


# What is refused.


def check_refused(data, match=None):
  for read in (decode.read_rgb, decode.size_of):
    with pytest.raises(decode.ImageError, match=match):
      read(data)


@pytest.mark.parametrize("file_format", ["BMP", "GIF", "TIFF", "PPM", "JPEG2000"])
def test_other_formats_are_refused(file_format):
  check_refused(encode(noise(8, 8), file_format), "not a JPEG, PNG or WebP image")


@pytest.mark.parametrize("data", [b"", b"text, not an image", bytes(100), b"\xff\xd8"])
def test_what_is_no_image_is_refused(data):
  check_refused(data, "not a JPEG, PNG or WebP image")


def test_a_jpeg_header_without_anything_is_refused():
  check_refused(jpeg.MAGIC, "breaks off")


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_a_truncated_image_is_refused(file_format):
  content = encode(noise(32, 32), file_format)
  # The last 20 bytes of a PNG are two checksums and a chunk that says that it ends.
  last = len(content) - (24 if file_format == "PNG" else 1)
  for kept in [*range(0, last, 97), last]:
    with pytest.raises(decode.ImageError):
      decode.read_rgb(content[:kept])


@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}, {"progressive": True}])
@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("junk", [b"\xff\x00" * 4, b"\xff\xd9", b"\xff\xd0"])
def test_a_jpeg_with_an_overwritten_scan_is_refused(options, place, junk):
  content = encode(noise(64, 64), **options)
  start = jpeg.read_header(content).scan_start
  place = start + int(place * (len(content) - start))
  with pytest.raises(decode.ImageError):
    decode.read_rgb(content[:place] + junk + content[place + len(junk) :])


def test_a_jpeg_with_a_hole_is_refused_indexed_or_not():
  content = encode(noise(64, 64), restart_marker_rows=1)
  for data in (content, jpeg.add_index(content)):
    with pytest.raises(decode.ImageError):
      decode.read_rgb(data[:-900] + data[-600:])
    with pytest.raises(decode.ImageError):
      decode.read_rgb(data[:-900] + bytes(300) + data[-600:])


def test_a_jpeg_whose_index_was_damaged_is_refused():
  data = jpeg.add_index(encode(noise(64, 64), restart_marker_rows=1))
  place = jpeg.read_header(data).index_start
  with pytest.raises(decode.ImageError, match="index"):
    decode.read_rgb(data[:place] + b"\0\1" + data[place + 2 :])


def test_a_jpeg_with_an_index_and_without_intervals_is_refused():
  data = jpeg.add_index(encode(noise(64, 64), restart_marker_rows=1))
  with pytest.raises(decode.ImageError, match="index"):
    decode.read_rgb(data.replace(b"\xff\xdd\0\4\0\4", b"\xff\xdd\0\4\0\0"))


def test_a_png_with_a_damaged_header_is_refused():
  content = bytearray(encode(noise(8, 8), "PNG"))
  content[11] = 5  # the header's length, which is 13
  check_refused(bytes(content))


def test_a_png_with_a_damaged_checksum_is_refused():
  content = bytearray(encode(noise(32, 32), "PNG"))
  content[len(content) // 2] ^= 1
  with pytest.raises(decode.ImageError):
    decode.read_rgb(bytes(content))


def test_a_png_with_a_damaged_chunk_is_refused():
  content = encode(noise(200, 200), "PNG")
  second = content.index(b"IDAT", content.index(b"IDAT") + 4)
  with pytest.raises(decode.ImageError, match="broken PNG"):
    decode.read_rgb(content[:second] + b"\1" + content[second + 1 :])


def test_a_png_with_a_compressed_bomb_of_text_is_refused():
  info = PngImagePlugin.PngInfo()
  info.add_text("a", "b" * (2 * PngImagePlugin.MAX_TEXT_CHUNK), zip=True)
  with pytest.raises(decode.ImageError):
    decode.read_rgb(encode(noise(8, 8), "PNG", pnginfo=info))


# What libjpeg warns of.


def with_surplus(data, marker):
  """A JPEG with bytes that belong to nothing before a marker."""
  place = data.index(marker, jpeg.read_header(data).scan_start)
  return data[:place] + bytes(20) + data[place:]


@pytest.mark.parametrize("restarts", [0, 1])
def test_surplus_bytes_at_the_end_are_refused_unless_told_otherwise(restarts):
  plain = encode(noise(40, 48), restart_marker_rows=restarts)
  surplus = with_surplus(plain, b"\xff\xd9")
  with pytest.raises(decode.ImageError, match="extraneous bytes") as info:
    decode.read_rgb(surplus)
  assert info.value.tolerable
  whole = decode.read_rgb(plain)
  np.testing.assert_array_equal(decode.read_rgb(surplus, strict=False), whole)
  part = decode.read_box(surplus, lambda width, height: (3, 9, 30, 20), strict=False)
  np.testing.assert_array_equal(part, whole[9:20, 3:30])


def test_surplus_bytes_between_restart_markers_are_not_tolerable():
  surplus = with_surplus(encode(noise(40, 48), restart_marker_rows=1), b"\xff\xd0")
  with pytest.raises(decode.ImageError, match="extraneous bytes") as info:
    decode.read_rgb(surplus)
  assert not info.value.tolerable


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_what_breaks_off_is_refused_strictly_or_not(file_format):
  content = encode(noise(32, 32), file_format)
  for kept in (0, len(content) // 2, len(content) - 24):
    with pytest.raises(decode.ImageError) as info:
      decode.read_rgb(content[:kept], strict=False)
    assert not info.value.tolerable


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_what_is_whole_is_the_same_strictly_or_not(file_format, mode):
  content = encode(photo(50, 70), file_format, mode)
  np.testing.assert_array_equal(
    decode.read_rgb(content, strict=False), decode.read_rgb(content)
  )


# More pixels than there is memory. The data behind these headers are no image's, so that
# decoding would say so.


def test_a_jpeg_that_claims_too_many_pixels_is_refused_before_it_is_decoded():
  huge = with_frame_size(encode(noise(8, 8)), 30_000, 30_000)
  check_refused(huge, "30000x30000 pixels, more than")
  check_refused(huge[: jpeg.read_header(huge).scan_start], "30000x30000 pixels")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_001, 13_000, 30_000, 2**31 - 1])
def test_a_png_that_claims_too_many_pixels_is_refused_before_it_is_decoded(side):
  check_refused(png(side, side, b"not compressed rows"), "pixels")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_most_pixels_that_are_allowed():
  tiny = encode(noise(8, 8))
  assert decode.size_of(with_frame_size(tiny, 10_000, 10_000)) == (10_000, 10_000)
  assert decode.size_of(png(10_000, 10_000, b"")) == (10_000, 10_000)
  check_refused(with_frame_size(tiny, 10_000, 10_001), "10000x10001 pixels")
