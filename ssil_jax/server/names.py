"""Names of classes that someone typed: each becomes the name of a folder."""

import unicodedata

from ssil_jax.server.problems import Problem

_LONGEST = 255  # bytes of a folder's name, on all common file systems
_SPLITS = ("train", "test", "val")  # of an image folder, and no classes
# Unicode categories. Those of Cf are not seen, or change the order in which what follows is
# shown, so that a name reads as another one; scripts and emoji need the two joiners.
_CONTROLS = ("Cc", "Cf", "Cs", "Cn", "Zl", "Zp")
_JOINERS = frozenset("\u200c\u200d")


def class_name(given: str) -> str:
  """Returns a name as it is kept: in Unicode's form NFC, without spaces around it.

  Raises Problem if it cannot be the name of a folder, or would deceive a reader.
  """
  name = unicodedata.normalize("NFC", given).strip()
  shown = ascii(name if len(name) <= 80 else f"{name[:60]}...")
  if not as_seen(name):
    raise Problem("a class has no name: give it one")
  if any(unicodedata.category(c) in _CONTROLS for c in name if c not in _JOINERS):
    raise Problem(
      f"the class name {shown} has characters that control how text is shown: type it "
      "without them"
    )
  if "/" in name or "\\" in name:
    raise Problem(f"the class name {name} has a slash: write it without")
  if name.startswith("."):
    raise Problem(f"the class name {name} begins with a dot: write it without")
  if name.casefold() in _SPLITS:
    raise Problem(
      f"a class cannot be called {name}, for that is a part of a data set: choose another "
      "name"
    )
  if len(name.encode()) > _LONGEST:
    raise Problem(
      f"the class name {shown} has {len(name.encode())} bytes: {_LONGEST} are allowed"
    )
  return name


def as_seen(name: str) -> str:
  """Returns what a reader tells names apart by: neither case nor what is not seen."""
  normal = unicodedata.normalize("NFC", name)
  seen = "".join(c for c in normal if unicodedata.category(c) != "Cf")
  return unicodedata.normalize("NFC", seen.casefold())
