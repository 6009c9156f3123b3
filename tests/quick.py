"""A network in place of ResNet-18 that compiles in a fraction of the time.

As a script, it is experiments/run.py with that network.
"""

import contextlib
import functools
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import flax.linen as nn
import pytest

from ssil_jax import resnet
from ssil_jax.commands import execute


class QuickBlock(nn.Module):
  """Stands in for ResNet-18's block."""

  channels: int
  strides: int
  final_relu: bool
  conv: functools.partial
  norm: functools.partial

  @nn.compact
  def __call__(self, x):
    if x.shape[-1] != self.channels:
      # Pooled, for a strided convolution of 1x1 would see a corner of the image.
      x = nn.avg_pool(x, (self.strides,) * 2, strides=(self.strides,) * 2)
      x = self.conv(self.channels, (1, 1), name="conv1")(x)
    return nn.relu(x) if self.final_relu else self.norm(name="norm1")(x)


@contextlib.contextmanager
def quick_network():
  """Runs train a network of one stem, a few 1x1 convolutions and the real heads."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(resnet, "BasicBlock", QuickBlock)
    yield patch


if __name__ == "__main__":
  with quick_network():
    execute("run")
