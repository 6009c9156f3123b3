"""From official archives to a TFDS directory: what the builders have in common."""

import abc
import dataclasses
import functools
import hashlib
import inspect
import json
import pathlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from rich.console import Console
from rich.filesize import decimal as as_bytes

from ssil_jax.data.builders import recode
from ssil_jax.data.builders.found import (
  Findings,
  Found,
  LeftOut,
  Options,
)
from ssil_jax.data.builders.shard_images import ShardImages
from ssil_jax.data.builders.shards import (
  ShardWriter,
  WorkFolder,
  work_path,
  writing_to,
)
from ssil_jax.data.display import Display
from ssil_jax.data.sources import labels as labels_lib
from ssil_jax.errors import DataError
from ssil_jax.paths import Place
from ssil_jax.system import write_json

_SHARD_BYTES = 640_000_000
_MOST_SHARDS = 256
_NAMED = 5  # classes in a line
# A record holds a hundred bytes or so besides its image, and ArrayRecord adds two hundred.
_BYTES_AROUND_IMAGE = 400
_SMALLEST_SHARD = 128 * 1024  # bytes that ArrayRecord gives a file, however few it needs
_REPORT = "prepare.json"


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
    """The features; classes have no names yet."""

  @abc.abstractmethod
  def _find(self, folder: pathlib.Path, findings: Findings, display: Display) -> Found:
    """Looks through the archives without reading images; raises DataError."""

  def _check_options(self, options: Options) -> None:
    """Raises ConfigError for options that the data set or the machine cannot have."""
    options.check()

  def _recode(self, image: bytes, recoding: recode.Recoding) -> recode.Stored:
    """What is stored of an image; raises CorruptImage. Called by several threads."""
    return recode.recode_photo(image, recoding)

  def prepare(
    self,
    archives: pathlib.Path,
    options: Options,
    console: Console,
    *,
    check_interrupt: Callable[[], None] = lambda: None,
  ) -> bool:
    """Writes the TFDS directory, or goes on writing it after an interruption.

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
      _check_prepared(version_dir, options)
      if not work_path(version_dir).exists():
        return False
    work = WorkFolder(version_dir)
    try:
      # Another process may have finished just before the folder was locked, and this one
      # may have been killed before it removed the folder.
      if version_dir.exists():
        _check_prepared(version_dir, options)
      else:
        work.check_same({"options": dataclasses.asdict(options)})
        with Display(console, check_interrupt) as display:
          self._prepare_in(work, archives, options, display)
      work.remove()
    finally:
      work.close()
    return not was_prepared

  def _prepare_in(
    self, work: WorkFolder, archives: pathlib.Path, options: Options, display: Display
  ) -> None:
    found = self._find(archives, Findings(options), display)
    for feature, names in found.class_names.items():
      self.info.features[feature].names = list(names)
    self._job = _Job(work, options, found, self._count_shards(found), display)
    plan = self._job.plan(self.version)
    work.check_same(plan)
    work.begin(plan)
    with writing_to(work.version_dir.parent):
      self.download_and_prepare(
        download_dir=work.downloads,
        download_config=tfds.download.DownloadConfig(try_download_gcs=False),
      )

  def _count_shards(self, found: Found) -> dict[str, int]:
    """How many shards each split gets."""
    sizes = {split: int(records.size.sum()) for split, records in found.splits.items()}
    # Rounding up gives each split up to one shard more than its share.
    most = _MOST_SHARDS - len(sizes)
    shard_bytes = max(self.shard_bytes, -(-sum(sizes.values()) // most))
    return {
      split: min(-(-sizes[split] // shard_bytes), len(records))
      for split, records in found.splits.items()
    }

  # What TFDS calls.

  @property
  def data_path(self) -> Place:
    """That of TFDS, which looks for what it left there by a pattern."""
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

  def _example_writer(self) -> ShardWriter:
    return ShardWriter()

  def _log_download_bytes(self) -> None:
    """Says nothing, for nothing is downloaded."""

  def _log_download_done(self) -> None:
    """Says nothing, for nothing is downloaded."""

  def _shard_iterators_per_split(
    self, dl_manager: tfds.download.DownloadManager
  ) -> Mapping[str, Sequence[ShardImages]]:
    del dl_manager  # nothing is downloaded
    job = self._job
    shards = {}
    for split, records in job.found.splits.items():
      count = job.shard_counts[split]
      ends = np.linspace(0, len(records), count + 1).astype(int).tolist()
      template = self._get_filename_template(split)
      recode_image = functools.partial(self._recode, recoding=job.options.recoding(split))
      shards[split] = [
        ShardImages(
          name=template.sharded_filepath(shard_index=i, num_shards=count).name,
          records=records,
          span=range(ends[i], ends[i + 1]),
          recode=recode_image,
          allow_partial=job.options.allow_partial,
        )
        for i in range(count)
      ]
    return shards

  def _download_and_prepare(
    self,
    dl_manager: tfds.download.DownloadManager,
    download_config: tfds.download.DownloadConfig | None = None,
  ) -> None:
    """Writes the shards that are missing to the work folder, then takes all from there.

    The method of TFDS writes to a directory that is thrown away when anything goes wrong.
    """
    del download_config  # about downloads and Beam
    job, work = self._job, self._job.work
    shards = self._shard_iterators_per_split(dl_manager)
    for shard in (shard for part in shards.values() for shard in part):
      shard.account = work.account(shard.name)
    missing = {
      split: [shard for shard in part if shard.account is None]
      for split, part in shards.items()
    }
    _check_space(work.path, missing, job.options)

    writer = self._example_writer()
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
      advance = job.display.bar(f"{split}: {images:,} images to write", images, "images")
      for shard in part:
        examples = ((record, serialize(example)) for record, example in shard(advance))
        writer.write(work.unfinished, examples)
        work.finish(shard.name, shard.account)

    labels = {split: _labels(part) for split, part in shards.items()}
    self._check_classes(labels["train"])
    with writing_to(work.path):
      labels_lib.save(work.path, labels)
      write_json(work.path / _REPORT, job.report(shards, labels))
    names = [shard.name for part in shards.values() for shard in part]
    self.info.set_splits(
      tfds.core.SplitDict(
        tfds.core.SplitInfo(
          name=split,
          shard_lengths=[shard.num_records for shard in part],
          num_bytes=sum((work.path / shard.name).stat().st_size for shard in part),
          filename_template=self._get_filename_template(split),
        )
        for split, part in shards.items()
      )
    )
    directory = pathlib.Path(self.data_dir)
    try:
      work.hand_over(directory, [*names, *labels_lib.FILES, _REPORT])
      # Only now, for with it the directory looks like a data set. TFDS writes it again, and
      # throws all away if it cannot: should there be no room for it, the shards are safe.
      self.info.write_to_directory(self.data_path)
    except BaseException:
      work.take_back(directory)
      raise

  def _check_classes(self, labels: np.ndarray) -> None:
    names = self._job.found.class_names["label"]
    empty = np.flatnonzero(np.bincount(labels, minlength=len(names)) == 0)
    if len(empty):
      raise DataError(
        f"class {names[empty[0]]} ({len(empty)} in all) has no training image that can be "
        "decoded: download its archive again"
      )


class _Job(NamedTuple):
  """What one call of `prepare` is about."""

  work: WorkFolder
  options: Options
  found: Found
  shard_counts: Mapping[str, int]
  display: Display

  def plan(self, version: tfds.core.Version) -> dict[str, Any]:
    """What the shards in a work folder depend on."""
    return {
      "version": str(version),
      "options": dataclasses.asdict(self.options),
      "archives": {archive.name: archive.size for archive in self.found.archives},
      "shards": dict(self.shard_counts),
      "images and labels of": {
        split: records.digest() for split, records in self.found.splits.items()
      },
    }

  def report(
    self, shards: Mapping[str, Sequence[ShardImages]], labels: Mapping[str, np.ndarray]
  ) -> dict[str, Any]:
    """The content of `prepare.json`."""
    left_out, differences = self.found.left_out, list(self.found.differences)
    names = np.array(self.found.class_names["label"])
    for split, part in labels.items():
      if len(absent := np.delete(names, np.unique(part))):
        more = ", ..." if len(absent) > _NAMED else ""
        differences.append(
          f"{len(absent):,} of {len(names):,} classes have no image in {split}, so that a "
          f"run cannot be scored on them: {', '.join(absent[:_NAMED])}{more}"
        )
    remarks = {split: LeftOut() for split in shards}
    for split, part in shards.items():
      for shard in part:
        for record, reason in shard.account.left_out:
          left_out.add("cannot be decoded", f"{shard.records.where(record)} ({reason})")
        for record, reason in shard.account.remarks:
          remarks[split].add(reason, shard.records.where(record))
    return {
      "archives": [
        {"name": archive.name, "bytes": archive.size} for archive in self.found.archives
      ],
      "options": dataclasses.asdict(self.options),
      "splits": {
        split: {
          "images": len(part),
          "classes": len(np.unique(part)),
          "shards": self.shard_counts[split],
          "content": _content(shards[split]),
        }
        for split, part in labels.items()
      },
      "left_out": left_out.to_json(),
      "remarks": {split: tally.to_json() for split, tally in remarks.items()},
      "differences": differences,
    }


def _labels(shards: Iterable[ShardImages]) -> np.ndarray:
  """int32 [n]: the labels of what the shards of a split hold."""
  return np.concatenate(
    [
      np.delete(
        shard.records.label[shard.span.start : shard.span.stop],
        [note.record - shard.span.start for note in shard.account.left_out],
      )
      for shard in shards
    ]
  )


def _content(shards: Iterable[ShardImages]) -> str | None:
  """A hash of all images of a split, which tells it from other data in equal files.

  None if an earlier version has written some of the shards.
  """
  digests = [shard.account.content for shard in shards]
  if None in digests:
    return None
  return hashlib.blake2b("".join(digests).encode(), digest_size=16).hexdigest()


def _check_space(
  folder: pathlib.Path, shards: Mapping[str, Sequence[ShardImages]], options: Options
) -> None:
  """Raises DataError if there is too little room for the shards."""
  needed = 0
  for split, part in shards.items():
    for shard in part:
      size = 0
      # Nothing is known of images that will be shrunk before they are.
      if options.recoding(split).resize is None:
        size = int(shard.records.size[shard.span.start : shard.span.stop].sum())
        size += _BYTES_AROUND_IMAGE * len(shard.span)
      needed += max(size, _SMALLEST_SHARD)
  free = shutil.disk_usage(folder).free
  if needed > free:
    raise DataError(
      f"{folder} has {as_bytes(free)} free, {as_bytes(needed - free)} too little for the "
      f"{as_bytes(needed)} to be written: make room, or use another --data_dir"
    )


def _check_prepared(directory: pathlib.Path, options: Options) -> None:
  """Raises DataError if a prepared directory is not what the options ask for."""
  path = directory / _REPORT
  try:
    prepared = json.loads(path.read_text())["options"]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise DataError(
      f"{directory} exists, but not with a {_REPORT} of this program: remove it, or use "
      "another --data_dir"
    ) from error
  for name, wanted in dataclasses.asdict(options).items():
    if prepared.get(name) != wanted:
      raise DataError(
        f"{directory} was prepared with --{name}={prepared.get(name)}, not {wanted}: use "
        "the same flags, another --data_dir, or remove it"
      )


def summary(directory: pathlib.Path) -> list[str]:
  """What a prepared directory holds and what it lacks, in lines for the user."""
  report = json.loads((directory / _REPORT).read_text())
  lines = [
    f"{split}: {count['images']:,} images of {count['classes']:,} classes in "
    f"{count['shards']} shards"
    for split, count in report["splits"].items()
  ]
  for title, tally in [
    ("left out", report["left_out"]),
    *((f"in {split}", part) for split, part in report["remarks"].items()),
  ]:
    lines += [
      f"{title}: {entry['count']:,} images, {reason}" for reason, entry in tally.items()
    ]
  lines += [f"not as published: {line}" for line in report["differences"]]
  return [*lines, f"details: {directory / _REPORT}"]
