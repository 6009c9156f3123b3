"""What settings were chosen on: read, refused, said in a line."""

import copy
import json

import pytest
from written_runs import TUNING

from ssil_jax.errors import ConfigError
from ssil_jax.reports.tuning import load_tuning, tuning_note


def written(folder, **changes):
  path = folder / "tuning.json"
  path.write_text(json.dumps({**copy.deepcopy(TUNING), **changes}))
  return str(path)


def test_a_tuning_is_read_and_said(tmp_path):
  tuning = load_tuning(written(tmp_path))
  assert tuning == TUNING
  assert tuning_note(tuning) == (
    "tuned on validation images, 10% of the training images: learning_rate=0.1, best of 2 "
    "by average.top1"
  )


def test_names_cannot_drive_a_terminal(tmp_path):
  path = written(tmp_path, measure="a\x1b[31m")
  assert "\x1b" not in tuning_note(load_tuning(path))


@pytest.mark.parametrize(
  ("changes", "what"),
  [
    ({"validation_fraction": 0}, "$.validation_fraction: 0 is"),
    ({"scores": []}, "$.chosen is none of $.scores"),
    ({"chosen": {"learning_rate": 0.2}}, "$.chosen is none of $.scores"),
    ({"scores": [{"settings": {}, "mean": 2, "runs": []}]}, "$.scores[0].mean: 2 is"),
    ({"grid": {"learning_rate": []}}, "$.grid.learning_rate: [] "),
  ],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path, changes, what):
  path = written(tmp_path, **changes)
  with pytest.raises(ConfigError) as caught:
    load_tuning(path)
  message = str(caught.value)
  assert message.startswith(f"--tuned_on={path}: {what}")
  assert message.endswith("; name a tuning.json that sweep.py --grid has written")
  assert "\n" not in message
