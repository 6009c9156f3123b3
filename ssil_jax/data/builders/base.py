"""From official archives to a TFDS directory: what the builders have in common."""

import abc
import dataclasses
import functools
import inspect
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from rich.console import Console
from rich.filesize import decimal as as_bytes

from ssil_jax.data.builders import recode, report
from ssil_jax.data.builders.found import Contents, Deviations, Options, Records
from ssil_jax.data.builders.shards import Shard, WorkFolder, writing_to
from ssil_jax.data.images import turbojpeg
from ssil_jax.data.sources import labels as labels_lib
from ssil_jax.errors import ConfigError, DataError
from ssil_jax.progress import ProgressBars
from ssil_jax.system import write_bytes, write_json

_Shards = Mapping[str, Sequence[Shard]]  # by split

_MOST_SHARDS = 256
# A record holds a hundred bytes or so besides its image, and ArrayRecord adds two hundred.
_BYTES_AROUND_IMAGE = 400
_SMALLEST_SHARD = 128 * 1024  # bytes that ArrayRecord gives a file, however few it needs


class ArchiveBuilder(tfds.core.dataset_builder.FileReaderBuilder, skip_registration=True):
  """A TFDS builder that reads archives which the user has downloaded.

  `prepare` writes the directory; after that the builder reads it like any other of TFDS,
  with `info` and `as_data_source`, and so does `tfds.builder_from_directory`. Builders of
  this kind are not registered, for TFDS has data sets of the same names.
  """

  VERSION = tfds.core.Version("1.0.0")
  HOMEPAGE: ClassVar[str]
  IMAGE = tfds.features.Image(encoding_format="jpeg")

  # Returns what is stored of an image, and a remark or None; many threads call it.
  _recode: Callable[[bytes, Options], tuple[bytes, str | None]] = staticmethod(
    recode.recode_photo
  )

  # Of images in a shard; more if there would be more than 256 shards.
  shard_bytes: int = 640_000_000

  @abc.abstractmethod
  def _other_features(self) -> dict[str, Any]:
    """Returns the features beside image and label; classes have no names yet."""

  @abc.abstractmethod
  def _find(
    self, folder: pathlib.Path, deviations: Deviations, progress: ProgressBars
  ) -> Contents:
    """Looks through the archives without reading images; raises DataError."""

  def _check_options(self, options: Options) -> None:
    """Raises ConfigError for options that the data set or the machine cannot have."""
    if options.resize is not None and options.resize < recode.SMALLEST_RESIZE:
      raise ConfigError(
        f"--resize={options.resize} must be {recode.SMALLEST_RESIZE} or more"
      )
    if options.restart_markers and turbojpeg.library() is None:
      raise ConfigError(f"--restart_markers needs {turbojpeg.NEEDED}")

  def prepare(
    self,
    archives: pathlib.Path,
    options: Options,
    console: Console,
    *,
    check_interrupt: Callable[[], None] = lambda: None,
  ) -> bool:
    """Writes the TFDS directory, or resumes that; returns whether there was anything to do.

    `archives` is the folder with the official ones; `check_interrupt` is called often, and
    may raise KeyboardInterrupt without harm.

    Raises:
      ConfigError: the options do not suit the data set or the machine.
      DataError: an archive, or the directory to write to, cannot be used.
    """
    self._check_options(options)
    version_dir = pathlib.Path(self.data_dir)
    work = WorkFolder(version_dir)
    if version_dir.exists() and not work.path.exists():
      report.check_prepared(version_dir, options)
      return False
    with work.locked():
      # Another process may have finished just before the folder was locked, and this one
      # may have been killed before it removed the folder.
      was_prepared = version_dir.exists()
      if was_prepared:
        report.check_prepared(version_dir, options)
      else:
        work.check_same({"options": dataclasses.asdict(options)})
        with ProgressBars(console, check_interrupt) as progress:
          self._prepare_in(work, archives, options, progress)
      work.remove()
    return not was_prepared

  def _prepare_in(
    self, work: WorkFolder, archives: pathlib.Path, options: Options, progress: ProgressBars
  ) -> None:
    """Writes the shards that are missing and what describes them, and hands all over."""
    deviations = Deviations(options)
    contents = self._find(archives, deviations, progress)
    for feature, names in contents.class_names.items():
      self.info.features[feature].names = list(names)
    counts = count_shards(contents.splits, self.shard_bytes)
    # What the shards in a work folder depend on.
    work.begin(
      {
        "builder": {"version": str(self.version)},
        "options": dataclasses.asdict(options),
        "archives": {archive.name: archive.size for archive in contents.archives},
        "shards": counts,
        "images and labels of": {
          split: records.digest() for split, records in contents.splits.items()
        },
      }
    )
    shards = {
      split: self._shards(split, records, counts[split], options)
      for split, records in contents.splits.items()
    }
    self._write_missing(work, shards, options, progress)
    labels = {
      split: np.concatenate([shard.labels() for shard in part])
      for split, part in shards.items()
    }
    names = contents.class_names["label"]
    empty = np.flatnonzero(np.bincount(labels["train"], minlength=len(names)) == 0)
    if len(empty):
      raise DataError(
        f"class {names[empty[0]]} ({len(empty)} in all) has no training image that can be "
        "decoded: download its archive again"
      )
    with writing_to(work.path):
      labels_lib.save(work.files, labels)
      write_json(
        work.files / report.NAME,
        report.make_report(options, contents, deviations, shards, labels),
      )
      self._write_info(work.files, shards)
      work.hand_over()

  def _shards(
    self, split: str, records: Records, count: int, options: Options
  ) -> list[Shard]:
    ends = np.linspace(0, len(records), count + 1).astype(int).tolist()
    template = self._get_filename_template(split)
    # Test images stay as they are.
    recoding = options if split == "train" else Options()
    return [
      Shard(
        name=template.sharded_filepath(shard_index=i, num_shards=count).name,
        records=records,
        span=span,
        recode_image=functools.partial(self._recode, options=recoding),
        allow_partial=options.allow_partial,
      )
      for i, span in enumerate(map(range, ends, ends[1:]))
    ]

  def _write_missing(
    self, work: WorkFolder, shards: _Shards, options: Options, progress: ProgressBars
  ) -> None:
    missing = {
      split: [shard for shard in part if not work.has_finished(shard)]
      for split, part in shards.items()
    }
    _check_space(work.path, missing, options)
    features = self.info.features
    serializer = tfds.core.ExampleSerializer(features.get_serialized_info())

    def serialize(example: dict[str, Any]) -> bytes:
      # Else the features would be in another order with every run.
      proto = serializer.get_tf_example(features.encode_example(example))
      return proto.SerializeToString(deterministic=True)

    for split, part in missing.items():
      if not part:
        continue
      images = sum(len(shard.span) for shard in part)
      advance = progress.add(f"{split}: {images:,} images to write", images, "images")
      for shard in part:
        work.write(shard, map(serialize, shard.examples(advance)))

  def _write_info(self, directory: pathlib.Path, shards: _Shards) -> None:
    """Writes what makes a directory with these shards one of TFDS."""
    self.info.set_splits(
      tfds.core.SplitDict(
        tfds.core.SplitInfo(
          name=split,
          shard_lengths=[len(shard.labels()) for shard in part],
          num_bytes=sum((directory / shard.name).stat().st_size for shard in part),
          filename_template=self._get_filename_template(split),
        )
        for split, part in shards.items()
      )
    )
    self.info.write_to_directory(directory)
    if self.BUILDER_CONFIGS:
      metadata = {"default_config_name": self.get_default_builder_config().name}
      common = pathlib.Path(self.data_dir).parents[1] / ".config"
      common.mkdir(exist_ok=True)
      write_bytes(common / "metadata.json", json.dumps(metadata).encode())

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=inspect.getdoc(type(self)),
      features=tfds.features.FeaturesDict(
        {
          "image": self.IMAGE,
          "label": tfds.features.ClassLabel(),
          **self._other_features(),
        }
      ),
      supervised_keys=("image", "label"),
      homepage=self.HOMEPAGE,
      disable_shuffling=True,
    )

  def _download_and_prepare(self, dl_manager, download_config=None) -> None:
    raise NotImplementedError("archives cannot be downloaded: see `prepare`")


def count_shards(splits: Mapping[str, Records], shard_bytes: int) -> dict[str, int]:
  """Returns how many shards each split gets, of so many bytes if they are not too many."""
  sizes = {split: int(records.files["size"].sum()) for split, records in splits.items()}
  # Rounding up gives each split up to one shard more than its share.
  most = _MOST_SHARDS - len(sizes)
  shard_bytes = max(shard_bytes, -(-sum(sizes.values()) // most))
  return {
    split: min(-(-sizes[split] // shard_bytes), len(records))
    for split, records in splits.items()
  }


def _check_space(folder: pathlib.Path, shards: _Shards, options: Options) -> None:
  """Raises DataError if there is too little room for the shards."""
  needed = 0
  for split, part in shards.items():
    for shard in part:
      sizes = shard.records.files["size"][shard.span] + _BYTES_AROUND_IMAGE
      # Nothing is known of images that will be shrunk before they are.
      shrunk = split == "train" and options.resize is not None
      needed += _SMALLEST_SHARD if shrunk else max(int(sizes.sum()), _SMALLEST_SHARD)
  free = shutil.disk_usage(folder).free
  if needed > free:
    raise DataError(
      f"{folder} has {as_bytes(free)} free, {as_bytes(needed - free)} too little for the "
      f"{as_bytes(needed)} to be written: make room, or use another --data_dir"
    )
