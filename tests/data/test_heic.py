"""HEIC photos, as phones take them: read where pillow-heif is installed."""

import io

import numpy as np
import pillow_heif
import pytest
from folders import open_folder, photo, save
from PIL import Image

from ssil_jax.data.images import decode


def heic(pixels, orientation=1):
  exif = Image.Exif()
  exif[0x0112] = orientation
  file = io.BytesIO()
  image = pillow_heif.from_pillow(Image.fromarray(pixels))
  image.save(file, quality=95, exif=exif.tobytes())
  return file.getvalue()


@pytest.mark.parametrize(("orientation", "turn"), [(1, 0), (6, -1), (3, 2)])
def test_a_photo_stands_upright(orientation, turn):
  pixels = photo(80, 120)
  image = decode.EncodedImage(heic(pixels, orientation))
  expected = np.rot90(pixels, turn)
  assert (image.height, image.width) == expected.shape[:2]
  found = image.read()
  assert np.abs(found.astype(int) - expected).mean() < 6
  left, top, right, bottom = box = (10, 20, 50, 60)
  assert np.array_equal(image.read(box), found[top:bottom, left:right])


def test_a_photo_cut_off_is_refused_at_any_place():
  data = heic(photo(64, 64))
  for end in range(12, len(data), 97):
    with pytest.raises(decode.ImageError, match="HEIC image that is truncated or corrupt"):
      decode.read_rgb(data[:end])


def test_what_libheif_cannot_decode_is_refused():
  file = io.BytesIO()
  Image.fromarray(photo(64, 64)).save(file, "AVIF")
  data = bytearray(file.getvalue())
  data[8:12] = b"mif1"  # as some programs write
  with pytest.raises(decode.ImageError):
    decode.read_rgb(bytes(data))


def test_a_damaged_photo_is_refused_or_read_and_nothing_else_happens():
  data, refused = heic(photo(64, 64)), 0
  for seed in range(300):  # 125 and 272 are those that libheif calls an end of file
    damaged, rng = bytearray(data), np.random.default_rng(seed)
    for place in rng.integers(12, len(data), 3):
      damaged[place] = rng.integers(256)
    try:
      decode.read_rgb(bytes(damaged))
    except decode.ImageError:
      refused += 1
  assert refused


def test_without_the_library_it_is_named(monkeypatch):
  monkeypatch.setattr(decode, "HAS_HEIC", False)
  with pytest.raises(decode.ImageError, match="pillow-heif is needed: install it"):
    decode.read_rgb(heic(photo(64, 64)))


def test_a_folder_may_have_them_beside_others(tmp_path):
  for split in ("train", "test"):
    for name in ("a", "b"):
      save(tmp_path / split / name / "0.png", photo(32, 32, seed=len(split + name)))
      path = tmp_path / split / name / "1.HEIC"
      path.write_bytes(heic(photo(32, 32, seed=(len(split), ord(name)))))
  dataset = open_folder(tmp_path, num_states=1)
  assert dataset.ignored_files == 0
  assert dataset.train.images.shape == (4, 32, 32, 3)
