"""What TensorBoard, Weights & Biases and others are told, read back from their files."""

import json
import shutil
import struct
import sys

import pytest
from folders import config_of, encode, noise
from written_runs import RESULTS

from ssil_jax import config as config_lib
from ssil_jax.errors import ConfigError, WorkdirError
from ssil_jax.training import writers
from ssil_jax.training.recorder import Recorder
from ssil_jax.training.writers import Event

PICTURE = encode(noise(5, 7), "PNG")
MEASURES = {
  **{"average/top1": 0.763, "average/top5": 0.98, "average/imbalance": 0.2},
  **{"last/top1": 0.626, "last/error_old_as_new": 0.3, "last/imbalance": 0.2},
}


def record(step):
  names = ("loss", "top1", "learning_rate", "images_per_second", "input_wait")
  return {"step": step, **dict.fromkeys(names, step / 8)}


def opened(folder, *openers, steps_done=0):
  steps = {"steps_done": steps_done, "steps_recorded": steps_done}
  return Recorder(folder, **steps, openers=openers)


def interrupted(recorder, steps):
  with recorder:
    for step in steps:
      recorder.add(record(step))
    raise KeyboardInterrupt


class Told:
  """A writer that keeps what it is told, and how it ended."""

  def __init__(self, opening):
    self.opening, self.steps, self.failed = opening, [], None

  def scalars(self, values, *, step):
    self.steps.append(step)

  def close(self, *, failed):
    self.failed = failed


# Any writer ------------------------------------------------------------------------------


@pytest.mark.parametrize("after", ["", "\0\0\n", '{"step": "50"}\n', '{"step": 60'])
def test_writers_know_up_to_which_step_others_were_told(tmp_path, after):
  told = []
  opener = lambda opening: told.append(Told(opening)) or told[-1]  # noqa: E731
  with pytest.raises(KeyboardInterrupt):
    interrupted(opened(tmp_path, opener), (10, 20, 30))
  assert told[0].steps == [10, 20, 30]
  assert (told[0].opening.steps_kept, told[0].opening.steps_seen) == (0, 0)
  assert told[0].failed is True
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write(after)  # of a process that was killed
  with opened(tmp_path, opener, steps_done=10) as recorder:
    assert (told[1].opening.steps_kept, told[1].opening.steps_seen) == (10, 30)
    for step in (20, 30, 40):
      recorder.add(record(step))
  assert told[1].steps == [20, 30, 40]
  assert told[1].failed is False


def test_a_writer_that_cannot_be_opened_leaves_none_open_and_the_records_as_they_are(
  tmp_path,
):
  def refused(opening):
    raise ConfigError("no")

  before = json.dumps(record(10)) + "\n" + json.dumps(record(20)) + "\n"
  (tmp_path / "metrics.jsonl").write_text(before)
  told = []
  opener = lambda opening: told.append(Told(opening)) or told[-1]  # noqa: E731
  with pytest.raises(ConfigError, match="^no$"):
    opened(tmp_path, opener, refused, steps_done=10)
  assert told[0].failed is True
  assert (tmp_path / "metrics.jsonl").read_text() == before


def test_tables_in_markdown():
  columns, row = ("name", "value"), ("a|b\nc", None)
  assert writers.markdown_table(columns, [row, ("milestones", [8, 16])]) == (
    "| name | value |\n| --- | --- |\n| a\\|b c | - |\n| milestones | 8,16 |"
  )


# TensorBoard -----------------------------------------------------------------------------


def tensorboard_values(folder):
  """Tag -> (step, value) of every event, the files being length-prefixed records."""
  found = {}
  for path in (folder / "tensorboard").iterdir():
    content, start = path.read_bytes(), 0
    while start < len(content):
      (length,) = struct.unpack_from("<Q", content, start)
      event = Event.FromString(content[start + 12 : start + 12 + length])
      found |= {value.tag: (event.step, value) for value in event.summary.value}
      start += 12 + length + 4  # length and its checksum, record, checksum
  return found


def test_tensorboard_has_settings_measures_texts_and_figures(tmp_path):
  settings = config_lib.to_json(config_of(seed=3, milestones=(4, 9)))
  with opened(tmp_path, writers.TensorBoard) as recorder:
    recorder.add_summary(settings, RESULTS, {"accuracy": PICTURE}, step=30)
  from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

  values = tensorboard_values(tmp_path)
  assert {step for step, _ in values.values()} == {30}
  plugins = {
    name: HParamsPluginData.FromString(
      values[f"_hparams_/{name}"][1].metadata.plugin_data.content
    )
    for name in ("experiment", "session_start_info")
  }
  shown = plugins["session_start_info"].session_start_info.hparams
  assert shown["method"].string_value == "ssil"
  assert shown["seed"].number_value == 3
  assert shown["reset_momentum"].bool_value is settings["reset_momentum"]
  assert shown["milestones"].string_value == "4,9"
  assert shown.keys() == settings.keys()
  # The tab finds a run's measures by the names of its scalars.
  named = [info.name.tag for info in plugins["experiment"].experiment.metric_infos]
  scalars = {name: values[name][1].simple_value for name in named}
  assert {name: scalars[name] for name in MEASURES} == pytest.approx(MEASURES)
  (text,) = values["settings/text_summary"][1].tensor.string_val
  assert b"| seed | 3 |" in text
  (text,) = values["results/text_summary"][1].tensor.string_val
  assert b"| 2 | 4 | 62.6 | 96.0 | 30.0 | 10.0 | 20.0 | 85.0 | 5.6 |" in text
  image = values["figures/accuracy"][1].image
  assert (image.width, image.height, image.encoded_image_string) == (7, 5, PICTURE)


# Weights & Biases, the real one, offline -------------------------------------------------


@pytest.fixture
def offline(monkeypatch, tmp_path):
  """An environment in which wandb asks for nobody and sends nothing."""
  for name in ("WANDB_API_KEY", "WANDB_DIR", "WANDB_RUN_ID", "WANDB_PROJECT"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
  monkeypatch.setenv("WANDB_MODE", "offline")


def wandb_records(path):
  """Reads a .wandb file: records in blocks of 32 KiB, as of LevelDB's log."""
  from wandb.proto.wandb_internal_pb2 import Record

  content, at, parts = path.read_bytes(), 7, b""
  while at + 7 <= len(content):
    if (left := 32768 - at % 32768) < 7:
      at += left
      continue
    _, length, kind = struct.unpack_from("<IHB", content, at)
    parts += content[at + 7 : at + 7 + length]
    at += 7 + length
    if kind in (1, 4):  # whole, or the last part
      yield Record.FromString(parts)
      parts = b""


def history(path):
  rows = [
    r.history for r in wandb_records(path) if r.WhichOneof("record_type") == "history"
  ]
  return [
    {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in row.item}
    for row in rows
  ]


def test_wandb_gets_each_step_once_in_one_run(tmp_path, offline):
  folder = tmp_path / "run"
  folder.mkdir()
  config = config_of(wandb="project", milestones=(4, 9))
  with pytest.raises(KeyboardInterrupt):
    interrupted(opened(folder, *writers.openers(config)), (10, 20))
  (first,) = folder.glob("wandb/offline-run-*")
  first = first.rename(tmp_path / "first")  # whose name has the second in which it began
  # The next process is killed at once, and drops the records that tell what was sent.
  opening = writers.Opening(folder, steps_kept=10, steps_seen=20, say=print)
  writers.openers(config)[1](opening).close(failed=True)
  shutil.rmtree(folder / "wandb")
  (folder / "metrics.jsonl").write_text(json.dumps(record(10)) + "\n")
  with opened(folder, *writers.openers(config), steps_done=10) as recorder:
    recorder.add_scores({"top1": 0.25}, step=10)  # before step 20: that was sent, too
    recorder.add(record(20))
    recorder.add_scores({"top1": 0.375}, step=20)
    recorder.add(record(30))
    recorder.add_scores({"state": 2, "top1": 0.5, "imbalance": None}, step=30)
    recorder.add_summary({}, RESULTS, {"accuracy": PICTURE}, step=30)
  (first,) = first.glob("*.wandb")
  (second,) = folder.glob("wandb/offline-run-*/*.wandb")
  known = json.loads((folder / "wandb.json").read_text())
  assert known["steps_sent"] == 20
  assert first.name == second.name == f"run-{known['id']}.wandb"
  assert [row["step"] for row in history(first)] == [10, 20]
  assert history(first)[1]["train/loss"] == 2.5
  rows = history(second)
  losses = [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]
  assert losses == [(30, 3.75)]
  scores = [(row["step"], row["test/top1"]) for row in rows if "test/top1" in row]
  assert scores == [(20, 0.375), (30, 0.5)]
  (begun,) = [r.run for r in wandb_records(first) if r.WhichOneof("record_type") == "run"]
  settings = {item.key: json.loads(item.value_json) for item in begun.config.update}
  assert (begun.project, settings["method"], settings["milestones"]) == (
    "project",
    "ssil",
    [4, 9],
  )
  summaries = [
    {i.key or i.nested_key[0]: json.loads(i.value_json) for i in r.summary.update}
    for r in wandb_records(second)
    if r.WhichOneof("record_type") == "summary"
  ]
  assert {k: v for one in summaries for k, v in one.items() if k in MEASURES} == MEASURES
  (picture,) = second.parent.glob("files/media/images/figures/accuracy_*.png")
  assert picture.read_bytes().startswith(b"\x89PNG")
  assert len(list(second.parent.glob("files/media/html/*.html"))) == 2
  ends = [
    next(
      r.exit.exit_code for r in wandb_records(p) if r.WhichOneof("record_type") == "exit"
    )
    for p in (first, second)
  ]
  assert ends == [1, 0]


def test_wandb_without_a_login_is_one_line(tmp_path, offline, monkeypatch):
  import wandb

  monkeypatch.delenv("WANDB_MODE")
  wandb.teardown()  # a process reads its environment only once
  with pytest.raises(ConfigError) as error:
    opened(tmp_path, *writers.openers(config_of(wandb="project")))
  message = str(error.value)
  assert message.startswith("--wandb=project cannot be opened (")
  assert message.endswith("or set WANDB_MODE=offline and upload later by `wandb sync`")
  assert "\n" not in message


def test_a_damaged_id_is_named(tmp_path, offline):
  (tmp_path / "wandb.json").write_text('{"id": "abc"}')
  with pytest.raises(WorkdirError, match="wandb.json has no run and its steps: put the"):
    opened(tmp_path, *writers.openers(config_of(wandb="project")))


def test_the_folder_that_wandb_leaves_is_not_taken_for_it(tmp_path, monkeypatch):
  (tmp_path / "wandb").mkdir()
  monkeypatch.setattr(sys, "path", [str(tmp_path)])
  monkeypatch.delitem(sys.modules, "wandb", raising=False)
  writers.check(config_of())
  with pytest.raises(ConfigError, match="^--wandb=p needs wandb: pip install "):
    writers.check(config_of(wandb="p"))
