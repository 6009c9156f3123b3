"""Encoded images: records of a store, and what happens to those that libjpeg warns of."""

import pickle

import numpy as np
import pytest
from folders import encode, noise

from ssil_jax.data import encoded
from ssil_jax.data.images import decode
from ssil_jax.errors import DataError


class InMemory:
  """A Store of a list."""

  def __init__(self, contents, *, has_checksums):
    self.contents, self.has_checksums = contents, has_checksums

  def read(self, number, num_bytes=None):
    return self.contents[number]

  def name(self, number):
    return f"number {number}"


def jpeg():
  return encode(noise(40, 48))


def images(*contents, has_checksums=True):
  store = InMemory(contents, has_checksums=has_checksums)
  return encoded.EncodedImages(store, np.arange(len(contents)))


def test_records_are_numbers_of_the_store():
  files = [encode(noise(9, 9 + n), "PNG") for n in range(4)]
  some = images(*files).take(np.array([3, 1, 2]))
  assert [some.open(record).data for record in range(len(some))] == files[3:0:-2] + [
    files[2]
  ]
  assert [some.open(record).width for record in range(3)] == [12, 10, 11]
  assert some.name(0) == "number 3"
  assert some.take(np.array([2])).open(0).data == files[2]


SURPLUS = jpeg()[:-2] + bytes(20) + jpeg()[-2:]


def test_what_was_published_oddly_is_decoded_with_one_warning(caplog):
  with caplog.at_level("WARNING", logger="absl"):
    for _ in range(3):
      pixels = images(*[b""] * 7, SURPLUS).open(7).read()
  assert np.array_equal(pixels, decode.read_rgb(jpeg()))
  (message,) = (record.getMessage() for record in caplog.records)
  assert "number 7" in message
  assert "extraneous bytes" in message


def test_what_may_have_been_damaged_here_is_refused():
  with pytest.raises(DataError, match="cannot read image number 0: .*extraneous"):
    images(SURPLUS, has_checksums=False).open(0).read()


@pytest.mark.parametrize("has_checksums", [True, False])
def test_what_breaks_off_is_refused(has_checksums):
  with pytest.raises(DataError, match="cannot read image number 1: Premature end"):
    images(b"", jpeg()[:-200], has_checksums=has_checksums).open(1).read()


def test_an_odd_header_does_not_hide_an_end_that_is_missing():
  revised = jpeg().replace(b"JFIF\0\1", b"JFIF\0\3")
  assert images(revised).open(0).read().shape == (40, 48, 3)
  with pytest.raises(DataError, match="truncated"):
    images(revised[:-300]).open(0).read()


def test_a_bad_image_is_named_in_other_processes():
  with pytest.raises(encoded.BadImage) as caught:
    images(b"").open(0).read()
  again = pickle.loads(pickle.dumps(caught.value))
  assert str(again) == "cannot read image number 0: it is empty"
  assert (again.name, again.reason) == ("number 0", "it is empty")


def test_hashes_of_numbers_that_are_close_are_far_apart():
  rows = np.stack(np.meshgrid(np.arange(-50, 50), np.arange(100)), axis=-1).reshape(-1, 2)
  hashes = encoded.hash_rows(rows)
  assert hashes.dtype == np.uint64
  assert len(np.unique(hashes)) == len(np.unique(hashes >> np.uint64(32))) == len(rows)
  assert np.array_equal(encoded.hash_rows(rows[5:7]), hashes[5:7])
