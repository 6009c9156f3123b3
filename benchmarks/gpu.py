"""All that is to be measured on a GPU, in one go of less than ten minutes.

  python benchmarks/gpu.py --json=DIR
  python benchmarks/gpu.py --json=DIR --parts=protocol,resume

step32, step224  the step in float32 and bfloat16 beside PyTorch's (`step.py`), and its
                 share of what the hardware allows (roofline); at 32 pixels several steps in
                 a dispatch beside one by one, too
protocol         CIFAR-100's whole run in bfloat16 beside PyTorch's, training and evaluation
                 (`protocol.py`)
loop32, loop224  the loop beside the bare step (`loop.py`), with images on the device, and
                 with photos that are decoded and copied meanwhile
resume           whether a run that is interrupted and resumed with
                 --xla_gpu_deterministic_ops leaves the same network, to the bit

Each part is a process of its own, so that none holds the other's memory, and shows what it
finds as it goes; one that fails or takes too long is told, and the others go on, while
there is time. Programs are compiled anew, into a cache that all parts share.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple
from unittest import mock

FOLDER = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

# Dense, without sparsity: FLOP/s of tensor cores in bfloat16 and TF32, bytes/s of memory
# (NVIDIA's data sheets). jax and PyTorch both let convolutions of float32 use TF32.
PEAKS = {
  "NVIDIA H200": (989.4e12, 494.7e12, 4.8e12),
  "NVIDIA H100 80GB HBM3": (989.4e12, 494.7e12, 3.35e12),
  "NVIDIA H100 PCIe": (756e12, 378e12, 2.0e12),
  "NVIDIA A100-SXM4-80GB": (312e12, 156e12, 2.039e12),
  "NVIDIA A100-SXM4-40GB": (312e12, 156e12, 1.555e12),
}
PHOTOS = {"train": 32, "test": 4}  # of each class
PHOTO_CLASSES, PHOTO_SIZE = 20, 500
LOOP = "loop --rounds=1 --num_states=2 --precision=bfloat16"
ON_DEVICE = "--dataset=digits --image_size=32 --width=64 --memory_size=100"
STREAMED = f"--dataset=image_folder --image_size=224 --memory_size={10 * PHOTO_CLASSES}"
RESUMED = {
  "dataset": "digits",
  "image_size": 32,
  "num_states": 2,
  "memory_size": 40,
  "batch_size_new": 32,
  "batch_size_memory": 8,
  "epochs_first": 2,
  "epochs": 2,
  "precision": "bfloat16",
  "steps_per_dispatch": 4,
}


class Part(NamedTuple):
  """A script and its flags, and the seconds that it may take."""

  command: str
  seconds: int


DEADLINE = 590  # seconds for all
# What each may take. There is no time to compile PyTorch in every way: at 32 pixels
# launching kernels is the limit, and "reduce-overhead" spares it by CUDA graphs.
PARTS = {
  "step32": Part(
    "step --cost --sizes=32 --torch=eager,reduce-overhead --one_by_one --seconds=2", 150
  ),
  "resume": Part("gpu resume", 60),
  "protocol": Part(
    "protocol --full --precision=bfloat16 --torch=reduce-overhead,eager --rounds=1", 250
  ),
  "step224": Part("step --cost --sizes=224 --torch=eager,default --seconds=2", 120),
  "loop32": Part(f"{LOOP} {ON_DEVICE}", 60),
  "loop224": Part(f"{LOOP} {STREAMED}", 90),
}


def make_photos(folder: pathlib.Path) -> None:
  """Writes JPEG files of noise, of as many pixels and bytes as ImageNet's usually have."""
  import measured
  import numpy as np
  import simplejpeg

  for seed, (split, count) in enumerate(PHOTOS.items()):
    labels = np.repeat(np.arange(PHOTO_CLASSES), count)
    images = measured.generated_images(len(labels), PHOTO_SIZE, labels, seed)
    for number, (label, image) in enumerate(zip(labels, images, strict=True)):
      file = folder / split / f"{label:02}" / f"{number}.jpg"
      file.parent.mkdir(parents=True, exist_ok=True)
      file.write_bytes(simplejpeg.encode_jpeg(image, quality=75, colorsubsampling="420"))


def resume(interrupted_at: int = 20, **settings: Any) -> bool:
  """Trains small runs, one of them interrupted in the middle of a state, and resumed.

  Args:
    interrupted_at: dispatches of that run before it is.
    settings: of the runs.

  Returns:
    Whether all leave the same network, to the bit; prints their hashes.

  Raises:
    RuntimeError: the run was not interrupted, or did not go on from where it was.
  """
  import jax
  import numpy as np
  from rich.console import Console

  import ssil_jax
  from ssil_jax.distributed.preemption import Interrupted
  from ssil_jax.training import loop
  from ssil_jax.training.session import Session
  from ssil_jax.training.storage import Networks

  dispatched = itertools.count(1)
  maybe_save = Session.maybe_save

  def counted(session, run):
    if next(dispatched) == interrupted_at and session.folder.name == "resumed":
      session.check_interrupt = stop
    maybe_save(session, run)

  def stop():
    raise Interrupted(signal.SIGTERM)

  hashes, counts = {}, {}
  with (
    mock.patch.object(Session, "maybe_save", counted),
    tempfile.TemporaryDirectory() as folder,
  ):
    for name in ("once", "again", "resumed"):
      dispatched = itertools.count(1)
      config = ssil_jax.make_config(**settings, workdir=f"{folder}/{name}")
      try:
        loop.run(config, Console(quiet=True))
      except Interrupted:
        print(f"interrupted before dispatch {interrupted_at}, and resumed")
        loop.run(config, Console(quiet=True))
      counts[name] = next(dispatched) - 1
      with Networks(pathlib.Path(config.workdir), own=False) as networks:
        arrays = jax.tree.leaves(networks.read(2))
      digest = hashlib.blake2b(b"".join(np.asarray(x).tobytes() for x in arrays))
      hashes[name] = digest.hexdigest()[:16]
  # The one at which it stopped is asked for twice; from the beginning it would be more.
  if counts["resumed"] != counts["once"] + 1:
    raise RuntimeError(f"not resumed from where it stopped: dispatches {counts}")
  same = len(set(hashes.values())) == 1
  flags = os.environ.get("XLA_FLAGS")
  print(hashes)
  print(f"with XLA_FLAGS={flags}: {'the same' if same else 'NOT the same'} to the bit")
  return same


def show_roofline(file: pathlib.Path) -> None:
  """Prints what share of the hardware's limit the steps in a file of `step.py` reach."""
  found = json.loads(file.read_text())
  device = found["environment"]["device"]
  peaks = PEAKS.get(device)
  if peaks is None:
    print(f"no roofline: the peaks of {device} are not in PEAKS")
  for row in found["rows"]:
    for cost in filter(None, row["cost"]):
      per_image, moved = (cost[name] / row["batch"] for name in ("flops", "bytes"))
      print(
        f"{row['px']} px, {row['precision']}: {per_image / 1e9:.2f} GFLOP and at least "
        f"{moved / 1e6:.0f} MB moved an image"
      )
      if peaks is not None:
        fast, slow, bandwidth = peaks
        peak = fast if row["precision"] == "bfloat16" else slow
        rate = row["ssil_jax, img/s"]
        print(
          f"  of what there is, {per_image * rate / peak:.0%} of the FLOP/s and at least "
          f"{moved * rate / bandwidth:.0%} of the bytes/s"
        )


def check_gpu() -> None:
  """Raises SystemExit unless jax and PyTorch both have a GPU; in a process of its own."""
  code = "import jax, torch; print(jax.default_backend(), torch.cuda.is_available())"
  done = subprocess.run(
    [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False
  )
  if done.stdout.split() != ["gpu", "True"]:
    raise SystemExit(
      "no GPU for both jax and PyTorch (jax's backend, and whether there is CUDA: "
      f"{done.stdout.strip() or 'an error, above'}): see benchmarks/README.md"
    )


def run(part: str, environment: dict[str, str], folder: pathlib.Path, until: float) -> bool:
  """Runs a part; returns whether it did what it should in its time.

  Args:
    part: its name.
    environment: of its process.
    folder: for its JSON file, and for photos.
    until: when `time.monotonic` ends it, if it has not ended.
  """
  name, *words = PARTS[part].command.split()
  command, own = [sys.executable, str(FOLDER / f"{name}.py"), *words], dict(environment)
  started, file = time.monotonic(), folder / f"{part}.json"
  file.unlink(missing_ok=True)
  if part == "resume":
    flags = own.get("XLA_FLAGS", ""), "--xla_gpu_deterministic_ops=true"
    own["XLA_FLAGS"] = " ".join(filter(None, flags))
  else:
    command.append(f"--json={file}")
  with tempfile.TemporaryDirectory() as photos:
    if part == "loop224":
      make_photos(pathlib.Path(photos))
      command.append(f"--data_dir={photos}")
    seconds = min(started + PARTS[part].seconds, until) - time.monotonic()
    process = subprocess.Popen(command, env=own, start_new_session=True)
    try:
      status = process.wait(max(0, seconds))
    except subprocess.TimeoutExpired:
      status = "out of time"
    finally:  # with what it has started, which may hold the GPU's memory
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
      process.wait()
  if name == "step" and file.exists():
    show_roofline(file)
  print(f"-- {part}: {time.monotonic() - started:.0f} s", flush=True)
  if status:
    print(f"FAILED: {' '.join(command)}: {status}", flush=True)
  return not status


def stop(number: int, frame: Any) -> None:
  """Ends this process so that its parts are ended, too."""
  raise SystemExit(128 + number)


def main(argv: Sequence[str]) -> None:
  if list(argv) == ["resume"]:
    raise SystemExit(not resume(**RESUMED))
  until = time.monotonic() + DEADLINE
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--json", type=pathlib.Path, help="folder of the files")
  parser.add_argument("--parts", default=",".join(PARTS), help="which, with commas between")
  args = parser.parse_args(argv)
  parts = args.parts.split(",")
  for part in parts:
    if part not in PARTS:
      parser.error(f"--parts: {part!r}: known are {', '.join(PARTS)}")
  signal.signal(signal.SIGTERM, stop)
  check_gpu()
  with tempfile.TemporaryDirectory() as scratch:
    folder = args.json or pathlib.Path(scratch)
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
      # Both frameworks share the memory.
      "XLA_CLIENT_MEM_FRACTION": "0.5",
      # What is timed and what is counted are compiled once.
      "JAX_COMPILATION_CACHE_DIR": f"{scratch}/compiled",
    }
    environment.pop("XLA_PYTHON_CLIENT_MEM_FRACTION", None)  # the other's former name
    done = [run(part, environment, folder, until) for part in parts]
  raise SystemExit(not all(done))


if __name__ == "__main__":
  main(sys.argv[1:])
