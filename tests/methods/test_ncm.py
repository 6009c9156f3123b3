"""NCM: means by hand, and states that train nothing."""

import json

import finished_states
import numpy as np
import pytest
from quick import quick_network
from small_runs import records, run

from ssil_jax.errors import ConfigError
from ssil_jax.methods import METHODS
from ssil_jax.methods.base import Sizes
from ssil_jax.sampling import Pool

NCM = METHODS["ncm"]


def test_means_and_nearest_class_by_hand():
  # Class 0 was seen before, with mean (1, 0) of images whose features add up to 2. Those of
  # class 1, of any length, are (0, 1) and (0.6, 0.8): their mean is (0.3, 0.9) / sqrt(0.9).
  config = finished_states.config_of("ncm")
  stats = NCM.init_stats(Sizes(3, 2, 4, 20, {}, 8, None))
  stats["means"][0], stats["lengths"][0] = [1, 0], 2
  features = np.float32([[7, 0], [0, 5], [3, 4], [2, 0]])
  finished = finished_states.finished_of(
    config,
    num_old=1,
    num_seen=2,
    labels=[0, 1, 1, 0],
    stats=stats,
    pool=Pool(new=np.array([1, 2]), memory=np.array([0, 3])),
    # One exemplar of the new class: its mean is that of both images all the same.
    memory=finished_states.memory_of([[0, 3], [1]]),
    train=finished_states.outputs_of(features=features, logits=np.zeros((4, 1))),
  )
  after = NCM.stats(finished, config)
  root = np.sqrt(0.9)
  means = [[1, 0], [0.3 / root, 0.9 / root], [0, 0]]
  np.testing.assert_allclose(after["means"], means, rtol=1e-6)
  np.testing.assert_allclose(after["lengths"], [2, 2 * root, 0], rtol=1e-6)
  np.testing.assert_array_equal(stats["means"][1], 0)
  # (0.8, 0.6) has the cosines 0.8 and (0.24 + 0.54) / sqrt(0.9) = 0.822.
  outputs = finished_states.outputs_of(features=[[8, 6], [9, 1]], logits=[[0, 0, 9]] * 2)
  scores = np.asarray(
    NCM.predict(outputs, finished_states.context_of(1, 2, stats=after), config)
  )
  np.testing.assert_allclose(scores[0], [-0.4, 1.56 / root - 2, -np.inf], rtol=1e-5)
  assert np.argmax(scores, axis=1).tolist() == [1, 0]


def test_later_states_train_nothing(tmp_path):
  with quick_network():
    results = run(tmp_path, method="ncm", epochs=7, milestones=(3,))
  schedule = json.loads((tmp_path / "schedule.json").read_text())
  assert [(row["epochs"], row["steps"]) for row in schedule] == [(1, 8), (0, 0), (0, 0)]
  assert {line["state"] for line in records(tmp_path)} == {1}
  settings = json.loads((tmp_path / "config.json").read_text())
  assert (settings["epochs"], settings["milestones"]) == (0, [])
  assert [row["train_seconds"] > 0 for row in results["states"]] == [True, False, False]


def test_other_methods_have_an_epoch_at_least():
  with pytest.raises(ConfigError, match=r"--epochs=0 must be 1 or more"):
    finished_states.config_of("ft", epochs=0)
