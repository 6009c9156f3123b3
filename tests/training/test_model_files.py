"""The work directory as a model: what is in it, and when it is written."""

import hashlib
import json
import shutil
import signal

import models
import numpy as np
import pytest
from quick import quick_network
from rich.console import Console

import ssil_jax
from ssil_jax.data.photos import open_photos
from ssil_jax.distributed.preemption import Interrupted
from ssil_jax.errors import DataError, WorkdirError
from ssil_jax.reports.results import load_run
from ssil_jax.training import loop, model_files
from ssil_jax.training.session import open_session

QUIET = Console(quiet=True)
OPTIONS = {"method": "icarl", "keep_test": 3}


@pytest.fixture(scope="module")
def workdir():
  return models.finished(**OPTIONS)


def reopened(workdir, root=None, **changes):
  """Opens a run and leaves it; returns its plan and where it stands."""
  root = workdir.parent / "images" if root is None else root
  config = models.config_of(workdir, root, **OPTIONS | changes)
  with quick_network(), open_session(config, QUIET, lambda: None) as (session, run):
    return session.plan, run


def files_of(workdir):
  """Path -> content of the model's files, without the times at which they were written."""
  found = {}
  for path in [workdir / "model.json", *(workdir / "model").rglob("*")]:
    name = str(path.relative_to(workdir))
    if path.suffix == ".json":
      found[name] = without_times(json.loads(path.read_bytes()))
    elif path.suffix == ".npz":
      with np.load(path) as arrays:
        found[name] = {key: array.tolist() for key, array in arrays.items()}
    elif path.is_file():
      found[name] = path.read_bytes()
  return found


def without_times(value):
  if isinstance(value, list):
    return [without_times(item) for item in value]
  if isinstance(value, dict):
    return {k: without_times(v) for k, v in value.items() if k != "finished"}
  return value


def test_the_card_says_what_the_model_is(workdir):
  card = model_files.read_card(workdir)
  results = load_run(workdir).results
  order = np.random.RandomState(0).permutation(6)
  names = [sorted(models.CLASSES)[c] for c in order]
  assert card["format"] == 1
  assert card["version"] == ssil_jax.__version__
  assert card["class_names"] == names
  assert (card["method"], card["method_title"]) == ("icarl", "iCaRL")
  assert card["planned_states"] == 3
  last = results["states"][-1]
  for name, value in card["accuracy"].items():
    assert value == last[name], name
  assert len(card["accuracy"]["top1_by_state"]) == 3
  assert card["exemplars"] == 12  # floor(13 / 6) of each
  assert card["preprocessing"] == {
    "color": "RGB, upright as EXIF says, transparency dropped",
    "resize_short_side": 16,
    "resize_filter": "bilinear, antialiased",
    "crop": "center",
    "image_size": 16,
    "divide_by": 255,
    "mean": [0.0] * 3,
    "std": [1.0] * 3,
    "flip": True,
    "layout": "batch, height, width, channel",
  }
  assert card["network"]["width"] == 4
  assert card["network"]["num_features"] == 32
  assert [row["classes"] for row in card["states"]] == [names[:2], names[2:4], names[4:]]
  for t, row in enumerate(card["states"], start=1):
    assert row == json.loads((workdir / "model" / str(t) / "state.json").read_text())
    assert (row["state"], row["num_old"], row["num_seen"]) == (t, 2 * t - 2, 2 * t)
    assert (row["train_images"], row["test_images"]) == (18, 10)
    assert row["exemplars"] == 13 // (2 * t) * 2 * t
    assert row["trained_by"] == "run"
    assert row["settings"]["memory_size"] == 13
    assert row["settings"]["temperature"] == 2.0
    assert row["settings"]["keep_test"] == 3
    assert not {"workdir", "data_dir", "num_devices"} & row["settings"].keys()


def test_its_files_are_those_documented(workdir):
  of_state = {"state.json", "statistics.npz", "test.zip"}
  for t in (1, 2, 3):
    names = {path.name for path in (workdir / "model" / str(t)).iterdir()}
    assert names == of_state | ({"exemplars.zip"} if t == 3 else set())
  assert {path.name for path in (workdir / "model").iterdir()} == {"1", "2", "3"}


def test_the_exemplars_are_the_files_of_the_memory(workdir):
  plan, run = reopened(workdir)
  found = open_photos(workdir / "model" / "3" / "exemplars.zip")
  exemplars = run.exemplars
  assert found.labels.tolist() == exemplars.labels.tolist()
  assert found.ranks.tolist() == exemplars.ranks.tolist()
  assert len(found.labels) == 12
  names = plan.dataset.class_names
  for place, record in enumerate(exemplars.records.tolist()):
    path = plan.dataset.train.files.name(record)
    assert f"/train/{names[found.labels[place]]}/" in path
    with open(path, "rb") as file:
      assert found.images.open(place).data == file.read()


def test_test_photos_are_those_of_the_smallest_hash(workdir):
  names = model_files.read_card(workdir)["class_names"]
  for t in (1, 2, 3):
    found = open_photos(workdir / "model" / str(t) / "test.zip")
    assert found.labels.tolist() == [2 * t - 2] * 3 + [2 * t - 1] * 3
    assert found.ranks.tolist() == [0, 1, 2] * 2
    for label in (2 * t - 2, 2 * t - 1):
      folder = workdir.parent / "images" / "test" / names[label]
      contents = [path.read_bytes() for path in sorted(folder.iterdir())]
      digests = sorted(hashlib.blake2b(c, digest_size=8).digest() for c in contents)
      kept = [
        c for c in contents if hashlib.blake2b(c, digest_size=8).digest() in digests[:3]
      ]
      places = np.flatnonzero(found.labels == label)
      assert [found.images.open(place).data for place in places] == kept


def test_a_run_that_is_finished_writes_nothing_again(workdir, tmp_path):
  copy = models.copy_of(workdir, tmp_path / "copy")
  stamps = {path: path.stat().st_mtime_ns for path in copy.glob("model/*/*")}
  stamps[copy / "model.json"] = (copy / "model.json").stat().st_mtime_ns
  reopened(copy, workdir.parent / "images")
  assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


@pytest.mark.parametrize(
  "lost",
  [
    # Killed between the checkpoint and the card, sooner and later.
    ("model.json", "model/3"),
    ("model.json",),
    ("model.json", "model/3/exemplars.zip", "model/3/statistics.npz"),
    # Lost, or damaged, later.
    ("model/3/statistics.npz",),
    ("model/3/exemplars.zip",),
    ("model/3/state.json",),
  ],
)
def test_what_a_kill_left_out_is_there_when_the_run_is_reopened(workdir, tmp_path, lost):
  copy = models.copy_of(workdir, tmp_path / "copy")
  # As the card of the state before leaves it.
  (copy / "model" / "2" / "exemplars.zip").write_bytes(b"of state 2")
  for name in lost:
    path = copy / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  reopened(copy, workdir.parent / "images")
  assert files_of(copy) == files_of(workdir)


def test_damaged_statistics_are_written_again(workdir, tmp_path):
  copy = models.copy_of(workdir, tmp_path / "copy")
  (copy / "model" / "3" / "statistics.npz").write_bytes(b"PK")
  reopened(copy, workdir.parent / "images")
  assert files_of(copy) == files_of(workdir)


def test_a_state_that_was_trained_again_has_its_new_network_noted(workdir, tmp_path):
  copy = models.copy_of(workdir, tmp_path / "copy")
  path = copy / "model.json"
  card = json.loads(path.read_bytes())
  card["states"][2]["network_crc32"] += 1
  path.write_text(json.dumps(card))
  reopened(copy, workdir.parent / "images")
  assert files_of(copy) == files_of(workdir)


def test_statistics_of_another_run_are_written_again(workdir, tmp_path):
  copy = models.copy_of(workdir, tmp_path / "copy")
  path = copy / "model" / "3" / "statistics.npz"
  with np.load(path) as arrays:
    np.savez(path, **{name: array + 1 for name, array in arrays.items()})
  reopened(copy, workdir.parent / "images")
  assert files_of(copy) == files_of(workdir)


@pytest.mark.parametrize("lost", [(), ("model.json",)])
def test_what_a_kill_left_behind_is_removed(workdir, tmp_path, lost):
  copy = models.copy_of(workdir, tmp_path / "copy")
  for name in (
    "model.json.host.7.tmp",
    "model/1/test.zip.host.7.tmp",
    "model/3/exemplars.zip.host.7.tmp",
    "model/2/exemplars.zip",  # between the card and its removal
  ):
    (copy / name).write_bytes(b"photos")
  for name in lost:
    (copy / name).unlink()
  reopened(copy, workdir.parent / "images")
  assert files_of(copy) == files_of(workdir)
  assert not list(copy.rglob("*.tmp"))


@pytest.mark.parametrize("flip", [True, False])
def test_the_card_has_the_flip_of_the_data_whatever_augment_was(workdir, flip):
  plan, _ = reopened(workdir)
  augmentation = plan.dataset.augmentation._replace(flip=False)
  dataset = plan.dataset._replace(augmentation=augmentation, flip=flip)
  assert plan.dataset.flip  # of photos
  assert model_files.preprocessing(dataset)["flip"] is flip


def stopped_in_state(workdir, root, number, steps=2):
  """A run that was stopped after some steps of a state."""
  asked = []

  def check_interrupt():
    path = workdir / "results.json"
    done = len(json.loads(path.read_bytes())["states"]) if path.exists() else 0
    asked.extend([1] * (done == number - 1))
    if len(asked) > steps:
      raise Interrupted(signal.SIGTERM)

  config = models.config_of(workdir, root, **OPTIONS)
  with quick_network(), pytest.raises(Interrupted):
    loop.run(config, QUIET, check_interrupt=check_interrupt)


@pytest.fixture(scope="module")
def stopped(workdir, tmp_path_factory):
  """A run that was stopped in its third state."""
  folder = tmp_path_factory.mktemp("stopped") / "run"
  stopped_in_state(folder, workdir.parent / "images", 3)
  assert len(model_files.read_card(folder)["states"]) == 2
  return folder


def test_a_run_of_a_version_without_models_gets_one(workdir, stopped, tmp_path):
  copy = models.copy_of(stopped, tmp_path / "copy")
  (copy / "model.json").unlink()
  shutil.rmtree(copy / "model")
  _, run = reopened(copy, workdir.parent / "images")
  assert run.position.steps_done  # in the third state, whose network it has by now
  card = model_files.read_card(copy)
  assert [row["num_seen"] for row in card["states"]] == [2, 4]
  assert "finished" not in card["states"][0]  # of which nothing is known
  with quick_network():
    answers = ssil_jax.load(copy).predict(sorted(map(str, photos(workdir))))
    expected = ssil_jax.load(workdir, state=2).predict(sorted(map(str, photos(workdir))))
  assert answers == expected
  missing = r"model/1/statistics\.npz is missing: .* only the last has one"
  with pytest.raises(WorkdirError, match=missing):
    ssil_jax.load(copy, state=1)
  # And it goes on to the end.
  models.train(copy, workdir.parent / "images", **OPTIONS)
  ours, theirs = files_of(copy), files_of(workdir)
  different = {name for name in theirs if ours.get(name) != theirs[name]}
  assert different == {"model.json", "model/1/state.json", "model/1/statistics.npz"}


def photos(workdir):
  return (workdir.parent / "images" / "test").rglob("*.*")


def test_a_run_without_its_network_goes_on_and_has_no_model_yet(workdir, stopped, tmp_path):
  copy = models.copy_of(stopped, tmp_path / "copy")
  for name in ("model", "networks"):
    shutil.rmtree(copy / name)
  (copy / "model.json").unlink()
  reopened(copy, workdir.parent / "images")
  assert not (copy / "model.json").exists()


def test_a_damaged_state_is_named_before_the_card_is_written(workdir, stopped, tmp_path):
  copy = models.copy_of(stopped, tmp_path / "copy")
  path = copy / "model" / "1" / "state.json"
  path.write_text("{")
  with pytest.raises(WorkdirError, match="1/state.json cannot be read .*: remove it, and"):
    models.train(copy, workdir.parent / "images", **OPTIONS)
  assert len(model_files.read_card(copy)["states"]) == 2  # as before
  path.unlink()
  models.train(copy, workdir.parent / "images", **OPTIONS)
  assert len(model_files.read_card(copy)["states"]) == 3


def test_an_exemplar_that_is_gone_is_named_and_the_old_model_stays(
  workdir, stopped, tmp_path
):
  copy = models.copy_of(stopped, tmp_path / "copy")
  # The images stay where they were when the run was opened, but for one in training.
  root = models.copy_of(workdir.parent / "images", tmp_path / "images")
  final = open_photos(workdir / "model" / "3" / "exemplars.zip")
  content = final.images.open(0).data
  (gone,) = [p for p in root.rglob("train/*/*") if p.read_bytes() == content]
  config = models.config_of(copy, root, **OPTIONS)

  def finish():
    with quick_network(), open_session(config, QUIET, lambda: None) as (session, run):
      gone.unlink(missing_ok=True)
      loop.train(session, run)

  with pytest.raises(DataError, match="No such file.*: it belongs to the model from now"):
    finish()
  with quick_network():
    assert ssil_jax.load(copy).state == 2
  gone.write_bytes(content)
  models.train(copy, root, **OPTIONS)
  with quick_network():
    assert ssil_jax.load(copy).state == 3


def test_a_model_that_has_learnt_more_is_no_longer_a_runs(workdir, tmp_path):
  copy = models.copy_of(workdir, tmp_path / "copy")
  place = copy / "model" / "4"
  place.mkdir()
  (place / "state.json").write_text("{}")
  with pytest.raises(WorkdirError, match="copy has learnt more since, by learn.py"):
    models.train(copy, workdir.parent / "images", **OPTIONS)


# The card --------------------------------------------------------------------------------


def change(*path, to):
  """Replaces a value of a card; None takes it out."""

  def apply(card):
    *way, last = path
    for key in way:
      card = card[key]
    if to is None:
      del card[last]
    else:
      card[last] = to

  return apply


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    (change("format", to=2), "has format 2, and this version of ssil_jax reads up to 1"),
    (change("method", to=None), r"\$: 'method' is a required property"),
    (change("class_names", to="abc"), r"\$.class_names: 'abc' is not of type 'array'"),
    (change("class_names", 0, to=7), r"\$.class_names\[0\]: 7 is not of type 'string'"),
    (change("preprocessing", "image_size", to=1 << 20), "image_size: 1048576 is greater"),
    (change("states", to=[]), r"\$.states: \[\] should be non-empty"),
    (change("states", 0, "settings", to=[]), "settings: .* is not of type 'object'"),
    (change("states", 1, "num_seen", to=3), "its states and classes do not fit together"),
    (change("states", 2, to=None), "its states and classes do not fit together"),
    (change("states", 0, "num_old", to=1), "its states and classes do not fit together"),
    (change("states", 0, "state", to=2), "its states and classes do not fit together"),
    (change("class_names", 0, to="x"), "its states and classes do not fit together"),
    (
      change("states", 1, "classes", to=["x"]),
      "its states and classes do not fit together",
    ),
    (change("states", 1, "classes", to=None), "'classes' is a required property"),
    (change("preprocessing", "mean", to=None), "'mean' is a required property"),
    (change("preprocessing", "std", to=[1, 1]), r"std: \[1, 1\] is too short"),
    (change("preprocessing", "std", 1, to=0), r"std\[1\]: 0 is less than or equal to"),
    (change("preprocessing", "mean", 2, to="0"), r"mean\[2\]: '0' is not of type 'number'"),
    (change("preprocessing", "flip", to=1), "flip: 1 is not of type 'boolean'"),
    (
      change("preprocessing", "resize_short_side", to="16"),
      "'16' is not of type 'integer'",
    ),
    (change("preprocessing", "resize_short_side", to=9), "is less than image_size"),
  ],
)
def test_a_card_that_is_wrong_is_refused(workdir, tmp_path, changed, message):
  card = json.loads((workdir / "model.json").read_bytes())
  changed(card)
  (tmp_path / "model.json").write_text(json.dumps(card))
  with pytest.raises(WorkdirError, match=message) as caught:
    model_files.read_card(tmp_path)
  assert str(caught.value).startswith(f"{tmp_path}/model.json")
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b"null"])
def test_a_card_that_is_none_is_refused(tmp_path, content):
  (tmp_path / "model.json").write_bytes(content)
  with pytest.raises(WorkdirError, match=r"model\.json.*: rerun the command that trained"):
    model_files.read_card(tmp_path)


def test_a_folder_without_a_card_is_no_model_yet(tmp_path):
  with pytest.raises(WorkdirError, match="is not a folder: give the work directory"):
    model_files.read_card(tmp_path / "none")
  with pytest.raises(WorkdirError, match=r"not the work directory of a run: it has no mod"):
    model_files.read_card(tmp_path)
  (tmp_path / "config.json").write_text("{}")
  with pytest.raises(WorkdirError, match="has no model yet: its first state is not fini"):
    model_files.read_card(tmp_path)
