"""One training step of SS-IL beside the same in PyTorch, in images per second.

  python benchmarks/step.py --sizes=32 --precisions=float32 --json=FILE

The bare compiled step of a later state, as runs do it: ResNet-18, augmentation on the
device, separated softmax, SGD with Nesterov's momentum. PyTorch has the same network,
values, images and batches (`torch_peer.py`), eager and compiled, of which the faster one
counts. Both take turns, `--rounds` times. The images are invented.
"""

import argparse
import functools
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import measured
import numpy as np

import ssil_jax
from ssil_jax.data.dataset import LARGEST_RESIDENT, Batch
from ssil_jax.losses import separated_softmax_cross_entropy
from ssil_jax.resnet import ResNet18
from ssil_jax.system import keep_freed_memory
from ssil_jax.training import devices, loop, torch_names
from ssil_jax.training.plan import make_plan
from ssil_jax.training.session import Session, make_session
from ssil_jax.training.speed import begin_second_state

RATE = 0.01


class Ours(NamedTuple):
  """A session in its second state, and a batch."""

  session: Session
  run: Any
  step: Callable[[], None]
  wait: Callable[[], None]
  batch: Batch  # host arrays [devices, share, ...]
  cost: Callable[[], dict[str, float]]  # see `Devices.train_step_cost`


def ours(args: argparse.Namespace, size: int, precision: str) -> Ours:
  """Returns our step; the first call compiles it."""
  config = ssil_jax.make_config(
    num_states=2,
    memory_size=args.classes * 5,
    image_size=size,
    width=args.width,
    precision=precision,
    batch_size_new=args.new,
    batch_size_memory=args.memory,
    num_devices=args.devices,
    steps_per_dispatch=args.steps_per_dispatch,
    epochs=1,
    epochs_first=1,
  )
  per_class = -(-2 * args.new // args.classes) + 5
  dataset = measured.generated(num_classes=args.classes, train=per_class, test=1, size=size)
  plan = make_plan(config, dataset)
  session = make_session(plan, devices.choose_devices(config))
  state, phase, run = begin_second_state(session)
  if size <= LARGEST_RESIDENT:
    batch = loop.train_batches(session, state, phase, run)[0]
  else:
    batch = _streamed(args, size, session.devices.size)
  at_once = session.devices.steps_at_once
  work = batch, np.full(session.devices.size, RATE, np.float32)
  if at_once > 1:
    work = jax.tree.map(lambda x: np.stack([x] * at_once, axis=1), work)
  on_devices, learning_rate = session.devices.shard(work)
  train_state, context = session.devices.replicate(
    (run.train_state, loop.training_context(session, state, phase, run))
  )

  def step() -> None:
    nonlocal train_state
    train_state, _ = session.devices.train_step(
      train_state, on_devices, context, learning_rate, later=True
    )

  def cost() -> dict[str, float]:
    return session.devices.train_step_cost(
      *(train_state, on_devices, context, learning_rate), later=True
    )

  return Ours(session, run, step, lambda: jax.block_until_ready(train_state), batch, cost)


def _streamed(args: argparse.Namespace, size: int, num_devices: int) -> Batch:
  """Returns a batch that holds its images; old classes are the first half."""
  half, share = args.classes // 2, (args.new + args.memory) // num_devices
  labels = np.concatenate(
    [np.arange(args.new) % half + half, np.arange(args.memory) % half]
  )
  parts = np.split(labels, [args.new])
  labels = np.hstack([part.reshape(num_devices, -1) for part in parts]).astype(np.int32)
  images = measured.generated_images(labels.size, size, labels.ravel(), seed=1)
  places = np.arange(labels.size, dtype=np.int32).reshape(labels.shape)
  return Batch(
    images.reshape(num_devices, share, *images.shape[1:]), labels, places, places
  )


def peers(args: argparse.Namespace, size: int, precision: str, own: Ours) -> dict:
  """Returns PyTorch's steps by name: those that compile it, and one that does not."""
  import torch
  import torch_peer

  state, dataset = own.run.train_state, own.session.plan.dataset
  variables = {"params": state.params, "batch_stats": state.batch_stats}
  weights = torch_names.to_torch(variables, steps=0)
  head = state.params["head"]
  weights |= {"fc.weight": np.transpose(head["kernel"]), "fc.bias": head["bias"]}
  inputs, labels = (
    x.reshape(-1, *x.shape[2:]) for x in (own.batch.inputs, own.batch.labels)
  )
  found = {}
  for name in args.torch:
    trainer = torch_peer.Trainer(
      num_classes=args.classes,
      width=args.width,
      size=size,
      bfloat16=precision == "bfloat16",
      compiled=None if name == "eager" else name,
      images=dataset.train.images,
      pad=dataset.augmentation.max_shift,
      weights=weights,
    )
    trainer.set_learning_rate(RATE)
    batch = (
      trainer.put(inputs.astype(np.int64) if inputs.ndim == 1 else inputs),
      trainer.put(labels.astype(np.int64)),
      torch.tensor([args.classes // 2, args.classes], device=trainer.device),
    )
    found[name] = functools.partial(trainer.step, *batch), trainer.wait
    if name == args.torch[0]:
      pixels = dataset.train.images[inputs] if inputs.ndim == 1 else inputs
      check_same_loss(own, variables, pixels, labels, trainer.loss_of(pixels, *batch[1:]))
  return found


def check_same_loss(
  own: Ours, variables: Any, pixels: np.ndarray, labels: np.ndarray, theirs: float
) -> None:
  """Raises ValueError if the network or the loss of PyTorch is another one."""
  plan = own.session.plan
  config, num_classes = plan.config, len(plan.dataset.class_names)
  plain = ResNet18(
    num_classes, width=config.width, small_images=pixels.shape[1] <= LARGEST_RESIDENT
  )
  outputs, _ = jax.jit(functools.partial(plain.apply, train=True, mutable=["batch_stats"]))(
    variables, pixels.astype(np.float32) / 255
  )
  losses = separated_softmax_cross_entropy(
    outputs.logits, labels, num_classes // 2, num_classes
  )
  mine, rounding = float(np.mean(losses)), 0.02 if config.precision == "bfloat16" else 1e-4
  if abs(mine - theirs) > rounding * mine:
    raise ValueError(f"the loss is {mine} here and {theirs} in PyTorch")


def measure(args: argparse.Namespace, size: int, precision: str) -> dict[str, Any]:
  """Returns a row of the table."""
  own = ours(args, size, precision)
  images = args.new + args.memory
  row = {"px": size, "precision": precision, "batch": images, "width": args.width}
  clock = functools.partial(measured.rate, seconds=args.seconds, images=images)
  timed = {"ssil_jax": (own.step, own.wait)}
  if args.torch:
    timed |= peers(args, size, precision, own)
  for step, wait in timed.values():
    step()  # compiles
    wait()
  if args.torch:
    several = len(args.torch) > 1
    first = {name: clock(*timed[name]) for name in args.torch if several}
    best = max(first, key=first.get, default=args.torch[0])
    timed = {"ssil_jax": timed["ssil_jax"], best: timed[best]}
  rates = {name: [] for name in timed}
  for _ in range(args.rounds):
    for name, (step, wait) in timed.items():
      rates[name].append(clock(step, wait))
  # A call does several steps on accelerators.
  at_once = own.session.devices.steps_at_once
  rates["ssil_jax"] = [at_once * rate for rate in rates["ssil_jax"]]
  row |= {"ssil_jax, img/s": float(np.median(rates["ssil_jax"]))}
  if args.torch:
    row |= {
      "PyTorch, img/s": float(np.median(rates[best])),
      "which": best,
      "ssil_jax / PyTorch": measured.told(measured.ratio(*rates.values())),
      "others": [first],
    }
  if args.cost:
    row |= {"cost": [own.cost()]}
  return row | {"environment": [own.session.devices.describe()], "rates": [rates]}


def add_flags(parser: argparse.ArgumentParser, *, width: int) -> None:
  """Adds what `ours` and all clocks of a step need."""
  parser.add_argument("--width", type=int, default=width)
  parser.add_argument("--new", type=int, default=128, help="images of new classes")
  parser.add_argument("--memory", type=int, default=32, help="exemplars in a batch")
  parser.add_argument("--devices", type=int, default=0)
  parser.add_argument("--steps_per_dispatch", type=int, default=0)
  parser.add_argument("--seconds", type=float, default=5.0, help="of each turn")


def prepare(args: argparse.Namespace, *, keeps_memory: bool = True) -> None:
  """Readies the CPU for the batches of `add_flags`, for PyTorch, too."""
  if keeps_memory:
    keep_freed_memory()
  devices.prepare_cpu_devices(
    ssil_jax.make_config(
      batch_size_new=args.new, batch_size_memory=args.memory, num_devices=args.devices
    )
  )


def main(argv: Sequence[str]) -> None:
  words = lambda kind: lambda text: [kind(word) for word in text.split(",") if word]  # noqa: E731
  parser = measured.parser(__doc__)
  parser.add_argument("--sizes", type=words(int), default=[32, 224])
  parser.add_argument("--precisions", type=words(str), default=["float32", "bfloat16"])
  parser.add_argument("--torch", type=words(str), default=["eager", "default"])
  parser.add_argument("--classes", type=int, default=100)
  parser.add_argument("--cost", action="store_true", help="say what XLA counts, too")
  add_flags(parser, width=64)
  args = parser.parse_args(argv)
  prepare(args)
  rows = [measure(args, size, kind) for size in args.sizes for kind in args.precisions]
  environment = rows[-1]["environment"][0]
  if args.torch:
    import torch

    environment |= {"torch": torch.__version__, "torch_threads": torch.get_num_threads()}
  rows = [{n: v for n, v in row.items() if n != "environment"} for row in rows]
  measured.show("A training step", rows, environment=environment, file=args.json)


if __name__ == "__main__":
  main(sys.argv[1:])
