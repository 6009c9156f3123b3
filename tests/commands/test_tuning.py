"""Sweeps with a grid: what is tried, what is chosen, and what is trained with it."""

import functools
import json
import sys

import pytest
from written_runs import write_run

from ssil_jax.commands import planning, run, sweep
from ssil_jax.errors import ConfigError

# Stands in for run.py: learns best with a learning rate of 0.1, and seed 1 learns better.
STAND_IN = """
import json, pathlib, shutil, sys
flags = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:])
workdir = pathlib.Path(flags["workdir"])
with open({calls!r}, "a") as file:
  file.write(json.dumps(flags) + "\\n")
rate, seed = float(flags.get("learning_rate", 0)), int(flags["seed"])
top1 = 0.5 - abs(rate - 0.1) + 0.25 * seed
results = json.loads(pathlib.Path({written!r}, "results.json").read_text())
results["average"]["top1"] = top1
results |= {{"seed": seed, "method_title": flags["method"]}}
shutil.copytree({written!r}, workdir)
(workdir / "results.json").write_text(json.dumps(results))
"""
SMALL = ["--", "--flagfile=quickstart.cfg"]


@pytest.fixture
def calls(tmp_path, monkeypatch):
  """Runs a script in run.py's place; () -> what it was called with since the last call."""
  log, script = tmp_path / "calls.jsonl", tmp_path / "stand_in.py"
  written = write_run(tmp_path / "written")
  script.write_text(STAND_IN.format(written=str(written), calls=str(log)))
  command = [sys.executable, str(script)]
  monkeypatch.setattr(sweep, "Runner", functools.partial(sweep.Runner, command=command))
  # It leaves no checkpoints and no model.
  monkeypatch.setattr(
    planning, "is_finished", lambda job, data: (job.workdir / "results.json").exists()
  )

  def read():
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return [json.loads(line) for line in lines]

  return read


def tuning_of(*arguments):
  return sweep.parse(["sweep.py", "--output=runs", *arguments]).tuning


def test_every_combination_is_tried_on_validation_images(tmp_path):
  found = sweep.parse(
    [
      *("sweep.py", "--output=runs", "--methods=lucir,ft", "--seeds=3,5"),
      *("--grid=learning_rate=0.05,0.10 lucir_lambda=5,10", "--", "--width=4"),
    ]
  )
  names = [job.workdir.relative_to(tmp_path / "runs" / "tuning") for job in found.jobs]
  # Only LUCIR has a lambda.
  assert {str(name) for name in names} == {
    *(
      f"lucir-learning_rate={rate}-lucir_lambda={factor}-{seed}"
      for rate in ("0.05", "0.1")
      for factor in ("5.0", "10.0")
      for seed in (3, 5)
    ),
    *(f"ft-learning_rate={rate}-{seed}" for rate in ("0.05", "0.1") for seed in (3, 5)),
  }
  for job in found.jobs:
    config = run.parse(["run.py", *job.arguments]).config
    assert config.validation_fraction == 0.1
    assert (config.width, config.tuned_on) == (4, "")
    assert str(config.learning_rate) in job.workdir.name
    assert job.lender is None or job.lender.parent == job.workdir.parent


def test_final_runs_are_on_all_training_images_and_say_what_was_chosen(tmp_path):
  tuning = tuning_of(
    *("--methods=ft,lucir", "--grid=lucir_lambda=5,10"),
    *("--", "--validation_fraction=0.2"),
  )
  assert {job.config.validation_fraction for job in tuning.jobs()} == {0.2}
  jobs = {job.config.method: job for job in tuning.final_jobs(tuning.first())}
  for job in jobs.values():
    assert run.parse(["run.py", *job.arguments]).config.validation_fraction == 0
  lucir, ft = jobs["lucir"], jobs["ft"]
  assert lucir.workdir == tmp_path / "runs" / "lucir-0"
  assert lucir.config.method_settings.lucir_lambda == 5
  assert lucir.config.tuned_on == str(tmp_path / "runs" / "tuning" / "lucir.json")
  # It has none of the settings, so that nothing was chosen for it.
  assert ft.config.tuned_on == ""


def test_the_best_mean_over_seeds_is_chosen_and_nothing_is_repeated(
  calls, tmp_path, capsys
):
  command = ["sweep.py", "--methods=ft", "--seeds=0,1", "--output=runs"]
  command += ["--grid=learning_rate=0.3,0.05,0.15 epochs=6,5", *SMALL]
  assert sweep.main(command) == 0
  called, folder = calls(), tmp_path / "runs" / "tuning"
  assert len(called) == 3 * 2 * 2 + 2
  tuning = json.loads((folder / "ft.json").read_text())
  # 0.05 and 0.15 are as good, and so are 6 and 5 epochs: the first is taken.
  assert tuning["chosen"] == {"learning_rate": 0.05, "epochs": 6}
  assert tuning["grid"] == {"learning_rate": [0.3, 0.05, 0.15], "epochs": [6, 5]}
  assert (tuning["measure"], tuning["validation_fraction"]) == ("average.top1", 0.1)
  assert [row["mean"] for row in tuning["scores"]] == pytest.approx(
    [0.425, 0.425, 0.575, 0.575, 0.575, 0.575]
  )
  assert tuning["scores"][2] == {
    "settings": {"learning_rate": 0.05, "epochs": 6},
    "mean": pytest.approx(0.575),
    "runs": [
      {
        "folder": f"ft-learning_rate=0.05-epochs=6-{seed}",
        "seed": seed,
        "score": pytest.approx(0.45 + 0.25 * seed),
      }
      for seed in (0, 1)
    ],
  }
  for seed, final in enumerate(called[-2:]):
    assert final["workdir"] == str(tmp_path / "runs" / f"ft-{seed}")
    assert (final["learning_rate"], final["epochs"]) == ("0.05", "6")
    assert final["tuned_on"] == str(folder / "ft.json")
    assert float(final["validation_fraction"]) == 0
  assert (
    "ft: tuned on validation images, 10% of the training images: learning_rate=0.05, "
    "epochs=6, best of 6 by average.top1\n"
  ) in capsys.readouterr().out
  # A page of the final runs alone.
  page = (tmp_path / "runs" / "report.html").read_text()
  assert "tuning/" not in page
  # Again: nothing to do. One more value: its runs alone are added, and the final ones stay.
  written = (folder / "ft.json").stat().st_mtime_ns
  assert sweep.main(command) == 0
  assert calls() == []
  assert (folder / "ft.json").stat().st_mtime_ns == written
  command[4] = "--grid=learning_rate=0.3,0.05,0.15,0.5 epochs=6,5"
  assert sweep.main(command) == 0
  assert [flags["learning_rate"] for flags in calls()] == ["0.5"] * 4


def test_nothing_is_chosen_while_runs_are_missing(calls, tmp_path, capsys):
  command = ["sweep.py", "--methods=ft", "--output=runs", "--grid=learning_rate=0.05,0.1"]
  # The other shard is on another machine.
  for shard in ("--shard=1/2", "--shard=1/2"):
    assert sweep.main([*command, shard, *SMALL]) == 0
    assert "other shards are not done" in capsys.readouterr().out
  assert len(calls()) == 1
  assert not (tmp_path / "runs" / "tuning" / "ft.json").exists()
  assert sweep.main([*command, "--shard=2/2", *SMALL]) == 0
  assert len(calls()) == 1 + (tmp_path / "runs" / "ft-0").exists()
  assert (tmp_path / "runs" / "tuning" / "ft.json").exists()


def test_two_combinations_that_are_one_run():
  with pytest.raises(ConfigError, match=r"=0.1 and --learning_rate=0.10 are the same run"):
    tuning_of("--methods=ft", "--grid=learning_rate=0.10,0.1")
