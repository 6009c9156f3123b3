"""Miniature archives, laid out as the official ones, for the tests that prepare them."""

import csv
import functools
import gzip
import io
import json
import pathlib
import tarfile

import numpy as np
import scipy.io
import tensorflow_datasets as tfds
from PIL import Image
from rich.console import Console

from ssil_jax.data import builders

QUIET = Console(quiet=True)
PARTIAL = builders.Options(allow_partial=True)

# Two of the official classes, and the third one has validation images only.
GOLDFISH, TENCH, SHARK = "n01443537", "n01440764", "n01484850"


@functools.cache
def image(seed, mode="RGB", file_format="JPEG", width=48, height=40, **options):
  """The bytes of a small image that differs with the seed."""
  coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
  pixels = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
  file = io.BytesIO()
  pixels.convert(mode).save(file, file_format, **options)
  return file.getvalue()


def tar_of(members):
  """The bytes of a tar: name -> content."""
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode="w") as tar:
    for name, content in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))
  return file.getvalue()


@functools.cache
def official(name):
  """The wnids in a file of tensorflow-datasets."""
  return tfds.core.tfds_path(f"datasets/imagenet2012/{name}").read_text().split()


def validation_name(number):
  return f"ILSVRC2012_val_{number:08}.JPEG"


def validation_numbers(wnid, count):
  """The numbers of the first official validation images of a class."""
  truth = official("validation_labels.txt")
  return [number for number, name in enumerate(truth, 1) if name == wnid][:count]


def imagenet_train():
  """wnid -> file name -> image: what is hard to read is there, too."""
  plain = {
    wnid: {f"{wnid}_{i}.JPEG": image((c, i)) for i in (10, 2, 7)}
    for c, wnid in enumerate((GOLDFISH, TENCH))
  }
  plain[GOLDFISH][f"{GOLDFISH}_20.JPEG"] = image(20, "CMYK")
  plain[GOLDFISH][f"{GOLDFISH}_21.JPEG"] = image(21, "L")
  plain[TENCH][f"{TENCH}_22.JPEG"] = image(22, "RGBA", "PNG")
  whole = image(23)
  plain[TENCH][f"{TENCH}_23.JPEG"] = whole[:-2] + bytes(20) + whole[-2:]
  return plain


def imagenet_validation():
  """File name -> image, not in the order of numbers; the last is of another class."""
  numbers = validation_numbers(TENCH, 2) + validation_numbers(GOLDFISH, 1)
  numbers += validation_numbers(SHARK, 1)
  return {validation_name(number): image((9, number)) for number in reversed(numbers)}


def imagenet(folder, train=None, validation=None):
  """Writes both tars of ImageNet; returns the folder."""
  folder.mkdir(parents=True, exist_ok=True)
  train = imagenet_train() if train is None else train
  validation = imagenet_validation() if validation is None else validation
  outer = tar_of({f"{wnid}.tar": tar_of(images) for wnid, images in train.items()})
  (folder / "ILSVRC2012_img_train.tar").write_bytes(outer)
  (folder / "ILSVRC2012_img_val.tar").write_bytes(tar_of(validation))
  return folder


def devkit(folder, *, counts=None, truth=None, meta=b"whole"):
  """Writes the devkit of ImageNet; with another meta.mat, or none if that is None."""
  wnids = official("labels.txt")[::-1]  # the ids of ILSVRC are in another order than wnids
  if meta == b"whole":
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_train_images", "O")]
    synsets = np.zeros(1001, kinds)
    for i, wnid in enumerate([*wnids, "n00001740"]):  # the last is an inner node
      synsets[i] = (float(i + 1), wnid, float((counts or {}).get(wnid, 1300)))
    file = io.BytesIO()
    scipy.io.savemat(file, {"synsets": synsets[:, None]})
    meta = file.getvalue()
  ids = {wnid: i for i, wnid in enumerate(wnids, 1)}
  truth = [f"{ids[wnid]}\n" for wnid in truth or official("validation_labels.txt")]
  members = {
    "ILSVRC2012_validation_ground_truth.txt": "".join(truth).encode(),
    "meta.mat": meta,
  }
  packed = _gzip_tar_of("ILSVRC2012_devkit_t12/data", members)
  (folder / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(packed)


def _gzip_tar_of(folder, members):
  """The bytes of a .tar.gz of name -> content, without those that are None."""
  there = {f"{folder}/{name}": data for name, data in members.items() if data is not None}
  return gzip.compress(tar_of(there), compresslevel=1, mtime=0)


def landmark_ids(counts):
  """landmark id -> number of images, to image id -> landmark id, in no order."""
  ids = {}
  for landmark, count in counts.items():
    for i in range(count):
      ids[f"{(landmark * 7919 + i * 104729) % 0xFFFFF:05x}{landmark:05}{i:06}"] = landmark
  return ids


def landmarks(folder, counts, *, left_out=(), extra=(), num_tars=4, prefix="train/"):
  """Writes train.csv and tars of Google Landmarks: landmark id -> number of images.

  The image ids `left_out` get into no tar, those of `extra` only into a tar.
  """
  folder.mkdir(parents=True, exist_ok=True)
  ids = landmark_ids(counts)
  with open(folder / "train.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["id", "url", "landmark_id"])
    for name, landmark in ids.items():
      writer.writerow([name, f'http://x/a,"{name}".jpg', landmark])
  packed = [name for name in ids if name not in left_out] + list(extra)
  for i in range(num_tars):
    images = {
      f"{prefix}{name[0]}/{name[1]}/{name[2]}/{name}.jpg": landmark_image(name)
      for name in packed[i::num_tars]
    }
    (folder / f"images_{i:03}.tar").write_bytes(tar_of(images))


def landmark_image(name):
  return image(int(name[:5], 16) % 50, width=40, height=40)


def cifar_images(seed, fine):
  """(coarse, fine, uint8 [3, 32, 32]) for each fine label."""
  pixels = np.random.default_rng(seed).integers(0, 256, (len(fine), 3, 32, 32), np.uint8)
  return [(label // 5, label, image) for label, image in zip(fine, pixels, strict=True)]


CIFAR_TRAIN = cifar_images(0, [30, 7, 99, 7, 30, 99, 7])
CIFAR_TEST = cifar_images(1, [99, 7, 30, 50])  # class 50 has no training image


def cifar(folder, **replaced):
  """Writes the binary version of CIFAR-100, `replaced` members by their stems."""
  folder.mkdir(parents=True, exist_ok=True)
  members = {
    "train": b"".join(bytes([c, f]) + pixels.tobytes() for c, f, pixels in CIFAR_TRAIN),
    "test": b"".join(bytes([c, f]) + pixels.tobytes() for c, f, pixels in CIFAR_TEST),
    "fine_label_names": "".join(f"fine_{i:02}\n" for i in range(100)).encode(),
    "coarse_label_names": "".join(f"coarse_{i:02}\n" for i in range(20)).encode(),
  }
  named = {
    f"{name}.{'bin' if name in ('train', 'test') else 'txt'}": content
    for name, content in (members | replaced).items()
  }
  packed = _gzip_tar_of("cifar-100-binary", named)
  (folder / "cifar-100-binary.tar.gz").write_bytes(packed)
  return folder


def prepare(dataset, archives, data_dir, options=PARTIAL, *, shard_bytes=None):
  """Prepares a data set; returns its builder."""
  data_dir.mkdir(parents=True, exist_ok=True)
  builder = builders.make_builder(dataset, data_dir)
  if shard_bytes is not None:
    builder.shard_bytes = shard_bytes
  builder.prepare(archives, options, QUIET)
  return builder


def encoded(builder, split):
  """The records of a split in order, images as they are stored."""
  source = tfds.builder_from_directory(builder.data_dir).as_data_source(
    split, decoders={"image": tfds.decode.SkipDecoding()}
  )
  return list(source)


def report_of(builder):
  """prepare.json of a prepared directory, in which no folder of this machine is named."""
  text = (pathlib.Path(builder.data_dir) / "prepare.json").read_text()
  assert str(pathlib.Path(builder.data_dir).parents[1]) not in text
  return json.loads(text)
