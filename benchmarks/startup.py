"""Start-up time and memory with millions of records.

  python benchmarks/startup.py --images=1281167 --classes=1000 --folder=DIR

Writes that many tiny images to DIR, as a prepared `landmarks_v2/10k` directory, unless
they are there, and then times, in a new process: from its start to the first training batch
of state 1 (imports included, compilation not), with cached labels. Prints seconds, and what
the process holds for the data set: bytes of arrays, Python objects, peak memory.
"""

import argparse
import gc
import io
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Sequence

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_generated_pb2

from ssil_jax import memory
from ssil_jax.commands import run
from ssil_jax.data import fingerprint, loader
from ssil_jax.data.sources import labels
from ssil_jax.sampling import Key
from ssil_jax.training import devices
from ssil_jax.training.plan import make_plan

NUM_SHARDS = 256
IMAGE_SIZE = 72


def write(folder: pathlib.Path, num_images: int, num_classes: int) -> None:
  """Writes a directory as TFDS does; every record is the same small JPEG."""
  directory = folder / "landmarks_v2" / "10k" / "1.0.0"
  directory.mkdir(parents=True)
  file = io.BytesIO()
  Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), (90, 60, 30)).save(file, "JPEG")
  example = tf_example_generated_pb2.Example()
  example.features.feature["image"].bytes_list.value.append(file.getvalue())
  example.features.feature["label"].int64_list.value.append(0)
  splits, all_labels = [], {}
  for split, count in (("train", num_images), ("test", num_classes)):
    of_split = np.sort(np.arange(count, dtype=np.int32) % num_classes)
    parts = np.array_split(of_split, NUM_SHARDS if split == "train" else 1)
    for i, part in enumerate(parts):
      name = f"landmarks_v2-{split}.array_record-{i:05}-of-{len(parts):05}"
      writer = ArrayRecordWriter(str(directory / name), "group_size:1,uncompressed")
      for label in part.tolist():
        example.features.feature["label"].int64_list.value[0] = label
        writer.write(example.SerializeToString())
      writer.close()
    all_labels[split] = of_split
    splits.append(
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=[len(part) for part in parts],
        num_bytes=0,
        filename_template=tfds.core.ShardedFileTemplate(
          data_dir=directory,
          dataset_name="landmarks_v2",
          split=split,
          filetype_suffix="array_record",
        ),
      )
    )
  labels.save(directory, all_labels)

  with tfds.core.registered.skip_registration():

    class LandmarksV2(tfds.core.ShardBasedBuilder):
      VERSION = tfds.core.Version("1.0.0")
      BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="10k")]

      def _info(self):
        names = [str(c) for c in range(num_classes)]
        return tfds.core.DatasetInfo(
          builder=self,
          features=tfds.features.FeaturesDict(
            {
              "image": tfds.features.Image(encoding_format="jpeg"),
              "label": tfds.features.ClassLabel(names=names),
            }
          ),
        )

      def _shard_iterators_per_split(self, dl_manager):
        raise NotImplementedError

  builder = LandmarksV2(data_dir=folder, config="10k", file_format="array_record")
  builder.info.set_splits(tfds.core.SplitDict(splits))
  builder.info.write_to_directory(directory)


def start(folder: pathlib.Path, started: float) -> None:
  """Does what a run does before its first step, but for compiling; prints the seconds."""
  jax.config.update("jax_num_cpu_devices", 1)
  config = run.parse(
    [
      "startup",
      "--flagfile=landmark10k.cfg",
      f"--data_dir={folder}",
      f"--image_size={IMAGE_SIZE}",
    ]
  ).config
  imported = time.time() - started
  gc.collect()
  objects = len(gc.get_objects())
  plan = make_plan(config)
  identity = fingerprint.fingerprint(fingerprint.parts(plan.dataset))
  opened = time.time() - started
  state, phase = next(plan.phases())
  batches = loader.TrainBatches(
    dataset=plan.dataset,
    pool=plan.pool(state, memory.empty()),
    sampling=phase.sampling,
    key=Key(0, 1, 0),
    batch_size_new=config.batch_size_new,
    batch_size_memory=config.batch_size_memory,
    num_devices=1,
    num_steps=phase.num_steps,
  )
  chosen = devices.Devices(devices.choose_devices(config), model=None)
  next(loader.prefetched(batches, chosen.shard))
  first = time.time() - started
  gc.collect()
  train = plan.dataset.train
  print(
    f"{len(train.labels)} images: imports {imported:.1f} s, data set open at "
    f"{opened:.1f} s, first batch at {first:.1f} s; labels and record numbers "
    f"{(train.labels.nbytes + train.images.numbers.nbytes) / 2**20:.0f} MiB, "
    f"{len(gc.get_objects()) - objects} more Python objects, peak memory "
    f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MiB "
    f"({identity[:8]})"
  )


def main(argv: Sequence[str]) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--images", type=int, default=1_281_167, help="for training")
  parser.add_argument("--classes", type=int, default=1000)
  parser.add_argument("--folder", type=pathlib.Path, required=True, help="where they lie")
  parser.add_argument("--started", type=float, help="when the process that is timed was")
  args = parser.parse_args(argv)
  if args.started:
    start(args.folder, args.started)
    return
  if not (args.folder / "landmarks_v2").exists():
    write(args.folder, args.images, args.classes)
  subprocess.run(
    [sys.executable, __file__, f"--started={time.time()}", f"--folder={args.folder}"],
    check=True,
  )


if __name__ == "__main__":
  main(sys.argv[1:])
