"""All that is to be measured on a GPU, in one go of less than ten minutes.

  python benchmarks/gpu.py --json=DIR

1. The step at 32 and 224 pixels, float32 and bfloat16, beside PyTorch's (`step.py`), with
   the share that it has of what the hardware allows (roofline).
2. Steps sent one by one beside eight at a time.
3. CIFAR-100's whole protocol in bfloat16 beside PyTorch's (`protocol.py`).
4. Whether a run that is interrupted and resumed with --xla_gpu_deterministic_ops leaves the
   same network, to the bit.

Each part is a process of its own, so that none holds the other's memory; one that fails is
told, and the others go on.
"""

import argparse
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
# Seconds for each part; together less than ten minutes.
PARTS = {
  "step --cost --sizes=32 --torch=default,reduce-overhead --seconds=3": 180,
  "step --cost --sizes=224 --torch=default --seconds=3": 130,
  "step --cost --sizes=32 --precisions=bfloat16 --torch= --steps_per_dispatch=1": 40,
  "protocol --full --precision=bfloat16 --torch=default --rounds=1": 180,
  "gpu resume": 60,
}


def resume() -> None:
  """Trains small runs, of which one is interrupted; prints the hashes of their networks."""
  import jax
  import numpy as np
  from rich.console import Console

  import ssil_jax
  from ssil_jax.distributed.preemption import Interrupted
  from ssil_jax.training import devices, loop
  from ssil_jax.training.storage import Networks

  hashes = {}
  with tempfile.TemporaryDirectory() as folder:
    for name in ("once", "again", "resumed"):
      config = ssil_jax.make_config(
        dataset="digits",
        image_size=32,
        num_states=2,
        memory_size=40,
        batch_size_new=32,
        batch_size_memory=8,
        epochs_first=2,
        epochs=2,
        precision="bfloat16",
        steps_per_dispatch=4,
        workdir=f"{folder}/{name}",
      )
      if name == "once":
        devices.prepare_cpu_devices(config)
      asked = itertools.count()

      def ask(name=name, asked=asked):
        if name == "resumed" and next(asked) == 8:
          raise Interrupted(signal.SIGTERM)

      workdir = pathlib.Path(config.workdir)
      try:
        loop.run(config, Console(quiet=True), check_interrupt=ask)
      except Interrupted:
        print("interrupted; saved:", *sorted(p.name for p in workdir.glob("checkpoints/*")))
        loop.run(config, Console(quiet=True), check_interrupt=ask)
      with Networks(workdir, own=False) as networks:
        arrays = jax.tree.leaves(networks.read(2))
      digest = hashlib.blake2b(b"".join(np.asarray(x).tobytes() for x in arrays))
      hashes[name] = digest.hexdigest()[:16]
  print(hashes)
  same = "the same" if len(set(hashes.values())) == 1 else "NOT the same"
  print(f"with XLA_FLAGS={os.environ.get('XLA_FLAGS')}: {same} to the bit")


def show_roofline(file: pathlib.Path) -> None:
  """Prints what share of the hardware's limit the steps in a file of `step.py` reach."""
  found = json.loads(file.read_text())
  peaks = PEAKS.get(found["environment"]["device"])
  for row in found["rows"]:
    [cost] = row["cost"]
    line = (
      f"{row['px']} px, {row['precision']}: {cost['flops'] / row['batch'] / 1e9:.2f} GFLOP "
      f"and {cost['bytes'] / row['batch'] / 1e6:.0f} MB moved an image"
    )
    if peaks is not None:
      fast, slow, bandwidth = peaks
      peak = fast if row["precision"] == "bfloat16" else slow
      least = max(cost["flops"] / peak, cost["bytes"] / bandwidth)
      share = least * row["ssil_jax, img/s"] / row["batch"]
      line += f"; {share:.0%} of the roofline"
    print(line)


def main(argv: Sequence[str]) -> None:
  if list(argv) == ["resume"]:
    resume()
    return
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--json", type=pathlib.Path, help="folder of the files")
  args = parser.parse_args(argv)
  folder = args.json or pathlib.Path(tempfile.mkdtemp())
  folder.mkdir(parents=True, exist_ok=True)
  environment = os.environ | {
    # Both frameworks share the memory.
    "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5",
    # What is timed and what is counted are compiled once.
    "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
  }
  for number, (part, seconds) in enumerate(PARTS.items()):
    name, *words = part.split()
    command = [sys.executable, FOLDER / f"{name}.py", *words]
    file = folder / f"{number}_{name}.json"
    own = environment
    if words == ["resume"]:
      own = environment | {"XLA_FLAGS": "--xla_gpu_deterministic_ops=true"}
    else:
      command.append(f"--json={file}")
    started = time.monotonic()
    try:
      subprocess.run(command, check=True, timeout=seconds, env=own)
      if name == "step":
        show_roofline(file)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
      print(f"FAILED: {error}")
    print(f"-- {part}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
  main(sys.argv[1:])
