"""What one training step costs the host: sampler, feed, dispatch, meter; on one core.

  python benchmarks/loop.py --flagfile=cifar100.cfg --dataset=image_folder --data_dir=DIR \
      --width=4 --num_states=2 --num_devices=1

Takes the flags of experiments/run.py. The mapped step is replaced by one that returns what
it is given, so that what is left of `loop.train_phase` is the host's own work. The process
keeps to one core. Wall and CPU time a step, `ROUNDS` times in each of the first two states.
With --cprofile, where the main thread's time goes.
"""

import cProfile
import os
import pathlib
import pstats
import statistics
import sys
import tempfile
import time

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent))

import jax.numpy as jnp
from rich.console import Console

from ssil_jax import memory
from ssil_jax.commands import run
from ssil_jax.progress import ProgressDisplay
from ssil_jax.training import devices, loop
from ssil_jax.training.plan import make_plan
from ssil_jax.training.recorder import Recorder
from ssil_jax.training.session import make_session

ROUNDS = 5
STEPS = 1000  # at least


def measure(argv: list[str], *, profiled: bool) -> None:
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  config = run.parse(argv).config
  devices.prepare_cpu_devices(config)
  plan = make_plan(config)
  session = make_session(plan, devices.choose_devices(config))
  metrics = session.devices.replicate({name: jnp.float32(1) for name in ("loss", "top1")})
  session.devices.train_step = lambda train_state, *args, **kwargs: (train_state, metrics)
  beginning = session.start()
  for state in plan.states[:2]:
    phase = state.phases[0]
    if state.num_old:
      pool = plan.pool(plan.states[0], beginning.exemplars)
      sizes = {"memory_size": config.memory_size, "num_seen": state.num_old}
      new = (pool.new, pool.new_labels, pool.new_ranks)
      beginning = beginning._replace(
        exemplars=memory.update(beginning.exemplars, *new, **sizes)
      )
    phase = phase._replace(epochs=-(-STEPS // phase.steps_per_epoch))
    position = loop.begin_state(session, state, beginning)
    walls, cpus = [], []
    with (
      tempfile.TemporaryDirectory() as folder,
      Recorder(pathlib.Path(folder), steps_done=0, steps_recorded=0) as session.recorder,
      ProgressDisplay(
        Console(quiet=True), num_states=2, num_images=phase.num_images
      ) as session.display,
    ):
      for _ in range(1 + ROUNDS):
        wall, cpu = time.perf_counter(), time.process_time()
        loop.train_phase(session, state, phase, position)
        walls.append((time.perf_counter() - wall) / phase.num_steps)
        cpus.append((time.process_time() - cpu) / phase.num_steps)
      if profiled:
        with cProfile.Profile() as profile:
          loop.train_phase(session, state, phase, position)
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
    sizes = " + ".join(map(str, phase.group_sizes))
    times = (
      f"{title} {1e3 * statistics.median(found):.3f} ms (smallest {1e3 * min(found):.3f})"
      for title, found in (("wall", walls[1:]), ("CPU", cpus[1:]))
    )
    print(f"state {state.index}, {sizes}, {phase.num_steps} steps: {', '.join(times)}")


if __name__ == "__main__":
  given = [argument for argument in sys.argv if argument != "--cprofile"]
  measure(given, profiled=len(given) < len(sys.argv))
