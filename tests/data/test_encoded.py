"""Encoded images: records of a store, and what happens to those that libjpeg warns of."""

import pickle

import numpy as np
import pytest
from folders import encode, noise
from stores import images_of

from ssil_jax.data import encoded
from ssil_jax.data.images import decode
from ssil_jax.errors import DataError

JPEG = encode(noise(40, 48))
SURPLUS = JPEG[:-2] + bytes(20) + JPEG[-2:]


def test_records_are_numbers_of_the_store():
  files = [encode(noise(9, 9 + n), "PNG") for n in range(4)]
  some = images_of(*files).take(np.array([3, 1, 2]))
  assert len(some) == 3
  for record, number in enumerate((3, 1, 2)):
    assert some.open(record).data == files[number]
    assert some.open(record).width == 9 + number
    assert some.name(record) == f"number {number}"
  assert some.take(np.array([2])).open(0).data == files[2]


def test_what_was_published_oddly_is_decoded_with_one_warning(caplog):
  with caplog.at_level("WARNING", logger="absl"):
    for _ in range(3):
      pixels = images_of(*[b""] * 7, SURPLUS, has_checksums=True).open(7).read()
  assert np.array_equal(pixels, decode.read_rgb(JPEG))
  (message,) = (record.getMessage() for record in caplog.records)
  assert "number 7" in message
  assert "extraneous bytes" in message
  # Without a checksum, it may have been damaged here.
  with pytest.raises(DataError, match="cannot read image number 0: .*extraneous"):
    images_of(SURPLUS).open(0).read()


@pytest.mark.parametrize("has_checksums", [True, False])
def test_what_breaks_off_is_refused(has_checksums):
  # An odd header does not hide an end that is missing.
  revised = JPEG.replace(b"JFIF\0\1", b"JFIF\0\3")
  images = images_of(JPEG[:-200], revised[:-300], revised, has_checksums=has_checksums)
  with pytest.raises(DataError, match="cannot read image number 0: Premature end"):
    images.open(0).read()
  with pytest.raises(DataError, match="truncated" if has_checksums else "JFIF revision"):
    images.open(1).read()
  if has_checksums:
    assert images.open(2).read().shape == (40, 48, 3)


def test_a_bad_image_is_named_in_other_processes():
  with pytest.raises(encoded.BadImage) as caught:
    images_of(b"").open(0).read()
  again = pickle.loads(pickle.dumps(caught.value))
  assert str(again) == "cannot read image number 0: it is empty"
  assert (again.name, again.reason) == ("number 0", "it is empty")


def test_hashes_of_numbers_that_are_close_are_far_apart():
  rows = np.stack(np.meshgrid(np.arange(-50, 50), np.arange(100)), axis=-1).reshape(-1, 2)
  hashes = encoded.hash_rows(rows)
  assert hashes.dtype == np.uint64
  assert len(np.unique(hashes)) == len(np.unique(hashes >> np.uint64(32))) == len(rows)
  assert np.array_equal(encoded.hash_rows(rows[5:7]), hashes[5:7])
