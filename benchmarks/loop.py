r"""What the training loop costs: beside the bare compiled step, and the host by itself.

  python benchmarks/loop.py --json=FILE --flagfile=cifar100.cfg --dataset=image_folder \
      --data_dir=DIR --width=16

Takes the flags of experiments/run.py, besides `--rounds` and `--json`. Steps are those of
the second state. The bare step trains on the same batch again and again; it and the loop
take turns of `SECONDS`. For the host alone the mapped step is replaced by one that returns
what it is given, so that what is left is sampler, feed, dispatch and meter; its process
keeps to one device and one core. Not so for photos that are decoded meanwhile, which are
most of the host's work. With --cprofile, where that one's main thread spends it.
"""

import contextlib
import cProfile
import multiprocessing
import os
import pathlib
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import measured
from rich.console import Console

from ssil_jax.commands import run as command
from ssil_jax.progress import ProgressDisplay
from ssil_jax.schedule import IncrementalState, Phase
from ssil_jax.system import keep_freed_memory
from ssil_jax.training import devices, loop
from ssil_jax.training.dispatches import dispatches
from ssil_jax.training.plan import make_plan
from ssil_jax.training.recorder import Recorder
from ssil_jax.training.run_state import RunState
from ssil_jax.training.session import Session, make_session
from ssil_jax.training.speed import begin_second_state

SECONDS = 5.0
HOST_STEPS = 1000  # at least


class Begun(NamedTuple):
  """The second state of a run, just begun."""

  session: Session
  state: IncrementalState
  phase: Phase
  run: RunState

  def of_steps(self, steps: int) -> "Begun":
    """Returns it with a phase of at least so many steps, which fill their dispatches."""
    at_once = self.session.devices.steps_at_once
    steps_per_epoch, epochs = -(-steps // at_once) * at_once, 1
    if steps_per_epoch > self.phase.steps_per_epoch:
      steps_per_epoch = self.phase.steps_per_epoch
      epochs = -(-steps // (steps_per_epoch * at_once)) * at_once
    return self._replace(
      phase=self.phase._replace(epochs=epochs, steps_per_epoch=steps_per_epoch)
    )

  def train(self) -> None:
    """Goes through the phase as runs do."""
    loop.train_phase(self.session, self.state, self.phase, self.run)


@contextlib.contextmanager
def begun(argv: Sequence[str]) -> Iterator[Begun]:
  """Begins the second state; its steps write to a temporary folder."""
  keep_freed_memory()
  config = command.parse(argv).config
  devices.prepare_cpu_devices(config)
  session = make_session(make_plan(config), devices.choose_devices(config))
  state, phase, run = begin_second_state(session)
  with (
    tempfile.TemporaryDirectory() as folder,
    Recorder(pathlib.Path(folder), steps_done=0, steps_recorded=0) as session.recorder,
    ProgressDisplay(
      Console(quiet=True), num_states=1, num_images=phase.num_images
    ) as session.display,
  ):
    yield Begun(session, state, phase, run)


def bare_steps(begun: Begun) -> Callable[[int], None]:
  """Returns a function that does so many steps with the phase's first batch."""
  session, state, phase, run = begun
  mapped, at_once = session.devices, session.devices.steps_at_once
  batches = loop.train_batches(session, state, phase, run)
  batch, rate = mapped.shard(dispatches(batches, phase, first=0, size=at_once)[0])
  context = mapped.replicate(loop.training_context(session, state, phase, run))
  train_state = mapped.replicate(run.train_state)

  def train(steps: int) -> None:
    nonlocal train_state
    for _ in range(0, steps, at_once):
      train_state, _ = mapped.train_step(
        train_state, batch, context, rate, later=state.num_old > 0
      )
    jax.block_until_ready(train_state)

  return train


def seconds_of(work: Callable[[], Any]) -> float:
  started = time.perf_counter()
  work()
  return time.perf_counter() - started


def beside_bare_step(argv: Sequence[str], rounds: int) -> dict[str, Any]:
  """Returns seconds a step of the bare step and of the loop, in turn; the environment."""
  with begun(argv) as whole:
    bare, at_once = bare_steps(whole), whole.session.devices.steps_at_once
    for _ in range(2):  # compiles; warms up
      bare(at_once)
      whole.of_steps(at_once).train()
    per_step = seconds_of(lambda: bare(2 * at_once)) / (2 * at_once)
    whole = whole.of_steps(round(SECONDS / per_step))
    steps, found = whole.phase.num_steps, {"bare": [], "loop": []}
    for _ in range(rounds):
      found["bare"].append(seconds_of(lambda: bare(steps)) / steps)
      found["loop"].append(seconds_of(whole.train) / steps)
    sizes = {"px": whole.session.plan.dataset.image_size}
    sizes |= {"width": whole.session.plan.config.width}
    sizes |= {"batch": " + ".join(map(str, whole.phase.group_sizes))}
    return {
      "found": found,
      "of": sizes,
      "on_device": whole.session.plan.dataset.train.on_device,
      "environment": whole.session.devices.describe(),
    }


def host_alone(argv: Sequence[str], rounds: int, profiled: bool) -> dict[str, list[float]]:
  """Returns seconds a step, wall and CPU, of a step that does nothing, on one core."""
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  with begun([*argv, "--num_devices=1"]) as whole:
    mapped = whole.session.devices
    shape = (mapped.steps_at_once,) if mapped.steps_at_once > 1 else ()
    metrics = mapped.replicate({name: jnp.ones(shape) for name in ("loss", "top1")})
    mapped.train_step = lambda train_state, *args, **kwargs: (train_state, metrics)
    whole = whole.of_steps(HOST_STEPS)
    whole.train()  # warms up
    found = {"wall": [], "CPU": []}
    for _ in range(rounds):
      began = time.process_time()
      found["wall"].append(seconds_of(whole.train) / whole.phase.num_steps)
      found["CPU"].append((time.process_time() - began) / whole.phase.num_steps)
    if profiled:
      with cProfile.Profile() as profile:
        whole.train()
      pstats.Stats(profile).sort_stats("tottime").print_stats(25)
    return found


def main(argv: Sequence[str]) -> None:
  parser = measured.parser(__doc__)
  parser.add_argument("--cprofile", action="store_true")
  args, flags = measured.parse_beside_run(parser, argv)
  apart = multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1)
  with apart:  # a process each: virtual devices cannot be made twice
    beside = apart.apply(beside_bare_step, (flags, args.rounds))
    host = {"wall": [], "CPU": []}
    if beside["on_device"]:
      host = apart.apply(host_alone, (flags, args.rounds, args.cprofile))
  found = beside["found"]
  row = beside["of"] | {
    "devices": beside["environment"]["num_devices"],
    "bare step, ms": 1e3 * statistics.median(found["bare"]),
    "loop, ms": 1e3 * statistics.median(found["loop"]),
    "loop / bare step": measured.told(measured.ratio(found["loop"], found["bare"])),
    "host alone, ms": 1e3 * statistics.median(host["wall"]) if host["wall"] else None,
    "its CPU, ms": 1e3 * statistics.median(host["CPU"]) if host["CPU"] else None,
    "seconds": [found, host],
  }
  environment = beside["environment"]
  measured.show("A step in the loop", [row], environment=environment, file=args.json)


if __name__ == "__main__":
  main(sys.argv[1:])
