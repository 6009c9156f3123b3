"""Bad inputs of every command, with the message and the exit code of each.

`test_bad_inputs.py` runs them all. The table of them is written by

  PYTHONPATH=.:experiments python tests/bad_inputs.py > docs/bad_inputs.md

A new row is a `Bad` in the list of its kind.
"""

import contextlib
import fcntl
import functools
import io
import json
import pathlib
import shutil
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import archives
import pytest
from folders import encode, folder_of, noise
from written_runs import RESULTS

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

Arrange = Callable[[pathlib.Path], object]


class Bad(NamedTuple):
  """A bad input.

  Attributes:
    what: is wrong, in a few words.
    command: a script of experiments/ and its flags, run in a folder of its own.
    message: the lines on standard error, with FOLDER for that folder and … for any text.
    arrange: makes the files that the command reads in the folder.
    exit_code: of the command.
    meanwhile: folder -> what is open while the command runs.
  """

  what: str
  command: str
  message: str
  arrange: Arrange = lambda folder: None
  exit_code: int = 2
  meanwhile: Callable[[pathlib.Path], contextlib.AbstractContextManager] = (
    contextlib.nullcontext
  )


# What rows arrange ----------------------------------------------------------------------


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory:
  return tempfile.TemporaryDirectory()


@functools.cache
def finished_run() -> pathlib.Path:
  """The work directory of a run of small.cfg by FT; not to be changed."""
  folder = pathlib.Path(_temporary().name)
  (folder / "small.cfg").write_text(SMALL)
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    patch.setattr(run.devices, "prepare_cpu_devices", lambda config: None)
    assert run.main(["run.py", "--flagfile=small.cfg", "--method=ft", "--workdir=run"]) == 0
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
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    patch.setattr(run.devices, "prepare_cpu_devices", lambda config: None)
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


def keeping_one(*classes: str) -> Arrange:
  """The image folder `images` with one training image of some of its classes."""

  def change(root):
    for name in classes:
      (root / "train" / name / "1.png").unlink()

  return images(change)


@contextlib.contextmanager
def in_use(folder: pathlib.Path) -> Iterator[None]:
  """Another process has the lock of `run`."""
  path = folder / "run" / "lock"
  path.write_text("process 123 on elsewhere\n")
  with open(path) as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


@contextlib.contextmanager
def full_disk(folder: pathlib.Path) -> Iterator[None]:
  """All disks say that they have 1,000 bytes left."""
  with pytest.MonkeyPatch.context() as patch:
    usage = shutil.disk_usage(folder)._replace(free=1000)
    patch.setattr(shutil, "disk_usage", lambda path: usage)
    yield


IMAGES = "run.py --flagfile=small.cfg --dataset=image_folder --data_dir=images"
STREAMED = f"{IMAGES} --method=ft --image_size=72"
SAME = "run.py --flagfile=small.cfg --method=ft --workdir=run"
LONG = "n" * 300  # longer than a name may be
BORROWING = "run.py --flagfile=small.cfg --workdir=new --from_workdir=run"
FINISHED = run_with(lambda workdir: None)

# The rows -------------------------------------------------------------------------------

FLAGS = [
  Bad(
    "a flag that does not exist",
    "run.py --epoch=3",
    "error: Unknown command line flag 'epoch'. Did you mean: epochs, "
    "epochs_first ? (--help lists them all)",
  ),
  Bad(
    "a word that is no flag",
    "run.py digits",
    "error: 'digits' is not a flag: flags are written --name=value",
  ),
  Bad(
    "no value",
    "run.py --seed",
    "error: Missing value for flag --seed: flags are written --name=value",
  ),
  Bad(
    "text for a whole number",
    "run.py --epochs=many",
    "error: --epochs=many must be a whole number",
  ),
  Bad(
    "text for a number",
    "run.py --learning_rate=fast",
    "error: --learning_rate=fast must be a number",
  ),
  Bad(
    "text for true or false",
    "run.py --reset_momentum=perhaps",
    "error: --reset_momentum=perhaps must be true or false",
  ),
  Bad(
    "text in a list of numbers",
    "run.py --milestones=4,x",
    "error: --milestones=4,x must be whole numbers with commas between",
  ),
  Bad(
    "a number out of range",
    "run.py --momentum=1.5",
    "error: --momentum=1.5 must be below 1",
  ),
  Bad(
    "a number that is none",
    "run.py --learning_rate=nan",
    "error: --learning_rate=nan must be above 0",
  ),
  Bad(
    "a number with 400 digits",
    f"run.py --num_states={'9' * 400}",
    "error: "
    "--num_states=999999999999999999999999999999999999999999999999999999999999... "
    "is too large a number: use one up to 2**53",
  ),
  Bad(
    "several mistakes",
    "run.py --num_states=0 --learning_rate=-1 --precision=int8",
    "error: --num_states=0 must be 1 or more\n"
    "error: --learning_rate=-1.0 must be above 0\n"
    "error: --precision=int8 is unknown; choose from: float32, bfloat16",
  ),
  Bad(
    "milestones that fall",
    "run.py --milestones=8,4",
    "error: --milestones=8,4 must rise and lie between 0 and --epochs=20",
  ),
  Bad(
    "flags that contradict each other",
    "run.py --num_states=1 --initial_classes=5",
    "error: --initial_classes needs --num_states of 2 or more; with one "
    "state, leave it at 0",
  ),
  Bad(
    "an unknown method",
    "run.py --method=svm",
    "error: --method=svm is unknown; choose from: ssil, ft, …",
  ),
  Bad(
    "an unknown data set",
    "run.py --dataset=mnist",
    "error: --dataset=mnist is unknown; choose from: digits, image_folder, "
    "imagenet, landmarks_v2/1k, landmarks_v2/10k, cifar100…",
  ),
  Bad(
    "a negative time between checkpoints",
    "run.py --checkpoint_minutes=-1",
    "error: --checkpoint_minutes=-1.0 must be 0 or more",
  ),
  Bad(
    "no checkpoint kept",
    "run.py --checkpoints_kept=0",
    "error: --checkpoints_kept=0 must be 1 or more",
  ),
  Bad(
    "states that do not divide the classes",
    "run.py --num_states=3",
    "error: 10 classes cannot be divided into --num_states=3 equal states: "
    "change it, or give --initial_classes or --num_classes",
  ),
  Bad(
    "no room for an exemplar of each class",
    "run.py --memory_size=9",
    "error: --memory_size=9 cannot hold one exemplar of each of the 10 "
    "classes: use 10 or more",
  ),
  Bad(
    "a batch larger than the data",
    "run.py --flagfile=small.cfg --batch_size_new=5000",
    "error: state 1 trains on 280 images of new classes and 0 of old ones; an "
    "epoch (RP) goes through 280 images, too few for one batch of "
    "--batch_size_new=5000: lower it, raise --memory_size, or use fewer "
    "states",
  ),
  Bad(
    "two flags in one argument",
    "run.py '--workdir=o/two --seed=3'",
    "error: --workdir=o/two --seed=3 holds a second flag, --seed: give it as an argument "
    "of its own, or rename what has such a name",
  ),
  Bad(
    "the address of a bucket for a folder",
    "run.py --workdir=gs://bucket/run",
    "error: --workdir=gs://bucket/run is an address, and a folder of this machine is "
    "needed: mount the bucket (gcsfuse, s3fs, rclone), or copy what is there",
  ),
  Bad(
    "no work directory",
    "run.py --workdir=",
    "error: --workdir= is empty: name a folder, or leave the flag out",
  ),
  Bad(
    "an unknown precision of products",
    "run.py --matmul_precision=low",
    "error: --matmul_precision=low is unknown; choose from: default, high, highest",
  ),
  Bad(
    "another user's home that does not exist",
    "run.py --data_dir=~nobody-here/x",
    "error: --data_dir=~nobody-here/x: there is no such user: give the folder itself",
  ),
  Bad(
    "no such flag file",
    "run.py --flagfile=none.cfg",
    "error: --flagfile=none.cfg was not found, neither here nor in "
    "experiments/, which has: …",
  ),
  Bad(
    "a binary flag file",
    "run.py --flagfile=photo.cfg",
    "error: --flagfile=FOLDER/photo.cfg is not a text file: it needs a flag "
    "on each line, --name=value",
    text("photo.cfg", b"\x89PNG\r\n\xff"),
  ),
  Bad(
    "two flags on a line of a flag file",
    "run.py --flagfile=a.cfg",
    "error: --flagfile=FOLDER/a.cfg: line 2: '--workdir=o/two --seed=3' has a second flag, "
    "--seed: give each a line of its own, or put quotes around a value that it belongs to",
    text("a.cfg", "--flagfile=small.cfg\n--workdir=o/two --seed=3\n"),
  ),
  Bad(
    "a comment behind a flag in a flag file",
    "run.py --flagfile=a.cfg",
    "error: --flagfile=FOLDER/a.cfg: line 1: '--workdir=o/two  # the second' ends in a "
    "comment: give it a line of its own, or put quotes around a value that it belongs to",
    text("a.cfg", "--workdir=o/two  # the second\n"),
  ),
  Bad(
    "half a pair of quotes in a flag file",
    "run.py --flagfile=a.cfg",
    "error: --flagfile=FOLDER/a.cfg: line 1: '--workdir=\"o/two' has quotes that are not "
    "around the whole value: take them out, or put other ones around it",
    text("a.cfg", '--workdir="o/two\n'),
  ),
  Bad(
    "a flag file that includes itself",
    "run.py --flagfile=a.cfg",
    "error: --flagfile=a.cfg in FOLDER/a.cfg includes itself: take it out",
    text("a.cfg", "--seed=1\n--flagfile=a.cfg\n"),
  ),
  Bad(
    "a line of a flag file that is no flag",
    "run.py --flagfile=a.cfg",
    "error: --flagfile=FOLDER/a.cfg: line 2: 'seed: 1' is not a flag: flags "
    "are written --name=value",
    text("a.cfg", "# mine\nseed: 1\n"),
  ),
  Bad(
    "a control character in a flag file",
    "run.py --flagfile=a.cfg",
    "error: '--workdir=a\\x1b[31mb' has control characters or is not in "
    "UTF-8: write it without them",
    text("a.cfg", "--workdir=a\x1b[31mb\n"),
  ),
  Bad(
    "one process of several, without an address",
    "run.py --num_processes=2",
    "error: --num_processes=2 needs --coordinator_address=HOST:PORT",
  ),
  Bad(
    "an address without a port, and a process too many",
    "run.py --coordinator_address=here --num_processes=2 --process_id=5",
    "error: --coordinator_address=here must be HOST:PORT, with a port from 1 to 65535\n"
    "error: --process_id=5 must be from 0 to 1 with --num_processes=2, another one for "
    "each process",
  ),
]

DATA = [
  Bad(
    "no folder given",
    "run.py --dataset=image_folder",
    "error: --dataset=image_folder needs --data_dir=DIR: an image folder is "
    "DIR/train/CLASS/* and DIR/test/CLASS/* (or DIR/val)",
  ),
  Bad(
    "no such folder",
    "run.py --dataset=image_folder --data_dir=none",
    "error: --data_dir=none is not a folder: an image folder is "
    "DIR/train/CLASS/* and DIR/test/CLASS/* (or DIR/val)",
  ),
  Bad(
    "an empty folder",
    IMAGES,
    "error: images/train is missing: an image folder is DIR/train/CLASS/* "
    "and DIR/test/CLASS/* (or DIR/val)",
    lambda folder: (folder / "images").mkdir(),
  ),
  Bad(
    "no test images",
    IMAGES,
    "error: images/val is missing: an image folder is DIR/train/CLASS/* and "
    "DIR/test/CLASS/* (or DIR/val)",
    images(lambda root: shutil.rmtree(root / "test")),
  ),
  Bad(
    "a class without a test folder",
    IMAGES,
    "error: class dog (1 in all) is in images/train but not in images/test: "
    "both need a folder for every class",
    images(lambda root: shutil.rmtree(root / "test/dog")),
  ),
  Bad(
    "a class without images",
    IMAGES,
    "error: images/train/cat has no images (.png, .jpg, .jpeg, .webp): add "
    "some or remove the class",
    images(lambda root: emptied(root / "train/cat")),
  ),
  Bad(
    "text in a file named .png",
    IMAGES,
    "error: cannot read image images/train/cat/1.png: not a JPEG, PNG or WebP image "
    "(fix or remove it, or leave it out with --skip_bad_records)",
    images(lambda root: (root / "train/cat/1.png").write_text("cat")),
  ),
  Bad(
    "an empty image file",
    IMAGES,
    "error: cannot read image images/test/dog/1.png: it is empty "
    "(fix or remove it, or leave it out with --skip_bad_records)",
    images(lambda root: (root / "test/dog/1.png").write_bytes(b"")),
  ),
  Bad(
    "half an image file",
    IMAGES,
    "error: cannot read image images/train/dog/1.png: image file is truncated "
    "(fix or remove it, or leave it out with --skip_bad_records)",
    images(lambda root: halved(root / "train/dog/1.png")),
  ),
  Bad(
    "a JPEG cut off",
    IMAGES,
    "error: cannot read image images/train/dog/1.jpg: Premature end of JPEG file "
    "(fix or remove it, or leave it out with --skip_bad_records)",
    images(lambda root: (root / "train/dog/1.jpg").write_bytes(encode(noise(8, 8))[:-40])),
  ),
  Bad(
    "a header of a billion pixels",
    IMAGES,
    "error: cannot read image images/train/dog/1.png: 60000x60000 pixels, more than the "
    "100000000 allowed (fix or remove it, or leave it out with --skip_bad_records)",
    images(lambda root: huge(root / "train/dog/1.png")),
  ),
  Bad(
    "a control character in a name",
    IMAGES,
    "error: cannot read image images/train/cat/\\x1b[31m.png: not a JPEG, PNG or WebP "
    "image (fix or remove it, or leave it out with --skip_bad_records)",
    images(lambda root: (root / "train/cat/\x1b[31m.png").write_text("cat")),
  ),
  Bad(
    "a data set that was not prepared",
    "run.py --flagfile=imagenet.cfg --data_dir=.",
    "error: --data_dir=. has no imagenet or imagenet2012 (it has no "
    "prepared data set): `python experiments/prepare.py imagenet "
    "--archives=DIR --data_dir=.` makes it from the official archives",
  ),
  Bad(
    "a data set's folder with a damaged description",
    "run.py --flagfile=cifar100.cfg --data_dir=.",
    "error: cifar100/1.0.0/dataset_info.json cannot be read: …",
    text("cifar100/1.0.0/dataset_info.json", "{"),
  ),
  Bad(
    "a link to nothing",
    "run.py --flagfile=small.cfg --dataset=image_folder --data_dir=link",
    "error: --data_dir=link is not a folder: an image folder is DIR/train/CLASS/* and "
    "DIR/test/CLASS/* (or DIR/val)",
    link("nothing"),
  ),
  Bad(
    "a link to itself",
    "run.py --flagfile=small.cfg --dataset=image_folder --data_dir=link",
    "error: --data_dir=link is not a folder: an image folder is DIR/train/CLASS/* and "
    "DIR/test/CLASS/* (or DIR/val)",
    link("link"),
  ),
  Bad(
    "a name that is too long",
    f"run.py --flagfile=small.cfg --dataset=image_folder --data_dir={LONG}",
    "error: --data_dir=nnn… is not a folder: an image folder is DIR/train/CLASS/* and "
    "DIR/test/CLASS/* (or DIR/val)",
  ),
  Bad(
    "a name that is too long, of prepared data",
    f"run.py --flagfile=small.cfg --dataset=cifar100 --data_dir={LONG}",
    "error: --data_dir=nnn… is not a folder: `python experiments/prepare.py cifar100 "
    "--archives=DIR --data_dir=nnn…` makes it from the official archives",
  ),
  Bad(
    "prepared data that are taken for some in a cloud",
    "run.py --flagfile=small.cfg --dataset=cifar100 --data_dir=/gs/data",
    "error: --data_dir=/gs/data cannot be used: all below /gs is taken for storage in a "
    "cloud; name another folder",
  ),
  Bad(
    "images that are too small for the network",
    IMAGES,
    "error: half of the training images have no side of more than 3 pixels, and the "
    "network needs 8: give --image_size=8 or more to enlarge them",
    images(shrunk),
  ),
  Bad(
    "a class of a prepared data set without training images",
    "run.py --flagfile=small.cfg --dataset=cifar100 --data_dir=data",
    "error: class fine_zz (1 in all) has no training images: add some, or remove the class",
    without_images,
  ),
  Bad(
    "a class with one image, always among the last of an epoch",
    f"{IMAGES} --batch_size_new=2 --seed=8",
    "error: state 1 would never train on class cat (images: 1): every epoch (epochs: 1) "
    "leaves its last images out, too few for a batch, and has these among them: raise "
    "--epochs_first, lower --batch_size_new, or change --seed",
    keeping_one("cat"),
  ),
  Bad(
    "new classes with one image each, for BiC",
    f"{IMAGES} --batch_size_new=2 --method=bic",
    "error: state 2 has one image of each new class, to train on, and none to hold out, "
    "without which new scores cannot be corrected: add some, or use fewer states",
    keeping_one("ape", "bat"),
  ),
  Bad(
    "old classes with one image each, for BiC",
    f"{IMAGES} --batch_size_new=2 --method=bic",
    "error: state 2 has one exemplar of each old class, to train on, and none to hold out, "
    "without which new scores cannot be corrected: raise --memory_size or, if these "
    "classes have one image each, add some",
    keeping_one("cat", "dog"),
  ),
]

PREPARE = [
  Bad(
    "no data set named",
    "prepare.py --archives=.",
    "error: the first argument must be a data set, prepare.py DATASET; "
    "there are: imagenet, landmarks_v2/1k, landmarks_v2/10k, cifar100…",
  ),
  Bad(
    "an unknown data set",
    "prepare.py mnist --archives=. --data_dir=data",
    "error: mnist is not a data set that can be prepared; there are: "
    "imagenet, landmarks_v2/1k, landmarks_v2/10k, cifar100…",
  ),
  Bad(
    "no such folder of archives",
    "prepare.py imagenet --archives=none --data_dir=data",
    "error: --archives=none is not a folder: name the one with the archives",
  ),
  Bad(
    "no archives in it",
    "prepare.py imagenet --archives=. --data_dir=data",
    "error: FOLDER/ILSVRC2012_img_train.tar is missing: put the official "
    "ILSVRC2012_img_train.tar there",
  ),
  Bad(
    "an archive that is no tar",
    "prepare.py imagenet --archives=. --data_dir=data",
    "error: ILSVRC2012_img_train.tar is cut off or damaged (…): download it again",
    both(archives.imagenet, text("ILSVRC2012_img_train.tar", "not a tar")),
  ),
  Bad(
    "a tar cut off",
    "prepare.py imagenet --archives=. --data_dir=data",
    "error: ILSVRC2012_img_train.tar lacks 998 classes, first n01484850; "
    "--allow_partial takes what there is",
    both(archives.imagenet, lambda folder: halved(folder / "ILSVRC2012_img_val.tar")),
  ),
  Bad(
    "fewer classes than the official archive",
    "prepare.py imagenet --archives=. --data_dir=data",
    "error: ILSVRC2012_img_train.tar lacks 998 classes, first n01484850; "
    "--allow_partial takes what there is",
    archives.imagenet,
  ),
  Bad(
    "a link in an archive",
    "prepare.py imagenet --archives=. --data_dir=data --allow_partial",
    "error: ILSVRC2012_img_val.tar has ../../evil as a link or device and "
    "not as a file, as no official archive has: download it again",
    both(archives.imagenet, linked),
  ),
  Bad(
    "an archive that is no .gz",
    "prepare.py cifar100 --archives=. --data_dir=data",
    "error: FOLDER/cifar-100-binary.tar.gz is damaged (…): download it again",
    text("cifar-100-binary.tar.gz", "no gz"),
  ),
  Bad(
    "an empty archive",
    "prepare.py cifar100 --archives=. --data_dir=data",
    "error: FOLDER/cifar-100-binary.tar.gz is empty: download it again",
    text("cifar-100-binary.tar.gz", ""),
  ),
  Bad(
    "an archive with a file missing",
    "prepare.py cifar100 --archives=. --data_dir=data --allow_partial",
    "error: FOLDER/cifar-100-binary.tar.gz is damaged (…): download it again",
    lambda folder: archives.cifar(folder, train=None),
  ),
  Bad(
    "a table without its columns",
    "prepare.py landmarks_v2/1k --archives=. --data_dir=data",
    "error: FOLDER/train.csv has no column id, only a, b: it is not the official train.csv",
    text("train.csv", "a,b\n1,2\n"),
  ),
  Bad(
    "a data folder that is a file",
    "prepare.py cifar100 --archives=. --data_dir=small.cfg",
    "error: --data_dir=FOLDER/small.cfg cannot be made (File exists): name another folder",
  ),
  Bad(
    "options that do not suit the data set",
    "prepare.py cifar100 --archives=. --data_dir=data --resize=32",
    "error: --resize and --restart_markers are for photos: cifar100 is stored as it is",
  ),
  Bad(
    "an option out of range",
    "prepare.py imagenet --archives=. --data_dir=data --resize=1",
    "error: --resize=1 must be 64 or more",
  ),
  Bad(
    "a folder already there",
    "prepare.py cifar100 --archives=. --data_dir=data",
    "error: FOLDER/data/cifar100/1.0.0 exists, but not with a prepare.json "
    "of this program: remove it, or use another --data_dir",
    text("data/cifar100/1.0.0/x.txt", "mine"),
  ),
  Bad(
    "archives in a link to nothing",
    "prepare.py cifar100 --archives=link --data_dir=data",
    "error: --archives=link is not a folder: name the one with the archives",
    link("nothing"),
  ),
  Bad(
    "archives whose name is too long",
    f"prepare.py cifar100 --archives={LONG} --data_dir=data",
    "error: --archives=nnn… is not a folder: name the one with the archives",
  ),
  Bad(
    "a data folder that is a link to itself",
    "prepare.py cifar100 --archives=. --data_dir=link",
    "error: --data_dir=FOLDER/link cannot be made (File exists): name another folder",
    link("link"),
  ),
  Bad(
    "a data folder whose name is too long",
    f"prepare.py cifar100 --archives=. --data_dir={LONG}",
    "error: --data_dir=FOLDER/nnn… cannot be made (File name too long): name another "
    "folder",
  ),
  Bad(
    "a data folder that is taken for one in a cloud",
    "prepare.py cifar100 --archives=. --data_dir=/gs/data",
    "error: --data_dir=/gs/data cannot be used: all below /gs is taken for storage in a "
    "cloud; name another folder",
  ),
]

WORKDIR = [
  Bad(
    "another configuration",
    "run.py --flagfile=small.cfg --method=ft --workdir=run --seed=1 --width=8",
    "error: FOLDER/run holds a run with another configuration; use another "
    "--workdir, or the same flags:\n"
    "error: --width: 4 there, 8 now\n"
    "error: --seed: 0 there, 1 now",
    FINISHED,
  ),
  Bad(
    "other data",
    SAME,
    "error: FOLDER/run holds a run on other data than --data_dir= has: use another "
    "--workdir, or that run's data\n"
    "error: training images: 1 there, 568 now",
    run_with(on_other_data),
  ),
  Bad(
    "photos replaced under the same names",
    STREAMED + " --workdir=run",
    "error: FOLDER/run holds a run on other data than --data_dir=images has: use another "
    "--workdir, or that run's data\n"
    "error: sizes of training images: different\n"
    "error: contents of training images: different",
    photos_replaced,
  ),
  Bad(
    "a run, and --resume=never",
    "run.py --flagfile=small.cfg --method=ft --workdir=run --resume=never",
    "error: FOLDER/run holds a run already and --resume=never: use another --workdir",
    FINISHED,
  ),
  Bad(
    "a damaged config.json",
    SAME,
    "error: FOLDER/run/config.json is not valid JSON (…): use another --workdir",
    run_with(lambda w: (w / "config.json").write_text("{")),
  ),
  Bad(
    "a config.json that is a list",
    SAME,
    "error: FOLDER/run/config.json is not a configuration: use another --workdir",
    run_with(lambda w: (w / "config.json").write_text("[]")),
  ),
  Bad(
    "a binary config.json",
    SAME,
    "error: FOLDER/run/config.json is not valid JSON (…): use another --workdir",
    run_with(lambda w: (w / "config.json").write_bytes(b"\xff\xfe\0")),
  ),
  Bad(
    "no config.json",
    SAME,
    "error: FOLDER/run has checkpoints but no config.json: use another --workdir",
    run_with(lambda w: (w / "config.json").unlink()),
  ),
  Bad(
    "a file",
    "run.py --flagfile=small.cfg --workdir=small.cfg",
    "error: --workdir=small.cfg cannot be used: [Errno 17] File exists: "
    "'FOLDER/small.cfg'; name a folder that can be written",
  ),
  Bad(
    "a folder that cannot be made",
    "run.py --flagfile=small.cfg --workdir=/dev/null/run",
    "error: --workdir=/dev/null/run cannot be used: [Errno 20] Not a directory: "
    "'/dev/null/run'; name a folder that can be written",
  ),
  Bad(
    "a config.json nested too deep",
    SAME,
    "error: FOLDER/run/config.json is not valid JSON (…): use another --workdir",
    run_with(lambda workdir: (workdir / "config.json").write_text("[" * 100_000)),
  ),
  Bad(
    "a link to itself",
    "run.py --flagfile=small.cfg --workdir=loop",
    "error: --workdir=loop cannot be used: [Errno 17] File exists: 'FOLDER/loop'; name a "
    "folder that can be written",
    lambda folder: (folder / "loop").symlink_to("loop"),
  ),
  Bad(
    "a damaged line of metrics.jsonl",
    SAME,
    "error: FOLDER/run/metrics.jsonl: line 1 is no record: put the file right, or delete "
    "it and records begin after step 17",
    run_with(lambda workdir: (workdir / "metrics.jsonl").write_text("{\n")),
  ),
  Bad(
    "a line of metrics.jsonl whose step is no number",
    SAME,
    "error: FOLDER/run/metrics.jsonl: line 1 has no step: put the file right, or delete "
    "it and records begin after step 17",
    run_with(lambda workdir: (workdir / "metrics.jsonl").write_text('{"step": "x"}\n')),
  ),
  Bad(
    "no checkpoint that can be read",
    SAME,
    "error: no checkpoint in FOLDER/run/checkpoints can be read (…): use another "
    "--workdir, or put a good one back",
    run_with(lambda workdir: damaged(workdir / "checkpoints")),
  ),
  Bad(
    "results, and no checkpoints",
    SAME,
    "error: FOLDER/run has results, but no checkpoints to go on from: use another "
    "--workdir, or put them back",
    run_with(lambda workdir: shutil.rmtree(workdir / "checkpoints")),
  ),
  Bad(
    "one that another run uses",
    SAME,
    "error: FOLDER/run is in use by another run (process 123 on elsewhere): wait for its "
    "end, stop it, or use another --workdir",
    both(FINISHED, text("run/lock", "process 123 on elsewhere\n")),
    meanwhile=in_use,
  ),
  Bad(
    "a full disk",
    "run.py --flagfile=small.cfg --workdir=new",
    "error: FOLDER/new has 1.0 kB free, and checkpoints and networks of this run need … "
    "make room, use another --workdir, or lower --checkpoints_kept",
    meanwhile=full_disk,
  ),
  Bad(
    "a loss that is not finite",
    "run.py --flagfile=small.cfg --workdir=new --learning_rate=1e30",
    "error: the loss became nan in state 1, epoch 1, step 2; there is no checkpoint before "
    "that: lower --learning_rate",
    exit_code=3,
  ),
  Bad(
    "a loss that is not finite, after a good state",
    "run.py --flagfile=small.cfg --workdir=new --method=der --der_alpha=1e30",
    "error: the loss became nan in state 2, epoch 1, step 10; the last good checkpoint is "
    "FOLDER/new/checkpoints/9: lower --learning_rate, with another --workdir",
    exit_code=3,
  ),
  Bad(
    "a backslash in its name",
    r"run.py --flagfile=small.cfg --workdir='a\b'",
    "error: --workdir=a\\b (FOLDER/a\\b) cannot be used: no checkpoint can be written "
    "below a\\b, for its backslash; name another folder",
  ),
  Bad(
    "one below a folder whose name ends like a cloud's",
    "run.py --flagfile=small.cfg --workdir=logs:/run",
    "error: --workdir=logs:/run (FOLDER/logs:/run) cannot be used: no checkpoint can be "
    "written below logs:, for its ending gs:; name another folder",
  ),
  Bad(
    "a folder that is taken for one in a cloud",
    "run.py --flagfile=small.cfg --workdir=/s3/run",
    "error: --workdir=/s3/run cannot be used: all below /s3 is taken for storage in a "
    "cloud; name another folder",
  ),
  Bad(
    "a name that is too long",
    f"run.py --flagfile=small.cfg --workdir={LONG}",
    "error: --workdir=nnn… cannot be used: [Errno 36] File name too long: "
    "'FOLDER/nnn…'; name a folder that can be written",
  ),
  Bad(
    "a path that is too long",
    f"run.py --flagfile=small.cfg --workdir={LONG[:250]}{'/x' * 1850}",
    "error: --workdir=nnn… cannot be used: its path has … bytes, and with "
    "those of its files it would be longer than the … that the system allows; name "
    "another folder",
  ),
  Bad(
    "a link to where nothing can be made",
    "run.py --flagfile=small.cfg --workdir=link",
    "error: --workdir=link cannot be used: [Errno 20] Not a directory: '/dev/null/run'; "
    "name a folder that can be written",
    link("/dev/null/run"),
  ),
]

COMPARE = [
  Bad(
    "no runs",
    "compare.py",
    "error: --workdir is missing: give it once for every run to compare",
  ),
  Bad(
    "no such run",
    "compare.py --workdir=none",
    "error: none/results.json does not exist: give the work directory of a "
    "run that has finished at least one state",
  ),
  Bad(
    "a run that has finished no state",
    "compare.py --workdir=run",
    "error: run/results.json: $.states: no state is finished; rerun its "
    "command to resume it, or leave this work directory out",
    text("run/results.json", json.dumps(dict(RESULTS, states=[]))),
  ),
  Bad(
    "a damaged results.json",
    "compare.py --workdir=run",
    "error: run/results.json: is not valid JSON (…); repeat the run, or "
    "leave this work directory out",
    text("run/results.json", '{"dataset": "digits",'),
  ),
  Bad(
    "a binary results.json",
    "compare.py --workdir=run",
    "error: run/results.json: cannot be read (not UTF-8 text); repeat the "
    "run, or leave this work directory out",
    text("run/results.json", b"\xff\xfe"),
  ),
  Bad(
    "results nested too deep",
    "compare.py --workdir=run",
    "error: run/results.json: is not valid JSON (…); repeat the run, or "
    "leave this work directory out",
    text("run/results.json", "[" * 100_000),
  ),
  Bad(
    "results without an accuracy",
    "compare.py --workdir=run",
    "error: run/results.json: $.states[0]: 'top1' is a required property; "
    "repeat the run, or leave this work directory out",
    replaced("results.json", '"top1"', '"top"'),
  ),
  Bad(
    "an accuracy of 4900 %",
    "compare.py --workdir=run",
    "error: run/results.json: $.states[0].top1: 49.… is greater than the "
    "maximum of 1; repeat the run, or leave this work directory out",
    replaced("results.json", '"top1": 0.', '"top1": 49.'),
  ),
  Bad(
    "a number that JSON has not",
    "compare.py --workdir=run",
    "error: run/results.json: is not valid JSON (NaN is no JSON number); "
    "repeat the run, or leave this work directory out",
    replaced("results.json", '"top5": 1.0', '"top5": NaN'),
  ),
  Bad(
    "states in another order",
    "compare.py --workdir=run",
    "error: run/results.json: $.states[0] must be state 1, from 0 old "
    "classes to more; repeat the run, or leave this work directory out",
    replaced("results.json", '"state": 1,', '"state": 2,'),
  ),
  Bad(
    "a damaged line of metrics.jsonl",
    "compare.py --workdir=run",
    "error: run/metrics.jsonl: line 2: is not valid JSON (…); repeat the "
    "run, or leave this work directory out",
    replaced("metrics.jsonl", '"step": 4', '"step" 4'),
  ),
  Bad(
    "a damaged schedule.json",
    "compare.py --workdir=run",
    "error: run/schedule.json: is not valid JSON (…); repeat the run, or "
    "leave this work directory out",
    replaced("schedule.json", "[", ""),
  ),
  Bad(
    "a page that cannot be written",
    "compare.py --workdir=run --output=small.cfg/page",
    "error: small.cfg/page/figures cannot be written (Not a directory): "
    "choose another place for the report",
    FINISHED,
  ),
  Bad(
    "a page that is a folder",
    "compare.py --workdir=run --output=page.html",
    "error: page.html cannot be written (Is a directory): choose another "
    "place for the report",
    run_with(lambda w: (w.parent / "page.html").mkdir()),
  ),
  Bad(
    "a run in a link to itself",
    "compare.py --workdir=link",
    "error: link/results.json does not exist: give the work directory of a run that has "
    "finished at least one state",
    link("link"),
  ),
  Bad(
    "a run whose name is too long",
    f"compare.py --workdir={LONG}",
    "error: nnn…/results.json does not exist: give the work directory of a run that "
    "has finished at least one state",
  ),
  Bad(
    "a page whose name is too long",
    f"compare.py --workdir=run --output={LONG}.html",
    "error: nnn….html cannot be written (File name too long): choose another place for "
    "the report",
    FINISHED,
  ),
  Bad(
    "a page in a link to nothing",
    "compare.py --workdir=run --output=link",
    "error: link cannot be written (File exists): choose another place for the report",
    both(FINISHED, link("nothing")),
  ),
]

SWEEP = [
  Bad(
    "no methods",
    "sweep.py --output=runs",
    "error: --methods is missing: names of methods with commas between, or all",
  ),
  Bad(
    "an unknown method",
    "sweep.py --methods=ft,svm --output=runs",
    "error: --methods=ft,svm: 'svm' is unknown; choose from: ssil, ft, …; or all",
  ),
  Bad(
    "a seed that is none",
    "sweep.py --methods=ft --seeds=0,x --output=runs",
    "error: --seeds=0,x must be whole numbers with commas between",
  ),
  Bad(
    "more jobs than cores",
    "sweep.py --methods=ft --output=runs --jobs=9999",
    "error: --jobs=9999, but there are … cores",
  ),
  Bad(
    "a flag that the sweep sets",
    "sweep.py --methods=ft --output=runs -- --seed=1",
    "error: --seed after -- is set by the sweep itself: leave it out",
  ),
  Bad(
    "too few images for one method",
    "sweep.py --methods=ft,eeil --output=runs -- --flagfile=quickstart.cfg",
    "error: --methods: eeil: state 2 trains on 10 images of new classes and "
    "10 of old ones; an epoch (balanced) goes through 20 images, too few for "
    "one batch of --batch_size_new=32: lower it, raise --memory_size, or use "
    "fewer states",
  ),
  Bad(
    "an output that is a file",
    "sweep.py --methods=ft --output=small.cfg -- --flagfile=small.cfg",
    "error: --output cannot be used: [Errno 17] File exists: 'FOLDER/small.cfg'; name a "
    "folder that can be written",
  ),
  Bad(
    "a backslash in the output's name",
    r"sweep.py --methods=ft --output='a\b' -- --flagfile=small.cfg",
    "error: --output=a\\b (FOLDER/a\\b) cannot be used: no checkpoint can be written "
    "below a\\b, for its backslash; name another folder",
  ),
  Bad(
    "an output whose name is too long",
    f"sweep.py --methods=ft --output={LONG} -- --flagfile=small.cfg",
    "error: --output cannot be used: [Errno 36] File name too long: 'FOLDER/nnn…'; "
    "name a folder that can be written",
  ),
  Bad(
    "an output that is a link to itself",
    "sweep.py --methods=ft --output=link -- --flagfile=small.cfg",
    "error: --output cannot be used: [Errno 17] File exists: 'FOLDER/link'; name a folder "
    "that can be written",
    link("link"),
  ),
]

REUSE = [
  Bad(
    "no run there",
    "run.py --flagfile=small.cfg --workdir=new --from_workdir=none",
    "error: --from_workdir=none is not the work directory of a run: give one, or "
    "leave it out",
  ),
  Bad(
    "the run itself",
    "run.py --flagfile=small.cfg --workdir=run --from_workdir=run",
    "error: --from_workdir=run is --workdir itself: leave the flag out",
    FINISHED,
  ),
  Bad(
    "a run that was trained otherwise",
    "run.py --flagfile=small.cfg --workdir=new --from_workdir=run --width=8",
    "error: --from_workdir=run was not trained as this run would be, not "
    "even in its first state; leave the flag out, or give the same "
    "settings:\n"
    "error: --width: 4 there, 8 now",
    FINISHED,
  ),
  Bad(
    "a run on other data",
    BORROWING,
    "error: --from_workdir=run was trained on other data: repeat it on these, or leave "
    "the flag out\n"
    "error: training images: 1 there, 568 now",
    run_with(on_other_data),
  ),
  Bad(
    "a run on photos that were replaced since",
    STREAMED + " --workdir=new --from_workdir=run",
    "error: --from_workdir=run was trained on other data: repeat it on these, or leave the "
    "flag out\n"
    "error: sizes of training images: different\n"
    "error: contents of training images: different",
    photos_replaced,
  ),
  Bad(
    "a run by an earlier version",
    BORROWING,
    "error: --from_workdir=run is a run of an earlier version of this program: repeat it, "
    "or leave the flag out",
    replaced("config.json", '"classes": ', '"groups": '),
  ),
  Bad(
    "a damaged config.json",
    BORROWING,
    "error: FOLDER/run/config.json is not valid JSON (…): use another --workdir",
    run_with(lambda w: (w / "config.json").write_text("{")),
  ),
  Bad(
    "damaged results",
    BORROWING,
    "error: FOLDER/run/results.json: $.states[0].top1: 49.… is greater than "
    "the maximum of 1; repeat the run, or leave this work directory out",
    replaced("results.json", '"top1": 0.', '"top1": 49.'),
  ),
  Bad(
    "a damaged line of metrics.jsonl",
    BORROWING,
    "error: FOLDER/run/metrics.jsonl: line 1: $: 'loss' is a required "
    "property; repeat the run, or leave this work directory out",
    replaced("metrics.jsonl", '"loss"', '"lost"'),
  ),
  Bad(
    "no networks",
    BORROWING,
    "error: --from_workdir=run has no network of its first state: continue "
    "that run, or repeat it if it is of an earlier version",
    run_with(lambda w: shutil.rmtree(w / "networks")),
  ),
  Bad(
    "momentum that cannot be taken",
    "run.py --flagfile=small.cfg --workdir=new --from_workdir=run --noreset_momentum",
    "error: --from_workdir=run was not trained as this run would be, not "
    "even in its first state; leave the flag out, or give the same "
    "settings:\n"
    "error: --noreset_momentum: no momentum can be taken; leave "
    "--reset_momentum on",
    FINISHED,
  ),
  Bad(
    "a method that is unknown here",
    BORROWING,
    "error: --from_workdir=run was not trained as this run would be, not even in its first "
    "state; leave the flag out, or give the same settings:\n"
    "error: --method: ['x'] there",
    replaced("config.json", '"method": "ft"', '"method": ["x"]'),
  ),
  Bad(
    "a damaged network",
    BORROWING,
    "error: FOLDER/run/networks/1 is damaged or does not fit this run (…): leave "
    "--from_workdir out, or repeat that run",
    run_with(lambda workdir: damaged(workdir / "networks")),
  ),
  Bad(
    "a run below a backslash",
    r"run.py --flagfile=small.cfg --workdir=new --from_workdir='a\b'",
    "error: --from_workdir=a\\b (FOLDER/a\\b) cannot be used: no checkpoint can be "
    "written below a\\b, for its backslash; name another folder",
  ),
  Bad(
    "a link to nothing",
    "run.py --flagfile=small.cfg --workdir=new --from_workdir=link",
    "error: --from_workdir=link is not the work directory of a run: give one, or leave it "
    "out",
    link("nothing"),
  ),
  Bad(
    "a link to itself",
    "run.py --flagfile=small.cfg --workdir=new --from_workdir=link",
    "error: --from_workdir=link is not the work directory of a run: give one, or leave it "
    "out",
    link("link"),
  ),
  Bad(
    "a run whose name is too long",
    f"run.py --flagfile=small.cfg --workdir=new --from_workdir={LONG}",
    "error: --from_workdir=nnn… is not the work directory of a run: give one, or leave "
    "it out",
  ),
]

KINDS = {
  "Flags and flag files": FLAGS,
  "Data folders": DATA,
  "Archives": PREPARE,
  "Work directories": WORKDIR,
  "Runs to compare": COMPARE,
  "Sweeps": SWEEP,
  "States of other runs": REUSE,
}


def table() -> str:
  """The rows as Markdown."""
  lines = [
    "# Bad inputs",
    "",
    "What each command says of bad input, and its exit code. `FOLDER` is the folder that",
    "the command runs in, `…` any text; `small.cfg` has the flags of a small run.",
    "`tests/experiments/test_bad_inputs.py` runs them all and compares every line; what",
    "was in the folder before stays as it is. Written by `tests/bad_inputs.py`.",
  ]
  for kind, rows in KINDS.items():
    lines += ["", f"## {kind}", "", "| what | command | exit code | message |"]
    lines.append("|---|---|---|---|")
    for bad in rows:
      message = "<br>".join(map(_code, bad.message.splitlines()))
      lines.append(
        f"| {bad.what} | {_code(_short(bad.command))} | {bad.exit_code} | {message} |"
      )
  return "\n".join(lines) + "\n"


def _short(command: str) -> str:
  return command if len(command) < 200 else f"{command[:40]}…"


def _code(line: str) -> str:
  ticks = "``" if "`" in line else "`"
  return f"{ticks}{line}{ticks}".replace("|", "\\|")


if __name__ == "__main__":
  print(table(), end="")
