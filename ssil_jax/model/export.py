"""Writes a trained model for other programs: jax.export, ONNX, or safetensors.

Each format is a folder with the model's file and `card.json`, which says what another
program has to know; docs/models.md shows how to load each.
"""

import contextlib
import copy
import dataclasses
import datetime
import importlib.metadata
import json
import logging
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax import export as jax_export
from jax.extend.core import jaxpr_as_fun

import ssil_jax
from ssil_jax.errors import ConfigError
from ssil_jax.methods.base import mask_unseen, softmax_probabilities
from ssil_jax.paths import real_path
from ssil_jax.resnet import unit
from ssil_jax.system import source_commit, write_bytes, write_json
from ssil_jax.training import model_files, numerics, torch_names

if TYPE_CHECKING:
  from ssil_jax.model.trained import TrainedModel

CARD = "card.json"
STATISTICS = "statistics.safetensors"
PLATFORMS = ("cpu", "cuda", "tpu")
_PLAIN = "scores: the logits; probabilities: the softmax of the scores"


class _Contents(NamedTuple):
  """Holds what a format is made of: files by name, and what the card says of them alone."""

  files: dict[str, bytes]
  card: dict[str, Any]


def export(
  model: "TrainedModel", output: str | os.PathLike, *, format: str = "jax"
) -> dict[pathlib.Path, int]:
  """Writes a model into a folder of its own.

  Args:
    model: loaded.
    output: the folder, which is made; it may be there if it is empty.
    format: one of `FORMATS`.

  Returns:
    The files that were written, with their sizes in bytes; the card is the last.

  Raises:
    ConfigError: there is no such format, it needs a library that is not installed, or the
      folder has something in it or cannot be written.
  """
  if format not in FORMATS:
    raise ConfigError(f"--format={format} is unknown; choose from: {', '.join(FORMATS)}")
  flag, folder = f"--output={os.fspath(output)}", real_path(os.fspath(output))
  try:
    if folder.exists() and not folder.is_dir():
      raise ConfigError(f"{flag} is no folder: name a new one")
    if folder.is_dir() and any(folder.iterdir()):
      raise ConfigError(f"{flag} is not empty: name a new folder")
    with numerics.standard(model.config):
      contents = FORMATS[format](model)
    folder.mkdir(parents=True, exist_ok=True)
    return _write(folder, contents, _card(model, format, contents))
  except OSError as error:
    raise ConfigError(
      f"{flag} cannot be written ({error.strerror}): name another folder"
    ) from error


def _write(
  folder: pathlib.Path, contents: _Contents, card: Mapping[str, Any]
) -> dict[pathlib.Path, int]:
  """Writes all files, the card last; or none, if one cannot be written."""
  paths = [folder / name for name in (*contents.files, CARD)]
  try:
    for name, content in contents.files.items():
      write_bytes(folder / name, content)
    write_json(folder / CARD, card)
  except BaseException:
    for path in paths:
      path.unlink(missing_ok=True)
    raise
  return {path: path.stat().st_size for path in paths}


def _card(model: "TrainedModel", format: str, contents: _Contents) -> dict[str, Any]:
  known, settings = model.card, dataclasses.asdict(model.config.method_settings)
  preprocessing = {k: v for k, v in known["preprocessing"].items() if k != "flip"}
  is_last = model.state == len(known["states"])
  return {
    "what": known.get("what"),
    "format": format,
    "files": list(contents.files),
    "class_names": list(model.class_names),
    "preprocessing": preprocessing | {"steps": _steps(model)},
    **contents.card,
    "method": model.config.method,
    "method_title": model.method.title,
    "method_settings": settings,
    "state": model.state,
    "num_old": model.num_old,
    "dataset": known.get("dataset"),
    "accuracy": known.get("accuracy") if is_last else None,
    "network": known["network"],
    "trained_by": {name: known.get(name) for name in ("version", "commit")},
    "exported_by": {
      "ssil_jax": ssil_jax.__version__,
      "commit": source_commit(),
      **{name: importlib.metadata.version(name) for name in _LIBRARIES[format]},
    },
    "exported": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
  }


_LIBRARIES = {
  "jax": ("jax",),
  "onnx": ("jax", "jax2onnx", "onnx"),
  "safetensors": ("safetensors",),
}


def _steps(model: "TrainedModel") -> list[str]:
  """Returns what is done to a photo until it is the model's pixels, in words."""
  known = model.card["preprocessing"]
  size, short = model.image_size, known["resize_short_side"]
  return [
    "decode to RGB, 8 bits a channel, turned upright as EXIF says, transparency dropped",
    f"resize, bilinear and antialiased, so that the short side is {short} pixels, the long "
    "side in proportion, rounded down",
    f"cut out the central {size} x {size} pixels",
  ]


def _of_pixels(model: "TrainedModel") -> Callable[[jax.Array], tuple[jax.Array, ...]]:
  """Returns the function of uint8 [B, S, S, 3] alone, with the weights inside."""
  known = len(model.class_names)

  def scores_and_probabilities(pixels: jax.Array) -> tuple[jax.Array, ...]:
    both = model.forward(model.variables, model.stats, pixels)
    return tuple(part[:, :known].astype(jnp.float32) for part in both)

  return scores_and_probabilities


def _pixels(model: "TrainedModel") -> jax.ShapeDtypeStruct:
  (batch,) = jax_export.symbolic_shape("batch")
  size = model.image_size
  return jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)


def _card_of_pixels(model: "TrainedModel") -> dict[str, Any]:
  """Returns what the card says of a file that takes pixels, and predicts by the method."""
  size, known = model.image_size, len(model.class_names)
  output = {"dtype": "float32", "shape": ["batch", known]}
  return {
    "input": {"name": "pixels", "dtype": "uint8", "shape": ["batch", size, size, 3]},
    "outputs": [{"name": name, **output} for name in ("scores", "probabilities")],
    "prediction": f"by the method, in the file; {_in_words(model)}",
  }


def _in_words(model: "TrainedModel") -> str:
  method = model.method
  if method.prediction:
    return method.prediction
  is_plain = method.predict is mask_unseen and method.probabilities is softmax_probabilities
  if is_plain:
    return _PLAIN
  return f"scores and probabilities: by the code of --method={model.config.method}"


def _to_jax(model: "TrainedModel") -> _Contents:
  function = jax.jit(_of_pixels(model))
  exported = jax_export.export(function, platforms=PLATFORMS)(_pixels(model))
  card = {"platforms": list(PLATFORMS), **_card_of_pixels(model)}
  return _Contents({"model.jax": bytes(exported.serialize())}, card)


def _to_onnx(model: "TrainedModel") -> _Contents:
  try:
    import jax2onnx
    import onnx
  except ImportError as error:
    raise ConfigError(
      f"--format=onnx needs {error.name}: pip install -r requirements-onnx.txt, or "
      "'ssil-jax[onnx]'"
    ) from error
  # Runtimes have few bfloat16 kernels. They pool over three axes at most, and jax2onnx
  # counts all that there are.
  plain = copy.copy(model)
  plain.network = model.network.clone(dtype=jnp.float32, max_pool=_max_pool_by_axes)
  pixels = _pixels(model)
  # As a jaxpr: what jax2onnx makes of Flax's own layers mixes up their axes.
  function = jaxpr_as_fun(jax.make_jaxpr(_of_pixels(plain))(pixels))
  try:
    # They tell of parts of other libraries that are not there, and of unknown shapes.
    with _quiet("jax2onnx", "onnx_ir"):
      proto = jax2onnx.to_onnx(
        lambda pixels: tuple(function(pixels)),
        [jax.ShapeDtypeStruct(("batch", *pixels.shape[1:]), jnp.uint8)],
        model_name="ssil_jax",
        input_names=["pixels"],
        output_names=["scores", "probabilities"],
      )
  except (
    Exception
  ) as error:  # what an operation or a version that it does not know leads to
    versions = " and ".join(
      f"{name} {importlib.metadata.version(name)}" for name in ("jax2onnx", "jax")
    )
    raise ConfigError(
      f"--format=onnx: {versions} cannot write this model ({type(error).__name__}: "
      f"{' '.join(str(error).split()):.200}): use jax 0.10, or --format=jax"
    ) from error
  onnx.checker.check_model(proto)
  card = {"opset": proto.opset_import[0].version, **_card_of_pixels(model)}
  return _Contents({"model.onnx": proto.SerializeToString()}, card)


def _max_pool_by_axes(x: jax.Array) -> jax.Array:
  """Returns the maxima over 3x3/2 windows of [B, H, W, C] with one pixel of padding."""
  for axis in (1, 2):
    x = jnp.moveaxis(x, axis, 1)
    batch, side, *others = x.shape
    flat = x.reshape(batch, side, math.prod(others))
    pooled = jax.lax.reduce_window(
      flat, -jnp.inf, jax.lax.max, (1, 3, 1), (1, 2, 1), ((0, 0), (1, 1), (0, 0))
    )
    x = jnp.moveaxis(pooled.reshape(batch, pooled.shape[1], *others), 1, axis)
  return x


@contextlib.contextmanager
def _quiet(*names: str) -> Iterator[None]:
  """Holds back warnings of loggers."""
  loggers = [logging.getLogger(name) for name in names]
  levels = [logger.level for logger in loggers]
  try:
    for logger in loggers:
      logger.setLevel(logging.CRITICAL)
    yield
  finally:
    for logger, level in zip(loggers, levels, strict=True):
      logger.setLevel(level)


def _to_safetensors(model: "TrainedModel") -> _Contents:
  head, prediction, needs_statistics = _linear_head(model)
  tensors = torch_names.to_torch(model.variables, steps=model.num_steps)
  rows = len(model.class_names) * model.method.num_proxies
  tensors["fc.weight"] = np.ascontiguousarray(head["kernel"][:, :rows].T)
  tensors["fc.bias"] = np.ascontiguousarray(head["bias"][:rows])
  # Hugging Face's tools want to know whose layout it is, and --init_from the rest.
  numbers = {name: model.card["preprocessing"][name] for name in ("mean", "std")}
  metadata = {"format": "pt", **{name: json.dumps(n) for name, n in numbers.items()}}
  files = {"model.safetensors": safetensors.numpy.save(tensors, metadata)}
  if needs_statistics:
    files[STATISTICS] = safetensors.numpy.save(_statistics(model), {"format": "np"})
  size = model.image_size
  card = {
    "input": {
      "dtype": "float32",
      "shape": ["batch", 3, size, size],
      "values": "(pixels / 255 - mean) / std, channel by channel",
    },
    "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", rows]}],
    "torch": _torch_network(model),
    "prediction": prediction,
  }
  return _Contents(files, card)


def _linear_head(model: "TrainedModel") -> tuple[dict[str, np.ndarray], str, bool]:
  """Returns what becomes of fc; how the prediction is made; whether of statistics."""
  head, method = model.variables["params"]["head"], model.method
  if method.fold is not None:
    folded = jax.device_get(method.fold(head, model.stats))
    return folded, f"{_PLAIN} (what the method does to logits is part of fc)", False
  if method.cosine_head:
    scale, kernel = head["scale"], unit(jnp.asarray(head["kernel"]), axis=0)
    start = "logits: fc of the features divided by their length; "
    if method.num_proxies == 1:
      kernel = np.asarray(scale * kernel)
    else:
      kernel = np.asarray(jnp.swapaxes(kernel, 1, 2)).reshape(len(kernel), -1)
      start = (
        "cosines: fc of the features divided by their length; logits: each class's "
        f"{method.num_proxies} cosines, in a row, times their softmax, summed up, times "
        f"{float(scale):.9g}; "
      )
    head = {"kernel": kernel, "bias": np.zeros(kernel.shape[1], np.float32)}
  else:
    start = ""
  is_own = method.predict is not mask_unseen
  is_own |= method.probabilities is not softmax_probabilities
  where = f"; the statistics are in {STATISTICS}" if is_own else ""
  return head, f"{start}{_in_words(model)}{where}", is_own


def _statistics(model: "TrainedModel") -> dict[str, np.ndarray]:
  """Returns the method's arrays, cut to the classes known; and how many are old."""
  known, found = len(model.class_names), {}
  for name, array in model_files.arrays_of(model.stats).items():
    of_classes = array.ndim and array.shape[0] == model.num_columns
    found[name] = np.array(array[:known] if of_classes else array, order="C")
  return {**found, "num_old": np.array(model.num_old, np.int64)}


def _torch_network(model: "TrainedModel") -> str:
  """Returns what a torchvision ResNet-18 needs to take the tensors, in words."""
  rows = len(model.class_names) * model.method.num_proxies
  width = model.config.width
  words = [f"torchvision.models.resnet18(num_classes={rows})"]
  if width != 64:
    words.append(f"with {width} channels in the first stage instead of 64, and so on")
  if model.network.small_images:
    words.append(f"conv1 replaced by torch.nn.Conv2d(3, {width}, 3, padding=1, bias=False)")
    words.append("maxpool replaced by torch.nn.Identity()")
  if model.network.cosine_head:
    words.append("without the ReLU after the sum in the last block, layer4[1]")
  return "; ".join(words)


FORMATS: Mapping[str, Callable[["TrainedModel"], _Contents]] = {
  "jax": _to_jax,
  "onnx": _to_onnx,
  "safetensors": _to_safetensors,
}
