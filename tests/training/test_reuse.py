"""`--from_workdir`: what is taken from another run, what is not, and what is refused."""

import json
import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest
from quick import quick_network
from rich.console import Console
from small_runs import last_checkpoint, records, run, small_config

from ssil_jax.config import make_config, to_json
from ssil_jax.errors import ConfigError, DataError, UserError, WorkdirError
from ssil_jax.methods import METHODS
from ssil_jax.methods.base import one_phase
from ssil_jax.training import incremental, loop, reuse

SETTINGS = {"num_classes": 4, "num_states": 2, "memory_size": 16, "num_devices": 2}
# The losses that follow another first state should differ visibly.
RATE = {"learning_rate": 1e-2}


@pytest.fixture(autouse=True, scope="module")
def _quickly():
  with quick_network():
    yield


def small_run(workdir, **changes):
  return run(workdir, **SETTINGS | RATE | changes)


@pytest.fixture(scope="module")
def ft(tmp_path_factory):
  """A finished run of FT: its directory and results."""
  workdir = tmp_path_factory.mktemp("runs") / "ft"
  return workdir, small_run(workdir, method="ft")


def untimed(results):
  """Without what depends on the time and on where a state was trained."""
  states = [row | {"train_seconds": 0, "from_workdir": None} for row in results["states"]]
  return results | {"states": states}


def steps(workdir):
  speed = {"images_per_second": 0, "input_wait": 0}
  return [row | speed for row in records(workdir)]


def arrays_of(workdir):
  """The arrays of the last checkpoint."""
  with ocp.CheckpointManager(workdir / "checkpoints") as manager:
    items = {"arrays": ocp.args.StandardRestore()}
    return manager.restore(manager.latest_step(), args=ocp.args.Composite(**items)).arrays


def test_il2m_takes_all_states_of_ft_and_trains_nothing(ft, tmp_path, monkeypatch):
  workdir, of_ft = ft
  alone = small_run(tmp_path / "alone", method="il2m")
  files = {p: p.read_bytes() for p in sorted(workdir.rglob("*")) if p.is_file()}

  def no_training(*args, **kwargs):
    raise AssertionError("a state is trained")

  monkeypatch.setattr(incremental, "train_state", no_training)
  monkeypatch.setattr(incremental, "train_phase", no_training)
  taken = small_run(tmp_path / "taken", method="il2m", from_workdir=str(workdir))
  assert untimed(taken) == untimed(alone)
  assert taken["method"] == "il2m"
  assert [row["from_workdir"] for row in taken["states"]] == [str(workdir)] * 2
  assert [row["train_seconds"] for row in taken["states"]] == [
    row["train_seconds"] for row in of_ft["states"]
  ]
  assert [row["from_workdir"] for row in alone["states"]] == [None, None]
  assert records(tmp_path / "taken") == records(workdir)
  assert steps(tmp_path / "taken") == steps(tmp_path / "alone")
  # IL2M does something of its own, and the other run is left as it was.
  assert [row["statistics"] for row in taken["states"]][1]["rectification"] != 1
  assert {p: p.read_bytes() for p in sorted(workdir.rglob("*")) if p.is_file()} == files


def test_a_run_can_go_on_from_a_run_that_took_its_states(ft, tmp_path, monkeypatch):
  workdir, _ = ft
  first = tmp_path / "first"
  taken = small_run(first, method="il2m", from_workdir=str(workdir))
  monkeypatch.setattr(incremental, "train_phase", None)
  again = small_run(
    tmp_path / "again", method="il2m", il2m_scores="logits", from_workdir=str(first)
  )
  assert [row["score_new"] for row in again["states"]] == [
    row["score_new"] for row in taken["states"]
  ]


def test_states_whose_end_was_aligned_are_not_aligned_anew(tmp_path, monkeypatch):
  alone = small_run(tmp_path / "alone", method="wa")
  monkeypatch.setattr(incremental, "train_phase", None)
  taken = small_run(tmp_path / "taken", method="wa", from_workdir=str(tmp_path / "alone"))
  assert untimed(taken) == untimed(alone)
  kernels = [
    arrays_of(tmp_path / name)["train_state.params.head.kernel"]
    for name in ("alone", "taken")
  ]
  np.testing.assert_array_equal(*kernels)


def test_ssil_takes_the_first_state_alone(ft, tmp_path, monkeypatch):
  workdir, _ = ft
  changes = {"method": "ssil", "memory_size": 24, "batch_size_memory": 16}
  alone = run(tmp_path / "alone", **SETTINGS | RATE | changes)
  trained = []
  inner = incremental.train_state

  def train_state(plan, trainer, progress, state, *args, **kwargs):
    trained.append(state.index)
    return inner(plan, trainer, progress, state, *args, **kwargs)

  monkeypatch.setattr(incremental, "train_state", train_state)
  taken = run(tmp_path / "taken", **SETTINGS | RATE | changes, from_workdir=str(workdir))
  assert trained == [2]
  assert untimed(taken) == untimed(alone)
  assert [row["from_workdir"] for row in taken["states"]] == [str(workdir), None]
  assert steps(tmp_path / "taken") == steps(tmp_path / "alone")
  first_of_ft = [row for row in records(workdir) if row["state"] == 1]
  assert [row for row in records(tmp_path / "taken") if row["state"] == 1] == first_of_ft


def test_an_interrupted_run_goes_on_with_or_without_the_other(ft, tmp_path, monkeypatch):
  workdir, _ = ft
  taken = tmp_path / "taken"
  results = small_run(taken, method="il2m", from_workdir=str(workdir))
  lines = records(taken)
  shutil.rmtree(last_checkpoint(taken))
  monkeypatch.setattr(incremental, "train_phase", None)
  assert small_run(taken, method="il2m", from_workdir=str(workdir)) == results
  assert records(taken) == lines
  # Finished, it needs the other no more.
  assert small_run(taken, method="il2m") == results


def test_an_unfinished_run_lends_what_it_has(ft, tmp_path):
  workdir, _ = ft
  part = tmp_path / "part"
  shutil.copytree(workdir, part)
  shutil.rmtree(part / "networks" / "2")
  plan = loop.make_plan(
    small_config("unused", method="il2m", from_workdir=str(part), **SETTINGS, **RATE)
  )
  parts = json.loads((part / "config.json").read_text())["data"]
  assert reuse.open_source(plan, data_parts=parts).num_states == 1
  # A state is lent once its results are there, too.
  whole = tmp_path / "whole"
  shutil.copytree(workdir, whole)
  results = json.loads((whole / "results.json").read_text())
  results["states"].pop()
  (whole / "results.json").write_text(json.dumps(results))
  plan = plan._replace(
    config=small_config(
      "unused", method="il2m", from_workdir=str(whole), **SETTINGS, **RATE
    )
  )
  assert reuse.open_source(plan, data_parts=parts).num_states == 1


def test_what_cannot_be_compared_is_said(ft):
  workdir, _ = ft
  plan = loop.make_plan(
    small_config("unused", method="il2m", from_workdir=str(workdir), **SETTINGS, **RATE)
  )
  parts = json.loads((workdir / "config.json").read_text())["data"]
  warnings = []
  parts["contents of test images"] = "0a"
  source = reuse.open_source(plan, data_parts=parts, warn=warnings.append)
  assert source.num_states == 2
  assert warnings == [
    f"warning: not compared with the run in {workdir}: contents of test images"
  ]


def test_a_killed_run_may_end_in_half_a_line(ft, tmp_path):
  source = tmp_path / "ft"
  shutil.copytree(ft[0], source)
  with open(source / "metrics.jsonl", "a") as file:
    file.write('{"state": 2, "st')
  taken = small_run(tmp_path / "run", method="il2m", from_workdir=str(source))
  assert [row["from_workdir"] for row in taken["states"]] == [str(source)] * 2
  assert records(tmp_path / "run") == records(ft[0])


def edit_json(name, **changes):
  def edit(folder):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

  return edit


def overwrite(name, text):
  return lambda folder: (folder / name).write_text(text)


def cut_a_line(folder):
  path = folder / "metrics.jsonl"
  first, *rest = path.read_text().splitlines()
  path.write_text("\n".join([first[:20], *rest]) + "\n")


def no_loss(folder):
  path = folder / "metrics.jsonl"
  first, *rest = path.read_text().splitlines()
  short = {k: v for k, v in json.loads(first).items() if k != "loss"}
  path.write_text("\n".join([json.dumps(short), *rest]) + "\n")


@pytest.mark.parametrize(
  ("change_folder", "flags", "error", "message"),
  [
    (shutil.rmtree, {}, ConfigError, "is not the work directory of a run"),
    (
      lambda folder: (folder / "config.json").unlink(),
      {},
      ConfigError,
      "is not the work directory of a run",
    ),
    (None, {"class_order_seed": 3}, ConfigError, "was trained on other data"),
    (None, {"num_classes": 2}, ConfigError, "was trained on other data"),
    (None, {"width": 8}, ConfigError, r"settings:\n--width: 4 there, 8 now$"),
    (None, {"seed": 1}, ConfigError, "--seed: 0 there, 1 now$"),
    (None, {"learning_rate": 0.02}, ConfigError, "--learning_rate: 0.01 there, 0.02"),
    (None, {"epochs_first": 2}, ConfigError, "--epochs_first: 1 there, 2 now"),
    (None, {"batch_size_new": 16}, ConfigError, "--batch_size_new: 32 there, 16 now$"),
    (None, {"initial_classes": 1}, ConfigError, "--initial_classes: 0 there, 1 now$"),
    (
      None,
      {"num_states": 4, "batch_size_memory": 8},
      ConfigError,
      "--num_states: 2 there, 4 now$",
    ),
    (None, {"method": "lucir"}, ConfigError, "--method: 'ft' there, 'lucir' now$"),
    (None, {"method": "wa"}, ConfigError, "--method: 'ft' there, 'wa' now$"),
    (None, {"reset_momentum": False}, ConfigError, "leave --reset_momentum on"),
    (edit_json("config.json", method="svm"), {}, ConfigError, "--method: 'svm' there"),
    (edit_json("config.json", data=None), {}, ConfigError, "earlier version"),
    (
      lambda folder: shutil.rmtree(folder / "networks"),
      {},
      ConfigError,
      "has no network of its first state",
    ),
    (
      lambda folder: shutil.rmtree(folder / "networks" / "1"),
      {},
      ConfigError,
      "has no network of its first state",
    ),
    (edit_json("results.json", states=[]), {}, DataError, "no state is finished"),
    (
      lambda folder: (folder / "results.json").unlink(),
      {},
      DataError,
      "results.json does not exist",
    ),
    (overwrite("results.json", "{"), {}, DataError, "results.json: is not valid JSON"),
    (overwrite("config.json", "{"), {}, WorkdirError, "config.json is not valid JSON"),
    (overwrite("config.json", "[]"), {}, WorkdirError, "is not a configuration"),
    (cut_a_line, {}, DataError, "metrics.jsonl: line 1: is not valid JSON"),
    (no_loss, {}, DataError, "metrics.jsonl: line 1: .*'loss' is a required"),
  ],
)
def test_what_cannot_be_taken_is_named_before_anything_is_written(
  ft, tmp_path, monkeypatch, change_folder, flags, error, message
):
  source = tmp_path / "ft"
  shutil.copytree(ft[0], source)
  if change_folder:
    change_folder(source)
  monkeypatch.setattr(loop, "make_trainer", None)  # nothing gets that far
  values = {"method": "ssil", **SETTINGS, **RATE, **flags}
  config = small_config(tmp_path / "run", from_workdir=str(source), **values)
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
    lambda folder: (folder / "config.json").write_text(
      json.dumps(
        {
          name: value
          for name, value in json.loads((folder / "config.json").read_text()).items()
          if name not in ("initial_classes", "num_states")
        }
      )
    ),
  ],
  ids=["no_metrics", "other_metrics", "wrong_type", "fields_missing"],
)
def test_a_damaged_source_ends_in_a_user_error_or_in_a_run(
  ft, tmp_path, monkeypatch, damage
):
  source = tmp_path / "ft"
  shutil.copytree(ft[0], source)
  damage(source)
  monkeypatch.setattr(incremental, "train_phase", None)
  try:
    small_run(tmp_path / "run", method="il2m", from_workdir=str(source))
  except UserError:
    assert not (tmp_path / "run").exists()


# shared_states ---------------------------------------------------------------------------

# (method there, flags there, method now, flags now) -> states in common, of 5.
TABLE = [
  ("ft", {}, "il2m", {}, 5),
  ("il2m", {}, "ft", {}, 5),
  ("il2m", {"il2m_scores": "logits"}, "il2m", {}, 5),
  ("ft", {}, "ft", {}, 5),
  ("ssil", {}, "ssil", {}, 5),
  # What only later states feel.
  ("ft", {"memory_size": 2000}, "il2m", {}, 1),
  ("ft", {"selection": "herding"}, "il2m", {}, 1),
  ("ft", {"epochs": 3}, "il2m", {}, 1),
  ("ft", {"learning_rate_by_state": "constant"}, "il2m", {}, 1),
  ("ft", {"reset_momentum": False}, "ft", {}, 1),
  ("ssil", {"batch_size_memory": 8}, "ssil", {}, 1),
  ("ft", {}, "ssil", {}, 1),
  ("ssil", {}, "ft", {}, 1),
  ("ft", {}, "lwf", {}, 1),
  ("ft", {}, "der", {}, 1),
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
  # What the first state feels, too.
  *(
    ("ft", {name: value}, "il2m", {}, 0)
    for name, value in {
      "dataset": "cifar100",
      "num_classes": 5,
      "class_order_seed": 1,
      "batch_size_new": 64,
      "epochs_first": 99,
      "milestones_first": (10,),
      "learning_rate": 0.2,
      "learning_rate_drop": 0.5,
      "momentum": 0.8,
      "weight_decay": 0.0,
      "width": 32,
      "precision": "bfloat16",
      "image_size": 16,
      "augment": "none",
      "seed": 1,
    }.items()
  ),
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
  ("lucir", {}, "lucir", {}, 5),
  ("lucir", {"memory_size": 2000}, "lucir", {}, 1),
  ("wa", {}, "wa", {}, 5),
  ("wa", {}, "lucir", {}, 0),
]


def config_of(method, flags):
  found = METHODS[method]
  return make_config({"method": method, **flags}, found)


@pytest.mark.parametrize(("there", "flags_there", "now", "flags_now", "expected"), TABLE)
def test_shared_states(there, flags_there, now, flags_now, expected):
  saved = to_json(config_of(there, flags_there))
  num_states, different = reuse.shared_states(config_of(now, flags_now), saved)
  assert num_states == expected
  assert bool(different) == (expected == 0)
  assert all(line.startswith("--") and " there" in line for line in different)


def test_every_method_shares_with_itself_all_states():
  for name in METHODS:
    config = config_of(name, {})
    assert reuse.shared_states(config, to_json(config)) == (config.num_states, [])


def test_what_does_not_change_training_may_differ():
  free = {
    "workdir": "a",
    "data_dir": "b",
    "batch_size_test": 7,
    "num_devices": 2,
    "input_processes": 1,
    "log_every": 3,
    "resume": "never",
    "from_workdir": "c",
    "checkpoint_minutes": 1.5,
    "checkpoints_kept": 1,
    "il2m_scores": "logits",
  }
  saved = to_json(config_of("ft", free))
  assert reuse.shared_states(config_of("il2m", {}), saved) == (5, [])


def test_a_method_that_trains_as_another_has_its_loss_and_its_phases():
  borrowers = {name: m.trains_as for name, m in METHODS.items() if m.trains_as}
  assert borrowers == {"il2m": "ft"}
  for name, lender in borrowers.items():
    method, other = METHODS[name], METHODS[lender]
    fields = ("loss", "phases", "defaults", "fixed", "has_teacher", "cosine_head")
    for field in (*fields, "project", "align", "plain_first_state"):
      assert getattr(method, field) == getattr(other, field), field


def test_plain_methods_train_their_first_state_in_one_phase():
  for name, method in METHODS.items():
    if method.plain_first_state:
      config = config_of(name, {})
      (phase,) = method.phases(config, 1)
      plain = one_phase(config, 1, phase.sampling)
      assert (phase,) == plain
      assert not method.cosine_head
      assert method.align is None
