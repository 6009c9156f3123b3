"""Folders: where this package's own are, and which names libraries refuse."""

import glob
import os
import pathlib
import re
import site
import sysconfig
from collections.abc import Iterator

from etils import epath

# Where flag files and published results are: of a checkout, and of an installed package.
_CHECKOUT = pathlib.Path(__file__).resolve().parents[1] / "experiments"
_INSTALLED = [
  pathlib.Path(root) / "share" / "ssil_jax"
  for root in (sysconfig.get_path("data"), site.getuserbase())
]
EXPERIMENTS = next(
  (f for f in (_CHECKOUT, *_INSTALLED) if (f / "quickstart.cfg").is_file()), _CHECKOUT
)

UPLOADS = "uploads"  # of a work directory: photos that a server was sent

_LONGEST_WITHIN = 256  # bytes of a path in a work directory, and some to spare
_LONGEST_SHOWN = 600  # characters
_CLOUDS = ("gs", "s3", "az", "hf")  # what epath, of orbax and TFDS, has a scheme for
# gs://bucket, and also gs:/bucket, C:/folder, C:\folder and me@host:folder.
_SCHEMES = "|".join([*_CLOUDS, "hdfs", "https?", "abfss?", "ftp", "file", "[A-Za-z]"])
_ADDRESS = re.compile(
  rf"[A-Za-z][\w+.-]*://|({_SCHEMES}):[/\\]|[^/\s@]+@[^/\s@]+:", re.IGNORECASE
)


class Place(type(epath.Path())):
  """A path in which files are found by patterns, whatever the path itself is called."""

  def glob(self, pattern: str) -> Iterator[epath.Path]:
    # epath's own takes the name of the folder for a part of the pattern.
    return (self / name for name in glob.glob(pattern, root_dir=self))


def real_path(path: str) -> pathlib.Path:
  """Returns an absolute path without links; one in a circle stays, for its use to fail."""
  return pathlib.Path(os.path.realpath(os.path.expanduser(path)))


def address_mistakes(flag: str, given: str) -> list[str]:
  """Returns a line if a flag has the address of something elsewhere, and not a path."""
  if not _ADDRESS.match(given.strip()):
    return []
  return [
    f"--{flag}={given} is an address, and a folder of this machine is needed: mount the "
    "bucket (gcsfuse, s3fs, rclone), or copy what is there"
  ]


def data_mistakes(flag: str, given: str) -> list[str]:
  """Returns what keeps TFDS from a folder, a line each, with the flag that gave it."""
  path = pathlib.Path(os.path.abspath(os.path.expanduser(given)))
  return _mistakes(flag, given, path)


def run_mistakes(flag: str, given: str) -> list[str]:
  """Returns what keeps checkpoints from a work directory, a line each, with the flag."""
  path = real_path(given)
  return _mistakes(flag, given, path, *_tensorstore_reasons(path))


def _mistakes(flag: str, given: str, path: pathlib.Path, *reasons: str) -> list[str]:
  place = f"--{flag}={given}" + ("" if str(path) == given else f" ({path})")
  shown = place if len(place) <= _LONGEST_SHOWN else f"{place[: _LONGEST_SHOWN - 20]}..."
  if path.parts[1:2] and path.parts[1] in _CLOUDS:
    reasons = (f"all below /{path.parts[1]} is taken for storage in a cloud", *reasons)
  return address_mistakes(flag, given) or [
    f"{shown} cannot be used: {reason}; name another folder" for reason in reasons
  ]


def _tensorstore_reasons(path: pathlib.Path) -> Iterator[str]:
  """Yields what TensorStore, by which orbax writes, has against a path."""
  encoded = os.fsencode(path)
  try:
    encoded.decode()
  except UnicodeDecodeError:
    yield "no checkpoint can be written where a folder's name is not UTF-8"
  for folder in path.parts[1:]:
    if "\\" in folder:
      yield f"no checkpoint can be written below {folder}, for its backslash"
    for ending in ("gs:", ".__lock"):
      if folder.endswith(ending):
        yield f"no checkpoint can be written below {folder}, for its ending {ending}"
  longest = os.pathconf("/", "PC_PATH_MAX")
  if len(encoded) + _LONGEST_WITHIN > longest:
    yield (
      f"its path has {len(encoded)} bytes, and with those of its files it would be longer "
      f"than the {longest} that the system allows"
    )
