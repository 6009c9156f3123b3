"""The model that answers: loaded anew when its work directory has another one."""

import functools
import io
import math
import os
import pathlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ssil_jax.data.encoded import BadImage
from ssil_jax.data.images import crop, decode
from ssil_jax.data.photos import Photos, open_photos
from ssil_jax.errors import DataError, UserError
from ssil_jax.model.trained import TrainedModel, load
from ssil_jax.server.problems import BadPhoto
from ssil_jax.system import usable_cores
from ssil_jax.training import model_files

_EXEMPLAR_SIDE = 160  # pixels, of what is shown of an exemplar
_AT_A_TIME = 16  # photos that are decoded and seen by the network
_SECONDS_UNTIL_RETRY = 30  # after an error that may pass, as a lack of memory


class Exemplars:
  """The exemplars of a model, one of each class for show."""

  def __init__(self, photos: Photos | None):
    """Takes the open archive; None if there is none."""
    self._photos = photos
    self._records: dict[int, int] = {}
    if photos is not None:
      # The one that was chosen first.
      for record in np.argsort(photos.ranks, kind="stable").tolist():
        self._records.setdefault(int(photos.labels[record]), record)
    self.image = functools.lru_cache(maxsize=2000)(self._image)

  def __contains__(self, label: int) -> bool:
    return label in self._records

  def _image(self, label: int) -> bytes:
    """Returns a small PNG of a class's first exemplar; raises BadImage.

    Made anew of the pixels: what else a file holds, as the place where a photo was taken,
    and formats that a browser cannot show stay here.
    """
    pixels = self._photos.images.open(self._records[label]).read()
    side = min(_EXEMPLAR_SIDE, *pixels.shape[:2])
    file = io.BytesIO()
    Image.fromarray(crop.central_square(pixels, side, short_side=side)).save(file, "PNG")
    return file.getvalue()


class Loaded(NamedTuple):
  """A model with its exemplars."""

  model: TrainedModel
  exemplars: Exemplars
  stamp: tuple[int, ...]  # of its card


class Answerer:
  """Answers by the model of a work directory; methods may be called by several threads.

  When the card changes, `refresh` loads the new model; until that is done, and if it
  cannot be done, the old one answers.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    *,
    method: str | None = None,
    warn: Callable[[str], None],
  ):
    """Loads the model; raises what `load` raises."""
    self.workdir, self._method, self._warn = workdir, method, warn
    self._loading = threading.Lock()
    self._network = threading.Lock()
    self._refused: tuple[int, ...] | None = None  # the stamp of what could not be loaded
    self._retry_at = math.inf  # in time.monotonic's seconds
    self.loaded = self._load()

  def _stamp(self) -> tuple[int, ...]:
    try:
      status = os.stat(self.workdir / model_files.CARD)
    except OSError:
      return ()
    return status.st_mtime_ns, status.st_size, status.st_ino

  def _load(self) -> Loaded:
    stamp = self._stamp()  # before it is read: what comes later is another one
    model = load(self.workdir, method=self._method, warn=self._warn)
    photos = None
    try:
      folder = model_files.state_folder(model.workdir, model.state)
      photos = open_photos(folder / model_files.EXEMPLARS)
    except DataError as error:  # without which it can answer
      self._warn(f"warning: {error}")
    side = model.image_size
    # The precision that `scores` sets is the process's: never while another one computes.
    with self._network:
      model.scores(np.zeros((1, side, side, 3), np.uint8))  # compiled before someone waits
    return Loaded(model, Exemplars(photos), stamp)

  def refresh(self) -> None:
    """Loads the model anew if its card has changed; warns once if that fails.

    A model that cannot be read is left alone until its card changes again; after any other
    error it is tried again, later.
    """
    with self._loading:
      stamp = self._stamp()
      if stamp == self.loaded.stamp:
        return
      if stamp == self._refused and time.monotonic() < self._retry_at:
        return
      try:
        self.loaded = self._load()
        return
      except UserError as error:
        reason, self._retry_at = str(error), math.inf
      # Whatever it is, as MemoryError or one of XLA's: if it ended what calls this every
      # second, the old model would answer for good, and no one would know.
      except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        self._retry_at = time.monotonic() + _SECONDS_UNTIL_RETRY
      if stamp != self._refused:
        self._warn(f"warning: the model that was loaded before goes on to answer: {reason}")
      self._refused = stamp

  def predict(self, photos: Sequence[tuple[str, bytes]], top: int) -> list[dict[str, Any]]:
    """Returns for each photo its file and its classes, or an error.

    Args:
      photos: name and content of each.
      top: how many classes to name.
    """
    model, answers = self.loaded.model, []
    with ThreadPoolExecutor(usable_cores()) as threads:
      for start in range(0, len(photos), _AT_A_TIME):
        some = photos[start : start + _AT_A_TIME]
        prepared = list(threads.map(functools.partial(_prepared, model), some))
        pixels = [p for p in prepared if not isinstance(p, BadPhoto)]
        best = iter(())
        if pixels:
          with self._network:  # several at a time would take longer each, and more memory
            best = iter(model.best_classes(*model.scores(np.stack(pixels)), top))
        for (name, _), result in zip(some, prepared, strict=True):
          if isinstance(result, BadPhoto):
            answers.append(result._asdict())
          else:
            answers.append({"file": name, "classes": [c._asdict() for c in next(best)]})
    return answers

  def exemplar(self, label: int) -> bytes | None:
    """Returns a PNG of an exemplar of a class; None if there is none."""
    exemplars = self.loaded.exemplars
    try:
      return exemplars.image(label) if label in exemplars else None
    except DataError as error:
      self._warn(f"warning: {error}")
      return None

  def summary(self) -> dict[str, Any]:
    """Returns what the model is and knows, as JSON types."""
    model, exemplars, _ = self.loaded
    card = model.card
    accuracy = card.get("accuracy", {})
    by_state = accuracy.get("top1_by_state") or []
    return {
      "what": card.get("what"),
      "dataset": card.get("dataset"),
      "method": card["method"],
      "method_title": card.get("method_title", card["method"]),
      "image_size": model.image_size,
      "num_exemplars": card.get("exemplars"),
      "version": card["version"],
      "formats": ["JPEG", "PNG", "WebP", *(["HEIC"] if decode.HAS_HEIC else [])],
      "accuracy": {name: accuracy.get(name) for name in ("top1", "top5")},
      "states": [
        {
          "state": row["state"],
          "num_classes": row["num_seen"] - row["num_old"],
          "finished": row.get("finished"),
          "top1": by_state[t] if t < len(by_state) else None,
        }
        for t, row in enumerate(card["states"])
      ],
      "classes": [
        {"index": c, "name": name, "state": row["state"], "has_exemplar": c in exemplars}
        for row in card["states"]
        for c, name in enumerate(model.class_names)
        if row["num_old"] <= c < row["num_seen"]
      ],
    }


def _prepared(model: TrainedModel, photo: tuple[str, bytes]) -> np.ndarray | BadPhoto:
  name, content = photo
  try:
    return model.prepare(content)
  except BadImage as error:
    return BadPhoto(name, error.reason)
