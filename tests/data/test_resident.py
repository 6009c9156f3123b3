"""Small images, decoded once, and what is said of their sizes."""

import numpy as np
import pytest
from folders import GREEN, RED, encode, noise
from stores import images_of

from ssil_jax.data.images import crop
from ssil_jax.data.resident import central_squares, describe_sizes, natural_size, read_sizes
from ssil_jax.errors import DataError


def pngs_of(*arrays):
  return images_of(*(encode(pixels, "PNG") for pixels in arrays))


def test_images_are_resized_by_their_short_side_and_cut():
  arrays = [noise(*shape) for shape in ((8, 8), (8, 13), (40, 8), (100, 90), (3, 2))]
  # The middle 10 of 20 columns, and what a resampled border may touch, are green.
  wide = np.full((10, 20, 3), RED, np.uint8)
  wide[:, 3:17] = GREEN
  arrays += [wide, wide.swapaxes(0, 1)]
  squares, bad, sizes = central_squares(pngs_of(*arrays), 8)
  assert bad == {}
  assert sizes.tolist() == [[a.shape[1], a.shape[0]] for a in arrays]
  assert squares.dtype == np.uint8
  for pixels, square in zip(arrays, squares, strict=True):
    assert np.array_equal(square, crop.central_square(pixels, 8, short_side=8))
  assert np.array_equal(squares[0], arrays[0])
  assert np.array_equal(squares[1], arrays[1][:, 2:10])  # 2.5 columns to the left: 2
  assert np.array_equal(squares[2], arrays[2][16:24])
  assert (squares[5:] == GREEN).all()


def test_images_that_cannot_be_read_are_collected():
  good = encode(noise(8, 8), "PNG")
  images = images_of(good, good, good[:-30], b"text", good)
  squares, bad, sizes = central_squares(images.take(np.array([0, 3, 2, 1])), 8)
  assert sizes.tolist() == [[8, 8], [0, 0], [0, 0], [8, 8]]
  assert np.array_equal(squares[[0, 3]], [noise(8, 8)] * 2)
  assert sorted(bad) == [1, 2]
  assert bad[1] == "not a JPEG, PNG or WebP image"


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
  assert natural_size(np.array([(8, 1)])) == 8
  with pytest.raises(DataError, match="no side of more than 7 pixels.*--image_size=8"):
    natural_size(np.array([(7, 7), (7, 1), (30, 30)]))


def test_sizes_are_those_of_the_images_that_can_be_read():
  large, small = encode(noise(90, 70), "PNG"), encode(noise(20, 30), "PNG")
  sizes = read_sizes(images_of(large, b"text", small))
  assert sizes.tolist() == [[70, 90], [0, 0], [30, 20]]
  assert natural_size(sizes) == 30
  with pytest.raises(DataError, match="none of 2 training images can be read; the first"):
    read_sizes(images_of(b"text", b""))


def test_images_far_from_the_others_are_warned_of():
  images = pngs_of(*[noise(8, 8)] * 3)

  def warnings(size, train, test=((32, 32),)):
    first, *others = describe_sizes(
      {"train": images, "test": images},
      {"train": np.array(train), "test": np.array(test)},
      size,
    )
    assert first.endswith(f"the network sees {size}x{size}")
    return others

  assert warnings(32, [(32, 32), (16, 40), (64, 50), (0, 0)]) == []  # one is bad
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
