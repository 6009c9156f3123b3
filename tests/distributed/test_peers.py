"""How the processes of a run meet, and what they hear of each other."""

import concurrent.futures
import socket
import threading

import pytest
from launch import free_port

from ssil_jax.distributed import peers
from ssil_jax.distributed.peers import LostProcessError, Meeting
from ssil_jax.errors import ConfigError


@pytest.fixture
def ended(monkeypatch):
  """Texts with which processes would have ended; nobody does."""
  texts = []
  monkeypatch.setattr(peers.Peers, "_end", lambda self: texts.append(str(self._lost)))
  monkeypatch.setattr(peers, "_GRACE_SECONDS", 0.2)
  return texts


def meet(*meetings, seconds=20.0):
  """What `peers.meet` returns or raises, of each."""

  def one(meeting):
    try:
      return peers.meet(meeting, seconds=seconds)
    except ConfigError as error:
      return str(error)

  with concurrent.futures.ThreadPoolExecutor(len(meetings)) as pool:
    return list(pool.map(one, meetings))


def team(count):
  """The `Peers` of each process, which have met."""
  address = f"127.0.0.1:{free_port()}"
  return [peers for peers, _ in meet(*(Meeting(address, count, i) for i in range(count)))]


def part(*team):
  """What `part` raises, of each."""
  with concurrent.futures.ThreadPoolExecutor(len(team)) as pool:
    futures = [pool.submit(peers.part) for peers in team]
    return [future.exception(60) for future in futures]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_all_meet_and_part(ended, count):
  address = f"localhost:{free_port()}"
  found = meet(*(Meeting(address, count, i) for i in range(count)))
  (jax_address,) = {jax_address for _, jax_address in found}
  host, _, port = jax_address.rpartition(":")
  assert host == "localhost"
  assert int(port) != int(address.rpartition(":")[2])
  threads = [threading.Thread(target=peers.part) for peers, _ in found]
  for thread in threads[1:]:
    thread.start()
  for thread in threads[1:]:
    thread.join(0.1)
    assert thread.is_alive()  # until process 0 is done
  threads[0].start()
  for thread in threads:
    thread.join(20)
    assert not thread.is_alive()
  assert ended == []


def test_who_did_not_come_is_named():
  address = f"127.0.0.1:{free_port()}"
  found = meet(*(Meeting(address, 4, i) for i in (0, 2)), seconds=1.5)
  for text in found:
    assert text.startswith(f"of 4 processes, --process_id=1,3 did not come to {address}")


@pytest.mark.parametrize(
  ("host", "reason"),
  [("127.0.0.1", "Connection refused"), ("no-such-host.invalid", "not known|resolution")],
)
def test_an_address_without_a_process_0_is_named(host, reason):
  address = f"{host}:{free_port()}"
  with pytest.raises(ConfigError, match=f"finds no process 0 at {address}.*({reason})"):
    peers.meet(Meeting(address, 2, 1), seconds=0.5)


def test_a_port_in_use_is_named():
  with socket.create_server(("", 0)) as other:
    address = f"127.0.0.1:{other.getsockname()[1]}"
    with pytest.raises(
      ConfigError, match=f"--coordinator_address={address} cannot be used"
    ):
      peers.meet(Meeting(address, 2, 0), seconds=5)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400\r\n", b"", b"[1]\n", b"x" * 2000])
def test_another_program_at_the_address_is_named(answer):
  with socket.create_server(("127.0.0.1", 0)) as other:

    def serve():
      connection, _ = other.accept()
      with connection:
        connection.recv(100)
        connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    address = f"127.0.0.1:{other.getsockname()[1]}"
    with pytest.raises(ConfigError, match=f"what answers at {address} is no process 0"):
      peers.meet(Meeting(address, 2, 1), seconds=5)


def test_strangers_at_the_port_do_not_matter(ended):
  address = f"127.0.0.1:{free_port()}"
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    first = pool.submit(peers.meet, Meeting(address, 2, 0), seconds=20)
    for data in (b"", b"GET / HTTP/1.1\r\n\r\n", b"{}\n"):
      for _ in range(100):
        try:
          stranger = socket.create_connection(("127.0.0.1", int(address[10:])))
          break
        except ConnectionRefusedError:
          threading.Event().wait(0.05)
      with stranger:
        stranger.sendall(data)
    second = pool.submit(peers.meet, Meeting(address, 2, 1), seconds=20)
    team = [first.result()[0], second.result()[0]]
  assert part(*team) == [None, None]


def test_different_counts_are_named_to_all():
  address = f"127.0.0.1:{free_port()}"
  found = meet(Meeting(address, 2, 0), Meeting(address, 3, 1))
  assert (
    found
    == [
      "process 1 was started for 3 processes, process 0 for 2: give all the same "
      "--num_processes"
    ]
    * 2
  )


def test_a_number_given_twice_is_named_to_all():
  address = f"127.0.0.1:{free_port()}"
  found = meet(*(Meeting(address, 3, i) for i in (0, 1, 1)))
  assert found == ["--process_id=1 was given to two processes: number them from 0"] * 3


def test_all_hear_why_one_leaves(ended):
  first, second, third = team(3)
  second.leave("cannot read image 7.jpg")
  for other in (first, third):
    lost = other.wait_for_loss(20)
    assert str(lost) == "process 1 stopped: cannot read image 7.jpg"
    assert not lost.died
  # Who is busy elsewhere ends, too.
  for _ in range(200):
    threading.Event().wait(0.05)
    if len(ended) == 2:
      break
  assert ended == ["process 1 stopped: cannot read image 7.jpg"] * 2


def test_all_hear_of_a_death(ended):
  first, second, third = team(3)
  second._sockets[0].shutdown(socket.SHUT_RDWR)  # as the operating system does
  for other in (first, third):
    lost = other.wait_for_loss(20)
    assert str(lost).startswith("process 1 ended without a word (killed, or its machine")
    assert lost.died
  with pytest.raises(LostProcessError, match="process 1 ended"):
    first.part()


def test_without_process_0_the_others_end_at_once(ended, monkeypatch):
  monkeypatch.setattr(peers, "_GRACE_SECONDS", 1000)
  first, second = team(2)
  first._sockets[1].shutdown(socket.SHUT_RDWR)
  assert second.wait_for_loss(20).died
  for _ in range(200):
    if ended:
      break
    threading.Event().wait(0.05)
  assert str(second.wait_for_loss(0)) in ended


def test_nothing_is_heard_while_all_is_well(ended):
  first, second = team(2)
  assert first.wait_for_loss(0.05) is None
  assert second.wait_for_loss(0) is None
  assert part(first, second) == [None, None]
