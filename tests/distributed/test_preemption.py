"""Real signals to this very process."""

import os
import signal

import pytest

from ssil_jax.distributed.preemption import Interrupted, interrupts


@pytest.fixture(autouse=True)
def handlers():
  """What handles the signals without `interrupts`; afterwards it must do so again."""
  numbers = (signal.SIGINT, signal.SIGTERM)
  before = {number: signal.getsignal(number) for number in numbers}
  yield before
  after = {number: signal.getsignal(number) for number in numbers}
  for number, handler in before.items():
    signal.signal(number, handler)
  assert after == before


def send(number):
  os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_waits_for_the_next_check(capfd, number, code):
  with interrupts("stopping soon") as check:
    check()
    send(number)
    try:
      for _ in range(3):
        send(signal.SIGTERM)
    except KeyboardInterrupt:
      pytest.fail("a scheduler that repeats itself is no Ctrl-C")
    for _ in range(2):
      with pytest.raises(Interrupted, match=f"stopped by {number.name}") as caught:
        check()
      assert caught.value.exit_code == code
      assert not isinstance(caught.value, Exception)  # which handlers of errors catch
  assert capfd.readouterr().err == "stopping soon; Ctrl-C again stops at once\n"


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_after_another_signal_is_obeyed_at_once(first):
  with pytest.raises(KeyboardInterrupt) as caught, interrupts():  # noqa: PT012
    send(first)
    send(signal.SIGINT)
    pytest.fail("the second signal was not obeyed")
  assert not isinstance(caught.value, Interrupted)  # for which a run is saved


def test_handlers_are_restored_whatever_happens(handlers):
  with pytest.raises(RuntimeError), interrupts():  # noqa: PT012
    assert signal.getsignal(signal.SIGTERM) != handlers[signal.SIGTERM]
    raise RuntimeError
