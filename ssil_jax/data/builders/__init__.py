"""Makes TFDS directories of the official archives of the paper's data sets."""

import os

from ssil_jax.data.builders.base import ArchiveBuilder
from ssil_jax.data.builders.cifar import Cifar100
from ssil_jax.data.builders.found import Options
from ssil_jax.data.builders.imagenet import Imagenet
from ssil_jax.data.builders.landmarks import LandmarksV2
from ssil_jax.data.builders.report import summary
from ssil_jax.errors import ConfigError

__all__ = ["BUILDERS", "Options", "check_known", "make_builder", "summary"]

# By the name of --dataset: the class and its config.
BUILDERS: dict[str, tuple[type[ArchiveBuilder], str | None]] = {
  "imagenet": (Imagenet, None),
  "landmarks_v2/1k": (LandmarksV2, "1k"),
  "landmarks_v2/10k": (LandmarksV2, "10k"),
  "cifar100": (Cifar100, None),
}


def check_known(dataset: str) -> None:
  """Raises ConfigError if the data set is not a key of BUILDERS."""
  if dataset not in BUILDERS:
    raise ConfigError(
      f"{dataset} is not a data set that can be prepared; there are: {', '.join(BUILDERS)}"
    )


def make_builder(dataset: str, data_dir: str | os.PathLike[str]) -> ArchiveBuilder:
  """Returns the builder of a data set, for preparing it or for reading what was prepared.

  `data_dir` is that of TFDS; `builder.data_dir` is the directory of the version in it.
  Raises ConfigError if the data set is not a key of BUILDERS.
  """
  check_known(dataset)
  builder_class, config = BUILDERS[dataset]
  return builder_class(data_dir=data_dir, config=config)
