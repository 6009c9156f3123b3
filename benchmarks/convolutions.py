"""A step's convolutions by shape, ours beside jax's and PyTorch's, on a CPU.

  python benchmarks/convolutions.py --rounds=5 --json=FILE

ResNet-18 of width 64 at 32 pixels but for its stem, 160 images, float32: milliseconds of
the forward pass, of the gradient of the images, and of that of the kernel, as jax derives
it, as `ssil_jax.convolution` has it, and as PyTorch has it. All take turns, on all cores:
jax's with a share of the batch for each of its devices.
"""

import argparse
import functools
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import measured
import numpy as np

import ssil_jax
from ssil_jax import convolution
from ssil_jax.system import cpu_name, keep_freed_memory, source_commit
from ssil_jax.training import devices

BATCH = 160
DIMENSIONS = ("NHWC", "HWIO", "NHWC")


class Shape(NamedTuple):
  """A convolution with zeros around the image, and how many of them the network has."""

  px: int  # of the images that go in
  channels: int
  filters: int
  window: int
  stride: int
  count: int

  @property
  def padding(self) -> int:
    return self.window // 2

  @property
  def flop(self) -> int:
    """Returns those of a pass, zeros around the images included."""
    pixels = (self.px // self.stride) ** 2
    return 2 * BATCH * pixels * self.filters * self.window**2 * self.channels


SHAPES = (
  Shape(32, 64, 64, 3, 1, 4),
  Shape(32, 64, 128, 3, 2, 1),
  Shape(32, 64, 128, 1, 2, 1),
  Shape(16, 128, 128, 3, 1, 3),
  Shape(16, 128, 256, 3, 2, 1),
  Shape(8, 256, 256, 3, 1, 3),
  Shape(16, 128, 256, 1, 2, 1),
  Shape(8, 256, 512, 3, 2, 1),
  Shape(8, 256, 512, 1, 2, 1),
  Shape(4, 512, 512, 3, 1, 3),
)


def of_jax(shape: Shape, arrays: Sequence[np.ndarray]) -> dict[str, Callable[[], Any]]:
  """Returns passes by name; arrays are images, kernel, and the gradient of the result."""
  pads, strides = [(shape.padding,) * 2] * 2, (shape.stride,) * 2

  def plain(images, kernel):
    return jax.lax.conv_general_dilated(
      images, kernel, strides, pads, dimension_numbers=DIMENSIONS
    )

  def ours(images, kernel):
    # What flax.linen.Conv hands over.
    dilations = {"lhs_dilation": (1, 1), "rhs_dilation": (1, 1)}
    numbers = jax.lax.conv_dimension_numbers(images.shape, kernel.shape, DIMENSIONS)
    options = dilations | {"dimension_numbers": numbers, "feature_group_count": 1}
    return convolution.convolve(images, kernel, strides, pads, **options)

  def gradient(function, place):
    def of(images, kernel, gradient):
      _, pull_back = jax.vjp(function, images, kernel)
      return pull_back(gradient)[place]

    return of

  found = {
    "forward": lambda images, kernel, _: plain(images, kernel),
    "images": gradient(plain, 0),
    "kernel, jax": gradient(plain, 1),
    "kernel, ours": gradient(ours, 1),
  }
  images, kernel, out = arrays
  count = jax.device_count()
  shares = [x.reshape(count, -1, *x.shape[1:]) for x in (images, out)]
  kernels = np.broadcast_to(kernel, (count, *kernel.shape))
  spread = jax.pmap(lambda *x: x)(shares[0], kernels, shares[1])
  passes = {}
  for name, function in found.items():
    mapped = jax.pmap(function)
    passes[name] = functools.partial(lambda f: jax.block_until_ready(f(*spread)), mapped)
  return passes


def of_torch(shape: Shape, arrays: Sequence[np.ndarray]) -> dict[str, Callable[[], Any]]:
  """Returns passes by name, channels last; arrays as for `of_jax`."""
  import torch
  import torch.nn.functional as F

  images, kernel, out = (
    torch.from_numpy(x.transpose(order).copy()).contiguous(
      memory_format=torch.channels_last
    )
    for x, order in zip(arrays, ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)), strict=True)
  )
  sizes = [shape.stride] * 2, [shape.padding] * 2, [1, 1]

  def backward(*wanted):
    return torch.ops.aten.convolution_backward(
      *(out, images, kernel, None, *sizes, False, [0, 0], 1, wanted)
    )

  return {
    "forward, torch": lambda: F.conv2d(images, kernel, None, *sizes),
    "images, torch": lambda: backward(True, False, False),
    "kernel, torch": lambda: backward(False, True, False),
  }


def measure(args: argparse.Namespace, shape: Shape) -> dict[str, Any]:
  """Returns a row of the table: medians in milliseconds."""
  rng, after = np.random.default_rng(0), shape.px // shape.stride
  arrays = [
    rng.normal(size=size).astype(np.float32)
    for size in (
      (BATCH, shape.px, shape.px, shape.channels),
      (shape.window, shape.window, shape.channels, shape.filters),
      (BATCH, after, after, shape.filters),
    )
  ]
  passes = of_jax(shape, arrays) | of_torch(shape, arrays)
  seconds = {name: [] for name in passes}
  for turn in range(args.rounds + 1):
    for name, call in passes.items():
      started = time.perf_counter()
      call()
      if turn:  # the first one compiles
        seconds[name].append(time.perf_counter() - started)
  of = f"{shape.px} px, {shape.channels} to {shape.filters}, {shape.window}x{shape.window}"
  row = {"convolution": of + (f" / {shape.stride}" if shape.stride > 1 else "")}
  row |= {"of them": shape.count, "GFLOP": shape.flop / 1e9}
  for name in ("forward", "images", "kernel"):
    for what, times in seconds.items():
      if what.startswith(name):
        row[what] = 1e3 * statistics.median(times)
  for peer in ("jax", "torch"):
    ratios = measured.ratio(seconds[f"kernel, {peer}"], seconds["kernel, ours"])
    row[f"speed / {peer}"] = measured.told(ratios)
  return row | {"seconds": [seconds]}


def main(argv: Sequence[str]) -> None:
  args = measured.parser(__doc__, rounds=5).parse_args(argv)
  peer = measured.torch_environment()  # fails here if it is not there
  keep_freed_memory()
  devices.prepare_cpu_devices(ssil_jax.make_config())
  rows = [measure(args, shape) for shape in SHAPES]
  total = {"convolution": "all", "of them": sum(shape.count for shape in SHAPES)}
  for name in list(rows[0])[2:]:
    if isinstance(rows[0][name], float):
      total[name] = sum(row["of them"] * row[name] for row in rows)
    elif name != "seconds":
      total[name] = ""
  environment = {
    "cpu": cpu_name(),
    "commit": source_commit(),
    "jax": jax.__version__,
    "devices": jax.device_count(),
    **peer,
  }
  title = f"Milliseconds for {BATCH} images"
  measured.show(title, [*rows, total], environment=environment, file=args.json)


if __name__ == "__main__":
  main(sys.argv[1:])
