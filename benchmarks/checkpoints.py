"""What a checkpoint a minute costs a run.

  python benchmarks/checkpoints.py --dataset=digits --image_size=32 --num_states=2 \
      --method=ssil_tkd --batch_size_new=64 --batch_size_memory=32 --memory_size=100

Takes the flags of experiments/run.py. About a minute of steps of the second state is
trained `PAIRS` times, in turn without a checkpoint and with one in the middle, which is
written in the background as always; the time ends when it is whole. Prints the medians, the
ratio pair by pair, and what a checkpoint costs by itself.
"""

import pathlib
import statistics
import sys
import tempfile
import time

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "experiments"))

import jax
import numpy as np
from rich.console import Console
from ssil_jax.training.keeper import Keeper
from ssil_jax.training.meter import NO_STEPS, Meter
from ssil_jax.training.trainer import make_trainer, train_phase

from ssil_jax.commands import run
from ssil_jax.progress import ProgressDisplay
from ssil_jax.training import devices, incremental, loop
from ssil_jax.training.checkpoint import Checkpoints, Underway
from ssil_jax.training.plan import make_plan, phase_plans
from ssil_jax.training.recorder import Journal

SECONDS = 60
PAIRS = 5
WARM_UP_STEPS = 10


def main(argv: list[str]) -> None:
  config = run.parse(argv)
  devices.prepare_cpu_devices(config)
  plan = make_plan(config)
  mesh = devices.choose_devices(config)
  trainer = make_trainer(plan, mesh)
  state = plan.states[1]
  phase = next(p for p in phase_plans(plan) if p.state is state)
  beginning = loop.start(plan, trainer)
  labels = plan.dataset.train.labels
  records = np.flatnonzero(labels < state.num_old)
  exemplars = beginning.memory._replace(
    records=records, labels=labels[records], ranks=np.zeros(len(records), np.int32)
  )
  progress = beginning._replace(memory=exemplars)
  pool = plan.pool(state, exemplars)
  given = incremental.given_in(plan, state, stats={}, teacher=beginning.train_state)
  host_state = beginning.train_state

  with (
    tempfile.TemporaryDirectory() as folder,
    Checkpoints(pathlib.Path(folder), kept=config.checkpoints_kept) as checkpoints,
    Journal(pathlib.Path(folder), steps_done=0, steps_recorded=0) as journal,
    ProgressDisplay(Console(quiet=True), num_states=1, num_images=1) as display,
  ):
    keeper = Keeper(checkpoints, journal, minutes=0, check_interrupt=lambda: None)
    stalls = []

    def train(num_steps: int, *, save: bool) -> float:
      """Seconds for so many steps, with a checkpoint in the middle or not."""
      nonlocal host_state
      first_step = int(host_state.step)
      steps = phase._replace(
        phase=phase.phase._replace(epochs=1, milestones=()), steps_per_epoch=num_steps
      )
      meter = Meter(
        steps,
        phase=0,
        first_step=first_step,
        steps_done=0,
        window=NO_STEPS,
        log_every=config.log_every,
        journal=journal,
        display=display,
      )

      def before_step(train_state, number):
        if not (save and number == num_steps // 2):
          return
        called = time.perf_counter()
        underway = Underway(
          phase=0,
          steps_done=number,
          teacher=given.teacher,
          num_teacher_classes=state.num_old,
          new_ranks=pool.new_ranks,
          window=meter.settle(),
          seconds=0.0,
        )
        settled = time.perf_counter()
        there = devices.fetch(train_state)
        keeper.save(progress._replace(train_state=there, underway=underway), wait=False)
        stalls.append((settled - called, time.perf_counter() - settled))

      on_devices = devices.replicate((host_state, given), mesh)
      jax.block_until_ready(on_devices)
      started = time.perf_counter()
      trained = train_phase(
        plan,
        trainer,
        *on_devices,
        steps,
        pool,
        phase_index=0,
        steps_done=0,
        meter=meter,
        before_step=before_step,
      )
      jax.block_until_ready(trained)
      checkpoints.wait()
      seconds = time.perf_counter() - started
      host_state = devices.fetch(trained)
      return seconds

    train(WARM_UP_STEPS, save=True)
    num_steps = round(SECONDS / train(WARM_UP_STEPS, save=False) * WARM_UP_STEPS)
    pairs = []
    for number in range(PAIRS):
      turn = (False, True) if number % 2 == 0 else (True, False)
      seconds = {save: train(num_steps, save=save) for save in turn}
      pairs.append((seconds[False], seconds[True]))
      print(f"without {seconds[False]:.2f} s, with {seconds[True]:.2f} s", flush=True)

    underway = Underway(0, 0, given.teacher, state.num_old, pool.new_ranks, NO_STEPS, 0.0)
    cpu, wall = time.process_time(), time.perf_counter()
    there = host_state.replace(step=host_state.step + 1)
    keeper.save(progress._replace(train_state=there, underway=underway))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    saved = sum(
      path.stat().st_size for path in checkpoints.last.rglob("*") if path.is_file()
    )

  ratios = [with_one / without for without, with_one in pairs]
  print(
    f"{num_steps} steps: without {statistics.median(p[0] for p in pairs):.2f} s, with one "
    f"checkpoint {statistics.median(p[1] for p in pairs):.2f} s; ratio "
    f"{statistics.median(ratios):.4f} ({min(ratios):.4f} to {max(ratios):.4f})"
  )
  waited, copied = (statistics.median(x) for x in zip(*stalls[1:], strict=True))
  print(
    f"a checkpoint of {saved / 1e6:.0f} MB: training waits {copied:.3f} s to copy it, "
    f"after {waited:.3f} s for the steps already sent; alone it takes {wall:.2f} s, "
    f"{cpu:.2f} s of CPU time"
  )


if __name__ == "__main__":
  main(sys.argv)
