"""Tells data apart: record numbers in checkpoints mean nothing on others."""

import hashlib
import json
from collections.abc import Mapping

import numpy as np

from ssil_jax.data.dataset import Dataset

Part = str | int  # numbers are told to users, texts are hashes


def parts(dataset: Dataset) -> dict[str, Part]:
  """Returns what tells data sets apart, by name: numbers, and hashes of what is large."""
  found: dict[str, Part] = {
    "classes": len(dataset.class_names),
    "class names": _hash(json.dumps(dataset.class_names).encode()),
    "image size": dataset.image_size,
  }
  splits = {"training": dataset.train, "test": dataset.test}
  if dataset.unlabeled is not None:
    splits["unlabeled"] = dataset.unlabeled
  for name, split in splits.items():
    found[f"{name} images"] = len(split.labels)
    found[f"labels of {name} images"] = _hash(split.labels)
    if split.on_device:
      found[f"pixels of {name} images"] = _hash(np.ascontiguousarray(split.images))
    else:
      store, numbers = split.images.store, split.images.numbers
      found[f"files of {name} images"] = _hash(store.digest(), numbers)
      found[f"sizes of {name} images"] = _hash(store.sizes(numbers))
      if split.images.contents is not None:
        found[f"contents of {name} images"] = _hash(split.images.contents)
      elif store.content is not None:
        found[f"contents of {name} images"] = store.content
  return found


def fingerprint(data_parts: Mapping[str, Part]) -> str:
  """Returns one hash of all parts."""
  return _hash(json.dumps(data_parts, sort_keys=True).encode())


def differences(now: Mapping[str, Part], there: Mapping[str, Part]) -> list[str]:
  """Returns a line for each part that differs; see `uncompared`."""
  lines = []
  for name, ours in now.items():
    theirs = there.get(name, ours)
    if ours != theirs:
      are_numbers = isinstance(ours, int) and isinstance(theirs, int)
      told = f"{theirs} there, {ours} now" if are_numbers else "different"
      lines.append(f"{name}: {told}")
  return lines


def uncompared(now: Mapping[str, Part], there: Mapping[str, Part]) -> list[str]:
  """Returns the parts that only one of two data sets has.

  Of images that nobody has read (`--noverify_data`) no contents are known, and runs by
  earlier versions have other parts.
  """
  return sorted(set(now) ^ set(there))


def _hash(*contents) -> str:
  digest = hashlib.blake2b(digest_size=16)
  for content in contents:
    digest.update(content)
  return digest.hexdigest()
