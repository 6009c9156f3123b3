"""`--from_workdir`: what is taken from another run, what is not, and what is refused."""

import json
import shutil

import pytest
from folders import config_of as config_with
from kills import digests
from quick import quick_network
from rich.console import Console
from small_runs import (
  count,
  last_checkpoint,
  records,
  run,
  small_config,
  untimed,
  untimed_records,
  watched_run,
)

from ssil_jax.config import Config, fields_of, to_json
from ssil_jax.errors import ConfigError, DataError, UserError
from ssil_jax.methods import METHODS
from ssil_jax.methods.base import one_phase
from ssil_jax.methods.ft import softmax_loss
from ssil_jax.methods.source import source_hash
from ssil_jax.training import loop, reuse, session
from ssil_jax.training.plan import make_plan
from ssil_jax.training.workdir import saved_origin

SETTINGS = {"num_classes": 4, "num_states": 2, "memory_size": 16, "num_devices": 2}
# The losses that follow another first state should differ visibly.
RATE = {"learning_rate": 1e-2}


@pytest.fixture(autouse=True, scope="module")
def _quickly():
  with quick_network():
    yield


def small_run(workdir, **changes):
  return run(workdir, **SETTINGS | RATE | changes)


def taking_run(workdir, source, *, trained, **changes):
  """The results of a run that trains so many states alone; the others it takes."""
  config = small_config(
    workdir, **SETTINGS | RATE | changes, from_workdir=str(source or "")
  )
  results, calls = watched_run(config)
  rows = [row for row in records(workdir) if row["state"] > 2 - trained]
  assert count(calls, "train") == (len(rows) if trained else 0)
  assert [row["from_workdir"] for row in results["states"]] == (
    [str(source) if t < 2 - trained else None for t in range(2)]
  )
  return results


@pytest.fixture(scope="module")
def ft(tmp_path_factory):
  """A finished run of FT: its directory and results."""
  workdir = tmp_path_factory.mktemp("runs") / "ft"
  return workdir, small_run(workdir, method="ft")


@pytest.fixture
def copied(ft, tmp_path):
  """A copy of that run, to be changed."""
  return shutil.copytree(ft[0], tmp_path / "ft")


def test_il2m_takes_all_states_of_ft_and_trains_nothing(ft, tmp_path):
  workdir, of_ft = ft
  alone, lines = small_run(tmp_path / "alone", method="il2m"), records(workdir)
  with open(workdir / "metrics.jsonl", "a") as file:  # as a killed run may leave it
    file.write('{"state": 2, "st')
  files = {p: p.read_bytes() for p in sorted(workdir.rglob("*")) if p.is_file()}
  taken = taking_run(tmp_path / "taken", workdir, method="il2m", trained=0)
  assert untimed(taken) == untimed(alone)
  assert taken["method"] == "il2m"
  assert [row["train_seconds"] for row in taken["states"]] == [
    row["train_seconds"] for row in of_ft["states"]
  ]
  assert [row["from_workdir"] for row in alone["states"]] == [None, None]
  assert records(tmp_path / "taken") == lines
  assert untimed_records(tmp_path / "taken") == untimed_records(tmp_path / "alone")
  # IL2M does something of its own, and the other run is left as it was.
  assert [row["statistics"] for row in taken["states"]][1]["rectification"] != 1
  assert {p: p.read_bytes() for p in sorted(workdir.rglob("*")) if p.is_file()} == files
  # What was taken can be taken again, and an unfinished run goes on.
  settings = {"method": "il2m", "il2m_scores": "logits", "trained": 0}
  again = taking_run(tmp_path / "again", tmp_path / "taken", **settings)
  assert [row["score_new"] for row in again["states"]] == [
    row["score_new"] for row in taken["states"]
  ]
  lines = records(tmp_path / "taken")
  shutil.rmtree(last_checkpoint(tmp_path / "taken"))
  resumed = taking_run(tmp_path / "taken", workdir, method="il2m", trained=0)
  assert untimed(resumed) == untimed(taken)
  assert [row["train_seconds"] for row in resumed["states"]] == [
    row["train_seconds"] for row in of_ft["states"]
  ]
  assert records(tmp_path / "taken") == lines
  # Finished, it needs the other no more.
  assert small_run(tmp_path / "taken", method="il2m") == resumed


def test_states_whose_end_was_aligned_are_not_aligned_anew(tmp_path):
  alone = small_run(tmp_path / "alone", method="wa")
  taken = taking_run(tmp_path / "taken", tmp_path / "alone", method="wa", trained=0)
  assert untimed(taken) == untimed(alone)
  ours, theirs = (digests(tmp_path / name) for name in ("taken", "alone"))
  name = "last checkpoint: train_state.params.head.kernel"
  assert ours[name] == theirs[name]


def test_ssil_takes_the_first_state_alone(ft, tmp_path):
  workdir, _ = ft
  changes = {"method": "ssil", "memory_size": 24}
  alone = small_run(tmp_path / "alone", **changes)
  taken = taking_run(tmp_path / "taken", workdir, **changes, trained=1)
  assert untimed(taken) == untimed(alone)
  assert untimed_records(tmp_path / "taken") == untimed_records(tmp_path / "alone")
  first_of_ft = [row for row in records(workdir) if row["state"] == 1]
  assert [row for row in records(tmp_path / "taken") if row["state"] == 1] == first_of_ft


def lender_of(source, *, more=None, warnings=None):
  """The lender of a run of IL2M, whose data have some `more` parts."""
  values = {"method": "il2m", "from_workdir": str(source), **SETTINGS, **RATE}
  plan = make_plan(small_config("unused", **values))
  origin = saved_origin(json.loads((source / "config.json").read_text()))
  origin = origin._replace(data={**origin.data, **(more or {})})
  warn = pytest.fail if warnings is None else warnings.append
  return reuse.open_lender(plan, origin, warn=warn)


def test_an_unfinished_run_lends_what_it_has(ft, copied):
  assert lender_of(ft[0]).num_states == 2
  results = json.loads((copied / "results.json").read_text())
  # A state is lent once its results are there, and its network.
  edit_json("results.json", states=results["states"][:1])(copied)
  assert lender_of(copied).num_states == 1
  edit_json("results.json", states=results["states"])(copied)
  assert lender_of(copied).num_states == 2
  shutil.rmtree(copied / "networks" / "2")
  assert lender_of(copied).num_states == 1


def test_what_cannot_be_compared_is_said(copied):
  warnings, more = [], {"contents of test images": "0a"}
  assert lender_of(copied, more=more, warnings=warnings).num_states == 2
  edit_json("config.json", method_source=None)(copied)
  assert lender_of(copied, warnings=warnings).num_states == 2
  assert warnings == [
    f"warning: not compared with the run in {copied}: {what}"
    for what in ("contents of test images", "source of --method")
  ]


def edit_json(name, **changes):
  def edit(folder):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

  return edit


def removed(*names):
  return lambda folder: shutil.rmtree(folder.joinpath(*names))


# Others are in docs/bad_inputs.md.
@pytest.mark.parametrize(
  ("change_folder", "flags", "error", "message"),
  [
    (None, {"class_order_seed": 3}, ConfigError, "was trained on other data"),
    (None, {"seed": 1}, ConfigError, r"settings:\n--seed: 0 there, 1 now$"),
    (None, {"initial_classes": 1}, ConfigError, "--initial_classes: 0 there, 1 now$"),
    (
      None,
      {"num_states": 4, "batch_size_memory": 8},
      ConfigError,
      "--num_states: 2 there, 4 now$",
    ),
    (None, {"method": "wa"}, ConfigError, "--method: 'ft' there, 'wa' now$"),
    (removed("networks", "1"), {}, ConfigError, "has no network of its first state"),
    (edit_json("results.json", states=[]), {}, DataError, "no state is finished"),
  ],
)
def test_what_cannot_be_taken_is_named_before_anything_is_written(
  copied, tmp_path, monkeypatch, change_folder, flags, error, message
):
  if change_folder:
    change_folder(copied)
  monkeypatch.setattr(session, "make_session", None)  # nothing gets that far
  values = {"method": "ssil", **SETTINGS, **RATE, **flags}
  config = small_config(tmp_path / "run", from_workdir=str(copied), **values)
  with pytest.raises(error, match=message) as caught:
    loop.run(config, Console(quiet=True))
  assert not (tmp_path / "run").exists()
  assert caught.value.exit_code == 2


@pytest.mark.parametrize(
  "damage",
  [
    lambda folder: (folder / "metrics.jsonl").unlink(),
    # As a version that wrote other records might have left it.
    lambda folder: (folder / "metrics.jsonl").write_text(
      '{"state": 1, "step": 1, "loss": 1.0}\n'
    ),
    edit_json("config.json", initial_classes="none"),
  ],
  ids=["no_metrics", "other_metrics", "wrong_type"],
)
def test_a_damaged_source_ends_in_a_user_error_or_in_a_run(copied, tmp_path, damage):
  damage(copied)
  values = {"method": "il2m", **SETTINGS, **RATE, "from_workdir": str(copied)}
  ended, calls = watched_run(small_config(tmp_path / "run", **values))
  assert count(calls, "train") == 0
  if isinstance(ended, UserError):
    assert not (tmp_path / "run").exists()
  else:
    assert len(ended["states"]) == 2


# shared_states ---------------------------------------------------------------------------

# What GD's paper changes of FT's first state.
OF_FT = {
  "epochs_first": 100,
  "milestones_first": (40, 80),
  "learning_rate_by_state": "inverse",
  "weight_decay": 1e-4,
}
# (method there, flags there, method now, flags now) -> states in common, of 5.
TABLE = [
  ("ft", {}, "il2m", {}, 5),
  ("il2m", {}, "ft", {}, 5),
  ("il2m", {"il2m_scores": "logits"}, "il2m", {}, 5),
  ("il2m", {}, "il2m", {"il2m_scores": "logits"}, 5),
  ("ssil", {}, "ssil_cal", {"calibration": "offset"}, 5),
  ("ssil_cal", {"calibration": "scale"}, "ssil", {}, 5),
  ("ssil_tkd", {}, "ssil_tkd_cal", {}, 5),
  ("ssil_tkd_cal", {"temperature": 3.0}, "ssil_tkd", {}, 1),
  # What only later states feel.
  ("ft", {"memory_size": 2000}, "il2m", {}, 1),
  ("ft", {"selection": "herding"}, "il2m", {}, 1),
  ("ft", {"epochs": 3}, "il2m", {}, 1),
  ("ft", {"learning_rate_by_state": "constant"}, "il2m", {}, 1),
  ("ft", {"reset_momentum": False}, "ft", {}, 1),
  ("ssil", {"batch_size_memory": 8}, "ssil", {}, 1),
  ("ft", {}, "ssil", {}, 1),
  ("ssil", {}, "ft", {}, 1),
  ("ft", {}, "der", {}, 1),
  ("er", {}, "ft_rp", {}, 5),
  ("ft_rp", {}, "er", {}, 5),
  ("ewc", {}, "ft", {}, 1),
  ("ft", {}, "ewc", {"ewc_images": 10}, 1),
  ("ewc", {"penalty_strength": 3.0}, "ewc", {}, 1),
  # They lend, and take none: what their steps carry along is not kept.
  ("si", {}, "ft", {}, 1),
  ("ft", {}, "si", {}, 0),
  ("si", {}, "si", {}, 0),
  ("rwalk", {}, "rwalk", {}, 0),
  # Parts are those of later states.
  ("ft", {}, "agem", {}, 1),
  ("agem", {"memory_size": 2000}, "agem", {}, 1),
  ("ft", {}, "joint", {}, 1),
  # Their papers give them other first states.
  ("ft", {}, "icarl", {}, 0),
  ("ft", {}, "bic", {}, 0),
  ("ft", {"epochs_first": 7}, "eeil", {"epochs_first": 7, "milestones_first": ()}, 0),
  (
    "ft",
    {"epochs_first": 7, "milestones_first": (2,)},
    "eeil",
    {"epochs_first": 7, "milestones_first": (2,)},
    1,
  ),
  ("gd", OF_FT, "ft", {}, 1),
  ("ft", OF_FT, "gd", OF_FT, 1),
  # Images without labels are in its first batches, unless nothing is to be undecided.
  ("gd", {**OF_FT, "unlabeled_dir": "images"}, "ft", {}, 0),
  ("ft", {}, "gd", {**OF_FT, "unlabeled_dir": "images"}, 0),
  ("gd", {**OF_FT, "unlabeled_dir": "images", "gd_confidence": 0.0}, "ft", {}, 1),
  ("gd", OF_FT, "gd", {**OF_FT, "unlabeled_dir": "images"}, 0),
  # What the first state feels, too: whatever the settings say that changes every state.
  ("ft", {"width": 32}, "il2m", {}, 0),
  ("ft", {"validation_fraction": 0.1}, "il2m", {}, 0),
  ("ft", {"validation_fraction": 0.1}, "ft", {"validation_fraction": 0.2}, 0),
  ("ft", {"epochs_first": 99}, "il2m", {}, 0),
  # How the classes are dealt out.
  ("ft", {"num_states": 10, "batch_size_memory": 64}, "ft", {}, 0),
  ("ft", {"initial_classes": 2}, "ft", {}, 0),
  ("ft", {"initial_classes": 2}, "ft", {"initial_classes": 4}, 0),
  (
    "ft",
    {"initial_classes": 4, "num_states": 3},
    "ft",
    {"initial_classes": 4, "num_states": 4},
    1,
  ),
  ("ft", {}, "joint_full", {}, 0),
  # Another first state.
  ("ft", {}, "lucir", {"epochs_first": 100, "milestones_first": (40, 80)}, 0),
  ("lucir", {"memory_size": 2000}, "lucir", {}, 1),
  ("wa", {}, "lucir", {}, 0),
  ("ft", {}, "ncm", {}, 1),
  ("ncm", {}, "ncm", {"epochs": 7}, 5),
  ("ft", {}, "fearnet", {"fearnet_rank": 3}, 1),
  ("fearnet", {}, "cgan_features", {"cgan_steps": 3}, 1),
]


def config_of(method, flags):
  return config_with(method=method, **flags)


@pytest.mark.parametrize(("there", "flags_there", "now", "flags_now", "expected"), TABLE)
def test_shared_states(there, flags_there, now, flags_now, expected):
  saved = to_json(config_of(there, flags_there))
  num_states, different = reuse.shared_states(config_of(now, flags_now), saved)
  assert num_states == expected
  assert bool(different) == (expected == 0)
  assert all(line.startswith("--") and " there" in line for line in different)


def test_every_method_shares_with_itself_all_states():
  for name, method in METHODS.items():
    config = config_of(name, {})
    num_states, different = reuse.shared_states(config, to_json(config))
    assert num_states == (0 if method.carries else config.num_states)
    assert len(different) == method.carries


def test_what_does_not_change_training_may_differ():
  free = [f for f in fields_of(Config) if f.metadata["changes"] == "nothing"]
  assert {"workdir", "num_devices", "log_every"} <= {field.name for field in free}
  saved = to_json(config_of("ft", {})) | {field.name: "other" for field in free}
  assert reuse.shared_states(config_of("il2m", {}), saved) == (5, [])


def test_a_method_that_trains_as_another_has_its_loss_and_its_phases():
  borrowers = {name: m.trains_as for name, m in METHODS.items() if m.trains_as}
  rectified = {"il2m": "ft", "ssil_cal": "ssil", "ssil_tkd_cal": "ssil_tkd"}
  assert borrowers == {**rectified, "er": "ft_rp"}
  for name, other in borrowers.items():
    assert METHODS[name].training == METHODS[other].training
    assert METHODS[name].defaults == METHODS[other].defaults


def test_methods_whose_first_state_is_plain():
  plain = {name for name, method in METHODS.items() if method.steps_like_softmax_first}
  assert plain >= {
    "ssil",
    "ft",
    "ssil_tkd",
    "icarl",
    "lwf",
    "eeil",
    "bic",
    "der",
    "ewc",
    "gem",
  }
  assert plain.isdisjoint({"er_ace", "wa", "lucir", "gdumb", "podnet"})
  for name in plain:
    config = config_of(name, {})
    (phase,) = METHODS[name].phases(config, 1)
    # BiC's own way to draw, and others, are the shuffled one where nothing is old.
    assert (phase,) == one_phase(config, 1, phase.sampling)


# A method of one's own --------------------------------------------------------------------


def halved(examples, config):
  return softmax_loss(examples, config) / 2


@pytest.mark.parametrize(
  ("name", "fields", "with_ft_and_it"),
  [
    ("ssil", {"loss": halved}, (0, 0)),
    ("ssil", {"project": lambda params, before, context: params}, (0, 0)),
    ("ssil", {"align": lambda params, num_old, num_seen: params}, (0, 0)),
    ("ssil", {"cosine_head": True}, (0, 0)),
    ("ssil", {"phases": METHODS["icarl"].phases}, (1, 1)),
    (
      "ssil",
      {"phases": METHODS["eeil"].phases, "settings": METHODS["eeil"].settings},
      (1, 1),
    ),
    ("il2m", {"title": "the same"}, (5, 5)),
    ("il2m", {"loss": METHODS["ssil"].loss}, (1, 1)),
    ("il2m", {"phases": METHODS["ssil"].phases}, (1, 1)),
    ("il2m", {"has_teacher": True}, (1, 1)),
  ],
)
def test_what_a_method_made_of_another_shares_with_it(
  monkeypatch, name, fields, with_ft_and_it
):
  monkeypatch.setitem(METHODS, "mine", METHODS[name]._replace(**fields))
  # Comparable as far as the settings go.
  config = config_of("mine", {"epochs": 25})
  saved = to_json(config) | {"method_source": source_hash("mine")}
  for other, expected in zip(("ft", name), with_ft_and_it, strict=True):
    there = config_of(other, {"epochs": 25})
    assert reuse.shared_states(config, to_json(there))[0] == expected
    assert reuse.shared_states(there, saved)[0] == expected


def test_a_method_whose_source_has_changed_lends_nothing():
  saved = to_json(config_of("ft", {}))
  for source, shared in ((source_hash("ft"), 5), (None, 5), ("other", 0)):
    found = reuse.shared_states(config_of("il2m", {}), {**saved, "method_source": source})
    assert found[0] == shared
  assert found[1] == ["source of --method=ft: changed since"]


def test_a_method_named_in_another_run_is_not_imported(tmp_path, monkeypatch):
  (tmp_path / "evil.py").write_text("raise SystemExit('code from elsewhere was run')\n")
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  config = small_config(tmp_path / "run")
  saved = {**to_json(config), "method": "evil:X"}
  assert reuse.shared_states(config, saved) == (0, ["--method: 'evil:X' there"])


OWN = """
import dataclasses
from ssil_jax import setting
from ssil_jax.methods.ssil import SSIL, separated_softmax_loss

@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  gain: float = setting(1.0, "factor of the loss", above=0)
  own_epochs: int = setting(1, "epochs of the first state", at_least=1)

def loss(examples, config):
  return config.method_settings.gain * separated_softmax_loss(examples, config)

def phases(config, t):
  (phase,) = SSIL.phases(config, t)
  own_epochs = config.method_settings.own_epochs
  return (phase._replace(epochs=own_epochs if t == 1 else phase.epochs),)

GAIN = SSIL._replace(title="Gain", settings=Settings, loss=loss)
LONG = SSIL._replace(title="Long", settings=Settings, phases=phases)
"""


def test_states_of_own_methods_are_lent_by_the_settings_of_both(tmp_path, monkeypatch):
  (tmp_path / "own_methods.py").write_text(OWN)
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  gain, long = "own_methods:GAIN", "own_methods:LONG"

  def shared(now, flags_now, there, flags_there):
    saved = to_json(small_config("there", method=there, **flags_there))
    return reuse.shared_states(small_config("now", method=now, **flags_now), saved)

  assert shared(gain, {"gain": 5.0}, gain, {"gain": 5.0}) == (3, [])
  assert shared(gain, {"gain": 5.0}, gain, {}) == (0, ["--gain: 1.0 there, 5.0 now"])
  # LONG is plain in its first state if it has as many epochs there as all others.
  assert shared(long, {}, "ft", {}) == (1, [])
  assert shared(long, {"own_epochs": 7}, "ft", {})[0] == 0
  assert shared(long, {"own_epochs": 7}, long, {"own_epochs": 7}) == (3, [])
  assert shared(long, {"own_epochs": 7}, long, {})[0] == 0
