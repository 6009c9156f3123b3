"""Images/s of the bare compiled step and of the whole training loop, by device count.

  python benchmarks/throughput.py --flagfile=cifar100.cfg --dataset=image_folder \
      --data_dir=DIR --width=16 --num_states=5

Takes the flags of experiments/run.py. Every device count is measured in processes of its
own, in turn, `ROUNDS` times; in a process the bare step and the loop take turns too.
Medians are printed, and the ratio of loop to bare step, pair by pair.
"""

import multiprocessing
import pathlib
import statistics
import sys
import tempfile
import time

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent))

import jax
from rich.console import Console
from rich.table import Table

from ssil_jax.commands import run
from ssil_jax.progress import ProgressDisplay
from ssil_jax.training import devices, loop
from ssil_jax.training.plan import make_plan
from ssil_jax.training.recorder import Recorder
from ssil_jax.training.session import make_session

DEVICE_COUNTS = (1, 2, 4)
ROUNDS = 3  # processes for each device count
PAIRS = 2  # bare step and loop, in each process


def measure(argv: list[str], num_devices: int) -> list[tuple[float, float]]:
  """Images/s of (bare step, loop), `PAIRS` times, over one epoch of state 1 each."""
  config = run.parse([*argv, f"--num_devices={num_devices}", "--epochs_first=1"]).config
  devices.prepare_cpu_devices(config)
  plan = make_plan(config)
  session = make_session(plan, devices.choose_devices(config))
  state, phase = next(plan.phases())
  beginning = loop.begin_state(session, state, session.start())
  train_state, context, learning_rate = session.devices.replicate(
    (
      beginning.train_state,
      loop.training_context(session, state, phase, beginning),
      jax.numpy.float32(0.1),
    )
  )
  batch = session.devices.shard(loop.train_batches(session, state, phase, beginning)[0])

  def bare_step():
    nonlocal train_state
    train_state, _ = session.devices.train_step(
      train_state, batch, context, learning_rate, later=False
    )

  for _ in range(2):  # compile and warm up
    bare_step()
  jax.block_until_ready(train_state)

  pairs = []
  with (
    tempfile.TemporaryDirectory() as folder,
    Recorder(pathlib.Path(folder), steps_done=0, steps_recorded=0) as session.recorder,
    ProgressDisplay(
      Console(quiet=True), num_states=1, num_images=PAIRS * phase.num_images
    ) as session.display,
  ):
    session.maybe_save = lambda run: None  # no files
    for _ in range(PAIRS):
      started = time.perf_counter()
      for _ in range(phase.num_steps):
        bare_step()
      jax.block_until_ready(train_state)
      bare_seconds = time.perf_counter() - started

      started = time.perf_counter()
      loop.train_phase(session, state, phase, beginning)
      loop_seconds = time.perf_counter() - started
      pairs.append((phase.num_images / bare_seconds, phase.num_images / loop_seconds))
  return pairs


def main(argv: list[str]) -> None:
  pairs = {count: [] for count in DEVICE_COUNTS}
  for _ in range(ROUNDS):
    for count in DEVICE_COUNTS:
      with multiprocessing.get_context("spawn").Pool(1) as process:
        pairs[count] += process.apply(measure, (argv, count))
  table = Table("devices", "bare step, img/s", "loop, img/s", "loop / bare step")
  for count, measured in pairs.items():
    bare, whole = zip(*measured, strict=True)
    ratio = statistics.median(b / a for a, b in measured)
    table.add_row(
      str(count),
      f"{statistics.median(bare):,.0f}",
      f"{statistics.median(whole):,.0f}",
      f"{ratio:.3f}",
    )
  Console(width=100).print(table)


if __name__ == "__main__":
  main(sys.argv)
