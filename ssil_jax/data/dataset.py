"""What a data set is to the rest of the package."""

from typing import NamedTuple

import numpy as np

from ssil_jax.data.augment import Augmentation


class Split(NamedTuple):
  """Training or test images; a record is an index into both fields."""

  # uint8 [N, S, S, 3], to be put on the device whole, or N file names, to be streamed.
  images: np.ndarray | list[str]
  labels: np.ndarray  # int32 [N]

  @property
  def on_device(self) -> bool:
    return isinstance(self.images, np.ndarray)


class Source(NamedTuple):
  """A data set as it is found: labels are places in `class_names`."""

  class_names: tuple[str, ...]
  train: Split
  test: Split
  image_size: int  # natural side of the network's input, in pixels
  flip: bool  # whether a mirrored image is still one of its class
  ignored_files: int  # found beside the images and not read


class Dataset(NamedTuple):
  """A data set as it is learnt: labels are places in the class order."""

  class_names: tuple[str, ...]
  train: Split
  test: Split
  image_size: int  # S
  augmentation: Augmentation  # of training images, on the device
  random_resized_crop: bool  # of training images, on the host
  ignored_files: int


def in_class_order(split: Split, order: np.ndarray) -> Split:
  """Keeps the records of the classes in `order`; labels become places in it."""
  place = np.full(max(order.max(), split.labels.max(initial=0)) + 1, -1, np.int32)
  place[order] = np.arange(len(order), dtype=np.int32)
  labels = place[split.labels]
  kept = np.flatnonzero(labels >= 0)
  if split.on_device:
    return Split(split.images[kept], labels[kept])
  return Split([split.images[i] for i in kept], labels[kept])
