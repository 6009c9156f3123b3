"""Learning through the server: done, refused, given up, stopped and resumed."""

import json
import time
import unicodedata

import pytest
from folders import encode, noise
from served import LEARN, class_form, photos_of, script, serving, wait_for
from test_app import check_described

from ssil_jax.model.trained import load
from ssil_jax.server.learning import COMMAND
from ssil_jax.server.names import class_name
from ssil_jax.server.problems import Problem

FLAGS = ("--epochs=2", "--log_every=1")
PHOTOS = [encode(noise(16, 16, seed=100 + i), "PNG") for i in range(10)]

# Stands in for learn.py where it should take its time: it trains until it is told to stop
# or a file is there, and notes what it is.
SLOW = """
import json, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
given = dict(a[2:].split("=", 1) for a in sys.argv[1:])
workdir, data = pathlib.Path(given["workdir"]), pathlib.Path(given["data_dir"])
learning = workdir / "learning"
learning.mkdir(exist_ok=True)
request = {"state": 3, "classes": [p.name for p in data.iterdir()], "first_step": 100,
           "num_steps": 50, "asked": f"--data_dir={data}"}
(learning / "request.json").write_text(json.dumps(request))
with open(workdir / "metrics.jsonl", "a") as file:
  for step, loss in ((99, 9.0), (100, 8.0), (101, 2.5), (103, 1.5)):
    file.write(json.dumps({"step": step, "loss": loss}) + "\\n")
  file.write('{"step": 104, "lo')
with open(workdir / "started", "a") as file:
  file.write(" ".join(sys.argv[1:]) + "\\n")
while not (workdir / "go on").exists():
  time.sleep(0.02)
if (workdir / "is full").exists():
  (learning / "checkpoints" / "7").mkdir(parents=True, exist_ok=True)
  print("error: no space left", file=sys.stderr)
  sys.exit(int((workdir / "is full").read_text()))
print("error: told to fail", file=sys.stderr)
sys.exit(2)
"""


@pytest.fixture
def slow(tmp_path):
  return script(tmp_path, SLOW)


def started(workdir):
  """The arguments of every process that was started."""
  path = workdir / "started"
  return path.read_text().splitlines() if path.exists() else []


def wait_until(is_so):
  end = time.monotonic() + 120
  while not is_so():
    assert time.monotonic() < end
    time.sleep(0.02)


def jobs(workdir):
  return [path for path in (workdir / "uploads").iterdir() if path.is_dir()]


def send(client, name="new", photos=PHOTOS):
  return client.post("/api/learn", files=class_form((name, photos)))


def test_classes_are_learnt_from_what_is_sent(workdir):
  said = []
  names = ("<script>alert(1)<", unicodedata.normalize("NFD", " caf\u00e9 "))
  with serving(workdir, command=LEARN, flags=FLAGS, said=said) as client:
    before = client.get("/api/model").json()
    form = class_form((names[0], PHOTOS[:5]), (names[1], PHOTOS[5:]))
    response = client.post("/api/learn", files=form)
    assert response.status_code == 202
    job = check_described("/api/learn", "post", response)["job"]
    found = wait_for(client, "done", "failed")
    check_described("/api/learn", "get", client.get("/api/learn"))
    after = client.get("/api/model").json()
    # It answers by the new classes as soon as it says that it is done.
    (answer,) = client.post("/api/predict?top=6", files=photos_of(PHOTOS[0])).json()
  assert found["status"] == "done", found
  assert found["job"] == job
  assert {c["name"]: c["photos"] for c in found["classes"]} == {names[0]: 5, "caf\u00e9": 5}
  assert found["step"] == found["num_steps"] > 0
  row = json.loads((workdir / "results.json").read_bytes())["states"][-1]
  assert found["change"]["top1_by_state"] == row["top1_by_state"]
  assert found["change"]["top1_old_before"] == before["accuracy"]["top1"]
  assert found["change"]["num_classes"] == len(after["classes"]) == 6
  assert {c["name"] for c in answer["classes"]} == {c["name"] for c in after["classes"]}
  assert [c["has_exemplar"] for c in after["classes"]] == [True] * 6
  assert {c["name"] for c in after["classes"] if c["state"] == 3} == {names[0], "caf\u00e9"}
  assert len(after["states"]) == 3
  assert not jobs(workdir)
  assert not (workdir / "learning").exists()
  assert len(load(workdir).class_names) == 6
  assert said[-1].startswith("learnt ")


def test_one_job_at_a_time_and_the_old_model_answers_meanwhile(workdir, slow):
  with serving(workdir, command=slow) as client:
    assert send(client, "one").status_code == 202
    wait_until(lambda: started(workdir))
    response = send(client, "two")
    assert response.status_code == 409
    assert response.json()["error"].startswith("the model is learning one: wait")
    answer = client.post("/api/predict", files=photos_of(PHOTOS[0])).json()[0]
    assert len(answer["classes"]) == 4
    found = check_described("/api/learn", "get", client.get("/api/learn"))
    assert (found["state"], found["step"], found["num_steps"]) == (3, 3, 50)
    assert found["loss"] == 1.5
    assert found["losses"] == [[1, 2.5], [3, 1.5]]  # of this job alone, and whole lines
    (job,) = jobs(workdir)
    assert [p.name for p in (job / "photos").iterdir()] == ["one"]
    names = sorted(p.name for p in (job / "photos" / "one").iterdir())
    assert names == [f"{i:06d}.png" for i in range(10)]
    (workdir / "go on").touch()
    assert wait_for(client, "failed")["errors"] == ["told to fail"]
    assert not (workdir / "learning").exists()  # so that others can be learnt
    assert send(client, "two").status_code == 202
    wait_for(client, "failed")
  assert len(started(workdir)) == 2


def test_a_job_can_be_given_up(workdir, slow):
  with serving(workdir, command=slow) as client:
    response = client.delete("/api/learn")
    assert response.status_code == 409
    send(client)
    wait_until(lambda: started(workdir))
    found = check_described("/api/learn", "delete", client.delete("/api/learn"))
    assert found["status"] == "cancelled"
    wait_until(lambda: not jobs(workdir))
    assert not (workdir / "learning").exists()
    assert send(client).status_code == 202
    wait_until(lambda: len(started(workdir)) == 2)
    client.delete("/api/learn")


def test_a_job_that_has_stopped_can_be_gone_on_with_and_given_up(workdir, slow):
  """By a full disk: the photos and the checkpoints are kept until someone decides."""
  (workdir / "go on").touch()
  (workdir / "is full").write_text("1")
  checkpoint = workdir / "learning" / "checkpoints" / "7"
  with serving(workdir, command=slow, flags=["--epochs=3"]) as client:
    nothing = client.post("/api/learn/resume")
    check_described("/api/learn/resume", "post", nothing)
    assert nothing.status_code == 409
    send(client)
    assert wait_for(client, "stopped", "failed")["errors"] == ["no space left"]
    found = check_described("/api/learn", "get", client.get("/api/learn"))
    assert found["status"] == "stopped"
    (job,) = jobs(workdir)
    assert len([*(job / "photos" / "new").iterdir()]) == 10
    assert checkpoint.exists()
    refused = check_described("/api/learn", "post", send(client, "two"))
    assert "learning of new has stopped: go on with it, or give it up" in refused["error"]
    # Exit code 2, as of a UserError, is no bad input once there is a checkpoint.
    (workdir / "is full").write_text("2")
    again = client.post("/api/learn/resume")
    assert check_described("/api/learn/resume", "post", again) == {"job": job.name}
    wait_for(client, "stopped")
    first, second = started(workdir)
    assert first == second
    assert checkpoint.exists()
    found = check_described("/api/learn", "delete", client.delete("/api/learn"))
    assert (found["status"], found["errors"]) == ("cancelled", [])
    assert not jobs(workdir)
    assert not checkpoint.exists()
    assert client.delete("/api/learn").status_code == 409
    assert client.post("/api/learn/resume").status_code == 409


def test_what_another_command_is_learning_is_left_alone(workdir):
  """By the very command that a server runs; a terminal has been learning something else."""
  request = workdir / "learning" / "request.json"
  request.parent.mkdir()
  request.write_text(json.dumps({"asked": "--data_dir=/elsewhere", "request": "other"}))
  with serving(workdir, command=COMMAND) as client:
    send(client)
    (error,) = wait_for(client, "failed")["errors"]
    assert "is learning state 3 already: --data_dir=/elsewhere; rerun that" in error
    assert client.post("/api/predict", files=photos_of(PHOTOS[0])).status_code == 200
  assert request.exists()
  assert not jobs(workdir)


def test_a_server_that_is_stopped_goes_on_when_it_is_started_again(workdir, slow):
  with serving(workdir, command=slow, flags=["--epochs=3"]) as client:
    send(client)
    wait_until(lambda: started(workdir))
  (job,) = jobs(workdir)
  (workdir / "uploads" / "half.part").mkdir()  # of an upload that was cut off
  with serving(workdir, command=slow) as client:
    wait_until(lambda: len(started(workdir)) == 2)
    found = client.get("/api/learn").json()
    assert (found["status"], found["job"]) == ("learning", job.name)
    assert found["classes"] == [{"name": "new", "photos": 10}]
    assert not (workdir / "uploads" / "half.part").exists()
    (workdir / "go on").touch()
    wait_for(client, "failed")
  first, second = started(workdir)
  assert first == second  # the same command, with the flags of then
  assert "--epochs=3" in first


def test_a_process_that_is_killed_goes_on_and_one_that_always_is_stops(workdir, tmp_path):
  killed = (
    "import os, pathlib, sys; open(sys.argv[1][10:] + '/started', 'a').write('x\\n')\n"
  )
  command = script(tmp_path, killed + "os.kill(os.getpid(), 9)")
  with serving(workdir, command=command) as client:
    send(client)
    found = wait_for(client, "stopped", "failed")
  assert found["status"] == "stopped"
  assert found["errors"] == ["the learning ended with exit code -9: it printed nothing"]
  assert len(started(workdir)) == 3


@pytest.mark.parametrize(
  ("given", "kept"),
  [
    (" lynx ", "lynx"),
    ("cafe\u0301", "caf\u00e9"),
    ("\U0001f469\u200d\U0001f680", "\U0001f469\u200d\U0001f680"),
    ("\u0645\u06cc\u200c\u0634\u0648\u062f", "\u0645\u06cc\u200c\u0634\u0648\u062f"),
    ("a: *b* 'c' \"d\" $(e)", "a: *b* 'c' \"d\" $(e)"),
    ("n" * 255, "n" * 255),
  ],
)
def test_names_in_any_script_are_kept(given, kept):
  assert class_name(given) == kept


@pytest.mark.parametrize(
  "given", ["", ".", "..", "a/b", "a\\b", "\ud800", "n" * 256, "a\nb"]
)
def test_names_that_are_no_folders_are_refused(given):
  with pytest.raises(Problem):
    class_name(given)
