"""Data sets that tensorflow-datasets (TFDS) prepared as array_record files.

Those of `experiments/prepare.py`, and a standard imagenet2012. TensorFlow is not needed:
records are `tf.train.Example` protocol buffers, which TFDS brings a parser for.
"""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf.json_format import ParseError
from google.protobuf.message import DecodeError
from rich.console import Console

from ssil_jax.config import Config
from ssil_jax.data import cache as cache_lib
from ssil_jax.data.dataset import Source, Split
from ssil_jax.data.encoded import BadImage, EncodedImages, hash_names, hash_rows
from ssil_jax.data.images.augment import IMAGENET_NORMALIZATION
from ssil_jax.data.resident import natural_size, read_sizes
from ssil_jax.data.sources import labels
from ssil_jax.data.sources.folder import data_folder
from ssil_jax.data.verify import read_each
from ssil_jax.errors import DataError
from ssil_jax.paths import data_mistakes
from ssil_jax.progress import ProgressBars
from ssil_jax.system import allow_open_files

if TYPE_CHECKING:
  from tensorflow_datasets.core import SplitInfo

# As TFDS calls them, with the config if there is one.
NAMES = ("imagenet", "landmarks_v2/1k", "landmarks_v2/10k", "cifar100")
_OTHER_NAMES = {"imagenet": ("imagenet2012",)}  # that TFDS has for the same
_NORMALIZATIONS = {"imagenet": IMAGENET_NORMALIZATION}  # section 6.2

_INFO = "dataset_info.json"
_FEATURES = "features.json"
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")  # the last one is older
_TFDS_FEATURES = "tensorflow_datasets.core.features."
_CLASS_NAMES = "label.labels.txt"
_PREPARED = "prepare.json"  # what experiments/prepare.py says of itself
_WRONG_LABELS = "it is of another version; delete it and labels.json"
_SOME = 1000  # records that stand for all
_AGAIN = "prepare the data again"


def open_tfds(config: Config) -> Source:
  """Opens the shards and reads the labels; images are read when a batch needs them.

  Records are sorted by class, and within a class they keep their order. Raises DataError
  if nothing fitting is prepared in `--data_dir`, or it is damaged.
  """
  import tensorflow_datasets as tfds  # only now: it takes half a second to import

  directory = _find(config)
  _check_features(directory)
  try:
    info = tfds.builder_from_directory(directory).info
    splits, num_classes = info.splits, info.features["label"].num_classes
    # imagenet2012 calls those without labels its test images.
    test_name = "validation" if "validation" in splits else "test"
    chosen = {name: splits[name] for name in ("train", test_name)}
    empty = [name for name, split in chosen.items() if not split.num_examples]
    class_names = tuple((directory / _CLASS_NAMES).read_text().splitlines())
  except (KeyError, AttributeError, TypeError, ValueError, OSError, ParseError) as error:
    reason = " ".join(str(error).split())
    raise DataError(
      f"{directory} is not a TFDS data set of images and labels ({reason}): "
      f"{_prepare(config)}"
    ) from error
  if empty:
    raise DataError(f"{directory} has no images in {empty[0]}: {_AGAIN}")
  if len(class_names) != num_classes:
    raise DataError(
      f"{directory / _CLASS_NAMES} names {len(class_names)} classes, and there are "
      f"{num_classes}: {_AGAIN}"
    )
  # ArrayRecord keeps two files open of every shard that was read from.
  allow_open_files(2 * sum(len(split.shard_lengths) for split in chosen.values()))
  path = directory / _PREPARED
  prepared = _read_json(path) if path.is_file() else None
  differences = [] if prepared is None else prepared.get("differences")
  if not isinstance(differences, list):
    raise DataError(f"{path} is damaged: {_AGAIN}")
  stores = {name: Records(split, prepared) for name, split in chosen.items()}
  found = _labels(directory, stores)
  train, test = (_split(store, found[name], num_classes) for name, store in stores.items())
  some = train.images.take(_spread(len(train.images)))  # to read all takes minutes
  return Source(
    class_names=class_names,
    train=train,
    test=test,
    image_size=config.image_size or natural_size(read_sizes(some)),
    flip=True,
    normalization=_NORMALIZATIONS.get(config.dataset),
    notes=tuple(
      f"the prepared data differ from the official ones: {text}" for text in differences
    ),
  )


def _spread(length: int) -> np.ndarray:
  """Returns int64 [_SOME or fewer]: places from all over an array."""
  return np.linspace(0, length - 1, min(length, _SOME)).astype(np.int64)


def _check_features(directory: pathlib.Path) -> None:
  """Raises DataError for features that are not TFDS' own: it would import any module."""
  path = directory / _FEATURES

  def check(value: dict[str, Any]) -> dict[str, Any]:
    for name in filter(None, map(value.get, _CLASS_KEYS)):
      if not str(name).startswith(_TFDS_FEATURES) and "." in str(name):
        raise DataError(f"{path} names {name!r}, which is no feature of TFDS: {_AGAIN}")
    return value

  try:
    json.loads(path.read_text(), object_hook=check)
  except (OSError, ValueError, RecursionError) as error:
    raise DataError(f"{path} cannot be read ({error}): {_AGAIN}") from error


class Records:
  """A `Store` of the images of one TFDS split."""

  has_checksums = True  # ArrayRecord has one for every record

  def __init__(self, split: "SplitInfo", prepared: Mapping[str, Any] | None):
    """Opens every shard of a split; `prepared` are the contents of prepare.json, if any.

    Raises DataError if one is missing, damaged or of another length than TFDS wrote.
    """
    self.was_verified = prepared is not None  # prepare.py decodes every image
    self.content = None
    with contextlib.suppress(KeyError, TypeError):  # an earlier version has noted none
      self.content = prepared["splits"][split.name]["content"]
    self._paths = [pathlib.Path(path) for path in split.filepaths]
    self.directory = self._paths[0].parent
    with ThreadPoolExecutor() as threads:
      list(threads.map(_check_shard, self._paths, split.shard_lengths))
    self._source = ArrayRecordDataSource(split.file_instructions)
    self._ends = np.cumsum(split.shard_lengths)
    self._starts = self._ends - split.shard_lengths

  def __len__(self) -> int:
    return len(self._source)

  def read(self, number: int, num_bytes: int | None = None) -> bytes:
    del num_bytes  # a record is read whole
    return self._value(number, "image", "bytes_list")

  def label(self, number: int) -> int:
    """Reads the class of an image; raises BadImage."""
    return self._value(number, "label", "int64_list")

  def _value(self, number: int, feature: str, kind: str) -> Any:
    from tensorflow_datasets.proto import tf_example_generated_pb2

    try:
      example = tf_example_generated_pb2.Example.FromString(self._source[number])
      return getattr(example.features.feature[feature], kind).value[0]
    except (DecodeError, ValueError, IndexError, RuntimeError, OSError) as error:
      raise BadImage(self.name(number), f"{error}; {_AGAIN}") from error

  def some(self) -> list[int]:
    """Returns records that are enough to tell two data sets apart: the first and the last
    of every shard, and `_SOME` from all over them."""
    chosen = np.concatenate([self._starts, self._ends - 1, _spread(len(self))])
    return np.unique(chosen).tolist()

  def name(self, number: int) -> str:
    shard = int(np.searchsorted(self._ends, number, side="right"))
    return f"{number - self._starts[shard]} of shard {self._paths[shard]}"

  def digest(self) -> bytes:
    sizes = self._statuses()[:, 0].tolist()
    shards = [(path.name, size) for path, size in zip(self._paths, sizes, strict=True)]
    return hashlib.blake2b(json.dumps(shards).encode()).digest()

  def sizes(self, numbers: np.ndarray) -> np.ndarray:
    return self._statuses()[np.searchsorted(self._ends, numbers, side="right"), 0]

  def stamps(self, numbers: np.ndarray) -> np.ndarray:
    shards = np.searchsorted(self._ends, numbers, side="right")
    names = hash_names(os.fsencode(path.name) for path in self._paths)
    states = hash_rows(np.column_stack([names, self._statuses()])).astype(np.int64)
    return hash_rows(np.column_stack([states[shards], numbers - self._starts[shards]]))

  def _statuses(self) -> np.ndarray:
    """Returns int64 [shards, 3]: sizes and times of change, in ns."""
    found = (path.stat() for path in self._paths)
    return np.array([(s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in found], np.int64)


def _check_shard(path: pathlib.Path, length: int) -> None:
  remedy = f"remove its folder and {_AGAIN}"
  if not path.is_file():
    raise DataError(f"shard {path} is missing: {remedy}")
  try:
    reader = ArrayRecordReader(str(path))
    found = reader.num_records()
    reader.close()
  except (ValueError, RuntimeError, OSError) as error:
    raise DataError(f"shard {path} is damaged ({error}): {remedy}") from error
  if found != length:
    raise DataError(
      f"shard {path} has {found} records, and {_INFO} says {length}: {remedy}"
    )


def _find(config: Config) -> pathlib.Path:
  """Returns the one version directory of the data set in `--data_dir`, or that itself."""
  names = (config.dataset, *_OTHER_NAMES.get(config.dataset, ()))
  if mistakes := data_mistakes("data_dir", config.data_dir):
    raise DataError("\n".join(mistakes))
  root = data_folder(config, _prepare(config))
  if (root / _INFO).is_file() and _is_version(root.resolve().name):
    found = [root]
  else:
    found = _finished(root, *(f"{name}/*" for name in names))
  if not found:
    raise DataError(
      f"--data_dir={config.data_dir} has no {' or '.join(names)} "
      f"({_what_is_there(root, names)}): {_prepare(config)}"
    )
  if len(found) > 1:
    raise DataError(
      f"--data_dir={config.data_dir} has {' and '.join(map(str, found))}: give "
      "one of them as --data_dir"
    )
  (directory,) = found
  info = _read_json(directory / _INFO)
  name = "/".join(filter(None, (info.get("name"), info.get("configName"))))
  if name not in names:
    raise DataError(f"{directory} holds {name}, not {config.dataset}: {_prepare(config)}")
  if info.get("fileFormat") != "array_record":
    raise DataError(
      f"{directory} is in the format {info.get('fileFormat')}: prepare it again with "
      "TFDS' --file_format=array_record, or " + _prepare(config)
    )
  return directory


def _finished(root: pathlib.Path, *patterns: str) -> list[pathlib.Path]:
  """Returns directories that TFDS has finished: until then their name is no version."""
  found = (path.parent for name in patterns for path in root.glob(f"{name}/{_INFO}"))
  return sorted(path for path in found if _is_version(path.name))


def _is_version(name: str) -> bool:
  from tensorflow_datasets.core import Version

  return Version.is_valid(name)


def _prepare(config: Config) -> str:
  return (
    f"`python experiments/prepare.py {config.dataset} --archives=DIR "
    f"--data_dir={config.data_dir or 'DIR'}` makes it from the official archives"
  )


def _what_is_there(root: pathlib.Path, names: tuple[str, ...]) -> str:
  for name in names:
    for unfinished in root.glob(f"{name}/.preparing_*"):
      return f"{unfinished} is half prepared: rerun prepare.py to resume"
  complete = [str(path.relative_to(root)) for path in _finished(root, "*/*", "*/*/*")]
  return f"it has {', '.join(complete) or 'no prepared data set'}"


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    value = json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise DataError(f"{path} cannot be read: {error}") from error
  if not isinstance(value, dict):
    raise DataError(f"{path} is not what TFDS writes: {_AGAIN}")
  return value


def _labels(
  directory: pathlib.Path, stores: Mapping[str, Records]
) -> dict[str, np.ndarray]:
  """Returns split -> int32 [n]; read from the records once, and kept."""
  found, folder = labels.load(directory), directory
  try:
    if found is None and not os.access(directory, os.W_OK):
      folder = cache_lib.folder_of(directory)
      folder.mkdir(parents=True, exist_ok=True)
      found = labels.load(directory, folder)
    if found is None:
      found = {
        name: _read_labels(store, f"labels of {name} in {directory}, once")
        for name, store in stores.items()
      }
      labels.save(directory, found, folder)
  except OSError as error:
    raise DataError(
      f"labels cannot be kept in {folder} ({error.strerror}): make it writable, or set "
      "XDG_CACHE_HOME to a folder that is"
    ) from error
  for name, store in stores.items():
    kept = found.get(name, ())
    if len(kept) != len(store):
      raise DataError(
        f"labels.npy in {folder} has {len(kept)} labels for the {len(store)} records of "
        f"{name}: {_WRONG_LABELS}"
      )
    for number in store.some():
      # What becomes of a record that cannot be read is decided later.
      with contextlib.suppress(BadImage):
        if (label := store.label(number)) != kept[number]:
          raise DataError(
            f"labels.npy in {folder} calls record {store.name(number)} class "
            f"{kept[number]}, and it is {label}: {_WRONG_LABELS}"
          )
  return found


def _read_labels(store: Records, description: str) -> np.ndarray:
  result = np.empty(len(store), np.int32)

  def read(number: int) -> None:
    result[number] = store.label(number)

  with ProgressBars(Console(stderr=True)) as bars:
    advance = bars.add(description, len(result), "records")
    bad = read_each(np.arange(len(result)), read, advance)
  for number, reason in bad.items():
    raise BadImage(store.name(number), reason)
  return result


def _split(store: Records, found: np.ndarray, num_classes: int) -> Split:
  """Sorts records by their classes, as those of an image folder are."""
  if not 0 <= found.min() <= found.max() < num_classes:
    raise DataError(
      f"{store.directory} has labels from {found.min()} to {found.max()}, and "
      f"{num_classes} classes: it, or labels.npy in it, is damaged"
    )
  order = np.argsort(found, kind="stable")
  return Split(EncodedImages(store, order), found[order])
