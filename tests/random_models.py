"""Models of random weights in work directories, which no run has to be trained for."""

import jax
import jax.numpy as jnp
import numpy as np
from small_runs import small_config

from ssil_jax import memory
from ssil_jax.data.dataset import LARGEST_RESIDENT
from ssil_jax.methods.base import Sizes
from ssil_jax.resnet import ResNet18
from ssil_jax.training import model_files
from ssil_jax.training.plan import make_plan
from ssil_jax.training.run_state import RunState, TrainState
from ssil_jax.training.storage import Networks

STEPS = 12


def write_model(folder, *, finished=2, seed=0, normalization=None, **settings):
  """A work directory of three states of two classes, of which some are finished."""
  plan = make_plan(small_config(folder, **settings))
  plan = plan._replace(dataset=plan.dataset._replace(normalization=normalization))
  config, dataset = plan.config, plan.dataset
  network = ResNet18(
    num_classes=len(dataset.class_names),
    **plan.method.network,
    width=config.width,
    small_images=dataset.image_size <= LARGEST_RESIDENT,
  )
  image = jnp.zeros((1, dataset.image_size, dataset.image_size, 3))
  shapes = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, train=False), image)
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    if path[-1].key in ("scale", "var"):
      return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 1
    return (rng.normal(size=leaf.shape) * (2 / fan_in) ** 0.5).astype(np.float32)

  variables = jax.tree_util.tree_map_with_path(draw, dict(shapes))
  train_state = TrainState(np.int32(STEPS), opt_state=(), **variables)
  sizes = Sizes(
    num_classes=len(dataset.class_names),
    num_features=8 * config.width,
    num_records=1,
    memory_size=config.memory_size,
    params=variables["params"],
    image_size=dataset.image_size,
    config=config,
  )
  stats = jax.tree.map(
    lambda x: rng.uniform(0.5, 1.5, np.shape(x)).astype(np.float32),
    plan.method.init_stats(sizes),
  )
  folder.mkdir(parents=True, exist_ok=True)
  results = []
  with Networks(folder) as networks:
    for state in range(1, finished + 1):
      networks.save(train_state, state=state)
      results = [*results, {"top1": 1 / state}]
      run = RunState(train_state, memory.empty(), stats, results)
      model_files.save(folder, plan, run, environment={}, origin={})
  return folder
