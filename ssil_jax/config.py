"""One frozen Config of a run: the flags, their defaults, and what can be wrong with them.

Every field of `Config` is a flag of `experiments/run.py` under the same name. Nothing
below this file reads a flag; whatever a run depends on is a field here, and is saved in
`WORKDIR/config.json`.
"""

import dataclasses
import difflib
import math
import numbers
import pathlib
from collections.abc import Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import numpy as np

from ssil_jax.errors import ConfigError
from ssil_jax.paths import address_mistakes, real_path, run_mistakes

PRECISIONS = ("float32", "bfloat16")
MATMUL_PRECISIONS = ("default", "high", "highest")
SELECTIONS = ("ring", "herding")
RATES_BY_STATE = ("inverse", "constant")
IL2M_SCORES = ("softmax", "logits")
AUGMENTS = ("auto", "none", "crop", "crop_flip")
RESUMES = ("auto", "never")
SMALLEST_IMAGE = 8  # side in pixels: the network halves it three times


def _flag(
  help_text: str,
  *,
  identity: bool = True,
  training: bool = True,
  first_state: bool = False,
):
  """A field with its help text.

  Args:
    help_text: shown by --help.
    identity: whether a run with another value is another run.
    training: whether such a run is also trained differently.
    first_state: whether that is so in the first state already, whatever the method.
  """
  metadata = {
    "help": help_text,
    "identity": identity,
    "training": identity and training,
    "first_state": first_state,
  }
  return dataclasses.field(metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """All settings of one class-incremental run; build it with `make_config`."""

  dataset: str = _flag(
    "data set: digits (embedded), image_folder, or one that experiments/prepare.py "
    "makes: imagenet, landmarks_v2/1k, landmarks_v2/10k, cifar100",
    first_state=True,
  )
  data_dir: str = _flag(
    "folder of the data set; image_folder reads DIR/train/CLASS/* and "
    "DIR/test/CLASS/* (or DIR/val), the others what prepare.py left there",
    identity=False,
  )
  workdir: str = _flag(
    "where results, plots and checkpoints go (default: runs/DATASET-METHOD)",
    identity=False,
  )
  resume: str = _flag(
    "auto: continue the run found in --workdir; never: refuse such a directory",
    identity=False,
  )
  method: str = _flag("the method, one of those listed below", training=False)
  num_classes: int = _flag(
    "use only the first classes of the class order (0: all)", first_state=True
  )
  num_states: int = _flag("number of incremental states T, the first one included")
  initial_classes: int = _flag(
    "classes of the first state; the others share the rest equally (0: equal states)"
  )
  class_order_seed: int = _flag(
    "classes are learnt in the order numpy.random.RandomState(SEED).permutation(C)",
    first_state=True,
  )
  memory_size: int = _flag("exemplars kept in all, |M|: floor(M / seen) of each class")
  selection: str = _flag(
    "which exemplars of a class are kept; ring: a random subset, herding: those whose mean "
    "feature follows the class's best"
  )
  batch_size_new: int = _flag(
    "new-class samples of a ratio-preserving batch, N_D; the size of any other batch",
    first_state=True,
  )
  batch_size_memory: int = _flag(
    "exemplars of a ratio-preserving batch, N_M (default: 16/32/64 for T = 20/10/5, "
    "that is N_D divided by 8/4/2); der draws as many twice"
  )
  batch_size_test: int = _flag("images of a test batch", identity=False)
  epochs_first: int = _flag("epochs of the first state", first_state=True)
  epochs: int = _flag("epochs of every later state (default: the method's)")
  milestones_first: tuple[int, ...] = _flag(
    "epochs of the first state after which the learning rate drops (default: at 40% and "
    "80%, or the method's)",
    first_state=True,
  )
  milestones: tuple[int, ...] = _flag(
    "the same for every later state (default: at 40% and 80%, or the method's)"
  )
  learning_rate: float = _flag("learning rate at the start of state 1", first_state=True)
  learning_rate_by_state: str = _flag(
    "inverse: state t starts with 1/t of the learning rate; constant: with all of it"
  )
  learning_rate_drop: float = _flag(
    "factor of the learning rate at every milestone", first_state=True
  )
  momentum: float = _flag("Nesterov momentum", first_state=True)
  reset_momentum: bool = _flag("start every phase of every state with zero momentum")
  weight_decay: float = _flag(
    "weight decay, added to the gradient of every parameter", first_state=True
  )
  width: int = _flag("channels of ResNet-18's first stage", first_state=True)
  precision: str = _flag(
    "what the network computes in: float32 or bfloat16", first_state=True
  )
  matmul_precision: str = _flag(
    "how exactly products of float32 matrices, convolutions included, are computed: "
    "default is the fastest of the hardware (TF32 on GPUs, bfloat16 on TPUs), high and "
    "highest are closer to float32 (jax.default_matmul_precision)",
    first_state=True,
  )
  image_size: int = _flag(
    "side of the square network input in pixels (0: the data set's own; of an image "
    "folder, the median of the training images' longer sides, or 224 if that is above "
    "64). Up to 64, images stay on the device and the network starts with a 3x3 "
    "convolution; above, they are streamed and it starts with 7x7/2 and a max-pool",
    first_state=True,
  )
  augment: str = _flag(
    "training images: none, crop, crop_flip, or auto (crop for digits, else crop_flip)",
    first_state=True,
  )
  seed: int = _flag(
    "initial weights, batches, augmentation and exemplars", first_state=True
  )
  temperature: float = _flag("of softened softmaxes, where the method distils")
  il2m_scores: str = _flag(
    "il2m: which scores are rectified, softmax or logits", training=False
  )
  eeil_epochs: int = _flag("eeil: epochs of balanced fine-tuning")
  bic_held_out: float = _flag(
    "bic: share of the exemplars that is kept from training to fit the correction"
  )
  lucir_lambda: float = _flag("lucir: base weight of the less-forget constraint")
  lucir_margin: float = _flag("lucir: margin of the inter-class separation, in cosines")
  lucir_negatives: int = _flag("lucir: new classes that each exemplar is held off from")
  der_alpha: float = _flag("der: weight of the distance to the stored logits")
  der_beta: float = _flag("der: weight of the replayed samples' cross-entropy")
  from_workdir: str = _flag(
    "work directory of another run: the states that would be trained just as there are "
    "taken from it, the first state of most methods, all of ft's for il2m",
    identity=False,
  )
  num_devices: int = _flag(
    "devices to train on, in each process (0: every accelerator, or as many virtual CPU "
    "devices as there are cores and the batch sizes allow)",
    identity=False,
  )
  input_processes: int = _flag(
    "worker processes that read and decode images (0: threads do, which is faster unless "
    "the host has very many cores)",
    identity=False,
  )
  log_every: int = _flag("steps between two lines of metrics.jsonl", identity=False)
  checkpoint_minutes: float = _flag(
    "minutes of training between two checkpoints (0: only after each state, and when the "
    "run is interrupted)",
    identity=False,
  )
  checkpoints_kept: int = _flag("how many of the last checkpoints are kept", identity=False)
  verify_data: bool = _flag(
    "decode every image once before training, unless that was done already where the data "
    "were prepared or by an earlier run; without, changed contents of images go unnoticed",
    identity=False,
  )
  skip_bad_records: bool = _flag(
    "leave out images that cannot be decoded, and count them in results.json, instead of "
    "stopping before training",
    identity=False,
  )
  coordinator_address: str = _flag(
    "HOST:PORT of process 0, for a run by several processes that neither SLURM nor a TPU "
    "pod tells of each other",
    identity=False,
  )
  num_processes: int = _flag(
    "processes of the run, with --coordinator_address (0: what SLURM or a TPU pod says, "
    "else one)",
    identity=False,
  )
  process_id: int = _flag(
    "number of this process, from 0, with --coordinator_address", identity=False
  )


# What the paper uses for every data set and method (section 6.2), or what it leaves to us.
# A field that is absent here follows another one: see `make_config`.
DEFAULTS: Mapping[str, Any] = {
  "dataset": "digits",
  "data_dir": "",
  "resume": "auto",
  "method": "ssil",
  "num_classes": 0,
  "num_states": 5,
  "initial_classes": 0,
  "class_order_seed": 0,
  "memory_size": 10_000,
  "selection": "ring",
  "batch_size_new": 128,
  "batch_size_test": 256,
  "epochs_first": 100,
  "learning_rate": 0.1,
  "learning_rate_by_state": "inverse",
  "learning_rate_drop": 0.1,
  "momentum": 0.9,
  "reset_momentum": True,
  "weight_decay": 1e-4,
  "width": 64,
  "precision": "float32",
  "matmul_precision": "default",
  "image_size": 0,
  "augment": "auto",
  "seed": 0,
  "temperature": 2.0,
  "il2m_scores": "softmax",
  "eeil_epochs": 30,
  "bic_held_out": 0.1,
  "lucir_lambda": 10.0,
  "lucir_margin": 0.5,
  "lucir_negatives": 2,
  "der_alpha": 0.1,
  "der_beta": 0.5,
  "from_workdir": "",
  "num_devices": 0,
  "input_processes": 0,
  "log_every": 50,
  "checkpoint_minutes": 10.0,
  "checkpoints_kept": 3,
  "verify_data": True,
  "skip_bad_records": False,
  "coordinator_address": "",
  "num_processes": 0,
  "process_id": -1,
}


def milestones_at(epochs: int, *fractions: Fraction) -> tuple[int, ...]:
  """Whole epochs, rounded down, at fractions of a state's training; never at its start."""
  return tuple(dict.fromkeys(e for e in (int(epochs * f) for f in fractions) if e > 0))


def paper_milestones(epochs: int) -> tuple[int, ...]:
  """Epochs after which the rate drops: 40, 80 of 100; 8, 16 of 20; 10, 20 of 25."""
  return milestones_at(epochs, Fraction(2, 5), Fraction(4, 5))


def paper_batch_size_memory(batch_size_new: int, num_states: int) -> int:
  """N_M by N_D and T: N_D / 8, 4, 2 for T = 20, 10, 5 (section 6.2), between for others."""
  ratio = min(8.0, max(2.0, 0.4 * num_states))
  # In sixteenths of N_D, so that as many devices can share both parts equally.
  return max(1, round(16 / ratio) * batch_size_new // 16)


def make_config(
  values: Mapping[str, Any],
  method_defaults: Mapping[str, Any],
  method_fixed: Mapping[str, Any] = MappingProxyType({}),
) -> Config:
  """Fills in what was not given and checks the whole.

  Args:
    values: field name -> value, None where the default is wanted.
    method_defaults: the hyperparameters that its paper ties to the method, `epochs` among
      them; milestones may be a function of the epochs.
    method_fixed: values that the method has whatever was given.

  Returns:
    The complete Config.

  Raises:
    ConfigError: with one line for every mistake that shows without looking at data.
  """
  given = _checked({name: value for name, value in values.items() if value is not None})
  full = {**DEFAULTS, **method_defaults, **given, **method_fixed}
  if "epochs" not in full:
    raise ConfigError(
      "epochs depend on the method: give them, or `get_method(NAME).defaults` of "
      "ssil_jax.methods as method_defaults"
    )
  full.setdefault("workdir", f"runs/{full['dataset']}-{full['method']}")
  for name, epochs in (("milestones_first", "epochs_first"), ("milestones", "epochs")):
    milestones = full.get(name, paper_milestones)
    full[name] = milestones(full[epochs]) if callable(milestones) else milestones
  full.setdefault(
    "batch_size_memory",
    paper_batch_size_memory(full["batch_size_new"], full["num_states"]),
  )
  config = Config(**full)
  validate(config)
  return config


LARGEST = 2**53  # of whole numbers, which JSON keeps exactly
_KINDS: Mapping[Any, tuple[type | tuple[type, ...], str]] = {
  str: (str, "text"),
  int: (numbers.Integral, "a whole number"),
  float: (numbers.Real, "a number"),
  bool: ((bool, np.bool_), "true or false"),
}


def _checked(values: Mapping[str, Any]) -> dict[str, Any]:
  """The values as the types of their fields; raises ConfigError for what is not one."""
  types = {field.name: field.type for field in dataclasses.fields(Config)}
  checked, mistakes = {}, []
  for name, value in values.items():
    if name not in types:
      close = difflib.get_close_matches(str(name), types, n=1)
      hint = f": did you mean {close[0]!r}?" if close else ""
      mistakes.append(f"there is no setting {name!r}{hint}")
      continue
    kind, what = _KINDS.get(types[name], ((tuple, list), "whole numbers"))
    items = value if isinstance(value, tuple | list) else ()
    fits = isinstance(value, kind) and all(isinstance(i, numbers.Integral) for i in items)
    if not fits or (isinstance(value, bool) and types[name] is not bool):
      mistakes.append(f"{name}={value!r} must be {what}")
      continue
    if isinstance(value, str) and "\0" in value:
      mistakes.append(f"{name}={value!r} has a zero byte: write it without")
      continue
    if isinstance(value, numbers.Integral) and abs(value) > LARGEST:
      mistakes.append(f"{name} is too large a number: use one up to 2**53")
      continue
    # So that numbers of NumPy, lists and whole learning rates are equal to saved ones.
    checked[name] = (
      types[name](value) if types[name] in _KINDS else tuple(int(item) for item in items)
    )
  if mistakes:
    raise ConfigError("\n".join(mistakes))
  return checked


def validate(config: Config) -> None:
  """Raises ConfigError, a line for each mistake that shows in the values alone."""
  mistakes = [
    *_number_mistakes(config),
    *_choice_mistakes(config),
    *_process_mistakes(config),
    *address_mistakes("data_dir", config.data_dir),
    *(
      run_mistakes("workdir", config.workdir)
      if config.workdir
      else ["--workdir= is empty: name a folder, or leave the flag out"]
    ),
    *(run_mistakes("from_workdir", config.from_workdir) if config.from_workdir else ()),
    *_milestone_mistakes(config, "milestones_first", "epochs_first"),
    *_milestone_mistakes(config, "milestones", "epochs"),
  ]
  if config.initial_classes and config.num_states == 1:
    mistakes.append(
      "--initial_classes needs --num_states of 2 or more; with one state, leave it at 0"
    )
  if mistakes:
    raise ConfigError("\n".join(mistakes))


_AT_LEAST = {
  "num_classes": 0,
  "num_states": 1,
  "initial_classes": 0,
  "class_order_seed": 0,
  "memory_size": 1,
  "batch_size_new": 1,
  "batch_size_memory": 1,
  "batch_size_test": 1,
  "epochs_first": 1,
  "epochs": 1,
  "momentum": 0,
  "weight_decay": 0,
  "width": 1,
  "eeil_epochs": 1,
  "lucir_lambda": 0,
  "lucir_margin": 0,
  "lucir_negatives": 1,
  "der_alpha": 0,
  "der_beta": 0,
  "image_size": 0,
  "seed": 0,
  "num_devices": 0,
  "input_processes": 0,
  "log_every": 1,
  "checkpoint_minutes": 0,
  "checkpoints_kept": 1,
  "num_processes": 0,
  "process_id": -1,
}


def _number_mistakes(config: Config) -> list[str]:
  mistakes = []
  for name, least in _AT_LEAST.items():
    value = getattr(config, name)
    if not math.isfinite(value) or value < least:
      mistakes.append(f"--{name}={value} must be {least} or more")
  for name in ("learning_rate", "temperature"):
    value = getattr(config, name)
    if not math.isfinite(value) or value <= 0:
      mistakes.append(f"--{name}={value} must be above 0")
  if not 0 < config.learning_rate_drop <= 1:
    mistakes.append(
      f"--learning_rate_drop={config.learning_rate_drop} must be above 0 and at most 1"
    )
  if not 0 < config.bic_held_out < 1:
    mistakes.append(f"--bic_held_out={config.bic_held_out} must be between 0 and 1")
  if config.momentum >= 1:
    mistakes.append(f"--momentum={config.momentum} must be below 1")
  if 0 < config.image_size < SMALLEST_IMAGE:
    mistakes.append(
      f"--image_size={config.image_size} is too small: use {SMALLEST_IMAGE} or more, or 0 "
      "for the data set's own"
    )
  for name in ("class_order_seed", "seed"):
    if getattr(config, name) >= 2**32:
      mistakes.append(f"--{name}={getattr(config, name)} must be below 2**32")
  return mistakes


def _process_mistakes(config: Config) -> list[str]:
  address, count, number = (
    config.coordinator_address,
    config.num_processes,
    config.process_id,
  )
  if not address:
    return [
      f"--{name}={value} needs --coordinator_address=HOST:PORT"
      for name, value, unset in (("num_processes", count, 0), ("process_id", number, -1))
      if value != unset
    ]
  mistakes = []
  host, _, port = address.rpartition(":")
  if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
    mistakes.append(
      f"--coordinator_address={address} must be HOST:PORT, with a port from 1 to 65535"
    )
  if count < 1:
    mistakes.append(f"--num_processes={count} must be 1 or more: how many there are")
  elif not 0 <= number < count:
    mistakes.append(
      f"--process_id={number} must be from 0 to {count - 1} with --num_processes={count}, "
      "another one for each process"
    )
  return mistakes


def _choice_mistakes(config: Config) -> list[str]:
  choices = {
    "precision": PRECISIONS,
    "matmul_precision": MATMUL_PRECISIONS,
    "selection": SELECTIONS,
    "learning_rate_by_state": RATES_BY_STATE,
    "il2m_scores": IL2M_SCORES,
    "augment": AUGMENTS,
    "resume": RESUMES,
  }
  return [
    f"--{name}={getattr(config, name)} is unknown; choose from: {', '.join(known)}"
    for name, known in choices.items()
    if getattr(config, name) not in known
  ]


def _milestone_mistakes(config: Config, name: str, epochs_name: str) -> list[str]:
  milestones, epochs = getattr(config, name), getattr(config, epochs_name)
  rising = all(a < b for a, b in zip(milestones, milestones[1:], strict=False))
  if rising and all(0 < m < epochs for m in milestones):
    return []
  shown = ",".join(map(str, milestones))
  return [f"--{name}={shown} must rise and lie between 0 and --{epochs_name}={epochs}"]


def to_json(config: Config) -> dict[str, Any]:
  """The Config as JSON types, for `WORKDIR/config.json`."""
  return {
    name: list(value) if isinstance(value, tuple) else value
    for name, value in dataclasses.asdict(config).items()
  }


def identity(config: Config) -> dict[str, Any]:
  """Flag -> value, of those with which another value is another run; JSON types."""
  now = to_json(config)
  return {
    f"--{field.name}": now[field.name]
    for field in dataclasses.fields(Config)
    if field.metadata["identity"]
  }


def differences(
  config: Config, saved: Mapping[str, Any], *, aspect: str = "identity"
) -> list[str]:
  """What in a saved config.json makes it another run: one line per differing field.

  Args:
    config: of this run.
    saved: contents of the other's config.json; a field that is not there, because the
      version that wrote it had none, counts as its default.
    aspect: "identity", "training" or "first_state": which fields matter, see `_flag`.
  """
  now = to_json(config)
  there = {**DEFAULTS, **saved}
  return [
    f"--{field.name}: {there.get(field.name)!r:.100} there, {now[field.name]!r} now"
    for field in dataclasses.fields(Config)
    if field.metadata[aspect] and there.get(field.name) != now[field.name]
  ]


def workdir_path(config: Config) -> pathlib.Path:
  """The work directory as an absolute path (orbax takes no relative ones)."""
  return real_path(config.workdir)
