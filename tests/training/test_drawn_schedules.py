"""The schedule against what is drawn, in every method, from classes of any size.

The states are walked through as in a run, on the host alone: in place of training, all
batches of a phase are drawn; in place of a network, each image has its own random outputs.
"""

import json
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finished_states import outputs_of
from folders import BLUE, GREEN, RED, save
from quick import quick_network
from rich.console import Console
from small_runs import small_config

from ssil_jax import memory
from ssil_jax.config import make_config
from ssil_jax.data.dataset import Dataset, Split
from ssil_jax.data.images.augment import Augmentation
from ssil_jax.errors import ConfigError, DataError
from ssil_jax.methods import METHODS
from ssil_jax.methods.base import Sizes
from ssil_jax.training import devices, incremental, loop, step, trainer
from ssil_jax.training import plan as plan_lib
from ssil_jax.training.checkpoint import Progress
from ssil_jax.training.plan import PhasePlan, make_plan, phase_plans, schedule_rows

# Images of each class, for three states of five. With 40 exemplars, the share of a class is
# 8 in the second state and 4 in the third; with 20 it is 4 and 2; with 15, 3 and 1.
SIZES = (1, 2, 7, 8, 9, 1, 2, 3, 4, 5, 1, 2, 3, 5, 20)
FEATURES = 6


def dataset_of(sizes):
  """Images of classes of these sizes, in random order; one test image of each."""
  labels = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
  labels = np.random.default_rng(0).permutation(labels)
  tests = np.arange(len(sizes), dtype=np.int32)
  train, test = (Split(np.zeros((len(x), 8, 8, 3), np.uint8), x) for x in (labels, tests))
  return Dataset(
    class_names=tuple(f"class {c}" for c in range(len(sizes))),
    train=train,
    test=test,
    image_size=8,
    augmentation=Augmentation(max_shift=0, flip=False),
    random_resized_crop=False,
    normalization=None,
    ignored_files=0,
    skipped_records={},
    notes=(),
  )


def plan_of(name, sizes=SIZES, **changes):
  values = {
    "method": name,
    "num_states": 3,
    "memory_size": 40,
    "batch_size_new": 4,
    "batch_size_memory": 8,
    "epochs_first": 12,
    "epochs": 12,
    "eeil_epochs": 12,
    "bic_held_out": 0.3,
    "batch_size_test": 64,
    "num_devices": 1,
    **changes,
  }
  method = METHODS[name]
  return make_plan(make_config(values, method), dataset_of(sizes))


class Drawn(NamedTuple):
  """What a phase was trained on."""

  phase: PhasePlan
  batches: list[np.ndarray]  # records
  new: range  # classes


def walk(plan, patch):
  """Goes through all states; returns a `Drawn` for each phase."""
  num_classes, drawn = len(plan.dataset.class_names), []
  outputs = {
    split.labels.tobytes(): np.random.default_rng(n).random(
      (len(split.labels), FEATURES + num_classes), np.float32
    )
    for n, split in enumerate((plan.dataset.train, plan.dataset.test))
  }

  def survey(plan, trainer, train_state, given, records, measure, *, test=False):
    split = plan.dataset.test if test else plan.dataset.train
    rows = outputs[split.labels.tobytes()][records]
    assert len(rows)
    return jax.device_get(
      measure(
        outputs_of(features=rows[:, :FEATURES], logits=rows[:, FEATURES:]),
        jnp.asarray(split.labels[records]),
        given,
        plan.config,
      )
    )

  def train_phase(plan, held, train_state, given, phase, pool, *, phase_index, **kwargs):
    batches = trainer.train_batches(plan, held, phase, pool, phase_index=phase_index)
    new = range(phase.state.num_old, phase.state.num_seen)
    drawn.append(Drawn(phase, [b.records[0] for b in batches], new))
    return train_state

  patch.setattr(incremental, "survey", survey)
  patch.setattr(incremental, "train_phase", train_phase)
  patch.setattr(incremental, "evaluate", lambda *args: {})
  patch.setattr(devices, "replicate", lambda tree, mesh: tree)
  patch.setattr(devices, "fetch", lambda tree: tree)
  head = {"kernel": np.ones((FEATURES, num_classes), np.float32)}
  initial = step.TrainState(np.int32(0), {"head": head}, {}, ())
  held = types.SimpleNamespace(mesh=devices.choose_devices(plan.config), initial=initial)
  keeper = types.SimpleNamespace(visit=lambda progress: None)
  sizes = Sizes(
    num_classes=num_classes,
    num_features=FEATURES,
    num_records=len(plan.dataset.train.labels),
    memory_size=plan.config.memory_size,
  )
  progress = Progress(initial, memory.empty(), plan.method.init_stats(sizes), [])
  phases = phase_plans(plan)
  for state in plan.states:
    trained = incremental.train_state(
      plan,
      held,
      progress,
      state,
      [p for p in phases if p.state is state],
      make_meter=lambda *args, **kwargs: None,
      keeper=keeper,
    )
    progress = incremental.finish_state(plan, held, progress, state, trained)
    for stat in jax.tree.leaves(progress.stats):
      assert np.isfinite(stat).all()
    for statistic in progress.results[-1]["statistics"].values():
      assert np.isfinite(statistic)
  return drawn


@pytest.mark.parametrize("memory_size", [15, 20, 40])
@pytest.mark.parametrize("name", METHODS)
def test_the_schedule_is_what_is_trained_on(name, memory_size, monkeypatch):
  try:
    plan, refusal = plan_of(name, memory_size=memory_size), ""
  except ConfigError as error:
    plan, refusal = None, str(error)
  if plan is None:
    assert memory_size == 15
    assert refusal.startswith("state 3 has one exemplar of each old class")
    return
  labels, rows = plan.dataset.train.labels, schedule_rows(plan)
  drawn = walk(plan, monkeypatch)
  for row, (phase, batches, new) in zip(rows, drawn, strict=True):
    assert row["state"] == phase.state.index
    assert row["classes"] == f"{new.start} + {len(new)}"
    classes = labels[np.unique(batches)]
    assert (
      row["images"] == f"{(classes < new.start).sum()} + {(classes >= new.start).sum()}"
    )
    assert set(classes) <= set(range(new.stop))
    assert set(classes) >= set(new)
    assert row["steps"] == len(batches) == phase.num_steps
    assert phase.num_images == sum(map(len, batches))
    sizes = [int(size) for size in row["batch"].split(" + ")]
    for batch in batches:
      assert len(batch) == sum(sizes)
      if len(sizes) > 1:
        assert (labels[batch[: sizes[0]]] >= new.start).all()
        assert (labels[batch[sizes[0] :]] < new.start).all()
    assert row["epochs"] == phase.phase.epochs
    assert len(batches) % row["epochs"] == 0
    drops = [] if row["drops"] == "-" else [int(e) for e in row["drops"].split(", ")]
    for epoch in range(row["epochs"]):
      rate = row["rate"] * plan.config.learning_rate_drop ** sum(e <= epoch for e in drops)
      assert phase.phase.learning_rate_at(epoch) == pytest.approx(rate, rel=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_a_class_without_training_images_is_named(name):
  # The last class has none: its number is not among the labels.
  for sizes in ((*SIZES[:-1], 0), (*SIZES[:6], 0, *SIZES[7:])):
    with pytest.raises(DataError, match=rf"class {sizes.index(0)} \(1 in all\) has no"):
      plan_of(name, sizes)


@pytest.mark.parametrize("name", METHODS)
def test_a_class_in_no_batch_is_named(name, monkeypatch):
  # One epoch leaves up to 14 images out, and most classes have no more.
  refused = 0
  for seed in range(6):
    changes = {"epochs_first": 1, "epochs": 1, "seed": seed, "batch_size_new": 15}
    with monkeypatch.context() as patch:
      patch.setattr(plan_lib, "_check_new_classes", lambda plan, phase: None)
      plan = plan_of(name, **changes)
      drawn = walk(plan, patch)
    missing = [
      (phase.state.index, c)
      for phase, batches, new in drawn
      if phase.phase is phase.state.phases[0]
      for c in sorted(set(new) - set(plan.dataset.train.labels[np.ravel(batches)]))
    ]
    if not missing:
      plan_of(name, **changes)
      continue
    refused += 1
    index, c = missing[0]
    with pytest.raises(ConfigError) as caught:
      plan_of(name, **changes)
    flag = "epochs_first" if index == 1 else "epochs"
    message = str(caught.value)
    assert message.startswith(f"state {index} would never train on class class {c} (images")
    assert f"raise --{flag}, lower --batch_size_new, or change --seed" in message
  assert refused > 0


def test_bic_trains_on_a_class_with_one_image(tmp_path):
  # In the second state, blue has one image and yellow six; without training on the one,
  # the network never says blue.
  colors = {"red": RED, "green": GREEN, "blue": BLUE, "yellow": (255, 255, 0)}
  for name, color in colors.items():
    for i in range(1 if name == "blue" else 6):
      save(tmp_path / "images/train" / name / f"{i}.png", color)
    save(tmp_path / "images/test" / name / "0.png", color)
  config = small_config(
    tmp_path / "run",
    dataset="image_folder",
    data_dir=str(tmp_path / "images"),
    class_order_seed=7,
    method="bic",
    num_classes=4,
    num_states=2,
    memory_size=8,
    batch_size_new=4,
    batch_size_memory=4,
    epochs_first=20,
    epochs=30,
    milestones_first=(),
    milestones=(),
    learning_rate=0.02,
    augment="none",
    num_devices=1,
  )
  with quick_network():
    states = loop.run(config, Console(quiet=True))["states"]
  rows = json.loads((tmp_path / "run/schedule.json").read_text())
  # One of the four exemplars of each old class is held out, and one yellow image.
  assert [row["images"] for row in rows] == ["0 + 12", "6 + 6"]
  assert [(row["top1"], row["state_specific_top1"]) for row in states] == [(1, 1), (1, 1)]
