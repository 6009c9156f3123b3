"""Declares settings, one line each, and checks values against what is declared."""

import dataclasses
import difflib
import math
import numbers
import operator
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ssil_jax.errors import ConfigError

LARGEST = 2**53  # of whole numbers, which JSON keeps exactly
# What a run with another value of a setting does differently: each includes those before.
CHANGES = ("nothing", "results", "later_states", "every_state")


def setting(
  default: Any,
  help: str,
  *,
  changes: str = "every_state",
  at_least: float | None = None,
  above: float | None = None,
  at_most: float | None = None,
  below: float | None = None,
  choices: tuple[str, ...] = (),
  topic: str = "",
) -> Any:
  """Declares a field of `Config`, or of a method's own settings.

  Args:
    default: its value where none is given; None if it follows from other settings.
    help: shown by --help.
    changes: one of `CHANGES`. With "nothing" the setting is no part of a run's identity;
      "results": the run is another one, and is trained alike; "later_states": it is trained
      differently after its first state; "every_state": in all states, whatever the method.
    at_least, above, at_most, below: limits of a number.
    choices: all values, of a text.
    topic: its group in --help.
  """
  limits = {"at_least": at_least, "above": above, "at_most": at_most, "below": below}
  metadata = {"help": help, "changes": changes, "topic": topic, "choices": choices}
  return dataclasses.field(default=default, metadata={**metadata, **limits})


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoSettings:
  """The own settings of a method that has none."""


def fields_of(settings: Any) -> tuple[dataclasses.Field, ...]:
  """Returns the fields of a settings class, or instance, that are flags."""
  return tuple(f for f in dataclasses.fields(settings) if f.metadata)


def owners_of(methods: Mapping[str, Any]) -> dict[str, list[str]]:
  """Returns the names of the methods, of those given, that have each setting."""
  owners: dict[str, list[str]] = {}
  for name, method in methods.items():
    for field in fields_of(method.settings):
      owners.setdefault(field.name, []).append(name)
  return owners


_LIMITS = {
  "at_least": operator.ge,
  "above": operator.gt,
  "at_most": operator.le,
  "below": operator.lt,
}
_KINDS: Mapping[Any, tuple[Any, str]] = {
  str: (str, "text"),
  int: (numbers.Integral, "a whole number"),
  float: (numbers.Real, "a number"),
  bool: ((bool, np.bool_), "true or false"),
}


def check_types(
  values: Mapping[str, Any], fields: Iterable[dataclasses.Field]
) -> dict[str, Any]:
  """Returns the values, by name, as the types of their fields.

  Raises:
    ConfigError: a line for each value of another type, and for each name that no field has.
  """
  types = {field.name: field.type for field in fields}
  checked, mistakes = {}, []
  for name, value in values.items():
    kind, what = _KINDS.get(types.get(name), ((tuple, list), "whole numbers"))
    items = value if isinstance(value, tuple | list) else ()
    fits = isinstance(value, kind) and all(isinstance(i, numbers.Integral) for i in items)
    if name not in types:
      close = difflib.get_close_matches(str(name), types, n=1)
      hint = f": did you mean {close[0]!r}?" if close else ""
      mistakes.append(f"there is no setting {name!r}{hint}")
    elif not fits or (isinstance(value, bool) and types[name] is not bool):
      mistakes.append(f"{name}={value!r} must be {what}")
    elif isinstance(value, str) and "\0" in value:
      mistakes.append(f"{name}={value!r} has a zero byte: write it without")
    elif isinstance(value, numbers.Integral) and abs(value) > LARGEST:
      mistakes.append(f"{name} is too large a number: use one up to 2**53")
    # So that numbers of NumPy, lists and whole learning rates are equal to saved ones.
    elif types[name] in _KINDS:
      checked[name] = types[name](value)
    else:
      checked[name] = tuple(map(int, items))
  if mistakes:
    raise ConfigError("\n".join(mistakes))
  return checked


def limit_mistakes(settings: Any, *, but: Collection[str] = ()) -> Iterator[str]:
  """Yields a line for each setting that is not within its limits, `but` for some."""
  for field in fields_of(settings):
    if field.name in but:
      continue
    value, limits = getattr(settings, field.name), field.metadata
    flag = f"--{field.name}={value}"
    if limits["choices"] and value not in limits["choices"]:
      yield f"{flag} is unknown; choose from: {', '.join(limits['choices'])}"
    if field.type in (int, float):
      limits = {name: limits[name] for name in _LIMITS if limits[name] is not None}
      if not math.isfinite(value):
        yield f"{flag} must be a finite number"
      elif not all(_LIMITS[name](value, limit) for name, limit in limits.items()):
        yield f"{flag} must be {_wanted(value, limits)}"


def _wanted(value: float, limits: Mapping[str, float]) -> str:
  """Returns what a value that is not within its limits must be."""
  match limits:
    case {"above": low, "below": high}:
      return f"between {low} and {high}"
    case {"above": low, "at_most": high}:
      return f"above {low} and at most {high}"
    case {"above": low}:
      return f"above {low}"
    case {"at_most": high} if value > high:
      return f"at most {high}"
    case {"below": high} if value >= high:
      return f"below {'2**32' if high == 2**32 else high}"
  return f"{limits['at_least']} or more"
