"""predict.py: what it prints, in which format, of which photos; and its exit codes."""

import csv
import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import bad_inputs
import models
import pytest
from folders import ROOT, encode, noise

import ssil_jax
from ssil_jax.commands import predict


@pytest.fixture(scope="module")
def workdir():
  return models.finished(method="icarl")


@pytest.fixture
def photos(tmp_path):
  """Photos of any names, in a folder with what is none."""
  folder = tmp_path / "photos"
  (folder / "more").mkdir(parents=True)
  names = ("b.png", "a.jpg", "more/猫 [red].png", 'more/","quo"te.png')
  for seed, name in enumerate(names):
    file_format = "JPEG" if name.endswith("jpg") else "PNG"
    (folder / name).write_bytes(encode(noise(20, 30, seed=seed), file_format))
  (folder / "notes.txt").write_text("no photo")
  return folder


def outcome(capfd, *arguments):
  """Exit code, standard output and the lines of standard error."""
  capfd.readouterr()
  code = predict.main(["predict.py", *map(str, arguments)])
  out, error = capfd.readouterr()
  return code, out, error.splitlines()


def in_order(photos):
  """A photo given by itself, then the folder's, by name."""
  names = ("b.png", "a.jpg", "b.png", 'more/","quo"te.png', "more/猫 [red].png")
  return [str(photos / name) for name in names]


def answers(workdir, paths, **options):
  return ssil_jax.load(workdir).predict(paths, **options)


def test_json_is_a_list_in_the_order_given(workdir, photos, capfd):
  code, out, error = outcome(
    capfd, f"--workdir={workdir}", "--format=json", photos / "b.png", photos
  )
  assert (code, error) == (0, [])
  rows = json.loads(out)
  assert [row["file"] for row in rows] == in_order(photos)
  for row, (_, classes) in zip(rows, answers(workdir, in_order(photos)), strict=True):
    assert row.keys() == {"file", "classes"}
    assert len(row["classes"]) == 5
    assert row["classes"] == [
      {"name": name, "probability": pytest.approx(p, rel=1e-5)} for name, p in classes
    ]


def test_csv_has_a_row_for_each_class(workdir, photos, capfd):
  code, out, _ = outcome(
    capfd, f"--workdir={workdir}", "--format=csv", "--top=2", photos / "b.png", photos
  )
  assert code == 0
  header, *rows = csv.reader(io.StringIO(out))
  assert header == ["file", "rank", "class", "probability"]
  expected = [
    [file, str(rank), name, pytest.approx(p, rel=1e-4)]
    for file, classes in answers(workdir, in_order(photos), top=2)
    for rank, (name, p) in enumerate(classes, start=1)
  ]
  assert [[*row[:3], float(row[3])] for row in rows] == expected


def test_a_table_names_the_best_class_and_the_others(workdir, photos, capfd, monkeypatch):
  monkeypatch.chdir(photos)
  code, out, _ = outcome(capfd, f"--workdir={workdir}", "b.png", "more")
  assert code == 0
  found = answers(workdir, ["b.png", 'more/","quo"te.png', "more/猫 [red].png"])
  rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()]
  # A row of the table goes on where the photo's cell is empty.
  cells = []
  for row in filter(None, rows):
    if row[0]:
      cells.append(["", "", "", ""])
    cells[-1] = [before + part for before, part in zip(cells[-1], row, strict=True)]
  assert len(cells) == len(found) == 3
  for cell, (file, classes) in zip(cells, found, strict=True):
    others = ", ".join(f"{name} {p:.1%}" for name, p in classes[1:])
    # Names are whole, and markup is no markup.
    expected = [file, classes[0].name, f"{classes[0].probability:.1%}", others]
    assert ["".join(c.split()) for c in cell] == ["".join(e.split()) for e in expected]
  assert "\x1b" not in out  # to no terminal


def test_an_earlier_state_and_smaller_batches(workdir, photos, capfd):
  code, out, _ = outcome(
    capfd,
    f"--workdir={workdir}",
    "--state=1",
    "--format=json",
    "--batch_size=2",
    photos,
  )
  assert code == 0
  names = ssil_jax.load(workdir, state=1).class_names
  assert len(names) == 2
  for row in json.loads(out):
    assert {pair["name"] for pair in row["classes"]} == {*names}
    assert sum(pair["probability"] for pair in row["classes"]) == pytest.approx(1)


def test_photos_that_cannot_be_read_are_named_and_counted(workdir, photos, capfd):
  (photos / "b.png").write_text("none")
  os.mkfifo(photos / "pipe.png")
  code, out, error = outcome(capfd, f"--workdir={workdir}", "--format=json", photos)
  assert code == 0
  assert [row["file"] for row in json.loads(out)] == [
    str(photos / name) for name in ("a.jpg", 'more/","quo"te.png', "more/猫 [red].png")
  ]
  assert error == [
    f"warning: cannot read image {photos}/b.png: not a JPEG, PNG or WebP image",
    f"warning: cannot read image {photos}/pipe.png: it is a folder, pipe or device, and "
    "not a file",
    "warning: 2 of 5 photos cannot be read and are left out",
  ]


@pytest.mark.parametrize(
  ("kind", "printed"), [("json", "[]\n"), ("csv", ""), ("table", "")]
)
def test_if_none_can_be_read_the_exit_code_is_2(workdir, tmp_path, capfd, kind, printed):
  (tmp_path / "a.png").write_text("none")
  code, out, error = outcome(
    capfd, f"--workdir={workdir}", f"--format={kind}", tmp_path / "a.png"
  )
  assert (code, out) == (2, printed)
  assert error == [
    f"warning: cannot read image {tmp_path}/a.png: not a JPEG, PNG or WebP image",
    "error: none of 1 photos can be read",
  ]


def test_names_that_are_no_text_are_printed_all_the_same(workdir, tmp_path, capfd):
  odd = os.fsencode(tmp_path) + b"/\xff\x1b[31m.png"
  pathlib.Path(os.fsdecode(odd)).write_bytes(encode(noise(9, 9), "PNG"))
  bad = os.fsencode(tmp_path) + b"/\xfe\n.png"
  pathlib.Path(os.fsdecode(bad)).write_bytes(b"none")
  for kind in ("json", "csv", "table"):
    code, out, error = outcome(capfd, f"--workdir={workdir}", f"--format={kind}", tmp_path)
    assert code == 0
    assert len(error) == 2
    assert "\x1b" not in "".join(error)
    if kind == "json":
      (row,) = json.loads(out)
      assert row["file"] == os.fsdecode(odd)
    if kind == "csv":
      assert len([*csv.reader(io.StringIO(out))]) == 6
    if kind == "table":
      assert "\x1b" not in out


def test_a_copy_answers_elsewhere_and_is_not_changed(workdir, photos, tmp_path, capfd):
  alone = models.model_alone(workdir, tmp_path / "copy of a model")
  before = {p: (p.stat().st_mtime_ns, p.is_dir()) for p in [alone, *alone.rglob("*")]}
  found = outcome(capfd, f"--workdir={alone}", "--format=json", photos)
  assert found == outcome(capfd, f"--workdir={workdir}", "--format=json", photos)
  assert {p: (p.stat().st_mtime_ns, p.is_dir()) for p in before} == before


def test_a_method_of_ones_own(photos, tmp_path, capfd):
  bad_inputs.mine()(tmp_path)
  models.train(tmp_path / "run", models.photos_in(tmp_path / "images"), method="mine:MINE")
  code, _, error = outcome(capfd, "--workdir=run", photos)
  assert code == 2
  assert error == [
    f"error: the model in {tmp_path}/run was trained by a method of someone's own: give "
    "--method=mine:MINE to have its code imported"
  ]
  code, _, error = outcome(capfd, "--workdir=run", "--method=mine:MINE", photos)
  assert (code, error) == (0, [])
  del sys.modules["mine"]
  bad_inputs.mine(changes="predict=SSIL.predict")(tmp_path)
  code, _, error = outcome(capfd, "--workdir=run", "--method=mine:MINE", photos)
  assert code == 0
  assert error == [
    f"warning: the code of --method=mine:MINE has changed since the model in "
    f"{tmp_path}/run was trained: its predictions may be others"
  ]


QUICK = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from quick import quick_network
from ssil_jax.commands import execute
with quick_network():
  execute("predict")
"""


def test_in_a_process_of_its_own(workdir, photos, tmp_path):
  # Names that are no text, in a locale without their letters.
  odd = os.fsencode(photos) + b"/\xff\x1b[31m.png"
  pathlib.Path(os.fsdecode(odd)).write_bytes(encode(noise(9, 9), "PNG"))
  code = QUICK.format(root=str(ROOT), tests=str(ROOT / "tests"))
  command = [sys.executable, "-c", code, f"--workdir={workdir}"]
  environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(
    [*command, "--format=csv", photos], capture_output=True, env=environment
  )
  assert (done.returncode, done.stderr) == (0, b"")
  rows = [*csv.reader(io.StringIO(done.stdout.decode("ascii")))]
  assert len(rows) == 1 + 5 * 5
  assert "\\udcff" in rows[-1][0]


def test_the_script_says_what_it_does_and_what_is_wrong(photos):
  command = [sys.executable, ROOT / "experiments" / "predict.py", "--workdir=none"]
  done = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
  assert done.stdout.splitlines()[0] == predict.__doc__
  assert "PHOTO_OR_FOLDER" in done.stdout
  done = subprocess.run([*command, photos / "none.png"], capture_output=True, text=True)
  assert done.returncode == 2
  assert done.stderr == (
    f"error: {photos}/none.png does not exist: name photos, or folders of photos\n"
  )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_between_batches(
  workdir, photos, capfd, monkeypatch, number, code
):
  load = ssil_jax.load

  def loaded(*args, **options):
    os.kill(os.getpid(), number)
    return load(*args, **options)

  monkeypatch.setattr("ssil_jax.model.trained.load", loaded)
  assert outcome(capfd, f"--workdir={workdir}", photos)[:2] == (code, "")


def test_a_disk_without_room_is_no_matter(workdir, photos, capfd):
  with bad_inputs.full_disk(pathlib.Path()):
    assert outcome(capfd, f"--workdir={workdir}", photos)[0] == 0


def test_photos_are_no_flags(workdir, photos, capfd, monkeypatch):
  # Behind -- all are paths, whatever they begin with.
  monkeypatch.chdir(photos)
  shutil.copy("b.png", "--b.png")
  code, out, _ = outcome(capfd, f"--workdir={workdir}", "--format=json", "--", "--b.png")
  assert code == 0
  assert [row["file"] for row in json.loads(out)] == ["--b.png"]
