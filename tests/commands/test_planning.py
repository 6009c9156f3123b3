"""Planned runs: shards of them, which are finished, and how they are submitted."""

import json
import re
import time

import pytest
from written_runs import RESULTS, write_run

from ssil_jax import config as config_lib
from ssil_jax.commands import execution, paper, planning, sweep
from ssil_jax.data import fingerprint
from ssil_jax.data.opening import open_dataset
from ssil_jax.errors import ConfigError
from ssil_jax.methods.source import source_hash


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
  output = tmp_path_factory.mktemp("paper")
  argv = ["paper.py", "all", "--scale=digits", f"--output={output}"]
  return planning.examine(paper.plan_study(paper.parse(argv)).jobs)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
def test_shards_have_every_run_once_and_need_nothing_of_each_other(planned, count):
  parts = planning.shards(planned, count)
  assert len(parts) == count
  jobs = [[one.job for one in part] for part in parts]
  names = [job.workdir for part in jobs for job in part]
  assert sorted(names) == sorted(one.job.workdir for one in planned)
  for part in jobs:
    done = set()
    for job in part:
      assert job.lender is None or job.lender in done
      given = [a for a in job.arguments if a.startswith("--from_workdir=")]
      assert given == ([f"--from_workdir={job.lender}"] if job.lender else [])
      # What takes all of its states costs nothing where they are.
      if "-il2m-" in job.workdir.name:
        assert job.num_lent == job.config.num_states
      done.add(job.workdir)
  # Whatever is finished, so that shards started at different times are the same.
  some_done = [
    one._replace(is_finished=number % 2 == 0) for number, one in enumerate(planned)
  ]
  assert [[one.job for one in p] for p in planning.shards(some_done, count)] == jobs


@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_shards_are_of_about_the_same_cost_and_repeat_little(planned, count):
  total = sum(one.num_images for one in planned)
  costs = [sum(one.num_images for one in part) for part in planning.shards(planned, count)]
  # What is trained in several shards are first states, a twentieth to a half of their runs.
  assert total <= sum(costs) < 1.06 * total
  assert max(costs) < 1.1 * total / count


def test_one_shard_is_the_whole_plan(planned):
  (part,) = planning.shards(planned, 1)
  assert sorted(part, key=lambda one: one.job.workdir) == sorted(
    planned, key=lambda one: one.job.workdir
  )


@pytest.fixture
def finished(tmp_path):
  """A run that is complete, as far as its files tell; and the parts of its data."""
  argv = ["sweep.py", "--methods=ft", f"--output={tmp_path}", "--", "--num_states=2"]
  (job,) = sweep.parse(argv).jobs
  data = fingerprint.parts(open_dataset(job.config))
  write_run(
    job.workdir,
    config={
      **config_lib.to_json(job.config),
      "method_source": source_hash("ft"),
      "data": data,
    },
  )
  (job.workdir / "model.json").write_text("{}")
  return job, data


def test_a_complete_run_is_finished(finished):
  job, data = finished
  assert planning.is_finished(job, data)
  (one,) = planning.examine([job])
  assert one.is_finished


@pytest.mark.parametrize(
  ("name", "change"),
  [
    ("model.json", lambda path: path.unlink()),
    ("config.json", lambda path: path.write_text("[")),
    ("config.json", lambda path: edit(path, epochs=3)),
    ("config.json", lambda path: edit(path, method_source="of before")),
    ("config.json", lambda path: edit(path, data={"classes": 9})),
    ("config.json", lambda path: edit(path, data=None)),
    ("results.json", lambda path: path.write_text("{}")),
    ("results.json", lambda path: edit(path, num_states=3)),
    ("results.json", lambda path: edit(path, states=RESULTS["states"][:1])),
  ],
)
def test_a_run_that_is_another_or_not_complete_is_not_finished(finished, name, change):
  job, data = finished
  change(job.workdir / name)
  assert not planning.is_finished(job, data)


def edit(path, **changes):
  path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_data_rule_out_is_said_of_all_runs_at_once(tmp_path):
  argv = ["sweep.py", "--methods=ft,ssil", f"--output={tmp_path}", "--", "--num_states=4"]
  with pytest.raises(ConfigError) as error:
    planning.examine(sweep.parse(argv).jobs)
  lines = str(error.value).splitlines()
  assert [line.partition(":")[0] for line in lines] == ["ft-0", "ssil-0"]
  assert all("cannot be divided into --num_states=4" in line for line in lines)


def test_shards_are_submitted_as_jobs_that_run_the_command_again(tmp_path, capsys):
  how = execution.Execution(num_slurm_jobs=2, slurm_options={"cluster": "local"})
  argv = ["--help", "--slurm=2", "--slurm_options", "cluster=local", "--", "--width=4"]
  assert execution.submit(how, "sweep", argv, tmp_path) == 0
  told = re.fullmatch(r"submitted: (.+); logs: .+\n", capsys.readouterr().out)
  names = told[1].split(", ")
  import submitit  # as `submit` imports it

  jobs = [submitit.LocalJob(tmp_path / "slurm", name) for name in names]
  while not all(job.paths.result_pickle.exists() for job in jobs):
    time.sleep(0.1)
  assert [job.result() for job in jobs] == [0, 0]
  tasks = [job.submission().function.command for job in jobs]
  assert [task[-5:] for task in tasks] == [
    ["sweep", "--help", f"--shard={number}/2", "--", "--width=4"] for number in (1, 2)
  ]
  assert "Runs several methods" in jobs[0].stdout()
