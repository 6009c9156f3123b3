"""The network's arrays under the names, and in the layout, of torchvision's ResNet-18.

timm's ResNet-18 has the same names. Convolutions are [out, in, height, width] there, and
[height, width, in, out] in Flax; of a linear layer the two dimensions change places.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

HEAD = ("fc.weight", "fc.bias")
# A count of BatchNorm's updates, which torchvision saves and nothing here needs.
COUNTER = "num_batches_tracked"
# Axes of a convolution's kernel.
_TO_TORCH, _FROM_TORCH = (3, 2, 0, 1), (2, 3, 1, 0)
_MODULES = {
  "stem_conv": "conv1",
  "stem_norm": "bn1",
  "norm1": "bn1",
  "norm2": "bn2",
  "project_conv": "downsample.0",
  "project_norm": "downsample.1",
}
_ARRAYS = {
  "kernel": "weight",
  "scale": "weight",
  "mean": "running_mean",
  "var": "running_var",
}


def to_torch(variables: Mapping[str, Any], *, steps: int) -> dict[str, np.ndarray]:
  """Returns a network without its head by the names of torchvision.

  Args:
    variables: {"params", "batch_stats"}, host arrays.
    steps: of training, which is what BatchNorm counts.
  """
  tensors = {}
  for name, array in _backbone(variables):
    turned = np.transpose(array, _TO_TORCH) if array.ndim == 4 else array
    tensors[name] = np.ascontiguousarray(turned)
    if name.endswith("running_var"):
      counter = name.replace("running_var", COUNTER)
      tensors[counter] = np.array(steps, np.int64)
  return tensors


def shapes(variables: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
  """Returns those of `to_torch`, without counters, of anything that has shapes."""
  found = {}
  for name, leaf in _backbone(variables):
    axes = _TO_TORCH if len(leaf.shape) == 4 else range(len(leaf.shape))
    found[name] = tuple(leaf.shape[axis] for axis in axes)
  return found


def from_torch(
  variables: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> dict[str, Any]:
  """Returns `variables` with the arrays of a backbone, which fit; the head stays."""

  def take(name: str, leaf: Any) -> np.ndarray:
    tensor = tensors[name]
    turned = np.transpose(tensor, _FROM_TORCH) if tensor.ndim == 4 else tensor
    return np.ascontiguousarray(turned)

  return _map_backbone(take, variables)


def _map_backbone(change: Callable[[str, Any], Any], variables: Any) -> Any:
  def one(path: tuple[Any, ...], leaf: Any) -> Any:
    _, *modules, array = (key.key for key in path)
    if modules[0] == "head":
      return leaf
    return change(".".join([*map(_module, modules), _ARRAYS.get(array, array)]), leaf)

  whole = {name: variables[name] for name in ("params", "batch_stats")}
  return jax.tree_util.tree_map_with_path(one, whole)


def _backbone(variables: Any) -> Iterator[tuple[str, Any]]:
  found = []
  _map_backbone(lambda name, leaf: found.append((name, leaf)), variables)
  yield from found


def _module(name: str) -> str:
  if block := re.fullmatch(r"stage(\d)_block(\d)", name):
    return f"layer{block[1]}.{int(block[2]) - 1}"
  return _MODULES.get(name, name)
