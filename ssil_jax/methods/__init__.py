"""The methods, by the name that `--method` takes."""

from collections.abc import Mapping

from ssil_jax.errors import ConfigError
from ssil_jax.methods.ablations import FT_RP, FT_SS
from ssil_jax.methods.base import Method, SeenClasses
from ssil_jax.methods.bic import BIC
from ssil_jax.methods.der import DER
from ssil_jax.methods.eeil import EEIL
from ssil_jax.methods.er_ace import ER_ACE
from ssil_jax.methods.ft import FT
from ssil_jax.methods.icarl import ICARL
from ssil_jax.methods.il2m import IL2M
from ssil_jax.methods.joint import JOINT, JOINT_FULL
from ssil_jax.methods.lucir import LUCIR
from ssil_jax.methods.lwf import LWF
from ssil_jax.methods.ssil import SSIL
from ssil_jax.methods.ssil_tkd import SSIL_TKD
from ssil_jax.methods.wa import WA

METHODS: Mapping[str, Method] = {
  "ssil": SSIL,
  "ft": FT,
  "ft_ss": FT_SS,
  "ft_rp": FT_RP,
  "il2m": IL2M,
  "icarl": ICARL,
  "joint": JOINT,
  "joint_full": JOINT_FULL,
  "ssil_tkd": SSIL_TKD,
  "lwf": LWF,
  "eeil": EEIL,
  "bic": BIC,
  "wa": WA,
  "lucir": LUCIR,
  "er_ace": ER_ACE,
  "der": DER,
}


def get_method(name: str) -> Method:
  """Raises ConfigError, with the known names, for one that is not among them."""
  if name not in METHODS:
    raise ConfigError(f"--method={name} is unknown; choose from: {', '.join(METHODS)}")
  return METHODS[name]


__all__ = ["METHODS", "SeenClasses", "Method", "get_method"]
