"""What is read from results of all versions."""

import numpy as np
import pytest
from written_runs import measured_run, write_run

from ssil_jax.reports.measures import (
  MEASURES,
  accuracy_matrix,
  class_names,
  top1_of_classes,
)
from ssil_jax.reports.results import load_run

NEW = ("average ECE", "forgetting", "backward transfer")


def test_measures_of_results_old_and_new(tmp_path):
  old, new = load_run(write_run(tmp_path / "a")), load_run(measured_run(tmp_path / "b"))
  values = {measure.title: (measure.value(old), measure.value(new)) for measure in MEASURES}
  assert values["average top-1"] == (76.3, 76.3)
  assert values["last e(p,n)"] == (30.0, 30.0)
  assert values["training time"] == (65.6, 65.6)
  assert values["peak memory"] == (None, 1.23e9)
  assert values["own-state forgetting"] == (None, pytest.approx(15.0))
  assert [values[name] for name in NEW] == [(None, 10.0), (None, 30.0), (None, -30.0)]
  assert accuracy_matrix(old) is None
  np.testing.assert_array_equal(accuracy_matrix(new), [[0.9, np.nan], [0.6, 0.95]])
  own = accuracy_matrix(new, "state_specific_top1_by_state")
  np.testing.assert_array_equal(own, [[0.9, np.nan], [0.75, 0.95]])
  assert class_names(old) == ["class 1", "class 2", "class 3", "class 4"]
  assert top1_of_classes(old) == {}
  # An older file has the accuracies only: 0.9 before, 0.6 after.
  for name in ("forgetting", "backward_transfer"):
    del new.results["average"][name]
  again = {measure.title: measure.value(new) for measure in MEASURES}
  assert [again[name] for name in NEW[1:]] == pytest.approx([30.0, -30.0])
  assert top1_of_classes(new) == {"ant": 0.4, "bat": 0.8, "cat": 0.9, "bee": 1.0}
