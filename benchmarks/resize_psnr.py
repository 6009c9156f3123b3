"""What `prepare.py --resize` costs: PSNR of training crops, beside those of the originals.

  python benchmarks/resize_psnr.py ORIGINAL RESIZED

Two --data_dir folders with the same ImageNet images, prepared without and with --resize.
Takes one random resized crop to 224 pixels of every image that was shrunk, at the same
place of both; prints the PSNR averaged over images, and the least.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np

from ssil_jax.commands import run
from ssil_jax.data.images import crop
from ssil_jax.data.opening import open_dataset

SIZE = 224


def main(argv: Sequence[str]) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("original", help="the folder prepared without --resize")
  parser.add_argument("resized", help="the one prepared with it")
  args = parser.parse_args(argv)
  before, after = (
    open_dataset(run.parse(["", "--flagfile=imagenet.cfg", f"--data_dir={folder}"]).config)
    for folder in (args.original, args.resized)
  )
  rng = np.random.default_rng(0)
  decibels = []
  for record in range(len(before.train.images)):
    whole, small = (
      split.images.open(record).read() for split in (before.train, after.train)
    )
    draws = rng.random(crop.DRAWS_SHAPE)
    if whole.shape == small.shape:
      continue
    left, top, right, bottom = crop.random_resized_box(*whole.shape[1::-1], draws)
    across, down = small.shape[1] / whole.shape[1], small.shape[0] / whole.shape[0]
    # A little less than the whole, so that rounding keeps the box inside.
    scale = np.array([across, down, across, down]) * (1 - 1e-9)
    box = np.array([left, top, right - left, bottom - top])
    # The same place to a fraction of a pixel, or the shift would be counted as a loss.
    expected, got = (
      crop.resize(pixels, SIZE, tuple(place.tolist())).astype(float)
      for pixels, place in ((whole, box), (small, box * scale))
    )
    decibels.append(10 * np.log10(255**2 / ((expected - got) ** 2).mean()))
  print(
    f"{len(decibels)} crops: {np.mean(decibels):.1f} dB on average, least "
    f"{np.min(decibels):.1f}"
  )


if __name__ == "__main__":
  main(sys.argv[1:])
