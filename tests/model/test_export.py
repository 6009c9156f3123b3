"""Exported models: read by other programs, they say what the model says."""

import copy
import json
import os
import re
import subprocess
import sys

import jax.export
import numpy as np
import pytest
import safetensors.numpy
import torchvision_reference
from folders import ROOT, noise, photo, save
from random_models import STEPS, write_model
from scipy.special import softmax

import ssil_jax
from ssil_jax.commands import export as command
from ssil_jax.data.images.augment import IMAGENET_NORMALIZATION
from ssil_jax.errors import ConfigError
from ssil_jax.methods import METHODS
from ssil_jax.methods.base import mask_unseen, softmax_probabilities
from ssil_jax.model import export

pytestmark = pytest.mark.long

CASES = {
  "ssil": {},
  "bic": {},
  "icarl": {},
  "icarl, released": {"icarl_means": "released"},
  "il2m": {},
  "il2m, logits": {"il2m_scores": "logits"},
  "lucir": {},
  "podnet": {"batch_size_new": 8},
}
PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
  """Name of a case -> its model."""
  made = {}

  def get(case):
    if case not in made:
      folder = tmp_path_factory.mktemp("model") / "run"
      write_model(folder, method=case.split(",")[0], **CASES[case])
      made[case] = ssil_jax.load(folder)
    return made[case]

  return get


def pixels_of(model, count=5):
  size = model.image_size
  return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), np.uint8)


def onnx_session(model, folder):
  """Exports a model, and opens it with onnxruntime; skips where jax2onnx cannot."""
  onnxruntime = pytest.importorskip("onnxruntime", reason="needs requirements-onnx.txt")
  try:
    model.export(folder, format="onnx")
  except ConfigError as error:
    if jax.__version_info__ < (0, 11) or "cannot write this model" not in str(error):
      raise
    pytest.skip(str(error))
  return onnxruntime.InferenceSession(folder / "model.onnx")


def read_card(folder):
  return json.loads((folder / "card.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_jax_says_the_same(case, model_of, tmp_path):
  model = model_of(case)
  written = model.export(tmp_path / "out", format="jax")
  assert [path.name for path in written] == ["model.jax", "card.json"]
  content = (tmp_path / "out" / "model.jax").read_bytes()
  assert list(written.values())[0] == len(content)
  read = jax.export.deserialize(bytearray(content))
  assert read.platforms == ("cpu", "cuda", "tpu")
  for count in (1, 5) if case == "ssil" else (5,):
    pixels = pixels_of(model, count)
    for found, expected in zip(read.call(pixels), model.scores(pixels), strict=True):
      assert found.shape == (count, 4)
      np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_onnxruntime_says_the_same(case, model_of, tmp_path, caplog):
  model = model_of(case)
  session = onnx_session(model, tmp_path / "out")
  assert not caplog.records
  card = read_card(tmp_path / "out")
  assert [i.name for i in session.get_inputs()] == [card["input"]["name"]]
  assert [o.name for o in session.get_outputs()] == [o["name"] for o in card["outputs"]]
  for count in (1, 5) if case == "ssil" else (5,):
    pixels = pixels_of(model, count)
    found = session.run(None, {"pixels": pixels})
    expected = model.scores(pixels)
    for f, e in zip(found, expected, strict=True):
      assert f.shape == (count, 4)
      np.testing.assert_allclose(f, e, rtol=1e-4, atol=1e-5)
    assert np.array_equal(found[0].argmax(-1), expected[0].argmax(-1))


def test_onnx_is_float32_and_the_model_stays_as_it_is(tmp_path):
  exact = ssil_jax.load(write_model(tmp_path / "a", method="ft"))
  model = ssil_jax.load(write_model(tmp_path / "b", method="ft", precision="bfloat16"))
  before = model.network
  session = onnx_session(model, tmp_path / "out")
  assert model.network is before
  pixels = pixels_of(model)
  scores, _ = session.run(None, {"pixels": pixels})
  np.testing.assert_allclose(scores, exact.scores(pixels)[0], rtol=1e-4, atol=1e-5)


def predicted(case, tensors, statistics, images, prediction):
  """Scores and probabilities as the card says how they are made."""
  method = case.split(",")[0]
  features = torchvision_reference.features(
    tensors, images, last_relu=method not in ("lucir", "podnet")
  ).astype(np.float64)
  unit = features / np.linalg.norm(features, axis=1, keepdims=True)
  inputs = unit if method in ("lucir", "podnet") else features
  logits = inputs @ tensors["fc.weight"].T + tensors["fc.bias"]
  if method == "podnet":
    cosines = logits.reshape(len(logits), -1, 10)
    (scale,) = re.findall(r"summed up, times ([\d.e+-]+);", prediction)
    logits = float(scale) * np.sum(softmax(cosines, axis=2) * cosines, axis=2)
  if method == "icarl":
    scores = 2 * unit @ statistics["means"].T - 2
    if "released" in case:
      scores += 1 - np.sum(statistics["means"] ** 2, axis=1)
    return scores, softmax(statistics["sharpness"] * scores, axis=1)
  if method == "il2m":
    scores = logits if "logits" in case else softmax(logits, axis=1)
    for row in scores:
      if row.argmax() >= statistics["num_old"]:
        row[: statistics["num_old"]] *= statistics["factor"][: statistics["num_old"]]
    if "logits" not in case:
      return scores, scores / scores.sum(axis=1, keepdims=True)
    return scores, softmax(scores, axis=1)
  return logits, softmax(logits, axis=1)


@pytest.mark.parametrize("case", CASES)
def test_safetensors_are_torchvisions_resnet18(case, model_of, tmp_path):
  model = model_of(case)
  model.export(tmp_path / "out", format="safetensors")
  tensors = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
  assert tensors["layer3.1.bn2.num_batches_tracked"] == STEPS
  place, statistics = tmp_path / "out" / "statistics.safetensors", {}
  assert place.exists() == (case not in ("ssil", "bic", "lucir", "podnet"))
  if place.exists():
    statistics = safetensors.numpy.load_file(place)
    assert all(x.shape[:1] in ((), (4,)) for x in statistics.values())
  pixels = pixels_of(model)
  images = (pixels / 255.0).transpose(0, 3, 1, 2)
  card = read_card(tmp_path / "out")
  found = predicted(case, tensors, statistics, images, card["prediction"])
  for f, e in zip(found, model.scores(pixels), strict=True):
    np.testing.assert_allclose(f, e, rtol=1e-4, atol=1e-5)


def large_model(folder, **settings):
  save_images(folder / "images")
  return write_model(
    folder / "run",
    dataset="image_folder",
    data_dir=str(folder / "images"),
    image_size=72,
    num_classes=3,
    batch_size_new=1,
    batch_size_memory=1,
    normalization=IMAGENET_NORMALIZATION,
    **settings,
  )


def save_images(folder):
  for split in ("train", "test"):
    for c in range(3):
      for i in range(2):
        save(folder / split / f"c{c}" / f"{i}.png", noise(72, 72, seed=(c, i, len(split))))


def test_large_images_have_torchvisions_stem(tmp_path):
  model = ssil_jax.load(large_model(tmp_path, method="ft", memory_size=6))
  model.export(tmp_path / "out", format="safetensors")
  tensors = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
  assert tensors["conv1.weight"].shape == (4, 3, 7, 7)
  card = read_card(tmp_path / "out")
  mean, std = (card["preprocessing"][name] for name in ("mean", "std"))
  assert (mean, std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
  pixels = pixels_of(model, 2)
  images = ((pixels / 255.0 - mean) / std).transpose(0, 3, 1, 2)
  found, _ = predicted("ft", tensors, {}, images, "")
  np.testing.assert_allclose(found, model.scores(pixels)[0], rtol=1e-4, atol=1e-5)
  session = onnx_session(model, tmp_path / "onnx")
  scores, _ = session.run(None, {"pixels": pixels})
  np.testing.assert_allclose(scores, model.scores(pixels)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [8, 72])
@pytest.mark.parametrize("method", ["ft", "lucir"])
def test_pytorch_loads_it_strictly(size, method, tmp_path):
  torch = pytest.importorskip("torch", reason="PyTorch is not installed")
  if size == 8:
    folder = write_model(tmp_path / "run", method=method)
  else:
    folder = large_model(tmp_path, method=method, memory_size=6)
  model = ssil_jax.load(folder)
  model.export(tmp_path / "out", format="safetensors")
  network = torchvision_reference.torch_resnet18(len(model.class_names), width=4).eval()
  if size == 8:
    network.conv1 = torch.nn.Conv2d(3, 4, 3, padding=1, bias=False)
    network.maxpool = torch.nn.Identity()
  tensors = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
  network.load_state_dict({name: torch.tensor(t) for name, t in tensors.items()})
  if method == "lucir":
    network.layer4[1].last = torch.nn.Identity()
    network.fc = torch.nn.Sequential(torch.nn.Module(), network.fc)
    network.fc[0].forward = lambda f: f / f.norm(dim=1, keepdim=True)
  known = read_card(tmp_path / "out")["preprocessing"]
  pixels = pixels_of(model)
  images = (pixels / np.float32(255) - np.float32(known["mean"])) / np.float32(known["std"])
  with torch.no_grad():
    found = network(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()
  np.testing.assert_allclose(found, model.scores(pixels)[0], rtol=1e-4, atol=1e-4)


def test_the_card_says_what_another_program_needs(model_of, tmp_path):
  model = model_of("icarl")
  model.export(tmp_path / "out", format="safetensors")
  card = read_card(tmp_path / "out")
  assert card["class_names"] == list(model.class_names)
  assert card["files"] == ["model.safetensors", "statistics.safetensors"]
  assert card["preprocessing"]["image_size"] == 8
  assert card["preprocessing"]["steps"][2] == "cut out the central 8 x 8 pixels"
  assert "means[k]" in card["prediction"]
  assert "statistics.safetensors" in card["prediction"]
  assert "Conv2d(3, 4, 3, padding=1, bias=False)" in card["torch"]
  assert card["accuracy"]["top1"] == 0.5
  assert card["exported_by"]["ssil_jax"] == ssil_jax.__version__
  earlier = ssil_jax.load(model.workdir, state=1)
  earlier.export(tmp_path / "first")
  card = read_card(tmp_path / "first")
  assert (card["state"], len(card["class_names"]), card["accuracy"]) == (1, 2, None)
  assert card["outputs"][1]["shape"] == ["batch", 2]


def test_a_prediction_in_other_words_is_told_of(model_of, tmp_path):
  # As of a method of one's own.
  model = copy.copy(model_of("ssil"))
  model.method = model.method._replace(predict=lambda outputs, *_: outputs.logits * 2)
  model.export(tmp_path / "out", format="safetensors")
  assert "by the code of --method=ssil" in read_card(tmp_path / "out")["prediction"]
  assert (tmp_path / "out" / "statistics.safetensors").exists()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_how_it_predicts(name):
  method = METHODS[name]
  is_plain = method.predict is mask_unseen and method.probabilities is softmax_probabilities
  assert bool(method.prediction) != is_plain


def block(name):
  return re.search(rf"^```python {name}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)[1]


# torchvision's, where only PyTorch is there.
_TORCHVISION = """
import types
import torchvision_reference
models = types.SimpleNamespace(resnet18=lambda num_classes: (
  torchvision_reference.torch_resnet18(num_classes)))
torchvision = sys.modules["torchvision"] = types.ModuleType("torchvision")
torchvision.models = models
"""


@pytest.mark.parametrize("format", ["jax", "onnx", "safetensors"])
def test_the_loader_in_the_docs_runs_without_this_package(format, tmp_path):
  needed = {"onnx": "onnxruntime", "safetensors": "torch"}.get(format)
  if needed:
    pytest.importorskip(needed, reason=f"{needed} is not installed")
  width = {"width": 64} if format == "safetensors" else {}
  model = ssil_jax.load(write_model(tmp_path / "run", method="bic", **width))
  if format == "onnx":
    onnx_session(model, tmp_path / "exported")
  else:
    model.export(tmp_path / "exported", format=format)
  save(tmp_path / "photo.png", noise(8, 8, seed=3))
  stand_in = _TORCHVISION if format == "safetensors" else ""
  code = f"""\
import sys
sys.modules["ssil_jax"] = None
{stand_in}
{block("prepare")}
{block(format)}
"""
  (tmp_path / "program.py").write_text(code)
  done = subprocess.run(
    [sys.executable, "program.py"],
    cwd=tmp_path,
    env={**os.environ, "PYTHONPATH": str(ROOT / "tests"), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  (prediction,) = model.predict([tmp_path / "photo.png"])
  name, probability = done.stdout.rsplit(maxsplit=1)
  assert name == prediction.classes[0].name
  assert float(probability) == pytest.approx(prediction.classes[0].probability, abs=1e-4)


@pytest.mark.parametrize("shape", [(40, 61), (33, 20), (8, 8)])
def test_the_recipe_in_the_docs_prepares_a_photo_as_the_model_does(
  shape, model_of, tmp_path
):
  model = model_of("ssil")
  save(tmp_path / "photo.png", photo(*shape))
  names = {}
  exec(block("prepare"), names)
  found = names["prepare"](tmp_path / "photo.png", model.card)
  expected = model.prepare(tmp_path / "photo.png")
  assert np.abs(found[0].astype(int) - expected).max() <= 6
  assert np.abs(found[0].astype(int) - expected).mean() <= 1


def test_the_command_says_what_it_wrote(model_of, tmp_path, capsys):
  workdir = model_of("ssil").workdir
  arguments = [f"--workdir={workdir}", f"--output={tmp_path / 'out'}"]
  assert command.main(["export.py", *arguments, "--format=safetensors"]) == 0
  first, second = capsys.readouterr().out.splitlines()
  assert first.startswith(f"{tmp_path / 'out' / 'model.safetensors'} (")
  assert second.startswith(f"{tmp_path / 'out' / 'card.json'} (")
  # What is there stays.
  assert command.main(["export.py", *arguments]) == 2
  assert "is not empty: name a new folder" in capsys.readouterr().err
  assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
    "card.json",
    "model.safetensors",
  ]


def test_help_and_choices_are_those_of_the_library():
  assert tuple(export.FORMATS) == command._FORMATS


def test_nothing_is_left_of_what_could_not_be_written(model_of, tmp_path, monkeypatch):
  def full(path, value):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(export, "write_json", full)
  with pytest.raises(ConfigError, match=r"cannot be written \(No space left on device\)"):
    model_of("ssil").export(tmp_path / "out")
  assert not any((tmp_path / "out").iterdir())


def test_onnx_without_its_extra_is_one_line(model_of, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "jax2onnx", None)
  with pytest.raises(ConfigError, match=r"^--format=onnx needs jax2onnx: pip install"):
    model_of("ssil").export(tmp_path / "out", format="onnx")
  assert not (tmp_path / "out").exists()


def test_what_cannot_be_converted_is_one_line(model_of, tmp_path, monkeypatch):
  jax2onnx = pytest.importorskip("jax2onnx", reason="needs requirements-onnx.txt")

  def unknown(*args, **kwargs):
    raise NotImplementedError("no plugin for\nprimitive 'x'")

  monkeypatch.setattr(jax2onnx, "to_onnx", unknown)
  with pytest.raises(ConfigError) as caught:
    model_of("ssil").export(tmp_path / "out", format="onnx")
  assert "(NotImplementedError: no plugin for primitive 'x'): use" in str(caught.value)
  assert "\n" not in str(caught.value)


def test_pages_have_no_other_loaders():
  fences = re.findall(r"^```python (\w+)$", PAGE, re.MULTILINE)
  assert fences == ["prepare", *export.FORMATS]
