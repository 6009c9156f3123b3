"""Learning: a chain of commands is one run, killed or not; what it refuses."""

import json
import os
import pathlib
import shutil
import signal
import zipfile

import numpy as np
import pytest
from folders import save
from quick import quick_network
from rich.console import Console
from sklearn.datasets import load_digits
from small_runs import small_config

import ssil_jax
from ssil_jax.distributed.preemption import Interrupted
from ssil_jax.errors import ConfigError, DataError, WorkdirError
from ssil_jax.model import learning
from ssil_jax.system import locked
from ssil_jax.training import loop
from ssil_jax.training.model_files import arrays_of

pytestmark = pytest.mark.long

QUIET = Console(quiet=True)
GROUPS = (("c", "a"), ("b", "f"), ("d", "e"))  # the first is not in the order of names
# With nothing beside the network; herding, a teacher and means; exemplars' logits; trees
# like the parameters, and what steps carry along; a second teacher; a feature generator;
# parameters of its own that become statistics.
LEARNING = ("ssil", "icarl", "der", "rwalk", "gd", "cgan_features", "dgr")


@pytest.fixture(autouse=True, scope="module")
def _quick():
  with quick_network():
    yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """Scanned digits: a folder for each group, one for all, and one for the class g alone.

  DIR/{train,test}/CLASS/*, with files of the names of classes in learning order.
  """
  root, digits = tmp_path_factory.mktemp("photos"), load_digits()
  pixels = np.repeat((digits.images * 15.9).astype(np.uint8)[..., None], 3, axis=-1)
  for number, group in enumerate((*GROUPS, ("g",))):
    for name in group:
      found = pixels[digits.target == ord(name) - ord("a")][:22]
      for place, image in enumerate(found):
        split = "train" if place < 16 else "test"
        for part in (str(number), "all") if name != "g" else ("g",):
          save(root / part / split / name / f"{place}.png", image)
    (root / f"{number}.txt").write_text("\n".join(group))
  (root / "all.txt").write_text("\n".join(name for group in GROUPS for name in group))
  return root


def trained(workdir, photos, part="0", **changes):
  settings = {
    "dataset": "image_folder",
    "data_dir": str(photos / part),
    "class_order": str(photos / f"{part}.txt"),
    "num_classes": 0,
    "num_states": 1,
    "memory_size": 24,
    "batch_size_new": 8,
    "batch_size_memory": 4,
    "num_devices": 1,  # for which less is compiled
  }
  loop.run(small_config(workdir, **settings | changes), QUIET)
  return workdir


def learn(workdir, data, *, more_of_known=False, method=None, ask=lambda: None, **settings):
  return learning.learn(
    workdir,
    data,
    more_of_known=more_of_known,
    method=method,
    console=QUIET,
    check_interrupt=ask,
    settings={"num_devices": 1, **settings},
  )


@pytest.fixture(scope="module")
def started(photos, tmp_path_factory):
  """A model of the first group."""
  return trained(tmp_path_factory.mktemp("started") / "w", photos, learning_rate=0.01)


@pytest.fixture
def model(started, tmp_path):
  """A copy of it, to be changed."""
  return shutil.copytree(started, tmp_path / "w")


@pytest.fixture(scope="module")
def undisturbed(started, photos, tmp_path_factory):
  """It, when it has learnt the second group."""
  workdir = shutil.copytree(started, tmp_path_factory.mktemp("undisturbed") / "w")
  learn(workdir, photos / "1")
  return workdir


def rows_of(workdir):
  return json.loads((workdir / "results.json").read_text())["states"]


def kept_photos(workdir):
  """All archives of a model, byte for byte."""
  return {
    str(path.relative_to(workdir)): path.read_bytes() for path in workdir.rglob("*.zip")
  }


def arrays(workdir, **options):
  """Network and statistics of a model."""
  loaded = ssil_jax.load(workdir, **options)
  return arrays_of({"network": loaded.variables, "stats": loaded.stats})


def assert_same_models(one, other):
  """To the bit."""
  assert kept_photos(one) == kept_photos(other)
  ours, theirs = arrays(one), arrays(other)
  assert ours.keys() == theirs.keys()
  for name, array in ours.items():
    np.testing.assert_array_equal(array, theirs[name], err_msg=name)


@pytest.mark.parametrize("method", LEARNING)
def test_a_chain_of_commands_is_one_run(method, photos, tmp_path):
  # With steps so small that no rounding grows into another network.
  own = {
    "icarl": {"selection": "herding"},
    # Images without labels have numbers after those of the others, which here are fewer.
    "gd": {"gd_epochs": 1, "unlabeled_dir": str(photos / "1" / "test")},
    "cgan_features": {"cgan_steps": 3},
    "dgr": {"dgr_rate": 1e-5},
  }
  settings = {"method": method, **own.get(method, {})}
  groups = GROUPS if method == "ssil" else GROUPS[:2]
  names = sum(groups, ())
  (tmp_path / "classes").write_text("\n".join(names))
  chain = trained(tmp_path / "chain", photos, **settings)
  for number in range(1, len(groups)):
    learn(chain, photos / str(number))
  settings["classes"] = settings["class_order"] = str(tmp_path / "classes")
  single = trained(tmp_path / "single", photos, "all", num_states=len(groups), **settings)
  assert kept_photos(chain) == kept_photos(single)
  assert [ssil_jax.load(workdir).class_names for workdir in (chain, single)] == [names] * 2
  ours, theirs = arrays(chain), arrays(single)
  for name, array in theirs.items():
    if name == "stats.row":  # numbers of records, which are others
      continue
    if name == "stats.logits":  # of classes that were not seen when they were stored
      array = np.where(ours[name] == 0, 0, array)
    np.testing.assert_allclose(ours[name], array, rtol=1e-3, atol=1e-5, err_msg=name)
  for row, other in zip(rows_of(chain), rows_of(single), strict=True):
    for name in ("num_old", "num_seen", "top1", "top5", "confusion", "top1_by_state"):
      assert row[name] == other[name], name


def test_the_photos_of_earlier_states_are_not_needed(photos, tmp_path):
  data = shutil.copytree(photos / "0", tmp_path / "photos")
  workdir = trained(tmp_path / "w", photos, data_dir=str(data))
  shutil.rmtree(data)
  moved = tmp_path / "elsewhere"
  os.rename(workdir, moved)
  learnt = learn(moved, photos / "1")
  assert sum(map(sum, learnt.result["confusion"])) == 4 * 6
  assert not (moved / "learning").exists()


def test_what_was_gained_and_what_it_cost(started, undisturbed):
  before, after = rows_of(started)[-1], rows_of(undisturbed)[-1]
  learnt = after["learnt"]
  assert learnt["new_classes"] == ["b", "f"]
  assert learnt["top1_old_before"] == before["top1"]
  assert learnt["top1_by_state_before"] == before["top1_by_state"]
  old, new = after["top1_by_state"]
  assert (learnt["top1_old"], learnt["top1_new"]) == (old, new)
  assert after["top1"] == pytest.approx((12 * old + 12 * new) / 24)
  # What is told of classes grows with them; the whole confusion is the last state's.
  assert ["class_confusion" in row for row in rows_of(undisturbed)] == [False, True]
  assert len(before["top1_by_class"]) == 2
  assert len(after["top1_by_class"]) == 4
  assert sum(images for _, _, images in after["class_confusion"]) == 24
  first, both = (
    json.loads((workdir / "results.json").read_text()) for workdir in (started, undisturbed)
  )
  assert both["class_names"] == ["c", "a", "b", "f"]
  assert both["average"]["forgetting"] == pytest.approx(before["top1"] - old)
  begun = [results["environment"]["started"] for results in (first, both)]
  assert begun[0] == begun[1] is not None
  schedule = json.loads((undisturbed / "schedule.json").read_text())
  assert [row["state"] for row in schedule] == [1, 2]
  card = json.loads((undisturbed / "model.json").read_text())
  assert [row["trained_by"] for row in card["states"]] == ["run", "learn"]


class Stop(BaseException):
  """Ends a command as a kill would, at that very place."""


@pytest.mark.parametrize("call", ["os.replace", "os.rename"])
def test_a_kill_at_any_moment_loses_nothing(
  call, started, undisturbed, photos, tmp_path, monkeypatch
):
  workdir = shutil.copytree(started, tmp_path / "w")
  module, name = call.split(".")
  real, answered = getattr(os, name), {False: 0, True: 0}
  pixels = np.full((8, 8, 3), 100, np.uint8)
  before, after = (ssil_jax.load(w).probabilities(pixels) for w in (started, undisturbed))
  for kill_at in range(60):
    calls = 0

    def killed(*arguments, **options):
      nonlocal calls
      calls += 1
      if calls == kill_at + 1:  # noqa: B023
        raise Stop
      return real(*arguments, **options)

    with monkeypatch.context() as patch:
      patch.setattr(os, name, killed)
      try:
        learnt = learn(workdir, photos / "1")
      except Stop:
        learnt = None
    found = ssil_jax.load(workdir)
    is_new = len(found.class_names) == 4
    expected = after if is_new else before
    np.testing.assert_array_equal(found.probabilities(pixels), expected)
    answered[is_new] += 1
    if learnt:
      break
    if kill_at % 2:  # every second one begins from what the one before left
      shutil.rmtree(workdir)
      shutil.copytree(started, workdir)
  else:
    raise AssertionError("never done")
  assert answered[False] >= (5 if call == "os.replace" else 0)
  assert_same_models(workdir, undisturbed)
  assert len(rows_of(workdir)) == 2


def test_an_interrupted_state_ends_as_an_undisturbed_one(
  model, undisturbed, photos, started
):
  stop_at, done = 3, None
  while done is None:
    calls = 0

    def ask():
      nonlocal calls
      calls += 1
      if calls == stop_at:  # noqa: B023
        raise Interrupted(signal.SIGTERM)

    try:
      done = learn(model, photos / "1", ask=ask)
    except Interrupted:
      assert ssil_jax.load(model).class_names == ssil_jax.load(started).class_names
      request = json.loads((model / "learning" / "request.json").read_text())
      assert request["classes"] == ["b", "f"]
    stop_at += 3
  assert stop_at > 6
  assert_same_models(model, undisturbed)


def test_the_same_command_again_does_nothing(undisturbed, photos, tmp_path):
  workdir = shutil.copytree(undisturbed, tmp_path / "w")
  before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
  again = learn(workdir, photos / "1")
  assert again.was_known
  assert again.result == rows_of(workdir)[-1]
  del before[workdir / "lock"]
  assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_one_class_alone_is_learnt(photos, tmp_path):
  workdir = trained(tmp_path / "w", photos, learning_rate=0.02, epochs_first=8)
  before = arrays(workdir)["network.params.head.kernel"]
  learnt = learn(workdir, photos / "g", epochs=30)
  kernel = arrays(workdir)["network.params.head.kernel"]
  assert kernel.shape[1] == before.shape[1] + 1
  assert learnt.result["top1_by_state"][-1] > 0.5


def test_one_class_alone_that_would_not_be_learnt(photos, tmp_path):
  workdir = trained(tmp_path / "w", photos, method="er_ace")
  with pytest.raises(ConfigError, match="would learn nothing of g, alone in state 2"):
    learn(workdir, photos / "g")


def test_states_that_start_from_given_weights_need_them(model, photos, tmp_path):
  workdir = trained(tmp_path / "other", photos, method="gdumb", init_from=str(model))
  with pytest.raises(ConfigError, match="which a model does not keep: train it anew"):
    learn(workdir, photos / "1")


def test_what_differs_in_a_state_is_kept(model, photos):
  learn(model, photos / "1", epochs=7, learning_rate=0.02, keep_test=2)
  card = json.loads((model / "model.json").read_text())
  first, second = (row["settings"] for row in card["states"])
  assert (second["epochs"], second["learning_rate"], second["keep_test"]) == (7, 0.02, 2)
  assert second["milestones"] == [2, 5]  # at 40% and 80%
  assert first["epochs"] == 1
  assert card["states"][1]["changed"] == {
    "epochs": 7,
    "learning_rate": 0.02,
    "keep_test": 2,
  }
  # The next one goes on with them; of the new classes two photos each are there.
  result = learn(model, photos / "g").result
  assert [sum(row) for row in result["confusion"]] == [12, 4, 6]
  assert json.loads((model / "model.json").read_text())["states"][2]["settings"][
    "milestones"
  ] == [2, 5]


def test_fewer_photos_than_a_batch(model, photos, tmp_path):
  data = shutil.copytree(photos / "g", tmp_path / "few")
  for path in sorted((data / "train" / "g").iterdir())[3:]:
    path.unlink()
  with pytest.raises(ConfigError, match="batch_size_new=8: lower it"):
    learn(model, data, batch_size_new=8)
  learn(model, data)
  row = json.loads((model / "model.json").read_text())["states"][-1]
  assert row["batch_sizes"] == [2, 1]
  assert row["settings"]["batch_size_new"] == 8  # the next one goes on with that


def test_more_photos_of_known_classes(model, photos, tmp_path):
  data = shutil.copytree(photos / "1", tmp_path / "new")
  for number in range(40):
    pixels = np.full((8, 8, 3), number, np.uint8)
    save(data / "train" / "a" / f"{number}.png", pixels)
  for number in range(3):
    save(data / "test" / "a" / f"{number}.png", np.full((8, 8, 3), 200 + number, np.uint8))
  with pytest.raises(ConfigError, match=r"class a \(1 in all\) is known since state 1"):
    learn(model, data)
  result = learn(model, data, more_of_known=True).result
  assert [sum(row) for row in result["confusion"]] == [12 + 3, 12]
  with zipfile.ZipFile(model / "model" / "2" / "exemplars.zip") as archive:
    sizes = {}
    for name in archive.namelist():
      sizes.setdefault(name.split("/")[0], []).append(name)
    added = {save_bytes(number) for number in range(40)}
    kept = [archive.read(name) for name in sizes["00001 a"]]
  assert {name: len(found) for name, found in sizes.items() if "." not in name} == {
    "00000 c": 6,
    "00001 a": 6,
    "00002 b": 6,
    "00003 f": 6,
  }
  assert 0 < sum(content in added for content in kept) < 6


@pytest.mark.parametrize("method", ["ft"])
def test_the_schedule_counts_further_photos(method, photos, tmp_path):
  # Eleven photos of a known class are no exemplars of the model.
  workdir = trained(tmp_path / "w", photos, method=method, memory_size=10)
  data = shutil.copytree(photos / "1", tmp_path / "new")
  for number in range(11):
    pixels = np.full((8, 8, 3), number, np.uint8)
    save(data / "train" / "a" / f"{number}.png", pixels)
  save(data / "test" / "a" / "0.png", np.full((8, 8, 3), 99, np.uint8))
  learn(workdir, data, more_of_known=True, memory_size=40, log_every=1)
  row = json.loads((workdir / "schedule.json").read_text())[-1]
  assert row["images"] == f"{5 + 5 + 11} + 32"
  steps = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert sum(record["state"] == 2 for record in steps) == row["steps"] == 53 // 8


def test_photos_that_the_model_keeps_are_not_taken_twice(model, photos, tmp_path):
  data = shutil.copytree(photos / "1", tmp_path / "new")
  # A test photo among the training photos, and all others as they were.
  for split in ("train", "test"):
    shutil.copytree(photos / "0" / split / "a", data / split / "a")
  kept = photos / "0" / "test" / "a" / "16.png"
  shutil.copy(kept, data / "train" / "a" / "again.png")
  result = learn(model, data, more_of_known=True).result
  assert [sum(row) for row in result["confusion"]] == [12, 12]
  with zipfile.ZipFile(model / "model" / "2" / "exemplars.zip") as archive:
    names = [name for name in archive.namelist() if name != "index.json"]
    contents = [archive.read(name) for name in names]
  assert len(set(contents)) == len(contents)
  assert kept.read_bytes() not in contents


def test_archives_of_another_model_are_refused(model, undisturbed, photos):
  place = model / "model" / "1"
  own = (place / "exemplars.zip").read_bytes()
  shutil.copy(undisturbed / "model" / "2" / "exemplars.zip", place)
  with pytest.raises(DataError, match=r"exemplars\.zip has other photos than the model's"):
    learn(model, photos / "1")
  (place / "exemplars.zip").write_bytes(own)
  shutil.copy(undisturbed / "model" / "2" / "test.zip", place)
  with pytest.raises(DataError, match=r"test\.zip has other photos than the model's card"):
    learn(model, photos / "1")


def test_a_test_photo_that_cannot_be_read_is_left_out(model, photos):
  path = model / "model" / "1" / "test.zip"
  content = bytearray(path.read_bytes())
  content[content.index(b"IDAT") + 10] ^= 1
  path.write_bytes(content)
  assert [sum(row) for row in learn(model, photos / "1").result["confusion"]] == [11, 12]


def save_bytes(number):
  """The file of a photo that is all of one gray."""
  import io

  from PIL import Image

  file = io.BytesIO()
  Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(file, "PNG")
  return file.getvalue()


def test_der_has_no_logits_of_further_photos(photos, tmp_path):
  workdir = trained(tmp_path / "w", photos, method="der")
  data = shutil.copytree(photos / "1", tmp_path / "new")
  for split in ("train", "test"):
    shutil.copytree(photos / "2" / split / "d", data / split / "a")
  with pytest.raises(ConfigError, match="more_of_known is not for --method=der"):
    learn(workdir, data, more_of_known=True)


def test_without_test_photos_of_old_classes(photos, tmp_path):
  workdir = trained(tmp_path / "w", photos, keep_test=0, method="il2m")
  result = learn(workdir, photos / "1").result
  assert result["learnt"]["top1_old_before"] is None
  assert result["learnt"]["top1_old"] is None
  assert result["error_old_as_new"] is None
  assert result["top1_by_state"][0] is None


REFUSED = {
  "known": (
    lambda m, p: learn(m, p / "all"),
    ConfigError,
    r"class a \(2 in all\) is known",
  ),
  "nothing new": (
    lambda m, p: learn(m, p / "0", more_of_known=True),
    ConfigError,
    "has no new class, only a, c",
  ),
  "another network": (
    lambda m, p: learn(m, p / "1", width=8),
    ConfigError,
    "--width: learning one more state cannot change that",
  ),
  "a memory too small": (
    lambda m, p: learn(m, p / "1", memory_size=3),
    ConfigError,
    "--memory_size=3 cannot hold one exemplar of each of the 4 classes",
  ),
  "no photos": (lambda m, p: learn(m, p / "nowhere"), DataError, "is not a folder"),
  "another method": (
    lambda m, p: learn(m, p / "1", method="ft"),
    ConfigError,
    "--method=ft: the model in .* was trained by ssil",
  ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_is_written(case, started, photos):
  call, error, message = REFUSED[case]
  before = {p: p.stat().st_mtime_ns for p in started.rglob("*") if p.is_file()}
  with pytest.raises(error, match=message):
    call(started, photos)
  before.pop(started / "lock", None)
  assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_the_same_name_in_other_characters(model, photos, tmp_path):
  data = tmp_path / "new"
  for split in ("train", "test"):
    shutil.copytree(photos / "1" / split / "b", data / split / "caf\u00e9")
  learn(model, data)
  other = tmp_path / "other"
  for split in ("train", "test"):
    shutil.copytree(photos / "1" / split / "f", other / split / "cafe\u0301")
  with pytest.raises(ConfigError, match=r"'cafe.u0301' is 'caf.xe9', spelled with other"):
    learn(model, other)


def test_two_at_once(model, photos):
  with (
    locked(model / "lock"),
    pytest.raises(WorkdirError, match="is in use by another run"),
  ):
    learn(model, photos / "1")


def test_another_folder_while_one_is_half_learnt(model, photos):
  def ask():
    if (model / "learning" / "request.json").exists():
      raise Interrupted(signal.SIGTERM)

  with pytest.raises(Interrupted):
    learn(model, photos / "1", ask=ask)
  with pytest.raises(WorkdirError, match=r"is learning state 2 already: --data_dir=.*/1"):
    learn(model, photos / "2")
  # Given up: nothing of it is left in what is learnt then.
  assert len(json.loads((model / "schedule.json").read_text())) == 1
  shutil.rmtree(model / "learning")
  learn(model, photos / "2")
  assert ssil_jax.load(model).class_names == ("c", "a", "d", "e")


def test_a_run_that_is_not_complete(photos, tmp_path):
  calls = 0

  def ask():
    nonlocal calls
    calls += 1
    if (tmp_path / "w" / "model.json").exists():
      raise Interrupted(signal.SIGTERM)

  config = small_config(
    tmp_path / "w",
    dataset="image_folder",
    data_dir=str(photos / "all"),
    num_classes=0,
    batch_size_new=8,
    batch_size_memory=4,
  )
  with pytest.raises(Interrupted):
    loop.run(config, QUIET, check_interrupt=ask)
  with pytest.raises(WorkdirError, match=r"is trained to state 1 of 3: rerun its command"):
    learn(tmp_path / "w", photos / "g")
  assert len(ssil_jax.load(tmp_path / "w").class_names) == 2


def test_joint_training_needs_all_photos(photos, tmp_path):
  workdir = trained(tmp_path / "w", photos, method="joint")
  with pytest.raises(ConfigError, match="trains on all images of all classes"):
    learn(workdir, photos / "1")


def test_damaged_exemplars(model, photos):
  path = model / "model" / "1" / "exemplars.zip"
  content = bytearray(path.read_bytes())
  place = content.index(b"IDAT") + 10
  content[place] ^= 1
  path.write_bytes(content)
  with pytest.raises(DataError, match=r"exemplars\.zip.00000 c.00000.png: .*CRC"):
    learn(model, photos / "1")
  with pytest.raises(DataError, match="exemplars are among the images that cannot be read"):
    learn(model, photos / "1", skip_bad_records=True)
  path.write_bytes(content[:-30])
  with pytest.raises(DataError, match=r"exemplars\.zip cannot be read"):
    learn(model, photos / "1")


def test_run_does_not_touch_what_has_learnt(undisturbed, photos):
  with pytest.raises(WorkdirError, match=r"has learnt more since, by learn\.py"):
    trained(undisturbed, photos, learning_rate=0.01)
  assert len(rows_of(undisturbed)) == 2


def test_from_python(model, photos):
  loaded = ssil_jax.load(model)
  assert loaded.predict(photos / "1" / "test" / "b" / "16.png", top=9)[0].classes[-1]
  row = loaded.learn(photos / "1", console=QUIET, epochs=2)
  assert row["learnt"]["new_classes"] == ["b", "f"]
  (prediction,) = loaded.predict(photos / "1" / "test" / "b" / "16.png", top=9)
  assert {name for name, _ in prediction.classes} == {"c", "a", "b", "f"}
  with pytest.raises(ConfigError, match="this is the model of state 1"):
    ssil_jax.load(model, state=1).learn(photos / "2")
  assert isinstance(loaded.workdir, pathlib.Path)
