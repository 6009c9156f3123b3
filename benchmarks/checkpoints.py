r"""What a checkpoint a minute costs a run.

  python benchmarks/checkpoints.py --dataset=digits --image_size=32 --num_states=2 \
      --method=ssil_tkd --batch_size_new=64 --batch_size_memory=32 --memory_size=100

Takes the flags of experiments/run.py, besides `--rounds` and `--json`. About a minute of
steps of the second state is trained in rounds, in turn without a checkpoint and with one in
the middle, which is written in the background as always; the time ends when it is whole.
Prints the medians, the ratio pair by pair, for how long training waits for the steps sent
before and to copy its arrays, and what a checkpoint costs by itself.
"""

import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent))

import measured
import numpy as np
from rich.console import Console

from ssil_jax.commands import run
from ssil_jax.progress import ProgressDisplay
from ssil_jax.system import keep_freed_memory
from ssil_jax.training import devices, loop
from ssil_jax.training.checkpoint import Checkpoints
from ssil_jax.training.plan import make_plan
from ssil_jax.training.recorder import Recorder
from ssil_jax.training.session import make_session

SECONDS = 60
WARM_UP_STEPS = 10


def main(argv: Sequence[str]) -> None:
  args, flags = measured.parse_beside_run(measured.parser(__doc__, rounds=5), argv)
  keep_freed_memory()
  config = run.parse(flags).config
  devices.prepare_cpu_devices(config)
  plan = make_plan(config)
  session = make_session(plan, devices.choose_devices(config))
  state = plan.states[1]
  beginning = session.start()
  labels = plan.dataset.train.labels
  records = np.flatnonzero(labels < state.num_old)
  exemplars = beginning.exemplars._replace(
    records=records, labels=labels[records], ranks=np.zeros(len(records), np.int32)
  )
  here = loop.begin_state(session, state, beginning._replace(exemplars=exemplars))

  with (
    tempfile.TemporaryDirectory() as folder,
    Checkpoints(pathlib.Path(folder), kept=config.checkpoints_kept) as checkpoints,
    Recorder(pathlib.Path(folder), steps_done=0, steps_recorded=0) as session.recorder,
    ProgressDisplay(Console(quiet=True), num_states=1, num_images=1) as session.display,
  ):
    waits = []

    def train(num_steps: int, *, save: bool) -> float:
      """Returns seconds for so many steps, with a checkpoint in the middle or not."""
      nonlocal here
      phase = state.phases[0]._replace(epochs=1, milestones=(), steps_per_epoch=num_steps)
      calls = 0

      def maybe_save(now):
        nonlocal calls
        calls += 1
        if save and calls == num_steps // 2:
          called = time.perf_counter()
          checkpoints.save(now())
          waits.append(time.perf_counter() - called)

      session.maybe_save = maybe_save
      started = time.perf_counter()
      here = loop.train_phase(session, state, phase, here)
      checkpoints.wait()
      seconds = time.perf_counter() - started
      here = here._replace(position=here.position._replace(steps_done=0))
      return seconds

    train(WARM_UP_STEPS, save=True)
    num_steps = round(SECONDS / train(WARM_UP_STEPS, save=False) * WARM_UP_STEPS)
    seconds = {False: [], True: []}
    for number in range(args.rounds):
      for save in (False, True) if number % 2 == 0 else (True, False):
        seconds[save].append(train(num_steps, save=save))

    cpu, wall = time.process_time(), time.perf_counter()
    checkpoints.save(here)
    checkpoints.wait()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    saved = sum(
      path.stat().st_size for path in checkpoints.last.rglob("*") if path.is_file()
    )

  ratios = measured.ratio(seconds[True], seconds[False])
  row = {
    "steps": num_steps,
    "without, s": statistics.median(seconds[False]),
    "with one, s": statistics.median(seconds[True]),
    "ratio": "{:.3f} ({:.3f} to {:.3f})".format(*ratios),  # some thousandths count
    "MB": saved / 1e6,
    "training waits, s": statistics.median(waits[1:]),
    "alone, s": wall,
    "its CPU, s": cpu,
    "seconds": [seconds[False], seconds[True]],
  }
  environment = session.devices.describe()
  measured.show("A checkpoint", [row], environment=environment, file=args.json)


if __name__ == "__main__":
  main(sys.argv[1:])
