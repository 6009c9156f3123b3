"""Whole runs from Python: a configuration, a run, its results."""

import contextlib
import threading
from typing import Any

from rich.console import Console

from ssil_jax import config as config_lib
from ssil_jax.config import Config
from ssil_jax.data.opening import check_dataset_name
from ssil_jax.distributed import launch
from ssil_jax.distributed.preemption import interrupts
from ssil_jax.errors import ConfigError
from ssil_jax.methods import METHODS, get_method
from ssil_jax.methods.source import source_hash
from ssil_jax.model.trained import load
from ssil_jax.reports.results import load_run
from ssil_jax.settings import owners_of
from ssil_jax.training import devices, loop

__all__ = ["load", "load_run", "make_config", "run"]


def make_config(method: str = "ssil", **settings: Any) -> Config:
  """Returns the settings of a run, checked.

  Args:
    method: the name of a method, or MODULE:NAME for one of your own.
    **settings: shared ones, and the method's own, by the names of their flags; what is not
      given has its default.

  Raises:
    ConfigError: with one line for every mistake, and the name that was perhaps meant.
  """
  chosen = get_method(method)
  source_hash(method)  # of the code that was just loaded, whatever is saved later
  owners = owners_of(METHODS)
  others = settings.keys() & owners.keys() - owners_of({method: chosen}).keys()
  mistakes = [
    f"{name} belongs to method {', '.join(owners[name])}, not to {method}: take it out"
    for name in sorted(others)
  ]
  own = {name: value for name, value in settings.items() if name not in others}
  try:
    config = config_lib.make_config({"method": method, **own}, chosen)
  except ConfigError as error:
    raise ConfigError("\n".join([*mistakes, str(error)])) from error
  if mistakes:
    raise ConfigError("\n".join(mistakes))
  check_dataset_name(config.dataset)
  return config


def run(config: Config, *, console: Console | None = None) -> dict[str, Any]:
  """Trains and evaluates every incremental state that the work directory lacks.

  On a CPU, the first run of a process splits it into virtual devices, one a core, unless
  jax was used before. Ctrl-C saves the run, and calling it again resumes it.

  Args:
    config: of the run.
    console: where progress is shown; standard output by default.

  Returns:
    The contents of results.json.

  Raises:
    UserError: bad input, named, before any training; or the loss diverged.
    KeyboardInterrupt: Ctrl-C.
  """
  with contextlib.suppress(RuntimeError):  # jax has its devices already
    devices.prepare_cpu_devices(config)
  with launch.connected(config), contextlib.ExitStack() as stack:
    check = lambda: None  # noqa: E731
    if threading.current_thread() is threading.main_thread():  # where signals arrive
      check = stack.enter_context(interrupts())
    return loop.run(config, console or Console(), check_interrupt=check)
