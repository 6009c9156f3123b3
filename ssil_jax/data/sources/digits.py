"""The embedded data set: 1,797 scanned digits of 8x8 pixels that ship with scikit-learn.

E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
Repository, 1998 (https://doi.org/10.24432/C50P49).
"""

import numpy as np

from ssil_jax.config import Config
from ssil_jax.data.dataset import Source, Split


def open_digits(_: Config) -> Source:
  """Every fifth image of each digit is held out for testing: 1,433 train, 364 test."""
  from sklearn import datasets  # only now: it takes a second to import

  digits = datasets.load_digits()
  gray = np.round(digits.images * (255 / 16)).astype(np.uint8)  # 0..16 as scanned
  images = np.repeat(gray[..., None], 3, axis=-1)
  labels = digits.target.astype(np.int32)
  test = np.zeros(len(labels), bool)
  for digit in range(10):
    test[np.flatnonzero(labels == digit)[::5]] = True
  return Source(
    class_names=tuple(str(name) for name in digits.target_names),
    train=Split(images[~test], labels[~test]),
    test=Split(images[test], labels[test]),
    image_size=8,
    flip=False,
  )
