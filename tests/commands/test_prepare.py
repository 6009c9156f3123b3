"""The command experiments/prepare.py."""

import itertools
import os
import signal

import archives
import pytest
import tensorflow_datasets as tfds

from ssil_jax.commands import prepare
from ssil_jax.data import builders
from ssil_jax.data.builders.imagenet import Imagenet

PARTIAL = "--allow_partial"


@pytest.fixture
def folders(tmp_path):
  archives.imagenet(tmp_path / "archives")
  (tmp_path / "data").mkdir()
  return [f"--archives={tmp_path / 'archives'}", f"--data_dir={tmp_path / 'data'}"]


def run(*arguments):
  return prepare.main(["prepare.py", *arguments])


def test_help_tells_of_every_flag(capsys):
  assert run("--help") == 0
  text = capsys.readouterr().out
  for name in ("archives", "data_dir", "allow_partial", "resize", "restart_markers"):
    assert f"\n  --{name}\n" in text
  for name in builders.BUILDERS:
    assert f"prepare.py {name} " in text


def test_a_data_set_is_prepared(folders, tmp_path, capsys):
  flags = [*folders, PARTIAL, "--resize=64"]
  assert run("imagenet", *flags) == 0
  text = capsys.readouterr().out
  directory = tmp_path / "data" / "imagenet" / "1.0.0"
  assert "train: 10 images of 2 classes in 1 shards" in text
  assert "validation: 3 images of 2 classes in 1 shards" in text
  assert "left out: 1 images, class is not in the training archive" in text
  assert "in train: 1 images, CMYK, made RGB" in text
  assert f"details: {directory / 'prepare.json'}" in text
  assert tfds.builder_from_directory(directory).info.splits["train"].num_examples == 10
  assert run("imagenet", *flags) == 0
  assert f"{directory} was prepared before" in capsys.readouterr().out


def test_both_folders_may_be_one_and_new_ones_are_made(folders, tmp_path):
  archives_flag, _ = folders
  for data_dir in (tmp_path / "archives", tmp_path / "a" / "b"):
    assert run("imagenet", archives_flag, f"--data_dir={data_dir}", PARTIAL) == 0
    assert (data_dir / "imagenet" / "1.0.0" / "prepare.json").exists()


def test_ctrl_c_keeps_what_is_finished(folders, tmp_path, capfd, monkeypatch):
  monkeypatch.setattr(Imagenet, "shard_bytes", 2500)
  recode, count = Imagenet._recode, itertools.count(1)

  def recode_and_interrupt(image, options):
    if next(count) == 8:
      os.kill(os.getpid(), signal.SIGINT)
    return recode(image, options)

  monkeypatch.setattr(Imagenet, "_recode", staticmethod(recode_and_interrupt))
  assert run("imagenet", *folders, PARTIAL) == 130
  lines = capfd.readouterr().err.splitlines()
  assert lines[0] == "stopping; what is finished is kept; Ctrl-C again stops at once"
  assert lines[-1] == (
    "stopped by SIGINT; finished shards are kept: rerun the command to resume"
  )
  work = tmp_path / "data" / "imagenet" / ".preparing_1.0.0"
  assert len(list(work.glob("files/*"))) >= 4
  assert run("imagenet", *folders, PARTIAL) == 0
  assert next(count) < 8 + 13
  assert os.listdir(work.parent) == ["1.0.0"]
