"""Records training while it goes on: in metrics.jsonl, and by the writers."""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ssil_jax.distributed import collectives
from ssil_jax.errors import WorkdirError
from ssil_jax.reports import tables
from ssil_jax.system import write_bytes
from ssil_jax.training.writers import Opener, Opening, TensorBoard, markdown_table

_OF_TRAINING = ("loss", "top1", "learning_rate", "images_per_second", "input_wait")


class Recorder:
  """Appends to `metrics.jsonl`, and tells every writer; a context manager.

  Of several processes, process 0 does so; the others' recorders write nothing.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    *,
    steps_done: int,
    steps_recorded: int,
    warn: Callable[[str], None] = lambda line: None,
    openers: Sequence[Opener] = (TensorBoard,),
  ):
    """Opens the records of a run that is begun or resumed.

    Args:
      workdir: its work directory.
      steps_done: of the whole run.
      steps_recorded: those of them that have a record. What is recorded of later ones is
        dropped, for they will be recorded again.
      warn: called with a line if there are no records any more.
      openers: of the writers that are told.

    Raises:
      WorkdirError: a line is damaged, or records are missing.
      ConfigError: a writer cannot be opened.
    """
    self._file = None
    self._writers = []
    if not collectives.is_main():
      return
    path, content, kept = workdir / "metrics.jsonl", b"", b""
    if path.exists():
      # The checkpoint has the metrics of the steps since then, to be recorded again.
      content = path.read_bytes()
      kept = _lines_until(path, content, steps_recorded)
    elif steps_done:
      warn(f"warning: {path} is gone; it begins again after step {steps_recorded}")
    with contextlib.ExitStack() as stack:
      for opener in openers:
        writer = opener(Opening(workdir, steps_recorded, _last_step(content), warn))
        stack.callback(writer.close, failed=True)
        self._writers.append(writer)
      write_bytes(path, kept)
      self._file = open(path, "a")  # noqa: SIM115, closed by __exit__
      stack.pop_all()

  def __enter__(self) -> "Recorder":
    return self

  def __exit__(self, *exc_info) -> None:
    if self._file is None:
      return
    with contextlib.ExitStack() as stack:
      for writer in self._writers:
        stack.callback(writer.close, failed=exc_info[0] is not None)
      stack.enter_context(self._file)

  def add(self, record: dict[str, Any]) -> None:
    """Records the training steps from the last record up to `record["step"]`."""
    if self._file is None:
      return
    self._file.write(json.dumps(record) + "\n")
    self._file.flush()
    values = {f"train/{name}": record[name] for name in _OF_TRAINING}
    for writer in self._writers:
      writer.scalars(values, step=record["step"])

  def add_scores(self, result: dict[str, Any], *, step: int, scored: str = "test") -> None:
    """Records the scores of a finished incremental state, of `scored` images."""
    values = _floats(scored, result)
    for writer in self._writers:
      writer.scalars(values, step=step)
      writer.flush()

  def add_summary(
    self,
    settings: Mapping[str, Any],
    results: Mapping[str, Any],
    figures: Mapping[str, bytes],
    *,
    step: int,
  ) -> None:
    """Records what a finished run is known by.

    Args:
      settings: of the run, JSON types, the method's own among them.
      results: the content of results.json. Its averages, and the scores of its last state,
        are the measures by which runs are compared.
      figures: name -> bytes of a PNG file.
      step: the last one.
    """
    measures = {
      **_floats("average", results["average"]),
      **_floats("last", results["states"][-1]),
    }
    texts = {
      "settings": markdown_table(("setting", "value"), list(settings.items())),
      "results": markdown_table(tables.STATE_COLUMNS, tables.state_rows(dict(results))),
    }
    for writer in self._writers:
      writer.hparams(settings, measures, step=step)
      for name, markdown in texts.items():
        writer.text(name, markdown, step=step)
      for name, png in figures.items():
        writer.figure(f"figures/{name}", png, step=step)
      writer.flush()

  def sync(self) -> None:
    """Waits until all records are on the disk: a checkpoint must not know of more steps."""
    if self._file is not None:
      os.fsync(self._file.fileno())


def _floats(group: str, values: Mapping[str, Any]) -> dict[str, float]:
  """Returns the numbers among some values, which may be null, as GROUP/NAME."""
  return {f"{group}/{k}": v for k, v in values.items() if isinstance(v, float)}


def _last_step(content: bytes) -> int:
  """Returns the step of the last whole record, whatever is around it; 0 without one."""
  for line in reversed(content.split(b"\n")[:-1]):
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
      if type(step := json.loads(line)["step"]) is int:
        return step
  return 0


def _lines_until(path: pathlib.Path, content: bytes, last_step: int) -> bytes:
  """Returns the records of no later steps; raises WorkdirError if they are damaged."""

  def damaged(what: str) -> WorkdirError:
    return WorkdirError(
      f"{path}{what}: put the file right, or delete it and records begin after step "
      f"{last_step}"
    )

  kept, last = [], 0
  *lines, _ = content.split(b"\n")
  for number, line in enumerate(lines, start=1):
    if last == last_step:
      break  # what follows was perhaps never wholly on the disk
    try:
      step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
      raise damaged(f": line {number} is no record") from error
    if type(step) is not int:
      raise damaged(f": line {number} has no step")
    if step > last_step:
      break
    if step <= last:
      raise damaged(f": line {number} is not in the order of steps")
    kept.append(line + b"\n")
    last = step
  # A file that was deleted begins later, and has no record of the steps before.
  if kept and last != last_step:
    raise damaged(f" ends with step {last}, not {last_step}")
  return b"".join(kept)
