"""Reads what settings were chosen on: the tuning.json that a sweep has written."""

import os
from pathlib import Path
from typing import Any

from ssil_jax.errors import ConfigError
from ssil_jax.reports.results import TUNING, checked_json


def load_tuning(given: str) -> dict[str, Any]:
  """Reads the file that `--tuned_on` names.

  Raises:
    ConfigError: one line that names the flag, what is wrong and what to do.
  """
  flag, remedy = (
    f"--tuned_on={given}",
    "name a tuning.json that sweep.py --grid has written",
  )
  try:
    text = Path(os.path.expanduser(given)).read_text(encoding="utf-8")
  except (OSError, ValueError) as error:  # of a zero byte, or what is not UTF-8
    reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
    raise ConfigError(f"{flag} cannot be read ({reason}): {remedy}") from error
  try:
    tuning = checked_json(text, TUNING)
  except ValueError as error:
    raise ConfigError(f"{flag}: {error}; {remedy}") from error
  if tuning["chosen"] not in [row["settings"] for row in tuning["scores"]]:
    raise ConfigError(f"{flag}: $.chosen is none of $.scores; {remedy}")
  return tuning


def tuning_note(tuning: dict[str, Any]) -> str:
  """Says in one line what was chosen, and on what."""
  chosen = ", ".join(f"{name}={value}" for name, value in tuning["chosen"].items())
  return (
    f"tuned on validation images, {tuning['validation_fraction']:.0%} of the training "
    f"images: {chosen}, best of {len(tuning['scores'])} by {tuning['measure']}"
  )
