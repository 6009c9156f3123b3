"""Makes the files that rows of docs/bad_inputs.md need, and what is open meanwhile."""

import contextlib
import fcntl
import functools
import io
import json
import pathlib
import shutil
import struct
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator

import archives
import pytest
from folders import encode, folder_of, noise

from ssil_jax.commands import run

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


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory:
  return tempfile.TemporaryDirectory()


@functools.cache
def finished_run() -> pathlib.Path:
  """The work directory of a run of small.cfg by FT; not to be changed."""
  folder = pathlib.Path(_temporary().name)
  (folder / "small.cfg").write_text(SMALL)
  with contextlib.chdir(folder):
    assert run.main(SAME.split()) == 0
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
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode="w") as tar:
    info = tarfile.TarInfo("../../evil")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    tar.addfile(info)
  (folder / "ILSVRC2012_img_val.tar").write_bytes(file.getvalue())


def damaged(checkpoints: pathlib.Path) -> None:
  """Makes the descriptions of all arrays unreadable."""
  for path in checkpoints.rglob("_METADATA"):
    path.write_text("{")


def on_other_data(workdir: pathlib.Path) -> None:
  """Makes a run one on other data, in its config.json."""
  config = json.loads((workdir / "config.json").read_text())
  config["data"]["training images"] = 1
  (workdir / "config.json").write_text(json.dumps(config))


@functools.cache
def streamed_run() -> pathlib.Path:
  """Returns a folder with `images` that are streamed, and `run`, a run on them."""
  folder = pathlib.Path(_temporary().name) / "streamed"
  folder_of(folder / "images", ("ape", "bat", "cat", "dog"), each=16)
  (folder / "small.cfg").write_text(SMALL)
  with contextlib.chdir(folder):
    assert run.main([*STREAMED.split(), "--workdir=run"]) == 0
  return folder


def photos_replaced(folder: pathlib.Path) -> None:
  """The folder of `streamed_run`, with another photo under the name of each."""
  shutil.copytree(streamed_run(), folder, dirs_exist_ok=True)
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
