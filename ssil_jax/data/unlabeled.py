"""A folder of images that belong to no class, to be trained on beside those that do."""

import collections
import os
import pathlib
from collections.abc import Callable

import numpy as np

from ssil_jax.config import Config
from ssil_jax.data import verify
from ssil_jax.data.dataset import Dataset, Split
from ssil_jax.data.decoded import kept_squares
from ssil_jax.data.encoded import EncodedImages
from ssil_jax.data.images import decode
from ssil_jax.data.sources.folder import Files
from ssil_jax.errors import DataError
from ssil_jax.paths import address_mistakes

_NAME = "unlabeled"


def open_unlabeled(
  dataset: Dataset,
  folder: str,
  config: Config,
  check_interrupt: Callable[[], None] = lambda: None,
) -> Dataset:
  """Returns the data set with the images of a folder, and of folders in it, as `unlabeled`.

  They are read as its training images are: decoded here and now where these live on the
  devices, else looked at once, with `--verify_data`.

  Args:
    dataset: with another size of images, they would be other ones.
    folder: as `--unlabeled_dir` names it.
    config: says what is done with images that cannot be read.
    check_interrupt: called often while images are read.

  Raises:
    DataError: there is no such folder, or no image in it; or one is bad, without
      `--skip_bad_records`, or all are.
  """
  images, num_ignored = _list_images(folder)
  split = Split(images, np.full(len(images), -1, np.int32))
  bad, notes = {}, ()
  if dataset.train.on_device:
    squares = kept_squares(images, dataset.image_size, check_interrupt)
    bad, notes = squares.bad, squares.notes
    split = split._replace(images=squares.pixels, files=images)
  elif config.verify_data:
    verification = verify.verify({_NAME: images}, check_interrupt)
    bad, notes = verification.bad[_NAME], verification.notes
    split = split._replace(images=verification.images[_NAME])
  if len(bad) == len(images):
    raise DataError(
      f"--unlabeled_dir={folder}: none of {len(images)} images can be read; the first one "
      f"is {images.name(0)}: {bad[0]}"
    )
  kept, skip_notes = verify.leave_out_bad(
    {_NAME: split},
    {_NAME: bad},
    {_NAME: images},
    class_names=dataset.class_names,
    skip=config.skip_bad_records,
  )
  line = f"{len(kept[_NAME].labels)} images without labels from {folder}"
  if num_ignored:
    line += f"; ignored beside them: {num_ignored} (other files, linked folders)"
  return dataset._replace(
    unlabeled=kept[_NAME], notes=(*dataset.notes, line, *notes, *skip_notes)
  )


def _list_images(folder: str) -> tuple[EncodedImages, int]:
  """Returns the images in the order of their names, and how many files are none."""
  flag = f"--unlabeled_dir={folder}"
  if mistakes := address_mistakes("unlabeled_dir", folder):
    raise DataError("\n".join(mistakes))
  root = pathlib.Path(folder).expanduser()
  if not root.is_dir():
    raise DataError(
      f"{flag} is not a folder: name one of images, or none (--unlabeled_dir=)"
    )
  found, num_ignored = collections.defaultdict(list), 0

  def fail(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be listed: {error.strerror}") from error

  for place, folders, files in os.walk(root, onerror=fail):
    shown = sorted(name for name in folders if not name.startswith("."))
    folders[:] = [n for n in shown if not os.path.islink(os.path.join(place, n))]
    num_ignored += len(shown) - len(folders)  # a link may lead round in circles
    for name in sorted(files):
      if name.lower().endswith(decode.SUFFIXES) and not name.startswith("."):
        found[os.path.relpath(place, root)].append(os.fsencode(name))
      else:
        num_ignored += 1
  names = [name for of_folder in found.values() for name in of_folder]
  if not names:
    raise DataError(
      f"{flag} has no images ({', '.join(decode.SUFFIXES)}): add some, or give none "
      "(--unlabeled_dir=)"
    )
  counts = [len(of_folder) for of_folder in found.values()]
  files = Files(
    directory=root,
    folders=tuple("" if name == "." else name for name in found),
    folder_of_file=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
    names=b"".join(names),
    name_ends=np.cumsum([*map(len, names)]),
  )
  return EncodedImages(files, np.arange(len(names))), num_ignored
