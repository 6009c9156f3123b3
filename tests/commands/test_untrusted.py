"""Files from elsewhere cannot run code.

What a restore by orbax 0.12 reads, as found in its sources: JSON (`_CHECKPOINT_METADATA`,
`_METADATA`, `_sharding`, `metadata` of the results), whose names of handlers and types are
looked up in registries and never imported; arrays by tensorstore (OCDBT and zarr, in C++);
and, in folders of old versions without `_METADATA`, msgpack (`checkpoint`), whose extension
types are arrays, scalars, complex numbers and tuples. There is no pickle in it.
"""

import ast
import contextlib
import gzip
import io
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import tarfile
import zlib

import archives
import bad_inputs
import msgpack
import numpy as np
import pytest
from folders import ROOT

from ssil_jax.commands import run
from ssil_jax.errors import DataError
from ssil_jax.reports import page

SOURCES = sorted((ROOT / "ssil_jax").rglob("*.py")) + sorted(
  (ROOT / "experiments").glob("*.py")
)

# What runs code that it reads, or writes wherever an archive says.
MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
MODULES |= {"yaml"}
FUNCTIONS = {"eval", "exec", "compile", "__import__"}
METHODS = {"system", "popen", "extractall", "unpack_archive", "import_module"}
ARCHIVES = {"tarfile", "zipfile"}  # whose `extract` writes; others' takes features
# These import what the command line names, and no file does.
NAMED_BY_THE_USER = ("commands/__init__.py", "methods/registry.py", "methods/source.py")


def dangers(source):
  """What in Python source could run what a file holds."""
  nodes, imported = list(ast.walk(ast.parse(source))), set()
  for node in nodes:
    if isinstance(node, ast.Import | ast.ImportFrom):
      names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
      imported |= {name.split(".")[0] for name in names}
  yield from MODULES & imported
  methods = METHODS | ({"extract"} if ARCHIVES & imported else set())
  for node in nodes:
    if not isinstance(node, ast.Call):
      continue
    called = node.func
    if isinstance(called, ast.Name) and called.id in FUNCTIONS:
      yield called.id
    if isinstance(called, ast.Attribute) and called.attr in methods:
      yield called.attr
    for keyword in node.keywords:
      value = getattr(keyword.value, "value", None)
      if keyword.arg in ("allow_pickle", "shell") and value is not False:
        yield keyword.arg


def test_nothing_is_run_that_was_read():
  for path in SOURCES:
    known = {"import_module"} if str(path).endswith(NAMED_BY_THE_USER) else set()
    assert set(dangers(path.read_text(encoding="utf-8"))) <= known, path


def test_dangers_are_found():
  for source in (
    "import pickle",
    "from pickle import loads",
    "import yaml.loader",
    "eval(text)",
    "exec(text)",
    "np.load(path, allow_pickle=True)",
    "np.load(path, allow_pickle=flag)",
    "tar.extractall(folder)",
    "import tarfile\ntar.extract(name)",
    "subprocess.run(line, shell=True)",
    "os.system(line)",
    "importlib.import_module(name)",
  ):
    assert list(dangers(source)), source


class Bomb:
  """Makes a folder when it is unpickled."""

  def __init__(self, place):
    self._place = place

  def __reduce__(self):
    return pathlib.Path.mkdir, (self._place,)


@pytest.fixture
def place(tmp_path):
  """Where a bomb makes its folder, if it ever goes off."""
  return tmp_path / "exploded"


def test_the_bomb_goes_off_in_pickle(place):
  pickle.loads(pickle.dumps(Bomb(place)))
  assert place.is_dir()


def every_file_is_a_pickle(checkpoint, bomb):
  for path in checkpoint.rglob("*"):
    if path.is_file():
      path.write_bytes(bomb)


def metadata_names_functions(checkpoint, bomb):
  names = ("os.system", "builtins.eval", "pathlib.Path.mkdir", "pickle.loads")
  for path in [*checkpoint.rglob("_METADATA"), *checkpoint.rglob("_CHECKPOINT_METADATA")]:
    text = path.read_text()
    for number, old in enumerate(("np.ndarray", "jax.Array", "scalar")):
      text = text.replace(f'"{old}"', f'"{names[number]}"')
    value = json.loads(text)
    if "item_handlers" in value:
      value["item_handlers"] = dict.fromkeys(["arrays", "train_state", "default"], names[3])
    value |= {"py/reduce": [names[2], [bomb.hex()]], "custom_metadata": {"!!": names[1]}}
    path.write_text(json.dumps(value))


def an_old_format(checkpoint, bomb):
  for path in list(checkpoint.rglob("_METADATA")):
    path.unlink()
    extension = msgpack.ExtType(1, msgpack.packb((b"", b"object", bomb)))
    tree = {"params": extension, "__reduce__": bomb, "types": msgpack.ExtType(99, bomb)}
    (path.parent / "checkpoint").write_bytes(msgpack.packb(tree))


def more_files(checkpoint, bomb):
  names = ("checkpoint", "_sharding", "state.pkl", "metrics/metrics", "array.npy")
  names += ("array_metadatas/process_0", "descriptor/descriptor.pbtxt")
  for folder in [checkpoint, *filter(pathlib.Path.is_dir, checkpoint.iterdir())]:
    for path in (folder / name for name in names):
      path.parent.mkdir(exist_ok=True)
      path.write_bytes(bomb)


def contents(folder):
  return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def outcome(capfd, command):
  code = run.main(command.split())
  return code, capfd.readouterr().err


@pytest.fixture
def workdir(tmp_path):
  """A finished run in the current folder."""
  (tmp_path / "small.cfg").write_text(bad_inputs.SMALL)
  return shutil.copytree(bad_inputs.finished_run(), tmp_path / "run")


@pytest.mark.parametrize(
  "change", [every_file_is_a_pickle, metadata_names_functions, an_old_format, more_files]
)
@pytest.mark.parametrize(
  ("part", "command"),
  [("checkpoints", bad_inputs.SAME), ("networks", bad_inputs.BORROWING)],  # of another run
)
def test_what_orbax_reads_runs_no_code(part, command, change, workdir, place, capfd):
  for checkpoint in (workdir / part).iterdir():
    change(checkpoint, pickle.dumps(Bomb(place)))
  before = contents(workdir / part)
  code, errors = outcome(capfd, command)
  assert not place.exists()
  assert code in (0, 2)
  if code:
    assert f"error: {workdir / part}" in errors or "no checkpoint in" in errors
  if code or part == "networks":
    assert contents(workdir / part) == before


def test_a_damaged_network_prints_one_line(workdir):
  # Pytest would keep what tensorstore's threads print to itself.
  network = workdir / "networks" / "1"
  for path in network.rglob("manifest.ocdbt"):
    path.write_bytes(b"x")
  script, *flags = bad_inputs.BORROWING.split()
  done = subprocess.run(
    [sys.executable, ROOT / "experiments" / script, *flags],
    env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert line.startswith(f"error: {network} is damaged")


def test_a_report_does_not_follow_a_link_in_a_work_directory(workdir, tmp_path):
  precious = tmp_path / "precious"
  precious.write_text("mine")
  links = [workdir / "report.html", workdir / "figures" / "accuracy.png"]
  for link in links:
    link.unlink()
    link.symlink_to(precious)
  page.write_report([workdir], workdir / "report.html")
  assert precious.read_text() == "mine"
  assert not any(link.is_symlink() for link in links)


# Archives -------------------------------------------------------------------------------

# Names, types and targets of members of a tar.
HOSTILE = {
  "parent folders": [("../../../outside/{image}", tarfile.REGTYPE, "")],
  "folders and parents": [("a/../../../outside/{image}", tarfile.REGTYPE, "")],
  "absolute": [("{root}/outside/{image}", tarfile.REGTYPE, "")],
  "hidden": [("../../outside/.{image}", tarfile.REGTYPE, "")],
  "link": [
    ("link", tarfile.SYMTYPE, "{root}/outside"),
    ("link/{image}", tarfile.REGTYPE, ""),
  ],
  "hard link": [("{image}", tarfile.LNKTYPE, "{root}/outside/victim")],
  "device": [("{image}", tarfile.CHRTYPE, "")],
  "pipe": [("{image}", tarfile.FIFOTYPE, "")],
}
EXTENDED = {  # archive -> data set, and the name of an image in it
  "ILSVRC2012_img_train.tar": ("imagenet", "n01440764.tar"),
  "images_000.tar": ("landmarks_v2/1k", "0123456789abcdef.jpg"),
  "cifar-100-binary.tar.gz": ("cifar100", "cifar-100-binary/train.bin"),
}


@pytest.mark.parametrize("evil", HOSTILE)
@pytest.mark.parametrize("archive", EXTENDED)
def test_nothing_is_written_outside_whatever_an_archive_holds(tmp_path, archive, evil):
  dataset, image_name = EXTENDED[archive]
  folder, target = tmp_path / "archives", tmp_path / "a" / "b" / "data"
  (tmp_path / "outside").mkdir()
  (tmp_path / "outside" / "victim").write_text("as it was")
  archives.imagenet(folder)
  archives.landmarks(folder, {1: 60, 2: 60})
  archives.cifar(folder)
  packed = archive.endswith(".gz")
  content = (folder / archive).read_bytes()
  file = io.BytesIO(gzip.decompress(content) if packed else content)
  with tarfile.open(fileobj=file, mode="a") as tar:
    for name, kind, link in HOSTILE[evil]:
      info = tarfile.TarInfo(name.format(image=image_name, root=tmp_path))
      info.type, info.linkname = kind, link.format(root=tmp_path)
      data = archives.image(7) if kind == tarfile.REGTYPE else b""
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))
  content = file.getvalue()
  (folder / archive).write_bytes(gzip.compress(content) if packed else content)
  before = contents(tmp_path)
  with contextlib.suppress(DataError):
    archives.prepare(dataset, folder, target)
  after = contents(tmp_path)
  assert {path: after[path] for path in after if target not in path.parents} == before
  assert all(path.is_dir() or path.is_file() for path in target.rglob("*"))
  assert not any(path.is_symlink() for path in target.rglob("*"))


# Prepared data sets ---------------------------------------------------------------------


@pytest.fixture
def prepared(tmp_path):
  """The folder of a prepared data set of 7 training and 3 test images."""
  archives.prepare("cifar100", archives.cifar(tmp_path / "archives"), tmp_path / "data")
  return tmp_path / "data" / "cifar100" / "1.0.0"


def errors_on_prepared(capfd):
  command = "run.py --dataset=cifar100 --data_dir=data --num_states=3 --batch_size_new=9999"
  code, errors = outcome(capfd, command)
  assert code == 2
  assert errors.count("\n") == 1
  return errors


def test_a_prepared_data_set_imports_no_module(
  prepared, place, tmp_path, monkeypatch, capfd
):
  # TFDS imports the module of a feature that it does not know.
  (tmp_path / "evil.py").write_text(f"import pathlib\npathlib.Path({str(place)!r}).mkdir()")
  monkeypatch.syspath_prepend(str(tmp_path))
  path = prepared / "features.json"
  known = '"tensorflow_datasets.core.features.image_feature.Image"'
  assert known in path.read_text()
  path.write_text(path.read_text().replace(known, '"evil.Image"'))
  assert "features.json" in errors_on_prepared(capfd)
  assert not place.exists()


def test_labels_are_no_pickle(prepared, place, capfd):
  file = io.BytesIO()
  np.save(file, np.array([Bomb(place)] * 10, object), allow_pickle=True)
  (prepared / "labels.npy").write_bytes(file.getvalue())
  origin = json.loads((prepared / "labels.json").read_text())
  origin["crc32"] = zlib.crc32(file.getvalue())
  (prepared / "labels.json").write_text(json.dumps(origin))
  assert "labels.npy" in errors_on_prepared(capfd)
  assert not place.exists()
