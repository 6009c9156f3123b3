r"""Images/s of the training input pipeline, beside tf.data and torch + Pillow.

  python benchmarks/input_pipeline.py --flagfile=imagenet.cfg --data_dir=DIR \
      --peers=PYTHON

Takes the flags of experiments/run.py for a data set that `experiments/prepare.py` made
(some hundred images are enough: they are repeated), besides `--rounds`, `--json` and the
path of an interpreter that has tensorflow, torch and Pillow. Every measurement is a process
of its own; the pipelines take turns. Prints medians, ratios to ours round by round, and
where our time goes on one core, beside the floor: libjpeg-turbo's decoding of the same
bytes. With `ours` before the flags of run.py, measures our pipeline alone, once.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent))

import input_peers
import jax
import measured
import numpy as np
import simplejpeg

from ssil_jax.commands import run
from ssil_jax.data import loader
from ssil_jax.data.images import crop, decode, jpeg_layout
from ssil_jax.data.opening import open_dataset
from ssil_jax.sampling import RATIO_PRESERVING, Key, Pool
from ssil_jax.training import devices

MOST_IMAGES = 1000  # that the peers get
KEY = Key(seed=0, state=2, phase=0)


def batches_of(dataset) -> loader.TrainBatches:
  """Returns a ratio-preserving phase over all training images, 128 + 32 a batch."""
  records = np.arange(len(dataset.train.labels))
  return loader.TrainBatches(
    dataset=dataset,
    pool=Pool(new=records, memory=records),
    sampling=RATIO_PRESERVING,
    key=KEY,
    batch_size_new=128,
    batch_size_memory=input_peers.BATCH_SIZE - 128,
    num_devices=1,
    num_steps=10**6,
  )


def measure_ours(argv: Sequence[str]) -> dict[str, Any]:
  """Measures our pipeline, to the device, in this process; returns the environment, too."""
  config = run.parse(argv).config
  # No step is run on them.
  chosen = devices.Devices(devices.choose_devices(config), model=None)
  found = input_peers.measure(
    loader.prefetched(
      batches_of(open_dataset(config)),
      chosen.shard,
      num_processes=config.input_processes,
    )
  )
  return found | {"environment": chosen.describe()}


def profile(argv: Sequence[str]) -> dict[str, float]:
  """Returns microseconds an image of each part, alone on one core: the least of passes."""
  images = open_dataset(run.parse(argv).config).train.images
  records = range(min(len(images), MOST_IMAGES))
  numbers = images.numbers.tolist()
  data = [images.store.read(numbers[record]) for record in records]
  draws = list(np.random.default_rng(0).random((len(data), *crop.DRAWS_SHAPE)))
  sizes = [(one.width, one.height) for one in map(decode.EncodedImage, data)]
  boxes = [
    crop.random_resized_box(*size, row) for size, row in zip(sizes, draws, strict=True)
  ]
  cut_out = [
    decode.EncodedImage(one).read(box) for one, box in zip(data, boxes, strict=True)
  ]
  resized = [crop.resize(pixels, input_peers.SIZE) for pixels in cut_out]

  def least(part: Callable, *columns) -> float:
    passes = []
    for _ in range(5):
      started = time.perf_counter()
      for row in zip(*columns, strict=True):
        part(*row)
      passes.append((time.perf_counter() - started) / len(columns[0]) * 1e6)
    return min(passes)

  return {
    "floor: decode the same bytes whole": least(simplejpeg.decode_jpeg, data),
    "read the record": least(images.store.read, numbers[: len(data)]),
    "read the header": least(jpeg_layout.read_header, data),
    "choose the box": least(crop.random_resized_box, *zip(*sizes, strict=True), draws),
    "decode the box, header included": least(
      lambda one, box: decode.EncodedImage(one).read(box), data, boxes
    ),
    "resample": least(lambda pixels: crop.resize(pixels, input_peers.SIZE), cut_out),
    "stack": least(lambda *_: np.stack(resized), [0]) / len(resized),
    "all of it": least(
      lambda record, row: loader.random_crop(images, record, input_peers.SIZE, row),
      records,
      draws,
    ),
  }


def write_files(argv: Sequence[str], folder: pathlib.Path) -> None:
  """Writes the JPEG files that the peers read."""
  images = open_dataset(run.parse(argv).config).train.images
  for record, number in enumerate(images.numbers[:MOST_IMAGES].tolist()):
    (folder / f"{record:05}.jpg").write_bytes(images.store.read(number))


def main(argv: Sequence[str]) -> None:
  parser = measured.parser(__doc__, rounds=5)
  parser.add_argument("--peers", required=True, help="an interpreter that has the peers")
  args, flags = measured.parse_beside_run(parser, argv)
  with tempfile.TemporaryDirectory() as name:
    write_files(flags, pathlib.Path(name))
    peer_script = str(pathlib.Path(__file__).with_name("input_peers.py"))
    commands = {
      "ssil_jax": [sys.executable, __file__, "ours", *flags[1:]],
      "tf.data": [args.peers, peer_script, "tf_data", name],
      "tf.data, antialias=True": [args.peers, peer_script, "tf_data_antialias", name],
      "torch + Pillow": [args.peers, peer_script, "torch", name],
    }
    results = {pipeline: [] for pipeline in commands}
    for _ in range(args.rounds):
      for pipeline, command in commands.items():
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
          sys.exit(f"{pipeline}: {done.stderr[-2000:]}")
        results[pipeline].append(json.loads(done.stdout.splitlines()[-1]))
  environment = results["ssil_jax"][-1]["environment"]
  speeds = {
    pipeline: [turn["images_per_second"] for turn in turns]
    for pipeline, turns in results.items()
  }
  rows = [
    {
      "pipeline": pipeline,
      "images/s": statistics.median(speeds[pipeline]),
      "CPU ms/image": statistics.median(turn["cpu_ms"] for turn in turns),
      "ssil_jax / it": measured.told(measured.ratio(speeds["ssil_jax"], speeds[pipeline])),
      "rates": speeds[pipeline],
    }
    for pipeline, turns in results.items()
  ]
  measured.show("The input pipeline", rows, environment=environment, file=args.json)
  rows = [{"part": part, "us": spent} for part, spent in profile(flags).items()]
  file = args.json and args.json.with_stem(f"{args.json.stem}_parts")
  measured.show("An image on one core", rows, environment=environment, file=file)


if __name__ == "__main__":
  if sys.argv[1:2] == ["ours"]:
    plain = argparse.ArgumentParser(allow_abbrev=False)
    _, flags = measured.parse_beside_run(plain, sys.argv[2:])
    jax.config.update("jax_num_cpu_devices", 1)
    print(json.dumps(measure_ours(flags)))
  else:
    main(sys.argv[1:])
