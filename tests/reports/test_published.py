"""Published numbers: those of the paper one by one, and files that are wrong."""

import collections

import pytest
from folders import ROOT

from ssil_jax.errors import DataError
from ssil_jax.methods.registry import METHODS
from ssil_jax.reports import published
from ssil_jax.reports.published import Fact, find, read_facts

V1 = "Ahn et al. SS-IL (first version) arXiv:2003.13947v1"
ICCV = "Ahn et al. SS-IL ICCV 2021"
AUTHOR = "First author's result files, github.com/hongjoon0805/Incremental at 38d1495"
IMAGENET, GLD_1K, GLD_10K = "imagenet", "landmarks_v2/1k", "landmarks_v2/10k"


def values(**wanted):
  return [fact.value for fact in find(**wanted)]


@pytest.mark.parametrize(
  ("dataset", "num_states", "memory_size", "method", "best"),
  [
    # What table 1 prints in bold of average top-1, from left to right.
    (IMAGENET, 10, 5000, "ssil", 52.6),
    (IMAGENET, 10, 10000, "ssil", 56.3),
    (IMAGENET, 10, 20000, "ssil", 59.3),
    (GLD_1K, 10, 5000, "ssil", 49.7),
    (GLD_1K, 10, 10000, "ssil", 53.1),
    (GLD_1K, 10, 20000, "il2m", 57.3),
    (GLD_10K, 10, 10000, "ssil", 36.1),
    (GLD_10K, 10, 20000, "ssil", 40.7),
    (GLD_10K, 10, 30000, "ssil", 43.3),
    (IMAGENET, 20, 5000, "ssil", 50.2),
    (IMAGENET, 5, 5000, "ssil", 55.3),
    (GLD_1K, 20, 5000, "ssil", 41.3),
    (GLD_1K, 5, 5000, "ssil", 56.8),
    (GLD_10K, 20, 10000, "ssil", 37.1),
    (GLD_10K, 5, 10000, "ssil", 36.2),
  ],
)
def test_the_best_of_each_column_of_table_1(dataset, num_states, memory_size, method, best):
  column = find(
    source=V1,
    where="Table 1",
    dataset=dataset,
    num_states=num_states,
    memory_size=memory_size,
    measure="average_top1",
  )
  top = max(column, key=lambda fact: fact.value)
  assert (top.method, top.value, top.certainty) == (method, best, "printed")


def test_every_cell_of_the_tables_is_there():
  cells = collections.Counter(
    (fact.where, fact.dataset, fact.measure) for fact in find(source=V1)
  )
  # Four methods in five columns; the paper prints no iCaRL on 10,000
  # landmarks. Table 2: T x N_M.
  measures = ("average_top1", "average_top5", "average_imbalance")
  assert cells == {
    **{("Table 1", dataset, m): 20 for dataset in (IMAGENET, GLD_1K) for m in measures},
    **{("Table 1", GLD_10K, measure): 15 for measure in measures},
    **{("Table 2", IMAGENET, m): 12 for m in ("average_top1", "average_imbalance")},
  }
  # Of the conference's table 1, PODNet is on ImageNet only: 7 x 15 + 5 cells, twice.
  assert len(find(source=ICCV)) == 2 * (7 * 15 + 5)


def test_some_numbers_of_each_source():
  one = {"dataset": IMAGENET, "num_states": 10, "memory_size": 10000}
  table_2 = {"where": "Table 2", "num_states": 20, "batch_size_memory": 128}
  assert values(**table_2, measure="average_top1") == [45.1]
  assert values(**table_2, measure="average_imbalance") == [33.2]
  tkd = {**one, "source": ICCV, "method": "ssil_tkd"}
  assert values(**tkd, measure="average_top1") == [64.5]
  assert values(**tkd, measure="average_top5") == [86.4]
  # Figure 6: SS-IL's epochs, and its two parts alone.
  epochs = {
    fact.epochs: fact.value
    for fact in find(**one, source=AUTHOR, method="ssil", measure="average_top1")
    if "figure 6" in fact.note
  }
  assert epochs == {50: 51.02, 25: 55.1, 20: 56.3, 10: 57.69}
  errors = {
    method: values(**one, source=AUTHOR, method=method, measure="average_top1")[-1]
    for method in ("ft_ss", "ft_rp")
  }
  assert errors == {"ft_ss": 47.37, "ft_rp": 36.76}
  joint = {fact.dataset: fact.value for fact in find(method="joint_full") if fact.value}
  assert values(method="joint_full", measure="last_top1") == [69.36, 70.66, 60.04]
  assert joint.keys() == {IMAGENET, GLD_1K, GLD_10K}
  # Two sources on one question have a row each.
  icarl = find(dataset="cifar100", method="icarl", num_states=10, measure="average_top1")
  assert {64.42, 65.27, 64.1} <= {fact.value for fact in icarl}
  assert values(dataset="cifar100", method="ft", num_states=10, memory_size=0) == [
    26.25,
    9.09,
  ]


def test_an_unknown_field_is_an_error():
  with pytest.raises(TypeError, match="a fact has no state$"):
    find(state=1)


def test_methods_are_named_as_by_the_flag():
  # Those that the package lacks; DER of the surveys is not its `der`, which is DER++.
  foreign = {"aanets", "coil", "dynamic_er", "dytox", "foster", "memo", "rmm"}
  assert {fact.method for fact in find()} - METHODS.keys() == foreign
  assert not find(method="der")


def test_installations_have_the_files():
  pyproject = (ROOT / "pyproject.toml").read_text()
  assert '"share/ssil_jax/published" = ["experiments/published/*.csv"]' in pyproject
  assert published.FOLDER == ROOT / "experiments/published"


ROW = {
  "dataset": "imagenet",
  "method": "ssil",
  "num_states": "10",
  "measure": "average_top1",
  "value": "52.6",
  "source": "a paper",
  "where": "Table 1",
  "certainty": "printed",
}


COLUMNS = ",".join(Fact._fields)


def written(folder, *rows, header=COLUMNS):
  lines = [",".join(row.get(name, "") for name in Fact._fields) for row in rows]
  (folder / "a.csv").write_text("\n".join([header, *lines]) + "\n")
  return folder


def test_what_a_source_does_not_say_is_none(tmp_path):
  (fact,) = read_facts(written(tmp_path, ROW))
  assert (fact.num_states, fact.memory_size, fact.epochs) == (10, None, None)
  assert (fact.value, fact.note) == (52.6, "")


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"source": " "}, "line 3: source is empty"),
    ({"value": ""}, "line 3: value is empty"),
    ({"value": "52,6"}, "line 3: 16 cells in place of 15"),
    ({"value": "5 2"}, "line 3: value '5 2' must be a number"),
    ({"value": "100.1"}, "line 3: value '100.1' must be per cent, from 0 to 100"),
    ({"value": "nan"}, "line 3: value 'nan' must be per cent, from 0 to 100"),
    ({"num_states": "0"}, "line 3: num_states '0' must be a whole number, at least 1"),
    ({"memory_size": "5k"}, "line 3: memory_size '5k' must be a whole number, at least 0"),
    ({"method": "SS-IL"}, "line 3: method 'SS-IL' must be of a-z, 0-9 and _"),
    ({"measure": "top1"}, "line 3: measure 'top1' must be one of: average_top1, "),
    ({"certainty": "sure"}, "line 3: certainty 'sure' must be one of: printed, "),
    ({"value": "9", "where": "Table 1"}, "line 3 is about the same number as {}: line 2"),
    ({"note": '"open'}, "line 3: unexpected end of data"),
  ],
)
def test_a_wrong_row_is_named_with_file_and_line(tmp_path, changed, message):
  written(tmp_path, ROW, {**ROW, "where": "Table 2", **changed})
  path = tmp_path / "a.csv"
  with pytest.raises(DataError) as error:
    read_facts(tmp_path)
  assert str(error.value).startswith(f"{path}: {message.format(path)}")


def test_other_columns_and_no_files_are_named(tmp_path):
  with pytest.raises(DataError, match="has no CSV files of published results"):
    read_facts(tmp_path / "nothing")
  for header in ("", "dataset,method"):
    folder = written(tmp_path, header=header)
    with pytest.raises(DataError, match="a.csv: line 1: the columns must be dataset,meth"):
      read_facts(folder)
  (tmp_path / "a.csv").write_bytes(b"\xff")
  with pytest.raises(DataError, match="a.csv is not UTF-8 text"):
    read_facts(tmp_path)
