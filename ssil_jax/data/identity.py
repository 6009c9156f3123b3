"""Which data a run is on: record numbers in checkpoints mean nothing on others."""

import hashlib
import json
from collections.abc import Mapping

import numpy as np

from ssil_jax.data.dataset import Dataset

Part = str | int  # numbers are told to users, texts are hashes


def parts(dataset: Dataset) -> dict[str, Part]:
  """What tells data sets apart, by name: numbers, and hashes of what is large."""
  found: dict[str, Part] = {
    "classes": len(dataset.class_names),
    "class names": _hash(json.dumps(dataset.class_names).encode()),
    "image size": dataset.image_size,
  }
  for name, split in (("training", dataset.train), ("test", dataset.test)):
    found[f"{name} images"] = len(split.labels)
    found[f"labels of {name} images"] = _hash(split.labels)
    if split.on_device:
      found[f"pixels of {name} images"] = _hash(np.ascontiguousarray(split.images))
    else:
      found[f"files of {name} images"] = _hash(
        split.images.store.digest(), split.images.numbers
      )
  return found


def fingerprint(data_parts: Mapping[str, Part]) -> str:
  """One hash of all parts."""
  return _hash(json.dumps(data_parts, sort_keys=True).encode())


def differences(now: Mapping[str, Part], there: Mapping[str, Part]) -> list[str]:
  """A line for each part that another data set has differently."""
  lines = []
  for name in dict.fromkeys((*now, *there)):
    ours, theirs = now.get(name), there.get(name)
    if ours == theirs:
      continue
    hashes = isinstance(ours, str) or isinstance(theirs, str)
    lines.append(f"{name}: different" if hashes else f"{name}: {theirs} there, {ours} now")
  return lines


def _hash(*contents) -> str:
  digest = hashlib.blake2b(digest_size=16)
  for content in contents:
    digest.update(content)
  return digest.hexdigest()
