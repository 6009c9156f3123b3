"""SS-IL's two parts, each alone (section 6.4, figure 6, right); FT's schedule for both.

The paper does not give the ablations' epochs. It calls both "FT with" one part, so they
are trained as long as FT is.
"""

from ssil_jax.methods.base import one_phase
from ssil_jax.methods.ft import FT, softmax_loss
from ssil_jax.methods.ssil import separated_softmax_loss
from ssil_jax.sampling import RATIO_PRESERVING, SHUFFLED

FT_SS = FT._replace(
  title="FT w/ SS",
  phases=lambda config, t: one_phase(config, t, SHUFFLED),
  loss=separated_softmax_loss,
)

FT_RP = FT._replace(
  title="FT w/ RP",
  phases=lambda config, t: one_phase(config, t, RATIO_PRESERVING),
  loss=softmax_loss,
)
