"""What every method owes the loop: a table of checks over whole small runs of them all."""

import collections
import contextlib
import functools
import itertools
import json
import logging
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_network
from small_runs import last_checkpoint, records, run, small_config

from ssil_jax import metrics
from ssil_jax.config import make_config
from ssil_jax.methods import METHODS
from ssil_jax.methods.base import Examples, PhaseContext, SeenClasses, Sizes
from ssil_jax.methods.ft import softmax_loss
from ssil_jax.resnet import Outputs
from ssil_jax.training import checkpoint, devices, incremental, loop, step
from ssil_jax.training.plan import phase_plans

# One schedule for all methods, so that their first states can be compared.
SETTINGS = {
  "num_classes": 4,
  "num_states": 2,
  "memory_size": 16,
  "batch_size_test": 64,
  "eeil_epochs": 1,
  "milestones_first": (),
  "milestones": (),
  "learning_rate": 1e-3,
  "learning_rate_by_state": "inverse",
  "learning_rate_drop": 0.1,
  "num_devices": 2,
}
# Programs that look at images for a method: one for each measure and split. Herding has
# one, too, which it shares with iCaRL's.
SURVEYS = {"il2m": 2, "icarl": 1, "eeil": 1, "bic": 1, "wa": 1, "lucir": 1, "der": 1}
PLAIN = [name for name, method in METHODS.items() if method.plain_first_state]


@contextlib.contextmanager
def logged_compiles(compiled):
  """Counts XLA's compilations by name, and allows no hidden transfers."""

  def note(record):
    message = record.getMessage()
    if message.startswith("Finished XLA"):
      compiled[message.split()[4]] += 1

  handler = logging.Handler()
  handler.emit = note
  logger = logging.getLogger("jax")
  logger.addHandler(handler)
  try:
    with jax.log_compiles(), jax.transfer_guard("disallow"):
      yield
  finally:
    logger.removeHandler(handler)


class TrainedPhase(NamedTuple):
  """A call of train_phase; host copies, of all devices."""

  state: int
  context: PhaseContext
  given_afterwards: PhaseContext
  before: step.TrainState
  after: step.TrainState


class Watched(NamedTuple):
  """A finished run and what was seen on its way."""

  name: str
  workdir: Any
  results: dict
  model: step.Model
  plan: Any
  progress: list  # before the first state, and after each
  phases: list
  compiled: collections.Counter  # by XLA's name
  traced: collections.Counter  # by step and shapes

  @property
  def method(self):
    return METHODS[self.name]


def watch(name, workdir):
  """Runs a method and keeps what passes between the loop and the devices."""
  compiled, traced = collections.Counter(), collections.Counter()
  progress, phases, models, plans = [], [], [], []

  def kept(function, results):
    def wrapped(*args, **kwargs):
      results.append(function(*args, **kwargs))
      return results[-1]

    return wrapped

  def traced_as(kind, function):
    def wrapped(state, batch, context, *rest, **fixed):
      images = rest[-1]
      traced[kind, batch.inputs.shape, images.shape, fixed.get("measure")] += 1
      return function(state, batch, context, *rest, **fixed)

    return wrapped

  def map_train_step(model, mesh, function=devices.map_train_step):
    models.append(model)
    return function(model, mesh)

  def train_phase(plan, trainer, state, context, phase, *args, **kwargs):
    at_first = jax.device_get((context, state))
    after = inner_train_phase(plan, trainer, state, context, phase, *args, **kwargs)
    before, after_on_host = at_first[1], jax.device_get(after)
    phases.append(
      TrainedPhase(
        phase.state.index, at_first[0], jax.device_get(context), before, after_on_host
      )
    )
    return after

  inner_train_phase = incremental.train_phase
  with quick_network() as patch:
    for kind in ("train", "eval", "extract"):
      function = getattr(step, f"{kind}_step")
      patch.setattr(step, f"{kind}_step", traced_as(kind, function))
    patch.setattr(devices, "map_train_step", map_train_step)
    patch.setattr(incremental, "train_phase", train_phase)
    patch.setattr(loop, "make_plan", kept(loop.make_plan, plans))
    patch.setattr(loop, "start", kept(loop.start, progress))
    patch.setattr(incremental, "finish_state", kept(incremental.finish_state, progress))
    with logged_compiles(compiled):
      results = run(workdir, method=name, **SETTINGS)
  return Watched(
    name, workdir, results, models[0], plans[0], progress, phases, compiled, traced
  )


@pytest.fixture(scope="module")
def every_run(tmp_path_factory):
  """name -> its run, made when it is first asked for."""
  return functools.cache(lambda name: watch(name, tmp_path_factory.mktemp("runs") / name))


@pytest.fixture(params=METHODS)
def watched(request, every_run):
  return every_run(request.param)


def assert_same_kind(tree, other):
  """Structure, shapes and dtypes."""
  kinds = [jax.tree.map(lambda x: (np.shape(x), x.dtype), t) for t in (tree, other)]
  assert jax.tree.structure(tree) == jax.tree.structure(other)
  assert kinds[0] == kinds[1]


def assert_same(tree, other):
  """Bit for bit."""
  assert_same_kind(tree, other)
  jax.tree.map(np.testing.assert_array_equal, tree, other)


def on_device(tree, index):
  """One device's copy."""
  return jax.tree.map(lambda x: np.asarray(x)[index], tree)


def test_the_run_ends_with_finite_losses_and_the_contract_of_its_results(watched):
  results, plan = watched.results, watched.plan
  assert json.loads((watched.workdir / "results.json").read_text()) == results
  num_states = 1 if watched.name == "joint_full" else 2
  assert (results["method"], results["num_states"]) == (watched.name, num_states)
  assert results["environment"]["num_devices"] == 2
  rows = results["states"]
  per_state = 4 // num_states
  assert [(row["state"], row["num_old"], row["num_seen"]) for row in rows] == [
    (t, per_state * (t - 1), per_state * t) for t in range(1, num_states + 1)
  ]
  for row in rows:
    assert np.sum(row["confusion"]) == np.sum(plan.dataset.test.labels < row["num_seen"])
    assert 0 <= row["top1"] <= row["state_specific_top1"] <= 1
    assert row["top1"] <= row["top5"] <= 1
    assert np.isfinite(row["score_new"])
    assert row["from_workdir"] is None
    assert all(np.isfinite(x) for x in row["statistics"].values())
  assert results["average"] == metrics.average(rows)
  lines = records(watched.workdir)
  assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
  assert len(lines) == sum(p.num_steps for p in phase_plans(plan))
  assert all(np.isfinite(line["loss"]) for line in lines)


def test_each_program_is_compiled_once(watched):
  shapes = {p.group_sizes for p in phase_plans(watched.plan)}
  train = {key[1]: n for key, n in watched.traced.items() if key[0] == "train"}
  assert train == {(sum(sizes) // 2,): 1 for sizes in shapes}
  count = collections.Counter(key[0] for key in watched.traced)
  num_surveys = SURVEYS.get(watched.name, 0)
  assert (count["eval"], count["extract"]) == (1, num_surveys)
  assert set(watched.traced.values()) == {1}
  assert watched.compiled.total() == len(shapes) + 1 + num_surveys + 1, watched.compiled


def test_training_keeps_the_kind_of_its_state(watched):
  for phase in watched.phases:
    assert_same_kind(phase.before, phase.after)
    # The devices agree on the network.
    assert_same(on_device(phase.after, 0), on_device(phase.after, 1))
    changed = jax.tree.map(np.array_equal, phase.before.params, phase.after.params)
    assert not all(jax.tree.leaves(changed))


def test_statistics_keep_their_kind_and_are_in_the_checkpoint(watched):
  start, *later = watched.progress
  for progress in later:
    assert_same_kind(progress.stats, start.stats)
    assert_same_kind(progress.train_state, start.train_state)
  with checkpoint.Checkpoints(watched.workdir, kept=3) as checkpoints:
    saved = checkpoints.latest(otherwise=start)
  assert_same(saved.stats, later[-1].stats)
  assert_same(saved.train_state, later[-1].train_state)
  assert_same(saved.memory, later[-1].memory)
  assert saved.results == watched.results["states"]


def test_classes_not_seen_yet_are_never_predicted(watched):
  rng = np.random.default_rng(0)
  width = watched.progress[0].train_state.params["head"]["kernel"].shape[0]
  logits = rng.standard_normal((64, 4)).astype(np.float32)
  logits[:, 2:] = 1e30
  outputs = Outputs(
    features=jnp.asarray(rng.standard_normal((64, width)), jnp.float32),
    logits=jnp.asarray(logits),
  )
  stats = watched.progress[1].stats
  for num_old in (0, 1):
    classes = SeenClasses(*map(jnp.int32, (num_old, 2, 0)))
    scores = watched.method.predict(
      outputs, PhaseContext(classes, None, stats), watched.model.config
    )
    assert scores.shape == (64, 4)
    assert not np.isnan(scores).any()
    assert np.isneginf(scores[:, 2:]).all()
    assert {*np.argmax(np.asarray(scores), axis=-1).tolist()} == {0, 1}


def test_the_teacher_is_the_network_as_it_was(watched):
  expected = []
  for state in watched.plan.states:
    former = watched.progress[state.index - 1].train_state
    expected.append((state.index, former, state.num_old))
    if watched.name == "eeil" and state.index == 2:
      first_phase = watched.phases[len(expected) - 1].after
      expected.append((state.index, on_device(first_phase, 0), state.num_seen))
  assert [phase.state for phase in watched.phases] == [state for state, _, _ in expected]
  for phase, (_, former, num_teacher_classes) in zip(watched.phases, expected, strict=True):
    for device in (0, 1):
      context = on_device(phase.context, device)
      if not watched.method.has_teacher:
        assert context.teacher is None
        assert context.classes.num_teacher_classes == 0
        continue
      assert context.classes.num_teacher_classes == num_teacher_classes
      assert_same(
        context.teacher, {"params": former.params, "batch_stats": former.batch_stats}
      )


def test_what_is_given_is_untouched_by_training(watched):
  for phase in watched.phases:
    assert_same(phase.given_afterwards, phase.context)


def test_a_phase_starts_where_the_one_before_ended_without_its_momentum(watched):
  former, start = watched.progress[0].train_state, watched.progress[0].train_state
  for phase, following in itertools.zip_longest(watched.phases, watched.phases[1:]):
    before = on_device(phase.before, 0)
    assert_same(before, former.replace(opt_state=start.opt_state))
    ended_state = following is None or following.state != phase.state
    # What follows training, as weight aligning, is in the state's progress.
    former = (
      watched.progress[phase.state].train_state
      if ended_state
      else on_device(phase.after, 0)
    )


@pytest.mark.parametrize("name", [n for n in METHODS if METHODS[n].has_teacher])
def test_no_gradient_reaches_the_teacher(every_run, name):
  watched = every_run(name)
  model, dataset = watched.model, watched.plan.dataset
  phase = watched.phases[-1]
  context = on_device(phase.context, 0)
  state = on_device(phase.after, 0)
  # As many of each of the four classes, in a batch of 16.
  chosen = np.concatenate([np.flatnonzero(dataset.train.labels == c)[:4] for c in range(4)])
  pixels = jnp.asarray(dataset.train.images[chosen] / 255, jnp.float32)

  def loss(teacher, params):
    outputs = model.network.apply(
      {"params": params, "batch_stats": state.batch_stats}, pixels, train=False
    )
    now = context._replace(teacher=teacher)
    examples = Examples(
      labels=jnp.asarray(dataset.train.labels[chosen]),
      positions=jnp.arange(16),
      records=jnp.asarray(chosen),
      outputs=outputs,
      teacher=step._look_with_teacher(pixels, now, model),
      context=now,
      class_counts=jnp.full(4, 4.0),
      state_of_class=np.asarray(model.state_of_class, np.int32),
    )
    return jnp.mean(model.method.loss(examples, model.config))

  other = jax.tree.map(lambda x: np.flip(x), context.teacher)
  with quick_network():
    value, (by_teacher, by_params) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(
      context.teacher, state.params
    )
    other_value = jax.jit(loss)(other, state.params)
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(by_teacher))
  assert any(np.any(leaf) for leaf in jax.tree.leaves(by_params))
  # And not because the loss looks at no teacher.
  assert abs(float(other_value) - float(value)) > 1e-6


def first_losses(watched):
  return [line["loss"] for line in records(watched.workdir) if line["state"] == 1]


@pytest.mark.parametrize("name", [n for n in METHODS if n != "joint_full"])
def test_plain_methods_and_no_others_share_the_first_state(every_run, name):
  ft, other = every_run("ft"), every_run(name)
  assert len(first_losses(ft)) == phase_plans(ft.plan)[0].num_steps > 4
  # er_ace's differs only where a class is missing in a batch, as none is here.
  alike = name in PLAIN or name == "er_ace"
  assert (first_losses(other) == first_losses(ft)) == alike
  networks = [watched.phases[0].after for watched in (ft, other)]
  if alike:
    assert_same(*networks)


def test_the_plain_methods():
  assert not {"wa", "lucir", "er_ace"} & {*PLAIN}
  assert {"ssil", "ft", "icarl", "eeil", "bic", "der"} <= {*PLAIN}


@pytest.mark.parametrize("name", PLAIN)
def test_the_first_state_of_a_plain_method_is_a_softmax_over_all_its_classes(name):
  # The fourth of the five classes of the first state is not in the batch, as happens
  # where a state has more classes than a batch has samples.
  method, rng = METHODS[name], np.random.default_rng(0)
  values = {"batch_size_new": 8, "batch_size_memory": 4, "num_states": 2}
  config = make_config(values, method)
  labels = jnp.asarray([0, 1, 2, 4, 4, 2, 1, 0])
  outputs, teacher = (
    Outputs(
      features=jnp.asarray(rng.standard_normal((8, 3)), jnp.float32),
      logits=jnp.asarray(rng.standard_normal((8, 7)), jnp.float32),
    )
    for _ in range(2)
  )
  sizes = Sizes(num_classes=7, num_features=3, num_records=20, memory_size=14)
  classes = SeenClasses(*map(jnp.int32, (0, 5, 0)))
  examples = Examples(
    labels=labels,
    positions=jnp.arange(8),
    records=jnp.arange(8),
    outputs=outputs,
    teacher=jax.tree.map(jnp.zeros_like, teacher) if method.has_teacher else None,
    context=PhaseContext(classes, None, method.init_stats(sizes)),
    class_counts=jnp.bincount(labels, length=7).astype(jnp.float32),
    state_of_class=np.array([0, 0, 0, 0, 0, 1, 1], np.int32),
  )

  def mean_of(loss):
    def of_logits(logits):
      now = examples._replace(outputs=outputs._replace(logits=logits))
      return jnp.mean(loss(now, config))

    return jax.value_and_grad(of_logits)(outputs.logits)

  (value, gradient), (plain, plain_gradient) = map(mean_of, (method.loss, softmax_loss))
  np.testing.assert_allclose(value, plain, rtol=1e-6)
  np.testing.assert_allclose(gradient, plain_gradient, atol=1e-7)


@pytest.mark.parametrize("name", ["il2m", "der", "bic"])
def test_statistics_survive_an_interruption(every_run, tmp_path, name):
  finished = every_run(name)
  copy = tmp_path / "copy"
  shutil.copytree(finished.workdir, copy)
  shutil.rmtree(last_checkpoint(copy))
  with quick_network():
    resumed = run(copy, method=name, **SETTINGS)
  untimed = {"states": []}  # compared below
  assert resumed | untimed == finished.results | untimed
  for ours, theirs in zip(resumed["states"], finished.results["states"], strict=True):
    assert ours | {"train_seconds": 0} == theirs | {"train_seconds": 0}
  speed = {"images_per_second": 0, "input_wait": 0}
  assert [line | speed for line in records(copy)] == [
    line | speed for line in records(finished.workdir)
  ]
  with checkpoint.Checkpoints(copy, kept=3) as checkpoints:
    saved = checkpoints.latest(otherwise=finished.progress[0])
  assert_same(saved.stats, finished.progress[-1].stats)


def test_every_method_of_the_table_exists():
  assert {*SURVEYS} <= {*METHODS}
  assert small_config("unused", method="joint_full", **SETTINGS).num_states == 1
