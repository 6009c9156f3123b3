"""The command: a server in a process of its own, stopped and killed; and its page."""

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import browser
import pytest
import served
from folders import ROOT, encode, noise
from served import LEARN

from ssil_jax.commands import serve
from ssil_jax.errors import ConfigError
from ssil_jax.model.trained import load

pytestmark = pytest.mark.long

PHOTOS = [encode(noise(16, 16, seed=100 + i), "PNG") for i in range(10)]
MANY_STEPS = ("--epochs=300", "--log_every=5")
SERVER = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from quick import quick_network
from ssil_jax.commands import execute
from ssil_jax.server import learning
learning.COMMAND = {LEARN!r}
with quick_network():
  execute("serve")
"""


@contextlib.contextmanager
def server(workdir, *learn_flags):
  """Starts a server; yields its process and its address."""
  process = subprocess.Popen(
    [sys.executable, "-c", SERVER, f"--workdir={workdir}", "--port=0", "--", *learn_flags],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    ready, _, _ = select.select([process.stdout], [], [], 120)
    line = process.stdout.readline() if ready else ""
    found = re.match(r"(http://127\.0\.0\.1:\d+/) answers", line)
    assert found, line or process.communicate(timeout=10)
    yield process, found[1]
  finally:
    process.kill()
    process.communicate()


def progress(url):
  with urllib.request.urlopen(f"{url}api/learn") as answer:
    return json.load(answer)


def wait_for(url, is_so):
  end = time.monotonic() + 300
  while not is_so(found := progress(url)):
    assert time.monotonic() < end, found
    time.sleep(0.05)
  return found


def send(url, name):
  parts = "".join(
    f'--b\r\nContent-Disposition: form-data; name="photos"; filename="{i}"\r\n\r\n'
    f"{photo.decode('latin-1')}\r\n"
    for i, photo in enumerate(PHOTOS)
  )
  named = f'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\n{name}\r\n'
  request = urllib.request.Request(
    f"{url}api/learn",
    f"{named}{parts}--b--\r\n".encode("latin-1"),
    {"Content-Type": "multipart/form-data; boundary=b"},
  )
  with urllib.request.urlopen(request) as answer:
    assert answer.status == 202


def cut_off(url):
  """Sends half of a form, and goes away."""
  address = urllib.parse.urlsplit(url)
  head = (
    f"POST /api/learn HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: 100000\r\n"
    "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    '--b\r\nContent-Disposition: form-data; name="name"\r\n\r\nhalf\r\n'
    '--b\r\nContent-Disposition: form-data; name="photos"; filename="x"\r\n\r\nabc'
  )
  with socket.create_connection((address.hostname, address.port)) as connection:
    connection.sendall(head.encode())


def said(errors):
  """The lines of the server itself; libraries begin theirs with a place or a time."""
  return [line for line in errors.splitlines() if re.match("(learn|going|stop)", line)]


def learner(workdir):
  """Process ids of what learns in a work directory, on Linux."""
  found = []
  for number in filter(str.isdecimal, os.listdir("/proc")):
    with contextlib.suppress(OSError), open(f"/proc/{number}/cmdline", "rb") as file:
      arguments = file.read().split(b"\0")
      if f"--workdir={workdir}".encode() in arguments and any(
        a.startswith(b"--data_dir=") for a in arguments
      ):
        found.append(int(number))
  return found


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="processes are found in /proc")
def test_nothing_is_lost_however_a_server_ends(workdir):
  with server(workdir, *MANY_STEPS) as (process, url):
    send(url, "new")
    wait_for(url, lambda found: found.get("step", 0) > 20)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT
  notice = "stopping the learning; it goes on when the server is started again"
  assert said(errors) == ["learning new", notice, "stopped"]
  assert not learner(workdir)
  assert len(load(workdir).class_names) == 4

  with server(workdir) as (process, url):
    while not (found := learner(workdir)):
      time.sleep(0.01)
    (pid,) = found
    os.kill(pid, signal.SIGSTOP)  # so that it does not end before the server does
    process.kill()
    process.wait()

  # The next server waits for the process, which goes on alone, and does not disturb it.
  with server(workdir) as (process, url):
    assert progress(url)["status"] == "learning"
    assert learner(workdir) == [pid]
    give_up = urllib.request.Request(f"{url}api/learn", method="DELETE")
    with pytest.raises(urllib.error.HTTPError, match="409"):
      urllib.request.urlopen(give_up)  # it is no process of this server
    os.kill(pid, signal.SIGCONT)
    found = wait_for(url, lambda found: found["status"] != "learning")
    assert (found["status"], found["errors"]) == ("done", [])
    assert found["change"]["num_classes"] == 5
    process.terminate()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
  assert said(errors) == ["going on to learn new", "learnt new", "stopped"]
  assert not learner(workdir)
  assert load(workdir).class_names[-1] == "new"
  rows = (workdir / "metrics.jsonl").read_text().splitlines()
  steps = [json.loads(row)["step"] for row in rows]
  assert steps == sorted(set(steps))


@pytest.mark.skipif(browser.CHROMIUM is None, reason="chromium is not installed")
def test_the_page_names_photos_and_learns(workdir, tmp_path):
  paths = []
  for i, content in enumerate([*PHOTOS, b"no photo"]):
    paths.append(tmp_path / f"photo {i} <b>.png")
    paths[-1].write_bytes(content)
  *good, bad = paths
  with (
    server(workdir, "--epochs=2", "--log_every=1") as (_, url),
    browser.chromium(tmp_path / "profile") as tab,
  ):
    cut_off(url)
    tab.look(390, dark=True)
    tab.open(url)
    tab.wait("document.querySelectorAll('.classes li').length === 4")
    shown = tab.evaluate(
      "[...document.querySelectorAll('.classes bdi')].map(e => e.innerText)"
    )
    escaped = [name.replace("\u202e", "\\u202e") for name in served.NAMES]
    assert sorted(shown) == sorted(escaped)
    tab.wait(
      "[...document.querySelectorAll('img.exemplar')].every(i => i.naturalWidth > 0)"
    )

    tab.choose("#ask-files", [good[0], bad])
    tab.wait("document.querySelectorAll('.answers .bars, .answers .error').length === 2")
    answers = tab.evaluate("document.getElementById('answers').innerText")
    best = load(workdir).predict(good[0])[0].classes[0]
    assert best.name.replace("\u202e", "\\u202e") in answers
    assert f"{best.probability:.1%}" in answers
    assert "photo 10 <b>.png" in answers
    assert "This photo cannot be read: not a JPEG, PNG or WebP image" in answers

    assert [path.name for path in (workdir / "uploads").iterdir()] == ["lock"]
    # By keyboard alone, but for the choice of files, which is the system's.
    for _ in range(2):
      tab.press("Tab", 9)
    tab.type("<script>alert(1)<")
    tab.choose("#new-classes input[type=file]", paths)
    tab.press("Enter", 13)
    tab.wait("!document.getElementById('learn-error').hidden")
    assert "photo 10 <b>.png: not a JPEG" in tab.evaluate(
      "document.getElementById('learn-error').innerText"
    )
    tab.evaluate("document.querySelector('#learn-error button').click()")
    tab.press("Enter", 13)  # the focus is on the button that learns
    tab.wait("document.querySelectorAll('.classes li').length === 5")
    tab.wait("!!document.querySelector('#change table')")
    assert "Learnt <script>alert(1)<." in tab.evaluate("document.body.innerText")
    assert "It knows 5 classes now, 1 more" in tab.evaluate("document.body.innerText")

    for width in (1440, 768, 390):
      for dark in (False, True):
        tab.look(width, dark=dark)
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    tab.open(f"{url}api")
    tab.wait("document.querySelectorAll('article').length === 7")
    assert all(address.startswith((url, "blob:", "data:")) for address in tab.requests())
    refused = [c for c in tab.complaints() if "400" not in str(c.get("text"))]
    assert not refused


def test_flags_behind_two_dashes_are_those_of_learn():
  found = serve.parse(["serve", "--workdir=w", "--port=0", "--", "--epochs=3", "--seed=1"])
  assert found.learn_flags == ("--epochs=3", "--seed=1")
  assert found.port == 0
  for flag in ("epochs=3", "--workdir=x", "--data_dir=x"):
    with pytest.raises(ConfigError, match="cannot be passed on"):
      serve.parse(["serve", "--workdir=w", "--", flag])
