"""The public names: which there are, and a whole run by them."""

import re

import pytest
from folders import ROOT
from quick import quick_network

import ssil_jax

NAMES = [
  "Config",
  "METHODS",
  "Memory",
  "Method",
  "RATIO_PRESERVING",
  "ResNet18",
  "UserError",
  "load",
  "load_run",
  "make_config",
  "run",
  "seen_softmax_cross_entropy",
  "separated_softmax_cross_entropy",
  "setting",
  "task_wise_distillation",
  "write_report",
]


def test_the_public_names():
  assert sorted(ssil_jax.__all__) == sorted(NAMES)
  for name in NAMES:
    assert getattr(ssil_jax, name) is not None
    assert name in dir(ssil_jax)
  assert re.fullmatch(r"\d+\.\d+\.\d+", ssil_jax.__version__)
  with pytest.raises(AttributeError):
    ssil_jax.no_such_name  # noqa: B018


def test_the_package_is_typed():
  assert (ROOT / "ssil_jax" / "py.typed").is_file()
  stub = (ROOT / "ssil_jax" / "__init__.pyi").read_text()
  assert sorted(re.findall(r"import (\w+) as \1$", stub, re.MULTILINE)) == sorted(NAMES)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"lucir_lambda": 3}, "lucir_lambda belongs to method lucir, not to ssil: take it out"),
    (
      {"method": "ft", "temperature": 2.0},
      "to method icarl, ssil_tkd, ssil_tkd_cal, lwf, ",
    ),
    ({"method": "lucir", "lucir_lamda": 5}, "did you mean 'lucir_lambda'?"),
    ({"epochs": 1.5}, "epochs=1.5 must be a whole number"),
    ({"method": "svm"}, "--method=svm is unknown; choose from: ssil"),
    ({"dataset": "mnist"}, "--dataset=mnist is unknown; choose from: digits"),
  ],
)
def test_a_mistake_in_make_config_is_one_line(settings, message):
  with pytest.raises(ssil_jax.UserError) as caught:
    ssil_jax.make_config(**settings)
  assert message in str(caught.value)
  assert "\n" not in str(caught.value)


def test_all_mistakes_are_named_at_once():
  with pytest.raises(ssil_jax.UserError) as caught:
    ssil_jax.make_config(lucir_lambda=5, memory_sise=3, epochs="x")
  assert str(caught.value).splitlines() == [
    "lucir_lambda belongs to method lucir, not to ssil: take it out",
    "there is no setting 'memory_sise': did you mean 'memory_size'?",
    "epochs='x' must be a whole number",
  ]


def test_a_run_and_its_results(tmp_path, capsys):
  sizes = {"num_classes": 4, "num_states": 2, "memory_size": 8, "width": 1}
  batches = {"batch_size_new": 32, "batch_size_memory": 8, "num_devices": 1}
  with quick_network():
    config = ssil_jax.make_config(
      "ssil", workdir=str(tmp_path / "run"), epochs_first=1, epochs=1, **sizes, **batches
    )
    results = ssil_jax.run(config)
  assert "state 2/2 done" in capsys.readouterr().out
  loaded = ssil_jax.load_run(tmp_path / "run")
  assert loaded.results["states"] == results["states"]
  assert [state["num_seen"] for state in results["states"]] == [2, 4]
  page = ssil_jax.write_report([tmp_path / "run"], tmp_path / "page.html")
  assert "SS-IL" in page.read_text(encoding="utf-8")
