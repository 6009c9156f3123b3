"""Names runs and groups of them by what differs, and says what keeps runs apart."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from ssil_jax.reports import aggregate
from ssil_jax.reports.aggregate import Group
from ssil_jax.reports.results import Run

_DISTINCTIONS = {
  "dataset": "{}",
  "memory_size": "|M|={}",
  "num_states": "T={}",
  "seed": "seed {}",
}
_GROUP_DISTINCTIONS = {
  "dataset": "{}",
  "num_classes": "{} classes",
  "memory_size": "|M|={}",
  "num_states": "T={}",
}


def run_labels(runs: Sequence[Run]) -> list[str]:
  """Returns a label for each run: the method's title and, where shared, what differs.

  Runs of one title are told apart by data set, |M|, T and seed, then by the name of the
  folder, then by a number. A run with states to come says how many it has done.
  """
  endings = [progress(run.results) for run in runs]
  return _labels(runs, _DISTINCTIONS, [run.folder for run in runs], endings)


def _labels(
  runs: Sequence[Run], distinctions: dict[str, str], extras: list[str], endings: list[str]
) -> list[str]:
  """Returns titles and, where runs share one, what differs, an extra, a number."""
  labels = []
  for results in (run.results for run in runs):
    title = results["method_title"]
    rivals = [run.results for run in runs if run.results["method_title"] == title]
    details = [
      form.format(shorten(str(results[name])))
      for name, form in distinctions.items()
      if any(rival[name] != results[name] for rival in rivals)
    ]
    labels.append((shorten(title), *details))
  numbers = [f"#{number}" for number in range(1, len(runs) + 1)]
  for column in ([shorten(extra) for extra in extras], numbers):
    counts = Counter(labels)
    labels = [
      (*label, extra) if counts[label] > 1 else label
      for label, extra in zip(labels, column, strict=True)
    ]
  texts = []
  for (title, *details), ending in zip(labels, endings, strict=True):
    shown = ", ".join(filter(None, (*details, ending)))
    texts.append(f"{title} ({shown})" if shown else title)
  return texts


class OverSeeds(NamedTuple):
  """Holds runs, put together where they differ in nothing but the seed."""

  groups: list[Group]
  left_out: list[Group]  # a run each: unfinished, or with a seed that its group has
  note: str  # on those left out, empty if there are none

  @property
  def caption(self) -> str:
    """Says what the cells of `seed_rows` mean."""
    *others, most = sorted({len(group.runs) for group in self.groups})
    counts = f"{', '.join(map(str, others))} or {most}" if others else str(most)
    single = ", without a deviation where it is 1" if 1 in others else ""
    return (
      "Mean \N{PLUS-MINUS SIGN} sample standard deviation (divisor n - 1) over n seeds, "
      f"in %; n is {counts}{single}."
    )


def over_seeds(runs: Sequence[Run]) -> OverSeeds | None:
  """Groups the runs by all but the seed; None if no two finished ones belong together."""
  groups, left_out = aggregate.group(runs)
  if all(len(numbers) == 1 for numbers in groups):
    return None
  labels = run_labels(runs)
  members = [[runs[number] for number in numbers] for numbers in groups]
  firsts = [group[0] for group in members]
  extras, endings = _differing_settings(firsts), [""] * len(firsts)
  names = _labels(firsts, _GROUP_DISTINCTIONS, extras, endings)
  notes = [
    ", ".join([*(labels[n] for n, why in left_out.items() if why == reason), reason])
    for reason in dict.fromkeys(left_out.values())
  ]
  return OverSeeds(
    [Group(name, group) for name, group in zip(names, members, strict=True)],
    [Group(labels[number], [runs[number]], reason) for number, reason in left_out.items()],
    f"Left out of the means over seeds: {'; '.join(notes)}." if notes else "",
  )


def labelled_groups(runs: Sequence[Run]) -> list[Group]:
  """Returns all runs, those together that differ in nothing but the seed."""
  if found := over_seeds(runs):
    return [*found.groups, *found.left_out]
  _, left_out = aggregate.group(runs)
  return [
    Group(label, [run], left_out.get(number, ""))
    for number, (label, run) in enumerate(zip(run_labels(runs), runs, strict=True))
  ]


def not_averaged_note(runs: Sequence[Run]) -> str:
  """Says in one line what keeps finished runs of one method, with several seeds, apart.

  Empty if nothing does. Groups of several runs have it in their labels.
  """
  groups, _ = aggregate.group(runs)
  members = [runs[number] for numbers in groups for number in numbers]
  differing: dict[str, dict[str, None]] = {}  # title -> names, in order
  for run in (runs[numbers[0]] for numbers in groups if len(numbers) == 1):
    for other in members:
      if other.results["seed"] != run.results["seed"] and aggregate.of_one_kind(run, other):
        names = dict.fromkeys(aggregate.differences(run, other))
        differing.setdefault(shorten(run.results["method_title"]), {}).update(names)
  shown = [f"{title} ({', '.join(names)})" for title, names in differing.items() if names]
  return f"Not averaged over seeds, as they differ: {'; '.join(shown)}." if shown else ""


def _differing_settings(runs: Sequence[Run]) -> list[str]:
  """Returns, for each run, the settings in which it and others of its title differ."""
  known = [(run.results["method_title"], aggregate.settings(run)) for run in runs]
  return [
    ", ".join(
      f"{name}={value}"
      for name, value in settings.items()
      if name not in _GROUP_DISTINCTIONS
      and any(other.get(name, value) != value for rival, other in known if rival == title)
    )
    for title, settings in known
  ]


def progress(results: dict[str, Any]) -> str:
  """Says how many states are done of a run with states to come; else empty."""
  done, total = len(results["states"]), results["num_states"]
  return f"{done} of {total} states" if done < total else ""


def comparability_note(runs: Sequence[Run]) -> str:
  """Says in one line why the runs cannot be compared; empty if they can."""
  reasons = []
  for name, what in (("dataset", "data sets"), ("num_classes", "numbers of classes")):
    values = list(dict.fromkeys(str(run.results[name]) for run in runs))
    if len(values) > 1:
      reasons.append(f"{what} ({', '.join(values)})")
  scored = dict.fromkeys(run.results.get("split") or "test" for run in runs)
  if len(scored) > 1:
    reasons.append(f"scored images ({', '.join(scored)})")
  if not reasons:
    return ""
  return f"These runs are not comparable: they have different {' and '.join(reasons)}."


def shorten(text: str) -> str:
  """Cuts a name that is too long for a label."""
  return text if len(text) <= 40 else text[:39] + "\N{HORIZONTAL ELLIPSIS}"
