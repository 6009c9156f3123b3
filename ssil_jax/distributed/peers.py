"""The processes of one run: they meet, and hear of each other's end.

Where a process is missing or dies, jax.distributed aborts the others with a stack trace, or
lets them wait. So they meet over plain sockets first, where every mistake has a name, and
keep those sockets: the operating system closes them when a process ends, however it ends.
"""

import contextlib
import ipaddress
import json
import os
import selectors
import socket
import sys
import threading
import time
from typing import Any, NamedTuple

from ssil_jax.errors import ConfigError, UserError

_MEET_SECONDS = 300  # to start all processes by hand
_GRACE_SECONDS = 5  # for the main thread to end by itself
_SILENT_SECONDS = (15, 5, 3)  # first question, later ones, how many without an answer
_GREETING = "ssil_jax 1"


class LostProcessError(UserError):
  """Another process of the run has ended before it.

  Attributes:
    died: without saying why.
  """

  exit_code = 4

  def __init__(self, text: str, *, died: bool):
    super().__init__(text)
    self.died = died


class Meeting(NamedTuple):
  """Where the processes of a run meet, and which of them this one is."""

  address: str  # HOST:PORT of process 0
  num_processes: int
  process_id: int


class Peers:
  """The other processes; process 0 is connected to all, the others to process 0.

  Use `meet` to make one. It listens in a thread of its own until `part` or `leave`.
  """

  def __init__(self, meeting: Meeting, sockets: dict[int, socket.socket]):
    self._meeting = meeting
    self._sockets = sockets
    self._changed = threading.Condition()
    self._parted: set[int] = set()  # ended well
    self._lost: LostProcessError | None = None
    self._ending = False
    for connection in sockets.values():
      _keep_alive(connection)
    threading.Thread(target=self._listen, daemon=True).start()

  def wait_for_loss(self, seconds: float) -> LostProcessError | None:
    """What has been heard of a process's early end, waiting for it so long."""
    with self._changed:
      self._changed.wait_for(lambda: self._lost is not None, seconds)
      return self._lost

  def part(self) -> None:
    """Says that all went well, and waits until the others say so, too.

    Raises:
      LostProcessError: another one failed.
    """
    with self._changed:
      self._ending = True
    if self._meeting.process_id == 0:
      # The last to say so: it serves the others until then.
      self._wait_for_parting()
      self._tell({"parted": True})
    else:
      self._tell({"parted": True})
      self._wait_for_parting()

  def leave(self, reason: str) -> None:
    """Tells the others that this process ends now, and why.

    Process 0, with which jax's coordination ends, waits a little for them to end first.
    """
    with self._changed:
      self._ending = True
      self._tell({"left": reason})
      if self._meeting.process_id == 0:
        self._changed.wait_for(lambda: not self._sockets, _GRACE_SECONDS)

  def _wait_for_parting(self) -> None:
    with self._changed:
      self._changed.wait_for(lambda: self._lost or self._parted >= set(self._sockets))
      if self._lost:
        raise self._lost

  def _tell(self, message: dict[str, Any], *, but: int = -1) -> None:
    for number, connection in list(self._sockets.items()):
      if number != but:
        with contextlib.suppress(OSError):
          _send(connection, message)

  def _listen(self) -> None:
    with selectors.DefaultSelector() as selector:
      for number, connection in self._sockets.items():
        connection.settimeout(None)
        selector.register(connection, selectors.EVENT_READ, (number, bytearray()))
      while selector.get_map():
        for key, _ in selector.select():
          number, received = key.data
          try:
            data = key.fileobj.recv(4096)
          except OSError:  # no answer for too long, or reset
            data = b""
          received += data
          while b"\n" in received:
            line, _, rest = bytes(received).partition(b"\n")
            received[:] = rest
            self._hear(number, _message(line))
          if not data:
            selector.unregister(key.fileobj)
            self._hear(number, {"gone": True})

  def _hear(self, number: int, message: dict[str, Any]) -> None:
    with self._changed:
      if "parted" in message:
        self._parted.add(number)
      elif "left" in message:
        self._lose(number, f"process {number} stopped: {message['left']}", died=False)
      elif "lost" in message:
        self._lose(message["number"], message["lost"], died=message["died"])
      elif "gone" in message:
        del self._sockets[number]
        if number not in self._parted:
          self._lose(
            number,
            f"process {number} ended without a word (killed, or its machine is gone): "
            "start all processes again, and the run continues from its last checkpoint",
            died=True,
            # Without process 0, jax aborts this process any moment.
            at_once=number == 0,
          )
      self._changed.notify_all()

  def _lose(self, number: int, text: str, *, died: bool, at_once: bool = False) -> None:
    if self._lost is not None:
      if at_once:
        self._end()
      return
    self._lost = LostProcessError(text, died=died)
    self._tell({"lost": text, "number": number, "died": died}, but=number)
    if self._ending:
      return
    if at_once:
      self._end()
    # The main thread may be waiting for the lost one, and not in Python.
    timer = threading.Timer(_GRACE_SECONDS, self._end)
    timer.daemon = True
    timer.start()

  def _end(self) -> None:
    if not self._ending:
      print(self._lost, file=sys.stderr, flush=True)
      os._exit(LostProcessError.exit_code)


def meet(meeting: Meeting, *, seconds: float = _MEET_SECONDS) -> tuple[Peers, str]:
  """Waits until all processes are there.

  Args:
    meeting: where, and as which process.
    seconds: how long to wait.

  Returns:
    The others, and the address, HOST:PORT, at which jax.distributed may coordinate them.

  Raises:
    ConfigError: they did not all come, or were not started for the same run.
  """
  deadline = time.monotonic() + seconds
  host, port = _host_and_port(meeting.address)
  if meeting.process_id:
    connection, jax_port = _go_to_process_0(meeting, host, port, deadline)
    return Peers(meeting, {0: connection}), f"{_bracketed(host)}:{jax_port}"
  sockets = _wait_for_others(meeting, port, deadline)
  with _server(0) as free:
    jax_port = free.getsockname()[1]
  for connection in sockets.values():
    _send(connection, {"jax_port": jax_port})
  return Peers(meeting, sockets), f"{_bracketed(host)}:{jax_port}"


def _wait_for_others(
  meeting: Meeting, port: int, deadline: float
) -> dict[int, socket.socket]:
  count = meeting.num_processes
  sockets: dict[int, socket.socket] = {}
  try:
    with _server(port) as server:
      while len(sockets) < count - 1:
        server.settimeout(max(deadline - time.monotonic(), 0.01))
        connection, _ = server.accept()
        hello = _receive(connection, seconds=5)
        if hello is None or hello.get("greeting") != _GREETING or not _is_hello(hello):
          connection.close()  # something else that looked at the port
          continue
        number = hello["process_id"]
        mistake = None
        if hello["num_processes"] != count:
          mistake = (
            f"process {number} was started for {hello['num_processes']} processes, process "
            f"0 for {count}: give all the same --num_processes"
          )
        elif number in (0, *sockets):
          mistake = f"--process_id={number} was given to two processes: number them from 0"
        if mistake:
          for other in (connection, *sockets.values()):
            with contextlib.suppress(OSError):
              _send(other, {"mistake": mistake})
          raise ConfigError(mistake)
        sockets[number] = connection
  except TimeoutError:
    missing = sorted({*range(1, count)} - set(sockets))
    mistake = (
      f"of {count} processes, --process_id={','.join(map(str, missing))} did not come to "
      f"{meeting.address} in time: start all, with an address that all can reach"
    )
    for other in sockets.values():
      with contextlib.suppress(OSError):
        _send(other, {"mistake": mistake})
    raise ConfigError(mistake) from None
  except OSError as error:
    raise ConfigError(
      f"port {port} of --coordinator_address={meeting.address} cannot be used on this "
      f"machine ({os.strerror(error.errno)}): choose another"
    ) from error
  return sockets


def _is_hello(message: dict[str, Any]) -> bool:
  return all(type(message.get(name)) is int for name in ("process_id", "num_processes"))


def _go_to_process_0(
  meeting: Meeting, host: str, port: int, deadline: float
) -> tuple[socket.socket, int]:
  hello = {
    "greeting": _GREETING,
    "process_id": meeting.process_id,
    "num_processes": meeting.num_processes,
  }
  while True:
    left = deadline - time.monotonic()
    try:
      connection = socket.create_connection((host, port), timeout=min(max(left, 0.01), 10))
      break
    except OSError as error:
      if left < 1:
        raise ConfigError(
          f"process {meeting.process_id} finds no process 0 at {meeting.address} "
          f"({error.strerror or error}): start it there, or mend --coordinator_address"
        ) from error
      time.sleep(0.3)
  try:
    _send(connection, hello)
    answer = _receive(connection, seconds=max(deadline - time.monotonic(), 0) + 5)
  except OSError:
    answer = None
  if answer is None:
    raise ConfigError(
      f"what answers at {meeting.address} is no process 0 of this run, or it ended: see "
      "its output, or mend --coordinator_address"
    )
  if "mistake" in answer:
    raise ConfigError(answer["mistake"])
  return connection, answer["jax_port"]


def _server(port: int) -> socket.socket:
  """Listens on all addresses of this machine."""
  if socket.has_dualstack_ipv6():
    with contextlib.suppress(OSError):  # IPv6 may be known, but switched off
      return socket.create_server(
        ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
      )
  return socket.create_server(("", port), backlog=1024)


def _host_and_port(address: str) -> tuple[str, int]:
  host, _, port = address.rpartition(":")
  return host.strip("[]"), int(port)


def _bracketed(host: str) -> str:
  """An IPv6 address as it stands before a port."""
  with contextlib.suppress(ValueError):
    if ipaddress.ip_address(host).version == 6:
      return f"[{host}]"
  return host


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
  connection.sendall(json.dumps(message).encode() + b"\n")


def _receive(connection: socket.socket, *, seconds: float) -> dict[str, Any] | None:
  """The next message; None if there is none, or something else."""
  received, deadline = b"", time.monotonic() + seconds
  while not received.endswith(b"\n"):
    connection.settimeout(max(deadline - time.monotonic(), 0.01))
    try:
      data = connection.recv(1)  # no byte of what follows, which another reads
    except OSError:
      return None
    if not data or len(received) > 1000:
      return None
    received += data
  return _message(received) or None


def _message(line: bytes) -> dict[str, Any]:
  """What a line says; nothing if it does not come from a process like this one."""
  try:
    message = json.loads(line)
  except (ValueError, RecursionError):
    return {}
  return message if isinstance(message, dict) else {}


def _keep_alive(connection: socket.socket) -> None:
  """Has the operating system ask whether the other machine is still there."""
  connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")  # Linux's
  for name, value in zip(names, _SILENT_SECONDS, strict=True):
    if hasattr(socket, name):
      connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
