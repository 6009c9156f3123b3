"""Reads and checks what a run left in its work directory.

Needs neither JAX nor the data set. The files may come from elsewhere, so a schema says
what each must hold before anything is made of it.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from ssil_jax.errors import DataError, UserError


class Score(NamedTuple):
  """Describes one of the scores that results.json holds of every state."""

  name: str  # in results.json
  title: str  # of its column or line
  panel: str = ""  # title of its curve
  fraction: bool = True  # shown in per cent; if not, an output of the network
  nullable: bool = True  # where there are no old classes


SCORES = {
  score.name: score
  for score in (
    Score("top1", "top-1", "Top-1 accuracy", nullable=False),
    Score("top5", "top-5", "Top-5 accuracy", nullable=False),
    Score("error_old_as_new", "e(p,n)", "e(p,n): old classes taken for new"),
    Score("error_new_as_old", "e(n,p)", "e(n,p): new classes taken for old"),
    Score("imbalance", "imbalance"),
    Score(
      "state_specific_top1", "own-state", "State-specific top-1 accuracy", nullable=False
    ),
    Score("score_old", "old classes", fraction=False),
    Score("score_new", "new classes", fraction=False, nullable=False),
  )
}
FRACTIONS = tuple(score for score in SCORES.values() if score.fraction)
AVERAGES = tuple(SCORES[name] for name in ("top1", "top5", "imbalance"))  # over states


class LossCurve(NamedTuple):
  """Holds the training loss over the optimizer steps of a run."""

  steps: np.ndarray  # int [N], counted over all states
  losses: np.ndarray  # float [N]
  states: np.ndarray  # int [N], the state (from 1) of each step


class Run(NamedTuple):
  """Holds what one work directory has."""

  folder: str  # the directory's name
  results: dict[str, Any]  # results.json, at least one state
  schedule: list[dict[str, Any]]  # schedule.json, empty if there is none
  loss: LossCurve | None  # from metrics.jsonl, None if there is none
  config: dict[str, Any] | None = None  # config.json, None if there is none
  workdir: Path | None = None  # where it is, absolute


def _object(optional: Any = None, **properties: Any) -> dict[str, Any]:
  return {
    "type": "object",
    "required": list(properties),
    "properties": {**properties, **(optional or {})},
  }


# The bounds keep what is drawn within float32 and int64.
_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0, "maximum": 2**53}
_FRACTION = {"type": "number", "minimum": 0, "maximum": 1}
_CHANGE = {"type": "number", "minimum": -1, "maximum": 1}  # of a fraction
_NUMBER = {"type": "number", "minimum": -1e30, "maximum": 1e30}
_SCALARS = {
  "type": "object",
  "additionalProperties": {"type": ["string", "number", "boolean", "null"]},
}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
  return {**schema, "type": [schema["type"], "null"]}


def _score(score: Score) -> dict[str, Any]:
  schema = _FRACTION if score.fraction else _NUMBER
  return _or_null(schema) if score.nullable else schema


_SECONDS = {"type": "object", "additionalProperties": {**_NUMBER, "minimum": 0}}
_STATE = _object(
  optional={  # older runs have none
    "statistics": {"type": "object", "additionalProperties": _or_null(_NUMBER)},
    "from_workdir": _or_null(_TEXT),
    "learnt": {"type": "object"},
    "seconds": _SECONDS,
    "programs": {"type": "object", "additionalProperties": _COUNT},
    "peak_host_memory": _COUNT,
    "peak_device_memory": _or_null(_COUNT),
    "top1_by_state": {"type": "array", "items": _or_null(_FRACTION)},
    "state_specific_top1_by_state": {"type": "array", "items": _or_null(_FRACTION)},
    "top1_by_class": {"type": "array", "items": _or_null(_FRACTION)},
    "ece": _or_null(_FRACTION),
    "class_confusion": {"type": "array"},  # `_check_states` has the rest, and is fast
  },
  state=_COUNT,
  num_old=_COUNT,
  num_seen=_COUNT,
  **{name: _score(score) for name, score in SCORES.items()},
  train_seconds={**_NUMBER, "minimum": 0},
  confusion={"type": "array", "items": {"type": "array", "items": _COUNT}},
)
_TUNING = _object(
  measure=_TEXT,
  validation_fraction={**_FRACTION, "exclusiveMinimum": 0},
  grid={"type": "object", "additionalProperties": {"type": "array", "minItems": 1}},
  chosen=_SCALARS,
  scores={
    "type": "array",
    "items": _object(
      settings=_SCALARS,
      mean=_FRACTION,
      runs={
        "type": "array",
        "items": _object(folder=_TEXT, seed=_COUNT, score=_FRACTION),
      },
    ),
  },
)
TUNING = Draft202012Validator(_TUNING)
_RESULTS = Draft202012Validator(
  _object(
    optional={  # older runs have none
      "seconds": _SECONDS,
      "skipped_records": _object(train=_COUNT, test=_COUNT),
      "class_names": {"type": "array", "items": _TEXT},
      "split": {"enum": ["test", "validation"]},
      "validation_fraction": _FRACTION,
      "tuned_on": {"if": {"not": {"type": "null"}}, "then": _TUNING},
    },
    dataset=_TEXT,
    method_title=_TEXT,
    num_states=_COUNT,
    num_classes=_COUNT,
    memory_size=_COUNT,
    seed=_COUNT,
    ignored_files=_COUNT,
    environment=_SCALARS,
    states={"type": "array", "items": _STATE},
    average=_object(
      optional={
        "ece": _or_null(_FRACTION),
        "forgetting": _or_null(_CHANGE),
        "backward_transfer": _or_null(_CHANGE),
      },
      **{score.name: _or_null(_FRACTION) for score in AVERAGES},
    ),
  )
)
_SCHEDULE = Draft202012Validator({"type": "array", "items": _SCALARS})
_CONFIG = Draft202012Validator(
  {
    "type": "object",
    "properties": {"data_fingerprint": _TEXT, "data": {"type": "object"}},
  }
)
_LOSS = {"state": _COUNT, "step": _COUNT, "loss": _NUMBER}
_METRICS_LINE = Draft202012Validator(_object(**_LOSS))
_MEASURED = dict.fromkeys(("learning_rate", "images_per_second", "input_wait"), _NUMBER)
_JOURNAL_LINE = Draft202012Validator(_object(**_LOSS, top1=_FRACTION, **_MEASURED))


def load_run(workdir: Path) -> Run:
  """Reads and checks the files of a work directory.

  Raises:
    DataError: one line that names the file, the place in it, what is wrong there and
      what to do.
  """
  workdir = Path(workdir)
  path = workdir / "results.json"
  if not os.path.isfile(path):  # that of a path too long is none, and raises nothing
    raise DataError(
      f"{path} does not exist: give the work directory of a run that has finished at "
      "least one state"
    )
  results = _parse(_read(path), _RESULTS, path)
  _check_states(results, path)
  schedule, config = (
    _parse(_read(path), schema, path) if path.is_file() else None
    for path, schema in (
      (workdir / "schedule.json", _SCHEDULE),
      (workdir / "config.json", _CONFIG),
    )
  )
  path = workdir / "metrics.jsonl"
  rows = _rows(path, _METRICS_LINE) if path.is_file() else []
  columns = (np.array([row[name] for row in rows]) for name in ("step", "loss", "state"))
  loss = LossCurve(*columns) if rows else None
  return Run(
    _printable(workdir.resolve().name),
    results,
    schedule or [],
    loss,
    config,
    workdir.absolute(),
  )


def load_runs(workdirs: Sequence[Path]) -> tuple[list[Run], list[str]]:
  """Reads several work directories; of several, those whose files are wrong are left out.

  Returns:
    The runs, at least one, and why others were left out: a line each.

  Raises:
    DataError: no work directory can be read; a line for each.
    UserError: there is no work directory.
  """
  if not workdirs:
    raise UserError("there is nothing to report: give at least one work directory")
  runs, wrong = [], []
  for workdir in workdirs:
    try:
      runs.append(load_run(workdir))
    except DataError as error:
      wrong.append(str(error))
  if not runs:
    raise DataError("\n".join(dict.fromkeys(wrong)))
  return runs, wrong


def _wrong(place: Path | str, what: str) -> DataError:
  return DataError(f"{place}: {what}; repeat the run, or leave this work directory out")


def _read(path: Path) -> str:
  try:
    return path.read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
    raise _wrong(path, f"cannot be read ({reason})") from error


def _parse(text: str, schema: Draft202012Validator, place: Path | str) -> Any:
  """Reads JSON that satisfies a schema; `place` names the text in errors."""
  try:
    return checked_json(text, schema)
  except ValueError as error:
    raise _wrong(place, str(error)) from error


def checked_json(text: str, schema: Draft202012Validator) -> Any:
  """Reads JSON that satisfies a schema; raises ValueError with what is wrong, and where."""

  def refuse(name: str):
    raise ValueError(f"{name} is no JSON number")

  try:
    value = _printable(json.loads(text, parse_constant=refuse))
  except (ValueError, RecursionError) as error:
    raise ValueError(f"is not valid JSON ({error})") from error
  error = best_match(schema.iter_errors(value))
  if error is not None:
    what = f"{error.json_path}: {error.message}"  # the message may quote a whole list
    raise ValueError(what if len(what) <= 200 else f"{what[:99]} ... {what[-99:]}")
  return value


def _printable(value: Any) -> Any:
  """Replaces, in all strings, what could drive a terminal or break an encoding."""
  if isinstance(value, str):
    return "".join(char if char.isprintable() else "\ufffd" for char in value)
  if isinstance(value, list):
    return [_printable(item) for item in value]
  if isinstance(value, dict):
    return {_printable(key): _printable(item) for key, item in value.items()}
  return value


def _check_states(results: dict[str, Any], path: Path) -> None:
  states = results["states"]
  if not states:
    raise DataError(
      f"{path}: $.states: no state is finished; rerun its command to resume it, or leave "
      "this work directory out"
    )
  num_old = 0
  for number, row in enumerate(states, start=1):
    place = f"$.states[{number - 1}]"
    if (row["state"], row["num_old"]) != (number, num_old) or row["num_seen"] <= num_old:
      raise _wrong(
        path, f"{place} must be state {number}, from {num_old} old classes to more"
      )
    if any(len(line) != number for line in (row["confusion"], *row["confusion"])):
      raise _wrong(path, f"{place}.confusion must be {number} lists of {number} counts")
    lengths = {
      "top1_by_state": number,
      "state_specific_top1_by_state": number,
      "top1_by_class": row["num_seen"],
    }
    for name, length in lengths.items():
      if len(row.get(name, [None] * length)) != length:
        raise _wrong(path, f"{place}.{name} must be a list of {length}")
    if not _are_pairs(row.get("class_confusion", []), row["num_seen"]):
      raise _wrong(
        path,
        f"{place}.class_confusion must be a list of [true, predicted, images], classes "
        f"below {row['num_seen']} and 1 image or more",
      )
    num_old = row["num_seen"]
  if len(results.get("class_names", range(num_old))) < num_old:
    raise _wrong(path, f"$.class_names must be {num_old} names at least")


def _are_pairs(rows: list[Any], num_seen: int) -> bool:
  """Returns whether this is what `class_confusion` of so many classes may be."""
  if not rows:
    return True
  try:
    table = np.array(rows)
  except (ValueError, OverflowError):  # of different lengths, or too large
    return False
  if table.dtype.kind != "i" or table.ndim != 2 or table.shape[1] != 3:
    return False
  return bool((table >= [0, 0, 1]).all() and (table[:, :2] < num_seen).all())


def load_journal(workdir: Path) -> list[dict[str, Any]]:
  """Reads metrics.jsonl with all that training records; raises as `load_run` does."""
  path = Path(workdir) / "metrics.jsonl"
  if not path.is_file():
    raise _wrong(path, "does not exist")
  return _rows(path, _JOURNAL_LINE)


def _rows(path: Path, schema: Draft202012Validator) -> list[dict[str, Any]]:
  # What follows the last line break was cut off when the run was killed.
  *lines, _ = _read(path).split("\n")
  return [
    _parse(line, schema, f"{path}: line {number}")
    for number, line in enumerate(lines, start=1)
  ]


def has_finished_state(workdir: Path) -> bool:
  """Returns whether results.json may hold those of a state: a damaged file may."""
  try:
    return json.loads((Path(workdir) / "results.json").read_bytes())["states"] != []
  except FileNotFoundError:
    return False
  except (ValueError, KeyError, TypeError, RecursionError):
    return True
