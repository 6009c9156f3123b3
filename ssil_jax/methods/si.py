"""SI: synaptic intelligence, a penalty by what each parameter did for the loss.

F. Zenke, B. Poole and S. Ganguli, *Continual Learning Through Synaptic Intelligence*, ICML
2017, arXiv:1703.04200. Along the steps of a state, omega_i adds up -gradient * movement
(equation 3), of the loss without the penalty. At the end the importance grows by
omega_i / ((theta_i - theta_i at the beginning)^2 + xi) (equation 5), and the penalty is c
times importance times squared distance from the last parameters (equation 4).

As in the authors' code, which the paper does not say, an importance below 0 becomes 0. c of
0.1 and xi of 0.1 are FACIL's, which leaves such importances as they are. See also
`penalties`.
"""

import dataclasses

import jax
import numpy as np

from ssil_jax.methods.base import Method
from ssil_jax.methods.penalties import PENALIZED, Penalized, zeros_like
from ssil_jax.settings import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Penalized):
  """SI's own; the strength is c."""

  penalty_strength: float = setting(
    0.1, "weight of the penalty on parameters that move", at_least=0, changes="later_states"
  )
  si_damping: float = setting(
    0.1, "xi, added to the squared distance of a state", above=0, changes="later_states"
  )


def path_integral(omega, step, context, config):
  """Returns omega - gradient * movement: what each parameter lowered the loss by.

  Args:
    omega: a tree like the parameters.
    step: a `Step`.
    context: of the phase.
    config: of the run.
  """
  return jax.tree.map(
    lambda sums, gradient, before, after: sums - gradient * (after - before),
    *(omega, step.grads, step.before, step.after),
  )


def _stats(state, config):
  damping = np.float32(config.method_settings.si_damping)

  def grown(importance, omega, begun, ended):
    return np.maximum(importance + omega / ((ended - begun) ** 2 + damping), 0)

  # The anchor is where the state began.
  before = state.stats["importance"], state.carried, state.stats["anchor"]
  return {
    "importance": jax.tree.map(grown, *before, state.params),
    "anchor": state.params,
  }


SI = Method(
  title="SI",
  settings=Settings,
  defaults={"epochs": 25},
  init_carried=zeros_like,
  carry=path_integral,
  stats=_stats,
  **PENALIZED,
)
