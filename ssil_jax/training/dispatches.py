"""The training steps of a phase, as many at a time as are sent to the devices together."""

import dataclasses
import functools
import math
from collections.abc import Iterable

import jax
import numpy as np

from ssil_jax.data.dataset import Batch
from ssil_jax.data.loader import TrainBatches
from ssil_jax.schedule import Phase

_USUAL, _FEWEST, _MOST = 8, 4, 16  # steps in a dispatch of an accelerator


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dispatches:
  """Makes what the devices are sent: batches and rates, from a step of a phase on."""

  batches: TrainBatches
  epoch_rates: np.ndarray  # float32 [epochs]
  steps_per_epoch: int
  first: int  # step of the phase
  size: int  # K, steps sent together

  @property
  def are_light(self) -> bool:
    """Says whether they are numbers alone."""
    return self.batches.are_light

  def __len__(self) -> int:
    return -(-(len(self.batches) - self.first) // self.size)

  def __getitem__(self, n: int) -> tuple[Batch, np.ndarray]:
    """Makes arrays [local devices, ...] of one step, [local devices, K, ...] of several.

    Where the phase ends earlier, K is smaller.
    """
    first = self.first + n * self.size
    steps = range(first, min(first + self.size, len(self.batches)))
    batches = [self.batches[step] for step in steps]
    rates = [self._rates[step // self.steps_per_epoch] for step in steps]
    if self.size == 1:
      return batches[0], rates[0]
    sent = zip(batches, rates, strict=True)
    return jax.tree.map(lambda *of_steps: np.stack(of_steps, axis=1), *sent)

  @functools.cached_property
  def _rates(self) -> list[np.ndarray]:
    """Makes each epoch's rate one array, float32 [local devices], to be sent once."""
    shares = self.batches.devices or range(self.batches.num_devices)
    return [np.full(len(shares), rate) for rate in self.epoch_rates]


def dispatches(batches: TrainBatches, phase: Phase, *, first: int, size: int) -> Dispatches:
  """Returns those of a phase from step `first` on, `size` steps at a time."""
  rates = [phase.learning_rate_at(epoch) for epoch in range(phase.epochs)]
  return Dispatches(
    batches=batches,
    epoch_rates=np.array(rates, np.float32),
    steps_per_epoch=phase.steps_per_epoch,
    first=first,
    size=size,
  )


def steps_together(phases: Iterable[Phase]) -> int:
  """Chooses how many steps to send to an accelerator together, for all phases of a run.

  Where a number near the usual one divides all their steps, it is taken: a smaller
  one at a phase's end would be another program, to be compiled for each kind of batch.
  """
  shared = math.gcd(*(phase.num_steps for phase in phases))
  whole = [size for size in range(_FEWEST, _MOST + 1) if shared % size == 0]
  return min(whole, key=lambda size: (abs(size - _USUAL), -size), default=_USUAL)
