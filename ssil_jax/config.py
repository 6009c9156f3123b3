"""The settings of a run: what each means, its default, and which values it takes.

Every field of `Config`, and every field of the active method's own settings, is a flag of
`experiments/run.py` under the same name and an entry of `WORKDIR/config.json`. Nothing
else of the package reads a flag.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Collection, Iterator, Mapping
from fractions import Fraction
from typing import Any

from ssil_jax.errors import ConfigError
from ssil_jax.paths import address_mistakes, real_path, run_mistakes
from ssil_jax.settings import (
  CHANGES,
  NoSettings,
  check_types,
  fields_of,
  limit_mistakes,
  setting,
)

SMALLEST_IMAGE = 8  # side in pixels: the network halves it three times

_data = functools.partial(setting, topic="Data")
_states = functools.partial(
  setting, topic="Incremental states and exemplars", changes="later_states"
)
_training = functools.partial(setting, topic="Training", changes="later_states")
_from_first = functools.partial(_training, changes="every_state")
_network = functools.partial(setting, topic="Network and arithmetic")
_running = functools.partial(setting, topic="Running", changes="nothing")
_processes = functools.partial(setting, topic="Several processes", changes="nothing")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """All settings of one class-incremental run; build it with `make_config`."""

  dataset: str = _data(
    "digits",
    "data set: digits (embedded), image_folder, or one that experiments/prepare.py "
    "makes: imagenet, landmarks_v2/1k, landmarks_v2/10k, cifar100",
  )
  data_dir: str = _data(
    "",
    "folder of the data set; image_folder reads DIR/train/CLASS/* and "
    "DIR/test/CLASS/* (or DIR/val), or DIR/CLASS/*, the others what prepare.py left there",
    changes="nothing",
  )
  # Another value is noticed by the data, and so are those of `classes` and `class_order`.
  test_fraction: float = _data(
    0.2,
    "share of the images of DIR/CLASS/* that are kept for testing, chosen by a hash of "
    "their content",
    changes="nothing",
    above=0,
    below=1,
  )
  validation_fraction: float = _data(
    0.0,
    "share of the training images that is held out, chosen by a hash of their content, and "
    "scored instead of the test images (0: none): settings can be chosen on it",
    at_least=0,
    below=1,
  )
  method: str = _training(
    "ssil",
    "the method, one of those listed below, or MODULE:NAME for one of your own: a Method "
    "in a file of the current folder or in an installed package",
    changes="results",
  )
  classes: str = _states(
    "",
    "file with the names of the classes to use, one a line (default: all)",
    changes="nothing",
  )
  class_order: str = _states(
    "",
    "file with the names of the classes in the order of learning, one a line (default: "
    "as --class_order_seed says)",
    changes="nothing",
  )
  num_classes: int = _states(
    0,
    "use only the first classes of the class order (0: all)",
    at_least=0,
    changes="every_state",
  )
  num_states: int = _states(
    5, "number of incremental states T, the first one included", at_least=1
  )
  initial_classes: int = _states(
    0,
    "classes of the first state; the others share the rest equally (0: equal states)",
    at_least=0,
  )
  class_order_seed: int = _states(
    0,
    "classes are learnt in the order numpy.random.RandomState(SEED).permutation(C)",
    at_least=0,
    below=2**32,
    changes="every_state",
  )
  memory_size: int = _states(
    10_000, "exemplars kept in all, |M|: floor(M / seen) of each class", at_least=1
  )
  keep_test: int = _states(
    100,
    "test images of each class that are kept in --workdir, beside the exemplars, so that "
    "the class can be tested when others are learnt later; of more, those with the "
    "smallest hash of their content; of classes that the model has, those kept stay",
    at_least=0,
    changes="nothing",
  )
  selection: str = _states(
    "ring",
    "which exemplars of a class are kept; ring: a random subset, herding: those whose mean "
    "feature follows the class's best",
    choices=("ring", "herding"),
  )
  batch_size_new: int = _from_first(
    128,
    "new-class samples of a ratio-preserving batch, N_D; the size of any other batch",
    at_least=1,
  )
  batch_size_memory: int = _training(
    None,
    "exemplars of a ratio-preserving batch, N_M (default: 16/32/64 for T = 20/10/5, "
    "that is N_D divided by 8/4/2); der draws as many twice",
    at_least=1,
  )
  epochs_first: int = _from_first(100, "epochs of the first state", at_least=1)
  epochs: int = _training(
    None, "epochs of every later state (default: the method's)", at_least=1
  )
  milestones_first: tuple[int, ...] = _from_first(
    None,
    "epochs of the first state after which the learning rate drops (default: at 40% and "
    "80%, or the method's)",
  )
  milestones: tuple[int, ...] = _training(
    None, "the same for every later state (default: at 40% and 80%, or the method's)"
  )
  learning_rate: float = _from_first(0.1, "learning rate at the start of state 1", above=0)
  learning_rate_by_state: str = _training(
    "inverse",
    "inverse: state t starts with 1/t of the learning rate; constant: with all of it",
    choices=("inverse", "constant"),
  )
  learning_rate_drop: float = _from_first(
    0.1, "factor of the learning rate at every milestone", above=0, at_most=1
  )
  learning_rate_schedule: str = _from_first(
    "steps",
    "steps: the learning rate of a state drops at milestones; cosine: it falls by half a "
    "cosine, epoch by epoch, whatever the milestones",
    choices=("steps", "cosine"),
  )
  momentum: float = _from_first(0.9, "momentum of SGD", at_least=0, below=1)
  nesterov: bool = _from_first(True, "take Nesterov's form of momentum, not the plain one")
  reset_momentum: bool = _training(
    True, "start every phase of every state with zero momentum"
  )
  weight_decay: float = _from_first(
    1e-4, "weight decay, added to the gradient of every parameter", at_least=0
  )
  width: int = _network(64, "channels of ResNet-18's first stage", at_least=1)
  precision: str = _network(
    "float32",
    "what the network computes in: float32 or bfloat16",
    choices=("float32", "bfloat16"),
  )
  matmul_precision: str = _network(
    "default",
    "how exactly products of float32 matrices, convolutions included, are computed: "
    "default is the fastest of the hardware (TF32 on GPUs, bfloat16 on TPUs), high and "
    "highest are closer to float32 (jax.default_matmul_precision)",
    choices=("default", "high", "highest"),
  )
  image_size: int = _network(
    0,
    "side of the square network input in pixels (0: the data set's own; of an image "
    "folder, the median of the training images' longer sides, or 224 if that is above "
    "64). Up to 64, images stay on the device and the network starts with a 3x3 "
    "convolution; above, they are streamed and it starts with 7x7/2 and a max-pool",
    at_least=0,
  )
  init_from: str = _network(
    "",
    "start the first state from these weights instead of drawn ones, but for the head: a "
    ".safetensors file with the names of torchvision's or timm's ResNet-18, or the work "
    "directory of another run, of whose model the last network is taken",
  )
  augment: str = _data(
    "auto",
    "training images: none, crop, crop_flip, or auto (crop for digits, else crop_flip)",
    choices=("auto", "none", "crop", "crop_flip"),
  )
  seed: int = _from_first(
    0, "initial weights, batches, augmentation and exemplars", at_least=0, below=2**32
  )
  workdir: str = _running(
    None, "where results, plots and checkpoints go (default: runs/DATASET-METHOD)"
  )
  resume: str = _running(
    "auto",
    "auto: continue the run found in --workdir; never: refuse such a directory",
    choices=("auto", "never"),
  )
  from_workdir: str = _running(
    "",
    "work directory of another run: the states that would be trained just as there are "
    "taken from it, the first state of most methods, all of ft's for il2m",
  )
  tuned_on: str = _running(
    "",
    "tuning.json that sweep.py --grid has written: on what the settings of this run were "
    "chosen, for results.json",
  )
  batch_size_test: int = _running(256, "images of a test batch", at_least=1)
  num_devices: int = _running(
    0,
    "devices to train on, in each process (0: every accelerator, or as many virtual CPU "
    "devices as there are cores and the batch sizes allow)",
    at_least=0,
  )
  input_processes: int = _running(
    0,
    "worker processes that read and decode images (0: threads do, which is faster unless "
    "the host has very many cores)",
    at_least=0,
  )
  compilation_cache: str = _running(
    "",
    "folder in which compiled programs are kept for later runs, or none (default: of the "
    "user's cache)",
  )
  profile: str = _running(
    "", "folder for a trace of ten training steps, by jax.profiler (default: none)"
  )
  steps_per_dispatch: int = _running(
    0,
    "training steps that the host sends to the devices together; the run is saved, and "
    "stops, between two such groups alone (0: on GPUs and TPUs, for images of up to 64 "
    "pixels, about 8, a divisor of the steps of all phases if there is one; else 1; more "
    "are slow on CPUs)",
    at_least=0,
    at_most=1000,
  )
  log_every: int = _running(50, "steps between two lines of metrics.jsonl", at_least=1)
  checkpoint_minutes: float = _running(
    10.0,
    "minutes of training between two checkpoints (0: only after each state, and when the "
    "run is interrupted)",
    at_least=0,
  )
  checkpoints_kept: int = _running(
    3, "how many of the last checkpoints are kept", at_least=1
  )
  wandb: str = _running(
    "",
    "project of Weights & Biases that is shown the training as well; needs "
    "'ssil-jax[wandb]', and a login or WANDB_MODE=offline",
  )
  verify_data: bool = _data(
    True,
    "decode every image once before training, unless that was done already where the data "
    "were prepared or by an earlier run; without, changed contents of images go unnoticed",
    changes="nothing",
  )
  skip_bad_records: bool = _data(
    False,
    "leave out images that cannot be decoded, and count them in results.json, instead of "
    "stopping before training",
    changes="nothing",
  )
  coordinator_address: str = _processes(
    "",
    "HOST:PORT of process 0, for a run by several processes that neither SLURM nor a TPU "
    "pod tells of each other",
  )
  num_processes: int = _processes(
    0,
    "processes of the run, with --coordinator_address (0: what SLURM or a TPU pod says, "
    "else one)",
    at_least=0,
  )
  process_id: int = _processes(
    -1, "number of this process, from 0, with --coordinator_address", at_least=-1
  )
  # The method's own, an instance of its `settings`; no flag.
  method_settings: Any = NoSettings()

  @property
  def scored(self) -> str:
    """The images that are scored: "test" or "validation"."""
    return "validation" if self.validation_fraction else "test"


DEFAULTS: Mapping[str, Any] = {
  field.name: field.default for field in fields_of(Config) if field.default is not None
}
_EPOCHS_OF = {"milestones_first": "epochs_first", "milestones": "epochs"}


def milestones_at(epochs: int, *fractions: Fraction | str) -> tuple[int, ...]:
  """Returns whole epochs, rounded down, at fractions of a state's training; never 0."""
  done = (int(epochs * Fraction(fraction)) for fraction in fractions)
  return tuple(dict.fromkeys(epoch for epoch in done if epoch > 0))


def paper_milestones(epochs: int) -> tuple[int, ...]:
  """Returns when the rate drops: after 40, 80 of 100 epochs; 8, 16 of 20; 10, 20 of 25."""
  return milestones_at(epochs, "2/5", "4/5")


def paper_batch_size_memory(batch_size_new: int, num_states: int) -> int:
  """Returns N_M: N_D / 8, 4, 2 for T = 20, 10, 5 (section 6.2), between for others."""
  ratio = min(8.0, max(2.0, 0.4 * num_states))
  # In sixteenths of N_D, so that as many devices can share both parts equally.
  return max(1, round(16 / ratio) * batch_size_new // 16)


def make_config(values: Mapping[str, Any], method: Any) -> Config:
  """Returns the settings of a run: what was not given is filled in, and all is checked.

  Args:
    values: name of a setting -> value, None where the default is wanted.
    method: the `methods.Method` that `values["method"]` names.

  Raises:
    ConfigError: with one line for every mistake that shows without looking at data.
  """
  given = check_types(
    {name: value for name, value in values.items() if value is not None},
    (*fields_of(Config), *fields_of(method.settings)),
  )
  own_names = {field.name for field in fields_of(method.settings)}
  own = method.settings(**{name: given.pop(name) for name in own_names & given.keys()})
  full = {**DEFAULTS, **method.defaults, **given, **method.fixed}
  if "epochs" not in full:
    raise ConfigError(
      '--epochs is missing: the method gives none; give it, or defaults={"epochs": N} in '
      "its Method"
    )
  full.setdefault("workdir", f"runs/{full['dataset']}-{full['method']}".replace(":", "-"))
  for name, epochs in _EPOCHS_OF.items():
    milestones = full.get(name, paper_milestones)
    full[name] = milestones(full[epochs]) if callable(milestones) else milestones
  memory = paper_batch_size_memory(full["batch_size_new"], full["num_states"])
  full.setdefault("batch_size_memory", memory)
  config = Config(**full, method_settings=own)
  if mistakes := list(_mistakes(config, method.fixed)):
    raise ConfigError("\n".join(mistakes))
  return config


def _mistakes(config: Config, fixed: Collection[str]) -> Iterator[str]:
  """Yields a line for each mistake that shows in the values alone, but in `fixed` ones."""
  yield from limit_mistakes(config, but=fixed)
  yield from limit_mistakes(config.method_settings)
  if 0 < config.image_size < SMALLEST_IMAGE:
    yield (
      f"--image_size={config.image_size} is too small: use {SMALLEST_IMAGE} or more, or 0 "
      "for the data set's own"
    )
  yield from _process_mistakes(config)
  if config.tuned_on and config.validation_fraction:
    yield (
      f"--tuned_on={config.tuned_on} is of a run on all training images: leave "
      f"--validation_fraction={config.validation_fraction} out"
    )
  paths = ("data_dir", "classes", "class_order", "init_from", "tuned_on")
  for name in (*paths, "compilation_cache", "profile"):
    yield from address_mistakes(name, getattr(config, name))
  if config.class_order and config.class_order_seed:
    yield (
      f"--class_order_seed={config.class_order_seed} has no effect beside --class_order: "
      "leave one of them out"
    )
  if set(config.wandb) & set("/\\#?%:"):
    yield (
      f"--wandb={config.wandb} cannot be a project: leave out / \\ # ? % and :, and name "
      "a team by WANDB_ENTITY"
    )
  if not config.workdir:
    yield "--workdir= is empty: name a folder, or leave the flag out"
  for name in ("workdir", "from_workdir"):
    if given := getattr(config, name):
      yield from run_mistakes(name, given)
  for name, epochs_name in _EPOCHS_OF.items():
    milestones, epochs = getattr(config, name), getattr(config, epochs_name)
    if list(milestones) != sorted({m for m in milestones if 0 < m < epochs}):
      shown = ",".join(map(str, milestones))
      yield f"--{name}={shown} must rise and lie between 0 and --{epochs_name}={epochs}"
  if config.initial_classes and config.num_states == 1:
    yield "--initial_classes needs --num_states of 2 or more; with one state, leave it at 0"


def _process_mistakes(config: Config) -> Iterator[str]:
  address, count = config.coordinator_address, config.num_processes
  number = config.process_id
  if not address:
    for name, value in (("num_processes", count), ("process_id", number)):
      if value != DEFAULTS[name]:
        yield f"--{name}={value} needs --coordinator_address=HOST:PORT"
    return
  host, _, port = address.rpartition(":")
  if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
    yield f"--coordinator_address={address} must be HOST:PORT, with a port from 1 to 65535"
  if count < 1:
    yield f"--num_processes={count} must be 1 or more: how many there are"
  elif not 0 <= number < count:
    yield (
      f"--process_id={number} must be from 0 to {count - 1} with --num_processes={count}, "
      "another one for each process"
    )


def to_json(config: Config) -> dict[str, Any]:
  """Returns all settings, the method's own among them, as JSON types, in one level."""
  values = {field.name: getattr(config, field.name) for field in fields_of(config)}
  values |= dataclasses.asdict(config.method_settings)
  return {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}


def identity(config: Config) -> dict[str, Any]:
  """Returns flag -> value, of those with which another value is another run; JSON types."""
  now = to_json(config)
  return {f"--{name}": now[name] for name in _names(config, "results")}


def differences(
  config: Config, saved: Mapping[str, Any], *, changes: str = "results"
) -> list[str]:
  """Returns what in a saved config.json makes it another run: a line a setting.

  Args:
    config: of this run.
    saved: contents of the other's config.json; a setting that an earlier version did not
      have counts as its default.
    changes: one of `CHANGES`, "results" or later: which settings matter.
  """
  now = to_json(config)
  own = {f.name: f.default for f in fields_of(config.method_settings)}
  there = {**DEFAULTS, **own, **saved}
  return [
    f"--{name}: {there.get(name)!r:.100} there, {now[name]!r} now"
    for name in _names(config, changes)
    if there.get(name) != now[name]
  ]


def _names(config: Config, changes: str) -> list[str]:
  """Returns the settings with which another value changes at least that."""
  least = CHANGES.index(changes)
  return [
    field.name
    for field in (*fields_of(config), *fields_of(config.method_settings))
    if CHANGES.index(field.metadata["changes"]) >= least
  ]


def workdir_path(config: Config) -> pathlib.Path:
  """Returns the work directory as an absolute path (orbax takes no relative ones)."""
  return real_path(config.workdir)
