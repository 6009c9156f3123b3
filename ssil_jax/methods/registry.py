"""The methods, by the name that `--method` takes: one of the package, or MODULE:NAME."""

import dataclasses
import importlib
import os
import sys
import traceback
from collections.abc import Iterator, Mapping

from ssil_jax.config import Config
from ssil_jax.errors import ConfigError
from ssil_jax.methods.ablations import FT_RP, FT_SS
from ssil_jax.methods.agem import AGEM
from ssil_jax.methods.base import Method
from ssil_jax.methods.bic import BIC
from ssil_jax.methods.cgan_features import CGAN_FEATURES
from ssil_jax.methods.der import DER
from ssil_jax.methods.dgr import DGR
from ssil_jax.methods.eeil import EEIL
from ssil_jax.methods.er import ER
from ssil_jax.methods.er_ace import ER_ACE
from ssil_jax.methods.ewc import EWC
from ssil_jax.methods.fearnet import FEARNET
from ssil_jax.methods.ft import FT
from ssil_jax.methods.gd import GD
from ssil_jax.methods.gdumb import GDUMB
from ssil_jax.methods.gem import GEM
from ssil_jax.methods.icarl import ICARL
from ssil_jax.methods.il2m import IL2M
from ssil_jax.methods.joint import JOINT, JOINT_FULL
from ssil_jax.methods.lucir import LUCIR
from ssil_jax.methods.lwf import LWF
from ssil_jax.methods.ncm import NCM
from ssil_jax.methods.podnet import PODNET
from ssil_jax.methods.rwalk import RWALK
from ssil_jax.methods.si import SI
from ssil_jax.methods.ssil import SSIL
from ssil_jax.methods.ssil_cal import SSIL_CAL, SSIL_TKD_CAL
from ssil_jax.methods.ssil_tkd import SSIL_TKD
from ssil_jax.methods.ucl import UCL
from ssil_jax.methods.vcl import VCL
from ssil_jax.methods.wa import WA
from ssil_jax.settings import check_types, fields_of

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
  "ssil_cal": SSIL_CAL,
  "ssil_tkd_cal": SSIL_TKD_CAL,
  "lwf": LWF,
  "eeil": EEIL,
  "bic": BIC,
  "wa": WA,
  "lucir": LUCIR,
  "er_ace": ER_ACE,
  "der": DER,
  "er": ER,
  "gem": GEM,
  "agem": AGEM,
  "ewc": EWC,
  "si": SI,
  "rwalk": RWALK,
  "vcl": VCL,
  "ucl": UCL,
  "gdumb": GDUMB,
  "ncm": NCM,
  "podnet": PODNET,
  "gd": GD,
  "fearnet": FEARNET,
  "cgan_features": CGAN_FEATURES,
  "dgr": DGR,
}


# What config.json holds beside the settings.
_IN_CONFIG_JSON = {
  *("data", "data_fingerprint", "method_source", "version", "started", "command")
}


def get_method(name: str) -> Method:
  """Returns the method that `--method` names.

  Args:
    name: a key of `METHODS`, or MODULE:NAME, a `Method` in an importable module or in a
      file MODULE.py of the current folder.

  Raises:
    ConfigError: there is none; or the module cannot be imported, or its method has a
      setting that clashes with one of `Config`.
  """
  if ":" in name:
    return _from_elsewhere(name)
  if name not in METHODS:
    raise ConfigError(
      f"--method={name} is unknown; choose from: {', '.join(METHODS)}; or give MODULE:NAME "
      "for one of your own"
    )
  return METHODS[name]


def _from_elsewhere(name: str) -> Method:
  flag = f"--method={name}"
  module_name, _, attribute = name.partition(":")
  parts = (*module_name.split("."), attribute)
  if module_name.endswith(".py") or not all(part.isidentifier() for part in parts):
    raise ConfigError(f"{flag} must be MODULE:NAME, such as my_module:FOCAL")
  if os.getcwd() not in sys.path:
    sys.path.append(os.getcwd())  # last: a file here hides no library
  try:
    module = importlib.import_module(module_name)
  except ModuleNotFoundError as error:
    if not f"{module_name}.".startswith(f"{error.name}."):
      raise ConfigError(
        f"{flag}: {module_name} imports {error.name}, which is not there: install it"
      ) from error
    raise ConfigError(
      f"{flag}: there is no module {module_name}: put {module_name.partition('.')[0]}.py "
      f"into {os.getcwd()}, or install it"
    ) from error
  except (Exception, SystemExit) as error:  # whatever a user's file leads to
    last = traceback.extract_tb(error.__traceback__)[-1]
    what, place = str(error), f"{last.filename}, line {last.lineno}"
    if isinstance(error, SyntaxError):
      what, place = error.msg, f"{error.filename}, line {error.lineno}"
    what = " ".join(f"{type(error).__name__}: {what}".split())
    raise ConfigError(
      f"{flag}: {module_name} cannot be imported ({what}; {place}): fix it"
    ) from error
  method = getattr(module, attribute, None)
  if not isinstance(method, Method):
    found = sorted(n for n, value in vars(module).items() if isinstance(value, Method))
    raise ConfigError(
      f"{flag}: {attribute} is no Method of {getattr(module, '__file__', module_name)}; "
      f"it has: {', '.join(found) or 'none'}"
    )
  if mistakes := [f"{flag}: {mistake}" for mistake in _mistakes(method)]:
    raise ConfigError("\n".join(mistakes))
  return method


def _mistakes(method: Method) -> Iterator[str]:
  """Yields what is wrong with its own settings, and its defaults of shared ones."""
  settings = method.settings
  # Its own, not those of a parent.
  if not isinstance(settings, type) or "__dataclass_fields__" not in vars(settings):
    yield "its settings must be a dataclass: decorate the class"
    return
  if method.parts is not None and method.own_rate is not None:
    yield "it has parts and parameters of its own, and can only have one of them"
  kinds = {str: str, int: int, float: (int, float), bool: bool, tuple[int, ...]: tuple}
  for field in dataclasses.fields(settings):
    if "changes" not in field.metadata:
      yield f"its setting {field.name} is none: declare it by ssil_jax.setting"
    # Texts are what annotations become by `from __future__ import annotations`.
    elif field.type not in kinds or not isinstance(field.default, kinds[field.type]):
      yield (
        f"its setting {field.name} must have the type str, int, float, bool or "
        f"tuple[int, ...], itself and not as text, and a default of it"
      )
  own = {field.name: field.type for field in fields_of(settings)}
  for name in own.keys() & _IN_CONFIG_JSON:
    yield f"its setting {name} has a name that config.json needs: rename it"
  shared = {field.name: field for field in fields_of(Config)}
  for name, value in sorted({**method.defaults, **method.fixed}.items()):
    if name not in shared:
      yield f"{name}, of its defaults, is no shared setting: take it out"
    elif not (callable(value) and name.startswith("milestones")):
      try:
        check_types({name: value}, [shared[name]])
      except ConfigError as error:
        yield f"of its defaults, {error}"
  owners = {"Config": Config, **{name: known.settings for name, known in METHODS.items()}}
  for owner, others in owners.items():
    for field in fields_of(others):
      if field.name in own and (owner == "Config" or own[field.name] != field.type):
        yield f"its setting {field.name} has the name of another one ({owner}): rename it"
