"""SS-IL with the focal loss of Lin et al. 2017, as a method in a file of one's own.

python experiments/run.py --method=focal_ssil:FOCAL --focal_gamma=2
"""

import dataclasses

import jax.numpy as jnp

from ssil_jax import setting
from ssil_jax.methods.ssil import SSIL, separated_softmax_loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  focal_gamma: float = setting(2.0, "exponent of the focal loss", at_least=0)


def focal_loss(examples, config):
  loss = separated_softmax_loss(examples, config)
  return (1 - jnp.exp(-loss)) ** config.method_settings.focal_gamma * loss


FOCAL = SSIL._replace(title="SS-IL, focal", settings=Settings, loss=focal_loss)
