"""Image files to pixels: formats, colors, and what is refused."""

import io
import itertools
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from folders import BLUE, RED, encode, noise, photo
from PIL import Image, ImageOps, PngImagePlugin

from ssil_jax.data.images import decode, exif, jpeg_layout

LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True, "exact": True}}


def pillow_rgb(data):
  with Image.open(io.BytesIO(data)) as image:
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def size_of(data):
  image = decode.EncodedImage(data)
  return image.width, image.height


def chunk(name, data):
  """A chunk of a PNG."""
  crc = zlib.crc32(name + data)
  return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)


def png(
  width, height, content, *, bits=8, color_type=2, interlace=0, before=b"", after=b""
):
  """A PNG by its specification.

  `content` is zlib-compressed rows, or is not; `before` and `after` are more chunks.
  """
  header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, interlace)
  chunks = [chunk(b"IHDR", header), before, chunk(b"IDAT", content), after]
  return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def with_frame_size(data, width, height):
  """A JPEG whose header claims another size."""
  changed = bytearray(data)
  struct.pack_into(
    ">HH", changed, jpeg_layout.read_header(data).frame_start + 5, height, width
  )
  return bytes(changed)


# JPEG.


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_is_decoded_as_by_pillow(subsampling, progressive, mode):
  # Pillow brings libjpeg-turbo, too.
  options = {"subsampling": subsampling, "progressive": progressive}
  data = encode(photo(75, 110), mode=mode, **options)
  pixels = decode.read_rgb(data)
  assert pixels.dtype == np.uint8
  assert pixels.shape == (75, 110, 3)
  np.testing.assert_array_equal(pixels, pillow_rgb(data))


def as_adobe_writes_it(ink):
  """A JPEG of 8x8 pixels of one ink, YCCK.

  What is stored are brightness and two colour differences of the three coloured inks, and
  black the other way round; Pillow stores the opposite of what it is given.
  """
  *colors, black = ink
  planes = [*Image.new("RGB", (8, 8), tuple(colors)).convert("YCbCr").getpixel((0, 0))]
  stored = Image.new("CMYK", (8, 8), (*(255 - plane for plane in planes), black))
  data = bytearray(encode(stored, quality=100))
  transform = data.index(b"Adobe") + 11
  assert data[transform] == 0  # CMYK
  data[transform] = 2  # YCCK
  return bytes(data)


@pytest.mark.parametrize(
  "ink", [(0, 0, 0, 0), (255, 0, 0, 0), (0, 0, 0, 255), (40, 90, 200, 0), (9, 80, 30, 120)]
)
def test_jpeg_of_four_inks(ink):
  *colors, black = ink
  expected = [(255 - color) * (255 - black) / 255 for color in colors]
  for data in (encode(Image.new("CMYK", (8, 8), ink)), as_adobe_writes_it(ink)):
    assert np.abs(decode.read_rgb(data) - expected).max() <= 4


# PNG and WebP.


def sixteen_bits(*values):
  return struct.pack(f">B{len(values)}H", 0, *values)


def left_bits(value, bits):
  """A row of two pixels, `value` and 0."""
  return bytes([0, value, 0] if bits == 8 else [0, value << (8 - bits)])


WHITE, BLACK = (255, 255, 255), (0, 0, 0)
SIXTEEN = [(255, 1, 128), (0, 200, 3)]
PALETTE = chunk(b"PLTE", bytes(RED) + bytes(BLUE))
PNGS = [
  # 65535 / 257 = 255 and 32896 / 257 = 128; 256 and 65534 are just below 1 and 255.
  (sixteen_bits(257, 256), [(1, 1, 1), BLACK], {"bits": 16, "color_type": 0}),
  (sixteen_bits(65535, 32896), [WHITE, (128,) * 3], {"bits": 16, "color_type": 0}),
  (sixteen_bits(65535, 257, 32896, 0, 51400, 771), SIXTEEN, {"bits": 16, "color_type": 2}),
  # With transparency, which is dropped.
  (sixteen_bits(65535, 0, 32896, 9), [WHITE, (128,) * 3], {"bits": 16, "color_type": 4}),
  (
    sixteen_bits(65535, 257, 32896, 77, 0, 51400, 771, 65535),
    SIXTEEN,
    {"bits": 16, "color_type": 6},
  ),
  # The first of Adam7's passes has one pixel, the sixth the other.
  (bytes([0, *RED, 0, *BLUE]), [RED, BLUE], {"interlace": 1}),
]
for bits in (1, 2, 4, 8):
  PNGS += [
    (left_bits(2**bits - 1, bits), [WHITE, BLACK], {"bits": bits, "color_type": 0}),
    (left_bits(1, bits), [BLUE, RED], {"bits": bits, "color_type": 3, "before": PALETTE}),
    (
      left_bits(1, bits),
      [BLUE, RED],
      {"bits": bits, "color_type": 3, "before": PALETTE + chunk(b"tRNS", b"\0\x80")},
    ),
  ]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("rows", "expected", "options"), PNGS)
def test_png_of_every_kind(rows, expected, options):
  pixels = decode.read_rgb(png(2, 1, zlib.compress(rows), **options))
  assert pixels.dtype == np.uint8
  assert pixels.tolist() == [[list(pixel) for pixel in expected]]


@pytest.mark.parametrize(
  ("file_format", "of_frames"), [("PNG", b"acTL"), ("WEBP", b"ANMF")]
)
def test_of_an_animation_the_first_picture_is_read(file_format, of_frames):
  frames = [Image.fromarray(noise(20, 30, seed=i)) for i in range(3)]
  options = {"save_all": True, "append_images": frames[1:], **LOSSLESS[file_format]}
  data = encode(frames[0], file_format, **options)
  assert of_frames in data
  np.testing.assert_array_equal(decode.read_rgb(data), noise(20, 30))


def test_webp():
  data = encode(photo(60, 80), "WEBP")
  np.testing.assert_array_equal(decode.read_rgb(data), pillow_rgb(data))


@pytest.mark.parametrize(
  ("file_format", "mode"), [("PNG", "RGBA"), ("PNG", "LA"), ("WEBP", "RGBA")]
)
def test_transparency_is_dropped(file_format, mode):
  image = Image.new("RGBA", (8, 8), (90, 90, 90, 10))
  data = encode(image, file_format, mode, **LOSSLESS[file_format])
  assert (decode.read_rgb(data) == 90).all()


# All formats.


def turned(height, width, orientation, file_format="JPEG", **options):
  """An image with an orientation; the stored pixels do not depend on it."""
  block = Image.Exif()
  block[0x0112] = orientation
  options |= LOSSLESS.get(file_format, {})
  return encode(photo(height, width), file_format, exif=block, **options)


BOXES = [(0, 0, 1, 1), (3, 5, 14, 9), (11, 0, 17, 17), (0, 16, 17, 17), (6, 2, 9, 16)]


def check_upright(data, *, like=None):
  """Whole and in boxes, as Pillow turns `like`, which has the same pixels."""
  expected = pillow_rgb(like or data)
  image = decode.EncodedImage(data)
  assert (image.height, image.width) == expected.shape[:2]
  np.testing.assert_array_equal(image.read(), expected)
  np.testing.assert_array_equal(image.read(strict=False), expected)
  for box in BOXES:
    left, top, right, bottom = box
    np.testing.assert_array_equal(image.read(box), expected[top:bottom, left:right])


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_stand_upright(file_format, orientation):
  check_upright(turned(21, 34, orientation, file_format))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_boxes_of_a_turned_jpeg_with_an_index(orientation, subsampling):
  data = turned(50, 70, orientation, restart_marker_blocks=1, subsampling=subsampling)
  indexed = jpeg_layout.add_index(data)
  assert jpeg_layout.read_header(indexed).num_indexed
  check_upright(indexed, like=data)


def test_of_a_turned_jpeg_with_an_index_only_what_the_box_needs_is_decoded():
  data = jpeg_layout.add_index(turned(64, 64, 6, restart_marker_rows=1))
  header, whole = jpeg_layout.read_header(data), pillow_rgb(data)
  damaged = bytearray(data)
  damaged[header.scan_start + 20 : header.scan_start + 28] = b"\xff\x00" * 4  # first row
  with pytest.raises(decode.ImageError):
    decode.read_rgb(bytes(damaged))
  # A quarter turn to the right: the first row became the last column.
  part = decode.EncodedImage(bytes(damaged)).read((0, 5, 24, 60))
  np.testing.assert_array_equal(part, whole[5:60, 0:24])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["B", "H", "I"])
def test_an_orientation_in_any_order_and_size_of_bytes(order, kind):
  value = struct.pack(order + kind, 6).ljust(4, b"\0")
  block = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
  block += struct.pack(order + "H", 2)
  block += struct.pack(order + "HHI", 0x0100, 4, 1) + b"\1\2\3\4"
  block += struct.pack(order + "HHI", 0x0112, {"B": 1, "H": 3, "I": 4}[kind], 1) + value
  assert exif.orientation(block) == 6


GOOD_BLOCK = exif.block_of(6)
BROKEN_BLOCKS = [
  b"",
  b"MM",
  b"text that is no TIFF header",
  b"MM\0*\xff\xff\xff\xff" + bytes(20),  # begins behind its end
  b"MM\0*\0\0\0\x08\xff\xff",  # 65535 entries, and none is there
  b"II*\0" + GOOD_BLOCK[4:],  # the other order of bytes
  GOOD_BLOCK.replace(b"\0\3\0\0\0\1", b"\0\2\0\0\0\1"),  # text
  *(GOOD_BLOCK[:end] for end in range(3, 20)),
  *(exif.block_of(value) for value in (0, 9, 65535)),
]


def test_broken_exif_data_turn_nothing():
  plain = encode(photo(20, 30))
  frame = jpeg_layout.read_header(plain).frame_start
  expected, rows = decode.read_rgb(plain), zlib.compress(bytes(14))
  for block in BROKEN_BLOCKS:
    assert exif.orientation(block) == 1
    content = b"Exif\0\0" + block
    segment = b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content
    image = decode.EncodedImage(plain[:frame] + segment + plain[frame:])
    assert np.array_equal(image.read(), expected), block
    data = png(2, 2, rows, before=chunk(b"eXIf", block))
    assert decode.read_rgb(data).shape == (2, 2, 3)


def test_the_first_exif_data_of_a_jpeg_count():
  check_upright(jpeg_layout.add_orientation(encode(photo(20, 30)), 8))
  data = jpeg_layout.add_orientation(turned(20, 30, 6), 3)
  assert data.count(b"Exif\0\0") == 2
  assert jpeg_layout.read_header(data).orientation == 6


EXIF_TEXT = b"Raw profile type exif\0\nexif\n      32\n"  # before PNG had a chunk for it


@pytest.mark.parametrize(
  ("name", "content", "turns"),
  [
    (b"eXIf", exif.block_of(8), 1),
    (b"tEXt", EXIF_TEXT + (b"Exif\0\0" + exif.block_of(8)).hex().encode(), 1),
    (b"tEXt", EXIF_TEXT + b"none", 0),
    (b"tEXt", EXIF_TEXT + b"4", 0),
  ],
)
@pytest.mark.parametrize("place", ["before", "after"])
def test_a_png_has_its_orientation_before_or_behind_its_pixels(name, content, turns, place):
  rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in noise(21, 34)))
  image = decode.EncodedImage(png(34, 21, rows, **{place: chunk(name, content)}))
  expected = np.rot90(noise(21, 34), turns)
  assert (image.height, image.width) == expected.shape[:2]
  np.testing.assert_array_equal(image.read((3, 5, 14, 9)), expected[5:9, 3:14])


def test_size_needs_the_header_alone():
  data = encode(photo(200, 300))
  header = jpeg_layout.read_header(data)
  assert size_of(data[: header.scan_start]) == (300, 200)
  assert size_of(encode(photo(200, 300), "PNG")[:100]) == (300, 200)


# What is refused.


def check_refused(data, match=None):
  for read in (decode.read_rgb, size_of):
    with pytest.raises(decode.ImageError, match=match):
      read(data)


OTHERS = [encode(noise(8, 8), name) for name in ("BMP", "GIF", "TIFF", "PPM", "JPEG2000")]
OTHERS += [b"text, not an image", bytes(100), b"\xff\xd8", b"RIFF"]


def test_what_is_no_image_is_refused():
  for data in OTHERS:
    check_refused(data, "not a JPEG, PNG or WebP image")
  check_refused(b"", "it is empty")
  check_refused(jpeg_layout.MAGIC, "breaks off")


def test_a_jpeg_with_a_damaged_index_is_refused():
  data = jpeg_layout.add_index(encode(noise(64, 64), restart_marker_rows=1))
  place = jpeg_layout.read_header(data).index_start
  with pytest.raises(decode.ImageError, match="index"):
    decode.read_rgb(data[:place] + b"\0\1" + data[place + 2 :])


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_a_truncated_image_is_refused(file_format):
  content = encode(noise(32, 32), file_format)
  # The last 20 bytes of a PNG are two checksums and a chunk that says that it ends.
  last = len(content) - (24 if file_format == "PNG" else 1)
  for kept in [*range(0, last, 97), last]:
    with pytest.raises(decode.ImageError):
      decode.read_rgb(content[:kept])
    if kept < last:  # a JPEG that only lacks its end is whole enough
      with pytest.raises(decode.ImageError) as info:
        decode.read_rgb(content[:kept], strict=False)
      assert not info.value.tolerable


@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}, {"progressive": True}])
def test_a_jpeg_with_an_overwritten_scan_is_refused(options):
  content = encode(noise(64, 64), **options)
  start = jpeg_layout.read_header(content).scan_start
  for part, junk in itertools.product(
    (0.1, 0.5, 0.9), (b"\xff\x00" * 4, b"\xff\xd9", b"\xff\xd0")
  ):
    place = start + int(part * (len(content) - start))
    with pytest.raises(decode.ImageError):
      decode.read_rgb(content[:place] + junk + content[place + len(junk) :])


def test_a_damaged_png_is_refused():
  plain, long = encode(noise(32, 32), "PNG"), encode(noise(200, 200), "PNG")
  middle, second = len(plain) // 2, long.rindex(b"IDAT")
  text = PngImagePlugin.PngInfo()
  text.add_text("a", "b" * (2 * PngImagePlugin.MAX_TEXT_CHUNK), zip=True)
  profile = b"a\0\0" + zlib.compress(bytes(20_000_000))
  for data in (
    plain[:11] + b"\5" + plain[12:],  # the header's length, which is 13
    plain[:middle] + bytes([plain[middle] ^ 1]) + plain[middle + 1 :],  # a checksum
    long[:second] + b"\1" + long[second + 1 :],
    # Bombs of compressed text and of a compressed profile.
    encode(noise(8, 8), "PNG", pnginfo=text),
    png(2, 2, zlib.compress(bytes(14)), before=chunk(b"iCCP", profile)),
  ):
    with pytest.raises(decode.ImageError):
      decode.read_rgb(data)


# What libjpeg warns of.


def with_surplus(data, marker):
  """A JPEG with bytes that belong to nothing before a marker."""
  place = data.index(marker, jpeg_layout.read_header(data).scan_start)
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
  part = decode.EncodedImage(surplus).read((3, 9, 30, 20), strict=False)
  np.testing.assert_array_equal(part, whole[9:20, 3:30])
  between = with_surplus(encode(noise(40, 48), restart_marker_rows=1), b"\xff\xd0")
  with pytest.raises(decode.ImageError, match="extraneous bytes") as info:
    decode.read_rgb(between)
  assert not info.value.tolerable


# More pixels than there is memory. The data behind these headers are no image's, so that
# decoding would say so.


def huge_webp(side):
  data = bytearray(encode(noise(8, 8), "WEBP", lossless=True, exif=b"a"))
  assert data[12:16] == b"VP8X"
  data[24:30] = (side - 1).to_bytes(3, "little") * 2
  return bytes(data)


@pytest.mark.parametrize("side", [10_001, 16_000, 30_000, 2**31 - 1])
def test_what_claims_too_many_pixels_is_refused_before_it_is_decoded(side):
  reason = f"{side}x{side} pixels, more than"
  check_refused(png(side, side, b"not compressed rows"), reason)
  if side <= 30_000:
    huge = with_frame_size(encode(noise(8, 8)), side, side)
    check_refused(huge, reason)
    check_refused(huge[: jpeg_layout.read_header(huge).scan_start], reason)
  if side <= 16_000:
    check_refused(huge_webp(side))  # Pillow has a limit, too, and it is higher


@pytest.mark.parametrize(
  "between", [b"", b"\xff\x01\xff\xff", b"\xff" * 50, b"\xff\xfe\0\2", b"\xff\xd0"]
)
def test_a_jpeg_of_very_many_scans_is_refused_before_it_is_decoded(between):
  data = encode(photo(40, 60), progressive=True)
  last = data.rindex(b"\xff\xda")
  for count in (20, 120):
    many = data[:-2] + count * (between + data[last:-2]) + data[-2:]
    with pytest.raises(decode.ImageError) as info:
      decode.read_rgb(many)
    assert ("more than the 100 scans" in str(info.value)) == (count > 100)


def test_scans_count_up_to_the_end_of_the_image_and_no_further():
  progressive, sequential = (encode(photo(40, 60), progressive=p) for p in (True, False))
  behind = (
    np.random.default_rng(0).bytes(10_000_000),
    b"\xff\xda" * 1000,
    progressive * 30,
  )
  for data, more in itertools.product((progressive, sequential), behind):
    assert np.array_equal(decode.read_rgb(data + more), decode.read_rgb(data))
  # And none in what looks like scans inside a segment, before the first one or between.
  comment = b"\xff\xfe" + struct.pack(">H", 2002) + b"\xff\xda" * 1000
  for place in (2, progressive.rindex(b"\xff\xda")):
    data = progressive[:place] + comment + progressive[place:]
    assert np.array_equal(decode.read_rgb(data), decode.read_rgb(progressive))


def test_rows_that_no_pixel_needs_are_not_unpacked():
  # A thousand times more than 8 x 8 pixels have.
  pixels = decode.read_rgb(png(8, 8, zlib.compress(bytes(200_000))))
  assert pixels.shape == (8, 8, 3)


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_the_most_pixels_that_are_allowed():
  tiny = encode(noise(8, 8))
  for data in (with_frame_size(tiny, 10_000, 10_000), png(10_000, 10_000, b"")):
    assert size_of(data) == (10_000, 10_000)
  check_refused(with_frame_size(tiny, 10_000, 10_001), "10000x10001 pixels")


NOISY = {
  "many pixels": png(9_900, 9_900, b""),
  "no frames": png(1, 1, zlib.compress(bytes(4)), before=chunk(b"acTL", bytes(8))),
  "two counts of frames": png(
    1, 1, zlib.compress(bytes(4)), before=2 * chunk(b"acTL", b"\0\0\0\2" + bytes(4))
  ),
  "broken MPO": encode(noise(8, 8)).replace(
    b"\xff\xdb", b"\xff\xe2\0\x0cMPF\0II*\0\0\0\xff\xdb", 1
  ),
  "broken EXIF": turned(8, 8, 6).replace(b"\x01\x12\0\3\0\0\0\1", b"\xff" * 8),
}


def test_nothing_is_printed_about_odd_images(tmp_path):
  for name, data in NOISY.items():
    (tmp_path / name).write_bytes(data)
  script = (
    "import pathlib, sys\n"
    "from ssil_jax.data.images import decode\n"
    "for path in sys.argv[1:]:\n"
    "  data = pathlib.Path(path).read_bytes()\n"
    "  for strict in (True, False):\n"
    "    try:\n"
    "      decode.read_rgb(data, strict=strict)\n"
    "    except decode.ImageError:\n"
    "      pass\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", script, *tmp_path.iterdir()], capture_output=True, check=True
  )
  assert (done.stdout, done.stderr) == (b"", b"")
