"""A trained model: it answers as the run did, anywhere, and says what is wrong."""

import io
import json
import os
import pathlib
import shutil
import stat

import bad_inputs
import jax
import models
import numpy as np
import pytest
from folders import encode, noise, photo
from PIL import Image
from quick import quick_network

import ssil_jax
from ssil_jax.data.encoded import BadImage
from ssil_jax.data.images import crop, decode
from ssil_jax.data.photos import open_photos
from ssil_jax.errors import ConfigError, WorkdirError
from ssil_jax.model.trained import paths_of
from ssil_jax.reports.results import load_run

ICARL = {"method": "icarl"}


@pytest.fixture(autouse=True, scope="module")
def _quickly():
  with quick_network():
    yield


@pytest.fixture(scope="module")
def workdir():
  return models.finished(**ICARL)


@pytest.fixture(scope="module")
def model(workdir):
  return ssil_jax.load(workdir)


@pytest.fixture(scope="module")
def test_photos(workdir):
  """Paths, in the order of classes and names."""
  root = workdir.parent / "images" / "test"
  return [str(path) for name in models.CLASSES for path in sorted((root / name).iterdir())]


def contents_of(folder):
  return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names_of(predictions):
  return [[name for name, _ in classes] for _, classes in predictions]


def assert_same_answers(found, expected):
  """The same classes, and probabilities but for rounding."""
  assert names_of(found) == names_of(expected)
  for (_, ours), (_, theirs) in zip(found, expected, strict=True):
    np.testing.assert_allclose(
      [p for _, p in ours], [p for _, p in theirs], rtol=1e-4, atol=1e-6
    )


# What it answers -------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"scale": 4, "image_size": 72, "method": "ssil"}])
def test_photos_are_seen_as_in_the_evaluation(options, test_photos):
  # 72 pixels are streamed: resized to 82 and cut, by a network with another stem.
  workdir = models.finished(**(options or ICARL))
  root = workdir.parent / "images" / "test"
  paths = [str(path) for name in models.CLASSES for path in sorted((root / name).iterdir())]
  truth = [path.split(os.sep)[-2] for path in paths]
  for row in load_run(workdir).results["states"]:
    model = ssil_jax.load(workdir, state=row["state"])
    assert len(model.class_names) == row["num_seen"] == 2 * row["state"]
    place = {name: c // 2 for c, name in enumerate(model.class_names)}
    seen = [i for i, name in enumerate(truth) if name in place]
    found = model.predict([paths[i] for i in seen], batch_size=32)
    assert [file for file, _ in found] == [paths[i] for i in seen]
    predicted = [classes[0].name for _, classes in found]
    right = [name == truth[i] for i, name in zip(seen, predicted, strict=True)]
    assert np.mean(right) == pytest.approx(row["top1"], abs=1e-9)
    confusion = np.zeros((row["state"],) * 2, int)
    for i, name in zip(seen, predicted, strict=True):
      confusion[place[truth[i]], place[name]] += 1
    assert confusion.tolist() == row["confusion"]


def test_the_model_needs_nothing_but_its_files(workdir, model, test_photos, tmp_path):
  alone = models.model_alone(workdir, tmp_path / "elsewhere")
  kept = [shutil.copy(path, tmp_path / f"{i}") for i, path in enumerate(test_photos)]
  images = tmp_path / "gone"
  (workdir.parent / "images").rename(images)  # neither by its path
  try:
    found = ssil_jax.load(alone).predict(kept)
  finally:
    images.rename(workdir.parent / "images")
  expected = model.predict(test_photos)
  assert [classes for _, classes in found] == [
    classes for _, classes in expected
  ]  # to the bit


def test_a_model_that_may_only_be_read(workdir, model, test_photos, tmp_path):
  alone = models.model_alone(workdir, tmp_path / "read-only")
  before = contents_of(alone)
  paths = [alone, *alone.rglob("*")]
  for path in paths:
    path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
  try:
    found = ssil_jax.load(alone).predict(test_photos)
  finally:
    for path in paths:
      path.chmod(path.stat().st_mode | stat.S_IWUSR)
  assert found == model.predict(test_photos)
  # Root may write all the same, and has not done so.
  assert contents_of(alone) == before


def test_paths_bytes_and_pixels_are_answered_alike(model, test_photos):
  some = test_photos[:4]
  expected = model.predict(some)
  contents = [pathlib.Path(path).read_bytes() for path in some]
  pixels = [decode.read_rgb(content) for content in contents]
  for images in (contents, pixels, [some[0], contents[1], pixels[2], some[3]]):
    found = model.predict(images)
    assert [classes for _, classes in found] == [classes for _, classes in expected]
  # One image alone, of each kind, and a path that is no string.
  for image in (some[0], contents[0], pixels[0], pathlib.Path(some[0])):
    (one,) = model.predict(image)
    assert one.file == (some[0] if isinstance(image, str | os.PathLike) else None)
    assert_same_answers([one], expected[:1])
  many = np.stack([noise(20, 30, seed=seed) for seed in range(3)])
  assert model.predict(many) == model.predict(list(many))
  assert model.probabilities(many).shape == (3, 6)
  assert model.predict([]) == []
  assert model.probabilities([]).shape == (0, 6)


def test_pixels_are_resized_and_cut_as_the_card_says(model):
  pixels = photo(50, 30, seed=5)  # becomes 26 x 16, the long side rounded down
  expected = crop.central_square(pixels, 16, short_side=16)
  np.testing.assert_array_equal(model.prepare(pixels), expected)
  # An independent hand: bilinear with antialiasing, then the middle.
  resized = np.asarray(Image.fromarray(pixels).resize((16, 26), Image.Resampling.BILINEAR))
  assert np.abs(resized[5:21].astype(int) - expected).max() <= 2
  same = noise(16, 16)
  np.testing.assert_array_equal(model.prepare(same), same)


def test_the_number_of_classes_and_the_batch_change_no_answer(model, test_photos):
  expected = model.predict(test_photos, top=99)
  assert {len(classes) for _, classes in expected} == {6}
  for top, batch_size in ((5, 1), (5, 7), (1, 64)):
    found = model.predict(test_photos, top=top, batch_size=batch_size)
    best = [p._replace(classes=p.classes[:top]) for p in expected]
    assert_same_answers(found, best)


def test_probabilities_are_those_of_the_predictions(model, test_photos):
  probabilities = model.probabilities(test_photos)
  assert probabilities.shape == (30, 6)
  assert probabilities.dtype == np.float32
  np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
  for row, (_, classes) in zip(
    probabilities, model.predict(test_photos, top=6), strict=True
  ):
    by_name = dict(zip(model.class_names, row.tolist(), strict=True))
    assert dict(classes) == by_name
    assert [p for _, p in classes] == sorted(by_name.values(), reverse=True)


def test_icarls_probabilities_are_of_distances_to_means(model, test_photos):
  # exp(-s |f - mu|^2), worked out here from the network's features.
  pixels = np.stack([model.prepare(path) for path in test_photos])
  outputs = model.network.apply(model.variables, pixels / np.float32(255), train=False)
  features = np.asarray(outputs.features, np.float64)
  features /= np.linalg.norm(features, axis=1, keepdims=True)
  means, sharpness = model.stats["means"][:6], float(model.stats["sharpness"])
  weights = [
    [np.exp(-sharpness * ((f - mean) ** 2).sum()) for mean in means] for f in features
  ]
  expected = np.array(weights) / np.sum(weights, axis=1, keepdims=True)
  np.testing.assert_allclose(model.probabilities(test_photos), expected, rtol=1e-2)


def test_a_method_is_told_which_classes_are_old():
  model = ssil_jax.load(models.finished(method="il2m"))
  photos = np.stack([photo(20, 20, seed=seed) for seed in range(32)])
  new = {*model.class_names[4:]}
  bias = model.variables["params"]["head"]["bias"]
  model.variables["params"]["head"]["bias"] = bias + np.float32([0, 0, 0, 0, 5, 5])
  assert new & {classes[0].name for _, classes in model.predict(photos)}
  # Such factors let an old class win wherever a new one would.
  model.stats = {**model.stats, "factor": np.full(6, 1e6, np.float32)}
  assert not new & {classes[0].name for _, classes in model.predict(photos)}


# Photos that cannot be read --------------------------------------------------------------


def test_a_photo_that_cannot_be_read_is_named_or_left_out(model, test_photos, tmp_path):
  text = tmp_path / "text.png"
  text.write_text("no photo")
  bomb = tmp_path / "bomb.png"
  bomb.write_bytes(encode(noise(8, 8), "PNG"))
  bad_inputs.huge(bomb)
  pipe = tmp_path / "pipe.png"
  os.mkfifo(pipe)
  broken = tmp_path / "broken.jpg"
  broken.write_bytes(encode(noise(40, 40))[:-200])
  bad = {
    str(text): "not a JPEG, PNG or WebP image",
    str(bomb): "60000x60000 pixels, more than the 100000000 allowed",
    str(pipe): "it is a folder, pipe or device, and not a file",
    str(broken): "Premature end of JPEG file",
    str(tmp_path): "it is a folder, pipe or device, and not a file",
    str(tmp_path / "none.png"): "No such file or directory",
  }
  for path, reason in bad.items():
    with pytest.raises(BadImage) as caught:
      model.predict([test_photos[0], path])
    assert (caught.value.name, caught.value.reason) == (path, reason)
  errors, counts = [], []
  given = [*bad, *test_photos[:2]]
  given = [given[i] for i in (0, 6, 1, 2, 7, 3, 4, 5)]
  found = model.predict(given, batch_size=3, on_bad=errors.append, advance=counts.append)
  assert [file for file, _ in found] == test_photos[:2]
  assert [error.name for error in errors] == [*bad]
  assert counts == [3, 3, 2]
  assert model.predict([*bad], on_bad=errors.append) == []


@pytest.mark.parametrize(
  ("image", "message"),
  [
    (b"", "image of the bytes given: it is empty"),
    (np.zeros((8, 8), np.uint8), r"image array: it is uint8\[8, 8\], and not uint8 \[H, W"),
    (np.zeros((8, 8, 4), np.uint8), "and not uint8"),
    (np.zeros((8, 8, 3), np.float32), "float32"),
    (np.zeros((0, 8, 3), np.uint8), "it has no pixels"),
  ],
)
def test_bytes_and_arrays_that_are_no_image(model, image, message):
  with pytest.raises(BadImage, match=message):
    model.predict([image])
  with pytest.raises(BadImage, match=message):
    model.probabilities(image)


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (3, 2), (16, 16)])
def test_images_of_any_shape_are_answered(model, shape):
  ((_, classes),) = model.predict(noise(*shape))
  assert np.isfinite([probability for _, probability in classes]).all()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK", "I;16"])
def test_images_of_any_mode_are_answered(model, mode):
  deep = Image.fromarray(np.zeros((9, 9), np.uint16))
  image = deep if mode == "I;16" else Image.fromarray(noise(20, 20)).convert(mode)
  file = io.BytesIO()
  image.save(file, "JPEG" if mode == "CMYK" else "PNG")
  assert len(model.predict(file.getvalue())) == 1


def test_paths_of_photos_and_folders(tmp_path):
  for name in (
    "b/2.png",
    "b/10.JPG",
    "b/.hidden.png",
    "b/c/x.webp",
    "b/notes.txt",
    "a.png",
  ):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
  (tmp_path / "empty").mkdir()
  found = list(paths_of([str(tmp_path / "b/2.png"), str(tmp_path / "b"), str(tmp_path)]))
  in_b = [str(tmp_path / f"b/{name}") for name in ("10.JPG", "2.png", "c/x.webp")]
  assert found == [str(tmp_path / "b/2.png"), *in_b, str(tmp_path / "a.png"), *in_b]
  with pytest.raises(ConfigError, match=r"none.png does not exist: name photos, or fol"):
    list(paths_of([str(tmp_path / "none.png")]))
  with pytest.raises(ConfigError, match=r"empty has no images \(.png, .*: name another"):
    list(paths_of([str(tmp_path / "empty")]))


# Models that are damaged or another ------------------------------------------------------


@pytest.fixture
def alone(workdir, tmp_path):
  """The model alone, to be changed."""
  return models.model_alone(workdir, tmp_path / "model")


def test_a_flipped_byte_of_a_network_is_refused_wherever_it_is_read(alone, model):
  refused = []
  for path in sorted((alone / "networks" / "3").rglob("*")):
    if not path.is_file():
      continue
    whole = path.read_bytes()
    for place in (len(whole) // 3, len(whole) // 2):
      data = bytearray(whole)
      if data:
        data[place] ^= 0x40
      path.write_bytes(data)
      try:
        found = ssil_jax.load(alone)
      except WorkdirError as error:
        refused.append(str(error))
      else:  # nothing of it is an array
        jax.tree.map(np.testing.assert_array_equal, found.variables, model.variables)
    path.write_bytes(whole)
  assert len(refused) >= 3
  assert all("networks/3 is damaged" in line and "\n" not in line for line in refused)
  # The other states answer whatever happens to this one.
  shutil.rmtree(alone / "networks" / "3")
  assert ssil_jax.load(alone, state=2).state == 2


def test_a_network_of_another_state_is_refused(alone):
  shutil.rmtree(alone / "networks" / "3")
  with pytest.raises(WorkdirError, match="networks/3 is missing: put it back, or repeat"):
    ssil_jax.load(alone)
  shutil.copytree(alone / "networks" / "2", alone / "networks" / "3")
  with pytest.raises(WorkdirError, match="networks/3 is damaged: put a good one back"):
    ssil_jax.load(alone)


@pytest.mark.parametrize("damage", ["flipped", "half", "empty", "text", "other", "gone"])
def test_damaged_statistics_are_refused(alone, damage):
  path = alone / "model" / "3" / "statistics.npz"
  data = bytearray(path.read_bytes())
  data[len(data) // 3] ^= 1
  if damage == "other":
    np.savez(path, means=np.zeros((6, 32), np.float32))  # no sharpness
  elif damage == "gone":
    path.unlink()
  else:
    changed = {"flipped": data, "half": data[: len(data) // 2], "empty": b"", "text": b"a"}
    path.write_bytes(changed[damage])
  reason = "is missing" if damage == "gone" else "cannot be read"
  with pytest.raises(WorkdirError, match=rf"model/3/statistics\.npz {reason}"):
    ssil_jax.load(alone)


def no_checksum(card):
  """Makes a card that of an earlier version."""
  for row in card["states"]:
    del row["statistics_crc32"]


@pytest.mark.parametrize(
  ("changes", "reason"),
  [
    ({}, None),
    ({"means": np.zeros((6, 7), np.float32)}, r"means has the shape \[6, 7\], and not \["),
    ({"sharpness": np.ones(1, np.float32)}, r"sharpness has the shape \[1\], and not \[\]"),
    ({"sharpness": np.array("a")}, "sharpness is <U1, and not float32"),
  ],
)
def test_statistics_of_another_shape_are_refused(alone, model, changes, reason):
  path = alone / "model" / "3" / "statistics.npz"
  np.savez(path, **model.stats | changes)
  if changes:
    with pytest.raises(WorkdirError, match=r"read \(they are not those of the card\): rer"):
      ssil_jax.load(alone)
  edit_card(alone, no_checksum)
  if reason:
    with pytest.raises(WorkdirError, match=rf"statistics\.npz cannot be read \({reason}"):
      ssil_jax.load(alone)
  else:
    jax.tree.map(np.testing.assert_array_equal, ssil_jax.load(alone).stats, model.stats)


def test_statistics_that_are_no_longer_those_of_the_card_are_refused(alone, model):
  path = alone / "model" / "3" / "statistics.npz"
  np.savez(path, **model.stats | {"means": np.full_like(model.stats["means"], np.nan)})
  with pytest.raises(WorkdirError, match=r"read \(they are not those of the card\): rerun"):
    ssil_jax.load(alone)


@pytest.mark.parametrize("name", ["top", "batch_size"])
def test_numbers_below_one_are_refused(model, name):
  for number in (0, -1):
    with pytest.raises(ConfigError, match=f"{name}={number} must be at least 1"):
      model.predict([], **{name: number})


def test_exemplars_and_test_photos_are_not_needed_to_answer(alone, model, test_photos):
  for path in alone.glob("model/*/*.zip"):
    path.unlink()
  assert ssil_jax.load(alone).predict(test_photos) == model.predict(test_photos)


def test_states_that_there_are_not(alone):
  for state in (0, -1, 4):
    message = rf"--state={state}: the model in {alone} has the states 1 to 3: choose one"
    with pytest.raises(ConfigError, match=message):
      ssil_jax.load(alone, state=state)


def edit_card(folder, change):
  card = json.loads((folder / "model.json").read_bytes())
  change(card)
  (folder / "model.json").write_text(json.dumps(card))


def test_settings_of_another_version_are_named(alone):
  edit_card(alone, lambda card: card["states"][2]["settings"].update(width=-1))
  message = r"model.json: the settings of state 3 cannot be used, of version .*--width=-1"
  with pytest.raises(WorkdirError, match=message):
    ssil_jax.load(alone)


def test_code_that_has_changed_since_is_warned_about(alone):
  edit_card(alone, lambda card: card["states"][2].update(method_source="0" * 8))
  warnings = []
  ssil_jax.load(alone, warn=warnings.append)
  assert warnings == [
    f"warning: the code of --method=icarl has changed since the model in {alone} was "
    "trained: its predictions may be others"
  ]
  ssil_jax.load(alone, state=2, warn=pytest.fail)


def test_a_method_of_ones_own_must_be_named(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr("sys.dont_write_bytecode", True)
  bad_inputs.mine()(tmp_path)
  root = models.photos_in(tmp_path / "images")
  models.train(tmp_path / "run", root, method="mine:MINE", num_states=2)
  place = tmp_path / "run"
  for method, told in (
    (None, "by a method of someone's own: give --method=mine:MINE to have its code imp"),
    ("other:MINE", "--method=other:MINE: the model in .* was trained by mine:MINE: leave"),
    ("ssil", "--method=ssil: the model in .* was trained by mine:MINE: leave"),
  ):
    with pytest.raises(ConfigError, match=told):
      ssil_jax.load(place, method=method)
  model = ssil_jax.load(place, method="mine:MINE", warn=pytest.fail)
  assert model.method.title == "mine"
  assert model.config.method_settings.gamma == 2.0
  assert len(model.predict(noise(20, 20))) == 1


def test_a_method_of_the_package_needs_no_flag(alone):
  message = "--method=ft: the model in .* was trained by icarl: leave the flag out"
  with pytest.raises(ConfigError, match=message):
    ssil_jax.load(alone, method="ft")
  assert ssil_jax.load(alone, method="icarl").state == 3


def test_the_models_own_test_photos_are_answered_too(workdir, model):
  photos = open_photos(workdir / "model" / "3" / "test.zip")
  contents = [photos.images.open(record).data for record in range(len(photos.labels))]
  expected = model.predict(
    [
      str(workdir.parent / "images" / "test" / model.class_names[label] / name)
      for label in (4, 5)
      for name in ("0.jpg", "1.png", "2.webp", "3.jpg", "4.png")
    ]
  )
  found = model.predict(contents)
  assert [classes for _, classes in found] == [classes for _, classes in expected]
