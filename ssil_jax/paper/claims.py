"""Checks what the paper says against the runs: what appears, and what does not.

Each claim of sections 4 and 6 is a list of comparisons, of means over seeds; they say
nothing of significance: the tables have the deviations.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ssil_jax.paper import protocol
from ssil_jax.paper.comparisons import (
  SCORE,
  Comparison,
  above,
  at,
  average_is,
  averages,
  below,
  curve,
  every,
  falling,
  last_is,
  lead_grows,
  rises,
  title,
  told,
)
from ssil_jax.paper.found import Found
from ssil_jax.paper.protocol import IMAGENET, Cell
from ssil_jax.reports.blocks import Table


class Claim(NamedTuple):
  """Holds one statement of the paper."""

  text: str
  place: str  # in the paper
  comparisons: Sequence[Comparison]


# The cell of figures 1, 4, 5 and 6, by method.
_MAIN = {
  method: protocol.cell(IMAGENET, method)
  for method in (*protocol.COMPARED, *protocol.FIGURE6_ABLATION)
}
_ERRORS = _E_PN, _E_NP = "error_old_as_new", "error_new_as_old"
_IL2M_5K = protocol.cell(IMAGENET, "il2m", memory_size=5_000)  # of figure 7
_RIVALS = tuple(method for method in protocol.COMPARED if method != "ssil")
_IN_TABLE1 = frozenset(protocol.table1())


def _columns(
  methods: Sequence[str],
  compare: Callable[..., Comparison],
  *,
  is_smallest_only: bool = False,
) -> list[Comparison]:
  """Returns a comparison of some methods for every column of table 1 that has them all.

  Or for the columns of the smallest memory of each data set.
  """
  comparisons = []
  for dataset in protocol.DATASETS:
    for states, memory in protocol.table1_columns(dataset):
      cells = [protocol.cell(dataset, method, states, memory) for method in methods]
      is_chosen = memory == protocol.MEMORY_SIZES[dataset][0] or not is_smallest_only
      if is_chosen and _IN_TABLE1.issuperset(cells):
        comparisons.append(compare(*cells))
  return comparisons


def _on_each_dataset(
  pairs: Sequence[tuple[str, str]], compare: Callable[[Cell, Cell], Comparison]
) -> list[Comparison]:
  """Returns a comparison for each pair of methods on each data set of figure 4."""
  comparisons = []
  for dataset in protocol.DATASETS:
    cells = {cell.method: cell for cell in protocol.figure4(dataset)}
    comparisons += [
      compare(cells[one], cells[other])
      for one, other in pairs
      if one in cells and other in cells
    ]
  return comparisons


def _higher(ours: str, theirs: str, name: str) -> list[Comparison]:
  return _columns((ours, theirs), lambda *cells: average_is(1, name, *cells))


def _lower(ours: str, theirs: str, name: str) -> list[Comparison]:
  return _columns((ours, theirs), lambda *cells: average_is(-1, name, *cells))


def _il2m_gains_little(name: str, sign: int) -> list[Comparison]:
  """Compares IL2M's gain over FT with half of SS-IL's; `sign` is -1 where lower is better.

  A loss is no little gain.
  """

  def holds(ft: float, il2m: float, ssil: float) -> bool | None:
    gain, half = sign * (il2m - ft), sign * (ssil - ft) / 2
    return False if below(gain, 0) else below(gain, half)

  def gains(ft: float, il2m: float, ssil: float) -> str:
    return f"{il2m - ft:+.1f} (SS-IL {ssil - ft:+.1f})"

  return _columns(
    ("ft", "il2m", "ssil"),
    lambda *cells: Comparison(cells, averages(cells, name), holds, gains),
  )


def _memory_lowers_imbalance() -> list[Comparison]:
  """Compares each size of the memory with the next larger one."""

  def compare(cells: Sequence[Cell]) -> Comparison:
    return Comparison(
      cells,
      averages(cells, "imbalance"),
      lambda *values: falling(values),
      lambda *values: f"{title(cells[0])} {told(*values)}",
    )

  return [
    compare(cells)
    for dataset in protocol.DATASETS
    for method in protocol.COMPARED
    if _IN_TABLE1.issuperset(cells := _sizes(dataset, method))
  ]


def _memory_helps_ft_more_than_icarl() -> list[Comparison]:
  """Compares FT's imbalance less iCaRL's with that of the next larger memory."""

  def differences(*values: float) -> np.ndarray:
    ft, icarl = np.split(np.array(values), 2)
    return ft - icarl

  return [
    Comparison(
      cells,
      averages(cells, "imbalance"),
      lambda *values: falling(differences(*values)),
      lambda *values: " / ".join(f"{value:+.1f}" for value in differences(*values)),
    )
    for dataset in protocol.DATASETS
    if _IN_TABLE1.issuperset(cells := [*_sizes(dataset, "ft"), *_sizes(dataset, "icarl")])
  ]


def _starts_below(ours: Cell, theirs: Cell) -> Comparison:
  return Comparison((ours, theirs), at("top1", 0, ours, theirs), below, told)


def _sizes(dataset: str, method: str) -> list[Cell]:
  """Returns the cells of table 1 with T = 10, from the smallest memory to the largest."""
  return [
    protocol.cell(dataset, method, memory_size=size)
    for size in protocol.MEMORY_SIZES[dataset]
  ]


def _ft_keeps_states_apart() -> list[Comparison]:
  cells = [_MAIN["ft"]]

  def values(found: Found) -> list[float]:
    scores = (curve(found, *cells, name) for name in ("state_specific_top1", "top1"))
    return [score[place] for score in scores for place in (0, -1)]

  return [
    Comparison(
      cells,
      values,
      lambda own, own_last, top1, top1_last: below(own - own_last, (top1 - top1_last) / 2),
      lambda own, own_last, top1, top1_last: (
        f"state-specific {own:.1f} to {own_last:.1f}, top-1 {top1:.1f} to {top1_last:.1f}"
      ),
    )
  ]


def _leans_to_new(method: str) -> Comparison:
  cell = _MAIN[method]
  return Comparison(
    [cell],
    lambda found: [curve(found, cell, name)[-1] for name in _ERRORS],
    lambda old_as_new, new_as_old: above(old_as_new, 2 * new_as_old),
    lambda *errors: f"{title(cell)} {told(*errors)}",
  )


def _is_closer(rival: str, *, throughout: bool) -> Comparison:
  """Compares how far e(p,n) and e(n,p) of SS-IL and of another method are apart.

  That is taken of each seed: seeds that lean to different sides are not balanced.
  """
  cells = _MAIN["ssil"], _MAIN[rival]

  def gaps(found: Found) -> list[np.ndarray]:
    means = (np.abs(found.error_gap(cell)).mean(axis=0) for cell in cells)
    return [mean if throughout else mean[-1:] for mean in means]

  def closer(ours: np.ndarray, theirs: np.ndarray) -> list[bool | None]:
    return [below(*pair) for pair in zip(ours, theirs, strict=True)]

  def tell(ours: np.ndarray, theirs: np.ndarray) -> str:
    if not throughout:
      return f"SS-IL {ours[-1]:.1f}, {title(cells[1])} {theirs[-1]:.1f}"
    states = closer(ours, theirs)
    return f"than {title(cells[1])}'s in {states.count(True)} of {len(states)} states"

  return Comparison(cells, gaps, lambda *pair: every(closer(*pair)), tell)


def _table2_cells(states: int) -> list[Cell]:
  return [
    protocol.cell(IMAGENET, "ssil", states, 5_000, batch_size_memory=replayed)
    for replayed in protocol.TABLE2_REPLAYED
  ]


def _replay_follows_states() -> list[Comparison]:
  """Compares the best replay batches of most and of fewest states."""
  many, few = (_table2_cells(protocol.TABLE2_STATES[place]) for place in (0, -1))
  cells = [*many, *few]

  def best(values: Sequence[float]) -> list[list[int]]:
    """Returns the best batch of either, or several that are level."""
    return [
      [
        replayed
        for replayed, value in zip(protocol.TABLE2_REPLAYED, top1, strict=True)
        if above(max(top1), value) is None
      ]
      for top1 in (values[: len(many)], values[len(many) :])
    ]

  def holds(*values: float) -> bool | None:
    of_many, of_few = best(values)
    if max(of_many) < min(of_few):
      return True
    return False if min(of_many) >= max(of_few) else None

  def tell(*values: float) -> str:
    of_many, of_few = (" or ".join(map(str, one)) for one in best(values))
    return f"best N_M {of_many} for T=20, {of_few} for T=5"

  return [Comparison(cells, averages(cells, "top1"), holds, tell)]


def _accuracy_against_imbalance(states: int) -> Comparison:
  cells = _table2_cells(states)

  def correlation(*values: float) -> float:
    top1, imbalance = np.split(np.array(values), 2)
    if np.ptp(top1) == 0 or np.ptp(imbalance) == 0:
      return 0.0
    return float(np.corrcoef(top1, imbalance)[0, 1])

  return Comparison(
    cells,
    lambda found: [
      found.mean(cell, name) for name in ("top1", "imbalance") for cell in cells
    ],
    lambda *values: below(correlation(*values), 0, SCORE),
    lambda *values: f"T={states} {correlation(*values):+.2f}",
  )


def _largest_replay_hurts() -> list[Comparison]:
  *smaller, largest = _table2_cells(protocol.TABLE2_STATES[0])

  def compare(cell: Cell) -> Comparison:
    return Comparison(
      (largest, cell),
      averages((largest, cell), "top1"),
      below,
      lambda ours, theirs: f"{told(ours, theirs)} with N_M={cell.batch_size_memory}",
    )

  return [compare(cell) for cell in smaller]


def _epochs_overfit() -> list[Comparison]:
  """Compares the fewest epochs with the most, on training batches and on test images."""
  epochs = (protocol.FIGURE6_EPOCHS[place] for place in (0, -1))
  cells = [protocol.cell(IMAGENET, "ssil", epochs=count) for count in epochs]
  return [
    Comparison(
      cells,
      lambda found: [float(found.training_top1(cell).mean()) for cell in cells],
      lambda few, many: above(many, few),
      lambda *values: f"training {told(*values)}",
    ),
    Comparison(
      cells,
      averages(cells, "top1"),
      lambda few, many: below(many, few),
      lambda *values: f"test {told(*values)}",
    ),
  ]


def _score_gap(found: Found, cell: Cell) -> np.ndarray:
  """Returns how far apart mean scores of old and new classes are: float [states - 1].

  Of each seed, then the mean.
  """
  return np.abs(found.score_gap(cell)).mean(axis=0)


def _ssil_narrows_the_gap() -> list[Comparison]:
  cells = [_MAIN[method] for method in protocol.FIGURE6_SCORES]
  return [
    Comparison(
      cells,
      lambda found: [_score_gap(found, cell)[-1] for cell in cells],
      lambda ft, ssil: below(ssil, ft, SCORE),
      lambda ft, ssil: f"FT {ft:.2f}, SS-IL {ssil:.2f}",
    )
  ]


def _gap_widens(method: str, holds: Callable[[float, float], bool | None]) -> Comparison:
  """Compares the gap of scores after the last state with that after the second."""
  cell = _MAIN[method]
  return Comparison(
    [cell],
    lambda found: [_score_gap(found, cell)[place] for place in (0, -1)],
    holds,
    lambda first, last: f"{first:.2f} to {last:.2f}",
  )


def _ss_alone_is_like_ft() -> list[Comparison]:
  cells = [_MAIN[method] for method in ("ft", "ft_ss", "ssil")]

  def tell(ft: float, ft_ss: float, ssil: float) -> str:
    return f"{ft_ss - ft:+.1f} (SS-IL {ssil - ft:+.1f})"

  return [
    Comparison(
      cells,
      averages(cells, "top1"),
      lambda ft, ft_ss, ssil: below(abs(ft_ss - ft), (ssil - ft) / 2),
      tell,
    )
  ]


def _rectification_is_weak() -> list[Comparison]:
  """Compares R and the ratio after every state but the first, which has no old classes."""

  def values(found: Found) -> list[np.ndarray]:
    names = "rectification", "probability_ratio"
    return [found.statistic(_IL2M_5K, name).mean(axis=0)[1:] for name in names]

  def smaller(strength: np.ndarray, ratio: np.ndarray) -> list[bool | None]:
    return [below(*pair) for pair in zip(strength, ratio, strict=True)]

  def tell(strength: np.ndarray, ratio: np.ndarray) -> str:
    states = smaller(strength, ratio)
    return (
      f"in {states.count(True)} of {len(states)} states; at the end R {strength[-1]:.1f}, "
      f"ratio {ratio[-1]:.1f}"
    )

  return [Comparison([_IL2M_5K], values, lambda *pair: every(smaller(*pair)), tell)]


def _ft_overfits() -> list[Comparison]:
  def values(found: Found) -> list[float]:
    names = "exemplar_top1", "old_top1"
    return [100 * found.statistic(_IL2M_5K, name)[:, -1].mean() for name in names]

  return [
    Comparison(
      [_IL2M_5K],
      values,
      lambda train, test: above(train - test, 20),
      lambda train, test: f"exemplars {train:.1f}, test {test:.1f}",
    )
  ]


def _main_average(sign: int, ours: str, *rivals: str) -> list[Comparison]:
  return [average_is(sign, "top1", _MAIN[ours], _MAIN[rival]) for rival in rivals]


def _main_last(sign: int, name: str, ours: str, *rivals: str) -> list[Comparison]:
  return [last_is(sign, name, _MAIN[ours], _MAIN[rival]) for rival in rivals]


CLAIMS = (
  Claim(
    "FT still knows the classes of each state; they are confused across states (the "
    "state-specific accuracy falls by less than half of what top-1 does)",
    "section 4, figure 1",
    _ft_keeps_states_apart(),
  ),
  Claim(
    "FT and IL2M lean to the new classes: at the end e(p,n) is more than twice e(n,p)",
    "sections 4 and 6.3, figures 1 and 5",
    [_leans_to_new("ft"), _leans_to_new("il2m")],
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
    "SS-IL is more accurate than iCaRL",
    "section 6.3, table 1",
    _higher("ssil", "icarl", "top1"),
  ),
  Claim(
    "SS-IL's lead in top-1 is larger at the end than after the second state",
    "section 6.3, figure 4",
    _on_each_dataset(
      [("ssil", rival) for rival in _RIVALS], lambda *cells: lead_grows("top1", *cells)
    ),
  ),
  Claim(
    "FT is more accurate than iCaRL",
    "section 6.3 (but for ImageNet-1K, |M| = 5k)",
    _higher("ft", "icarl", "top1"),
  ),
  Claim(
    "iCaRL is less accurate than FT already in the first state",
    "section 6.3, figure 4",
    _on_each_dataset([("icarl", "ft")], _starts_below),
  ),
  Claim(
    "IL2M gains little over FT (not half of what SS-IL gains)",
    "section 6.3, table 1",
    _il2m_gains_little("top1", 1),
  ),
  Claim(
    "FT is worse balanced than iCaRL where the memory is smallest",
    "section 6.3, table 1 (but for Landmark-v2-1K, T = 20)",
    _columns(
      ("ft", "icarl"),
      lambda *cells: average_is(1, "imbalance", *cells),
      is_smallest_only=True,
    ),
  ),
  Claim(
    "The smaller the memory, the further is FT's imbalance above iCaRL's",
    "section 6.3, table 1",
    _memory_helps_ft_more_than_icarl(),
  ),
  Claim(
    "IL2M is better balanced than FT",
    "section 6.3, table 1",
    _lower("il2m", "ft", "imbalance"),
  ),
  Claim(
    "IL2M is not much better balanced than FT (not half of what SS-IL gains)",
    "section 6.3, table 1 (most columns)",
    _il2m_gains_little("imbalance", -1),
  ),
  Claim(
    "SS-IL is better balanced than FT",
    "table 1 (on ImageNet-1K; not in three columns of Landmark-v2-1K)",
    _lower("ssil", "ft", "imbalance"),
  ),
  Claim(
    "SS-IL is better balanced than IL2M",
    "table 1 (as above; nor on Landmark-v2-10K, T = 5)",
    _lower("ssil", "il2m", "imbalance"),
  ),
  Claim(
    "SS-IL is better balanced than iCaRL",
    "table 1 (but for Landmark-v2-1K, T = 20)",
    _lower("ssil", "icarl", "imbalance"),
  ),
  Claim(
    "The larger the memory, the smaller the imbalance (over all sizes)",
    "section 6.3, table 1 (but for iCaRL on ImageNet-1K)",
    _memory_lowers_imbalance(),
  ),
  Claim(
    "e(p,n) of FT and IL2M is larger at the end than after the second state",
    "sections 4 and 6.3, figures 1 and 5",
    [rises(_E_PN, _MAIN[method]) for method in ("ft", "il2m")],
  ),
  Claim(
    "IL2M's e(p,n) ends below FT's",
    "sections 4 and 6.3, figures 1 and 5",
    _main_last(-1, _E_PN, "il2m", "ft"),
  ),
  Claim(
    "iCaRL's e(p,n) ends below FT's and IL2M's, and its e(n,p) above theirs",
    "section 6.3, figure 5",
    [
      *_main_last(-1, _E_PN, "icarl", "ft", "il2m"),
      *_main_last(1, _E_NP, "icarl", "ft", "il2m"),
    ],
  ),
  Claim(
    "SS-IL's e(p,n) ends below FT's and IL2M's",
    "section 6.3, figure 5",
    _main_last(-1, _E_PN, "ssil", "ft", "il2m"),
  ),
  Claim(
    "SS-IL's e(p,n) and e(n,p) are the closest to each other at the end",
    "section 6.3, figure 5",
    [_is_closer(rival, throughout=False) for rival in _RIVALS],
  ),
  Claim(
    "SS-IL's e(p,n) and e(n,p) are the closest to each other in every state",
    "section 6.3, figure 5",
    [_is_closer(rival, throughout=True) for rival in _RIVALS],
  ),
  Claim(
    "Many states want a smaller replay batch than few",
    "section 6.4, table 2",
    _replay_follows_states(),
  ),
  Claim(
    "With many states, a replay batch as large as the new one (N_M = 128) is less accurate "
    "than any smaller one",
    "section 6.4, table 2, T = 20",
    _largest_replay_hurts(),
  ),
  Claim(
    "Where accuracy is higher, imbalance is lower (correlation along N_M)",
    "section 6.4, table 2",
    [_accuracy_against_imbalance(states) for states in protocol.TABLE2_STATES],
  ),
  Claim(
    "With the most epochs, training accuracy is higher and test accuracy lower than with "
    "the fewest",
    "section 6.4, figure 6, left",
    _epochs_overfit(),
  ),
  Claim(
    "SS-IL's scores of old and new classes are closer at the end than FT's",
    "section 6.4, figure 6, center",
    _ssil_narrows_the_gap(),
  ),
  Claim(
    "FT's scores of old and new classes are further apart at the end than after the second "
    "state",
    "section 6.4, figure 6, center",
    [_gap_widens("ft", lambda first, last: above(last, first, SCORE))],
  ),
  Claim(
    "SS-IL's scores of old and new classes are no further apart at the end than after the "
    "second state",
    "section 6.4, figure 6, center",
    [_gap_widens("ssil", lambda first, last: not above(last, first, SCORE))],
  ),
  Claim(
    "Both parts together are better than each alone",
    "section 6.4, figure 6, right",
    _main_average(1, "ssil", "ft_ss", "ft_rp"),
  ),
  Claim(
    "Ratio-preserving batches alone are worse than FT",
    "section 6.4, figure 6, right",
    _main_average(-1, "ft_rp", "ft"),
  ),
  Claim(
    "The separated softmax alone is about as accurate as FT (nearer than half of what "
    "SS-IL gains)",
    "section 6.4, figure 6, right",
    _ss_alone_is_like_ft(),
  ),
  Claim(
    "The separated softmax alone ends below FT",
    "section 6.4, figure 6, right",
    _main_last(-1, "top1", "ft_ss", "ft"),
  ),
  Claim(
    "IL2M's rectification R is smaller than the ratio that it should exceed (in every "
    "state)",
    "section 6.5, figure 7, left",
    _rectification_is_weak(),
  ),
  Claim(
    "FT overfits its exemplars (at the end its top-1 on them is 20 points above that on "
    "test images)",
    "section 6.5, figure 7, right",
    _ft_overfits(),
  ),
)


def table(found: Found) -> Table:
  """Returns each claim with the answer of the runs; those without runs are left out."""
  rows = [[c.text, *answer, c.place] for c in CLAIMS if (answer := _answer(c, found))]
  return Table(
    "paper_claims",
    "What the paper claims, and whether it appears in these runs (means over seeds; in % "
    "unless they are ratios or scores)",
    ["claim", "appears", "found", "where"],
    rows,
    "Methods are compared on the seeds that they share; n says how many where some have "
    "others, too. Numbers less than half of the last decimal apart are level: the claim "
    "neither holds nor fails there. T, |M| and N_M are the paper's.",
  )


def _answer(claim: Claim, found: Found) -> tuple[str, str] | None:
  """Returns the verdict, and what was found; None where nothing could be compared."""
  datasets = {cell.dataset for cell in found.seeds}
  asked = [one for one in claim.comparisons if one.cells[0].dataset in datasets]
  outcomes = [(one, one.outcome(found)) for one in asked]
  known = [outcome for _, outcome in outcomes if outcome]
  if not known:
    return None
  texts = [", ".join(outcome.told for outcome in known)]
  unknown = [one for one, outcome in outcomes if not outcome]
  if unknown:
    reasons = dict.fromkeys(text for one in unknown for text in one.wanting(found))
    texts.append(
      f"{len(unknown)} of {len(asked)} comparisons not made: {', '.join(reasons)}"
    )
  return _verdict([one.holds for one in known], complete=not unknown), "; ".join(texts)


def _verdict(held: Sequence[bool | None], *, complete: bool) -> str:
  if complete and len(set(held)) == 1:
    return {True: "yes", False: "no", None: "level"}[held[0]]
  return f"in {held.count(True)} of {len(held)}"
