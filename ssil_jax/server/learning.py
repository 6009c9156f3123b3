"""Learning new classes from photos that were sent: one job at a time, in its own process.

A job is a folder, WORKDIR/uploads/JOB, with `photos/CLASS/NUMBER.jpg` and `job.json`, which
says how it is learnt. It is made under a name that counts for nothing, and gets its own
when it is complete. It goes when the job is done, is given up, or was bad input. Whatever
else ends the process, as a full disk, has stopped the job: its photos and checkpoints stay
until someone goes on with it or gives it up. A folder that is still there when a server
starts is a job that was interrupted or has stopped: the same command goes on with it.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import signal
import sys
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import ssil_jax
from ssil_jax.data.images import decode
from ssil_jax.errors import UserError
from ssil_jax.paths import UPLOADS
from ssil_jax.server.names import as_seen, class_name
from ssil_jax.server.problems import BadPhoto, Problem
from ssil_jax.system import usable_cores, write_json
from ssil_jax.training import model_files
from ssil_jax.training.workdir import saved

COMMAND = (sys.executable, "-m", "ssil_jax.commands", "learn")

_LOG, _JOB, _LOCK = "log.txt", "job.json", "lock"
_TAIL = 1 << 18  # bytes at the end of metrics.jsonl that progress is read from
_MOST_CLASSES = 1000
_MOST_BAD = 20  # photos that are named
_MOST_POINTS = 200  # of the loss, in one answer
_LONGEST_ERROR = 1000  # characters of a line
_SECONDS_TO_STOP = 60  # for a checkpoint to be written
_ATTEMPTS = 3  # for a process that is killed from elsewhere
_PATIENCE = 0.5  # seconds between two looks
_BAD_INPUT = 2  # exit code


class JobClass(NamedTuple):
  """A class of a job, and how many photos of it were sent."""

  name: str
  photos: int


class Upload:
  """Receives the photos of new classes into a folder that no one takes for a job.

  A field `name` begins a class; the photos that follow are of it.
  """

  def __init__(self, folder: pathlib.Path, known: Sequence[str]):
    """Makes the folder; `known` are the classes that the model has. Raises OSError."""
    self.folder = folder
    self._known = {as_seen(name): name for name in known}
    self._sent: dict[str, str] = {}  # names as they are seen, and as they are
    self._photos: dict[str, list[tuple[pathlib.Path, str]]] = {}  # path, sender's name
    self._class: str | None = None
    self._file = None
    folder.mkdir(parents=True)

  def field(self, name: str, value: str) -> None:
    if name != "name":
      raise Problem(f"there is no field {name[:50]}: send name, and then its photos")
    self._class = class_name(value)
    seen = as_seen(self._class)
    if seen in self._known:
      raise Problem(
        f"the model knows {self._known[seen]} already: choose another name, or add photos "
        "to it by learn.py --more_of_known",
        409,
      )
    if self._sent.setdefault(seen, self._class) != self._class:
      raise Problem(
        f"the class names {ascii(self._sent[seen])} and {ascii(self._class)} look the "
        "same: choose another one"
      )
    if self._class not in self._photos:
      if len(self._photos) == _MOST_CLASSES:
        raise Problem(f"more than {_MOST_CLASSES} classes are sent at once", 413)
      self._photos[self._class] = []
      # Never a path from outside: `class_name` leaves no separators and no dots in front.
      (self.folder / "photos" / self._class).mkdir(parents=True)

  def begin_photo(self, file_name: str) -> None:
    if self._class is None:
      raise Problem("photos come without a class: send its name before them")
    number = sum(map(len, self._photos.values()))
    path = self.folder / "photos" / self._class / f"{number:06d}"
    self._photos[self._class].append((path, file_name))
    self._file = open(path, "wb")  # noqa: SIM115 - closed by end_photo or close

  def add(self, content: bytes) -> None:
    self._file.write(content)

  def end_photo(self) -> None:
    self.close()
    path, file_name = self._photos[self._class][-1]
    if not file_name and not path.stat().st_size:  # what a form sends if no file is chosen
      self._photos[self._class].pop()
      path.unlink()

  def close(self) -> None:
    """Closes the photo that is being received, if there is one."""
    if self._file is not None:
      self._file.close()
      self._file = None

  def check(self) -> tuple[JobClass, ...]:
    """Decodes all photos and names them by their formats; returns the classes.

    Raises Problem if there are no classes, one has no photos, or photos cannot be read.
    """
    if not self._photos:
      raise Problem("no class is sent: send its name, and then its photos")
    for name, photos in self._photos.items():
      if not photos:
        raise Problem(f"there are no photos of {name}: send some")

    def look(photo: tuple[pathlib.Path, str]) -> BadPhoto | None:
      path, file_name = photo
      content = path.read_bytes()
      try:
        decode.read_rgb(content)
      except decode.ImageError as error:
        return BadPhoto(file_name, str(error))
      path.rename(path.with_name(path.name + decode.suffix(content)))
      return None

    with ThreadPoolExecutor(usable_cores()) as threads:
      every = [photo for photos in self._photos.values() for photo in photos]
      bad = [found for found in threads.map(look, every) if found]
    if bad:
      raise Problem(
        f"{len(bad)} of {len(every)} photos cannot be read; nothing was learnt: take them "
        "out, and send the others again",
        photos=bad[:_MOST_BAD],
      )
    return tuple(JobClass(name, len(photos)) for name, photos in self._photos.items())


class Job:
  """A job that runs, or has ended."""

  def __init__(self, folder: pathlib.Path, classes: Sequence[JobClass], flags: list[str]):
    self.folder, self.classes, self.flags = folder, tuple(classes), flags
    self.status = "learning"  # or: done, failed, stopped, cancelled, interrupted
    self.is_cancelled = False
    self.is_elsewhere = False  # in a process of a server that was killed
    self.errors: list[str] = []
    self.change: dict[str, Any] | None = None
    self.last_progress: dict[str, Any] = {}

  @property
  def name(self) -> str:
    return self.folder.name


class Learner:
  """Starts jobs, watches them, and knows how far they are; lives in one event loop."""

  def __init__(
    self,
    workdir: pathlib.Path,
    *,
    flags: Sequence[str] = (),
    command: Sequence[str] | None = None,
    refresh: Callable[[], Awaitable[None]],
    say: Callable[[str], None],
  ):
    """Describes what is learnt.

    Args:
      workdir: of the model.
      flags: of learn.py, for all jobs that begin.
      command: that learns; `COMMAND` by default.
      refresh: called when a job is done, before anyone is told.
      say: called with a line when a job begins or ends.
    """
    self.workdir = workdir
    self._uploads = workdir / UPLOADS
    self._flags, self._command = list(flags), tuple(command or COMMAND)
    self._refresh, self._say = refresh, say
    self._job: Job | None = None
    self._is_receiving = self._is_forgetting = self._is_closing = False
    self._process: asyncio.subprocess.Process | None = None
    self._task: asyncio.Task | None = None

  def resume(self) -> None:
    """Removes what never became a job, and goes on with one that was not ended."""
    for folder in sorted(self._uploads.glob("*")):
      path = folder / _JOB
      if folder.name.endswith(".part"):
        shutil.rmtree(folder, ignore_errors=True)
        continue
      if not folder.is_dir() or self._job is not None:
        continue
      try:
        asked = json.loads(path.read_bytes())
        classes = [JobClass(str(name), int(n)) for name, n in asked["classes"]]
        flags = [str(flag) for flag in asked["flags"]]
      except (OSError, ValueError, KeyError, TypeError) as error:
        self._say(f"warning: {path} cannot be read ({error}): remove {folder}")
        continue
      self._say(f"going on to learn {_named(classes)}")
      self._begin(Job(folder, classes, flags))

  @contextlib.contextmanager
  def receiving(self, known: Sequence[str]) -> Iterator[Upload]:
    """Yields where to put photos; no other job begins meanwhile.

    Raises Problem if one runs, or the folder cannot be made.
    """
    if self._is_receiving or self._is_forgetting or self.is_busy:
      what = _named(self._job.classes) if self.is_busy else "other photos"
      raise Problem(f"the model is learning {what}: wait until that is done", 409)
    if self._has_stopped:
      raise Problem(
        f"the learning of {_named(self._job.classes)} has stopped: go on with it, or give "
        "it up",
        409,
      )
    self._is_receiving = True
    folder = self._uploads / f"{uuid.uuid4().hex}.part"
    upload = None
    try:
      upload = Upload(folder, known)
      yield upload
    except OSError as error:
      raise Problem(
        f"the photos cannot be kept ({error.strerror or error}): nothing was learnt", 507
      ) from error
    finally:
      self._is_receiving = False
      if upload is not None:
        upload.close()
      shutil.rmtree(folder, ignore_errors=True)

  async def start(self, upload: Upload) -> str:
    """Begins to learn what was received; returns the job's name. Raises as `check`."""
    classes = await asyncio.to_thread(upload.check)
    write_json(upload.folder / _JOB, {"classes": classes, "flags": self._flags})
    folder = upload.folder.with_suffix("")
    upload.folder.rename(folder)
    self._say(f"learning {_named(classes)}")
    self._begin(Job(folder, classes, self._flags))
    return folder.name

  @property
  def is_busy(self) -> bool:
    return self._job is not None and self._job.status == "learning"

  @property
  def _has_stopped(self) -> bool:
    return self._job is not None and self._job.status == "stopped"

  def go_on(self) -> str:
    """Runs the job that has stopped from its last checkpoint; returns its name.

    Raises Problem if none has stopped.
    """
    if not self._has_stopped:
      raise Problem("no job has stopped: there is nothing to go on with", 409)
    job = self._job
    self._say(f"going on to learn {_named(job.classes)}")
    self._begin(Job(job.folder, job.classes, job.flags))
    return job.name

  def _begin(self, job: Job) -> None:
    self._job = job
    self._task = asyncio.create_task(self._run(job))

  async def _run(self, job: Job) -> None:
    # What it did not come to say, its folder says to the next server.
    status = "interrupted"
    try:
      status = await self._learn(job)
    except (OSError, UserError) as error:
      job.errors, status = [f"the job cannot be run: {error}"], "stopped"
    finally:
      if status not in ("interrupted", "stopped"):
        await asyncio.to_thread(self._forget, job)
      job.status = status  # another one may begin
    if status == "done":
      self._say(f"learnt {_named(job.classes)}")
    for line in job.errors:
      self._say(f"error: {line}")

  def _forget(self, job: Job) -> None:
    """Removes the photos of a job, and what is half learnt of them."""
    if self._has_begun(job):
      shutil.rmtree(self.workdir / "learning", ignore_errors=True)
    shutil.rmtree(job.folder, ignore_errors=True)

  def _has_begun(self, job: Job) -> bool:
    """Returns whether what learn.py is learning is this job."""
    asked = str(self._request().get("asked", ""))
    return asked.startswith(f"--data_dir={job.folder}{os.sep}")

  def _request(self) -> dict[str, Any]:
    """Returns what learn.py notes of what it is learning; nothing, if it is not."""
    try:
      found = json.loads((self.workdir / "learning" / "request.json").read_bytes())
    except (OSError, ValueError, RecursionError):
      return {}
    return found if isinstance(found, dict) else {}

  async def _learn(self, job: Job) -> str:
    """Runs the command until it ends by itself; returns the status of the job."""
    # The lock is the process's as well: it holds if this server is killed and the process
    # goes on, and the next server waits for it.
    with open(job.folder / _LOCK, "wb") as lock:
      while not _try_lock(lock.fileno()):
        if self._is_closing:
          return "interrupted"
        job.is_elsewhere = True
        await asyncio.sleep(_PATIENCE)
      job.is_elsewhere = False
      for _ in range(_ATTEMPTS):
        code = await self._run_process(job, lock.fileno())
        if code and job.is_cancelled:
          return "cancelled"
        if code and self._is_closing:
          return "interrupted"
        if code >= 0 and code not in (128 + signal.SIGINT, 128 + signal.SIGTERM):
          break
        self._say(f"the process that learns was stopped (exit code {code})")
    if code:
      job.errors = _errors_of(job.folder / _LOG, code)
      # Input that was found bad before it was learnt from is bad when it is tried again.
      is_useless = code == _BAD_INPUT and not (
        self._has_begun(job) and saved(self.workdir / "learning", "checkpoints")
      )
      return "failed" if is_useless else "stopped"
    if "num_steps" in job.last_progress:
      job.last_progress["step"] = job.last_progress["num_steps"]
    job.change = await asyncio.to_thread(self._change, job)
    await self._refresh()
    return "done"

  async def _run_process(self, job: Job, lock: int) -> int:
    """Runs the command to its end; returns the exit code."""
    root = str(pathlib.Path(ssil_jax.__file__).resolve().parents[1])
    python_path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    with open(job.folder / _LOG, "wb") as log:
      self._process = await asyncio.create_subprocess_exec(
        *self._command,
        f"--workdir={self.workdir}",
        f"--data_dir={job.folder / 'photos'}",
        *job.flags,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env={**os.environ, "PYTHONPATH": python_path},
        # Ctrl-C in the server's terminal is for the server, which passes it on, once.
        start_new_session=True,
        pass_fds=[lock],
      )
    if self._is_closing or job.is_cancelled:  # while it was started
      self._signal(signal.SIGTERM)
    try:
      return await self._process.wait()
    finally:
      self._process = None

  def _signal(self, number: signal.Signals) -> None:
    if self._process is not None:
      with contextlib.suppress(ProcessLookupError):
        self._process.send_signal(number)

  async def cancel(self) -> None:
    """Gives up the job that runs or has stopped; the model stays as it is.

    Raises Problem if there is none.
    """
    job = self._job
    if self._has_stopped:
      job.status, job.errors, self._is_forgetting = "cancelled", [], True
      try:
        await asyncio.to_thread(self._forget, job)
      finally:
        self._is_forgetting = False
      return
    if job is None or not self.is_busy:
      raise Problem("the model is learning nothing that could be given up", 409)
    if job.is_elsewhere:
      raise Problem(
        "a server that was killed has left a process that learns: wait for its end", 409
      )
    job.is_cancelled = True
    await self._stop()

  async def close(self) -> None:
    """Stops a job, which goes on when the next server starts."""
    self._is_closing = True
    if self.is_busy:
      self._say("stopping the learning; it goes on when the server is started again")
      await self._stop()

  async def _stop(self) -> None:
    self._signal(signal.SIGTERM)
    _, running = await asyncio.wait({self._task}, timeout=_SECONDS_TO_STOP)
    if running:
      self._signal(signal.SIGKILL)  # the last checkpoint is what it goes on from
      await self._task

  def progress(self) -> dict[str, Any]:
    """Returns how far the job is, or how the last one has ended, as JSON types."""
    job = self._job
    if job is None:
      return {"status": "idle"}
    if job.status == "learning":
      self._note_progress(job)
    return {
      "status": job.status,
      "job": job.name,
      "classes": [c._asdict() for c in job.classes],
      **job.last_progress,
      "errors": job.errors,
      "change": job.change,
    }

  def _note_progress(self, job: Job) -> None:
    """Reads what the command has written; what it has not written yet stays as it was."""
    request = self._request()
    try:
      first, number = int(request["first_step"]), int(request["num_steps"])
      state, names = int(request["state"]), list(request["classes"])
    except (ValueError, KeyError, TypeError):
      return
    if set(names) != {c.name for c in job.classes}:
      return  # of another command
    points = [
      (step - first, loss)
      for step, loss in _losses(self.workdir / "metrics.jsonl")
      if first < step <= first + number
    ]
    every = max(1, len(points) // _MOST_POINTS)
    job.last_progress = {
      "state": state,
      "step": points[-1][0] if points else 0,
      "num_steps": number,
      "loss": points[-1][1] if points else None,
      "losses": points[::-1][::every][::-1],
    }

  def _change(self, job: Job) -> dict[str, Any] | None:
    """Returns what a job that is done has changed: accuracies before and after."""
    names = {c.name for c in job.classes}
    card = model_files.read_card(self.workdir)
    numbers = [r["state"] for r in card["states"] if set(r.get("classes", ())) == names]
    try:
      rows = json.loads((self.workdir / "results.json").read_bytes())["states"]
      row = next(row for row in rows if row["state"] == numbers[-1])
      learnt = row["learnt"]
      return {
        "state": row["state"],
        "num_classes_before": row["num_old"],
        "num_classes": row["num_seen"],
        "top1": row["top1"],
        "top1_by_state": row["top1_by_state"],
        "top1_by_state_before": learnt["top1_by_state_before"],
        "top1_old": learnt["top1_old"],
        "top1_old_before": learnt["top1_old_before"],
        "error_old_as_new": row["error_old_as_new"],
        "error_new_as_old": row["error_new_as_old"],
      }
    except (OSError, ValueError, LookupError, TypeError, StopIteration) as error:
      self._say(f"warning: what was learnt is not in results.json ({error})")
      return None


def _try_lock(number: int) -> bool:
  try:
    fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  return True


def _named(classes: Sequence[JobClass]) -> str:
  names = [c.name for c in classes[:3]]
  more = len(classes) - len(names)
  return ", ".join(names) + (f" and {more} more" if more else "")


def _errors_of(log: pathlib.Path, code: int) -> list[str]:
  """Returns the error lines of a command; what it printed last, if there are none."""
  lines = log.read_bytes()[-_TAIL:].decode(errors="replace").splitlines()
  found = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
  if not found:
    last = next((line for line in reversed(lines) if line.strip()), "it printed nothing")
    found = [f"the learning ended with exit code {code}: {last.strip()}"]
  return [line[:_LONGEST_ERROR] for line in found]


def _losses(path: pathlib.Path) -> list[tuple[int, float]]:
  """Returns steps and losses at the end of `metrics.jsonl`; none if there are none."""
  try:
    with open(path, "rb") as file:
      file.seek(0, os.SEEK_END)
      file.seek(max(0, file.tell() - _TAIL))
      lines = file.read().split(b"\n")[:-1]  # the last one is being written
  except OSError:
    return []
  points = []
  for line in lines:
    with contextlib.suppress(ValueError, KeyError, TypeError):  # the first may be cut
      row = json.loads(line)
      points.append((int(row["step"]), float(row["loss"])))
  return points
