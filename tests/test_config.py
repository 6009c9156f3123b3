"""Defaults follow the paper (section 6.2); every mistake is named by its flag."""

import dataclasses
import json
import math
import pathlib
from fractions import Fraction

import numpy as np
import pytest

from ssil_jax import config as config_lib
from ssil_jax.config import DEFAULTS, Config, make_config
from ssil_jax.errors import ConfigError, UserError
from ssil_jax.methods import METHODS
from ssil_jax.settings import CHANGES, fields_of, setting

SSIL, FT, LUCIR = (METHODS[name] for name in ("ssil", "ft", "lucir"))
OWN = {field.name: name for name, m in METHODS.items() for field in fields_of(m.settings)}


def mistakes(values):
  """The lines of the ConfigError that these values give."""
  owner = next((METHODS[OWN[name]] for name in values if name in OWN), SSIL)
  with pytest.raises(ConfigError) as error:
    make_config(values, owner)
  return str(error.value).splitlines()


def test_training_defaults_of_the_paper():
  config = make_config({}, SSIL)
  assert (config.learning_rate, config.momentum, config.weight_decay) == (0.1, 0.9, 1e-4)
  assert (config.batch_size_new, config.selection) == (128, "ring")
  assert (config.epochs_first, config.milestones_first) == (100, (40, 80))
  assert (config.epochs, config.milestones) == (20, (8, 16))
  ft = make_config({}, FT)
  assert (ft.epochs, ft.milestones) == (25, (10, 20))


@pytest.mark.parametrize(
  ("num_states", "batch_size_new", "batch_size_memory"),
  [
    (20, 128, 16),  # an eighth
    (10, 128, 32),  # a quarter
    (5, 128, 64),  # a half
    (15, 128, 24),  # 128 / 6 = 21.3, in sixteenths of 128
    (1, 128, 64),  # never more than half of N_D
    (100, 128, 16),  # never less than an eighth
    (10, 64, 16),
    (10, 2, 1),  # one exemplar at least: 2 / 4 would be none
  ],
)
def test_memory_batch_size_follows_states_and_new_batch_size(
  num_states, batch_size_new, batch_size_memory
):
  values = {"num_states": num_states, "batch_size_new": batch_size_new}
  assert make_config(values, SSIL).batch_size_memory == batch_size_memory


@pytest.mark.parametrize(
  ("epochs", "milestones"),
  [(10, (4, 8)), (5, (2, 4)), (3, (1, 2)), (2, (1,)), (1, ())],
)
def test_milestones_follow_the_epochs(epochs, milestones):
  config = make_config({"epochs": epochs, "epochs_first": epochs}, SSIL)
  assert config.milestones == milestones
  assert config.milestones_first == milestones


def test_given_values_win_and_none_means_the_default():
  values = {"epochs": 7, "epochs_first": 3, "milestones": (1, 2, 3), "milestones_first": ()}
  values |= {"batch_size_memory": 5, "learning_rate": 0.5, "momentum": 0.0}
  values |= {"weight_decay": 0.0, "reset_momentum": False, "workdir": "elsewhere"}
  values |= {"seed": 2**32 - 1, "image_size": 8}
  config = make_config(values, SSIL)
  assert {name: getattr(config, name) for name in values} == values
  nothing = {field.name: None for field in fields_of(Config)}
  assert make_config(nothing, SSIL) == make_config({}, SSIL)


def test_workdir_is_named_after_data_set_and_method_and_may_start_at_home():
  config = make_config({"dataset": "image_folder", "method": "ft"}, FT)
  assert config.workdir == "runs/image_folder-ft"
  path = config_lib.workdir_path(config)
  assert path == pathlib.Path.cwd() / "runs" / "image_folder-ft"
  config = make_config({"workdir": "~/run"}, SSIL)
  assert config_lib.workdir_path(config) == pathlib.Path.home().resolve() / "run"


BAD = {
  **dict.fromkeys(("num_classes", "initial_classes", "image_size", "num_devices"), (-1,)),
  **dict.fromkeys(("num_states", "memory_size", "batch_size_new", "epochs_first"), (0,)),
  **dict.fromkeys(("batch_size_memory", "batch_size_test", "epochs", "width"), (0, -20)),
  **dict.fromkeys(("log_every", "eeil_epochs", "lucir_negatives", "podnet_epochs"), (0,)),
  **dict.fromkeys(("gd_epochs",), (0,)),
  **dict.fromkeys(("gd_confidence",), (-1.0, math.nan)),
  **dict.fromkeys(("class_order_seed", "seed"), (-1, 2**32)),
  **dict.fromkeys(("learning_rate", "temperature"), (0.0, -0.1, math.inf, math.nan)),
  **dict.fromkeys(("weight_decay", "der_alpha", "der_beta"), (-1e-4, math.inf, math.nan)),
  **dict.fromkeys(("learning_rate_drop",), (0.0, 1.5)),
  **dict.fromkeys(("lucir_lambda", "lucir_margin"), (-1.0, math.nan)),
  **dict.fromkeys(("podnet_spatial", "podnet_flat", "podnet_margin"), (-1.0, math.nan)),
  **dict.fromkeys(
    ("lucir_weighting", "lucir_start", "podnet_loss", "eeil_distillation", "icarl_means"),
    ("both",),
  ),
  "podnet_rate": (0.0,),
  **dict.fromkeys(("sigma_rate", "vcl_prior_sigma", "vcl_initial_sigma"), (0.0, math.nan)),
  **dict.fromkeys(("penalty_strength", "ucl_beta"), (-1.0, math.inf)),
  "ucl_ratio": (0.0,),
  "vcl_layers": ("body",),
  "momentum": (-0.1, 1.0, math.nan),
  "bic_held_out": (0.0, 1.0),
  "learning_rate_by_state": ("linear",),
  "il2m_scores": ("features",),
  "calibration": ("both",),
  "precision": ("float16",),
  "selection": ("best",),
  "augment": ("flip",),
  "resume": ("always",),
  # Falls, does not rise, is not after the first epoch, or before the last of 20.
  "milestones": ((16, 8), (8, 8), (0, 8), (20,)),
  "milestones_first": ((80, 40), (-1,), (100,)),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_names_its_flag(name):
  for value in BAD[name]:
    shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
    (line,) = mistakes({name: value})
    assert line.startswith(f"--{name}={shown} ")


def test_several_mistakes_give_several_lines():
  assert mistakes(
    {"precision": "float16", "image_size": 7, "initial_classes": 5, "num_states": 1}
  ) == [
    "--precision=float16 is unknown; choose from: float32, bfloat16",
    "--image_size=7 is too small: use 8 or more, or 0 for the data set's own",
    "--initial_classes needs --num_states of 2 or more; with one state, leave it at 0",
  ]
  assert issubclass(ConfigError, UserError)
  assert ConfigError.exit_code == 2


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"widht": 3}, "there is no setting 'widht': did you mean 'width'?"),
    ({"zzz": 3}, "there is no setting 'zzz'"),
    ({"width": "3"}, "width='3' must be a whole number"),
    ({"width": 3.0}, "width=3.0 must be a whole number"),
    ({"width": True}, "width=True must be a whole number"),
    ({"learning_rate": "0.1"}, "learning_rate='0.1' must be a number"),
    ({"verify_data": 1}, "verify_data=1 must be true or false"),
    ({"dataset": 3}, "dataset=3 must be text"),
    ({3: 4}, "there is no setting 3"),
    ({"workdir": "a\0b"}, "workdir='a\\x00b' has a zero byte: write it without"),
    ({"width": 10**400}, "width is too large a number: use one up to 2**53"),
    ({"momentum": 10**400}, "momentum is too large a number: use one up to 2**53"),
    ({"milestones": 8}, "milestones=8 must be whole numbers"),
    ({"milestones": (8.5,)}, "milestones=(8.5,) must be whole numbers"),
    ({"milestones": "8"}, "milestones='8' must be whole numbers"),
    (
      {"widht": 3, "seed": None, "epcohs": 2, "seed ": 0},
      "there is no setting 'widht': did you mean 'width'?\n"
      "there is no setting 'epcohs': did you mean 'epochs'?\n"
      "there is no setting 'seed ': did you mean 'seed'?",
    ),
  ],
)
def test_mistakes_in_python_are_named(values, message):
  with pytest.raises(ConfigError) as caught:
    make_config(values, SSIL)
  assert str(caught.value) == message


def test_numbers_of_numpy_and_lists_are_taken():
  config = make_config(
    {"width": np.int32(8), "learning_rate": 1, "momentum": np.float32(0.5)}, SSIL
  )
  assert (config.width, config.learning_rate, config.momentum) == (8, 1.0, 0.5)
  assert {type(v) for v in (config.learning_rate, config.momentum)} == {float}
  assert type(config.width) is int
  milestones = make_config({"milestones": [np.int64(4), 8]}, SSIL).milestones
  assert milestones == (4, 8)
  json.dumps(config_lib.to_json(config))


def test_addresses_are_no_paths():
  paths = {"workdir": "gs://b/r", "data_dir": "s3://b", "from_workdir": "file:///r"}
  with pytest.raises(ConfigError) as caught:
    make_config(paths, SSIL)
  for name, line in zip(
    ("data_dir", "workdir", "from_workdir"), str(caught.value).splitlines(), strict=True
  ):
    assert line.startswith(f"--{name}={paths[name]} is an address, and a folder")


def test_what_a_method_fixes_and_gives():
  config = make_config({"num_states": 10}, SSIL._replace(fixed={"num_states": 1}))
  assert config.num_states == 1
  # Milestones for any number of epochs.
  halves = SSIL._replace(
    defaults={"milestones": lambda epochs: (epochs // 2,), "epochs": 60}
  )
  for given, milestones in (
    ({}, (30,)),
    ({"epochs": 8}, (4,)),
    ({"milestones": (1,)}, (1,)),
  ):
    assert make_config(given, halves).milestones == milestones
  without = SSIL._replace(defaults={})
  with pytest.raises(ConfigError, match="--epochs is missing: the method gives none"):
    make_config({}, without)
  assert make_config({"epochs": 3}, without).epochs == 3


def test_milestones_at_fractions_of_the_epochs():
  thirds = Fraction(1, 3), Fraction(2, 3)
  assert config_lib.milestones_at(90, *thirds) == (30, 60)
  assert config_lib.milestones_at(2, *thirds) == (1,)  # 0 and 1
  assert config_lib.milestones_at(1, *thirds) == ()


def test_json_holds_every_field():
  config = make_config({"milestones": (1, 2), "lucir_lambda": 5}, LUCIR)
  saved = config_lib.to_json(config)
  assert json.loads(json.dumps(saved)) == saved
  assert saved["milestones"] == [1, 2]
  names = {field.name for field in (*fields_of(Config), *fields_of(LUCIR.settings))}
  assert set(saved) == names
  assert make_config(saved, LUCIR) == config


def test_differences_name_flag_and_both_values():
  config = make_config({"seed": 1, "epochs": 10}, SSIL)
  saved = json.loads(json.dumps(config_lib.to_json(config)))
  assert config_lib.differences(config, saved) == []
  now = make_config({"seed": 2, "epochs": 10, "milestones": (5,), "width": 8}, SSIL)
  del saved["width"]  # as of an earlier version: counts as its default
  assert config_lib.differences(now, saved) == [
    "--milestones: [4, 8] there, [5] now",
    "--width: 64 there, 8 now",
    "--seed: 1 there, 2 now",
  ]


def test_what_training_and_the_first_state_depend_on():
  saved = config_lib.to_json(make_config({}, FT))
  now = make_config(
    {"il2m_scores": "logits", "memory_size": 20_000, "learning_rate": 0.2}, METHODS["il2m"]
  )
  flags = ["--learning_rate", "--memory_size", "--il2m_scores"]
  for changes, number in (("results", 3), ("later_states", 2), ("every_state", 1)):
    lines = config_lib.differences(now, saved, changes=changes)
    assert {line.split(":")[0] for line in lines} == {*flags[:number]}


def test_settings_of_other_methods_are_no_part_of_a_run():
  saved = {**config_lib.to_json(make_config({}, SSIL)), "lucir_lambda": 5.0}
  assert config_lib.differences(make_config({}, SSIL), saved) == []
  own = make_config({"lucir_lambda": 5.0}, LUCIR)
  assert own.method_settings.lucir_lambda == 5
  assert "--lucir_lambda" in config_lib.identity(own)
  assert config_lib.differences(own, {**config_lib.to_json(own), "lucir_lambda": 6.0}) == [
    "--lucir_lambda: 6.0 there, 5.0 now"
  ]


def test_limits_are_told_as_they_are():
  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Settings:
    share: float = setting(0.5, "between two", above=0, below=1)
    part: float = setting(0.5, "up to one", above=0, at_most=1)
    most: int = setting(3, "from one to four", at_least=1, at_most=4)
    free: float = setting(0.5, "any number")

  method = SSIL._replace(settings=Settings)
  for values, line in (
    ({"share": 1.0}, "--share=1.0 must be between 0 and 1"),
    ({"part": 0.0}, "--part=0.0 must be above 0 and at most 1"),
    ({"most": 0}, "--most=0 must be 1 or more"),
    ({"most": 5}, "--most=5 must be at most 4"),
    ({"share": math.nan}, "--share=nan must be a finite number"),
    ({"free": math.inf}, "--free=inf must be a finite number"),
  ):
    with pytest.raises(ConfigError) as caught:
      make_config(values, method)
    assert str(caught.value) == line


def test_some_flags_may_change_when_a_run_is_resumed():
  free = {"data_dir": "elsewhere", "workdir": "there", "from_workdir": "other"}
  free |= {"resume": "never", "log_every": 7, "num_devices": 2, "input_processes": 2}
  free |= {"checkpoint_minutes": 1.5, "checkpoints_kept": 1, "batch_size_test": 8}
  free |= {"coordinator_address": "host:1234", "num_processes": 2, "process_id": 1}
  free |= {"verify_data": False, "skip_bad_records": True, "test_fraction": 0.5}
  free |= {"classes": "a.txt", "class_order": "b.txt", "keep_test": 7}
  free |= {"wandb": "project", "compilation_cache": "none", "profile": "p"}
  free |= {"tuned_on": "tuning.json", "steps_per_dispatch": 4}
  saved = config_lib.to_json(make_config({}, SSIL))
  assert config_lib.differences(make_config(free, SSIL), saved) == []
  kept = {field.name for field in fields_of(Config)} - set(free)
  for name in kept:
    assert len(config_lib.differences(make_config({}, SSIL), {**saved, name: "?"})) == 1


def test_every_setting_has_help_and_says_what_it_changes():
  for owner in (Config, *(method.settings for method in METHODS.values())):
    for field in fields_of(owner):
      assert len(field.metadata["help"]) > 5
      assert field.metadata["changes"] in CHANGES
      assert bool(field.metadata["topic"]) == (owner is Config)


def test_fields_without_a_default_follow_others():
  fields = {field.name for field in fields_of(Config)}
  names = {"workdir", "batch_size_memory", "epochs", "milestones_first", "milestones"}
  assert fields - set(DEFAULTS) == names
