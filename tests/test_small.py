"""Small images, decoded once: arrays and files alike."""

import os

import numpy as np
import pytest
from folders import GREEN, RED, encode, noise

from ssil_jax.data import crop
from ssil_jax.data.encoded import EncodedImages
from ssil_jax.data.image_folder import Files
from ssil_jax.data.small import central_squares
from ssil_jax.errors import DataError


def files_of(folder, *contents):
  """Images from bytes, in files 0, 1, 2, ..."""
  for number, data in enumerate(contents):
    (folder / str(number)).write_bytes(data)
  names = [os.fsencode(str(number)) for number in range(len(contents))]
  store = Files(
    [str(folder)],
    np.zeros(len(names), np.int32),
    b"".join(names),
    np.cumsum([len(name) for name in names]),
  )
  return EncodedImages(store, np.arange(len(names)))


def test_central_squares_of_arrays_and_files(tmp_path):
  arrays = np.stack([noise(8, 8, seed=i) for i in range(12)])
  files = files_of(tmp_path, *(encode(pixels, "PNG") for pixels in arrays))
  assert np.array_equal(central_squares(arrays, 8), arrays)
  assert np.array_equal(central_squares(files, 8), arrays)
  chosen = np.array([7, 0, 11, 7])
  assert np.array_equal(central_squares(files.take(chosen), 8), arrays[chosen])


def test_another_size_is_resized_by_its_short_side_and_cut(tmp_path):
  shapes = [(8, 8), (8, 13), (40, 8), (100, 90), (3, 2)]
  arrays = [noise(*shape) for shape in shapes]
  squares = central_squares(files_of(tmp_path, *(encode(a, "PNG") for a in arrays)), 8)
  assert squares.shape == (5, 8, 8, 3)
  assert squares.dtype == np.uint8
  for pixels, square in zip(arrays, squares, strict=True):
    assert np.array_equal(square, crop.central_square(pixels, 8, short_side=8))
  assert np.array_equal(squares[1], arrays[1][:, 2:10])  # 2.5 columns to the left: 2
  assert np.array_equal(squares[2], arrays[2][16:24])


def test_arrays_of_another_size(tmp_path):
  # The middle 10 of 20 columns, and what a resampled border may touch, are green.
  wide = np.full((1, 10, 20, 3), RED, np.uint8)
  wide[:, :, 3:17] = GREEN
  assert (central_squares(wide, 8) == GREEN).all()
  assert (central_squares(wide.swapaxes(1, 2), 8) == GREEN).all()


def test_of_no_images():
  assert central_squares(np.zeros((0, 9, 9, 3), np.uint8), 8).shape == (0, 8, 8, 3)


def test_the_first_image_that_cannot_be_read_is_named(tmp_path):
  good = encode(noise(8, 8), "PNG")
  images = files_of(tmp_path, good, good, good[:-30], b"text", good)
  with pytest.raises(DataError, match=f"cannot read image {tmp_path / '2'}: "):
    central_squares(images, 8)
  with pytest.raises(DataError, match=f"cannot read image {tmp_path / '3'}: not a JPEG"):
    central_squares(images.take(np.array([0, 3, 2])), 8)


def test_a_file_that_is_gone_is_named(tmp_path):
  images = files_of(tmp_path, encode(noise(8, 8), "PNG"))
  (tmp_path / "0").unlink()
  with pytest.raises(DataError, match=f"cannot read image {tmp_path / '0'}: No such file"):
    central_squares(images, 8)
