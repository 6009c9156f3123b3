"""Folders and files may have any name that the system allows, or are refused at once."""

import io
import itertools
import os
import pathlib
import signal
import string

import archives
import pytest
from folders import config_of, folder_of, open_folder, save
from kills import differences
from quick import quick_network
from rich.console import Console
from saved_states import (
  RESULTS,
  STATS,
  assert_same,
  load,
  numbers_in,
  position_of,
  run_of,
  save_all,
  truncate,
)
from small_runs import last_checkpoint, small_config
from written_runs import Page

from ssil_jax.commands import compare, prepare
from ssil_jax.commands import run as run_script
from ssil_jax.config import Config, fields_of, workdir_path
from ssil_jax.data import fingerprint
from ssil_jax.data.opening import open_dataset
from ssil_jax.data.sources import labels
from ssil_jax.distributed.preemption import Interrupted
from ssil_jax.errors import ConfigError, DataError
from ssil_jax.progress import ProgressBars
from ssil_jax.system import write_bytes
from ssil_jax.training import devices, loop
from ssil_jax.training.checkpoint import Checkpoints
from ssil_jax.training.storage import Networks

ASCII = "".join(map(chr, range(32, 127))).replace("/", "")
assert set(string.printable) - set(string.whitespace) - {"/"} <= set(ASCII)
# The backslash is refused for runs, and tested by itself.
NAME = f" é e\u0301 😀 שלום :smile: [red] ** {ASCII} ".replace("\\", "")
NAMES = {
  "everything": NAME,
  "a class of characters": "ft[10]",
  "a class that is another": "[!a]",
  "a star": "a*",
  "stars": "**",
  "a question mark": "run?",
  "spaces around": " run ",
  "a number": "12",
  "like a temporary one": "x.orbax-checkpoint-tmp",
  "a tilde": "run~",
  "percent": "%20%s",
  "a line break": "a\nb",
  "200 characters": "n" * 200,
  "as long as can be": "é" * 127 + "x",
}


@pytest.fixture(params=NAMES.values(), ids=NAMES.keys())
def place(request, tmp_path):
  """A folder of an odd name, and beside it those that a pattern would find instead."""
  for name in ("ft1", "b", "ab", "runs"):
    (tmp_path / name / "checkpoints" / "99").mkdir(parents=True)
  (tmp_path / request.param).mkdir()
  return tmp_path / request.param


# Checkpoints.


def test_checkpoints_come_back(place):
  first, then = (
    run_of(step, results=RESULTS, stats=STATS, position=position_of()) for step in (3, 5)
  )
  save_all(place, first, then)
  assert_same(load(place, like=then), then)
  half = place / "checkpoints" / "9.orbax-checkpoint-tmp"
  half.mkdir()
  with Checkpoints(place, kept=1) as checkpoints:
    assert_same(checkpoints.latest(default=run_of(0, stats=STATS)), then)
    checkpoints.save(run_of(8))
  assert numbers_in(place / "checkpoints") == [8]  # the others and the half one are gone


def test_a_damaged_checkpoint_is_put_aside(place):
  first, then = run_of(3), run_of(5)
  save_all(place, first, then)
  truncate(place / "checkpoints" / "5")
  warnings = []
  assert_same(load(place, like=then, warnings=warnings), first)
  assert (place / "damaged" / "5").is_dir()
  assert len(warnings) == 1


def test_networks_come_back(place):
  states = [run_of(step).train_state for step in (1, 2, 3)]
  with Networks(place) as networks:
    for state, train_state in zip((1, 2, 1), states, strict=True):
      networks.save(train_state, state=state)
  with Networks(place, own=False) as networks:
    assert networks.states() == [1]
    like = run_of(0).train_state
    wanted = states[2].replace(opt_state=like.opt_state)
    assert_same(networks.load(1, like=like), wanted)


def test_a_path_may_be_as_long_as_is_not_refused(tmp_path):
  room = os.pathconf("/", "PC_PATH_MAX") - 256 - len(os.fsencode(tmp_path))
  parts = ["p" * 200] * ((room - 1) // 201)
  parts.append("q" * (room - 1 - 201 * len(parts)))
  place = tmp_path.joinpath(*filter(None, parts))
  config_of(workdir=str(place))
  with pytest.raises(ConfigError, match="bytes, and with those of its files"):
    config_of(workdir=f"{place}/xx")
  place.mkdir(parents=True)
  save_all(place, run_of(10**9))
  assert_same(load(place, like=run_of(10**9)), run_of(10**9))


# Runs.


def stop_at(question):
  """Returns what interrupts a run at one of its questions."""
  questions = itertools.count()

  def check_interrupt():
    if next(questions) == question:
      raise Interrupted(signal.SIGINT)

  return check_interrupt


SIZES = {"num_classes": 4, "num_states": 2, "memory_size": 8, "num_devices": 2}


def run(workdir, check_interrupt=lambda: None, **changes):
  """What a run prints."""
  console = Console(file=io.StringIO(), width=100)
  config = small_config(workdir, **SIZES, **changes)
  loop.run(config, console, check_interrupt=check_interrupt)
  return console.file.getvalue()


@pytest.fixture
def _quickly(monkeypatch):
  monkeypatch.setattr(devices, "prepare_cpu_devices", lambda config: None)
  with quick_network():
    yield


@pytest.mark.usefixtures("_quickly")
def test_a_run_is_interrupted_repeated_and_lent(tmp_path, capsys):
  workdir = tmp_path / "[2024] :smile: [/x]" / NAME
  run(tmp_path / "plain")
  with pytest.raises(Interrupted):
    run(workdir, stop_at(14))
  before = last_checkpoint(workdir)
  assert f"state 1 is resumed after step {before.name}\n" in run(workdir)
  assert differences(tmp_path / "plain", workdir) == []
  config = small_config(workdir, **SIZES)
  settings = {field.name: getattr(config, field.name) for field in fields_of(Config)}
  assert run_script.main(["run.py", *run_script.arguments_of(settings)]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert f"states 1 to 2 are done already, in {workdir}" in lines
  assert f"report: {workdir}/report.html" in lines
  other = tmp_path / f"other {NAME}"
  text = run(other, from_workdir=str(workdir))
  assert f"states 1 to 2 are taken from {workdir}\n" in text
  output = tmp_path / NAME / f"{'x' * 250}.html"  # as long as can be
  flags = [f"--workdir={workdir}", f"--workdir={other}", f"--output={output}"]
  assert compare.main(["compare.py", *flags]) == 0
  page = Page(output)
  assert {NAME, f"other {NAME}"} <= {cell for row in page.rows for cell in row[1:]}
  assert f"trained in {workdir} and taken from there." in page.text


def test_bars_are_literal():
  for terminal in (True, False):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=200)
    with ProgressBars(console) as bars:
      bars.add("[red]x[/red] :smile: [/x]", 1)(1)
    assert "[red]x[/red] :smile: [/x]" in console.file.getvalue()


# Files.


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "x" + "€" * 84])
def test_a_file_may_have_the_longest_of_names(tmp_path, name):
  for content in (b"1", b"2"):
    write_bytes(tmp_path / name, content)
  assert [path.name for path in tmp_path.iterdir()] == [name]
  assert (tmp_path / name).read_bytes() == b"2"


# Data.


@pytest.mark.parametrize("name", ["everything", "stars", "a class of characters"])
def test_data_are_prepared_and_read(tmp_path, name, capsys):
  name = NAMES[name]
  source = archives.cifar(tmp_path / "archives" / name)
  data_dir = tmp_path / "data" / name
  decoy = tmp_path / "data" / "ft1" / "cifar100" / "1.0.0" / "incomplete.ABCDEF_x"
  decoy.parent.mkdir(parents=True)
  decoy.touch()
  flags = [f"--archives={source}", f"--data_dir={data_dir}", "--allow_partial"]
  assert prepare.main(["prepare.py", "cifar100", *flags]) == 0
  version = data_dir / "cifar100" / "1.0.0"
  assert f"details: {version / 'prepare.json'}\n" in capsys.readouterr().out
  assert decoy.exists()
  for file in labels.FILES:  # so that they are read from the records
    (version / file).unlink()
  config = config_of(dataset="cifar100", data_dir=str(data_dir))
  assert len(open_dataset(config).train.labels) == len(archives.CIFAR_TRAIN)
  assert f"labels of train in {version}, once\n" in capsys.readouterr().err


@pytest.mark.parametrize("image_size", [0, 80])
def test_classes_and_images_may_have_any_name(tmp_path, image_size):
  classes = sorted([*ASCII.replace(".", ""), NAME, "n" * 255, "\udcff", "a\nb"])
  root = folder_of(tmp_path / NAME, classes=dict.fromkeys(classes), each=1)
  for name in (*ASCII, NAME, "\udcff"):
    save(root / "train" / "~" / f"x{name}.png", (1, 2, 3))
  for _ in range(2):  # of which the second one remembers
    dataset = open_folder(root, image_size=image_size)
    assert sorted(dataset.class_names) == classes
    assert all(map(str.isprintable, map(str, fingerprint.parts(dataset).values())))
    assert len(dataset.train.labels) == len(classes) + len(ASCII) + 2


# What is refused.

REFUSED = {
  "a\\b": "for its backslash",
  "a\\b/run": "for its backslash",
  "logs:/run": "below logs:, for its ending gs:",
  "gs:x/run": None,
  "settings:/run": "below settings:, for its ending gs:",
  "x.__lock": "below x.__lock, for its ending .__lock",
  "\udcff": "not UTF-8",
  "/s3/run": "all below /s3 is taken for storage in a cloud",
  "s3/run": None,
  "a" * 4000: "bytes, and with those of its files it would be longer than",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_work_directory_is_refused_before_all_else(tmp_path, monkeypatch, name):
  monkeypatch.chdir(tmp_path)
  for flag in ("workdir", "from_workdir"):
    if REFUSED[name] is None:
      config_of(**{flag: name})
      continue
    with pytest.raises(ConfigError) as error:
      config_of(**{flag: name})
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"--{flag}={name[:500]}")
    assert REFUSED[name] in line
    assert line.endswith("; name another folder")
    assert len(line) < 1000


def test_all_of_a_path_is_looked_at(tmp_path, monkeypatch):
  with pytest.raises(DataError, match=r"^--data_dir=/gs/x cannot be used: all below /gs"):
    open_dataset(config_of(dataset="cifar100", data_dir="/gs/x"))
  (tmp_path / "a\\b").mkdir()
  monkeypatch.chdir(tmp_path / "a\\b")
  with pytest.raises(ConfigError, match=r"^--workdir=run \(.*/a\\b/run\) cannot be used"):
    config_of(workdir="run")


def test_a_dangling_link_is_followed(tmp_path):
  (tmp_path / "link").symlink_to("real")
  (tmp_path / "folder").symlink_to("link")
  assert workdir_path(config_of(workdir=str(tmp_path / "folder"))) == (
    pathlib.Path(os.path.realpath(tmp_path)) / "real"
  )
