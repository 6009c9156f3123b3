"""Small images, decoded once: arrays and files alike."""

import os

import numpy as np
import pytest
from folders import GREEN, RED, encode, noise

from ssil_jax.data.encoded import EncodedImages
from ssil_jax.data.images import crop
from ssil_jax.data.resident import central_squares, describe_sizes, natural_size, read_sizes
from ssil_jax.data.sources.folder import Files
from ssil_jax.errors import DataError


def files_of(folder, *contents):
  """Images from bytes, in files 0, 1, 2, ..."""
  for number, data in enumerate(contents):
    (folder / str(number)).write_bytes(data)
  names = [os.fsencode(str(number)) for number in range(len(contents))]
  store = Files(
    folder.parent,
    [folder.name],
    np.zeros(len(names), np.int32),
    b"".join(names),
    np.cumsum([len(name) for name in names]),
  )
  return EncodedImages(store, np.arange(len(names)))


def squares_of(images):
  squares, bad, sizes = central_squares(images, 8)
  assert bad == {}
  assert len(sizes) == len(images)
  return squares


def test_central_squares_of_arrays_and_files(tmp_path):
  arrays = np.stack([noise(8, 8, seed=i) for i in range(12)])
  files = files_of(tmp_path, *(encode(pixels, "PNG") for pixels in arrays))
  assert np.array_equal(squares_of(arrays), arrays)
  assert np.array_equal(squares_of(files), arrays)
  chosen = np.array([7, 0, 11, 7])
  assert np.array_equal(squares_of(files.take(chosen)), arrays[chosen])


def test_another_size_is_resized_by_its_short_side_and_cut(tmp_path):
  shapes = [(8, 8), (8, 13), (40, 8), (100, 90), (3, 2)]
  arrays = [noise(*shape) for shape in shapes]
  squares = squares_of(files_of(tmp_path, *(encode(a, "PNG") for a in arrays)))
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
  assert (squares_of(wide) == GREEN).all()
  assert (squares_of(wide.swapaxes(1, 2)) == GREEN).all()


def test_of_no_images():
  assert squares_of(np.zeros((0, 9, 9, 3), np.uint8)).shape == (0, 8, 8, 3)


def test_images_that_cannot_be_read_are_collected(tmp_path):
  good = encode(noise(8, 8), "PNG")
  images = files_of(tmp_path, good, good, good[:-30], b"text", good, good)
  (tmp_path / "5").unlink()
  squares, bad, sizes = central_squares(images.take(np.array([0, 3, 2, 1, 5])), 8)
  assert sizes.tolist() == [[8, 8], [0, 0], [0, 0], [8, 8], [0, 0]]
  for record in (0, 3):
    assert np.array_equal(squares[record], noise(8, 8))
  assert sorted(bad) == [1, 2, 4]
  assert bad[1] == "not a JPEG, PNG or WebP image"
  assert bad[4] == "No such file or directory"


def test_the_natural_size_is_the_median_of_the_longer_sides():
  assert natural_size(np.array([(32, 32)] * 3)) == 32
  assert natural_size(np.array([(20, 30), (40, 10), (9, 35)])) == 35
  assert natural_size(np.array([(20, 30), (40, 10)])) == 30  # the lower of two
  # One odd image among many changes nothing, wherever it stands.
  for place in (0, 2, 4):
    for odd, others, size in (((1, 1), (32, 32), 32), ((40, 40), (200, 200), 224)):
      sizes = np.insert(np.full((4, 2), others), place, odd, axis=0)
      assert natural_size(sizes) == size
  assert natural_size(np.array([(64, 1)])) == 64
  assert natural_size(np.array([(65, 1)])) == 224


def test_images_too_small_for_the_network():
  assert natural_size(np.array([(8, 1)])) == 8
  with pytest.raises(DataError, match="no side of more than 7 pixels.*--image_size=8"):
    natural_size(np.array([(7, 7), (7, 1), (30, 30)]))


def test_sizes_are_those_of_the_images_that_can_be_read(tmp_path):
  large, small = encode(noise(90, 70), "PNG"), encode(noise(20, 30), "PNG")
  sizes = read_sizes(files_of(tmp_path, large, b"text", small))
  assert sizes.tolist() == [[70, 90], [0, 0], [30, 20]]
  assert natural_size(sizes) == 30


def test_no_image_that_can_be_read(tmp_path):
  images = files_of(tmp_path, b"text", b"")
  with pytest.raises(DataError, match="none of 2 training images can be read; the first"):
    read_sizes(images)


def test_images_far_from_the_others_are_warned_of(tmp_path):
  one = encode(noise(8, 8), "PNG")
  images = files_of(tmp_path, one, one, one)

  def warnings(size, train, test=((32, 32),)):
    first, *others = describe_sizes(
      {"train": images, "test": images},
      {"train": np.array(train), "test": np.array(test)},
      size,
    )
    assert first.endswith(f"the network sees {size}x{size}")
    return others

  assert warnings(32, [(32, 32), (16, 40), (64, 50)]) == []
  # Whatever the network sees: none is far from the others.
  assert warnings(224, [(100, 100)] * 3, [(100, 90)] * 3) == []
  (line,) = warnings(32, [(32, 32), (15, 4), (32, 30)])
  assert line == (
    "warning: 1 of 3 training images are less than half as large as that, such as "
    f"{images.name(1)} (15x4): take them out if that is not meant"
  )
  (line,) = warnings(32, [(65, 70), (32, 32), (32, 32)], [(32, 32)] * 3)
  assert "1 of 3 training images are more than twice as large" in line
  (line,) = warnings(32, [(32, 32)] * 3, [(500, 500)] * 3)
  assert "3 of 3 test images are more than twice as large" in line
  # Of large images, random crops of any size are taken.
  assert warnings(224, [(4000, 3000), (300, 300), (300, 200)], [(300, 300)]) == []
  (line,) = warnings(224, [(400, 300), (400, 300), (199, 10)], [(300, 300)])
  assert f"less than half as large as that, such as {images.name(2)} (199x10)" in line
