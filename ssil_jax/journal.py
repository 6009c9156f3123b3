"""What is written while training goes on: metrics.jsonl and TensorBoard events."""

import json
import pathlib
from typing import Any

from tensorboardX import SummaryWriter


class Journal:
  """Appends records to `metrics.jsonl` and the TensorBoard events; a context manager.

  Records of incremental states after `states_done` are dropped first: they come from a
  state that a resumed run trains again.
  """

  def __init__(self, workdir: pathlib.Path, *, states_done: int, steps_done: int):
    path = workdir / "metrics.jsonl"
    kept = _lines_of_states(path, states_done) if path.exists() else []
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(kept))
    temporary.replace(path)
    self._file = open(path, "a")  # noqa: SIM115, closed by __exit__
    # TensorBoard drops what it has of steps from here on.
    self._events = SummaryWriter(
      str(workdir / "tensorboard"), purge_step=steps_done + 1, write_to_disk=True
    )

  def __enter__(self) -> "Journal":
    return self

  def __exit__(self, *exc_info) -> None:
    self._file.close()
    self._events.close()

  def train(self, record: dict[str, Any]) -> None:
    """A stretch of training steps that ends with `record["step"]`."""
    self._file.write(json.dumps(record) + "\n")
    self._file.flush()
    for name in ("loss", "top1", "learning_rate", "images_per_second", "input_wait"):
      self._events.add_scalar(f"train/{name}", record[name], record["step"])

  def evaluation(self, result: dict[str, Any], *, step: int) -> None:
    """The scores of a finished incremental state."""
    for name, value in result.items():
      if isinstance(value, float):
        self._events.add_scalar(f"test/{name}", value, step)


def _lines_of_states(path: pathlib.Path, states_done: int) -> list[str]:
  """The whole lines of `metrics.jsonl` that belong to finished states."""
  kept = []
  for line in path.read_text().splitlines(keepends=True):
    # A kill may leave half a line, and only at the end.
    if line.endswith("\n") and json.loads(line)["state"] <= states_done:
      kept.append(line)
  return kept
