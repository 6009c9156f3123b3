"""Checks what the paper says against the runs: what appears, and what does not.

Each claim of sections 4 and 6 is a function of the runs. It compares means over seeds, and
says nothing of significance: the tables have the deviations.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ssil_jax.methods import METHODS
from ssil_jax.paper import plots, protocol
from ssil_jax.paper.found import Found
from ssil_jax.paper.protocol import IMAGENET
from ssil_jax.reports.blocks import Table

Answer = tuple[list[bool], str]  # of each comparison, and what was found


class Claim(NamedTuple):
  """Holds one statement of the paper."""

  text: str
  place: str  # in the paper
  check: Callable[[Found], Answer]


def _title(method: str) -> str:
  return METHODS[method].title


def _percent(value: float) -> str:
  return f"{value:.1f}"


def _columns(found: Found, methods: Sequence[str], name: str) -> list[list[float]]:
  """Returns a measure of some methods in every column of table 1 that all of them have."""
  columns = []
  for dataset in protocol.DATASETS:
    for column in protocol.table1_columns(dataset):
      means = [
        found.mean(protocol.cell(dataset, method, *column), name) for method in methods
      ]
      if None not in means:
        columns.append(means)
  return columns


def _told(pairs: Sequence[Sequence[float]]) -> str:
  return ", ".join(f"{_percent(a)} / {_percent(b)}" for a, b in pairs)


def _higher(ours: str, theirs: str, name: str, sign: int = 1) -> Callable[[Found], Answer]:
  def check(found: Found) -> Answer:
    pairs = _columns(found, (ours, theirs), name)
    return [sign * (a - b) > 0 for a, b in pairs], _told(pairs)

  return check


def _il2m_gains_little(found: Found) -> Answer:
  columns = _columns(found, ("ft", "il2m", "ssil"), "top1")
  # Less than half of what SS-IL gains, as in all of the paper's columns of ImageNet-1K.
  held = [0 <= il2m - ft < (ssil - ft) / 2 for ft, il2m, ssil in columns]
  told = [f"{il2m - ft:+.1f} (SS-IL {ssil - ft:+.1f})" for ft, il2m, ssil in columns]
  return held, ", ".join(told)


def _memory_lowers_imbalance(found: Found) -> Answer:
  held, told = [], []
  for dataset in protocol.DATASETS:
    for method in protocol.COMPARED:
      values = [
        found.mean(protocol.cell(dataset, method, memory_size=size), "imbalance")
        for size in protocol.MEMORY_SIZES[dataset]
      ]
      if None not in values:
        held.append(values[0] > values[-1])
        told.append(f"{_title(method)} {' / '.join(map(_percent, values))}")
  return held, "; ".join(told)


def _ft_keeps_states_apart(found: Found) -> Answer:
  one = protocol.cell(IMAGENET, "ft")
  if not found.of(one):
    return [], ""
  own, top1 = (
    found.curve(one, name).mean(axis=0) for name in ("state_specific_top1", "top1")
  )
  told = (
    f"state-specific {own[0]:.1f} to {own[-1]:.1f}, top-1 {top1[0]:.1f} to {top1[-1]:.1f}"
  )
  return [own[0] - own[-1] < (top1[0] - top1[-1]) / 2], told


def _last_errors(found: Found, method: str) -> tuple[float, float] | None:
  one = protocol.cell(IMAGENET, method)
  if not found.of(one):
    return None
  return tuple(
    float(found.curve(one, name)[:, -1].mean())
    for name in ("error_old_as_new", "error_new_as_old")
  )


def _ft_leans_to_new(found: Found) -> Answer:
  held, told = [], []
  for method in ("ft", "il2m"):
    if errors := _last_errors(found, method):
      held.append(errors[0] > 2 * errors[1])
      told.append(f"{_title(method)} {errors[0]:.1f} / {errors[1]:.1f}")
  return held, ", ".join(told)


def _ssil_is_most_balanced(found: Found) -> Answer:
  gaps = {
    method: abs(errors[0] - errors[1])
    for method in protocol.COMPARED
    if (errors := _last_errors(found, method))
  }
  if "ssil" not in gaps or len(gaps) < 2:
    return [], ""
  told = ", ".join(f"{_title(method)} {gap:.1f}" for method, gap in gaps.items())
  return [gaps["ssil"] == min(gaps.values())], told


def _table2(found: Found, name: str) -> np.ndarray:
  """Returns table 2, float [T, N_M], NaN where there is no run."""
  return np.array(
    [
      [
        found.mean(
          protocol.cell(IMAGENET, "ssil", states, 5_000, batch_size_memory=replayed), name
        )
        for replayed in protocol.TABLE2_REPLAYED
      ]
      for states in protocol.TABLE2_STATES
    ],
    np.float64,
  )


def _replay_follows_states(found: Found) -> Answer:
  top1 = _table2(found, "top1")
  if np.isnan(top1[[0, -1]]).any():
    return [], ""
  best = [protocol.TABLE2_REPLAYED[place] for place in top1[[0, -1]].argmax(axis=1)]
  told = f"best N_M (the paper's) {best[0]} for T=20, {best[1]} for T=5"
  return [best[0] < best[1]], told


def _accuracy_against_imbalance(found: Found) -> Answer:
  top1, imbalance = _table2(found, "top1"), _table2(found, "imbalance")
  rows = (np.ptp(top1, axis=1) > 0) & (np.ptp(imbalance, axis=1) > 0)  # NaN is not
  if not rows.any():
    return [], ""
  correlations = [
    np.corrcoef(a, b)[0, 1] for a, b in zip(top1[rows], imbalance[rows], strict=True)
  ]
  states = np.array(protocol.TABLE2_STATES)[rows]
  told = ", ".join(f"T={t} {r:+.2f}" for t, r in zip(states, correlations, strict=True))
  return [r < 0 for r in correlations], f"correlation along N_M: {told}"


def _epochs_overfit(found: Found) -> Answer:
  cells = [
    protocol.cell(IMAGENET, "ssil", epochs=epochs) for epochs in protocol.FIGURE6_EPOCHS
  ]
  if not all(map(found.of, cells)):
    return [], ""
  test = [found.mean(one, "top1") for one in cells]
  train = [float(found.training_top1(one).mean()) for one in cells]
  told = (
    f"test {' / '.join(map(_percent, test))}, training {' / '.join(map(_percent, train))}"
  )
  return [train[-1] > train[0], test[-1] < test[0]], told


def _gaps(found: Found) -> dict[str, np.ndarray]:
  return {
    method: plots.score_gap(found, one)
    for method in protocol.FIGURE6_SCORES
    if found.of(one := protocol.cell(IMAGENET, method))
  }


def _ssil_narrows_the_gap(found: Found) -> Answer:
  gaps = _gaps(found)
  if len(gaps) < 2:
    return [], ""
  last = {method: gap[-1] for method, gap in gaps.items()}
  told = f"last gap, new minus old: FT {last['ft']:+.2f}, SS-IL {last['ssil']:+.2f}"
  return [abs(last["ssil"]) < abs(last["ft"])], told


def _ablation(found: Found) -> dict[str, float]:
  means = {
    method: found.mean(protocol.cell(IMAGENET, method), "top1")
    for method in protocol.FIGURE6_ABLATION
  }
  return {method: value for method, value in means.items() if value is not None}


def _ablation_claim(held: Callable[[dict[str, float]], bool]) -> Callable[[Found], Answer]:
  def check(found: Found) -> Answer:
    means = _ablation(found)
    if len(means) < len(protocol.FIGURE6_ABLATION):
      return [], ""
    told = ", ".join(f"{_title(method)} {value:.1f}" for method, value in means.items())
    return [held(means)], told

  return check


def _rectification_is_weak(found: Found) -> Answer:
  one = protocol.cell(IMAGENET, "il2m", memory_size=5_000)
  if not found.of(one):
    return [], ""
  strength, ratio = (
    plots.statistic(found, one, name)[:, -1].mean()
    for name in ("rectification", "probability_ratio")
  )
  return [strength < ratio], f"R {strength:.1f}, ratio {ratio:.1f}"


def _ft_overfits(found: Found) -> Answer:
  one = protocol.cell(IMAGENET, "il2m", memory_size=5_000)
  if not found.of(one):
    return [], ""
  train, test = (
    100 * plots.statistic(found, one, name)[:, -1].mean()
    for name in ("exemplar_top1", "old_top1")
  )
  return [train - test > 20], f"exemplars {train:.1f}, test {test:.1f}"


CLAIMS = (
  Claim(
    "FT still knows the classes of each state; they are confused across states (the "
    "state-specific accuracy falls by less than half of what top-1 does)",
    "section 4, figure 1",
    _ft_keeps_states_apart,
  ),
  Claim(
    "FT and IL2M lean to the new classes: at the end e(p,n) is more than twice e(n,p)",
    "sections 4 and 6.3, figures 1 and 5",
    _ft_leans_to_new,
  ),
  Claim(
    "SS-IL is more accurate than FT",
    "table 1 (but for Landmark-v2-1K, |M| = 20k)",
    _higher("ssil", "ft", "top1"),
  ),
  Claim(
    "SS-IL is more accurate than IL2M",
    "table 1 (as above)",
    _higher("ssil", "il2m", "top1"),
  ),
  Claim(
    "FT is more accurate than iCaRL",
    "section 6.3 (but for ImageNet-1K, |M| = 5k)",
    _higher("ft", "icarl", "top1"),
  ),
  Claim(
    "IL2M gains little over FT (not half of what SS-IL gains)",
    "section 6.3, table 1",
    _il2m_gains_little,
  ),
  Claim(
    "SS-IL is better balanced than FT",
    "table 1 (on ImageNet-1K; not in three columns of Landmark-v2-1K)",
    _higher("ssil", "ft", "imbalance", -1),
  ),
  Claim(
    "The larger the memory, the smaller the imbalance",
    "section 6.3, table 1",
    _memory_lowers_imbalance,
  ),
  Claim(
    "SS-IL's e(p,n) and e(n,p) are the closest to each other",
    "figure 5",
    _ssil_is_most_balanced,
  ),
  Claim(
    "Many states want a smaller replay batch than few", "table 2", _replay_follows_states
  ),
  Claim(
    "Where accuracy is higher, imbalance is lower", "table 2", _accuracy_against_imbalance
  ),
  Claim(
    "With more epochs, training accuracy rises and test accuracy falls",
    "figure 6, left",
    _epochs_overfit,
  ),
  Claim(
    "SS-IL's scores of old and new classes are closer than FT's",
    "figure 6, center",
    _ssil_narrows_the_gap,
  ),
  Claim(
    "Both parts together are better than each alone",
    "figure 6, right",
    _ablation_claim(lambda top1: top1["ssil"] > max(top1["ft_ss"], top1["ft_rp"])),
  ),
  Claim(
    "Ratio-preserving batches alone are worse than FT",
    "figure 6, right",
    _ablation_claim(lambda top1: top1["ft_rp"] < top1["ft"]),
  ),
  Claim(
    "IL2M's rectification R is smaller than the ratio that it should exceed",
    "section 6.5, figure 7, left",
    _rectification_is_weak,
  ),
  Claim(
    "FT overfits its exemplars (its top-1 on them is 20 points above that on test images)",
    "section 6.5, figure 7, right",
    _ft_overfits,
  ),
)


def table(found: Found) -> Table:
  """Returns each claim with the answer of the runs; those without runs are left out."""
  rows = []
  for claim in CLAIMS:
    held, told = claim.check(found)
    if held:
      rows.append([claim.text, _verdict(held), told, claim.place])
  return Table(
    "paper_claims",
    "What the paper claims, and whether it appears in these runs (means over seeds; in % "
    "unless they are ratios or scores)",
    ["claim", "appears", "found", "where"],
    rows,
  )


def _verdict(held: list[bool]) -> str:
  if all(held) or not any(held):
    return "yes" if all(held) else "no"
  return f"in {sum(held)} of {len(held)}"
