"""Makes a TFDS directory (array_record) of the official archives of a data set."""

import dataclasses
import os
import pathlib
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from ssil_jax.commands import command_line
from ssil_jax.errors import ConfigError, UserError
from ssil_jax.paths import data_mistakes

if TYPE_CHECKING:
  from ssil_jax.data import builders

# Not the docstring, which `python -OO` leaves out.
_USAGE = """Makes a TFDS directory (array_record) of the official archives of a data set.

  python experiments/prepare.py imagenet --archives=DIR --data_dir=DIR
  python experiments/prepare.py landmarks_v2/1k --archives=DIR --data_dir=DIR
  python experiments/prepare.py landmarks_v2/10k --archives=DIR --data_dir=DIR
  python experiments/prepare.py cifar100 --archives=DIR --data_dir=DIR

The archives are those that the data sets are published as:

  imagenet      ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and, for more
                checks, ILSVRC2012_devkit_t12.tar.gz
  landmarks_v2  train.csv and images_000.tar to images_499.tar, or these
                unpacked
  cifar100      cifar-100-binary.tar.gz

Every image is decoded once, to find the corrupt ones now. Rerun the command
to resume a preparation that was interrupted.
"""
_HELP = {
  "archives": "folder with the official archives",
  "data_dir": "folder to write to, made if need be; the data set gets "
  "DATA_DIR/NAME[/CONFIG]/VERSION",
  "allow_partial": "take archives with fewer classes or images than the official ones, and "
  "leave out images that are missing or corrupt (default: false)",
  "resize": "shrink training images whose short side is longer than this many pixels "
  "(default: none)",
  "restart_markers": "rewrite training images, without loss, so that a part of one can be "
  "decoded without the rest (default: false)",
}


def help_text() -> str:
  """Returns all flags with their defaults."""
  return command_line.help_of_flags(_USAGE, _HELP)


def parse(
  argv: Sequence[str],
) -> tuple[str, pathlib.Path, pathlib.Path, "builders.Options"]:
  """Reads data set, archives, data_dir and options; raises ConfigError or DataError."""
  from ssil_jax.data import builders

  flag_values = flags.FlagValues()
  for name in ("archives", "data_dir"):
    flags.DEFINE_string(name, "", _HELP[name], flag_values=flag_values)
  for name in ("allow_partial", "restart_markers"):
    flags.DEFINE_boolean(name, False, _HELP[name], flag_values=flag_values)
  flags.DEFINE_integer("resize", None, _HELP["resize"], flag_values=flag_values)
  known = f"there are: {', '.join(builders.BUILDERS)}"
  if len(argv) < 2 or argv[1].startswith("-"):
    raise ConfigError(f"the first argument must be a data set, prepare.py DATASET; {known}")
  dataset = argv[1]
  if dataset not in builders.BUILDERS:
    raise ConfigError(f"{dataset} is not a data set that can be prepared; {known}")
  command_line.read_flags(flag_values, [argv[0], *argv[2:]])
  given = flag_values.flag_values_dict()
  for flag in ("archives", "data_dir"):
    if not given[flag]:
      raise ConfigError(f"--{flag}=DIR is missing: {_HELP[flag]}")
  archives, data_dir = (
    pathlib.Path(given[flag]).expanduser().absolute() for flag in ("archives", "data_dir")
  )
  if mistakes := data_mistakes("data_dir", given["data_dir"]):
    raise ConfigError("\n".join(mistakes))
  if not os.path.isdir(archives):
    raise ConfigError(
      f"--archives={given['archives']} is not a folder: name the one with the archives"
    )
  names = [field.name for field in dataclasses.fields(builders.Options)]
  options = builders.Options(**{name: given[name] for name in names})
  return dataset, archives, data_dir, options


def main(argv: Sequence[str]) -> int:
  """Returns the exit code."""
  if command_line.wants_help(argv):
    print(help_text())
    return 0
  # Only now: they take seconds to import, and help needs none of them.
  with command_line.importing():
    from rich.console import Console

    from ssil_jax.data import builders
    from ssil_jax.distributed.preemption import Interrupted, interrupts
  console = Console(highlight=False, emoji=False)  # paths may look like emoji codes
  try:
    dataset, archives, data_dir, options = parse(argv)
    try:
      data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise ConfigError(
        f"--data_dir={data_dir} cannot be made ({error.strerror}): name another folder"
      ) from error
    builder = builders.make_builder(dataset, data_dir)
    with interrupts("stopping; what is finished is kept") as check_interrupt:
      written = builder.prepare(archives, options, console, check_interrupt=check_interrupt)
  except UserError as error:
    return command_line.print_error(error)
  except Interrupted as interrupt:
    print(
      f"{interrupt}; finished shards are kept: rerun the command to resume", file=sys.stderr
    )
    return interrupt.exit_code
  except KeyboardInterrupt:  # for the second time
    print("interrupted", file=sys.stderr)
    return 128 + signal.SIGINT
  summary = builders.summary(pathlib.Path(builder.data_dir))
  if not written:
    summary = [f"{builder.data_dir} was prepared before", *summary]
  for line in summary:
    console.print(line, markup=False, soft_wrap=True)
  return 0
