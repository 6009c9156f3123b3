"""Compiles whole training steps for TPUs on a machine without one.

  pip install "libtpu==0.0.42.*"
  python benchmarks/tpu_compile.py --output=tpu.json
  python benchmarks/tpu_compile.py --output=tpu.json --topologies=v4:2x2x1,v6e:8x8 \
      --steps=ssil,flax --precisions=bfloat16

A row is a step on a slice: a method of ssil_jax, in its second state, or `flax`, a step as
in flax's ImageNet example (flax_imagenet.py). Each is compiled as for a run on that slice,
and XLA tells what one chip does in a step: operations, bytes that the instructions read and
write, memory for temporaries; the program's text, what of these bytes goes to and from main
memory (hlo_traffic.py). Nothing is timed: a chip does no more images a second than the
slower of its peak FLOP/s and its main memory's bandwidth allows for these figures.

A row takes a minute or two on two idle cores. Rows are written to --output as they come,
with the commit, and those that are there already are not compiled again, whatever theirs.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import math
import os
import pathlib
import re
import sys
import time

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent))
# Else libtpu asks Google's metadata server which TPU this is, jax looks for the TPU, and
# only one process at a time may load libtpu, as if it were to use one.
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"

import flax_imagenet
import jax
import numpy as np
from hlo_traffic import main_memory_bytes
from jax.experimental import topologies
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from ssil_jax.config import make_config
from ssil_jax.data.dataset import Batch, Dataset, Split
from ssil_jax.data.encoded import EncodedImages
from ssil_jax.data.images.augment import IMAGENET_NORMALIZATION, Augmentation
from ssil_jax.methods import get_method
from ssil_jax.system import source_commit, write_json
from ssil_jax.training import loop
from ssil_jax.training.plan import make_plan
from ssil_jax.training.session import make_session
from ssil_jax.training.step import AXIS

PEER = "flax"
MAIN_MEMORY = "main_memory_bytes_per_image"  # a key of rows
DOCS = "https://cloud.google.com/tpu/docs/"
# Products of float32 are of bfloat16 on a TPU, unless more precision is asked for.
CHIPS = {
  "v4": {"flop_per_s": 275e12, "bytes_per_s": 1200e9, "source": DOCS + "v4"},
  "v5e": {"flop_per_s": 197e12, "bytes_per_s": 819e9, "source": DOCS + "v5e"},
  "v6e": {"flop_per_s": 918e12, "bytes_per_s": 1640e9, "source": DOCS + "v6e"},
}
# A collective in HLO's text: what it returns, and what it is. A "-done" is none of its own.
COLLECTIVE = re.compile(
  r"= (.*?) (all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)"
  r"(-start)?\("
)
ARRAY = re.compile(r"\b(?:pred|[a-z]+(\d+))\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
  """What all rows share."""

  image_size: int
  num_classes: int
  width: int
  batch_new: int  # images a chip
  batch_memory: int

  @property
  def batch(self) -> int:
    return self.batch_new + self.batch_memory


def lower(step: str, precision: str, devices: list, sizes: Sizes) -> jax.stages.Lowered:
  """Lowers a row's step; only the names, shapes and kind of the devices count."""
  if step == PEER:
    return flax_imagenet.lower_train_step(
      devices,
      image_size=sizes.image_size,
      num_classes=sizes.num_classes,
      width=sizes.width,
      precision=precision,
      images_per_device=sizes.batch,
    )
  session = session_of(step, precision, devices, sizes)
  state = session.plan.states[1]
  phase = state.phases[0]
  run = loop.begin_state(session, state, session.start())
  images = (sizes.batch, sizes.image_size, sizes.image_size, 3)
  ints = np.zeros(sizes.batch, np.int32)
  shapes = jax.tree.map(
    # Of all devices: jax takes those of other hosts for this process's own, too.
    lambda x: jax.ShapeDtypeStruct((len(devices), *np.shape(x)), x.dtype),
    (
      run.train_state,
      Batch(jax.ShapeDtypeStruct(images, np.uint8), ints, ints, ints),
      loop.training_context(session, state, phase, run),
      np.float32(0),
    ),
  )
  return session.devices.lower_train_step(*shapes, later=True)


def session_of(step: str, precision: str, devices: list, sizes: Sizes):
  """Opens a run of ten states on photos that nobody reads."""
  method = get_method(step)
  config = make_config(
    {
      "method": step,
      "precision": precision,
      "width": sizes.width,
      "num_states": 10,
      "batch_size_new": sizes.batch_new * len(devices),
      "batch_size_memory": sizes.batch_memory * len(devices),
    },
    method,
  )
  per_class = math.ceil(10 * config.batch_size_new / sizes.num_classes)
  labels = np.repeat(np.arange(sizes.num_classes, dtype=np.int32), per_class)
  split = Split(EncodedImages(None, np.arange(len(labels))), labels)
  dataset = Dataset(
    class_names=tuple(map(str, range(sizes.num_classes))),
    train=split,
    test=split,
    image_size=sizes.image_size,
    flip=True,
    augmentation=Augmentation(max_shift=0, flip=True),
    random_resized_crop=True,
    normalization=IMAGENET_NORMALIZATION,
    ignored_files=0,
    skipped_records={"train": 0, "test": 0},
    notes=(),
  )
  return make_session(make_plan(config, dataset), Mesh(np.asarray(devices), (AXIS,)))


def measure(topology: str, step: str, precision: str, sizes: Sizes) -> dict:
  """Compiles a row's step; returns the row."""
  chip = topology.partition(":")[0]
  # A v4 chip's two cores are one device to jax, unless a program asks for both.
  options = {"chip_config_name": "megacore"} if chip == "v4" else {}
  devices = topologies.get_topology_desc(topology, "tpu", **options).devices
  row = {"topology": topology, "chips": len(devices), "step": step, "precision": precision}
  lowered = lower(step, precision, list(devices), sizes)
  started = time.perf_counter()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:  # it needs more memory than there is
    return row | {"error": str(error).splitlines()[0]}
  cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
  hlo = compiled.as_text()
  flop, moved = cost["flops"] / sizes.batch, cost["bytes accessed"] / sizes.batch
  main = main_memory_bytes(hlo) / sizes.batch
  by_flop = CHIPS[chip]["flop_per_s"] / flop
  by_bytes = CHIPS[chip]["bytes_per_s"] / main
  return row | {
    "flop_per_image": flop,
    "bytes_per_image": moved,
    MAIN_MEMORY: main,
    "temporary_bytes": memory.temp_size_in_bytes,
    "argument_bytes": memory.argument_size_in_bytes,
    **collectives(hlo, sizes),
    "roofline_images_per_s": min(by_flop, by_bytes),
    "bound_by": "bytes" if by_bytes < by_flop else "FLOP",
    "compile_seconds": round(time.perf_counter() - started, 1),
  }


def collectives(hlo: str, sizes: Sizes) -> dict:
  """Counts the collectives in a program's text, and the bytes that they return."""
  found = COLLECTIVE.findall(hlo)
  total = sum(
    math.prod(map(int, filter(None, shape.split(",")))) * int(bits or 8) // 8
    for result, _, _ in found
    for bits, shape in ARRAY.findall(result)
  )
  return {"collectives": len(found), "collective_bytes_per_image": total / sizes.batch}


def provenance() -> dict:
  """Says what a row was made with."""
  names = ("jax", "jaxlib", "flax", "optax", "libtpu")
  versions = {name: importlib.metadata.version(name) for name in names}
  return {"commit": source_commit(), "versions": versions}


def table(rows: list[dict], sizes: Sizes) -> Table:
  """Figures of a chip, but for the number of chips."""
  columns = ("slice", "chips", "step", "precision", "GFLOP/image", "MB/image", "/ flax")
  columns += (
    "of main memory",
    "/ flax",
    "temporaries, GB",
    "collectives",
    "their MB/image",
    "images/s by roofline",
    "by",
  )
  shown = Table(*columns)
  peers = {
    (row["topology"], row["precision"]): row
    for row in rows
    if row["step"] == PEER and "error" not in row
  }
  for row in rows:
    name = row["topology"], str(row["chips"]), row["step"], row["precision"]
    if "error" in row:
      shown.add_row(*name, row["error"])
      continue
    peer = peers.get((row["topology"], row["precision"]))
    shown.add_row(
      *name,
      f"{row['flop_per_image'] / 1e9:.2f}",
      *beside(peer, row, "bytes_per_image"),
      *beside(peer, row, MAIN_MEMORY),
      f"{row['temporary_bytes'] / 1e9:.2f}",
      str(row["collectives"]),
      f"{row['collective_bytes_per_image'] / 1e6:.2f}",
      f"{row['roofline_images_per_s']:,.0f}",
      row["bound_by"],
    )
  return shown


def beside(peer: dict | None, row: dict, name: str) -> tuple[str, str]:
  """Returns a row's megabytes, and what part of the peer's they are."""
  megabytes = f"{row[name] / 1e6:.1f}"
  return megabytes, f"{row[name] / peer[name]:.3f}" if peer else ""


def main(argv: list[str]) -> None:
  listed = lambda text: text.split(",")  # noqa: E731
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--output", type=pathlib.Path, required=True)
  parser.add_argument("--topologies", type=listed, default=["v5e:2x2"])
  parser.add_argument("--steps", type=listed, default=["ssil", "ssil_tkd", "ft", PEER])
  parser.add_argument("--precisions", type=listed, default=["float32", "bfloat16"])
  for name, default in (
    ("image_size", 224),
    ("num_classes", 1000),
    ("width", 64),
    ("batch_new", 128),
    ("batch_memory", 32),
  ):
    parser.add_argument(f"--{name}", type=int, default=default)
  flags = parser.parse_args(argv)
  for topology in flags.topologies:
    if topology.partition(":")[0] not in CHIPS:
      parser.error(f"--topologies={topology}: known are {', '.join(CHIPS)}, as in v5e:2x2")
  sizes = Sizes(
    **{field.name: getattr(flags, field.name) for field in dataclasses.fields(Sizes)}
  )
  file = {"sizes": dataclasses.asdict(sizes), "chips": CHIPS, "rows": []}
  if flags.output.exists():
    before = json.loads(flags.output.read_text())
    if before["sizes"] != file["sizes"]:
      parser.error(f"--output={flags.output} has rows of other sizes: give another file")
    if not all("error" in row or MAIN_MEMORY in row for row in before["rows"]):
      parser.error(f"--output={flags.output} has rows without {MAIN_MEMORY}: give another")
    file["rows"] = before["rows"]
  rows = file["rows"]
  done = {(row["topology"], row["step"], row["precision"]) for row in rows}
  for topology in flags.topologies:
    for precision in flags.precisions:
      for step in flags.steps:
        if (topology, step, precision) not in done:
          row = {**provenance(), **measure(topology, step, precision, sizes)}
          rows.append(row)
          write_json(flags.output, file)
  Console(width=160).print(table(rows, sizes))


if __name__ == "__main__":
  main(sys.argv[1:])
