"""Test and validation images: none is to be trained on; content tells images apart."""

import hashlib
from collections.abc import Mapping

import numpy as np

from ssil_jax.data import verify
from ssil_jax.data.dataset import Split
from ssil_jax.data.encoded import EncodedImages
from ssil_jax.errors import DataError


def split_by_content(
  split: Split,
  contents: np.ndarray,
  bad: verify.Bad,
  class_names: tuple[str, ...],
  *,
  fraction: float,
  scored: str = "test",
) -> tuple[Split, Split]:
  """Divides images into those to train on and those to score, by a hash of their bytes.

  An image therefore stays on its side whatever is added or renamed, and copies of it in its
  class are there, too. Each class has at least one image on both sides; only where it would
  not, in a class of few, may one more photo move another.

  Args:
    split: all images.
    contents: uint64 [N], the hashes.
    bad: the images that cannot be read; they count as training images.
    class_names: of the labels.
    fraction: of the images that are scored, on average.
    scored: "test" or "validation"; they are chosen independently, so that validation
      images can be taken from what is left when test images were.

  Returns:
    Training images and those to score, in their order.

  Raises:
    DataError: a class has not two different images.
  """
  aim = {"test": "test", "validation": "validate on"}[scored]
  if scored == "validation":
    contents = contents.byteswap()  # as random, and in another order
  is_test, is_good = np.zeros(len(split.labels), bool), np.ones(len(split.labels), bool)
  is_good[list(bad)] = False
  by_class = np.argsort(split.labels, kind="stable")
  ends = np.searchsorted(split.labels[by_class], np.arange(1, len(class_names)))
  for name, of_class in zip(class_names, np.split(by_class, ends), strict=True):
    records = of_class[is_good[of_class]]
    hashes = np.unique(contents[records])
    if len(hashes) < 2:
      raise DataError(
        f"class {name} has {len(of_class)} files and {len(hashes)} different images that "
        f"can be read, and needs 2 or more of them, to train on and to {aim}: add some or "
        "remove the class"
      )
    # The first one above this is no test image; never the smallest, always the largest.
    limit = min(max(int(fraction * 2.0**64), int(hashes[0]) + 1), int(hashes[-1]))
    is_test[records] = contents[records] < np.uint64(limit)
  return split.take(np.flatnonzero(~is_test)), split.take(np.flatnonzero(is_test))


def describe_shared(
  splits: Mapping[str, Split], images: Mapping[str, EncodedImages], scored: str = "test"
) -> tuple[str, ...]:
  """Returns a line on images to score that are training images, too: links or copies.

  Both are by split; `images` are the same images as they are stored, with their names;
  `scored` says what those to score are. Those in which nobody has looked, and whose content
  is not known, are not compared.
  """
  train, test = splits["train"], splits["test"]
  if train.on_device and test.on_device:  # most are told apart by less than a hash
    ours, theirs = _sketches(train.images), _sketches(test.images)
    candidates = np.flatnonzero(np.isin(theirs, ours))
    train = train.take(np.flatnonzero(np.isin(ours, theirs[candidates])))
  else:
    candidates = np.arange(len(test.labels))
  hashes = [content_hashes(split) for split in (train, test.take(candidates))]
  if any(found is None for found in hashes):
    return ()
  shared = candidates[np.isin(hashes[1], hashes[0])]
  if not len(shared):
    return ()
  return (
    f"warning: {len(shared)} of {len(splits['test'].labels)} {scored} images are training "
    f"images, too, such as {images['test'].name(int(shared[0]))}: accuracy on them says "
    "nothing of new images; take them out of one side",
  )


def _sketches(pixels: np.ndarray) -> np.ndarray:
  """Returns a number, uint64 [N], for each image, the same for the same pixels.

  It takes a tenth of a hash's time, and may be the same for others, too.
  """
  rows = pixels.reshape(len(pixels), -1)
  if missing := -rows.shape[1] % 8:
    rows = np.pad(rows, ((0, 0), (0, missing)))
  rows = rows.view(np.uint64)
  weights = np.random.default_rng(0).integers(2**63, size=rows.shape[1], dtype=np.uint64)
  return rows @ (2 * weights + 1)


def content_hashes(split: Split) -> np.ndarray | None:
  """Returns hashes of pixels or bytes, uint64 [N], if they are known."""
  if not split.on_device:
    return split.images.contents
  hashes = [hashlib.blake2b(pixels, digest_size=8).digest() for pixels in split.images]
  return np.frombuffer(b"".join(hashes), np.uint64)
