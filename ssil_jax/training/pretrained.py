"""Weights that the first state starts from (`--init_from`): a ResNet-18 without its head.

They come from a .safetensors file with the names of torchvision's or timm's ResNet-18, or
from the model in another work directory. The head is drawn as always. Images are normalized
as they were where the weights come from, or as ImageNet's if a file does not say.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from ssil_jax import config as config_lib
from ssil_jax.data.dataset import LARGEST_RESIDENT
from ssil_jax.data.images.augment import IMAGENET_NORMALIZATION, Normalization
from ssil_jax.errors import ConfigError
from ssil_jax.paths import real_path, run_mistakes
from ssil_jax.resnet import ResNet18
from ssil_jax.training import model_files, torch_names
from ssil_jax.training.plan import Plan
from ssil_jax.training.run_state import TrainState

_FLOATS = ("F32", "F16", "BF16")
_MOST_BYTES = 1 << 31  # of a file; a ResNet-18 of width 64 has 45 MB
_SHOWN = 4  # tensors that are named of each kind
_WANTED = "give a .safetensors file of a ResNet-18, or the work directory of a run"


class Weights(NamedTuple):
  """A backbone that fits the network of a run.

  Attributes:
    tensors: float32 arrays by the names of torchvision, without the head.
    normalization: of the images that it was trained on; None for pixels from 0 to 1.
    digest: a hash of all that.
  """

  tensors: Mapping[str, np.ndarray]
  normalization: Normalization | None
  digest: str

  def normalized(self, plan: Plan) -> Plan:
    """Returns the plan, with images as these weights expect them."""
    dataset = plan.dataset._replace(normalization=self.normalization)
    return plan._replace(dataset=dataset)

  def into(self, initial: TrainState) -> TrainState:
    """Returns the state before any training with these weights; the head is its own."""
    variables = {"params": initial.params, "batch_stats": initial.batch_stats}
    return initial.replace(**torch_names.from_torch(variables, self.tensors))

  def parts(self) -> dict[str, str]:
    """Returns what tells runs apart that start from other weights."""
    return {"weights of --init_from": self.digest}


def read(plan: Plan) -> Weights | None:
  """Reads the weights of `--init_from`, or returns None without the flag.

  Raises:
    ConfigError: they cannot be read, are not all finite, or do not fit the network of the
      run: what is missing, unexpected or of another shape is named.
    WorkdirError: the work directory that is given has no model, or a damaged one.
  """
  config = plan.config
  if not config.init_from:
    return None
  flag, path = f"--init_from={config.init_from}", real_path(config.init_from)
  if os.path.isdir(path):
    if path == config_lib.workdir_path(config):
      raise ConfigError(f"{flag} is --workdir itself: give another one")
    found, numbers = _of_workdir(config.init_from, path)
  elif os.path.isfile(path):
    found, numbers = _of_file(flag, path)
  else:
    raise ConfigError(f"{flag} is neither a file nor a folder: {_WANTED}")
  normalization = _normalization(flag, numbers)
  _check_fit(flag, found, _expected(plan), plan.dataset.image_size)
  for name, tensor in found.items():
    if not np.isfinite(tensor).all() or (name.endswith("running_var") and tensor.min() < 0):
      kind = "negative variances" if np.isfinite(tensor).all() else "NaN or infinity"
      raise ConfigError(f"{flag}: {name} has {kind}: give a file of a sound network")
  digest = hashlib.blake2b(repr(normalization).encode(), digest_size=16)
  for name, tensor in sorted(found.items()):
    digest.update(f"{name}{tensor.shape}".encode())
    digest.update(tensor.tobytes())
  return Weights(found, normalization, digest.hexdigest())


def _of_workdir(given: str, folder: pathlib.Path) -> tuple[dict[str, np.ndarray], Any]:
  """Returns the tensors, and the mean and std of images; see `_normalization`."""
  if mistakes := run_mistakes("init_from", given):
    raise ConfigError(mistakes[0])
  card = model_files.read_card(folder)
  row, known = card["states"][-1], card["preprocessing"]
  saved = model_files.read_network(folder, row["state"], row["network_crc32"])
  tensors = torch_names.to_torch(saved, steps=0)
  taken = {name: t for name, t in tensors.items() if not _is_left_out(name)}
  return taken, [known.get(name) for name in ("mean", "std")]


def _of_file(flag: str, path: pathlib.Path) -> tuple[dict[str, np.ndarray], Any]:
  """Returns the tensors, and the mean and std of images; see `_normalization`."""
  try:
    with open(path, "rb") as file:
      start = file.read(9)
      size = os.fstat(file.fileno()).st_size
    if start[:2] == b"PK" or (start[:1] == b"\x80" and start[8:] != b"{"):
      raise ConfigError(
        f"{flag} is a file of torch.save, a pickle, which may run code when it is read: "
        "convert it: safetensors.torch.save_file(torch.load(FILE, weights_only=True), "
        "'FILE.safetensors')"
      )
    if size > _MOST_BYTES:
      raise ConfigError(f"{flag} has {size} bytes, too many for a ResNet-18: {_WANTED}")
    with safetensors.safe_open(path, framework="numpy") as file:
      found = {}
      for name in file.keys():  # noqa: SIM118 - it is no dictionary
        if _is_left_out(name):
          continue
        if (dtype := file.get_slice(name).get_dtype()) not in _FLOATS:
          raise ConfigError(
            f"{flag}: {name} is of type {dtype}, and none of {', '.join(_FLOATS)}: "
            "convert it to float32"
          )
        found[name] = np.asarray(file.get_tensor(name)).astype(np.float32)
      metadata = file.metadata() or {}
      if not {"mean", "std"} & metadata.keys():
        return found, [IMAGENET_NORMALIZATION.mean, IMAGENET_NORMALIZATION.std]
      return found, [json.loads(metadata.get(name, "0")) for name in ("mean", "std")]
  except (ValueError, RecursionError) as error:
    raise ConfigError(f"{flag}: mean and std in its metadata are no numbers") from error
  except OSError as error:
    raise ConfigError(
      f"{flag} cannot be read ({error.strerror or error}): {_WANTED}"
    ) from error
  except safetensors.SafetensorError as error:
    raise ConfigError(f"{flag} is no safetensors file ({error}): {_WANTED}") from error


def _normalization(flag: str, numbers: Any) -> Normalization | None:
  """Returns that of mean and std, three numbers each; raises ConfigError for others."""
  try:
    mean, std = np.asarray(numbers, np.float64)
    sound = mean.shape == (3,) and np.isfinite([mean, std]).all() and (std > 0).all()
  except (TypeError, ValueError):
    sound = False
  if not sound:
    raise ConfigError(
      f"{flag} says that images have mean and std {str(numbers):.100}: three numbers each "
      "are needed, those of std above 0"
    )
  mean, std = tuple(mean.tolist()), tuple(std.tolist())
  return None if (mean, std) == ((0.0,) * 3, (1.0,) * 3) else Normalization(mean, std)


def _is_left_out(name: str) -> bool:
  return name in torch_names.HEAD or name.endswith(f".{torch_names.COUNTER}")


def _expected(plan: Plan) -> dict[str, tuple[int, ...]]:
  size = plan.dataset.image_size
  network = ResNet18(
    num_classes=1,
    **plan.method.network,
    width=plan.config.width,
    small_images=size <= LARGEST_RESIDENT,
  )
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)

  def init(images: jax.Array) -> Any:
    return network.init(jax.random.key(0), images, train=False)

  return torch_names.shapes(jax.eval_shape(init, images))


def _check_fit(
  flag: str,
  found: Mapping[str, np.ndarray],
  expected: Mapping[str, tuple[int, ...]],
  image_size: int,
) -> None:
  """Raises ConfigError that names what does not fit."""
  different = [
    f"{name} is {list(found[name].shape)} there, {list(shape)} in this run"
    for name, shape in expected.items()
    if name in found and found[name].shape != shape
  ]
  missing = [name for name in expected if name not in found]
  unexpected = [name for name in found if name not in expected]
  kinds = {"missing": missing, "unexpected": unexpected, "of another shape": different}
  lines = [f"{kind}: {_first(names)}" for kind, names in kinds.items() if names]
  if lines:
    shapes = {name: tensor.shape for name, tensor in found.items()}
    remedy = _remedy(shapes, expected, image_size)
    raise ConfigError("\n".join([f"{flag} does not fit the network: {remedy}", *lines]))


def _first(names: list[str]) -> str:
  more = len(names) - _SHOWN
  return "; ".join(names[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _remedy(
  there: Mapping[str, tuple[int, ...]],
  here: Mapping[str, tuple[int, ...]],
  image_size: int,
) -> str:
  if there.keys() != here.keys():
    return "give a ResNet-18 with the names of torchvision or timm, or leave the flag out"
  stem, own = there["conv1.weight"], here["conv1.weight"]
  if len(stem) != 4 or stem[2:] not in ((7, 7), (3, 3)):
    return "give a ResNet-18 as torchvision has it, or leave the flag out"
  flags = []
  if stem[2:] != own[2:]:
    flags.append("--image_size=224" if stem[2:] == (7, 7) else "--image_size=32")
  if stem[0] != own[0]:
    flags.append(f"--width={stem[0]}")
  if not flags:
    return "give a ResNet-18 as torchvision has it, or leave the flag out"
  why = ""
  if stem[2:] != own[2:]:
    why = f", for images of {image_size} pixels have another first convolution"
  return f"give {' '.join(flags)}{why}, or leave the flag out"
