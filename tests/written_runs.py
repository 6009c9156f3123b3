"""Work directories of runs as files, and pages read back."""

import copy
import html.parser
import json

from ssil_jax.reports.results import load_run

# Two states of 2 classes and 100 test images each. State 2: 100 old images, of which 30
# go to the new classes; 100 new ones, of which 10 go to the old classes.
_NAMES = (
  *("state", "num_old", "num_seen", "top1", "top5", "error_old_as_new"),
  *("error_new_as_old", "imbalance", "state_specific_top1", "score_old", "score_new"),
  *("train_seconds", "confusion"),
)
_STATES = (
  (1, 0, 2, 0.9, 1.0, None, None, None, 0.9, None, 1.5, 60.0, [[100]]),
  (2, 2, 4, 0.626, 0.96, 0.3, 0.1, 0.2, 0.85, -0.5, 1.25, 5.6, [[70, 30], [10, 90]]),
)
RESULTS = {
  "dataset": "digits",
  "method": "ssil",
  "method_title": "SS-IL",
  "num_states": 2,
  "num_classes": 4,
  "memory_size": 40,
  "seed": 7,
  "ignored_files": 0,
  "environment": {"device": "cpu", "num_devices": 2},
  "states": [dict(zip(_NAMES, state, strict=True)) for state in _STATES],
  "average": {"top1": 0.763, "top5": 0.98, "imbalance": 0.2},
}
STATE_ROWS = [
  ["1", "2", "90.0", "100.0", "-", "-", "-", "90.0", "60.0"],
  ["2", "4", "62.6", "96.0", "30.0", "10.0", "20.0", "85.0", "5.6"],
  ["average", "", "76.3", "98.0", "30.0", "10.0", "20.0", "87.5", "32.8"],
]
COMPARISON_ROW = ["SS-IL", "76.3", "98.0", "20.0", "62.6", "30.0", "10.0", "1m 06s"]
SCHEDULE = [
  {"state": 1, "sampling": "new only", "learning rate": 0.1},
  {"state": 2, "sampling": "ratio-preserving", "learning rate": 0.05},
]
METRICS = [
  {"state": state, "phase": 1, "step": step, "loss": loss}
  for state, step, loss in ((1, 10, 2.0), (1, 20, 1.0), (2, 30, 1.5))
]

# What --tuned_on names.
TUNING = {
  "measure": "average.top1",
  "validation_fraction": 0.1,
  "grid": {"learning_rate": [0.05, 0.1]},
  "chosen": {"learning_rate": 0.1},
  "scores": [
    {"settings": {"learning_rate": rate}, "mean": mean, "runs": [run]}
    for rate, mean, run in (
      (0.05, 0.5, {"folder": "ft-0.05-0", "seed": 0, "score": 0.5}),
      (0.1, 0.6, {"folder": "ft-0.1-0", "seed": 0, "score": 0.6}),
    )
  ],
}


def write_run(
  workdir,
  *,
  results=RESULTS,
  schedule=SCHEDULE,
  metrics=METRICS,
  config=None,
  **changes,
):
  """A work directory with the files of a run; `changes` are top-level results keys."""
  workdir.mkdir(parents=True, exist_ok=True)
  contents = {"results": {**results, **changes}, "schedule": schedule, "config": config}
  for name, content in contents.items():
    if content is not None:
      (workdir / f"{name}.json").write_text(json.dumps(content))
  if metrics is not None:
    lines = "".join(json.dumps(row) + "\n" for row in metrics)
    (workdir / "metrics.jsonl").write_text(lines)
  return workdir


def one_state(**changes):
  """Results of a run that has done one of its states."""
  average = {"top1": 0.9, "top5": 1.0, "imbalance": None}
  return {**RESULTS, "states": RESULTS["states"][:1], "average": average, **changes}


def with_states(*states, **changes):
  """Results with more or other fields in the states."""
  results = copy.deepcopy({**RESULTS, **changes})
  for row, more in zip(results["states"], states, strict=True):
    row |= more
  return results


def seed_run(workdir, seed, *, top1=0.7, top5=0.9, imbalance=0.2, last=0.6, **changes):
  """The work directory of a finished run with another seed and other scores."""
  average = {"top1": top1, "top5": top5, "imbalance": imbalance}
  results = with_states({}, {"top1": last, "imbalance": imbalance}, average=average)
  return write_run(workdir, results=results, seed=seed, **changes)


# top-1: 40, 42, 44, deviations -2, 0, 2 from 42, so sqrt(8 / 2) = 2.0;
# top-5: 90, 90, 93, deviations -1, -1, 2 from 91, so sqrt(6 / 2) = 1.73;
# imbalance: 10, 20, 30, so sqrt(200 / 2) = 10.0;
# last: 30, 31, 35, deviations -2, -1, 3 from 32, so sqrt(14 / 2) = 2.65.
SEED_RUNS = (
  {"seed": 0, "top1": 0.40, "top5": 0.90, "imbalance": 0.1, "last": 0.30},
  {"seed": 1, "top1": 0.42, "top5": 0.90, "imbalance": 0.2, "last": 0.31},
  {"seed": 2, "top1": 0.44, "top5": 0.93, "imbalance": 0.3, "last": 0.35},
)
SEED_ROW = ["SS-IL", "3", "42.0 ± 2.0", "91.0 ± 1.7", "20.0 ± 10.0", "-", "32.0 ± 2.6"]


def measured_run(workdir, **changes):
  """The work directory of a finished run by a version that measures more.

  Of the 100 images of state 1's classes 60 are right at the end, after 90; "bee" is best.
  """
  confusion = [[0, 0, 20], [0, 1, 10], [0, 2, 20], [1, 1, 40], [1, 3, 10]]
  confusion += [[2, 2, 45], [2, 0, 5], [3, 3, 50]]
  results = with_states(
    {
      "top1_by_state": [0.9],
      "state_specific_top1_by_state": [0.9],
      "top1_by_class": [0.9, 0.9],
      "ece": 0.05,
      "peak_host_memory": 10**9,
      "peak_device_memory": None,
    },
    {
      "top1_by_state": [0.6, 0.95],
      "state_specific_top1_by_state": [0.75, 0.95],
      "peak_host_memory": 1_230_000_000,
      "peak_device_memory": None,
      "top1_by_class": [0.4, 0.8, 0.9, 1.0],
      "ece": 0.15,
      "class_confusion": sorted(confusion),
    },
    class_names=["ant", "bat", "cat", "bee"],
    split="test",
    validation_fraction=0.0,
    tuned_on=None,
  )
  results["average"] |= {"ece": 0.1, "forgetting": 0.3, "backward_transfer": -0.3}
  results["environment"] |= {"commit": "abc1234", "cpu": "a CPU", "command": "run.py --x"}
  return write_run(workdir, results=results, **changes)


def load_seed_runs(folder, *arguments):
  """Runs in the folders run0, run1, ...; keyword arguments of `seed_run` for each."""
  return [
    load_run(seed_run(folder / f"run{i}", **{"seed": 7, **a}))
    for i, a in enumerate(arguments)
  ]


class Page(html.parser.HTMLParser):
  """What a browser would see: tags with attributes, text, rows of tables, captions."""

  def __init__(self, path):
    super().__init__()
    self.tags, self.rows, self.captions, self.text = [], [], [], ""
    self._open = []
    self.feed(path.read_text(encoding="utf-8"))

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))
    if tag not in ("meta", "img", "link", "br"):
      self._open.append(tag)
    if tag == "tr":
      self.rows.append([])
    if tag in ("td", "th"):
      self.rows[-1].append("")
    if tag == "figcaption":
      self.captions.append("")

  def handle_endtag(self, tag):
    assert self._open.pop() == tag

  def handle_data(self, data):
    if {"style", "script"} & set(self._open):
      return
    self.text += data
    if {"td", "th"} & set(self._open):
      self.rows[-1][-1] += data
    if "figcaption" in self._open:
      self.captions[-1] += data
