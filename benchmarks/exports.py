"""Exported models beside the model: the same classes and scores, on photos.

  python benchmarks/exports.py --workdir=W --photos=DIR [--count=200]

Exports the model of W in every format, reads each as another program would (jax.export,
onnxruntime, a plain PyTorch ResNet-18 after `load_state_dict(strict=True)`), and prints a
row for each: on how many photos the best class is the same, the largest difference of a
score, the size of the model's file, the seconds that writing took, and the seconds for the
photos once they are decoded. Needs requirements-onnx.txt and PyTorch.
"""

import argparse
import importlib
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "tests")]

import jax.export
import numpy as np
import safetensors.numpy
from absl import logging

import ssil_jax
from ssil_jax.model.trained import paths_of
from ssil_jax.system import source_commit

PEERS = "onnxruntime", "torch", "torchvision_reference"


def run_jax(folder: pathlib.Path, pixels: np.ndarray) -> np.ndarray:
  model = jax.export.deserialize(bytearray((folder / "model.jax").read_bytes()))
  return np.asarray(model.call(pixels)[0])


def run_onnx(folder: pathlib.Path, pixels: np.ndarray) -> np.ndarray:
  import onnxruntime

  session = onnxruntime.InferenceSession(folder / "model.onnx")
  return session.run(["scores"], {"pixels": pixels})[0]


def run_torch(folder: pathlib.Path, pixels: np.ndarray) -> np.ndarray:
  """Returns logits, which are the scores of methods that predict by them."""
  import torch
  import torchvision_reference

  card = json.loads((folder / "card.json").read_text())
  tensors = safetensors.numpy.load_file(folder / "model.safetensors")
  first = tensors["conv1.weight"]
  network = torchvision_reference.torch_resnet18(
    len(card["class_names"]), width=len(first)
  ).eval()
  if first.shape[-1] == 3:
    network.conv1 = torch.nn.Conv2d(3, len(first), 3, padding=1, bias=False)
    network.maxpool = torch.nn.Identity()
  network.load_state_dict({name: torch.tensor(t) for name, t in tensors.items()})
  mean, std = (torch.tensor(card["preprocessing"][name]) for name in ("mean", "std"))
  images = (torch.tensor(pixels) / 255 - mean) / std
  with torch.no_grad():
    return network(images.permute(0, 3, 1, 2)).numpy()


def main(argv: Sequence[str]) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--workdir", required=True, help="of a run, with its model")
  parser.add_argument("--photos", required=True, help="a folder of photos")
  parser.add_argument("--count", type=int, default=200, help="spread over the folder")
  args = parser.parse_args(argv)
  if args.count < 1:
    parser.error(f"--count={args.count}: give 1 or more")
  for name in PEERS:  # before anything is exported or timed
    importlib.import_module(name)
  logging.set_verbosity(logging.WARNING)
  model = ssil_jax.load(args.workdir)
  paths = list(paths_of([args.photos]))
  chosen = np.linspace(0, len(paths) - 1, min(args.count, len(paths))).astype(int)
  pixels = np.stack([model.prepare(paths[i]) for i in chosen])
  scores, _ = model.scores(pixels)
  print(
    f"{model.config.method}, width {model.config.width}, {model.image_size} pixels, "
    f"{len(model.class_names)} classes, {len(pixels)} photos, commit {source_commit()}"
  )
  readers = {"jax": run_jax, "onnx": run_onnx, "safetensors": run_torch}
  for format, read in readers.items():
    with tempfile.TemporaryDirectory() as place:
      begun = time.perf_counter()
      written = model.export(place, format=format)
      wrote = time.perf_counter()
      found = read(pathlib.Path(place), pixels)
      ended = time.perf_counter()
    same = int((found.argmax(-1) == scores.argmax(-1)).sum())
    print(
      f"{format:12} same class {same}/{len(pixels)}  "
      f"largest difference of a score {np.abs(found - scores).max():.1e} "
      f"(scores up to {np.abs(scores).max():.1f})  {max(written.values()) / 1e6:.1f} MB  "
      f"written in {wrote - begun:.1f} s  loaded and run in {ended - wrote:.1f} s"
    )


if __name__ == "__main__":
  main(sys.argv[1:])
