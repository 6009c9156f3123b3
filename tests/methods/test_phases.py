"""How each method trains: phases, batch sizes, exemplars."""

import pytest
from finished_states import config_of

from ssil_jax.methods import METHODS

# Phases. (sampling, epochs, learning rate, milestones, drop, whether the teacher changes)


def plain(sampling, epochs, rate, milestones, drop=0.1):
  return [(sampling, epochs, rate, milestones, drop, False)]


PAPER_FIRST = (100, 0.1, (40, 80))
LONG = (100, 0.1, (30, 60, 80, 90))
PHASES = {
  "ssil": {
    1: plain("RP", *PAPER_FIRST),
    2: plain("RP", 20, 0.05, (8, 16)),
    5: plain("RP", 20, 0.02, (8, 16)),
  },
  "ft": {
    1: plain("shuffled", *PAPER_FIRST),
    2: plain("shuffled", 25, 0.05, (10, 20)),
    10: plain("shuffled", 25, 0.01, (10, 20)),
  },
  "ft_ss": {
    1: plain("shuffled", *PAPER_FIRST),
    4: plain("shuffled", 25, 0.025, (10, 20)),
  },
  "ft_rp": {1: plain("RP", *PAPER_FIRST), 4: plain("RP", 25, 0.025, (10, 20))},
  "il2m": {
    1: plain("shuffled", *PAPER_FIRST),
    2: plain("shuffled", 25, 0.05, (10, 20)),
  },
  "joint": {1: plain("all data", *PAPER_FIRST), 2: plain("all data", 25, 0.05, (10, 20))},
  "joint_full": {1: plain("all data", *PAPER_FIRST)},
  "ssil_tkd": {
    1: plain("RP", *PAPER_FIRST),
    2: plain("RP", 100, 0.05, (40, 80)),
    5: plain("RP", 100, 0.02, (40, 80)),
  },
  "ssil_cal": {2: plain("RP", 20, 0.05, (8, 16))},
  "ssil_tkd_cal": {2: plain("RP", 100, 0.05, (40, 80))},
  "lwf": {1: plain("new only", *PAPER_FIRST), 2: plain("new only", 25, 0.05, (10, 20))},
  "icarl": {t: plain("shuffled", 60, 0.1, (20, 30, 40, 50), 0.2) for t in (1, 2, 5)},
  "eeil": {
    1: plain("shuffled", 60, 0.1, (15, 30, 45)),
    **{
      t: [
        ("shuffled", 40, 0.1, (10, 20, 30), 0.1, False),
        ("balanced", 30, 0.01, (10, 20), 0.1, True),
      ]
      for t in (2, 5)
    },
  },
  "bic": {t: plain("held-out", *LONG) for t in (1, 2, 5)},
  "wa": {t: plain("shuffled", *LONG) for t in (1, 2, 5)},
  "lucir": {t: plain("shuffled", 90, 0.1, (30, 60)) for t in (1, 2, 5)},
  "podnet": {
    1: plain("shuffled", 90, 0.05, ()),
    **{
      t: [
        ("shuffled", 90, 0.05, (), 0.1, False),
        ("balanced", 20, 0.01, (), 0.1, True),
      ]
      for t in (2, 5)
    },
  },
  "gd": {
    1: plain("shuffled", 200, 0.1, (120, 160, 180)),
    **{
      t: [
        *2 * plain("shuffled", 180, 0.1, (120, 160, 170)),
        *plain("shuffled", 20, 0.01, (10, 15)),
      ]
      for t in (2, 5)
    },
  },
  "er_ace": {1: plain("RP", *PAPER_FIRST), 2: plain("RP", 20, 0.05, (8, 16))},
  "gdumb": {t: plain("memory", 256, 0.05, (102, 204)) for t in (1, 2, 5)},
  "ncm": {1: plain("new only", *PAPER_FIRST), 3: plain("new only", 0, 0.1 / 3, ())},
  **{
    name: {
      1: plain("new only", *PAPER_FIRST),
      3: plain("new only", 25, 0.1, (10, 20)),
    }
    for name in ("fearnet", "cgan_features")
  },
  "der": {1: plain("RP twice", *PAPER_FIRST), 2: plain("RP twice", 20, 0.05, (8, 16))},
  "er": {1: plain("RP", *PAPER_FIRST), 2: plain("RP", 25, 0.05, (10, 20))},
  **{
    name: {1: plain("RP", *PAPER_FIRST), 2: plain("RP", 20, 0.05, (8, 16))}
    for name in ("gem", "agem")
  },
  **{
    name: {
      1: plain("new only", *PAPER_FIRST),
      2: plain("new only", 25, 0.05, (10, 20)),
    }
    for name in ("ewc", "si", "rwalk", "vcl", "ucl")
  },
}


@pytest.mark.parametrize(("name", "t"), [(n, t) for n in PHASES for t in PHASES[n]])
def test_phases(name, t):
  phases = METHODS[name].phases(config_of(name), t)
  assert len(phases) == len(PHASES[name][t])
  for phase, expected in zip(phases, PHASES[name][t], strict=True):
    sampling, epochs, rate, milestones, drop, new_teacher = expected
    assert phase.sampling.name == sampling
    assert phase.epochs == epochs
    assert phase.learning_rate == pytest.approx(rate)
    assert phase.milestones == milestones
    assert phase.drop == drop
    assert phase.new_teacher == new_teacher
    assert phase.is_cosine == (name == "podnet" and sampling == "shuffled")


def test_learning_rates_of_icarl_by_epoch():
  (phase,) = METHODS["icarl"].phases(config_of("icarl"), 3)
  rates = {0: 0.1, 19: 0.1, 20: 0.02, 30: 0.004, 40: 0.0008, 49: 0.0008, 50: 0.00016}
  for epoch, rate in rates.items():
    assert phase.learning_rate_at(epoch) == pytest.approx(rate)


@pytest.mark.parametrize("name", list(METHODS))
def test_batch_sizes_and_exemplars(name):
  config = config_of(name)
  assert getattr(config.method_settings, "temperature", 2.0) == 2.0
  sizes = {"bic": 256, "wa": 256, "gdumb": 16, "podnet": 64}
  assert config.batch_size_new == sizes.get(name, 128)
  herding = ("eeil", "wa", "lucir", "podnet")
  assert config.selection == ("herding" if name in herding else "ring")
  assert config.num_states == (1 if name == "joint_full" else 5)


@pytest.mark.parametrize("name", list(METHODS))
def test_milestones_follow_the_epochs(name):
  # A tenth of the training drops the rate at a tenth of the epochs.
  method = METHODS[name]
  whole = config_of(name)
  config = config_of(name, epochs_first=whole.epochs_first // 10, epochs=whole.epochs)
  for a, b in zip(
    method.phases(whole, 1)[0].milestones,
    method.phases(config, 1)[0].milestones,
    strict=True,
  ):
    assert b == a // 10
