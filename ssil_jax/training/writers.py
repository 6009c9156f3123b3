"""Writes a run's records for other programs to show: TensorBoard, Weights & Biases.

A `Recorder` opens every writer that is asked for, and tells all of them the same. One of
your own needs the methods of `Writer` and a place in `openers`.
"""

import contextlib
import functools
import html
import importlib.util
import io
import json
import pathlib
import secrets
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from PIL import Image

from ssil_jax import config as config_lib
from ssil_jax.config import Config
from ssil_jax.errors import ConfigError, WorkdirError
from ssil_jax.system import hidden_module, write_json

# tensorboardX imports PyTorch if it is there, which takes two seconds for nothing.
with hidden_module("torch"):
  from tensorboardX import summary as summaries
  from tensorboardX.event_file_writer import EventsWriter
  from tensorboardX.proto.event_pb2 import Event, SessionLog
  from tensorboardX.proto.summary_pb2 import Summary

_SECONDS_BETWEEN_FLUSHES = 10.0  # of the TensorBoard events


class Opening(NamedTuple):
  """Holds what a writer is opened with."""

  folder: pathlib.Path  # the work directory
  steps_kept: int  # records of later ones, if there are any, are of training that is redone
  steps_seen: int  # that ever had a record, those included
  say: Callable[[str], None]  # called with a line for the console


class Writer(Protocol):
  """Shows what a run records, as it comes.

  An `OSError` of any method ends the run, which can be resumed, as that of a full disk.
  """

  def scalars(self, values: Mapping[str, float], *, step: int) -> None:
    """Writes numbers by name: of training (`train/...`), or scores of a finished state."""

  def hparams(
    self, settings: Mapping[str, Any], measures: Mapping[str, float], *, step: int
  ) -> None:
    """Writes the settings of a run (JSON types) and its final measures, side by side."""

  def text(self, name: str, markdown: str, *, step: int) -> None:
    """Writes a text under a name."""

  def figure(self, name: str, png: bytes, *, step: int) -> None:
    """Writes a picture, the bytes of a PNG file, under a name."""

  def flush(self) -> None:
    """Makes what was written readable for others."""

  def close(self, *, failed: bool) -> None:
    """Writes what is left; `failed` if the run was not trained to its end."""


Opener = Callable[[Opening], Writer]


def openers(config: Config) -> list[Opener]:
  """Returns what opens each writer that a run asks for."""
  found: list[Opener] = [TensorBoard]
  if config.wandb:
    settings = config_lib.to_json(config)
    found.append(functools.partial(Wandb, project=config.wandb, settings=settings))
  return found


def check(config: Config) -> None:
  """Raises ConfigError if a writer that is asked for is not installed."""
  if not config.wandb:
    return
  spec = importlib.util.find_spec("wandb")
  # The folder `wandb` that wandb itself leaves behind is found, too, but without an origin.
  if spec is None or spec.origin is None:
    raise ConfigError(
      f"--wandb={config.wandb} needs wandb: pip install -r requirements-wandb.txt, or "
      "'ssil-jax[wandb]'"
    )


class TensorBoard:
  """Writes event files in `WORKDIR/tensorboard`, a new one for each process."""

  def __init__(self, opening: Opening):
    """Opens a file, whose first event hides what there is of later steps."""
    folder = opening.folder / "tensorboard"
    folder.mkdir(exist_ok=True)
    # Not SummaryWriter, whose thread dies of a full disk, after which adding waits forever.
    self._events = EventsWriter(str(folder / "events"))
    # TensorBoard drops what it has of steps from here on.
    start = SessionLog(status=SessionLog.START)
    self._events.write_event(Event(step=opening.steps_kept + 1, session_log=start))
    self._flushed_at = time.monotonic()

  def scalars(self, values: Mapping[str, float], *, step: int) -> None:
    """Writes each number as a scalar."""
    for name, value in values.items():
      self._write(summaries.scalar(name, value), step)
    if time.monotonic() - self._flushed_at > _SECONDS_BETWEEN_FLUSHES:
      self.flush()

  def hparams(
    self, settings: Mapping[str, Any], measures: Mapping[str, float], *, step: int
  ) -> None:
    """Writes what the HParams tab shows as a row; it takes the measures from scalars."""
    self.scalars(measures, step=step)
    plain = {name: _plain(value) for name, value in settings.items()}
    for summary in summaries.hparams(plain, measures):
      self._write(summary, step)

  def text(self, name: str, markdown: str, *, step: int) -> None:
    """Writes what the Text tab shows, rendered."""
    self._write(summaries.text(name, markdown), step)

  def figure(self, name: str, png: bytes, *, step: int) -> None:
    """Writes what the Images tab shows."""
    width, height = struct.unpack(">II", png[16:24])  # as every PNG file begins
    image = Summary.Image(width=width, height=height, encoded_image_string=png)
    self._write(Summary(value=[Summary.Value(tag=name, image=image)]), step)

  def flush(self) -> None:
    """Writes what is in memory to the file."""
    self._events.flush()
    self._flushed_at = time.monotonic()

  def close(self, *, failed: bool) -> None:
    """Closes the file."""
    self._events.close()

  def _write(self, summary: Summary, step: int) -> None:
    self._events.write_event(Event(wall_time=time.time(), step=step, summary=summary))


class Wandb:
  """Writes a run of Weights & Biases, the same one for all processes of a work directory.

  Its id is in `WORKDIR/wandb.json`; what it keeps on disk in `WORKDIR/wandb`. Steps that
  are trained again after an interruption were sent, and are not sent twice.
  """

  def __init__(self, opening: Opening, *, project: str, settings: Mapping[str, Any]):
    """Begins the run, or goes on with it.

    Raises:
      ConfigError: nobody is logged in, or the project is refused.
    """
    import wandb

    self._wandb = wandb
    path = opening.folder / "wandb.json"
    run_id, self._sent = secrets.token_hex(4), 0
    if path.exists():
      run_id, sent = _known_run(path)
      # What the last process sent shows in its records, which are now dropped.
      self._sent = max(sent, opening.steps_seen)
    write_json(path, {"id": run_id, "steps_sent": self._sent})
    try:
      self._run = wandb.init(
        project=project,
        id=run_id,
        name=opening.folder.name,
        resume="allow",
        dir=str(opening.folder),
        config=dict(settings),
        # The terminal is the progress display's.
        settings=wandb.Settings(console="off", silent=True),
      )
    except wandb.Error as error:
      raise ConfigError(
        f"--wandb={project} cannot be opened ({_one_line(error)}): log in by `wandb "
        "login`, or set WANDB_MODE=offline and upload later by `wandb sync`"
      ) from error
    # Steps of the run, not calls of log, are what curves are drawn over.
    self._run.define_metric("step")
    self._run.define_metric("*", step_metric="step")
    if not self._run.offline:
      opening.say(f"wandb: {self._run.url}")

  def scalars(self, values: Mapping[str, float], *, step: int) -> None:
    """Sends a row of numbers, unless it was sent."""
    # After the record of a state's last step, the state was perhaps not evaluated any more.
    if step > self._sent or (step == self._sent and not _is_training(values)):
      self._log(values, step)

  def hparams(
    self, settings: Mapping[str, Any], measures: Mapping[str, float], *, step: int
  ) -> None:
    """Sends the measures that runs are compared by; the settings were sent first of all."""
    with self._errors_named():
      self._run.summary.update(dict(measures))

  def text(self, name: str, markdown: str, *, step: int) -> None:
    """Sends a text as it is."""
    page = self._wandb.Html(f"<pre>{html.escape(markdown)}</pre>")
    self._log({name: page}, step)

  def figure(self, name: str, png: bytes, *, step: int) -> None:
    """Sends a picture."""
    self._log({name: self._wandb.Image(Image.open(io.BytesIO(png)))}, step)

  def flush(self) -> None:
    """Does nothing: all is sent as it comes."""

  def close(self, *, failed: bool) -> None:
    """Waits until all is sent, or on disk if offline."""
    with self._errors_named():
      self._run.finish(exit_code=int(failed))

  def _log(self, values: Mapping[str, Any], step: int) -> None:
    with self._errors_named():
      self._run.log({"step": step, **values})

  @contextlib.contextmanager
  def _errors_named(self) -> Iterator[None]:
    try:
      yield
    except self._wandb.Error as error:
      raise WorkdirError(
        f"wandb failed ({_one_line(error)}): rerun the command to resume from the last "
        "checkpoint, without --wandb if it fails again"
      ) from error


def _known_run(path: pathlib.Path) -> tuple[str, int]:
  """Returns what wandb.json holds: the id, and the steps sent; or raises WorkdirError."""
  try:
    known = json.loads(path.read_text())
    return str(known["id"]), int(known["steps_sent"])
  except (ValueError, KeyError, TypeError) as error:
    raise WorkdirError(
      f"{path} has no run and its steps: put the file right, or delete it for a new run"
    ) from error


def _is_training(values: Mapping[str, float]) -> bool:
  return all(name.startswith("train/") for name in values)


def _one_line(error: Exception) -> str:
  return " ".join(str(error).split())


def _plain(value: Any) -> str | bool | int | float | None:
  """Returns a setting as one of the types that HParams have."""
  return ",".join(map(str, value)) if isinstance(value, list) else value


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """Returns a table in Markdown; None is a dash, and bars are escaped."""
  cells = [columns, ["---"] * len(columns), *rows]
  return "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in cells)


def _cell(value: Any) -> str:
  text = "-" if value is None or value == "" else str(_plain(value))
  return " ".join(text.replace("|", r"\|").split())
