"""The schedule against what is drawn, in every method, from classes of any size.

The states are walked through as in a run, on the host alone: in place of training, all
batches of a phase are drawn; in place of a network, each image has its own random outputs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finished_states import outputs_of
from folders import config_of as config_with

from ssil_jax import metrics
from ssil_jax.config import fields_of
from ssil_jax.data.dataset import Dataset, Split
from ssil_jax.data.images.augment import Augmentation
from ssil_jax.errors import ConfigError, DataError
from ssil_jax.methods import METHODS
from ssil_jax.schedule import IncrementalState, Phase, state_of_class
from ssil_jax.training import loop
from ssil_jax.training import plan as plan_lib
from ssil_jax.training.devices import Devices, choose_devices
from ssil_jax.training.plan import make_plan, schedule_rows
from ssil_jax.training.run_state import TrainState
from ssil_jax.training.session import Session

# Images of each class, for three states of five. With 40 exemplars, the share of a class is
# 8 in the second state and 4 in the third; with 20 it is 4 and 2; with 15, 3 and 1.
SIZES = (1, 2, 7, 8, 9, 1, 2, 3, 4, 5, 1, 2, 3, 5, 20)
FEATURES = 6
OWN = {"eeil_epochs": 12, "bic_held_out": 0.3, "cgan_steps": 2}


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
    flip=True,
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
    "batch_size_test": 64,
    "num_devices": 1,
    **changes,
  }
  own = {field.name for field in fields_of(METHODS[name].settings)}
  values |= {k: v for k, v in OWN.items() if k in own}
  return make_plan(config_with(**values), dataset_of(sizes))


class Drawn(NamedTuple):
  """What a phase was trained on."""

  state: IncrementalState
  phase: Phase
  batches: list[np.ndarray]  # records

  @property
  def new(self):
    return range(self.state.num_old, self.state.num_seen)


class OutputsOnly(Devices):
  """One device that trains nothing; each image has its own random outputs."""

  def __init__(self, plan):
    super().__init__(choose_devices(plan.config), model=None)
    self.plan = plan
    self.batches = []
    num_classes = len(plan.dataset.class_names)
    self.outputs = {
      split: np.random.default_rng(n).random(
        (len(getattr(plan.dataset, split).labels), FEATURES + num_classes), np.float32
      )
      for n, split in enumerate(("train", "test"))
    }

  def _outputs(self, batch, split):
    rows = self.outputs[split][np.asarray(batch.records)[0]]
    return outputs_of(features=rows[:, :FEATURES], logits=rows[:, FEATURES:])

  def train_step(self, train_state, batch, context, learning_rate, *, later):
    self.batches.append(np.asarray(batch.records)[0])
    return train_state, {"loss": learning_rate, "top1": learning_rate}

  def extract_step(self, train_state, batch, context, output_fn, split):
    context = jax.tree.map(lambda x: x[0], context)
    outputs = self._outputs(batch, split)
    found = output_fn(outputs, batch.labels[0], context, self.plan.config)
    return jax.tree.map(lambda x: x[None], found)

  def total_step(self, total, train_state, batch, context, image_fn):
    return total

  def eval_step(self, train_state, batch, context):
    outputs, context = self._outputs(batch, "test"), jax.tree.map(lambda x: x[0], context)
    method, config = self.plan.method, self.plan.config
    scores = method.predict(outputs, context, config)
    counts = metrics.count(
      scores,
      outputs.logits,
      batch.labels[0],
      batch.positions[0] >= 0,
      num_old=context.classes.num_old,
      num_seen=context.classes.num_seen,
      state_of_class=jnp.asarray(state_of_class(self.plan.states)),
      num_states=len(self.plan.states),
    )
    probabilities = method.probabilities(scores, context, config)
    predicted = metrics.predictions(scores, probabilities, batch.labels[0])
    return jax.tree.map(lambda x: x[None], (counts, predicted))


def walk(plan):
  """Goes through all states; returns a `Drawn` for each phase."""
  devices, drawn = OutputsOnly(plan), []
  proxies = () if plan.method.num_proxies == 1 else (plan.method.num_proxies,)
  shape = FEATURES, *proxies, len(plan.dataset.class_names)
  head = {"kernel": np.ones(shape, np.float32)}
  initial = TrainState(np.int32(0), {"head": head}, {}, ())
  session = Session(plan=plan, devices=devices, initial=initial)
  run = session.start()
  for state in plan.states:
    run = loop.begin_state(session, state, run)
    for phase in state.phases:
      if phase.number:
        run = loop.begin_phase(session, state, phase, run)
      run = loop.train_phase(session, state, phase, run)
      drawn.append(Drawn(state, phase, devices.batches.copy()))
      devices.batches.clear()
    run = loop.finish_state(session, state, run)
    for stat in jax.tree.leaves(run.stats):
      assert np.isfinite(stat).all()
    for statistic in run.results[-1]["statistics"].values():
      assert np.isfinite(statistic)
  return drawn


@pytest.mark.parametrize("memory_size", [15, 40])
@pytest.mark.parametrize("name", METHODS)
def test_the_schedule_is_what_is_trained_on(name, memory_size):
  try:
    plan, refusal = plan_of(name, memory_size=memory_size), ""
  except ConfigError as error:
    plan, refusal = None, str(error)
  if plan is None:
    assert memory_size == 15
    assert refusal.startswith("state 3 has one exemplar of each old class")
    return
  labels, rows = plan.dataset.train.labels, schedule_rows(plan)
  drawn = walk(plan)
  for row, trained in zip(rows, drawn, strict=True):
    (state, phase, batches), new = trained, trained.new
    assert row["state"] == state.index
    assert row["classes"] == f"{new.start} + {len(new)}"
    classes = labels[np.unique(np.asarray(batches, np.int64))]
    assert (
      row["images"] == f"{(classes < new.start).sum()} + {(classes >= new.start).sum()}"
    )
    assert set(classes) <= set(range(new.stop))
    assert row["steps"] == len(batches) == phase.num_steps
    assert phase.num_images == sum(map(len, batches))
    sizes = [int(size) for size in row["batch"].split(" + ")]
    for batch in batches:
      assert len(batch) == sum(sizes)
      if len(sizes) > 1:
        assert (labels[batch[: sizes[0]]] >= new.start).all()
        assert (labels[batch[sizes[0] :]] < new.start).all()
    assert row["epochs"] == phase.epochs
    if name == "ncm" and new.start:
      assert not batches
      continue
    assert set(classes) >= set(new)
    assert len(batches) % row["epochs"] == 0
    drops = [int(e) for e in row["drops"].split(", ") if e.isdigit()]
    for epoch in range(row["epochs"]):
      rate = row["rate"] * plan.config.learning_rate_drop ** sum(e <= epoch for e in drops)
      if row["drops"] == "cosine":
        rate *= (1 + np.cos(np.pi * epoch / row["epochs"])) / 2
      assert phase.learning_rate_at(epoch) == pytest.approx(rate, rel=1e-3)


def test_a_class_without_training_images_is_named():
  # The last class has none: its number is not among the labels.
  for sizes in ((*SIZES[:-1], 0), (*SIZES[:6], 0, *SIZES[7:])):
    with pytest.raises(DataError, match=rf"class {sizes.index(0)} \(1 in all\) has no"):
      plan_of("ssil", sizes)


@pytest.mark.parametrize("name", ["ssil", "ft", "bic", "joint_full"])
def test_a_class_in_no_batch_is_named(name, monkeypatch):
  # One epoch leaves up to 14 images out, and most classes have no more.
  refused = 0
  for seed in range(6):
    changes = {"epochs_first": 1, "epochs": 1, "seed": seed, "batch_size_new": 15}
    with monkeypatch.context() as patch:
      patch.setattr(plan_lib, "_check_new_classes", lambda *plan_state_pool: None)
      plan = plan_of(name, **changes)
    labels = plan.dataset.train.labels
    missing = [
      (trained.state.index, c)
      for trained in walk(plan)
      if trained.phase.number == 0
      for c in sorted(set(trained.new) - set(labels[np.ravel(trained.batches)]))
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
