"""The work directory as a model: what it takes to answer, and to learn more, without data.

Of every state that is finished there is `networks/STATE`, and in `model/STATE`:

- `state.json`: its classes and settings, and what is known of its training;
- `statistics.npz`: the method's statistics;
- `test.zip`: test photos of the classes that were new (`--keep_test`);
- `exemplars.zip`: the memory, of the last state alone.

`model.json`, the card, is written last. It says how many states the model has; what is
there of later ones does not count yet.
"""

import datetime
import hashlib
import io
import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

import ssil_jax
from ssil_jax import config as config_lib
from ssil_jax.config import Config
from ssil_jax.data.dataset import LARGEST_RESIDENT, Dataset, records_of
from ssil_jax.data.loader import CUT, RESIZED
from ssil_jax.data.photos import write_photos
from ssil_jax.errors import WorkdirError
from ssil_jax.methods import Method
from ssil_jax.methods.source import source_hash
from ssil_jax.schedule import IncrementalState
from ssil_jax.system import replaced, source_commit, write_json
from ssil_jax.training.plan import Plan
from ssil_jax.training.run_state import RunState
from ssil_jax.training.storage import Networks

CARD = "model.json"
EXEMPLARS, TEST = "exemplars.zip", "test.zip"
_FORMAT = 1
_MAX_BYTES = 1 << 28  # of a card

_COUNT = {"type": "integer", "minimum": 0}
_OBJECT = {"type": "object"}
_TEXT = {"type": "string"}
_NAMES = {"type": "array", "items": _TEXT, "minItems": 1}


def _object(**properties: Any) -> dict[str, Any]:
  return {"type": "object", "required": list(properties), "properties": properties}


def _channels(**limits: float) -> dict[str, Any]:
  number = {"type": "number", **limits}
  return {"type": "array", "items": number, "minItems": 3, "maxItems": 3}


_SCHEMA = Draft202012Validator(
  _object(
    version=_TEXT,
    method=_TEXT,
    method_source=_TEXT,
    class_names=_NAMES,
    preprocessing=_object(
      image_size={"type": "integer", "minimum": config_lib.SMALLEST_IMAGE, "maximum": 4096},
      resize_short_side={"type": "integer", "minimum": 1, "maximum": 8192},
      mean=_channels(minimum=-1e6, maximum=1e6),
      std=_channels(exclusiveMinimum=0, maximum=1e6),
      flip={"type": "boolean"},
    ),
    network=_object(num_features=_COUNT),
    planned_states=_COUNT,
    states={
      "type": "array",
      "minItems": 1,
      "items": _object(
        state=_COUNT,
        num_old=_COUNT,
        num_seen=_COUNT,
        classes=_NAMES,
        settings=_OBJECT,
        network_crc32=_COUNT,
      ),
    },
  )
)


def save(
  folder: pathlib.Path,
  plan: Plan,
  run: RunState,
  *,
  environment: Mapping[str, Any],
  origin: Mapping[str, Any],
) -> None:
  """Makes a run's last finished state the model that answers.

  Args:
    folder: the work directory, which has `networks/STATE` already.
    plan: of the run.
    run: between two states, of which it has finished one at least.
    environment: where the state was trained.
    origin: what else `state.json` says of how it was trained.

  Raises BadImage if an exemplar can no longer be read, and OSError; the model is then what
  it was before.
  """
  last = len(run.results)
  for state in plan.states[:last]:
    _save_test_photos(folder, plan, state)
  place = state_folder(folder, last)
  exemplars = run.exemplars
  write_photos(
    place / EXEMPLARS,
    plan.dataset.train,
    exemplars.records,
    exemplars.ranks,
    plan.dataset.class_names,
  )
  arrays = arrays_of(run.stats)
  with replaced(place / "statistics.npz") as file:
    np.savez(file, **arrays)
  state = plan.states[last - 1]
  write_json(
    place / "state.json",
    {
      "state": last,
      "num_old": state.num_old,
      "num_seen": state.num_seen,
      "classes": plan.dataset.class_names[state.num_old : state.num_seen],
      "settings": settings_of(plan.config),
      "train_images": _count(plan.dataset.train.labels, state),
      "test_images": _count(plan.dataset.test.labels, state),
      "exemplars": len(exemplars.records),
      "network_crc32": checksum(run.train_state.params, run.train_state.batch_stats),
      "statistics_crc32": _crc32(arrays),
      "method_source": source_hash(plan.config.method),
      "version": ssil_jax.__version__,
      "commit": source_commit(),
      "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
      "environment": dict(environment),
      **origin,
    },
  )
  write_json(folder / CARD, _card(folder, plan, run))
  tidy(folder, last)


def tidy(folder: pathlib.Path, last: int) -> None:
  """Removes what is no longer of use, or never was: a process may have been killed.

  Exemplars of states before `last`, whose card is written, and files written in part.
  """
  for earlier in range(1, last):
    (state_folder(folder, earlier) / EXEMPLARS).unlink(missing_ok=True)
  for pattern in (f"{CARD}.*.tmp", "model/*/*.tmp"):  # as `system.replaced` names them
    for temporary in folder.glob(pattern):
      temporary.unlink()


def state_folder(folder: pathlib.Path, state: int) -> pathlib.Path:
  return folder / "model" / str(state)


def is_saved(folder: pathlib.Path, run: RunState) -> bool:
  """Returns whether a run's last finished state is part of the model, with its files."""
  try:
    last, states = len(run.results), read_card(folder)["states"]
    if len(states) < last:
      return False
    read_statistics(folder, states[last - 1], [run.stats])
  except WorkdirError:
    return False
  network = run.train_state
  if run.position is None and states[last - 1]["network_crc32"] != checksum(
    network.params, network.batch_stats
  ):
    return False  # it was trained again, from an earlier checkpoint
  names = ("state.json", EXEMPLARS) if len(states) == last else ("state.json",)
  return all((state_folder(folder, last) / name).exists() for name in names)


def _save_test_photos(folder: pathlib.Path, plan: Plan, state: IncrementalState) -> None:
  """Saves test photos of a state's new classes, unless they are there."""
  place = state_folder(folder, state.index)
  place.mkdir(parents=True, exist_ok=True)
  if (place / TEST).exists():
    return
  test, most = plan.dataset.test, plan.config.keep_test
  kept = []
  for label in range(state.num_old, state.num_seen):
    records = records_of(test.labels, label, label + 1)
    if len(records) > most:

      def digest(record: int) -> bytes:
        return hashlib.blake2b(test.encoded(record), digest_size=8).digest()

      chosen = sorted(records.tolist(), key=digest)[:most]
      records = np.array(sorted(chosen), np.int64)
    kept.append(records)
  ranks = np.concatenate([np.arange(len(records)) for records in kept])
  write_photos(place / TEST, test, np.concatenate(kept), ranks, plan.dataset.class_names)


def _count(labels: np.ndarray, state: IncrementalState) -> int:
  return len(records_of(labels, state.num_old, state.num_seen))


def settings_of(config: Config) -> dict[str, Any]:
  """Returns what the next state goes on with: all settings but those of a machine."""
  flags = config_lib.identity(config)
  own = {name.removeprefix("--"): value for name, value in flags.items()}
  return {**own, "keep_test": config.keep_test, "test_fraction": config.test_fraction}


def _card(folder: pathlib.Path, plan: Plan, run: RunState) -> dict[str, Any]:
  last = plan.states[len(run.results) - 1]
  result = run.results[-1]
  scores = ("top1", "top5", "error_old_as_new", "error_new_as_old", "top1_by_state")
  states = [_read_state(folder, plan.states[t], plan) for t in range(len(run.results))]
  first = states[0]["settings"]
  return {
    "format": _FORMAT,
    "what": "a class-incremental image classifier",
    "version": ssil_jax.__version__,
    "commit": source_commit(),
    "dataset": first.get("dataset", plan.config.dataset),
    "method": plan.config.method,
    "method_title": plan.method.title,
    "method_source": source_hash(plan.config.method),
    "planned_states": len(plan.states),
    "class_names": plan.dataset.class_names[: last.num_seen],
    "accuracy": {name: result.get(name) for name in scores},
    "exemplars": len(run.exemplars.records),
    "memory_size": plan.config.memory_size,
    "preprocessing": preprocessing(plan.dataset),
    "network": network_description(plan.config, plan.method, plan.dataset.image_size, run),
    "states": states,
  }


def _read_state(
  folder: pathlib.Path, state: IncrementalState, plan: Plan
) -> dict[str, Any]:
  """Returns a state's `state.json`; of one that an earlier version trained, its numbers."""
  path = state_folder(folder, state.index) / "state.json"
  if path.exists():
    try:
      return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
      raise WorkdirError(
        f"{path} cannot be read ({error}): remove it, and rerun the command to resume"
      ) from error
  return {
    "state": state.index,
    "num_old": state.num_old,
    "num_seen": state.num_seen,
    "classes": plan.dataset.class_names[state.num_old : state.num_seen],
    "settings": settings_of(plan.config),
    "network_crc32": 0,  # of which nothing was noted
  }


def preprocessing(dataset: Dataset) -> dict[str, Any]:
  """Returns what another program has to do to a photo, in its order, as JSON types."""
  size, normalization = dataset.image_size, dataset.normalization
  is_small = size <= LARGEST_RESIDENT
  return {
    "color": "RGB, upright as EXIF says, transparency dropped",
    "resize_short_side": size if is_small else round(size * RESIZED / CUT),
    "resize_filter": "bilinear, antialiased",
    "crop": "center",
    "image_size": size,
    "divide_by": 255,
    "mean": list(normalization.mean) if normalization else [0.0, 0.0, 0.0],
    "std": list(normalization.std) if normalization else [1.0, 1.0, 1.0],
    "flip": dataset.flip,  # of the data, whatever --augment was: what is learnt later asks
    "layout": "batch, height, width, channel",
  }


def network_description(
  config: Config, method: Method, image_size: int, run: RunState
) -> dict[str, Any]:
  """Returns what the network is, as JSON types."""
  params = run.train_state.params
  return {
    "name": "ResNet-18",
    "width": config.width,
    "stem": "3x3" if image_size <= LARGEST_RESIDENT else "7x7/2, max-pool",
    "head": "cosine" if method.cosine_head else "linear",
    "num_features": params["head"]["kernel"].shape[0],
    "num_parameters": int(sum(leaf.size for leaf in jax.tree.leaves(params))),
  }


def read_card(folder: pathlib.Path) -> dict[str, Any]:
  """Reads `model.json`; raises WorkdirError if it is missing, damaged or of the future."""
  path = folder / CARD
  try:
    with open(path, "rb") as file:
      card = json.loads(file.read(_MAX_BYTES))
  except (OSError, ValueError, RecursionError) as error:
    if isinstance(error, FileNotFoundError) or not os.path.isdir(folder):
      raise WorkdirError(_no_card(folder)) from error
    reason = getattr(error, "strerror", None) or error
    raise WorkdirError(f"{path} cannot be read ({reason}): {_REMEDY}") from error
  found = card.get("format") if isinstance(card, dict) else None
  if isinstance(found, int) and found > _FORMAT:
    raise WorkdirError(
      f"{path} has format {found}, and this version of ssil_jax reads up to {_FORMAT}: "
      "install a newer one"
    )
  if error := best_match(_SCHEMA.iter_errors(card)):
    raise WorkdirError(f"{path}: {error.json_path}: {error.message:.200}: {_REMEDY}")
  ends = [state["num_seen"] for state in card["states"]]
  starts = [state["num_old"] for state in card["states"]]
  numbers = [state["state"] for state in card["states"]]
  if (
    starts != [0, *ends[:-1]]
    or ends != sorted(set(ends))
    or ends[-1] != len(card["class_names"])
    or numbers != list(range(1, len(ends) + 1))
    or [name for row in card["states"] for name in row["classes"]] != card["class_names"]
    or [len(row["classes"]) for row in card["states"]]
    != [end - start for start, end in zip(starts, ends, strict=True)]
  ):
    raise WorkdirError(f"{path}: its states and classes do not fit together: {_REMEDY}")
  sizes = card["preprocessing"]
  if sizes["resize_short_side"] < sizes["image_size"]:
    raise WorkdirError(f"{path}: resize_short_side is less than image_size: {_REMEDY}")
  return card


_REMEDY = "rerun the command that trained it, or put a good file back"


def _no_card(folder: pathlib.Path) -> str:
  if not os.path.isdir(folder):  # not by pathlib, which raises for some names
    return f"{folder} is not a folder: give the work directory of a run"
  if not (folder / "config.json").exists():
    return f"{folder} is not the work directory of a run: it has no {CARD}"
  return (
    f"{folder} has no model yet: its first state is not finished, or an earlier version "
    "trained it; rerun its command"
  )


def arrays_of(tree: Any) -> dict[str, np.ndarray]:
  """Returns all leaves of a tree of dictionaries by their names."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def read_statistics(
  folder: pathlib.Path, row: Mapping[str, Any], likes: Sequence[Any]
) -> Any:
  """Returns the method's statistics of a state.

  Args:
    folder: the work directory.
    row: of the state, in the card. Those of an earlier version have no
      `statistics_crc32`, and nothing is compared with it.
    likes: statistics of the same structure, which is that of the result, and so are their
      shapes and kinds of numbers; an axis in whose length they differ may have any.

  Raises:
    WorkdirError: they are missing, damaged or of another shape.
  """
  path = state_folder(folder, row["state"]) / "statistics.npz"
  try:
    with np.load(io.BytesIO(path.read_bytes())) as file:
      arrays = dict(file)
    if row.get("statistics_crc32", _crc32(arrays)) != _crc32(arrays):
      raise ValueError("they are not those of the card")
    found = []
    for name, *same in zip(arrays_of(likes[0]), *map(jax.tree.leaves, likes), strict=True):
      _check_like(name, arrays[name], same)
      found.append(arrays[name])
    return jax.tree.unflatten(jax.tree.structure(likes[0]), found)
  except FileNotFoundError as error:
    raise WorkdirError(
      f"{path} is missing: {_REMEDY}; of states that an earlier version trained, only the "
      "last has one"
    ) from error
  except (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile) as error:
    reason = getattr(error, "strerror", None) or error
    raise WorkdirError(f"{path} cannot be read ({reason}): {_REMEDY}") from error


def _check_like(name: str, array: np.ndarray, likes: Sequence[Any]) -> None:
  """Raises ValueError unless an array has the shape and kind of others."""
  lengths = [set(axis) for axis in zip(*map(np.shape, likes), strict=True)]
  if array.ndim != len(lengths) or any(
    len(known) == 1 and n not in known
    for n, known in zip(array.shape, lengths, strict=True)
  ):
    shape = [known.pop() if len(known) == 1 else "any" for known in lengths]
    raise ValueError(f"{name} has the shape {list(array.shape)}, and not {shape}")
  dtype = np.asarray(likes[0]).dtype
  if not np.can_cast(array.dtype, dtype, "same_kind"):
    raise ValueError(f"{name} is {array.dtype}, and not {dtype}")


def read_network(folder: pathlib.Path, state: int, crc32: int) -> dict[str, Any]:
  """Returns step, params and batch_stats of a state, host arrays.

  Args:
    folder: the work directory.
    state: from 1.
    crc32: of `checksum`; 0 if it is not known.

  Raises:
    WorkdirError: they are missing or damaged.
  """
  path = folder / "networks" / str(state)
  if not path.is_dir():
    raise WorkdirError(f"{path} is missing: put it back, or repeat the run")
  with Networks(folder, own=False) as networks:
    saved = networks.read(state)
  try:
    found = checksum(saved["params"], saved["batch_stats"])
    is_whole = crc32 in (0, found) and saved["params"]["head"]["kernel"].ndim >= 2
  except (KeyError, TypeError, AttributeError):
    is_whole = False
  if not is_whole:
    raise WorkdirError(f"{path} is damaged: put a good one back, or repeat the run")
  return saved


def checksum(params: Any, batch_stats: Any) -> int:
  """Returns that of a network's arrays."""
  return _crc32(arrays_of({"params": params, "stats": batch_stats}))


def _crc32(arrays: Mapping[str, np.ndarray]) -> int:
  crc = 0
  for name, array in sorted(arrays.items()):
    crc = zlib.crc32(np.ascontiguousarray(array).tobytes(), zlib.crc32(name.encode(), crc))
  return crc


def class_intervals(states: Sequence[Mapping[str, Any]]) -> tuple[IncrementalState, ...]:
  """Returns a card's states, without phases: they are trained."""
  return tuple(
    IncrementalState(row["state"], row["num_old"], row["num_seen"], ()) for row in states
  )
