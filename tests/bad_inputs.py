"""What the rows of docs/bad_inputs.md need: files, and what is open meanwhile.

That page holds the commands, messages and exit codes; `test_bad_inputs.py` runs them all. A
new bad input is a row there, and an entry of `ARRANGED` if it needs files.
"""

import contextlib
import fcntl
import functools
import json
import os
import pathlib
import re
import shutil
import socket
import struct
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import archives
import numpy as np
import pytest
import safetensors.numpy
from folders import ROOT, encode, folder_of, noise, save
from written_runs import RESULTS

from ssil_jax.commands import run

_LONG = "n" * 300  # longer than a name may be
_PLACEHOLDERS = {
  "LONG_PATH": _LONG[:250] + "/x" * 1850,
  "LONG_NUMBER": "9" * 400,
  "LONG": _LONG,
}


class Bad(NamedTuple):
  """A row: the command runs in a folder of its own, FOLDER; … stands for any text."""

  kind: str
  what: str
  command: str
  exit_code: int
  message: str  # the lines on standard error


def rows() -> list[Bad]:
  """Returns all rows of the page."""
  found, kind = [], ""
  for line in (ROOT / "docs" / "bad_inputs.md").read_text(encoding="utf-8").splitlines():
    if line.startswith("## "):
      kind = line.removeprefix("## ")
    cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)]
    if len(cells) == 6 and cells[3].isdecimal():
      command, message = (
        "\n".join(_code(part) for part in cells[n].split("<br>")) for n in (2, 4)
      )
      found.append(Bad(kind, cells[1], command, int(cells[3]), message))
  return found


def _code(text: str) -> str:
  """What is between the ticks, with the placeholders for long texts filled in."""
  ticks = len(text) - len(text.lstrip("`"))
  assert ticks
  assert text.endswith("`" * ticks)
  names = "|".join(_PLACEHOLDERS)
  return re.sub(rf"\b({names})\b", lambda m: _PLACEHOLDERS[m[0]], text[ticks:-ticks])


# The flags of a run of seconds, in small.cfg beside the files of a row.
SMALL = """\
--num_classes=4
--num_states=2
--memory_size=8
--batch_size_new=32
--batch_size_memory=8
--epochs_first=1
--epochs=1
--width=4
--log_every=2
--num_devices=1
"""
SAME = "run.py --flagfile=small.cfg --method=ft --workdir=run"
BORROWING = "run.py --flagfile=small.cfg --workdir=new --from_workdir=run"
STREAMED = (
  "run.py --flagfile=small.cfg --dataset=image_folder --data_dir=images --method=ft "
  "--image_size=72"
)

Arrange = Callable[[pathlib.Path], object]


_TEMPORARY = tempfile.TemporaryDirectory()


@functools.cache
def finished_run(command: str = SAME) -> pathlib.Path:
  """The work directory of a run of small.cfg, by FT; not to be changed."""
  folder = pathlib.Path(tempfile.mkdtemp(dir=_TEMPORARY.name))
  folder_of(folder / "images", ("ape", "bat", "cat", "dog"), each=16)
  (folder / "small.cfg").write_text(SMALL)
  with contextlib.chdir(folder):
    assert run.main(command.split()) == 0
  return folder / "run"


def text(name: str, content: str | bytes) -> Arrange:
  """A file."""

  def arrange(folder):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)

  return arrange


def both(first: Arrange, second: Arrange) -> Arrange:
  """One after the other."""
  return lambda folder: (first(folder), second(folder))


def images(change: Arrange) -> Arrange:
  """The image folder `images` of four classes, changed."""
  classes = ("ape", "bat", "cat", "dog")
  return lambda folder: change(folder_of(folder / "images", classes))


def run_with(change: Arrange) -> Arrange:
  """The finished run `run`, changed."""
  return lambda folder: change(shutil.copytree(finished_run(), folder / "run"))


def replaced(name: str, old: str, new: str) -> Arrange:
  """The finished run `run` with a part of a file replaced."""

  def change(workdir):
    content = (workdir / name).read_text()
    assert old in content
    (workdir / name).write_text(content.replace(old, new, 1))

  return run_with(change)


def link(target: str) -> Arrange:
  """A link `link` to something."""
  return lambda folder: (folder / "link").symlink_to(target)


def plain(change: Arrange) -> Arrange:
  """The image folder `images`, changed, as DIR/CLASS/*."""

  def flatten(root):
    shutil.rmtree(root / "test")
    for path in (root / "train").iterdir():
      path.rename(root / path.name)
    (root / "train").rmdir()
    change(root)

  return images(flatten)


def keep_one(folder: pathlib.Path) -> None:
  """Takes all files out but one."""
  for path in sorted(folder.iterdir())[1:]:
    path.unlink()


def emptied(folder: pathlib.Path) -> None:
  """Takes all files out."""
  for path in folder.iterdir():
    path.unlink()


def halved(path: pathlib.Path) -> None:
  """Cuts a file off in the middle."""
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def huge(path: pathlib.Path) -> None:
  """Makes the header of a PNG promise 60,000 x 60,000 pixels."""
  data = bytearray(path.read_bytes())
  struct.pack_into(">II", data, 16, 60_000, 60_000)
  struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
  path.write_bytes(data)


def linked(folder: pathlib.Path) -> None:
  """Makes the validation archive one with a link out of the folder."""
  with tarfile.open(folder / "ILSVRC2012_img_val.tar", mode="w") as tar:
    info = tarfile.TarInfo("../../evil")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    tar.addfile(info)


def damaged(checkpoints: pathlib.Path) -> None:
  """Makes the descriptions of all arrays unreadable."""
  for path in checkpoints.rglob("_METADATA"):
    path.write_text("{")


def on_other_data(workdir: pathlib.Path) -> None:
  """Makes a run one on other data, in its config.json."""
  config = json.loads((workdir / "config.json").read_text())
  config["data"]["training images"] = 1
  (workdir / "config.json").write_text(json.dumps(config))


def photos_replaced(folder: pathlib.Path) -> None:
  """Images that are streamed and a run on them, with another photo in place of each."""
  streamed = finished_run(f"{STREAMED} --workdir=run").parent
  shutil.copytree(streamed, folder, dirs_exist_ok=True)
  for path in (folder / "images" / "train").rglob("*.png"):
    path.write_bytes(encode(noise(9, 9), "PNG"))


def shrunk(root: pathlib.Path) -> None:
  """Makes all images 3 x 2 pixels large."""
  for path in root.rglob("*.png"):
    path.write_bytes(encode(noise(2, 3), "PNG"))


def without_images(folder: pathlib.Path) -> None:
  """A prepared CIFAR-100 of three classes that claims a fourth, fine_zz."""
  archives.cifar(folder / "archives")
  archives.prepare("cifar100", folder / "archives", folder / "data")
  (found,) = folder.glob("data/cifar100/*")
  features = (found / "features.json").read_text()
  assert features.count('"numClasses": "3"') == 1
  (found / "features.json").write_text(features.replace('"3"', '"4"'))
  with open(found / "label.labels.txt", "a") as file:
    file.write("fine_zz\n")


def mine(settings: str = "", changes: str = "", before: str = "") -> Arrange:
  """The module mine.py, whose method MINE is SS-IL with settings of its own."""
  lines = (
    before,
    "import dataclasses",
    "from ssil_jax import setting",
    "from ssil_jax.methods.ssil import SSIL",
    settings or f"{DATACLASS}  gamma: float = setting(2.0, 'exponent', at_least=0)",
    f"MINE = SSIL._replace(title='mine', settings=Settings, {changes})",
  )
  return text("mine.py", "\n".join(filter(None, lines)))


DATACLASS = "@dataclasses.dataclass(frozen=True, kw_only=True)\nclass Settings:\n"


def edited(folder: pathlib.Path) -> None:
  """A run of mine.py, whose method is then another one."""
  mine()(folder)
  command = "run.py --flagfile=small.cfg --method=mine:MINE --workdir=run"
  assert run.main(command.split()) == 0
  del sys.modules["mine"]
  mine(changes="predict=SSIL.predict")(folder)


def keeping_one(*classes: str) -> Arrange:
  """The image folder `images` with one training image of some of its classes."""

  def change(root):
    for name in classes:
      (root / "train" / name / "1.png").unlink()

  return images(change)


@contextlib.contextmanager
def in_use(folder: pathlib.Path) -> Iterator[None]:
  """Another process has the lock of `run`."""
  with open(folder / "run" / "lock") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


@contextlib.contextmanager
def port_in_use(folder: pathlib.Path) -> Iterator[None]:
  """Another program listens at an address of this machine that nobody else uses."""
  with socket.create_server(("127.9.8.7", 8000)):
    yield


@contextlib.contextmanager
def served_already(folder: pathlib.Path) -> Iterator[None]:
  """Another server has the lock of `run`."""
  path = folder / "run" / "uploads" / "lock"
  path.parent.mkdir()
  path.write_text("process 7 on here\n")
  with open(path) as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def without(package: str):
  """A library is not installed."""

  @contextlib.contextmanager
  def meanwhile(folder: pathlib.Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
      patch.setitem(sys.modules, package, None)
      yield

  return meanwhile


@contextlib.contextmanager
def full_disk(folder: pathlib.Path) -> Iterator[None]:
  """All disks say that they have 1,000 bytes left."""
  with pytest.MonkeyPatch.context() as patch:
    usage = shutil.disk_usage(folder)._replace(free=1000)
    patch.setattr(shutil, "disk_usage", lambda path: usage)
    yield


FINISHED = run_with(lambda workdir: None)


def broken(name: str, content: str | bytes) -> Arrange:
  """The finished run `run` with another file in place of one."""
  return both(FINISHED, text(f"run/{name}", content))


def cifar(content: str) -> Arrange:
  return text("cifar-100-binary.tar.gz", content)


_FLAGS = {
  "what it was tuned on without what was chosen": text(
    "t.json",
    '{"measure": "average.top1", "validation_fraction": 0.1, "grid": {}, "scores": []}',
  ),
  "a binary flag file": text("photo.cfg", b"\x89PNG\r\n\xff"),
  "two flags on a line of a flag file": text(
    "a.cfg", "--flagfile=small.cfg\n--workdir=o/two --seed=3\n"
  ),
  "a comment behind a flag in a flag file": text(
    "a.cfg", "--workdir=o/two  # the second\n"
  ),
  "half a pair of quotes in a flag file": text("a.cfg", '--workdir="o/two\n'),
  "a flag file that includes itself": text("a.cfg", "--seed=1\n--flagfile=a.cfg\n"),
  "a line of a flag file that is not a flag": text("a.cfg", "# mine\nseed: 1\n"),
  "a control character in a flag file": text("a.cfg", "--workdir=a\x1b[31mb\n"),
}
_DATA = {
  "an empty folder": lambda folder: (folder / "images").mkdir(),
  "no test images": images(lambda root: shutil.rmtree(root / "test")),
  "only a part for testing": images(lambda root: shutil.rmtree(root / "train")),
  "validation images that nobody may look at": images(lambda root: None),
  "a class of one image, to train on and to validate on": images(
    lambda root: keep_one(root / "train" / "cat")
  ),
  "a plain folder, a class of one image": plain(lambda root: keep_one(root / "cat")),
  "a plain folder, unverified": plain(lambda root: None),
  "no file of classes": plain(lambda root: None),
  "a class that does not exist": both(
    plain(lambda root: None), text("names.txt", "dog\nkat")
  ),
  "a pipe for a file of classes": both(
    plain(lambda root: None), lambda folder: os.mkfifo(folder / "pipe")
  ),
  "an order that lacks a class": both(plain(lambda root: None), text("names.txt", "cat")),
  "a class without a test folder": images(lambda root: shutil.rmtree(root / "test/dog")),
  "a class without images": images(lambda root: emptied(root / "train/cat")),
  "text in a file named .png": images(text("train/cat/1.png", "cat")),
  "an empty image file": images(text("test/dog/1.png", "")),
  "half an image file": images(lambda root: halved(root / "train/dog/1.png")),
  "a JPEG cut off": images(text("train/dog/1.jpg", encode(noise(8, 8))[:-40])),
  "a header of a billion pixels": images(lambda root: huge(root / "train/dog/1.png")),
  "a control character in a name": images(text("train/cat/\x1b[31m.png", "cat")),
  "an empty folder of images without labels": lambda folder: (folder / "others").mkdir(),
  "text among images without labels": both(
    lambda folder: save(folder / "others/1.png", noise(8, 8)), text("others/2.png", "cat")
  ),
  "no image among those without labels": text("others/2.png", "cat"),
  "a data set's folder with a damaged description": text(
    "cifar100/1.0.0/dataset_info.json", "{"
  ),
  "a link to nothing": link("nothing"),
  "a link to itself": link("link"),
  "images that are too small for the network": images(shrunk),
  "a class of a prepared data set without training images": without_images,
  "a class with one image, always among the last of an epoch": keeping_one("cat"),
  "new classes with one image each, for BiC": keeping_one("ape", "bat"),
  "old classes with one image each, for BiC": keeping_one("cat", "dog"),
}
_ARCHIVES = {
  "an archive that is not a tar file": both(
    archives.imagenet, text("ILSVRC2012_img_train.tar", "not a tar")
  ),
  "a tar cut off": both(
    archives.imagenet, lambda folder: halved(folder / "ILSVRC2012_img_val.tar")
  ),
  "fewer classes than the official archive": archives.imagenet,
  "a link in an archive": both(archives.imagenet, linked),
  "an archive that is not a .gz file": cifar("no gz"),
  "an empty archive": cifar(""),
  "an archive with a file missing": lambda folder: archives.cifar(folder, train=None),
  "a table without its columns": text("train.csv", "a,b\n1,2\n"),
  "a folder already there": text("data/cifar100/1.0.0/x.txt", "mine"),
  "archives in a link to nothing": link("nothing"),
  "a data folder that is a link to itself": link("link"),
}
_WORKDIR = {
  "another configuration": FINISHED,
  "other data": run_with(on_other_data),
  "photos replaced under the same names": photos_replaced,
  "a run, and --resume=never": FINISHED,
  "a damaged config.json": broken("config.json", "{"),
  "a config.json that is a list": broken("config.json", "[]"),
  "a binary config.json": broken("config.json", b"\xff\xfe\0"),
  "no config.json": run_with(lambda workdir: (workdir / "config.json").unlink()),
  "a config.json nested too deep": broken("config.json", "[" * 100_000),
  "a link to itself": link("link"),
  "a damaged line of metrics.jsonl": broken("metrics.jsonl", "{\n"),
  "a line of metrics.jsonl whose step is not a number": broken(
    "metrics.jsonl", '{"step": "x"}\n'
  ),
  "no checkpoint that can be read": run_with(lambda w: damaged(w / "checkpoints")),
  "results, and no checkpoints": run_with(lambda w: shutil.rmtree(w / "checkpoints")),
  "one that another run uses": broken("lock", "process 123 on elsewhere\n"),
  "a link to where nothing can be made": link("/dev/null/run"),
}
_MINE = {
  "the name of a file": mine(),
  "a syntax error": text("mine.py", "\nif True\n"),
  "a module that imports another one that is not there": text("mine.py", "import mi"),
  "an error of several lines when it is imported": text(
    "mine.py", "raise ValueError('one\\ntwo')"
  ),
  "a module that ends the process": text("mine.py", "import sys\nsys.exit(0)"),
  "no such name in it": mine(),
  "a name that is not a method": mine(),
  "a setting with the name of a shared one": mine(
    f"{DATACLASS}  epochs: int = setting(2, 'mine')"
  ),
  "a setting with the name of another method's, of another type": mine(
    f"{DATACLASS}  lucir_lambda: int = setting(2, 'mine')"
  ),
  "settings that are not a dataclass": mine("class Settings:\n  gamma = 2.0"),
  "a setting that is not declared": mine(f"{DATACLASS}  gamma: float = 2.0"),
  "a setting whose type is a text": mine(before="from __future__ import annotations"),
  "a setting whose default is of another type": mine(
    f"{DATACLASS}  gamma: float = setting('2', 'mine')"
  ),
  "a default of a setting that does not exist": mine(changes="defaults={'epoch': 3}"),
  "a default of another type than its setting": mine(changes="defaults={'epochs': '20'}"),
  "a value out of range": mine(),
  "text for a number": mine(),
  "a setting that does not exist": mine(),
  "an unknown one in a sweep": mine(),
  "an edited method": edited,
}
_COMPARE = {
  "a run that has finished no state": text(
    "run/results.json", json.dumps(dict(RESULTS, states=[]))
  ),
  "a damaged results.json": text("run/results.json", '{"dataset": "digits",'),
  "a binary results.json": text("run/results.json", b"\xff\xfe"),
  "results nested too deep": text("run/results.json", "[" * 100_000),
  "results without an accuracy": replaced("results.json", '"top1"', '"top"'),
  "an accuracy of 4900 %": replaced("results.json", '"top1": 0.', '"top1": 49.'),
  "a number that JSON does not have": replaced(
    "results.json", '"top5": 1.0', '"top5": NaN'
  ),
  "states in another order": replaced("results.json", '"state": 1,', '"state": 2,'),
  "a damaged line of metrics.jsonl": replaced("metrics.jsonl", '"step": 4', '"step" 4'),
  "a damaged schedule.json": replaced("schedule.json", "[", ""),
  "a method in question that no run has": FINISHED,
  "no run that can be read": text("run/results.json", "{"),
  "a page that cannot be written": FINISHED,
  "a page that is a folder": run_with(lambda w: (w.parent / "page.html").mkdir()),
  "a run in a link to itself": link("link"),
  "a page whose name is too long": FINISHED,
  "a page in a link to nothing": both(FINISHED, link("nothing")),
}
_REUSE = {
  "the run itself": FINISHED,
  "a run that was trained differently": FINISHED,
  "a run on other data": run_with(on_other_data),
  "a run on photos that were replaced since": photos_replaced,
  "a run by an earlier version": replaced("config.json", '"data": ', '"images": '),
  "a damaged config.json": broken("config.json", "{"),
  "damaged results": replaced("results.json", '"top1": 0.', '"top1": 49.'),
  "a damaged line of metrics.jsonl": replaced("metrics.jsonl", '"loss"', '"lost"'),
  "no networks": run_with(lambda workdir: shutil.rmtree(workdir / "networks")),
  "momentum that cannot be taken": FINISHED,
  "a method that is unknown here": replaced(
    "config.json", '"method": "ft"', '"method": ["x"]'
  ),
  "a damaged network": run_with(lambda workdir: damaged(workdir / "networks")),
  "a link to nothing": link("nothing"),
  "a link to itself": link("link"),
}
_SERVE: dict[str, Arrange] = {
  "a folder that is not a work directory": text("other/notes", "mine"),
  "a damaged card": replaced("model.json", "{", "["),
  "a model of the future": replaced("model.json", '"format": 1', '"format": 99'),
  "a port that is in use": run_with(lambda workdir: None),
  "an address of another machine": run_with(lambda workdir: None),
  "a model that is served already": run_with(lambda workdir: None),
  "a work directory that cannot be written": run_with(
    lambda workdir: (workdir / "uploads").touch()
  ),
}
_MODELS = {
  "a folder that is not a run": lambda folder: folder_of(folder / "images"),
  "a run without a model": run_with(lambda workdir: (workdir / "model.json").unlink()),
  "a state that does not exist": both(FINISHED, text("a.png", encode(noise(8, 8), "PNG"))),
  "no such photo": FINISHED,
  "a folder without photos": both(FINISHED, text("images/notes.txt", "none")),
  "files that are not photos": both(
    both(FINISHED, text("images/a.png", "none")),
    both(text("images/b.jpg", ""), text("images/c.jpg", encode(noise(8, 8))[:-40])),
  ),
  "a photo of a billion pixels": both(
    both(FINISHED, text("a.png", encode(noise(8, 8), "PNG"))),
    lambda folder: huge(folder / "a.png"),
  ),
  "a pipe for a photo": both(FINISHED, lambda folder: os.mkfifo(folder / "a.png")),
  "a damaged card": replaced("model.json", '"class_names": [', '"class_names": '),
  "a card without the method": replaced("model.json", '"method": "ft"', '"by": "ft"'),
  "a card without a mean": replaced("model.json", '"mean": [', '"means": ['),
  "a card whose class names differ": run_with(
    lambda workdir: (workdir / "model.json").write_text(
      re.sub(
        r'("class_names": \[\s*)".*?"',
        r'\1"another"',
        (workdir / "model.json").read_text(),
      )
    )
  ),
  "a card of a later version": replaced("model.json", '"format": 1', '"format": 9'),
  "a card whose states do not fit": replaced(
    "model.json", '"num_seen": 4', '"num_seen": 3'
  ),
  "a setting that is out of range": run_with(
    lambda workdir: (workdir / "model.json").write_text(
      (workdir / "model.json").read_text().replace('"width": 4', '"width": 0')
    )
  ),
  "a method that is unknown here": run_with(
    lambda workdir: (workdir / "model.json").write_text(
      (workdir / "model.json").read_text().replace('"method": "ft"', '"method": "svm"')
    )
  ),
  "a network that is gone": run_with(lambda workdir: shutil.rmtree(workdir / "networks/2")),
  "a network of another state": run_with(
    lambda workdir: shutil.copytree(
      workdir / "networks/1", workdir / "networks/2", dirs_exist_ok=True
    )
  ),
  "a damaged network": run_with(lambda workdir: damaged(workdir / "networks")),
  "damaged statistics": broken("model/2/statistics.npz", "none"),
  "statistics of another model": run_with(
    lambda w: np.savez(w / "model/2/statistics.npz", means=np.zeros((4, 7)))
  ),
  "no statistics": run_with(lambda w: (w / "model/2/statistics.npz").unlink()),
  "a method of the package by a wrong name": FINISHED,
  "a link to itself": link("link"),
}


def _photos_of(*classes: str, change: Arrange = lambda folder: None) -> Arrange:
  """The finished run, and `images` of new classes, changed."""

  def arrange(folder):
    FINISHED(folder)
    change(folder_of(folder / "images", classes))

  return arrange


def _plain_with_one(images: pathlib.Path) -> None:
  """Makes it a plain folder, in which a class has one photo."""
  shutil.rmtree(images / "test")
  for name in ("ape", "cat"):
    os.rename(images / "train" / name, images / name)
  (images / "cat" / "1.png").unlink()
  shutil.rmtree(images / "train")


_NEW = _photos_of("ape", "bat", "cat", "dog")
_LEARNING = {
  "no such folder of photos": FINISHED,
  "a folder that is not a run": lambda folder: folder_of(folder / "images"),
  "a run that is not complete": both(
    replaced("model.json", '"planned_states": 2', '"planned_states": 3'),
    lambda folder: folder_of(folder / "images"),
  ),
  "a class that is known": _photos_of("8", "ape"),
  "known classes alone": _photos_of("8", "2"),
  "a class of one photo": _photos_of("ape", "cat", change=_plain_with_one),
  "a file that is not a photo": _photos_of(
    "ape", "cat", change=lambda images: (images / "train/ape/0.png").write_text("none")
  ),
  "another network": _NEW,
  "a share to validate on": _NEW,
  "a memory that is too small": _NEW,
  "a negative learning rate": _NEW,
  "one that another command uses": both(
    _NEW, text("run/lock", "process 123 on elsewhere\n")
  ),
  "another folder, half learnt": both(
    _NEW,
    text("run/learning/request.json", '{"request": "", "asked": "--data_dir=/photos"}'),
  ),
  "damaged exemplars": both(_NEW, text("run/model/2/exemplars.zip", "none")),
  "a run after it has learnt more": broken("model/3/state.json", "{}"),
}


def other_network(folder):
  """Tensors of which one has a known name."""
  tensors = {"conv1.weight": np.zeros((64, 3, 7, 7), np.float32), "embeddings": np.eye(2)}
  arrays = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
  safetensors.numpy.save_file(arrays, folder / "w.safetensors")


_WEIGHTS: dict[str, Arrange] = {
  "a checkpoint of torch.save": text("w.pth", b"PK\3\4"),
  "weights of another network": other_network,
  "a folder that is not a run": images(lambda root: None),
  "the run itself": run_with(lambda workdir: None),
  "a wider network of another run": run_with(lambda workdir: None),
  "a damaged model": run_with(lambda workdir: shutil.rmtree(workdir / "networks" / "2")),
  "a run below a backslash": lambda folder: (folder / "a\\b").mkdir(),
}
_EXPORTS = (
  "a state that the model does not have",
  "an output that has something in it",
  "an output that is a file",
  "an output below a file",
  "an output whose name is too long",
)
ARRANGED: dict[str, dict[str, Arrange]] = {
  "Models": _MODELS,
  "Learning": _LEARNING,
  "Flags and flag files": _FLAGS,
  "Data folders": _DATA,
  "Archives": _ARCHIVES,
  "Work directories": _WORKDIR,
  "Methods of one's own": _MINE,
  "Runs to compare": _COMPARE,
  "Sweeps": {"an output that is a link to itself": link("link")},
  "States of other runs": _REUSE,
  "Pretrained weights": _WEIGHTS,
  "Exports": {what: run_with(lambda workdir: None) for what in _EXPORTS},
  "Serving": _SERVE,
}
# What is open while the command runs.
MEANWHILE = {
  "one that another run uses": in_use,
  "one that another command uses": in_use,
  "a full disk": full_disk,
  "a port that is in use": port_in_use,
  "a model that is served already": served_already,
  "without the extra [serve]": without("uvicorn"),
  "without the extra [wandb]": without("wandb"),
}
