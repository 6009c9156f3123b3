"""A headless Chromium, driven by its DevTools protocol over a pair of pipes.

https://chromedevtools.github.io/devtools-protocol/: JSON messages that end in a zero byte,
by --remote-debugging-pipe; no other program is needed.
"""

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_FLAGS = (
  "--headless",
  "--remote-debugging-pipe",
  "--no-sandbox",  # which does not start as root
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
)
# A browser looks for its pipes at 3 and 4.
_TAKE_PLACES = """
import fcntl, os, sys
given = [int(number) for number in sys.argv[1:3]]
copies = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 10) for number in given]
for number in given:
  os.close(number)
for number, copy in enumerate(copies, start=3):
  os.dup2(copy, number)
os.execv(sys.argv[3], sys.argv[3:])
"""
_SECONDS = 120  # for any answer, on a busy machine


class Tab:
  """One page of a browser."""

  def __init__(self, send, receive):
    self._send, self._receive = send, receive
    self._last, self._session = 0, None
    self.events = []  # messages that are no answers
    target = self.call("Target.createTarget", url="about:blank")["targetId"]
    attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
    self._session = attached["sessionId"]
    for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
      self.call(f"{domain}.enable")

  def call(self, method, **parameters):
    """Calls a method of the protocol; returns its result."""
    self._last += 1
    message = {"id": self._last, "method": method, "params": parameters}
    if self._session:
      message["sessionId"] = self._session
    self._send(message)
    while True:
      answer = self._receive()
      if answer.get("id") == self._last:
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]
      self.events.append(answer)

  def evaluate(self, script):
    """Returns the value of a JavaScript expression, which may be a promise."""
    found = self.call(
      "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
    )
    assert "exceptionDetails" not in found, found["exceptionDetails"]
    return found["result"].get("value")

  def wait(self, script):
    """Waits until an expression is true."""
    end = time.monotonic() + _SECONDS
    while not (found := self.evaluate(script)):
      assert time.monotonic() < end, (script, self.evaluate("document.body.innerText"))
      time.sleep(0.1)
    return found

  def open(self, url):
    self.call("Page.navigate", url=url)
    self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

  def choose(self, selector, paths):
    """Chooses files in an input."""
    root = self.call("DOM.getDocument")["root"]["nodeId"]
    node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
    assert node, selector
    self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

  def type(self, text):
    self.call("Input.insertText", text=text)

  def press(self, key, code):
    """Presses a key, by its name and its number."""
    text = {"text": "\r"} if key == "Enter" else {}
    for kind in ("keyDown", "keyUp"):
      self.call(
        "Input.dispatchKeyEvent",
        type=kind,
        key=key,
        code=key,
        windowsVirtualKeyCode=code,
        **(text if kind == "keyDown" else {}),
      )

  def look(self, width, *, dark=False, height=900):
    """Sets the width in CSS pixels and the colors that are preferred."""
    self.call(
      "Emulation.setDeviceMetricsOverride",
      width=width,
      height=height,
      deviceScaleFactor=1,
      mobile=width < 500,
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    self.call("Emulation.setEmulatedMedia", features=[scheme])

  def screenshot(self, path):
    """Writes the whole page as PNG."""
    found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
    path.write_bytes(base64.b64decode(found["data"]))

  def requests(self):
    """Returns the addresses of all that was asked for."""
    sent = [e for e in self.events if e.get("method") == "Network.requestWillBeSent"]
    return [event["params"]["request"]["url"] for event in sent]

  def complaints(self):
    """Returns exceptions, and what the browser has logged as errors."""
    found = []
    for event in self.events:
      if event.get("method") == "Runtime.exceptionThrown":
        found.append(event["params"]["exceptionDetails"])
      if event.get("method") == "Log.entryAdded":
        entry = event["params"]["entry"]
        found += [entry] if entry["level"] == "error" else []
    return found


@contextlib.contextmanager
def chromium(profile):
  """Starts a browser with an empty profile, a folder; yields a `Tab`."""
  to_read, to_send = os.pipe()  # what the browser reads, and where it comes from
  answers, to_answer = os.pipe()

  process = subprocess.Popen(
    [
      *(sys.executable, "-c", _TAKE_PLACES, str(to_read), str(to_answer)),
      *(CHROMIUM, *_FLAGS, f"--user-data-dir={profile}"),
    ],
    pass_fds=(to_read, to_answer),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
    start_new_session=True,
  )
  os.close(to_read)
  os.close(to_answer)
  waiting = bytearray()

  def send(message):
    content = json.dumps(message).encode() + b"\0"
    while content:
      content = content[os.write(to_send, content) :]

  def receive():
    while b"\0" not in waiting:
      ready, _, _ = select.select([answers], [], [], _SECONDS)
      assert ready, "the browser does not answer"
      content = os.read(answers, 1 << 16)
      assert content, "the browser has ended"
      waiting.extend(content)
    message, _, rest = waiting.partition(b"\0")
    waiting[:] = rest
    return json.loads(message)

  try:
    yield Tab(send, receive)
  finally:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
      send({"id": 0, "method": "Browser.close"})  # so that it leaves the profile alone
      process.wait(_SECONDS)
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)  # a group of its own
    process.wait()
    os.close(to_send)
    os.close(answers)
