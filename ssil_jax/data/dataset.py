"""Defines what a data set is to the rest of the package."""

import io
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image

from ssil_jax.data.encoded import EncodedImages
from ssil_jax.data.images.augment import Augmentation, Normalization

# Side in pixels of the largest network input whose images are kept on the devices, and for
# which the network starts with a 3x3 convolution; larger images are streamed.
LARGEST_RESIDENT = 64


class Split(NamedTuple):
  """Training or test images; a record is an index into both fields."""

  # uint8 [N, S, S, 3], to be put on the device whole, or encoded, to be streamed.
  images: np.ndarray | EncodedImages
  labels: np.ndarray  # int32 [N]
  # What images on the device were decoded from; None of such that never were encoded.
  files: EncodedImages | None = None

  @property
  def on_device(self) -> bool:
    return isinstance(self.images, np.ndarray)

  def take(self, records: np.ndarray) -> "Split":
    """Returns those records (int64 [n]) alone, in that order."""
    images = self.images[records] if self.on_device else self.images.take(records)
    files = self.files and self.files.take(records)
    return Split(images, self.labels[records], files)

  def encoded(self, record: int) -> bytes:
    """Returns the file of an image; raises BadImage.

    Of one that never was encoded, a PNG, which keeps every pixel.
    """
    files = self.files if self.on_device else self.images
    if files is not None:
      return files.store.read(int(files.numbers[record]))
    file = io.BytesIO()
    Image.fromarray(self.images[record]).save(file, "PNG")
    return file.getvalue()


class Batch(NamedTuple):
  """A batch, or one device's share of it; the host makes it, the devices read it."""

  # int32 [B], records of the images on the device, or uint8 [B, S, S, 3], the images.
  inputs: np.ndarray
  labels: np.ndarray  # int32 [L], of the first L images; the others have none
  positions: np.ndarray  # int32 [B], places in the global batch; -1 for padding
  records: np.ndarray  # int32 [B], in their split


class Source(NamedTuple):
  """A data set as it is found: labels are places in `class_names`."""

  class_names: tuple[str, ...]
  train: Split
  test: Split | None  # None if a share of the training images is to be held out
  # Natural side of the network's input, in pixels; None for what the images say.
  image_size: int | None
  flip: bool  # whether a mirrored image is still one of its class
  normalization: Normalization | None = None
  ignored_files: int = 0  # and folders, found beside the images and not read
  notes: tuple[str, ...] = ()  # for the user, before training


class Dataset(NamedTuple):
  """A data set as it is learnt: labels are places in the class order."""

  class_names: tuple[str, ...]
  train: Split
  test: Split
  image_size: int  # S
  flip: bool  # whether a mirrored image is still one of its class
  augmentation: Augmentation  # of training images, on the device
  random_resized_crop: bool  # of training images, on the host
  normalization: Normalization | None  # of all images, on the device
  ignored_files: int
  skipped_records: Mapping[str, int]  # train, test -> bad images that were left out
  notes: tuple[str, ...]
  # Images that belong to no class, read as those of `train`; labels are -1.
  unlabeled: Split | None = None


def in_class_order(split: Split, order: np.ndarray) -> Split:
  """Keeps the records of the classes in `order`; labels become places in it."""
  place = np.full(max(order.max(), split.labels.max(initial=0)) + 1, -1, np.int32)
  place[order] = np.arange(len(order), dtype=np.int32)
  labels = place[split.labels]
  kept = np.flatnonzero(labels >= 0)
  return split.take(kept)._replace(labels=labels[kept])


def records_of(labels: np.ndarray, low: int, high: int) -> np.ndarray:
  """Returns int64 [n]: the records whose class is in `[low, high)`, in their order."""
  return np.flatnonzero((labels >= low) & (labels < high))
