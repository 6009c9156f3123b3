"""The command experiments/prepare.py."""

import os
import pathlib
import re
import signal

import archives
import prepare
import pytest
import tensorflow_datasets as tfds

from ssil_jax.data.builders.imagenet import Imagenet


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
  for name in prepare.builders.BUILDERS:
    assert f"prepare.py {name} " in text


def test_a_data_set_is_prepared(folders, tmp_path, capsys):
  flags = [*folders, "--allow_partial", "--resize=64"]
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


@pytest.mark.parametrize("dataset", ["landmarks_v2/10k", "cifar100"])
def test_the_other_data_sets(dataset, tmp_path, folders):
  archives.landmarks(tmp_path / "archives", {1: 11, 2: 12})
  archives.cifar(tmp_path / "archives")
  assert run(dataset, *folders, "--allow_partial") == 0
  assert (tmp_path / "data" / dataset / "1.0.0" / "prepare.json").exists()


def test_ctrl_c_keeps_what_is_finished(folders, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(Imagenet, "shard_bytes", 2500)
  recode = Imagenet._recode
  seen = []

  def recode_and_interrupt(self, image, recoding):
    seen.append(image)
    if len(seen) == 8:
      os.kill(os.getpid(), signal.SIGINT)
    return recode(self, image, recoding)

  monkeypatch.setattr(Imagenet, "_recode", recode_and_interrupt)
  assert run("imagenet", *folders, "--allow_partial") == 130
  lines = capsys.readouterr().err.splitlines()
  assert lines[-1] == "interrupted: finished shards are kept; the same command continues"
  work = tmp_path / "data" / "imagenet" / ".preparing_1.0.0"
  finished = len(list((work / "finished").iterdir()))
  assert finished >= 4
  assert run("imagenet", *folders, "--allow_partial") == 0
  assert len(seen) < 8 + 13
  assert os.listdir(work.parent) == ["1.0.0"]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "the first argument must be a data set: .*imagenet, landmarks_v2/1k"),
    (["--allow_partial"], "the first argument must be a data set"),
    (["mnist"], "mnist is not a data set that can be prepared; DATASET is one of imagenet"),
    (["imagenet"], "--archives=DIR is missing: folder with the official archives"),
    (["imagenet", "--archives=."], "--data_dir=DIR is missing: folder to write to"),
    (["imagenet", "--archives=/nowhere", "--data_dir=."], "--archives=/nowhere is not a f"),
    (["imagenet", "--archives=.", "--data_dir=/nowhere"], "--data_dir=/nowhere is not a"),
    (["imagenet", "--archives=.", "--data_dir=./"], "are the same folder"),
    (["imagenet", "--size=320"], "Unknown command line flag 'size'"),
    (["imagenet", "--resize=small"], "resize"),
    (["imagenet", "cifar100"], "'cifar100' is not a flag"),
  ],
)
def test_mistakes_are_one_line(arguments, message, capsys, monkeypatch):
  monkeypatch.chdir(pathlib.Path(prepare.__file__).parent.parent)
  assert run(*arguments) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("error: ")
  assert re.search(message, line)
