"""A trained model, loaded from its work directory: it needs none of its training data."""

import contextlib
import functools
import itertools
import os
import pathlib
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from ssil_jax import config as config_lib
from ssil_jax.config import Config
from ssil_jax.data.dataset import LARGEST_RESIDENT
from ssil_jax.data.encoded import BadImage
from ssil_jax.data.images import crop, decode
from ssil_jax.data.images.augment import Normalization, to_float
from ssil_jax.data.sources.folder import read_file
from ssil_jax.distributed.preemption import interrupts
from ssil_jax.errors import ConfigError, WorkdirError
from ssil_jax.methods import Method, get_method
from ssil_jax.methods.base import PhaseContext, SeenClasses, Sizes
from ssil_jax.methods.source import source_hash
from ssil_jax.model.export import export
from ssil_jax.paths import real_path
from ssil_jax.resnet import ResNet18
from ssil_jax.system import usable_cores
from ssil_jax.training import model_files, numerics

# A path of an image file, its bytes, or its pixels, uint8 [H, W, 3].
Image = str | os.PathLike | bytes | np.ndarray


class ClassProbability(NamedTuple):
  """A class, and how probable it is that it is the one of an image."""

  name: str
  probability: float


class Prediction(NamedTuple):
  """Holds what a model says of one image."""

  file: str | None  # as it was given; None of pixels and bytes
  classes: tuple[ClassProbability, ...]  # the best first


class TrainedModel:
  """A network and its method at the end of an incremental state.

  Attributes:
    workdir: where it was loaded from.
    card: the contents of `model.json`.
    state: of its states, the one at whose end it stands, from 1.
    class_names: those that it knows, in the order in which they were learnt.
    image_size: side of the network's input in pixels.
    config: the settings with which its state was trained.
    method: what it was trained by, and predicts by.
    network: the Flax module.
    variables: {"params", "batch_stats"} of the network, host arrays. The head may have more
      columns than there are classes: those that the run had yet to learn.
    stats: the method's statistics, host arrays.
    num_steps: training steps done.
    normalization: of the input; None for pixels from 0 to 1 as they are.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    card: dict[str, Any],
    state: int,
    config: Config,
    method: Method,
  ):
    """Reads the network and statistics of a state; raises WorkdirError. See `load`."""
    self.workdir, self.card, self.state = workdir, card, state
    self.config, self.method = config, method
    row = card["states"][state - 1]
    self.num_old, num_seen = row["num_old"], row["num_seen"]
    self.class_names = tuple(card["class_names"][:num_seen])
    self.image_size = card["preprocessing"]["image_size"]
    self.normalization = normalization_of(card["preprocessing"])
    saved = model_files.read_network(workdir, state, row["network_crc32"])
    self.variables = {name: saved[name] for name in ("params", "batch_stats")}
    self.num_steps = int(saved["step"])
    num_features, *_, self.num_columns = saved["params"]["head"]["kernel"].shape
    self.network = ResNet18(
      num_classes=self.num_columns,
      **method.network,
      width=config.width,
      small_images=self.image_size <= LARGEST_RESIDENT,
      dtype=jnp.dtype(config.precision),
    )
    sizes = Sizes(
      num_classes=self.num_columns,
      num_features=num_features,
      num_records=1,
      memory_size=config.memory_size,
      params=saved["params"],
      image_size=self.image_size,
      config=config,
    )
    # Of how many records there were, nothing is known.
    likes = [method.init_stats(sizes._replace(num_records=n)) for n in (1, 2)]
    self.stats = model_files.read_statistics(workdir, row, likes)

  def predict(
    self,
    images: Image | Iterable[Image],
    *,
    top: int = 5,
    batch_size: int = 64,
    on_bad: Callable[[BadImage], None] | None = None,
    advance: Callable[[int], None] = lambda count: None,
  ) -> list[Prediction]:
    """Says which classes images are of, by the method's own prediction.

    Args:
      images: paths of image files, or the contents of such files, or pixels, uint8
        [H, W, 3] each; or one of these. uint8 [N, H, W, 3] are N images.
      top: how many classes to name, or all if there are fewer.
      batch_size: images that the network sees at a time.
      on_bad: called with the error of each image that cannot be read, which is then left
        out; without it, the error is raised.
      advance: called with the number of images done, again and again.

    Returns:
      A prediction for each image, in the order given. Probabilities are over the classes
      known, made as docs/models.md says for each method.

    Raises:
      BadImage: an image cannot be read; it is named.
      ConfigError: `top` or `batch_size` is below 1.
    """
    for name, number in (("top", top), ("batch_size", batch_size)):
      if number < 1:
        raise ConfigError(f"{name}={number} must be at least 1")
    found = []
    for names, scores, probabilities in self._in_batches(
      _several(images), batch_size, on_bad, advance
    ):
      best = self.best_classes(scores, probabilities, top)
      found += map(Prediction, names, best)
    return found

  def best_classes(
    self, scores: np.ndarray, probabilities: np.ndarray, top: int
  ) -> list[tuple[ClassProbability, ...]]:
    """Returns the `top` classes of each image, the best first, from what `scores` returns.

    All classes, if there are fewer.
    """
    # By score, for probabilities may be equal where scores are not.
    best = np.argsort(-scores, axis=-1, kind="stable")[:, :top]
    return [
      tuple(ClassProbability(self.class_names[c], float(of_image[c])) for c in classes)
      for classes, of_image in zip(best.tolist(), probabilities, strict=True)
    ]

  def probabilities(
    self, images: Image | Iterable[Image], *, batch_size: int = 64
  ) -> np.ndarray:
    """Returns the probability of every class, float32 [N, classes]; see `predict`."""
    batches = self._in_batches(_several(images), batch_size, None, lambda count: None)
    parts = [probabilities for _, _, probabilities in batches]
    return np.concatenate([np.zeros((0, len(self.class_names)), np.float32), *parts])

  def prepare(self, image: Image) -> np.ndarray:
    """Returns what the network sees of an image, uint8 [S, S, 3]; raises BadImage."""
    if isinstance(image, np.ndarray):
      if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise BadImage(
          "array", f"it is {image.dtype}{list(image.shape)}, and not uint8 [H, W, 3]"
        )
      pixels = image
    else:
      is_content = isinstance(image, bytes)
      name = "of the bytes given" if is_content else os.fspath(image)
      try:
        content = image if is_content else read_file(name)
        pixels = decode.read_rgb(content)
      except decode.ImageError as error:
        raise BadImage(name, str(error)) from error
    if not pixels.size:
      raise BadImage("array", "it has no pixels")
    short_side = self.card["preprocessing"]["resize_short_side"]
    return crop.central_square(pixels, self.image_size, short_side=short_side)

  def _in_batches(
    self,
    images: Iterable[Image],
    batch_size: int,
    on_bad: Callable[[BadImage], None] | None,
    advance: Callable[[int], None],
  ) -> Iterator[tuple[list[str | None], np.ndarray, np.ndarray]]:
    """Yields names, scores and probabilities, float32 [n, classes] each, of batches."""
    for chunk, prepared in self._prepared(images, batch_size):
      names, pixels = [], []
      for image, result in zip(chunk, prepared, strict=True):
        if isinstance(result, BadImage):
          if on_bad is None:
            raise result
          on_bad(result)
          continue
        is_path = isinstance(image, str | os.PathLike)
        names.append(os.fspath(image) if is_path else None)
        pixels.append(result)
      if pixels:
        yield names, *self.scores(np.stack(pixels))
      advance(len(chunk))

  def _prepared(
    self, images: Iterable[Image], batch_size: int
  ) -> Iterator[tuple[tuple[Image, ...], list[np.ndarray | BadImage]]]:
    """Yields batches, each image with its pixels or its error, read ahead by threads."""

    def read(image: Image) -> np.ndarray | BadImage:
      try:
        return self.prepare(image)
      except BadImage as error:
        return error

    threads = ThreadPoolExecutor(usable_cores())
    images = iter(images)
    try:
      waiting = None
      while chunk := tuple(itertools.islice(images, batch_size)):
        results = threads.map(read, chunk)  # begins at once
        if waiting:
          yield waiting[0], list(waiting[1])
        waiting = chunk, results
      if waiting:
        yield waiting[0], list(waiting[1])
    finally:
      threads.shutdown(cancel_futures=True)

  def scores(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the method's scores and the probabilities of prepared images.

    Args:
      pixels: uint8 [n, S, S, 3], of `prepare`.

    Returns:
      float32 [n, classes] each.
    """
    # A few shapes serve for any number of images, each of which is compiled once.
    padded = 1 << (len(pixels) - 1).bit_length()
    rows = np.minimum(np.arange(padded), len(pixels) - 1)
    with numerics.standard(self.config):
      both = self._forward(self.variables, self.stats, pixels[rows])
    found = jax.device_get(both)
    return tuple(part[: len(pixels), : len(self.class_names)] for part in found)

  @functools.cached_property
  def _forward(self) -> Callable[..., tuple[jax.Array, jax.Array]]:
    return jax.jit(self.forward)

  def forward(
    self, variables: Any, stats: Any, pixels: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Returns scores and probabilities, float32 [n, columns]: a pure function.

    Args:
      variables: of the network.
      stats: of the method.
      pixels: uint8 [n, S, S, 3].
    """
    outputs = self.network.apply(
      variables, to_float(pixels, self.normalization), train=False
    )
    numbers = (self.num_old, len(self.class_names), 0)
    context = PhaseContext(SeenClasses(*map(jnp.int32, numbers)), None, stats)
    scores = self.method.predict(outputs, context, self.config)
    return scores, self.method.probabilities(scores, context, self.config)

  def learn(
    self,
    data_dir: str | os.PathLike,
    *,
    more_of_known: bool = False,
    console: Console | None = None,
    **settings: Any,
  ) -> dict[str, Any]:
    """Learns the classes of a folder of photos, and answers with them from then on.

    Ctrl-C saves what is done, and calling it again goes on. Until the end, the model in
    the work directory is the old one.

    Args:
      data_dir: DIR/CLASS/*, or DIR/train/CLASS/* and DIR/test/CLASS/*.
      more_of_known: whether photos of known classes, which are refused otherwise, are
        added to those that the exemplars of their class are chosen from.
      console: where progress is shown; standard output by default.
      **settings: by the names of their flags, those that this state is to have otherwise
        than the one before.

    Returns:
      The row of results.json that it added.

    Raises:
      UserError: bad input, named, before any training; or the loss diverged.
      KeyboardInterrupt: Ctrl-C.
    """
    from ssil_jax.model.learning import learn  # which loads models itself

    if self.state != len(self.card["states"]):
      raise ConfigError(
        f"this is the model of state {self.state}, and {self.workdir} has "
        f"{len(self.card['states'])}: load the last one to let it learn"
      )
    own = self.config.method if ":" in self.config.method else None
    with contextlib.ExitStack() as stack:
      check = lambda: None  # noqa: E731
      if threading.current_thread() is threading.main_thread():  # where signals arrive
        check = stack.enter_context(interrupts())
      learnt = learn(
        self.workdir,
        data_dir,
        more_of_known=more_of_known,
        method=own,
        console=console or Console(),
        check_interrupt=check,
        settings=settings,
      )
    new = load(learnt.workdir, method=own)
    self.__dict__ = vars(new)  # at once, for other threads may be asking
    return learnt.result

  def export(
    self, output: str | os.PathLike, *, format: str = "jax"
  ) -> dict[pathlib.Path, int]:
    """Writes the model for other programs, see `ssil_jax.model.export.export`."""
    return export(self, output, format=format)


def _several(images: Image | Iterable[Image]) -> Iterable[Image]:
  """Returns images, of which one alone or an array of all may have been given."""
  is_one = isinstance(images, Image) and getattr(images, "ndim", 3) != 4
  return [images] if is_one else images


def load(
  workdir: str | os.PathLike,
  *,
  state: int | None = None,
  method: str | None = None,
  warn: Callable[[str], None] = warnings.warn,
) -> TrainedModel:
  """Loads a trained model.

  Args:
    workdir: of a run; a copy of its `model.json`, `model` and `networks` is enough.
    state: which of its states' models, from 1; the last by default.
    method: MODULE:NAME of a method of your own that the model was trained by, whose code
      is imported; models of the package's methods need nothing.
    warn: called with a line if the code of the method has changed since.

  Raises:
    WorkdirError: there is no model, it is damaged, or of another version.
    ConfigError: there is no such state; or the model's method is one of your own, and
      `method` does not name it.
  """
  folder = real_path(os.fspath(workdir))
  card = model_files.read_card(folder)
  last = len(card["states"])
  number = last if state is None else state
  if not 1 <= number <= last:
    raise ConfigError(
      f"--state={number}: the model in {folder} has the states 1 to {last}: choose one"
    )
  row = card["states"][number - 1]
  name = method_of(card, folder, number, method)
  found = get_method(name)
  settings = {**row["settings"], "method": name, "workdir": str(folder)}
  try:
    config = config_lib.make_config(settings, found)
  except ConfigError as error:
    raise WorkdirError(
      f"{folder / model_files.CARD}: the settings of state {number} cannot be used, of "
      f"version {card['version']} perhaps: {error}"
    ) from error
  if row.get("method_source") not in (None, source_hash(name)):
    warn(
      f"warning: the code of --method={name} has changed since the model in {folder} was "
      "trained: its predictions may be others"
    )
  return TrainedModel(folder, card, number, config, found)


def method_of(
  card: dict[str, Any], folder: pathlib.Path, state: int, given: str | None
) -> str:
  """Returns the name of the method of a state of a model.

  Raises:
    ConfigError: another one is given; or the method is no part of the package, and is not
      given: whose code is imported is the user's to say, not the card's, which may come
      from elsewhere.
  """
  name = card["states"][state - 1]["settings"].get("method", card["method"])
  if given is not None and given != name:
    raise ConfigError(
      f"--method={given}: the model in {folder} was trained by {name}: leave the flag out, "
      "or give that"
    )
  if ":" in name and given is None:
    raise ConfigError(
      f"the model in {folder} was trained by a method of someone's own: give "
      f"--method={name} to have its code imported"
    )
  return name


def normalization_of(preprocessing: dict[str, Any]) -> Normalization | None:
  """Returns what a card's preprocessing says of the channels; None if nothing."""
  mean, std = (tuple(preprocessing[name]) for name in ("mean", "std"))
  return None if (mean, std) == ((0.0,) * 3, (1.0,) * 3) else Normalization(mean, std)


def paths_of(given: Sequence[str]) -> Iterator[str]:
  """Yields photos, and all images in folders and those below them, in order of names.

  Raises ConfigError for what is not there, and for a folder without images.
  """
  for path in given:
    if not os.path.isdir(path):
      if not os.path.exists(path):
        raise ConfigError(f"{path} does not exist: name photos, or folders of photos")
      yield path
      continue
    found = sorted(
      os.path.join(folder, name)
      for folder, _, names in os.walk(path)
      for name in names
      if name.lower().endswith(decode.SUFFIXES) and not name.startswith(".")
    )
    if not found:
      raise ConfigError(
        f"{path} has no images ({', '.join(decode.SUFFIXES)}): name another folder"
      )
    yield from found
