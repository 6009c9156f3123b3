"""Data sets, by the name that `--dataset` takes."""

import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from ssil_jax.config import Config
from ssil_jax.data.augment import Augmentation
from ssil_jax.data.dataset import Dataset, Source, Split, in_class_order
from ssil_jax.data.digits import open_digits
from ssil_jax.data.image_folder import open_image_folder
from ssil_jax.data.images import central_squares, check_headers
from ssil_jax.errors import ConfigError
from ssil_jax.resnet import SMALL_IMAGE
from ssil_jax.states import class_order

SOURCES: Mapping[str, Callable[[Config], Source]] = {
  "digits": open_digits,
  "image_folder": open_image_folder,
}
# Read through tensorflow-datasets, whose builders this version does not have yet.
_NEED_BUILDERS = ("imagenet", "landmarks_v2/1k", "landmarks_v2/10k", "cifar100")


def check_dataset_name(name: str) -> None:
  """Raises ConfigError, with what to do, unless the data set can be opened."""
  if name in _NEED_BUILDERS:
    raise ConfigError(
      f"--dataset={name} needs a TFDS builder, which this version lacks: unpack the "
      "images to DIR/train/CLASS/* and DIR/val/CLASS/*, and add "
      "--dataset=image_folder --data_dir=DIR"
    )
  if name not in SOURCES:
    raise ConfigError(f"--dataset={name} is unknown; choose from: {', '.join(SOURCES)}")


def open_dataset(config: Config) -> Dataset:
  """Opens the data set with its classes in the order of learning.

  Images of up to 64 pixels are decoded here and now; larger ones stay file names.

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
    check_headers(test.images)
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
    ignored_files=source.ignored_files,
  )


def fingerprint(dataset: Dataset) -> str:
  """A hash of the classes, labels and images: of their pixels, or of their file names.

  Record numbers in checkpoints mean nothing in a data set with another fingerprint. A
  folder may move, since only CLASS/FILE counts.
  """
  digest = hashlib.blake2b(digest_size=16)
  digest.update(json.dumps([dataset.class_names, dataset.image_size]).encode())
  for split in (dataset.train, dataset.test):
    digest.update(split.labels.tobytes())
    if split.on_device:
      digest.update(np.ascontiguousarray(split.images))
    else:
      names = ["/".join(pathlib.PurePath(path).parts[-2:]) for path in split.images]
      digest.update(json.dumps(names).encode())
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
