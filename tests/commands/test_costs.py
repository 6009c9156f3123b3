"""What --dry_run lists: each run in a line, its cost by measured steps, and the totals."""

import json
import re

import pytest

from ssil_jax.commands import costs, paper, sweep

DIGITS = ["paper.py", "--scale=digits", "--output=o", "--dry_run"]


@pytest.fixture
def measured(monkeypatch):
  """Steps are taken for measured at 1000 images a second; the methods that were."""
  methods = []

  def measure(config):
    methods.append(config.method)
    return 1000.0

  monkeypatch.setattr(costs, "measure_apart", measure)
  return methods


def rows(text):
  """Name of a run -> what follows in its line."""
  found = [line.split(maxsplit=1) for line in text.splitlines()]
  return {name: rest for name, rest in found if re.fullmatch(r".+-\d+", name)}


def images_of(row):
  return int(row.split()[1].replace(",", ""))


def test_each_run_is_a_line_with_epochs_images_and_hours(measured, capsys):
  assert paper.main([*DIGITS, "figure5", "figure7"]) == 0
  out, err = capsys.readouterr()
  listed = rows(out)
  assert list(listed) == [
    *(f"digits-{method}-T5-M20-N8-0" for method in ("icarl", "ft")),
    *(f"digits-{run}-N8-0" for run in ("il2m-T5-M20", "ssil-T5-M20", "il2m-T5-M10")),
  ]
  epochs, images, hours = listed["digits-ft-T5-M20-N8-0"].split()
  assert epochs == str(20 + 4 * 25)
  assert hours == f"{int(images.replace(',', '')) / 1000 / 3600:.2f}"
  lent = "takes {} of digits-ft-T5-M20-N8-0"
  assert listed["digits-il2m-T5-M20-N8-0"].split(maxsplit=3) == [
    *("0", "0", "0.00"),
    lent.format("5 states"),
  ]
  assert listed["digits-ssil-T5-M20-N8-0"].endswith(lent.format("1 state"))
  total = sum(map(images_of, listed.values()))
  last = out.splitlines()[-1]
  assert last.startswith(f"to do: 5 runs, {total:,} images, {total / 3.6e6:.1f} hours")
  # FT's steps and IL2M's are the same, whatever N_M is, which they do not use.
  assert measured == ["icarl", "ft", "ssil"]
  assert err.splitlines() == [
    f"measuring a step of digits-{method}-T5-M20-N8-0 ({number} of 3) ..."
    for number, method in enumerate(measured, start=1)
  ]


def test_what_was_measured_here_is_not_measured_again(measured, tmp_path, capsys):
  path = tmp_path / "o" / "speed.json"
  assert paper.main([*DIGITS, "table2"]) == 0
  assert len(measured) == 4  # N_M
  listed = rows(capsys.readouterr().out)
  assert paper.main([*DIGITS, "table2", "figure1"]) == 0
  out, err = capsys.readouterr()
  assert listed.items() <= rows(out).items()
  assert len(measured) == 5
  assert "(1 of 1)" in err
  # Another machine's are of no use, nor is a file that is broken.
  saved = json.loads(path.read_text())
  for row in saved:
    row["machine"]["cpu"] = "another"
  for text in (json.dumps(saved), "{", '[{"kind": 1}]'):
    path.write_text(text)
    measured.clear()
    assert paper.main([*DIGITS, "figure1"]) == 0
    assert measured == ["ft"]


def test_a_shard_is_listed_with_its_total_and_that_of_all(measured, capsys):
  listed, totals = [], []
  for number in (1, 2, 3):
    assert paper.main([*DIGITS, "table2", "figure1", f"--shard={number}/3"]) == 0
    out = capsys.readouterr().out
    listed.append(rows(out))
    *_, mine, whole = out.splitlines()
    cost = sum(map(images_of, listed[-1].values()))
    assert mine.startswith(f"shard {number}/3 to do: ")
    assert f", {cost:,} images" in mine
    totals.append(whole)
  names = [name for shard in listed for name in shard]
  assert len(names) == len({*names}) == 12 + 2
  everything = sum(images_of(row) for shard in listed for row in shard.values())
  assert len({*totals}) == 1
  assert totals[0].startswith(f"all shards to do: 14 runs, {everything:,} images")


def test_a_sweep_lists_its_shard_too(measured, capsys):
  command = ["sweep.py", "--methods=ft,wa", "--output=o", "--dry_run", "--shard=2/2"]
  assert sweep.main(command) == 0
  out = capsys.readouterr().out
  assert len(rows(out)) == 1
  assert "shard 2/2 to do: 1 run, " in out


def test_a_study_is_listed_before_its_data_are_prepared(measured, capsys):
  command = ["paper.py", "figure4", "--data_dir=.", "--output=o", "--dry_run"]
  assert paper.main([*command, "--", "--precision=bfloat16"]) == 0
  out = capsys.readouterr().out
  listed = rows(out)
  assert len(listed) == 4 + 4 + 3
  epochs, images, hours, *_ = listed["imagenet-ft-T10-M10000-N32-0"].split()
  assert (epochs, hours) == (str(100 + 9 * 25), "-")
  # FT goes through the new images and floor(10,000 / seen) exemplars of each old class, in
  # batches of 128. As if all classes were alike: 1,281,167 images, 167 times 1,282.
  new = [100 * 1_282, 67 * 1_282 + 33 * 1_281, *[100 * 1_281] * 8]
  kept = [10_000 // (100 * old) * 100 * old if old else 0 for old in range(10)]
  sizes = [sum(both) for both in zip(new, kept, strict=True)]
  steps = [size // 128 * (25 if t else 100) for t, size in enumerate(sizes)]
  assert int(images.replace(",", "")) == 128 * sum(steps)
  # How many images the 1,000 largest landmarks have is not known here.
  assert listed["landmarks_v2-1k-ft-T10-M10000-N32-0"].split()[1:3] == ["-", "-"]
  assert "note: ImageNet-1K is not there" in out
  assert "note: all runs have --precision=bfloat16 instead of float32" in out
  assert not measured
