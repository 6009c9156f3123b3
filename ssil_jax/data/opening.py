"""Data sets, by the name that `--dataset` takes."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

from ssil_jax.config import Config
from ssil_jax.data import verify
from ssil_jax.data.dataset import LARGEST_RESIDENT, Dataset, Source, Split, in_class_order
from ssil_jax.data.images.augment import Augmentation
from ssil_jax.data.resident import central_squares, describe_sizes, natural_size, read_sizes
from ssil_jax.data.sources.digits import open_digits
from ssil_jax.data.sources.folder import open_image_folder
from ssil_jax.data.sources.tfds import NAMES, open_tfds
from ssil_jax.errors import ConfigError
from ssil_jax.schedule import class_order

SOURCES: Mapping[str, Callable[[Config], Source]] = {
  "digits": open_digits,
  "image_folder": open_image_folder,
  **dict.fromkeys(NAMES, open_tfds),
}

_NOT_COMPARED = (
  "nobody looks whether the images are those that this run, or --from_workdir, was trained "
  "on: only their names and sizes in bytes are compared (--noverify_data, or data prepared "
  "by an earlier version)"
)


def check_dataset_name(name: str) -> None:
  """Raises ConfigError unless there is such a data set."""
  if name not in SOURCES:
    raise ConfigError(f"--dataset={name} is unknown; choose from: {', '.join(SOURCES)}")


def open_dataset(
  config: Config, *, check_interrupt: Callable[[], None] = lambda: None
) -> Dataset:
  """Opens the data set with its classes in the order of learning.

  If the network's input has up to 64 pixels, images are decoded here and now; else they
  stay encoded, and are looked at once, with `--verify_data`. Bad images stop the run, or
  are left out before anything else is done with `--skip_bad_records`. Where neither flag
  nor data set says how large the input is, the sizes of all training images do.

  Args:
    config: of the run.
    check_interrupt: called while images are verified; it may raise KeyboardInterrupt.

  Raises:
    ConfigError: the data set is unknown or has too few classes, or flags contradict.
    DataError: something in the data folder is wrong.
  """
  check_dataset_name(config.dataset)
  source = SOURCES[config.dataset](config)
  order = class_order(
    len(source.class_names),
    num_classes=config.num_classes,
    seed=config.class_order_seed,
  )
  class_names = tuple(source.class_names[c] for c in order)
  splits = {
    "train": in_class_order(source.train, order),
    "test": in_class_order(source.test, order),
  }
  without = functools.partial(
    verify.without, class_names=class_names, skip=config.skip_bad_records
  )
  if splits["train"].on_device:
    size = config.image_size or source.image_size
    kept = _decoded(splits, size, without, check_interrupt)
  else:
    size, kept = _look(config, splits, source.image_size, without, check_interrupt)
  train, test = kept.splits["train"], kept.splits["test"]
  augment = config.augment
  if augment == "auto":
    augment = "crop_flip" if source.flip else "crop"
  crop, flip = augment != "none", augment == "crop_flip"
  return Dataset(
    class_names=class_names,
    train=train,
    test=test,
    image_size=size,
    augmentation=Augmentation(
      max_shift=size // 8 if crop and train.on_device else 0, flip=flip
    ),
    random_resized_crop=crop and not train.on_device,
    normalization=source.normalization,
    ignored_files=source.ignored_files,
    skipped_records=kept.skipped,
    notes=source.notes + kept.notes,
  )


def _look(
  config: Config,
  splits: Mapping[str, Split],
  size: int | None,
  without: Callable[..., verify.Kept],
  check_interrupt: Callable[[], None],
) -> tuple[int, verify.Kept]:
  """The size of the network's input, and the images that can be read, as it needs them.

  Args:
    config: of the run.
    splits: of encoded images.
    size: natural size of the input; None for what the images say.
    without: leaves out bad images, or refuses them; see `verify.without`.
    check_interrupt: called while images are read.
  """
  size = config.image_size or size
  images = {name: split.images for name, split in splits.items()}
  was_verified = all(part.store.was_verified for part in images.values())
  verification = None
  if config.verify_data and not was_verified and not (size and size <= LARGEST_RESIDENT):
    verification = verify.verify(images, check_interrupt)
    kept = without(
      {
        name: split._replace(
          images=dataclasses.replace(split.images, contents=verification.contents[name])
        )
        for name, split in splits.items()
      },
      verification.bad,
      images,
    )
    size = size or natural_size(verification.sizes["train"])
  elif not size:
    size = natural_size(read_sizes(images["train"], lambda chunk, bad: check_interrupt()))
  if size <= LARGEST_RESIDENT:
    kept = _decoded(splits, size, without, check_interrupt)
    notes = verification.notes if verification else ()
    return size, kept._replace(notes=(*notes, *kept.notes))
  if verification:
    notes = describe_sizes(images, verification.sizes, size)
    notes = (*verification.notes, *notes, *kept.notes)
    return size, kept._replace(notes=notes)
  if not config.verify_data and not was_verified:
    if config.skip_bad_records:
      raise ConfigError(
        "--skip_bad_records needs --verify_data: without it, bad images are not known "
        "before training"
      )
    # Read for the first time when a whole state has been trained: too late to complain.
    images["test"].store.check(images["test"].numbers)
  kept = without(splits, {}, images)
  if not was_verified or any(part.store.content is None for part in images.values()):
    kept = kept._replace(notes=(_NOT_COMPARED,))
  return size, kept


def _decoded(
  splits: Mapping[str, Split],
  size: int,
  without: Callable[..., verify.Kept],
  check_interrupt: Callable[[], None],
) -> verify.Kept:
  """The images that can be read, decoded; arguments as of `_look`."""
  images = {name: split.images for name, split in splits.items()}
  pixels, bad, sizes = {}, {}, {}
  for name, split in splits.items():
    squares, bad[name], sizes[name] = central_squares(images[name], size, check_interrupt)
    pixels[name] = Split(squares, split.labels)
  kept = without(pixels, bad, images)
  if splits["train"].on_device:
    return kept
  return kept._replace(notes=(*describe_sizes(images, sizes, size), *kept.notes))
