"""EWC, SI, GEM, A-GEM and ER beside those of Avalanche, on the same tensors.

Avalanche is no requirement of the tests: benchmarks/README.md says how to install it.
"""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finished_states import (
  config_of,
  context_of,
  examples_of,
  finished_of,
  memory_of,
  outputs_of,
)

from ssil_jax.methods import METHODS, agem, ewc, gem
from ssil_jax.methods.base import Sizes, Step
from ssil_jax.resnet import Outputs
from ssil_jax.sampling import Pool
from ssil_jax.training.step import elastic_energy

pytest.importorskip("avalanche", reason="Avalanche is not installed: no comparison with it")
import torch
from avalanche.training import plugins
from avalanche.training.plugins.synaptic_intelligence import (
  SynapticIntelligencePlugin,
)

NUM_INPUTS, NUM_CLASSES, NUM_IMAGES = 6, 4, 12


def tree_of(model):
  """The parameters of a linear model in PyTorch, as a tree like those in Flax."""
  weight, bias = (tensor.detach().numpy() for tensor in model.parameters())
  return {"kernel": np.array(weight.T), "bias": np.array(bias)}


def gradients_of(model):
  weight, bias = (tensor.grad.numpy() for tensor in model.parameters())
  return {"kernel": np.array(weight.T), "bias": np.array(bias)}


def linear(seed):
  torch.manual_seed(seed)
  return torch.nn.Linear(NUM_INPUTS, NUM_CLASSES)


def network(params, pixels):
  inputs = pixels.reshape(len(pixels), -1)
  return Outputs(features=inputs, logits=inputs @ params["kernel"] + params["bias"][None])


def data_of(seed):
  rng = np.random.default_rng(seed)
  inputs = rng.standard_normal((NUM_IMAGES, NUM_INPUTS)).astype(np.float32)
  return inputs, rng.integers(NUM_CLASSES, size=NUM_IMAGES)


def assert_close(tree, other):
  assert tree.keys() == other.keys()
  for name in tree:
    np.testing.assert_allclose(tree[name], other[name], rtol=2e-4, atol=1e-6, err_msg=name)


def totaler(inputs, labels, params, config):
  """`FinishedState.total` of a linear model."""

  def total(records, image_fn, like):
    context, sums = context_of(0, NUM_CLASSES), jax.tree.map(np.zeros_like, like)
    for record in records:
      pixels = inputs[record].reshape(1, 1, 2, 3)
      found = image_fn(network, params, pixels, jnp.int32(labels[record]), context, config)
      sums = jax.tree.map(np.add, sums, found)
    return sums

  return total


@pytest.mark.parametrize("online", [False, True])
def test_ewc(online):
  theirs = plugins.EWCPlugin(
    1.7, mode="online" if online else "separate", decay_factor=0.9 if online else None
  )
  config = config_of("ewc", penalty_strength=1.7, ewc_online=online, ewc_decay=0.9)
  method = METHODS["ewc"]
  stats = method.init_stats(Sizes(NUM_CLASSES, 1, 1, 1, tree_of(linear(0)), 8, None))
  for state in range(2):
    model, (inputs, labels) = linear(state), data_of(state)
    dataset = torch.utils.data.TensorDataset(
      torch.tensor(inputs), torch.tensor(labels), torch.zeros(NUM_IMAGES, dtype=torch.long)
    )
    # One image in a batch: Avalanche squares the gradients of batches.
    importances = theirs.compute_importances(
      model,
      torch.nn.CrossEntropyLoss(),
      torch.optim.SGD(model.parameters(), 0.1),
      dataset,
      "cpu",
      1,
      num_workers=0,
    )
    theirs.update_importances(importances, state)
    theirs.saved_params[state] = plugins.ewc.copy_params_dict(model)
    finished = finished_of(
      config,
      num_old=0,
      num_seen=NUM_CLASSES,
      labels=labels,
      stats=stats,
      memory=memory_of([]),
      pool=Pool(np.arange(NUM_IMAGES), np.zeros(0, np.int64)),
      params=tree_of(model),
      total=totaler(inputs, labels, tree_of(model), config),
    )
    stats = method.stats(finished, config)
  model = linear(5)
  strategy = types.SimpleNamespace(
    clock=types.SimpleNamespace(train_exp_counter=2),
    model=model,
    device="cpu",
    loss=torch.zeros(()),
  )
  theirs.before_backward(strategy)
  strategy.loss.backward()
  context = context_of(1, NUM_CLASSES, stats=stats)
  ours = jax.grad(lambda params: elastic_energy(params, method.elastic(context, config)))
  assert_close(ours(tree_of(model)), gradients_of(model))
  assert ewc.EWC is method


def test_si():
  model, method, config = linear(0), METHODS["si"], config_of("si", si_damping=0.01)
  anchors, path = ({}, {}), {n: {} for n in ("old_theta", "new_theta", "grad")}
  path |= {"trajectory": {}, "cum_trajectory": {}}
  begun = tree_of(model)
  stats = method.init_stats(Sizes(NUM_CLASSES, 1, 1, 1, begun, 8, None))
  carried, rng = method.init_carried(begun), np.random.default_rng(0)
  SynapticIntelligencePlugin.create_syn_data(model, anchors, path, set())
  SynapticIntelligencePlugin.init_batch(model, anchors, path, set())
  for _step in range(3):
    before = tree_of(model)
    SynapticIntelligencePlugin.pre_update(model, path, set())
    for parameter in model.parameters():
      grad, noise = (
        torch.tensor(rng.standard_normal(tuple(parameter.shape)).astype(np.float32))
        for _ in range(2)
      )
      parameter.grad = grad
      # Not in place: on CPUs Avalanche's copy of it from before the step is a view.
      parameter.data = parameter.data - (0.1 * grad + 0.05 * noise)
    SynapticIntelligencePlugin.post_update(model, path, set())
    step = Step(before=before, after=tree_of(model), grads=gradients_of(model))
    carried = method.carry(carried, step, None, config)
  SynapticIntelligencePlugin.update_ewc_data(
    model, anchors, path, 1e9, set(), c=1, eps=0.01
  )
  finished = finished_of(
    config,
    num_old=0,
    num_seen=NUM_CLASSES,
    labels=(),
    stats=stats,
    memory=memory_of([]),
    params=tree_of(model),
    carried=carried,
  )
  ours = method.stats(finished, config)["importance"]
  weight, bias = (np.asarray(value.data) for value in anchors[1].values())
  # Avalanche keeps importances below 0, which here become 0, as in the authors' code.
  theirs = {"kernel": weight.reshape(NUM_CLASSES, NUM_INPUTS).T, "bias": bias}
  assert_close(ours, {name: np.maximum(value, 0) for name, value in theirs.items()})
  assert (ours["kernel"] > 0).any()
  assert (ours["kernel"] == 0).any()


def vector(tree):
  """All numbers of a tree, in PyTorch's order."""
  return np.concatenate([np.ravel(tree["kernel"].T), tree["bias"]])


@pytest.mark.parametrize("seed", range(4))
def test_gem(seed):
  rng = np.random.default_rng(seed)
  grads = {
    "kernel": rng.standard_normal((4, NUM_INPUTS, NUM_CLASSES)).astype(np.float32),
    "bias": rng.standard_normal((4, NUM_CLASSES)).astype(np.float32),
  }
  rows = np.stack([vector({n: x[i] for n, x in grads.items()}) for i in range(4)])
  theirs = plugins.GEMPlugin(1, memory_strength=0.5)
  theirs.G = torch.tensor(rows[1:])
  expected = theirs.solve_quadprog(torch.tensor(rows[0])).numpy()
  found = gem.constrain(grads, context_of(3, 4), config_of("gem", gem_margin=0.5))
  assert (rows[1:] @ rows[0] < 0).any()
  np.testing.assert_allclose(vector(found), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("sign", [1, -1])
def test_agem(sign):
  rng = np.random.default_rng(0)
  model = linear(0)
  grads = {
    "kernel": rng.standard_normal((2, NUM_INPUTS, NUM_CLASSES)).astype(np.float32),
    "bias": rng.standard_normal((2, NUM_CLASSES)).astype(np.float32),
  }
  overlap = sum((x[0] * x[1]).sum() for x in grads.values())
  grads = {n: np.stack([x[0], np.sign(overlap) * sign * x[1]]) for n, x in grads.items()}
  theirs = plugins.AGEMPlugin(1, 1)
  theirs.buffers, theirs.memory_x = [1], 1
  theirs.reference_gradients = torch.tensor(vector({n: x[1] for n, x in grads.items()}))
  model.weight.grad = torch.tensor(grads["kernel"][0].T.copy())
  model.bias.grad = torch.tensor(grads["bias"][0].copy())
  theirs.after_backward(types.SimpleNamespace(model=model, device="cpu"))
  assert_close(agem.project(grads, None, None), gradients_of(model))


def test_er():
  # One cross-entropy over the new batch and the memory's, joined.
  rng = np.random.default_rng(0)
  logits, labels = rng.standard_normal((9, NUM_CLASSES)), rng.integers(NUM_CLASSES, size=9)
  context, config = context_of(2, NUM_CLASSES), config_of("er")
  examples = examples_of(outputs_of(logits=logits), labels, context, [0, 0, 1, 1])
  ours = METHODS["er"].loss(examples, config).mean()
  theirs = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels))
  assert float(ours) == pytest.approx(float(theirs), rel=1e-5)
