"""What a run holds on its devices does not grow with its states."""

import jax
from quick import quick_network
from small_runs import run

from ssil_jax.training.session import Session


def test_arrays_on_the_devices_do_not_grow_with_the_states(tmp_path, monkeypatch):
  commit, held = Session.commit, []

  def noting(session, state):
    after = commit(session, state)
    arrays = jax.live_arrays()
    held.append((len(arrays), sum(array.nbytes for array in arrays)))
    return after

  monkeypatch.setattr(Session, "commit", noting)
  with quick_network():
    run(tmp_path / "run", method="ssil_tkd", num_classes=10, num_states=5)
  assert len(held) == 5
  # The first states make what later ones have, too, such as programs with their constants.
  assert max(held[2:]) == min(held[2:])
