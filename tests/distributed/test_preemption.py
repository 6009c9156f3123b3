"""Real signals to this very process."""

import os
import signal

import pytest

from ssil_jax.distributed.preemption import Interrupted, Interrupts


@pytest.fixture(autouse=True)
def handlers():
  """What handles the signals without `Interrupts`; afterwards it must do so again."""
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
  with Interrupts("stopping soon") as interrupts:
    interrupts.check()
    send(number)
    for _ in range(2):
      with pytest.raises(Interrupted, match=f"stopped by {number.name}") as caught:
        interrupts.check()
      assert caught.value.exit_code == code
  assert capfd.readouterr().err == "stopping soon; Ctrl-C again stops at once\n"


def test_nothing_happens_without_a_signal():
  with Interrupts() as interrupts:
    for _ in range(3):
      interrupts.check()


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_sigterm_after_another_signal_changes_nothing(capfd, first):
  with Interrupts() as interrupts:
    send(first)
    try:
      for _ in range(3):
        send(signal.SIGTERM)
    except KeyboardInterrupt:
      pytest.fail("a scheduler that repeats itself is no Ctrl-C")
    with pytest.raises(Interrupted, match=f"stopped by {first.name}"):
      interrupts.check()
  assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_after_another_signal_is_obeyed_at_once(first):
  with pytest.raises(KeyboardInterrupt) as caught, Interrupts():  # noqa: PT012
    send(first)
    send(signal.SIGINT)
    pytest.fail("the second signal was not obeyed")
  assert not isinstance(caught.value, Interrupted)  # for which a run is saved


def test_handlers_are_restored_whatever_happens(handlers):
  with pytest.raises(RuntimeError), Interrupts():  # noqa: PT012
    assert signal.getsignal(signal.SIGTERM) != handlers[signal.SIGTERM]
    raise RuntimeError
  with pytest.raises(KeyboardInterrupt):  # noqa: PT012
    send(signal.SIGINT)
    pytest.fail("Python's own handler is gone")


def test_it_is_a_keyboard_interrupt_that_no_handler_of_errors_catches():
  assert issubclass(Interrupted, KeyboardInterrupt)
  assert not issubclass(Interrupted, Exception)
