"""Does training on two virtual CPU devices hang when XLA has a thread for each core only?

  python benchmarks/cpu_threads.py

Trains a small network with cross-device batch statistics in `PROCESSES` processes at a
time, so that the two cores are contended, for each size of XLA's thread pool. XLA aborts a
process in which an all-reduce has waited for 40 seconds.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence

THREADS = (2, 4)  # values of PJRT_NPROC
PROCESSES = 3
SECONDS = 60.0


def update(kernels, images):
  """Does one step of gradient descent on one device; jax is the child's alone."""
  import jax
  import jax.numpy as jnp

  def loss_fn(kernels):
    x = images
    for kernel in kernels:
      x = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
      )
      mean = jax.lax.pmean(jnp.mean(x, (0, 1, 2)), "device")
      square = jax.lax.pmean(jnp.mean(x * x, (0, 1, 2)), "device")
      x = jax.nn.relu((x - mean) * jax.lax.rsqrt(square - mean * mean + 1e-3))
    return jnp.mean(x**2)

  grads = jax.lax.pmean(jax.grad(loss_fn)(kernels), "device")
  return [kernel - 1e-3 * grad for kernel, grad in zip(kernels, grads, strict=True)]


def train() -> None:
  """Trains for `SECONDS`; prints the number of steps done."""
  import jax
  import numpy as np

  jax.config.update("jax_num_cpu_devices", 2)
  rng = np.random.default_rng(0)
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("device",))
  images, kernels = jax.device_put(
    (
      rng.standard_normal((2, 32, 32, 32, 8), np.float32),
      [0.1 * rng.standard_normal((2, 3, 3, 8, 8), np.float32) for _ in range(6)],
    ),
    jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("device")),
  )
  step = jax.pmap(update, axis_name="device", donate_argnums=0)
  steps, stop = 0, time.monotonic() + SECONDS
  while time.monotonic() < stop:
    kernels = step(kernels, images)
    steps += 1
  jax.block_until_ready(kernels)
  print(steps)


def main(argv: Sequence[str]) -> None:
  argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  ).parse_args(argv)
  for threads in THREADS:
    children = [
      subprocess.Popen(
        [sys.executable, __file__, "train"],
        env={**os.environ, "PJRT_NPROC": str(threads)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
      )
      for _ in range(PROCESSES)
    ]
    steps = [child.communicate()[0].strip() or "hung" for child in children]
    print(f"{threads} threads, 2 devices: steps done: {', '.join(steps)}")


if __name__ == "__main__":
  train() if sys.argv[1:] == ["train"] else main(sys.argv[1:])
