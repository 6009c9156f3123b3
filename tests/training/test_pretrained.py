"""--init_from: the first state starts from given weights, whatever they come from."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from quick import quick_network
from random_models import write_model
from rich.console import Console
from small_runs import run, small_config

import ssil_jax
from ssil_jax.data.images.augment import IMAGENET_NORMALIZATION, Normalization
from ssil_jax.errors import ConfigError, WorkdirError
from ssil_jax.training import pretrained, session, torch_names
from ssil_jax.training.plan import make_plan

SMALL = {"num_classes": 4, "num_states": 2, "num_devices": 1}


def initial_of(workdir, **settings):
  """The network of a run before any training, and the session's origin."""
  config = small_config(workdir, **SMALL, **settings)
  with session.open_session(config, Console(quiet=True), lambda: None) as (opened, run):
    assert not run.results
    return opened.initial


def backbone(variables):
  return torch_names.to_torch(variables, steps=0)


def variables_of(initial):
  return {"params": initial.params, "batch_stats": initial.batch_stats}


def assert_same(found, expected):
  assert found.keys() == expected.keys()
  for name, array in found.items():
    assert array.dtype == expected[name].dtype
    assert np.array_equal(array, expected[name]), name


def test_a_run_starts_from_what_another_one_exported(tmp_path):
  with quick_network():
    run(tmp_path / "old", method="bic", learning_rate=0.05, **SMALL | {"num_classes": 6})
    model = ssil_jax.load(tmp_path / "old")
    model.export(tmp_path / "out", format="safetensors")
    drawn = initial_of(tmp_path / "drawn", method="icarl")
    for number, given in enumerate(("out/model.safetensors", "old")):
      init_from = str(tmp_path / given)
      initial = initial_of(tmp_path / str(number), method="icarl", init_from=init_from)
      found = backbone(variables_of(initial))
      assert_same(found, backbone(model.variables))
      assert not np.array_equal(
        found["conv1.weight"], backbone(variables_of(drawn))["conv1.weight"]
      )
      # The head, of other classes, is drawn as always.
      for name, array in drawn.params["head"].items():
        assert np.array_equal(initial.params["head"][name], array)


def test_the_first_state_trains_from_there(tmp_path):
  settings = {**SMALL, "num_states": 1, "learning_rate": 1e-9, "epochs_first": 1}
  with quick_network():
    run(tmp_path / "old", learning_rate=0.05, **SMALL)
    old = ssil_jax.load(tmp_path / "old")
    run(tmp_path / "new", init_from=str(tmp_path / "old"), **settings)
    new = ssil_jax.load(tmp_path / "new")
  before, after = (backbone(m.variables)["conv1.weight"] for m in (old, new))
  np.testing.assert_allclose(after, before, atol=1e-6)
  assert new.config.init_from == str(tmp_path / "old")


@pytest.fixture(scope="module")
def tensors(tmp_path_factory):
  """Those of a whole ResNet-18 of width 4, for small images."""
  folder = tmp_path_factory.mktemp("model")
  model = ssil_jax.load(write_model(folder / "run", method="ft"))
  model.export(folder / "out", format="safetensors")
  return safetensors.numpy.load_file(folder / "out" / "model.safetensors")


def read(tmp_path, tensors=None, content=None, name="w.safetensors", **settings):
  path = tmp_path / name
  if tensors is not None:
    safetensors.numpy.save_file(tensors, path)
  elif content is not None:
    path.write_bytes(content)
  config = small_config(tmp_path / "run", init_from=str(path), **SMALL, **settings)
  return pretrained.read(make_plan(config))


def refused(tmp_path, *args, **kwargs):
  """The lines of the error, without the flag."""
  with pytest.raises(ConfigError) as caught:
    read(tmp_path, *args, **kwargs)
  first, *rest = str(caught.value).split("\n")
  assert first.startswith(f"--init_from={tmp_path}/")
  return [first.partition("w.safetensors")[2], *rest]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_floats_of_any_size_are_read(dtype, tensors, tmp_path):
  weights = read(
    tmp_path,
    {n: x if x.dtype == np.int64 else x.astype(dtype) for n, x in tensors.items()},
  )
  names = {n for n in tensors if not n.startswith("fc.") and "num_batches" not in n}
  assert weights.tensors.keys() == names
  for name, found in weights.tensors.items():
    assert found.dtype == np.float32
    assert np.array_equal(found, tensors[name].astype(dtype).astype(np.float32))


def test_a_file_without_head_and_counters_fits(tensors, tmp_path):
  bare = {
    n: x for n, x in tensors.items() if n[:3] != "fc." and "num_batches_tracked" not in n
  }
  of_all, of_bare = read(tmp_path, tensors), read(tmp_path, bare)
  assert of_all.digest == of_bare.digest
  bare["bn1.bias"] = bare["bn1.bias"] + np.float32(1e-6)
  assert read(tmp_path, bare).digest != of_all.digest


def test_what_does_not_fit_is_named(tensors, tmp_path):
  changed = {n: x for n, x in tensors.items() if not n.startswith("layer4.1.")}
  changed["layer5.0.conv1.weight"] = np.zeros(3, np.float32)
  changed["bn1.bias"] = np.zeros(7, np.float32)
  first, *kinds = refused(tmp_path, changed)
  assert first == (
    " does not fit the network: give a ResNet-18 with the names of torchvision or timm, or "
    "leave the flag out"
  )
  assert kinds == [
    "missing: layer4.1.bn1.running_mean; layer4.1.bn1.running_var; "
    "layer4.1.bn2.running_mean; layer4.1.bn2.running_var; and 6 more",
    "unexpected: layer5.0.conv1.weight",
    "of another shape: bn1.bias is [7] there, [4] in this run",
  ]


@pytest.mark.parametrize(
  ("shape", "remedy"),
  [
    ((4, 3, 7, 7), "give --image_size=224, for images of 8 pixels have another first"),
    ((64, 3, 3, 3), "give --width=64, or leave"),
    ((64, 3, 7, 7), "give --image_size=224 --width=64, for images of 8 pixels have"),
    ((4, 3, 5, 5), "give a ResNet-18 as torchvision has it, or leave"),
    ((4, 27), "give a ResNet-18 as torchvision has it, or leave"),
  ],
)
def test_another_first_convolution_is_refused_with_what_to_do(
  shape, remedy, tensors, tmp_path
):
  first, kind = refused(tmp_path, {**tensors, "conv1.weight": np.zeros(shape, np.float32)})
  assert first.startswith(f" does not fit the network: {remedy}")
  assert kind == (
    f"of another shape: conv1.weight is {list(shape)} there, [4, 3, 3, 3] in this run"
  )


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("bn1.bias", np.nan, ": bn1.bias has NaN or infinity"),
    ("conv1.weight", np.inf, ": conv1.weight has NaN or infinity"),
    ("bn1.running_var", -0.5, ": bn1.running_var has negative variances"),
  ],
)
def test_numbers_that_no_network_has_are_refused(name, value, message, tensors, tmp_path):
  bad = tensors[name].copy()
  bad.flat[1] = value
  (line,) = refused(tmp_path, {**tensors, name: bad})
  assert line.startswith(message)


def test_other_types_are_refused(tensors, tmp_path):
  (line,) = refused(tmp_path, {**tensors, "bn1.bias": np.zeros(4, np.int8)})
  assert line.startswith(": bn1.bias is of type I8, and none of F32, F16, BF16")


_HEADER = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})


@pytest.mark.parametrize(
  "content",
  [
    b"",
    b"no tensors",
    bytes(range(1, 100)),
    (2**63 - 1).to_bytes(8, "little") + b"{}",
    len(_HEADER).to_bytes(8, "little") + _HEADER.encode(),
    (10**8).to_bytes(8, "little") + b" " * 100,
  ],
)
def test_what_is_no_such_file_is_refused(content, tmp_path):
  (line,) = refused(tmp_path, content=content)
  assert line.startswith(" is no safetensors file (")


def test_a_file_cut_off_at_any_place_is_refused(tensors, tmp_path):
  whole = safetensors.numpy.save(tensors)
  for end in range(0, len(whole), len(whole) // 7):
    (line,) = refused(tmp_path, content=whole[:end])
    assert line.startswith(" is no safetensors file (")


def test_images_are_normalized_as_the_weights_expect(tensors, tmp_path):
  # ImageNet's, unless the file says otherwise.
  weights = read(tmp_path, tensors)
  assert weights.normalization == IMAGENET_NORMALIZATION
  own = Normalization((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
  numbers = {"mean": own.mean, "std": own.std}
  metadata = {name: json.dumps(value) for name, value in numbers.items()}
  read_again = read(tmp_path, content=safetensors.numpy.save(tensors, metadata))
  assert read_again.normalization == own
  assert read_again.digest != weights.digest
  folder = write_model(tmp_path / "w", method="ft", normalization=own)
  assert read(tmp_path, name="w").normalization == own
  model = ssil_jax.load(folder)
  model.export(tmp_path / "out", format="safetensors")
  content = (tmp_path / "out" / "model.safetensors").read_bytes()
  assert read(tmp_path, content=content).normalization == own


@pytest.mark.parametrize(
  "metadata",
  [
    {"mean": "[0, 0, 0]"},
    {"mean": "[0, 0, 0]", "std": "[1, 1, 0]"},
    {"mean": "[0, 0, NaN]", "std": "[1, 1, 1]"},
    {"mean": "[0, 0]", "std": "[1, 1]"},
    {"mean": '"a"', "std": "{}"},
    {"std": "[[[["},
    {"mean": "[" * 100_000, "std": "1"},
  ],
)
def test_metadata_that_mean_nothing_are_refused(metadata, tensors, tmp_path):
  (line,) = refused(tmp_path, content=safetensors.numpy.save(tensors, metadata))
  assert "mean and std" in line


@pytest.mark.parametrize("content", [b"PK\x03\x04....", b"\x80\x02}q\x00."])
def test_a_pickle_is_never_read(content, tmp_path):
  (line,) = refused(tmp_path, content=content)
  assert line.startswith(" is a file of torch.save, a pickle, which may run code")


def test_a_huge_file_is_not_read(tmp_path):
  path = tmp_path / "w.safetensors"
  path.touch()
  with open(path, "r+b") as file:
    file.truncate(1 << 32)  # takes no room
  (line,) = refused(tmp_path)
  assert line.startswith(" has 4294967296 bytes, too many for a ResNet-18")


def test_another_content_is_another_run(tensors, tmp_path):
  def begin(tensors, **settings):
    safetensors.numpy.save_file(tensors, tmp_path / "w.safetensors")
    return run(
      tmp_path / "run", init_from=str(tmp_path / "w.safetensors"), **SMALL, **settings
    )

  with quick_network():
    model = initial_of(tmp_path / "drawn")
    tensors = backbone(variables_of(model))
    first = begin(tensors)
    assert begin(tensors) == first  # done already
    changed = {**tensors, "bn1.bias": tensors["bn1.bias"] + 1}
    with pytest.raises(WorkdirError, match=r"\nweights of --init_from: different$"):
      begin(changed)
    # States of another run are compared as well.
    other = {"init_from": str(tmp_path / "w.safetensors"), "from_workdir": "run"}
    other["from_workdir"] = str(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"\nweights of --init_from: different$"):
      run(tmp_path / "new", **SMALL, **other)
    with pytest.raises(ConfigError, match=r"\n--init_from: '.*' there, '' now"):
      run(tmp_path / "new", **SMALL | {"from_workdir": str(tmp_path / "run")})
    safetensors.numpy.save_file(tensors, tmp_path / "w.safetensors")
    taken = run(tmp_path / "new", **SMALL, **other)
  assert [state["top1"] for state in taken["states"]] == [
    state["top1"] for state in first["states"]
  ]


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_damaged_model_is_refused(damage, tmp_path):
  folder = write_model(tmp_path / "w.safetensors", method="ft")
  if damage == "missing":
    (folder / "networks").rename(tmp_path / "elsewhere")
  else:
    card = json.loads((folder / "model.json").read_text())
    card["states"][-1]["network_crc32"] += 1
    (folder / "model.json").write_text(json.dumps(card))
  with pytest.raises(WorkdirError, match=damage[:7].replace("changed", "damaged")):
    read(tmp_path)
