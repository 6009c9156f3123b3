"""Which classes each incremental state adds, and its learning-rate schedule."""

import pytest

from ssil_jax.config import make_config
from ssil_jax.errors import ConfigError
from ssil_jax.methods import METHODS
from ssil_jax.sampling import RATIO_PRESERVING, SHUFFLED
from ssil_jax.schedule import class_boundaries, class_order, schedule, state_of_class


def states_of(method, num_classes, **values):
  config = make_config(values, METHODS[method])
  return schedule(config, num_classes, METHODS[method].phases)


@pytest.mark.parametrize(
  ("num_classes", "num_states", "initial_classes", "boundaries"),
  [
    (10, 5, 0, (0, 2, 4, 6, 8, 10)),
    (10, 1, 0, (0, 10)),
    (10, 10, 0, tuple(range(11))),
    (10, 5, 2, (0, 2, 4, 6, 8, 10)),
    (10, 3, 4, (0, 4, 7, 10)),
    (10, 2, 9, (0, 9, 10)),
    (100, 6, 50, (0, 50, 60, 70, 80, 90, 100)),
  ],
)
def test_boundaries(num_classes, num_states, initial_classes, boundaries):
  assert boundaries == class_boundaries(
    num_classes, num_states=num_states, initial_classes=initial_classes
  )


@pytest.mark.parametrize(
  ("num_classes", "num_states", "initial_classes", "flag"),
  [
    (10, 3, 0, "--num_states=3"),
    (10, 20, 0, "--num_states=20"),  # more states than classes
    (10, 4, 5, "--initial_classes=5"),  # 5 classes in 3 states
    (10, 2, 10, "--initial_classes=10"),  # nothing left
    (10, 2, 11, "--initial_classes=11"),  # less than nothing
    (10, 9, 5, "--initial_classes=5"),  # 5 classes in 8 states
  ],
)
def test_classes_that_cannot_be_dealt_out(num_classes, num_states, initial_classes, flag):
  with pytest.raises(ConfigError, match=flag):
    class_boundaries(num_classes, num_states=num_states, initial_classes=initial_classes)


def test_class_order_is_numpys_permutation_as_in_other_code():
  # numpy.random.RandomState(0).permutation(10), the same in every NumPy version.
  order = class_order(10, num_classes=0, seed=0)
  assert order.tolist() == [2, 8, 4, 9, 1, 6, 7, 3, 0, 5]
  assert class_order(10, num_classes=4, seed=0).tolist() == [2, 8, 4, 9]
  # The order of CIFAR-100 in iCaRL, PODNet and others, with seed 1993.
  order = class_order(100, num_classes=0, seed=1993)
  assert order[:10].tolist() == [68, 56, 78, 8, 23, 84, 90, 65, 74, 76]
  assert sorted(order.tolist()) == list(range(100))


def test_more_classes_than_there_are():
  with pytest.raises(ConfigError, match="--num_classes=11, .* only 10"):
    class_order(10, num_classes=11, seed=0)


def test_states_are_numbered_from_1_and_follow_each_other():
  states = states_of("ssil", 10, num_states=3, initial_classes=4)
  assert [(s.index, s.num_old, s.num_seen) for s in states] == [
    (1, 0, 4),
    (2, 4, 7),
    (3, 7, 10),
  ]
  assert state_of_class(states).tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_memory_needs_one_exemplar_of_each_class():
  assert len(states_of("ssil", 10, num_states=5, memory_size=10)) == 5
  with pytest.raises(ConfigError, match="--memory_size=9 .*use 10 or more"):
    states_of("ssil", 10, num_states=5, memory_size=9)


@pytest.mark.parametrize(
  ("method", "sampling", "epochs", "milestones"),
  [("ssil", RATIO_PRESERVING, 20, (8, 16)), ("ft", SHUFFLED, 25, (10, 20))],
)
def test_schedule_of_the_paper(method, sampling, epochs, milestones):
  states = states_of(method, 10, num_states=5)
  for state in states:
    (phase,) = state.phases
    assert phase.sampling is sampling
    assert phase.learning_rate == pytest.approx(0.1 / state.index)
    first = state.index == 1
    assert phase.epochs == (100 if first else epochs)
    assert phase.milestones == ((40, 80) if first else milestones)


def test_the_rate_falls_along_half_a_cosine():
  first, second = states_of("ssil", 10, num_states=2, learning_rate_schedule="cosine")
  for state, start in ((first, 0.1), (second, 0.05)):
    (phase,) = state.phases
    rates = [phase.learning_rate_at(epoch) for epoch in range(phase.epochs)]
    assert rates[0] == start
    assert rates[phase.epochs // 2] == pytest.approx(start / 2)
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < start / 100


def test_learning_rate_drops_tenfold_at_each_milestone():
  first, second = states_of("ssil", 10, num_states=2)
  (phase,) = first.phases
  for epoch, rate in [(0, 0.1), (39, 0.1), (40, 0.01), (79, 0.01), (80, 0.001)]:
    assert phase.learning_rate_at(epoch) == pytest.approx(rate)
  assert phase.learning_rate_at(99) == pytest.approx(0.001)
  (phase,) = second.phases
  for epoch, rate in [(0, 0.05), (7, 0.05), (8, 0.005), (16, 0.0005), (19, 0.0005)]:
    assert phase.learning_rate_at(epoch) == pytest.approx(rate)
