"""Input pipelines that others use, for `input_pipeline.py`: tf.data and torch + Pillow.

  python benchmarks/input_peers.py tf_data FOLDER
  python benchmarks/input_peers.py tf_data_antialias FOLDER
  python benchmarks/input_peers.py torch FOLDER

Runs in an interpreter that has the peer. FOLDER holds JPEG files. Every pipeline makes
batches of randomly cropped 224 x 224 uint8 images on two cores, endlessly; the flip is left
out, since ssil_jax flips on the device. Prints a JSON object: images/s, CPU ms an image.
Linux only.
"""

import argparse
import functools
import itertools
import json
import math
import multiprocessing
import os
import pathlib
import random
import sys
import time
from collections.abc import Iterable, Sequence

BATCH_SIZE = 160
WARM_UP_BATCHES = 8
BATCHES = 32
SIZE = 224
CORES = 2


def tf_data(folder: pathlib.Path, *, antialias: bool = False) -> Iterable:
  """Reads TFRecord of tf.train.Example, as TFDS has it, decoding no more than the crop.

  Bilinear resampling; TensorFlow does not antialias unless asked. The boxes are made
  beforehand, for `tf.image.sample_distorted_bounding_box` chooses smaller ones than the
  others do (37% of the area on average, not 42%).
  """
  import numpy as np
  import tensorflow as tf
  from PIL import Image

  tf.config.threading.set_intra_op_parallelism_threads(CORES)
  tf.config.threading.set_inter_op_parallelism_threads(CORES)
  paths = sorted(folder.glob("*.jpg"))
  records = str(folder / "images.tfrecord")
  if not pathlib.Path(records).exists():
    with tf.io.TFRecordWriter(records) as writer:
      for path in paths:
        example = tf.train.Example()
        example.features.feature["image"].bytes_list.value.append(path.read_bytes())
        example.features.feature["label"].int64_list.value.append(0)
        writer.write(example.SerializeToString())
  boxes = np.array(
    [
      (top, left, bottom - top, right - left)
      for _ in range(WARM_UP_BATCHES + BATCHES)
      for left, top, right, bottom in (random_box(*Image.open(p).size) for p in paths)
    ],
    np.int32,
  )

  def crop(record, box):
    features = {
      "image": tf.io.FixedLenFeature((), tf.string),
      "label": tf.io.FixedLenFeature((), tf.int64),
    }
    example = tf.io.parse_single_example(record, features)
    image = tf.image.decode_and_crop_jpeg(example["image"], box, channels=3)
    image = tf.image.resize(image, (SIZE, SIZE), "bilinear", antialias=antialias)
    return tf.cast(tf.round(image), tf.uint8), example["label"]

  options = tf.data.Options()
  options.threading.private_threadpool_size = CORES
  images = tf.data.TFRecordDataset(records).repeat()
  return (
    tf.data.Dataset.zip((images, tf.data.Dataset.from_tensor_slices(boxes).repeat()))
    .map(crop, num_parallel_calls=CORES)
    .batch(BATCH_SIZE)
    .prefetch(2)
    .with_options(options)
    .as_numpy_iterator()
  )


def torch(folder: pathlib.Path) -> Iterable:
  """Returns a DataLoader with two worker processes that crop and resample with Pillow."""
  import numpy as np
  import torch
  from PIL import Image

  paths = sorted(folder.glob("*.jpg"))

  class Images(torch.utils.data.Dataset):
    def __len__(self):
      return BATCH_SIZE * (WARM_UP_BATCHES + BATCHES + 4 * CORES)

    def __getitem__(self, i):
      image = Image.open(paths[i % len(paths)])
      box = random_box(*image.size)
      image = image.convert("RGB").crop(box)
      image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
      return torch.from_numpy(np.array(image))

  return torch.utils.data.DataLoader(
    Images(), batch_size=BATCH_SIZE, shuffle=True, num_workers=CORES, prefetch_factor=2
  )


def random_box(width: int, height: int) -> tuple[int, int, int, int]:
  """Draws left, top, right and bottom as torchvision's RandomResizedCrop does.

  The box has 8% to 100% of the area and an aspect of 3/4 to 4/3.
  """
  for _ in range(10):
    area = width * height * random.uniform(0.08, 1.0)
    aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
    w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if w <= width and h <= height:
      left, top = random.randint(0, width - w), random.randint(0, height - h)
      return left, top, left + w, top + h
  return 0, 0, width, height


def measure(batches: Iterable) -> dict[str, float]:
  """Returns images/s, and CPU milliseconds an image of this process and its workers."""
  iterator = iter(batches)
  for _ in itertools.islice(iterator, WARM_UP_BATCHES):
    pass
  started, cpu_started = time.perf_counter(), _cpu_seconds()
  for _ in itertools.islice(iterator, BATCHES):
    pass
  seconds, cpu = time.perf_counter() - started, _cpu_seconds() - cpu_started
  images = BATCHES * BATCH_SIZE
  return {"images_per_second": images / seconds, "cpu_ms": cpu / images * 1e3}


def _cpu_seconds() -> float:
  pids = ["self", *(worker.pid for worker in multiprocessing.active_children())]
  ticks = 0
  for pid in pids:
    after_name = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    ticks += sum(map(int, after_name.split()[11:13]))  # utime, stime
  return ticks / os.sysconf("SC_CLK_TCK")


PIPELINES = {
  "tf_data": tf_data,
  "tf_data_antialias": functools.partial(tf_data, antialias=True),
  "torch": torch,
}


def main(argv: Sequence[str]) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("pipeline", choices=PIPELINES)
  parser.add_argument("folder", type=pathlib.Path)
  args = parser.parse_args(argv)
  print(json.dumps(measure(PIPELINES[args.pipeline](args.folder))))


if __name__ == "__main__":
  main(sys.argv[1:])
