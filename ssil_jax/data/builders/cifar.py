"""CIFAR-100."""

import dataclasses
import hashlib
import io
import pathlib
import tarfile
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from ssil_jax.data.builders import tars
from ssil_jax.data.builders.base import ArchiveBuilder
from ssil_jax.data.builders.found import Archive, Contents, Deviations, Options, Records
from ssil_jax.errors import ConfigError, DataError
from ssil_jax.progress import ProgressBars

# https://www.cs.toronto.edu/~kriz/cifar.html
_ARCHIVE = "cifar-100-binary.tar.gz"
_MD5 = "03b5dce01913d631647c71ecec9e9cb8"
_FOLDER = "cifar-100-binary"
_PER_CLASS = {"train": 500, "test": 100}
_NUM_CLASSES = {"coarse": 20, "fine": 100}
_SHAPE = (3, 32, 32)
_RECORD = np.dtype([("coarse", np.uint8), ("fine", np.uint8), ("pixels", np.uint8, _SHAPE)])
_LARGEST_PNG = 3200  # bytes; noise, which does not compress


class Cifar100(ArchiveBuilder, skip_registration=True):
  """CIFAR-100: 500 training and 100 test images of 32x32 in each of 100 classes.

  The images are stored lossless, as PNG. Training records are in the order of the fine
  classes and then of the archive, test records in that of the archive; `id` is the place
  there.
  """

  HOMEPAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
  IMAGE = tfds.features.Image(shape=(32, 32, 3), encoding_format="png")

  def _other_features(self) -> dict[str, Any]:
    return {"coarse_label": tfds.features.ClassLabel(), "id": tfds.features.Text()}

  def _check_options(self, options: Options) -> None:
    if options.resize is not None or options.restart_markers:
      raise ConfigError(
        "--resize and --restart_markers are for photos: cifar100 is stored as it is"
      )

  @staticmethod
  def _recode(image: bytes, options: Options) -> tuple[bytes, None]:
    pixels = np.frombuffer(image, np.uint8).reshape(_SHAPE)
    file = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "PNG", compress_level=9)
    return file.getvalue(), None

  def _find(
    self, folder: pathlib.Path, deviations: Deviations, progress: ProgressBars
  ) -> Contents:
    archive = Archive.file(folder, _ARCHIVE)
    advance = progress.add(f"reading {archive.name}", 1)
    try:
      packed = archive.path.read_bytes()
    except OSError as error:
      raise DataError(f"{archive.path} cannot be read: {error.strerror}") from error
    try:
      with tars.open_gzip(packed) as tar:
        names = {
          level: _read_names(tar, f"{level}_label_names.txt", count)
          for level, count in _NUM_CLASSES.items()
        }
        images = {split: _read_images(tar, split) for split in _PER_CLASS}
    except tars.UNPACKING_ERRORS as error:
      raise DataError(f"{archive.path} is damaged ({error}): download it again") from error
    md5 = hashlib.md5(packed).hexdigest()
    if md5 != _MD5:
      deviations.add(f"{archive.name} has md5 {md5} instead of {_MD5}")
    advance(1)

    # All 100, unless the archive is a part of the official one.
    fine = np.unique(images["train"]["fine"])
    splits = {}
    for split, part in images.items():
      trained = np.isin(part["fine"], fine)
      for place in np.flatnonzero(~trained):
        deviations.left_out.add("class has no training images", _image_id(split, place))
      deviations.compare_counts(
        archive, names["fine"], part["fine"], _PER_CLASS[split], f" in {split}"
      )
      places = np.flatnonzero(trained)
      if split == "train":
        places = places[np.argsort(part["fine"], kind="stable")]
      part = part[places]
      files = tars.as_table(
        tars.Member(_image_id(split, place), place * _RECORD.itemsize, _LARGEST_PNG)
        for place in places
      )
      splits[split] = _PixelRecords(
        label=np.searchsorted(fine, part["fine"]).astype(np.int32),
        files=files,
        columns={"coarse_label": part["coarse"].astype(np.int64), "id": files["name"]},
        archives=(archive,),
        pixels=part["pixels"],
      )
    return Contents(
      archives=(archive,),
      class_names={
        "label": tuple(names["fine"][i] for i in fine),
        "coarse_label": names["coarse"],
      },
      splits=splits,
    )


@dataclasses.dataclass(frozen=True)
class _PixelRecords(Records):
  """Records whose images are in memory, for they cannot be read one by one from a .gz."""

  pixels: np.ndarray  # uint8 [n, 3, 32, 32]

  def read(self, record: int) -> bytes:
    return self.pixels[record].tobytes()


def _image_id(split: str, place: int) -> str:
  return f"{split}_{place:05}"


def _read_images(tar: tarfile.TarFile, split: str) -> np.ndarray:
  """Reads the images [n] of _RECORD of a split; raises ValueError if they are not whole."""
  images = np.frombuffer(tars.read_member(tar, f"{_FOLDER}/{split}.bin"), _RECORD)
  if not len(images):
    raise ValueError(f"{split}.bin has no images")
  for level, count in _NUM_CLASSES.items():
    if images[level].max() >= count:
      raise ValueError(
        f"{split}.bin has {level} labels up to {images[level].max()}, not below {count}"
      )
  return images


def _read_names(tar: tarfile.TarFile, name: str, count: int) -> tuple[str, ...]:
  names = tuple(tars.read_member(tar, f"{_FOLDER}/{name}").decode().split())
  if len(names) != count:
    raise ValueError(f"{name} has {len(names)} names instead of {count}")
  return names
