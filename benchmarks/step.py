"""One training step of SS-IL beside the same in PyTorch, in images per second.

  python benchmarks/step.py --sizes=32 --precisions=float32 --json=FILE

The bare compiled step of a later state, as runs do it: ResNet-18, augmentation on the
device, separated softmax, SGD with Nesterov's momentum. PyTorch has the same network,
values, images and batches (`torch_peer.py`), eager and compiled, of which the fastest
counts. Both take turns, `--rounds` times. The images are invented.
"""

import argparse
import functools
import importlib.util
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import measured
import numpy as np
from jax.sharding import Mesh

import ssil_jax
from ssil_jax.data.dataset import LARGEST_RESIDENT, Batch
from ssil_jax.losses import separated_softmax_cross_entropy
from ssil_jax.resnet import ResNet18
from ssil_jax.system import keep_freed_memory
from ssil_jax.training import devices, loop, torch_names
from ssil_jax.training.plan import make_plan
from ssil_jax.training.session import Session, make_session
from ssil_jax.training.speed import begin_second_state
from ssil_jax.training.step import AXIS

RATE = 0.01
WARM_UP = 4  # calls: of PyTorch's CUDA graphs the second one is recorded
PRECISIONS = "float32", "bfloat16"
# Of PyTorch: without torch.compile, and its modes.
TORCH = "eager", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"


class Ours(NamedTuple):
  """A session in its second state, and a batch."""

  session: Session
  run: Any
  step: Callable[[], None]
  wait: Callable[[], None]
  batch: Batch  # host arrays [devices, share, ...]
  cost: Callable[[], dict[str, float]]

  @property
  def images(self) -> int:
    """Returns those of a call of `step`, which does several steps on accelerators."""
    return self.batch.labels.size * self.session.devices.steps_at_once


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
    return cost_of(session, (train_state, on_devices, context, learning_rate))

  return Ours(session, run, step, lambda: jax.block_until_ready(train_state), batch, cost)


def cost_of(session: Session, args: Any) -> dict[str, float]:
  """Returns what XLA counts for a step of all devices; several in a call count once.

  Empty, and says why, where jax has no CPU beside an accelerator.

  Args:
    session: whose step it is.
    args: what it is called with.

  Returns:
    flops: of the program as it is written for a GPU. It is lowered on the CPU, for with
      the plugins of accelerators jax counts none, and CPUs' own has loops, of which XLA
      counts one turn.
    bytes: that the compiled program reads and writes; on a GPU perhaps without those of
      cuDNN's convolutions, and then less than there are.
  """
  compiled = session.devices.lower_train_step(*args, later=True).compile()
  moved = (compiled.cost_analysis() or {}).get("bytes accessed", 0)
  try:
    cpu = Mesh(np.asarray(jax.devices("cpu")[:1]), (AXIS,))
  except RuntimeError as error:
    print(f"no FLOP are counted: {error}")
    return {}
  step = make_session(session.plan, cpu).devices.mapped_train_step(later=True)
  images = session.plan.dataset.train.images
  images = None if images is None else jax.ShapeDtypeStruct((1, *images.shape), np.uint8)
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), args)
  traced = jax.jit(lambda *args: step(*args)).trace(*shapes, images)
  flops = traced.lower(lowering_platforms=("cuda",)).cost_analysis()["flops"]
  return {
    name: session.devices.size * x for name, x in (("flops", flops), ("bytes", moved))
  }


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

  torch.compiler.reset()  # what other rows left would count as variants of the same
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
  """Raises ValueError if the network or the loss of PyTorch is another one.

  `theirs` is that of the pixels, of which each is one 255th, without TF32.
  """
  plan = own.session.plan
  config, num_classes = plan.config, len(plan.dataset.class_names)
  plain = ResNet18(
    num_classes, width=config.width, small_images=pixels.shape[1] <= LARGEST_RESIDENT
  )
  apply = functools.partial(plain.apply, train=True, mutable=["batch_stats"])
  with jax.default_matmul_precision("highest"):
    outputs, _ = jax.jit(apply)(variables, pixels.astype(np.float32) / 255)
  losses = separated_softmax_cross_entropy(
    outputs.logits, labels, num_classes // 2, num_classes
  )
  mine, rounding = float(np.mean(losses)), 0.02 if config.precision == "bfloat16" else 1e-4
  if abs(mine - theirs) > rounding * mine:
    raise ValueError(f"the loss is {mine} here and {theirs} in PyTorch")


def measure(args: argparse.Namespace, size: int, precision: str) -> dict[str, Any]:
  """Returns a row of the table."""
  own = ours(args, size, precision)
  row = {"px": size, "precision": precision, "batch": own.batch.labels.size}
  row |= {"width": args.width}
  # Of each its step, what waits for it, and the images of a call.
  timed = {"ssil_jax": (own.step, own.wait, own.images)}
  if args.one_by_one:
    options = argparse.Namespace(**vars(args) | {"steps_per_dispatch": 1})
    single = ours(options, size, precision)
    timed["one by one"] = single.step, single.wait, single.images
  if args.torch:
    theirs = peers(args, size, precision, own)
    timed |= {name: (*calls, own.batch.labels.size) for name, calls in theirs.items()}
  failed = {}
  for name, (step, wait, _) in list(timed.items()):
    try:
      for _ in range(WARM_UP):
        step()
        wait()
    except Exception as error:  # whatever torch.compile may raise
      if name not in args.torch:
        raise
      failed[name] = f"{type(error).__name__}: {error}"
      print(f"PyTorch, {name}, does not run: {failed[name]}", flush=True)
      del timed[name]

  def clock(name: str) -> float:
    step, wait, images = timed[name]
    return measured.rate(step, wait, seconds=args.seconds, images=images)

  modes = [name for name in args.torch if name in timed]
  if args.torch and not modes:
    raise SystemExit("none of PyTorch's ways runs here: --torch= goes without")
  first = {name: clock(name) for name in modes if len(modes) > 1}
  best = max(first, key=first.get, default=modes[0] if modes else None)
  compared = [name for name in timed if name not in modes or name == best]
  rates = {name: [] for name in compared}
  for _ in range(args.rounds):
    for name in compared:
      rates[name].append(clock(name))

  def beside(name: str) -> str:
    return measured.told(measured.ratio(rates["ssil_jax"], rates[name]))

  row["ssil_jax, img/s"] = float(np.median(rates["ssil_jax"]))
  if best:
    row |= {
      "PyTorch, img/s": float(np.median(rates[best])),
      "which": best,
      "ssil_jax / PyTorch": beside(best),
      "others": [first, failed],
    }
  if args.one_by_one:
    row |= {
      "steps in a dispatch": own.session.devices.steps_at_once,
      "ssil_jax / one by one": beside("one by one"),
    }
  return (
    row
    | {"cost": [own.cost()] if args.cost else []}
    | {"environment": [own.session.devices.describe()], "rates": [rates]}
  )


def add_flags(parser: argparse.ArgumentParser, *, width: int) -> None:
  """Adds what `ours` and all clocks of a step need."""
  parser.add_argument("--width", type=int, default=width)
  parser.add_argument("--new", type=int, default=128, help="images of new classes")
  parser.add_argument("--memory", type=int, default=32, help="exemplars in a batch")
  parser.add_argument("--devices", type=int, default=0)
  parser.add_argument("--steps_per_dispatch", type=int, default=0)
  parser.add_argument("--seconds", type=float, default=5.0, help="of each turn")


def prepare(args: argparse.Namespace, *, keeps_memory: bool = True) -> None:
  """Readies the CPU for the batches of `add_flags`, for PyTorch, too.

  Raises SystemExit if the devices cannot share them.
  """
  if args.devices and (args.new % args.devices or args.memory % args.devices):
    raise SystemExit(
      f"--devices={args.devices} cannot share --new={args.new} and --memory={args.memory}: "
      "give multiples of it"
    )
  if keeps_memory:
    keep_freed_memory()
  devices.prepare_cpu_devices(
    ssil_jax.make_config(
      batch_size_new=args.new, batch_size_memory=args.memory, num_devices=args.devices
    )
  )


def one_of(known: Sequence[str], text: str) -> str:
  """Returns a flag's word; raises what argparse tells the user."""
  if text not in known:
    raise argparse.ArgumentTypeError(f"{text!r}: known are {', '.join(known)}")
  return text


def some_of(known: Sequence[str], text: str) -> list[str]:
  """Returns the words of a flag with commas between them, none of an empty one."""
  return [one_of(known, word) for word in text.split(",") if word]


def torch_ways(text: str) -> list[str]:
  """Returns those of a flag, if PyTorch is there; else raises what argparse tells."""
  ways = some_of(TORCH, text)
  if ways and not importlib.util.find_spec("torch"):
    raise argparse.ArgumentTypeError("PyTorch is not installed: --torch= goes without")
  return ways


def add_torch_flag(parser: argparse.ArgumentParser, default: str) -> None:
  parser.add_argument(
    "--torch",
    type=torch_ways,
    default=default,
    help=f"PyTorch's ways, of {', '.join(TORCH)} (default: {default})",
  )


def main(argv: Sequence[str]) -> None:
  parser = measured.parser(__doc__)
  sizes = lambda text: [int(word) for word in text.split(",")]  # noqa: E731
  precisions = functools.partial(some_of, PRECISIONS)
  parser.add_argument("--sizes", type=sizes, default=[32, 224])
  parser.add_argument("--precisions", type=precisions, default=PRECISIONS)
  add_torch_flag(parser, "eager,default")
  parser.add_argument("--classes", type=int, default=100)
  parser.add_argument(
    "--one_by_one", action="store_true", help="time one step in a dispatch, too"
  )
  parser.add_argument("--cost", action="store_true", help="say what XLA counts, too")
  add_flags(parser, width=64)
  args = parser.parse_args(argv)
  prepare(args)
  rows = []
  for size in args.sizes:
    for precision in args.precisions:
      rows.append(measure(args, size, precision))
      environment = rows[-1].pop("environment")[0]
      if args.torch:
        environment |= measured.torch_environment()
      # After each row: a later one may never end.
      measured.show("A training step", rows, environment=environment, file=args.json)


if __name__ == "__main__":
  main(sys.argv[1:])
