"""The embedded data set: 1,797 scanned digits of 8x8 pixels that ship with scikit-learn.

E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
Repository, 1998 (https://doi.org/10.24432/C50P49).
"""

import gzip
import importlib.util
import pathlib

import numpy as np

from ssil_jax.config import Config
from ssil_jax.data.dataset import Source, Split


def open_digits(_: Config) -> Source:
  """Every fifth image of each digit is held out for testing: 1,433 train, 364 test."""
  pixels, digits = _read_digits()
  gray = np.round(pixels * (255 / 16)).astype(np.uint8)  # 0..16 as scanned
  images = np.repeat(gray[..., None], 3, axis=-1)
  labels = digits.astype(np.int32)
  test = np.zeros(len(labels), bool)
  for digit in range(10):
    test[np.flatnonzero(labels == digit)[::5]] = True
  return Source(
    class_names=tuple(map(str, range(10))),
    train=Split(images[~test], labels[~test]),
    test=Split(images[test], labels[test]),
    image_size=8,
    flip=False,
  )


def _read_digits() -> tuple[np.ndarray, np.ndarray]:
  """Reads what `sklearn.datasets.load_digits` does: pixels [1797, 8, 8], labels [1797].

  From its file, as importing scikit-learn takes a second.
  """
  (package,) = importlib.util.find_spec("sklearn").submodule_search_locations
  path = pathlib.Path(package) / "datasets" / "data" / "digits.csv.gz"
  if not path.is_file():  # another release may keep it elsewhere
    from sklearn.datasets import load_digits

    found = load_digits()
    return found.images, found.target
  with gzip.open(path, "rt") as lines:
    table = np.loadtxt(lines, delimiter=",")
  return table[:, :-1].reshape(-1, 8, 8), table[:, -1]
