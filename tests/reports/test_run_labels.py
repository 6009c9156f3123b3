"""Labels of runs and of groups, and notes on what keeps runs apart."""

import pytest
from written_runs import load_seed_runs, with_states, write_run

from ssil_jax.reports import labels
from ssil_jax.reports.results import load_run


@pytest.mark.parametrize(
  ("changes", "names"),
  [
    ([{}, {"method_title": "FT"}], ["SS-IL", "FT"]),
    ([{"seed": 1}, {"seed": 2}], ["SS-IL (seed 1)", "SS-IL (seed 2)"]),
    (
      [{"memory_size": 40}, {"memory_size": 80, "num_states": 3}],
      ["SS-IL (|M|=40, T=2)", "SS-IL (|M|=80, T=3, 2 of 3 states)"],
    ),
    ([{}, {}], ["SS-IL (run0)", "SS-IL (run1)"]),
    ([{}, {}, {"seed": 1}], [f"SS-IL (seed {n})" for n in ("7, run0", "7, run1", 1)]),
  ],
)
def test_run_labels_say_what_differs(tmp_path, changes, names):
  assert labels.run_labels(load_seed_runs(tmp_path, *changes)) == names


def test_run_labels_with_equal_folders(tmp_path):
  runs = [load_run(write_run(tmp_path / top / "run")) for top in "ab"]
  assert labels.run_labels(runs) == ["SS-IL (run, #1)", "SS-IL (run, #2)"]


def test_comparability_note(tmp_path):
  for changes, reason in (
    ({}, ""),
    ({"dataset": "birds"}, "different data sets (digits, birds)."),
    ({"num_classes": 10}, "different numbers of classes (4, 10)."),
    ({"split": "validation"}, "different scored images (test, validation)."),
  ):
    note = labels.comparability_note(load_seed_runs(tmp_path, {}, changes))
    assert note.endswith(reason)
    assert bool(note) == bool(reason)


def test_caption_over_seeds_says_what_the_deviation_is(tmp_path):
  for num_runs, what in (
    ([2], "n is 2."),
    ([2, 1], "n is 1 or 2, without a deviation where it is 1."),
    ([3, 2, 1], "n is 1, 2 or 3, without a deviation where it is 1."),
  ):
    runs = [
      {"seed": seed, "method_title": title}
      for title, number in zip("abc", num_runs, strict=False)
      for seed in range(number)
    ]
    caption = labels.over_seeds(load_seed_runs(tmp_path, *runs)).caption
    assert caption.startswith("Mean ± sample standard deviation (divisor n - 1)")
    assert caption.endswith(what)


def test_nothing_over_seeds_of_runs_that_differ_otherwise(tmp_path):
  first = load_run(write_run(tmp_path / "a"))
  for changes in (
    {"seed": 7},  # the same again
    {"dataset": "birds"},
    {"method_title": "FT"},
    {"memory_size": 80},
    {"num_classes": 10},
    {"num_states": 3},  # not finished
    {"states": with_states({"num_seen": 3}, {"num_old": 3})["states"]},
  ):
    other = load_run(write_run(tmp_path / "b", **{"seed": 1, **changes}))
    assert labels.over_seeds([first, other]) is None, changes


@pytest.mark.parametrize(
  ("ours", "theirs", "alike"),
  [
    ({"epochs": 5}, {"epochs": 5}, True),
    ({"epochs": 5}, {"epochs": 6}, False),
    ({"class_order_seed": 0}, {"class_order_seed": 1}, False),
    ({"seed": 0, "workdir": "a"}, {"seed": 1, "workdir": "b"}, True),
    ({"data_dir": "a", "num_devices": 1}, {"data_dir": "b", "num_devices": 2}, True),
    ({"my_gamma": 2}, {"my_gamma": 3}, False),  # a method's own setting
    ({"my_gamma": 2}, {}, True),  # another version's may have no such setting
    ({"version": "1", "method_source": "a"}, {"version": "2", "method_source": "a"}, True),
    ({"started": "1", "command": "a"}, {"started": "2", "command": "b"}, True),
    ({"method_source": "a"}, {"method_source": "b"}, False),
    ({"data_fingerprint": "x"}, {"data_fingerprint": "y"}, False),
    ({"data_fingerprint": "x"}, {}, True),
    ({"data": {"classes": 4}}, {"data": {"classes": 4, "sizes": "z"}}, True),
    ({"data": {"classes": 4}}, {"data": {"classes": 5}}, False),
    # The hash covers all that was known of the data, which may be less in one of them.
    (
      {"data": {"classes": 4}, "data_fingerprint": "x"},
      {"data": {"classes": 4, "sizes": "z"}, "data_fingerprint": "y"},
      True,
    ),
    ({"epochs": 5}, None, True),  # without config.json, results.json alone decides
  ],
)
def test_settings_in_config_json_part_groups(tmp_path, ours, theirs, alike):
  runs = load_seed_runs(
    tmp_path, {"seed": 0, "config": ours}, {"seed": 1, "config": theirs}
  )
  assert (labels.over_seeds(runs) is not None) == alike


@pytest.mark.parametrize(
  ("changes", "differing"),
  [
    ([{"method_source": "a"}, {"method_source": "b"}], "SS-IL (source of the method)"),
    ([{"epochs": 5, "width": 8}, {"epochs": 6, "width": 4}], "SS-IL (epochs, width)"),
    ([{"data": {"sizes": "x"}}, {"data": {"sizes": "y"}}], "SS-IL (data)"),
    ([{"data_fingerprint": "x"}, {"data_fingerprint": "y"}], "SS-IL (data)"),
    ([{"epochs": 5}, {"epochs": 5}, {"epochs": 6}], "SS-IL (epochs)"),
    ([{"epochs": 5}, {"epochs": 5}], ""),
    ([{"epochs": 5}, {"my_gamma": 2}], ""),
    ([{"epochs": 5}, {"epochs": 5}, {"epochs": 6}, {"epochs": 6}], ""),  # two means
  ],
)
def test_runs_of_one_method_that_are_not_averaged_have_a_reason(
  tmp_path, changes, differing
):
  runs = [{"seed": seed, "config": config} for seed, config in enumerate(changes)]
  note = labels.not_averaged_note(load_seed_runs(tmp_path, *runs))
  whole = f"Not averaged over seeds, as they differ: {differing}."
  assert note == (whole if differing else "")


def test_runs_that_are_not_averaged_for_reasons_that_labels_give_need_no_other(tmp_path):
  config = {"epochs": 5}
  for changes in (
    {"seed": 7},  # as the first one has it: settings are what is compared
    {"method_title": "FT"},
    {"memory_size": 80},
    {"dataset": "birds"},
    {"num_states": 3},  # not finished
  ):
    other = {"seed": 8, "config": {"epochs": 6}, **changes}
    assert (
      labels.not_averaged_note(load_seed_runs(tmp_path, {"config": config}, other)) == ""
    )
  states = with_states({"num_seen": 3}, {"num_old": 3})["states"]
  first = load_run(write_run(tmp_path / "a"))
  other = load_run(write_run(tmp_path / "b", seed=8, states=states))
  assert labels.not_averaged_note([first, other]) == (
    "Not averaged over seeds, as they differ: SS-IL (classes of the states)."
  )


def test_a_run_without_config_joins_one_group_only(tmp_path):
  configs = (None, {"epochs": 5}, {"epochs": 6})
  runs = load_seed_runs(
    tmp_path, *({"seed": n, "config": c} for n, c in enumerate(configs))
  )
  assert [len(group.runs) for group in labels.over_seeds(runs).groups] == [2, 1]


def test_groups_of_one_title_say_what_differs(tmp_path):
  runs = load_seed_runs(
    tmp_path,
    *({"seed": seed, "config": {"epochs": 5, "width": 8}} for seed in (0, 1)),
    {"config": {"epochs": 6, "width": 8, "workdir": "b"}},
    {"method_title": "FT", "config": {"epochs": 7}},
    *(
      {"method_title": "WA", "memory_size": m, "config": {"memory_size": m, "epochs": e}}
      for m, e in ((80, 5), (80, 6), (90, 5))
    ),
    *({"method_title": "BiC", "config": {"data_fingerprint": name}} for name in "xy"),
  )
  assert [group.label for group in labels.over_seeds(runs).groups] == [
    *("SS-IL (epochs=5)", "SS-IL (epochs=6)", "FT"),
    *("WA (|M|=80, epochs=5)", "WA (|M|=80, epochs=6)", "WA (|M|=90)"),
    *("BiC (#7)", "BiC (#8)"),
  ]
