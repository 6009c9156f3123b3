"""What a method is given, made of random or chosen arrays instead of a network's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ssil_jax.config import make_config
from ssil_jax.memory import Memory
from ssil_jax.methods import get_method
from ssil_jax.methods.base import Examples, FinishedState, PhaseContext, SeenClasses
from ssil_jax.resnet import Outputs
from ssil_jax.sampling import Pool


def config_of(name, **values):
  method = get_method(name)
  return make_config({"method": name, **values}, method)


def context_of(num_old, num_seen, *, num_teacher_classes=0, stats=None):
  classes = SeenClasses(*(jnp.int32(n) for n in (num_old, num_seen, num_teacher_classes)))
  return PhaseContext(classes, None, {} if stats is None else stats)


def outputs_of(*, logits=None, features=None, scale=1.0, stages=()):
  """Those that are not given are zeros."""
  size = len(logits if features is None else features)
  return Outputs(
    features=jnp.asarray(np.zeros((size, 1)) if features is None else features, "float32"),
    logits=jnp.asarray(np.zeros((size, 1)) if logits is None else logits, "float32"),
    scale=jnp.float32(scale),
    stages=tuple(jnp.asarray(stage, "float32") for stage in stages),
  )


def examples_of(
  outputs,
  labels,
  context,
  state_of_class,
  *,
  teacher=None,
  positions=None,
  records=None,
  counted=None,
  pixels=None,
  classify=None,
  own=None,
  replayed=None,
  expert=None,
  unlabeled=None,
):
  """Examples whose class counts are those of `counted`, by default of `labels`."""
  labels = np.asarray(labels, np.int32)
  counted = labels if counted is None else counted
  positions = np.arange(len(labels)) if positions is None else positions
  records = np.zeros(len(labels)) if records is None else records
  counts = np.bincount(counted, minlength=outputs.logits.shape[-1])
  return Examples(
    labels=jnp.asarray(labels),
    positions=jnp.asarray(positions, jnp.int32),
    records=jnp.asarray(records, jnp.int32),
    outputs=outputs,
    teacher=teacher,
    context=context,
    class_counts=jnp.asarray(counts, jnp.float32),
    state_of_class=np.asarray(state_of_class, np.int32),
    pixels=pixels,
    keys=jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), positions),
    classify=classify,
    own=own,
    replayed=replayed,
    expert=expert,
    unlabeled=unlabeled,
  )


def memory_of(records_of_class):
  """The exemplars of classes 0, 1, ..., the dearest first."""
  records, labels, ranks = [], [], []
  for label, of_class in enumerate(records_of_class):
    for rank, record in enumerate(of_class):
      records.append(record)
      labels.append(label)
      ranks.append(rank)
  return Memory(
    np.asarray(records, np.int64), np.asarray(labels, np.int32), np.asarray(ranks, np.int32)
  )


@functools.cache
def jitted(function):
  return jax.jit(function, static_argnums=3)


def finished_of(
  config,
  *,
  num_old,
  num_seen,
  labels,
  stats,
  memory,
  pool=None,
  num_first=None,
  train=None,
  test=None,
  test_labels=(),
  params=None,
  carried=None,
  own=None,
  total=None,
):
  """A FinishedState whose extract reads `train` and `test`, the Outputs of all records."""
  labels, test_labels = (np.asarray(x, np.int32) for x in (labels, test_labels))
  context = context_of(num_old, num_seen, stats=stats)

  def extract(records, output_fn, *, test=False):
    outputs, own = (of_test, test_labels) if test else (train, labels)
    # Of all records, so that it is compiled once.
    found = jitted(output_fn)(outputs, own, context, config)
    return jax.tree.map(lambda x: np.asarray(x)[records], found)

  of_test = test
  return FinishedState(
    num_first=num_seen if num_first is None else num_first,
    num_old=num_old,
    num_seen=num_seen,
    pool=Pool(np.zeros(0, np.int64), np.zeros(0, np.int64)) if pool is None else pool,
    labels=labels,
    test_labels=test_labels,
    memory=memory,
    stats=stats,
    params=params,
    carried=carried,
    own=own,
    extract=extract,
    total=total,
    check_interrupt=lambda: None,
  )
