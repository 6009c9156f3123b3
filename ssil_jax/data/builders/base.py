"""From official archives to a TFDS directory: what the builders have in common."""

import abc
import dataclasses
import functools
import inspect
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from rich.console import Console
from rich.filesize import decimal as as_bytes

from ssil_jax.data.builders import recode, report
from ssil_jax.data.builders.found import Contents, Deviations, Options, Records
from ssil_jax.data.builders.shard_images import Shard
from ssil_jax.data.builders.shards import WorkFolder, work_path, write_shard, writing_to
from ssil_jax.data.sources import labels as labels_lib
from ssil_jax.errors import DataError
from ssil_jax.paths import Place
from ssil_jax.progress import ProgressBars
from ssil_jax.system import write_json

_SHARD_BYTES = 640_000_000
_MOST_SHARDS = 256
# A record holds a hundred bytes or so besides its image, and ArrayRecord adds two hundred.
_BYTES_AROUND_IMAGE = 400
_SMALLEST_SHARD = 128 * 1024  # bytes that ArrayRecord gives a file, however few it needs


class ArchiveBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
  """A TFDS builder that reads archives which the user has downloaded.

  `prepare` writes the directory; after that the builder reads it like any other of TFDS,
  with `info` and `as_data_source`, and so does `tfds.builder_from_directory`. Builders of
  this kind are not registered, for TFDS has data sets of the same names.

  Attributes:
    shard_bytes: bytes of images that a shard is to have; more if there would be more than
      256 shards.
  """

  VERSION = tfds.core.Version("1.0.0")
  HOMEPAGE: ClassVar[str]

  shard_bytes: int = _SHARD_BYTES

  def __init__(self, **kwargs: Any):
    """See `tfds.core.DatasetBuilder`: data_dir, config and version."""
    super().__init__(file_format=tfds.core.FileFormat.ARRAY_RECORD, **kwargs)

  @abc.abstractmethod
  def _features(self) -> tfds.features.FeaturesDict:
    """Returns the features; classes have no names yet."""

  @abc.abstractmethod
  def _find(
    self, folder: pathlib.Path, deviations: Deviations, progress: ProgressBars
  ) -> Contents:
    """Looks through the archives without reading images; raises DataError."""

  def _check_options(self, options: Options) -> None:
    """Raises ConfigError for options that the data set or the machine cannot have."""
    options.check()

  def _recode(self, image: bytes, **recoding: Any) -> recode.Stored:
    """Returns what is stored of an image; raises CorruptImage. Called by many threads."""
    return recode.recode_photo(image, **recoding)

  def prepare(
    self,
    archives: pathlib.Path,
    options: Options,
    console: Console,
    *,
    check_interrupt: Callable[[], None] = lambda: None,
  ) -> bool:
    """Writes the TFDS directory, or resumes writing it after an interruption.

    Args:
      archives: folder with the official archives.
      options: what to write.
      console: for progress.
      check_interrupt: called often, where it may raise KeyboardInterrupt without harm.

    Returns:
      Whether there was anything to do.

    Raises:
      ConfigError: the options do not suit the data set or the machine.
      DataError: an archive, or the directory to write to, cannot be used.
    """
    self._check_options(options)
    version_dir = pathlib.Path(self.data_dir)
    was_prepared = version_dir.exists()
    if was_prepared:
      report.check_prepared(version_dir, options)
      if not work_path(version_dir).exists():
        return False
    with WorkFolder(version_dir) as work:
      # Another process may have finished just before the folder was locked, and this one
      # may have been killed before it removed the folder.
      if version_dir.exists():
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
    deviations = Deviations(options)
    contents = self._find(archives, deviations, progress)
    for feature, names in contents.class_names.items():
      self.info.features[feature].names = list(names)
    shards = {
      split: self._shards(split, records, count, options)
      for (split, records), count in zip(
        contents.splits.items(),
        count_shards(contents.splits, self.shard_bytes).values(),
        strict=True,
      )
    }
    # What the shards in a work folder depend on.
    plan = {
      "version": str(self.version),
      "options": dataclasses.asdict(options),
      "archives": {archive.name: archive.size for archive in contents.archives},
      "shards": {split: len(part) for split, part in shards.items()},
      "images and labels of": {
        split: records.digest() for split, records in contents.splits.items()
      },
    }
    work.check_same(plan)
    work.begin(plan)
    self._job = _Job(work, options, contents, deviations, shards, progress)
    with writing_to(work.version_dir.parent):
      self.download_and_prepare(
        download_dir=work.downloads,
        download_config=tfds.download.DownloadConfig(try_download_gcs=False),
      )

  def _shards(
    self, split: str, records: Records, count: int, options: Options
  ) -> list[Shard]:
    ends = np.linspace(0, len(records), count + 1).astype(int).tolist()
    template = self._get_filename_template(split)
    return [
      Shard(
        name=template.sharded_filepath(shard_index=i, num_shards=count).name,
        records=records,
        span=range(ends[i], ends[i + 1]),
        recode=functools.partial(self._recode, **options.recoding(split)),
        allow_partial=options.allow_partial,
      )
      for i in range(count)
    ]

  # What TFDS calls.

  @property
  def data_path(self) -> Place:
    """The path of TFDS, which looks for what it left there by a pattern."""
    return Place(super().data_path)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=inspect.getdoc(type(self)),
      features=self._features(),
      supervised_keys=("image", "label"),
      homepage=self.HOMEPAGE,
      disable_shuffling=True,
    )

  def _log_download_bytes(self) -> None:
    """Says nothing, for nothing is downloaded."""

  def _log_download_done(self) -> None:
    """Says nothing, for nothing is downloaded."""

  def _shard_iterators_per_split(self, dl_manager) -> Mapping[str, Sequence[Shard]]:
    del dl_manager  # nothing is downloaded
    return self._job.shards

  def _download_and_prepare(self, dl_manager, download_config=None) -> None:
    """Writes the shards that are missing to the work folder, then moves all from there.

    The method of TFDS writes to a directory that is thrown away when anything goes wrong.
    """
    del dl_manager, download_config
    job, work = self._job, self._job.work
    for shard in (shard for part in job.shards.values() for shard in part):
      shard.report = work.report(shard.name)
    self._write_shards(job)
    labels = {
      split: np.concatenate([shard.labels() for shard in part])
      for split, part in job.shards.items()
    }
    names = job.contents.class_names["label"]
    empty = np.flatnonzero(np.bincount(labels["train"], minlength=len(names)) == 0)
    if len(empty):
      raise DataError(
        f"class {names[empty[0]]} ({len(empty)} in all) has no training image that can be "
        "decoded: download its archive again"
      )
    with writing_to(work.path):
      labels_lib.save(work.path, labels)
      write_json(
        work.path / report.NAME,
        report.make_report(job.options, job.contents, job.deviations, job.shards, labels),
      )
    self.info.set_splits(
      tfds.core.SplitDict(
        tfds.core.SplitInfo(
          name=split,
          shard_lengths=[shard.num_records for shard in part],
          num_bytes=sum((work.path / shard.name).stat().st_size for shard in part),
          filename_template=self._get_filename_template(split),
        )
        for split, part in job.shards.items()
      )
    )
    directory = pathlib.Path(self.data_dir)
    files = [shard.name for part in job.shards.values() for shard in part]
    try:
      work.hand_over(directory, [*files, *labels_lib.FILES, report.NAME])
      # Only now, for with it the directory looks like a data set. TFDS writes it again, and
      # throws all away if it cannot: should there be no room for it, the shards are safe.
      self.info.write_to_directory(self.data_path)
    except BaseException:
      work.take_back(directory)
      raise

  def _write_shards(self, job: "_Job") -> None:
    """Writes those that are missing."""
    missing = {
      split: [shard for shard in part if shard.report is None]
      for split, part in job.shards.items()
    }
    _check_space(job.work.path, missing, job.options)
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
      advance = job.progress.add(f"{split}: {images:,} images to write", images, "images")
      for shard in part:
        write_shard(job.work.unfinished, map(serialize, shard.examples(advance)))
        job.work.finish(shard.name, shard.report)


class _Job(NamedTuple):
  """What one call of `prepare` is about."""

  work: WorkFolder
  options: Options
  contents: Contents
  deviations: Deviations
  shards: Mapping[str, Sequence[Shard]]
  progress: ProgressBars


def count_shards(splits: Mapping[str, Records], shard_bytes: int) -> dict[str, int]:
  """Returns how many shards each split gets, of so many bytes if they are not too many."""
  sizes = {split: int(records.size.sum()) for split, records in splits.items()}
  # Rounding up gives each split up to one shard more than its share.
  most = _MOST_SHARDS - len(sizes)
  shard_bytes = max(shard_bytes, -(-sum(sizes.values()) // most))
  return {
    split: min(-(-sizes[split] // shard_bytes), len(records))
    for split, records in splits.items()
  }


def _check_space(
  folder: pathlib.Path, shards: Mapping[str, Sequence[Shard]], options: Options
) -> None:
  """Raises DataError if there is too little room for the shards."""
  needed = 0
  for split, part in shards.items():
    for shard in part:
      size = 0
      # Nothing is known of images that will be shrunk before they are.
      if options.recoding(split).get("resize") is None:
        size = int(shard.records.size[shard.span.start : shard.span.stop].sum())
        size += _BYTES_AROUND_IMAGE * len(shard.span)
      needed += max(size, _SMALLEST_SHARD)
  free = shutil.disk_usage(folder).free
  if needed > free:
    raise DataError(
      f"{folder} has {as_bytes(free)} free, {as_bytes(needed - free)} too little for the "
      f"{as_bytes(needed)} to be written: make room, or use another --data_dir"
    )
