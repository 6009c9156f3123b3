"""`prepare.json`: what a prepared directory holds, and how it differs from the official."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ssil_jax.data.builders.found import Contents, Deviations, Options, Tally
from ssil_jax.data.builders.shards import Shard
from ssil_jax.errors import DataError

NAME = "prepare.json"
_NAMED = 5  # classes in a line


def make_report(
  options: Options,
  contents: Contents,
  deviations: Deviations,
  shards: Mapping[str, Sequence[Shard]],
  labels: Mapping[str, np.ndarray],
) -> dict[str, Any]:
  """Returns the content of `prepare.json`; labels are int32 [n].

  All shards are finished. Images that cannot be decoded are added to the deviations.
  """
  differences = list(deviations.lines)
  names = np.array(contents.class_names["label"])
  splits, remarks = {}, {split: Tally() for split in shards}
  for split, part in shards.items():
    for shard in part:
      for record, reason in shard.left_out:
        deviations.left_out.add(
          "cannot be decoded", f"{shard.records.where(record)} ({reason})"
        )
      for record, reason in shard.remarks:
        remarks[split].add(reason, shard.records.where(record))
    classes = np.unique(labels[split])
    if len(absent := np.delete(names, classes)):
      more = ", ..." if len(absent) > _NAMED else ""
      differences.append(
        f"{len(absent):,} of {len(names):,} classes have no image in {split}, so that a "
        f"run cannot be scored on them: {', '.join(absent[:_NAMED])}{more}"
      )
    digests = "".join(shard.content for shard in part)
    splits[split] = {
      "images": len(labels[split]),
      "classes": len(classes),
      "shards": len(part),
      # Tells the images from other data.
      "content": hashlib.blake2b(digests.encode(), digest_size=16).hexdigest(),
    }
  return {
    "archives": [
      {"name": archive.name, "bytes": archive.size} for archive in contents.archives
    ],
    "options": dataclasses.asdict(options),
    "splits": splits,
    "left_out": dict(sorted(deviations.left_out.items())),
    "remarks": {split: dict(sorted(tally.items())) for split, tally in remarks.items()},
    "differences": differences,
  }


def check_prepared(directory: pathlib.Path, options: Options) -> None:
  """Raises DataError if a prepared directory is not what the options ask for."""
  path = directory / NAME
  try:
    prepared = json.loads(path.read_text())["options"]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise DataError(
      f"{directory} exists, but not with a {NAME} of this program: remove it, or use "
      "another --data_dir"
    ) from error
  for name, wanted in dataclasses.asdict(options).items():
    if prepared.get(name) != wanted:
      raise DataError(
        f"{directory} was prepared with --{name}={prepared.get(name)}, not {wanted}: use "
        "the same flags, another --data_dir, or remove it"
      )


def summary(directory: pathlib.Path) -> list[str]:
  """Returns what a prepared directory holds and what it lacks, in lines for the user."""
  report = json.loads((directory / NAME).read_text())
  lines = [
    f"{split}: {count['images']:,} images of {count['classes']:,} classes in "
    f"{count['shards']} shards"
    for split, count in report["splits"].items()
  ]
  for title, tally in [
    ("left out", report["left_out"]),
    *((f"in {split}", part) for split, part in report["remarks"].items()),
  ]:
    lines += [
      f"{title}: {entry['count']:,} images, {reason}" for reason, entry in tally.items()
    ]
  lines += [f"not as published: {line}" for line in report["differences"]]
  return [*lines, f"details: {directory / NAME}"]
