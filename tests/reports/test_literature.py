"""Published numbers beside runs: of the same protocol, and of no other."""

import csv

import pytest
from written_runs import with_states, write_run

from ssil_jax.reports import labels, published
from ssil_jax.reports.literature import published_table
from ssil_jax.reports.results import load_run

FACT = {
  "dataset": "cifar100",
  "method": "ssil",
  "network": "ResNet-32",
  "num_states": 2,
  "initial_classes": 0,
  "memory_size": 40,
  "epochs": 170,
  "measure": "average_top1",
  "value": 70.0,
  "source": "A survey",
  "where": "Table 3",
  "certainty": "survey",
}

SURVEY = (FACT["source"], FACT["certainty"])


@pytest.fixture
def facts(tmp_path, monkeypatch):
  """Makes the published numbers those of rows that differ from `FACT` as told."""

  def write(*changes):
    folder = tmp_path / "published"
    folder.mkdir()
    with open(folder / "a.csv", "w", newline="") as file:
      rows = csv.DictWriter(file, published.Fact._fields, lineterminator="\n")
      rows.writeheader()
      rows.writerows(FACT | changed for changed in changes)
    monkeypatch.setattr(published, "FOLDER", folder)

  return write


def groups(folder, *, first=50, **changes):
  seen = {"num_seen": first}, {"num_old": first, "num_seen": 100}
  results = with_states(*seen, dataset="cifar100")
  results = {**results, "num_classes": 100, **changes}
  return labels.labelled_groups([load_run(write_run(folder / "run", results=results))])


def test_numbers_of_the_protocol_are_shown_with_the_difference(tmp_path, facts):
  facts(
    {},
    {"measure": "last_top1", "value": 50.0},
    {"measure": "average_error_old_as_new", "value": 35.25},
    {"measure": "average_imbalance", "value": 10.0, "epochs": None},
    # Another protocol, or another method.
    *({name: other} for name, other in (("num_states", 5), ("memory_size", 2000))),
    {"initial_classes": 60},
    {"method": "wa"},
    {"dataset": "imagenet"},
  )
  table = published_table(groups(tmp_path))
  assert [[getattr(cell, "text", cell) for cell in row] for row in table.rows] == [
    # State 2 alone has old classes, of which 30% are taken for new ones.
    ["SS-IL", "average top-1", "76.3", "70.0", "+6.3", "ResNet-32", "170", *SURVEY],
    ["SS-IL", "last top-1", "62.6", "50.0", "+12.6", "ResNet-32", "170", *SURVEY],
    ["SS-IL", "average e(p,n)", "30.0", "35.2", "-5.2", "ResNet-32", "170", *SURVEY],
    ["SS-IL", "average imbalance", "20.0", "10.0", "+10.0", "ResNet-32", "-", *SURVEY],
  ]


def test_the_first_state_may_be_larger(tmp_path, facts):
  facts({"initial_classes": 60}, {"value": 1.0})
  (row,) = published_table(groups(tmp_path, first=60)).rows
  assert row[3].value == 70.0


@pytest.mark.parametrize(
  "changes", [{"num_classes": 60}, {"dataset": "image_folder"}, {"memory_size": 41}]
)
def test_nothing_is_shown_of_another_protocol(tmp_path, facts, changes):
  facts({})
  assert published_table(groups(tmp_path, **changes)) is None
