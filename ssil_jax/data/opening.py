"""Data sets, by the name that `--dataset` takes."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ssil_jax.config import Config
from ssil_jax.data import verify
from ssil_jax.data.classes import choose_classes
from ssil_jax.data.dataset import LARGEST_RESIDENT, Dataset, Source, Split, in_class_order
from ssil_jax.data.decoded import LikelySquares, Squares, kept_squares
from ssil_jax.data.held_out import content_hashes, describe_shared, split_by_content
from ssil_jax.data.images.augment import Augmentation
from ssil_jax.data.resident import central_squares, describe_sizes, natural_size, read_sizes
from ssil_jax.data.sources.digits import open_digits
from ssil_jax.data.sources.folder import open_image_folder
from ssil_jax.data.sources.tfds import NAMES, open_tfds
from ssil_jax.errors import ConfigError

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
  stay encoded, and are looked at once, with `--verify_data`; `check_interrupt` is called
  meanwhile. Where neither flag nor data set says how large the input is, the sizes of all
  training images do.

  Raises:
    ConfigError: the data set is unknown or has too few classes, or flags contradict.
    DataError: an image is bad, without `--skip_bad_records`, or the data folder is.
  """
  check_dataset_name(config.dataset)
  source = SOURCES[config.dataset](config)
  order = choose_classes(source.class_names, config)
  test = source.test and in_class_order(source.test, order)
  chosen = source._replace(
    class_names=tuple(source.class_names[c] for c in order),
    train=in_class_order(source.train, order),
    test=test,
  )
  return open_source(with_test(chosen, config, check_interrupt), config, check_interrupt)


def with_test(
  source: Source, config: Config, check_interrupt: Callable[[], None] = lambda: None
) -> Source:
  """Returns a source with the images that are scored, in the place of test images.

  A source without any of their own gets a share of all images. With
  `--validation_fraction`, a share of the training images takes their place.

  Raises ConfigError and DataError as `open_dataset`.
  """
  train, test, notes = source.train, source.test, source.notes

  def hold_out(split: Split, **of_share: Any) -> tuple[Split, Split]:
    return _hold_out(split, source.class_names, config, check_interrupt, **of_share)

  if test is None:
    count = len(train.labels)
    train, test = hold_out(
      train,
      scored="test",
      fraction=config.test_fraction,
      refusal="--noverify_data needs DIR/train and DIR/test: which images of "
      f"--data_dir={config.data_dir} are test images is told by their content",
    )
    notes += (
      f"{len(test.labels)} of {count} images are kept for testing, chosen by a hash of "
      f"their content (--test_fraction={config.test_fraction:g})",
    )
  if config.validation_fraction:
    count, flag = len(train.labels), f"--validation_fraction={config.validation_fraction:g}"
    train, test = hold_out(
      train,
      scored="validation",
      fraction=config.validation_fraction,
      refusal=f"--noverify_data and {flag}: which training images are held out is told by "
      "their content; leave one of them out",
    )
    notes += (
      f"{len(test.labels)} of {count} training images are held out, chosen by a hash of "
      f"their content ({flag}): all scores are of these validation images, none of test "
      "images",
    )
  return source._replace(train=train, test=test, notes=notes)


def open_source(
  source: Source, config: Config, check_interrupt: Callable[[], None] = lambda: None
) -> Dataset:
  """Makes a data set of a source whose classes are in the order of learning.

  Raises ConfigError and DataError as `open_dataset`.
  """
  class_names, source_notes = source.class_names, source.notes
  splits = {"train": source.train, "test": source.test}
  size, notes = config.image_size or source.image_size, ()
  if splits["train"].on_device:
    kept = {
      name: Split(central_squares(split.images, size, check_interrupt)[0], split.labels)
      for name, split in splits.items()
    }
  else:
    size, kept, notes = _open_encoded(config, splits, size, class_names, check_interrupt)
  augment = config.augment
  if augment == "auto":
    augment = "crop_flip" if source.flip else "crop"
  crop, on_device = augment != "none", kept["train"].on_device
  return Dataset(
    class_names=class_names,
    train=kept["train"],
    test=kept["test"],
    image_size=size,
    flip=source.flip,
    augmentation=Augmentation(
      max_shift=size // 8 if crop and on_device else 0, flip=augment == "crop_flip"
    ),
    random_resized_crop=crop and not on_device,
    normalization=source.normalization,
    ignored_files=source.ignored_files,
    skipped_records={
      name: len(splits[name].labels) - len(split.labels) for name, split in kept.items()
    },
    notes=source_notes + notes,
  )


def _hold_out(
  split: Split,
  class_names: tuple[str, ...],
  config: Config,
  check_interrupt: Callable[[], None],
  *,
  scored: str,
  fraction: float,
  refusal: str,
) -> tuple[Split, Split]:
  """Returns the images that are left, and a share of them that is held out.

  `scored` says what that share is: test or validation images. Raises ConfigError with
  `refusal` if nobody may look at the images.
  """
  bad: verify.Bad = {}
  if split.on_device:
    contents = content_hashes(split)
  elif not config.verify_data:
    raise ConfigError(refusal)
  else:
    verification = verify.verify({"train": split.images}, check_interrupt)
    contents, bad = verification.images["train"].contents, verification.bad["train"]
    if not config.skip_bad_records:
      verify.leave_out_bad(
        {"train": split},
        verification.bad,
        {"train": split.images},
        class_names=class_names,
        skip=False,
      )
  return split_by_content(
    split, contents, bad, class_names, fraction=fraction, scored=scored
  )


def _open_encoded(
  config: Config,
  splits: Mapping[str, Split],
  size: int | None,
  class_names: tuple[str, ...],
  check_interrupt: Callable[[], None],
) -> tuple[int, dict[str, Split], tuple[str, ...]]:
  """Returns the size of the network's input, the images that can be read, and notes."""
  leave_out_bad = functools.partial(
    verify.leave_out_bad, class_names=class_names, skip=config.skip_bad_records
  )
  images = {name: split.images for name, split in splits.items()}
  was_verified = all(part.store.was_verified for part in images.values())
  notes: tuple[str, ...] = ()
  stamps: Mapping[str, np.ndarray] = {}
  seen: Mapping[str, Squares | None] = {}
  if config.verify_data and not was_verified and not (size and size <= LARGEST_RESIDENT):
    likely = LikelySquares(images, size)
    verification = verify.verify(images, check_interrupt, visit=likely.visit)
    found = {
      name: split._replace(images=verification.images[name])
      for name, split in splits.items()
    }
    kept, skip_notes = leave_out_bad(found, verification.bad, images)
    size, notes = size or natural_size(verification.sizes["train"]), verification.notes
    stamps = verification.stamps
    seen = {n: likely.of(n, size, bad) for n, bad in verification.bad.items()}
    del likely  # and what it holds, of another size
    if size > LARGEST_RESIDENT:
      notes += describe_sizes(images, verification.sizes, size, config.scored) + skip_notes
      stored = {name: split.images for name, split in kept.items()}
      return size, kept, notes + describe_shared(kept, stored, config.scored)
  size = size or natural_size(read_sizes(images["train"], check_interrupt))
  if size <= LARGEST_RESIDENT:
    squares = {
      name: kept_squares(
        *(part, size, check_interrupt), stamps=stamps.get(name), squares=seen.get(name)
      )
      for name, part in images.items()
    }
    bad, sizes = (
      {n: getattr(s, what) for n, s in squares.items()} for what in ("bad", "sizes")
    )
    pixels = {
      name: Split(squares[name].pixels, split.labels, files=images[name])
      for name, split in splits.items()
    }
    kept, skip_notes = leave_out_bad(pixels, bad, images)
    notes += tuple(dict.fromkeys(n for s in squares.values() for n in s.notes))
    notes += describe_sizes(images, sizes, size, config.scored) + skip_notes
    stored = {
      name: part.take(np.delete(np.arange(len(part)), [*bad[name]]))
      for name, part in images.items()
    }
    return size, kept, notes + describe_shared(kept, stored, config.scored)
  if not config.verify_data and not was_verified:
    if config.skip_bad_records:
      raise ConfigError(
        "--skip_bad_records needs --verify_data: without it, bad images are not known "
        "before training"
      )
    # Read for the first time when a whole state has been trained: too late to complain.
    if not images["test"].store.has_checksums:  # no program writes records of no images
      images["test"].check_headers()
  if not was_verified or any(part.store.content is None for part in images.values()):
    notes = (_NOT_COMPARED,)
  return size, dict(splits), notes
