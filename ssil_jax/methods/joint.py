"""Joint training on all data of all classes seen: the upper bound of section 6.

It is no class-incremental learning, since it keeps all data. `JOINT` goes on from state
to state as FT does, with every image in place of the exemplars; `JOINT_FULL` trains once,
on all classes.
"""

from ssil_jax.methods.base import one_phase
from ssil_jax.methods.ft import FT
from ssil_jax.sampling import EVERYTHING

JOINT = FT._replace(
  title="Joint", phases=lambda config, t: one_phase(config, t, EVERYTHING)
)

JOINT_FULL = JOINT._replace(
  title="Joint, all classes at once", fixed={"num_states": 1, "initial_classes": 0}
)
