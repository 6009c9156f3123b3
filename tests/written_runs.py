"""Work directories of runs as files, and pages read back."""

import copy
import html.parser
import json

# Two states of 2 classes and 100 test images each. State 2: 100 old images, of which 30
# go to the new classes; 100 new ones, of which 10 go to the old classes.
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
  "states": [
    {
      "state": 1,
      "num_old": 0,
      "num_seen": 2,
      "top1": 0.9,
      "top5": 1.0,
      "error_old_as_new": None,
      "error_new_as_old": None,
      "imbalance": None,
      "state_specific_top1": 0.9,
      "score_old": None,
      "score_new": 1.5,
      "train_seconds": 60.0,
      "confusion": [[100]],
    },
    {
      "state": 2,
      "num_old": 2,
      "num_seen": 4,
      "top1": 0.626,
      "top5": 0.96,
      "error_old_as_new": 0.3,
      "error_new_as_old": 0.1,
      "imbalance": 0.2,
      "state_specific_top1": 0.85,
      "score_old": -0.5,
      "score_new": 1.25,
      "train_seconds": 5.6,
      "confusion": [[70, 30], [10, 90]],
    },
  ],
  "average": {"top1": 0.763, "top5": 0.98, "imbalance": 0.2},
}


SCHEDULE = [
  {"state": 1, "sampling": "new only", "learning rate": 0.1},
  {"state": 2, "sampling": "ratio-preserving", "learning rate": 0.05},
]


METRICS = [
  {"state": 1, "phase": 1, "epoch": 1, "step": 10, "loss": 2.0},
  {"state": 1, "phase": 1, "epoch": 2, "step": 20, "loss": 1.0},
  {"state": 2, "phase": 1, "epoch": 1, "step": 30, "loss": 1.5},
]


def write_run(workdir, *, results=None, schedule=SCHEDULE, metrics=METRICS, **changes):
  """A work directory with the files of a run; `changes` are top-level results keys."""
  workdir.mkdir(parents=True, exist_ok=True)
  content = {**(RESULTS if results is None else results), **changes}
  (workdir / "results.json").write_text(json.dumps(content))
  if schedule is not None:
    (workdir / "schedule.json").write_text(json.dumps(schedule))
  if metrics is not None:
    lines = "".join(json.dumps(row) + "\n" for row in metrics)
    (workdir / "metrics.jsonl").write_text(lines)
  return workdir


def one_state(**changes):
  """Results of a run that has done one of its states."""
  average = {"top1": 0.9, "top5": 1.0, "imbalance": None}
  return {**RESULTS, "states": RESULTS["states"][:1], "average": average, **changes}


STATE_ROWS = [
  ["1", "2", "90.0", "100.0", "-", "-", "-", "90.0", "60.0"],
  ["2", "4", "62.6", "96.0", "30.0", "10.0", "20.0", "85.0", "5.6"],
  ["average", "", "76.3", "98.0", "30.0", "10.0", "20.0", "87.5", "32.8"],
]


COMPARISON_ROW = ["SS-IL", "76.3", "98.0", "20.0", "62.6", "30.0", "10.0", "1m 06s"]


def seed_run(
  workdir, seed, *, top1=0.7, top5=0.9, imbalance=0.2, last=0.6, config=None, **changes
):
  """The work directory of a finished run with another seed and other measures."""
  results = copy.deepcopy(RESULTS)
  results["average"] = {"top1": top1, "top5": top5, "imbalance": imbalance}
  results["states"][-1] |= {"top1": last, "imbalance": imbalance}
  write_run(workdir, results=results, seed=seed, **changes)
  if config is not None:
    (workdir / "config.json").write_text(json.dumps(config))
  return workdir


# top-1: 40, 42, 44, deviations -2, 0, 2 from 42, so sqrt(8 / 2) = 2.0;
# top-5: 90, 90, 93, deviations -1, -1, 2 from 91, so sqrt(6 / 2) = 1.73;
# imbalance: 10, 20, 30, so sqrt(200 / 2) = 10.0;
# last: 30, 31, 35, deviations -2, -1, 3 from 32, so sqrt(14 / 2) = 2.65.
SEED_RUNS = (
  {"seed": 0, "top1": 0.40, "top5": 0.90, "imbalance": 0.1, "last": 0.30},
  {"seed": 1, "top1": 0.42, "top5": 0.90, "imbalance": 0.2, "last": 0.31},
  {"seed": 2, "top1": 0.44, "top5": 0.93, "imbalance": 0.3, "last": 0.35},
)


SEED_ROW = ["SS-IL", "3", "42.0 \u00b1 2.0", "91.0 \u00b1 1.7", "20.0 \u00b1 10.0"]


def results_with(*states):
  """RESULTS with more fields in its states."""
  rows = [{**row, **more} for row, more in zip(RESULTS["states"], states, strict=True)]
  return {**RESULTS, "states": rows}


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
    if "style" in self._open:
      return
    self.text += data
    if {"td", "th"} & set(self._open):
      self.rows[-1][-1] += data
    if "figcaption" in self._open:
      self.captions[-1] += data
