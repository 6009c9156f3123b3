"""Makes TFDS directories of the official archives of the paper's data sets."""

import os

from ssil_jax.data.builders.base import ArchiveBuilder
from ssil_jax.data.builders.cifar import Cifar100
from ssil_jax.data.builders.found import Options
from ssil_jax.data.builders.imagenet import Imagenet
from ssil_jax.data.builders.landmarks import LandmarksV2
from ssil_jax.data.builders.report import summary

__all__ = ["BUILDERS", "Options", "make_builder", "summary"]

# By the name of --dataset: the class and its config.
BUILDERS: dict[str, tuple[type[ArchiveBuilder], str | None]] = {
  "imagenet": (Imagenet, None),
  "landmarks_v2/1k": (LandmarksV2, "1k"),
  "landmarks_v2/10k": (LandmarksV2, "10k"),
  "cifar100": (Cifar100, None),
}


def make_builder(dataset: str, data_dir: str | os.PathLike[str]) -> ArchiveBuilder:
  """Returns the builder of a key of BUILDERS, to prepare it or read what was prepared.

  `data_dir` is that of TFDS; `builder.data_dir` is the directory of the version in it.
  """
  builder_class, config = BUILDERS[dataset]
  return builder_class(data_dir=data_dir, config=config, file_format="array_record")
