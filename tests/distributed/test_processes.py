"""Runs of several processes: how they start, what they share, how they end."""

import json
import re
import signal
import socket

import numpy as np
import pytest
from kills import digests
from launch import LONGEST, ends, free_port, output, started, wait_until
from quick import quick_network
from small_runs import SETTINGS, records, run

from ssil_jax import methods
from ssil_jax.config import make_config
from ssil_jax.distributed import launch
from ssil_jax.errors import LostProcessError

pytestmark = pytest.mark.long

LOST = LostProcessError.exit_code

# How a run learns of its processes.


def launch_of(monkeypatch, *, flags=None, **env):
  for name in ("SLURM_STEP_NUM_TASKS", "CUDA_VISIBLE_DEVICES"):
    monkeypatch.delenv(name, raising=False)
  for name, value in env.items():
    monkeypatch.setenv(name, value)
  return launch.find_launch(make_config(flags or {}, methods.METHODS["ssil"]))


def slurm(**changes):
  return {
    "SLURM_JOB_ID": "100000",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    **changes,
  }


def test_one_process_does_not_wait_for_others(monkeypatch):
  assert launch_of(monkeypatch) is None
  # A batch script's own shell, or `salloc`: a step of one task in a job of eight.
  assert launch_of(monkeypatch, **slurm(SLURM_STEP_NUM_TASKS="1")) is None


def test_flags_come_before_slurm(monkeypatch):
  flags = {"coordinator_address": "a:1", "num_processes": 3, "process_id": 2}
  found = launch_of(monkeypatch, flags=flags, **slurm())
  assert found == {**flags, "cluster_detection_method": "deactivate"}


@pytest.mark.parametrize(
  ("tasks", "visible", "place", "gpus"),
  [
    ("1(x2)", "0,1,2,3", "0", []),  # all of the node
    ("4(x2)", "0,1,2,3", "3", [3]),
    ("2(x3)", "0,1,2,3", "1", [2, 3]),
    ("4(x2)", "0", "3", []),  # bound by SLURM
    ("4,1", "0,1,2,3", "0", [0]),  # as many in each process
    ("2", None, "1", [1]),
  ],
)
def test_gpus_of_a_slurm_task(monkeypatch, tasks, visible, place, gpus):
  env = slurm(SLURM_STEP_TASKS_PER_NODE=tasks, SLURM_LOCALID=place)
  if visible is not None:
    env["CUDA_VISIBLE_DEVICES"] = visible
  assert launch_of(monkeypatch, **env)["local_device_ids"] == gpus


def task_of_slurm(number):
  return slurm(
    SLURM_STEP_NUM_TASKS="2",
    SLURM_NTASKS="2",
    SLURM_PROCID=str(number),
    SLURM_LOCALID=str(number),
    SLURM_STEP_TASKS_PER_NODE="2",
  )


def host_of_tpu(number):
  """As Google Kubernetes Engine tells of the hosts of a slice."""
  return {
    "JAX_PLATFORMS": "tpu,cpu",
    "JAX_FORCE_TPU_INIT": "1",
    "TPU_LIBRARY_PATH": __file__,  # there is one
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost,localhost",
    "TPU_WORKER_ID": str(number),
    "MEGASCALE_COORDINATOR_ADDRESS": "localhost",
    "MEGASCALE_NUM_SLICES": "1",
    "MEGASCALE_SLICE_ID": "0",
  }


@pytest.mark.parametrize("env", [task_of_slurm, host_of_tpu])
def test_a_cluster_tells_who_the_processes_are(tmp_path, env):
  port = {"JAX_COORDINATOR_PORT": str(free_port())}

  def each(number):
    return [], {**env(number), **port}

  with started(2, "several.py", "join", log_folder=tmp_path, each=each) as processes:
    assert ends(processes, 60) == [0, 0], output(tmp_path, 0) + output(tmp_path, 1)
  assert [output(tmp_path, number) for number in (0, 1)] == ["joined True"] * 2


# What keeps them from joining each other.


def ends_of(tmp_path, *launches, seconds):
  """Exit code and last line of processes, started with (address, count, number) each."""

  def each(number):
    names = ("coordinator_address", "num_processes", "process_id", "start_seconds")
    values = (*launches[number], seconds)
    return [f"--{name}={v}" for name, v in zip(names, values, strict=True)], {}

  count = len(launches)
  with started(count, "several.py", "join", log_folder=tmp_path, each=each) as processes:
    codes = ends(processes, 60)
  texts = [output(tmp_path, number) for number in range(count)]
  return [(code, text.splitlines()[-1]) for code, text in zip(codes, texts, strict=True)]


def test_processes_that_do_not_find_each_other_say_why(tmp_path):
  with socket.create_server(("", 0)) as other:
    refused, unknown = f"127.0.0.1:{free_port()}", f"no-such-host.invalid:{free_port()}"
    used = f"127.0.0.1:{other.getsockname()[1]}"
    found = ends_of(
      tmp_path,
      (refused, 2, 1),
      (unknown, 2, 1),
      (used, 2, 0),
      (alone := f"127.0.0.1:{free_port()}", 3, 0),
      seconds=3,
    )
  assert [code for code, _ in found] == [2] * 4
  texts = [text for _, text in found]
  missing = "did not meet all others at --coordinator_address"
  assert re.match(rf"process 1 {missing}={refused} \(.*Connection refused", texts[0])
  assert re.match(rf"process 1 {missing}={unknown} \(.*(not known|resolution)", texts[1])
  assert f"of --coordinator_address={used} cannot be used on this machine" in texts[2]
  assert texts[3].startswith(
    f"process 0 {missing}={alone} within 3 seconds: start all, with --num_processes=3 and"
  )


def test_a_number_given_twice(tmp_path):
  address = f"127.0.0.1:{free_port()}"
  (code, text), *twins = ends_of(
    tmp_path, (address, 3, 0), (address, 3, 1), (address, 3, 1), seconds=6
  )
  assert code == 2
  assert "and each with a --process_id of its own" in text
  # jax aborts the first one that came.
  assert sorted(code for code, _ in twins) == [-signal.SIGABRT, 2]


def test_a_program_may_do_several_runs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  flags = ["--num_devices=1"]
  with started(2, "several.py", "run_twice", *flags, log_folder=tmp_path) as processes:
    assert ends(processes) == [0, 0], output(tmp_path, 0) + output(tmp_path, 1)
  for number in (0, 1):
    said = output(tmp_path, number).splitlines()
    assert said == ["first has states: 2", "second has states: 2"]


def test_another_number_of_processes(tmp_path):
  arguments = ["--dataset=digits", f"--workdir={tmp_path / 'run'}"]
  address = f"--coordinator_address=127.0.0.1:{free_port()}"

  def each(number):
    return [address, f"--num_processes={2 + number}", f"--process_id={number}"], {}

  with started(2, "quick.py", *arguments, log_folder=tmp_path, each=each) as processes:
    codes = ends(processes, 60)
  texts = [output(tmp_path, number) for number in (0, 1)]
  assert codes == [2, 2], texts
  for text in texts:
    assert text.startswith("error: process 1 has other num_processes than process 0: start")


# What they do together.


def test_processes_gather_and_agree(tmp_path):
  arguments = ("together", "--num_devices=2")
  with started(3, "several.py", *arguments, log_folder=tmp_path) as processes:
    codes = ends(processes)
  texts = [output(tmp_path, number) for number in range(3)]
  assert codes == [0] * 3, texts
  for number, text in enumerate(texts):
    assert text.splitlines() == [
      f"own {[2 * number, 2 * number + 1]} of 6 {'' if number else 'main'}",
      "agree 0 [0 1 2] int64",
      "process 2 has other data than process 0: start all with the same flags, and on the "
      "same data",
    ]


def test_a_death_ends_the_other(tmp_path):
  with started(2, "several.py", "run_on", log_folder=tmp_path) as processes:
    wait_until(lambda: "running" in output(tmp_path, 0), processes)
    processes[1].kill()
    assert ends(processes, 60) == [LOST, -signal.SIGKILL], output(tmp_path, 0)
  last = output(tmp_path, 0).splitlines()[-1]
  assert last.startswith("another process of this run ended early, or its machine is gone")


def test_a_signal_to_one_stops_all_at_the_same_step(tmp_path):
  with started(2, "several.py", "run_on", log_folder=tmp_path) as processes:
    wait_until(lambda: "running" in output(tmp_path, 0), processes)
    processes[1].terminate()
    assert ends(processes, 60) == [0, 0], output(tmp_path, 0)
  first, second = (output(tmp_path, number).splitlines()[-1] for number in (0, 1))
  assert first == second
  assert first.startswith("stopped at step ")


def test_a_mistake_in_one_ends_all(tmp_path):
  with started(2, "several.py", "fail_in_one", log_folder=tmp_path) as processes:
    assert ends(processes, 60) == [LOST, 2], output(tmp_path, 0)
  assert output(tmp_path, 1).splitlines() == ["running", "cannot read image 7.jpg"]
  assert "another process of this run ended early" in output(tmp_path, 0)


def test_a_mistake_in_all_is_told_by_each(tmp_path):
  with started(2, "several.py", "fail_in_all", log_folder=tmp_path) as processes:
    assert ends(processes, 60) == [2] * 2, output(tmp_path, 0)
  for number in range(2):
    assert output(tmp_path, number).splitlines() == ["running", "cannot read image 7.jpg"]


# Whole runs.

FLAGS = {
  "num_states": 2,
  "epochs_first": 18,
  "selection": "herding",
  "checkpoint_minutes": 0.001,
}


def test_two_processes_though_killed_do_what_one_does(tmp_path):
  with quick_network():
    one = run(tmp_path / "one", **FLAGS, num_devices=2)

  flags = [f"--{name}={value}" for name, value in (SETTINGS | FLAGS).items()]
  pair = tmp_path / "[2] *"  # orbax puts together what processes wrote, by patterns

  def resumed():
    return started(2, "quick.py", *flags, f"--workdir={pair}", log_folder=tmp_path)

  with resumed() as processes:
    wait_until(lambda: list(pair.glob("checkpoints/[0-9]*/commit_success.txt")), processes)
    processes[0].kill()
    killed, other = ends(processes, 60)
  assert killed == -signal.SIGKILL
  # jax aborts a process without process 0, and may be faster.
  assert other in (LOST, -signal.SIGABRT), output(tmp_path, 1)
  assert re.search("another (process|task)", output(tmp_path, 1))
  assert {r["state"] for r in records(pair)} == {1}

  with resumed() as processes:
    assert ends(processes, LONGEST) == [0, 0], output(tmp_path, 0) + output(tmp_path, 1)
  assert output(tmp_path, 1) == ""  # process 0 speaks for both

  ours, theirs = records(tmp_path / "one"), records(pair)
  assert [r["step"] for r in theirs] == [r["step"] for r in ours]
  np.testing.assert_allclose(
    [r["loss"] for r in theirs], [r["loss"] for r in ours], rtol=1e-4
  )
  results = json.loads((pair / "results.json").read_text())
  assert results["environment"]["num_processes"] == 2
  assert results["environment"]["num_devices"] == one["environment"]["num_devices"] == 2
  for state, other in zip(one["states"], results["states"], strict=True):
    assert other["score_new"] == pytest.approx(state["score_new"], rel=1e-3, abs=1e-4)
    # Every test image counted once.
    assert np.sum(other["confusion"]) == np.sum(state["confusion"])
  # Herded exemplars are the same, for all surveys were.
  expected, found = digests(tmp_path / "one"), digests(pair)
  for name in (name for name in expected if "checkpoint: memory" in name):
    assert found[name] == expected[name]
  assert (pair / "report.html").exists()
  assert not list(pair.glob("*.tmp"))
