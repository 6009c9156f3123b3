"""Runs of several processes: how they start, what they share, how they end."""

import json
import signal

import numpy as np
import orbax.checkpoint as ocp
import pytest
from launch import LONGEST, ROOT, ends, output, started, wait_until
from rich.console import Console

from ssil_jax import methods
from ssil_jax.config import make_config
from ssil_jax.distributed import launch
from ssil_jax.distributed.peers import LostProcessError
from ssil_jax.training import loop

SCRIPT = ROOT / "tests" / "several.py"
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
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    **changes,
  }


def test_one_process_needs_no_launch(monkeypatch):
  assert launch_of(monkeypatch) is None
  # A batch script's own shell, or `srun --pty bash`.
  assert launch_of(monkeypatch, **slurm(SLURM_STEP_NUM_TASKS="1")) is None


def test_flags_come_before_slurm(monkeypatch):
  flags = {"coordinator_address": "a:1", "num_processes": 3, "process_id": 2}
  assert launch_of(monkeypatch, flags=flags, **slurm()) == (("a:1", 3, 2), [])


def test_slurm_tells_of_its_tasks(monkeypatch):
  (address, count, number), local = launch_of(monkeypatch, **slurm())
  assert address == f"node07:{61440 + 100000 % 4096}"
  assert (count, number, local) == (8, 5, [1])
  (other, _, _), _ = launch_of(monkeypatch, **slurm(SLURM_STEP_ID="1"))
  assert other != address


@pytest.mark.parametrize(
  ("nodes", "first"),
  [
    ("node001", "node001"),
    ("node001,host2", "node001"),
    ("node[001-015],host2", "node001"),
    ("n-3-[7,9-15],host2", "n-3-7"),
    ("rack[1-2]-gpu,host2", "rack1-gpu"),
  ],
)
def test_the_first_node_of_a_slurm_step(monkeypatch, nodes, first):
  meeting, _ = launch_of(monkeypatch, **slurm(SLURM_STEP_NODELIST=nodes))
  assert meeting.address.rpartition(":")[0] == first


@pytest.mark.parametrize(
  ("tasks", "visible", "place", "devices"),
  [
    ("1(x2)", "0,1,2,3", "0", []),  # all of the node
    ("4(x2)", "0,1,2,3", "3", [3]),
    ("2(x3)", "0,1,2,3", "1", [2, 3]),
    ("4(x2)", "0", "3", []),  # bound by SLURM
    ("4,1", "0,1,2,3", "0", [0]),  # as many in each process
    ("2", None, "1", [1]),
  ],
)
def test_gpus_of_a_slurm_task(monkeypatch, tasks, visible, place, devices):
  env = slurm(SLURM_STEP_TASKS_PER_NODE=tasks, SLURM_LOCALID=place)
  if visible is not None:
    env["CUDA_VISIBLE_DEVICES"] = visible
  assert launch_of(monkeypatch, **env).local_devices == devices


# What they do together.


def test_processes_gather_and_agree(tmp_path):
  arguments = ("together", "--num_devices=2")
  with started(3, *arguments, script=SCRIPT, log_folder=tmp_path) as processes:
    codes = ends(processes)
  texts = [output(tmp_path, number) for number in range(3)]
  assert codes == [0] * 3, texts
  for number, text in enumerate(texts):
    assert text.splitlines() == [
      f"own {[2 * number, 2 * number + 1]} of 6 {'' if number else 'main'}",
      "agree True False",
      "signals are jax's True stop False",
      "process 2 has other data than process 0: start all with the same flags, and on the "
      "same data",
    ]


def test_a_death_ends_the_others(tmp_path):
  with started(2, "run_on", script=SCRIPT, log_folder=tmp_path) as processes:
    wait_until(lambda: "running" in output(tmp_path, 0), processes)
    processes[1].kill()
    assert ends(processes, 60) == [LOST, -signal.SIGKILL], output(tmp_path, 0)
  last = output(tmp_path, 0).splitlines()[-1]
  assert last.startswith("process 1 ended without a word (killed, or its machine is gone):")


def test_a_signal_to_one_stops_all_at_the_same_step(tmp_path):
  with started(2, "run_on", script=SCRIPT, log_folder=tmp_path) as processes:
    wait_until(lambda: "running" in output(tmp_path, 0), processes)
    processes[1].terminate()
    assert ends(processes, 60) == [0, 0], output(tmp_path, 0)
  first, second = (output(tmp_path, number).splitlines()[-1] for number in (0, 1))
  assert first == second
  assert first.startswith("stopped at step ")


def test_a_mistake_of_one_ends_all(tmp_path):
  with started(2, "run_on", "--seed=1", script=SCRIPT, log_folder=tmp_path) as processes:
    assert ends(processes, 60) == [LOST, 2], output(tmp_path, 0)
  mistake = "cannot read image 7.jpg: mend it"
  assert output(tmp_path, 1).splitlines() == ["running", mistake]
  assert output(tmp_path, 0).splitlines()[-1] == f"process 1 stopped: {mistake}"


# Whole runs.

FLAGS = {
  "dataset": "digits",
  "num_classes": 6,
  "num_states": 2,
  "memory_size": 18,
  "batch_size_new": 32,
  "batch_size_memory": 8,
  "epochs_first": 9,
  "epochs": 1,
  "width": 4,
  # So small that a rounding error, where it flips a ReLU, does not grow into another run.
  "learning_rate": 1e-5,
  "log_every": 1,
  "selection": "herding",
  "checkpoint_minutes": 0.001,
}


def records(workdir):
  path = workdir / "metrics.jsonl"
  lines = path.read_text().splitlines(keepends=True) if path.exists() else []
  return [json.loads(line) for line in lines if line.endswith("\n")]


def last_checkpoint(workdir):
  with ocp.CheckpointManager(workdir / "checkpoints") as manager:
    args = ocp.args.Composite(arrays=ocp.args.StandardRestore())
    return manager.restore(manager.latest_step(), args=args).arrays


def test_two_processes_though_killed_do_what_one_does(tmp_path):
  values = {**FLAGS, "num_devices": 2, "workdir": str(tmp_path / "one")}
  method = methods.get_method("ssil")
  one = loop.run(make_config(values, method), Console(quiet=True))

  flags = [f"--{name}={value}" for name, value in FLAGS.items()]
  pair = tmp_path / "[2] *"  # orbax puts together what processes wrote, by patterns

  def resumed():
    return started(2, *flags, f"--workdir={pair}", log_folder=tmp_path)

  with resumed() as processes:
    wait_until(lambda: list(pair.glob("checkpoints/[0-9]*/commit_success.txt")), processes)
    processes[0].kill()
    killed, other = ends(processes, 60)
  assert killed == -signal.SIGKILL
  # jax aborts a process without process 0, and may be faster than its own last word.
  assert other in (LOST, -signal.SIGABRT), output(tmp_path, 1)
  if other == LOST:
    assert "process 0 ended without a word" in output(tmp_path, 1)
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
  expected, found = last_checkpoint(tmp_path / "one"), last_checkpoint(pair)
  for name in (name for name in expected if name.startswith("memory")):
    np.testing.assert_array_equal(found[name], expected[name])
  assert (pair / "report.html").exists()
  assert not list(pair.glob("*.tmp"))
