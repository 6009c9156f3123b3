"""Data sets, by the name that `--dataset` takes."""

import hashlib
import json
from collections.abc import Callable, Mapping

import numpy as np

from ssil_jax.config import Config
from ssil_jax.data.augment import Augmentation
from ssil_jax.data.dataset import Dataset, Source, Split, in_class_order
from ssil_jax.data.digits import open_digits
from ssil_jax.data.image_folder import open_image_folder
from ssil_jax.data.small import central_squares
from ssil_jax.data.tfds_folder import NAMES, open_tfds
from ssil_jax.errors import ConfigError
from ssil_jax.resnet import SMALL_IMAGE
from ssil_jax.states import class_order

SOURCES: Mapping[str, Callable[[Config], Source]] = {
  "digits": open_digits,
  "image_folder": open_image_folder,
  **dict.fromkeys(NAMES, open_tfds),
}


def check_dataset_name(name: str) -> None:
  """Raises ConfigError unless there is such a data set."""
  if name not in SOURCES:
    raise ConfigError(f"--dataset={name} is unknown; choose from: {', '.join(SOURCES)}")


def open_dataset(config: Config) -> Dataset:
  """Opens the data set with its classes in the order of learning.

  Images of up to 64 pixels are decoded here and now; larger ones stay encoded.

  Raises:
    ConfigError: the data set is unknown or has too few classes.
    DataError: something in the data folder is wrong.
  """
  check_dataset_name(config.dataset)
  source = SOURCES[config.dataset](config)
  order = class_order(
    len(source.class_names),
    num_classes=config.num_classes,
    seed=config.class_order_seed,
  )
  size = config.image_size or source.image_size
  small = size <= SMALL_IMAGE
  train = in_class_order(source.train, order)
  test = in_class_order(source.test, order)
  if small or train.on_device:
    train = Split(central_squares(train.images, size), train.labels)
    test = Split(central_squares(test.images, size), test.labels)
  else:
    # Read for the first time when a whole state has been trained: too late to complain.
    test.images.store.check(test.images.numbers)
  augment = config.augment
  if augment == "auto":
    augment = "crop_flip" if source.flip else "crop"
  crop, flip = augment != "none", augment == "crop_flip"
  return Dataset(
    class_names=tuple(source.class_names[c] for c in order),
    train=train,
    test=test,
    image_size=size,
    augmentation=Augmentation(
      max_shift=size // 8 if crop and train.on_device else 0, flip=flip
    ),
    random_resized_crop=crop and not train.on_device,
    normalization=source.normalization,
    ignored_files=source.ignored_files,
    notes=source.notes,
  )


def fingerprint(dataset: Dataset) -> str:
  """A hash of the classes, labels and images: of pixels, or of what their store is.

  Record numbers in checkpoints mean nothing in a data set with another fingerprint.
  """
  digest = hashlib.blake2b(digest_size=16)
  digest.update(json.dumps([dataset.class_names, dataset.image_size]).encode())
  for split in (dataset.train, dataset.test):
    digest.update(split.labels.tobytes())
    if split.on_device:
      digest.update(np.ascontiguousarray(split.images))
    else:
      digest.update(split.images.store.digest())
      digest.update(split.images.numbers.tobytes())
  return digest.hexdigest()


def records_of(labels: np.ndarray, low: int, high: int) -> np.ndarray:
  """int64 [n]: the records whose class is in `[low, high)`, in their order."""
  return np.flatnonzero((labels >= low) & (labels < high))


__all__ = [
  "SOURCES",
  "Augmentation",
  "Dataset",
  "Source",
  "Split",
  "check_dataset_name",
  "open_dataset",
  "records_of",
]
