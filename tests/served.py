"""A model that was trained on a folder of images, and its server within this process."""

import asyncio
import contextlib
import shutil
import sys
import time

import small_runs
from folders import ROOT, folder_of
from quick import quick_network
from starlette.testclient import TestClient

from ssil_jax.server.answering import Answerer
from ssil_jax.server.app import make_app
from ssil_jax.server.learning import COMMAND, Learner

# Names that would be markup, a script, a path or another text, if they were not only names.
NAMES = ("<img src=x onerror=alert(1)>", "b\u202eevil", "chat & <b>chien", "\u732b")


def train(folder):
  """Returns the work directory of a model that was trained on a folder of images."""
  folder_of(folder / "images", NAMES, each=8, shape=(16, 16))
  with quick_network():
    small_runs.run(
      folder / "run",
      dataset="image_folder",
      data_dir=str(folder / "images"),
      num_classes=4,
      num_states=2,
      memory_size=8,
      batch_size_new=8,
      batch_size_memory=4,
    )
  shutil.rmtree(folder / "images")  # a model needs none of its data
  return folder / "run"


@contextlib.contextmanager
def serving(workdir, *, command=COMMAND, flags=(), said=None, **options):
  """Yields a client of a server."""
  said = [] if said is None else said
  answerer = Answerer(workdir, warn=said.append)
  learner = Learner(
    workdir,
    flags=flags,
    command=command,
    refresh=lambda: asyncio.to_thread(answerer.refresh),
    say=said.append,
  )
  app = make_app(answerer, learner, **options)
  with TestClient(app, base_url="http://localhost") as client:
    client.answerer = answerer
    yield client


def photos_of(*contents):
  """The form of a request: files named 0, 1 and so on."""
  return [("photos", (str(i), content)) for i, content in enumerate(contents)]


def class_form(*classes):
  """The form of new classes: (name, contents of photos) each."""
  parts = []
  for name, contents in classes:
    parts += [("name", (None, name)), *photos_of(*contents)]
  return parts


def wait_for(client, *statuses):
  """Returns the progress when it has one of the statuses."""
  end = time.monotonic() + 300
  while (found := client.get("/api/learn").json())["status"] not in statuses:
    assert time.monotonic() < end, found
    time.sleep(0.05)
  return found


def script(tmp_path, text):
  """A command that runs a Python script in place of learn.py."""
  path = tmp_path / "learn_script.py"
  path.write_text(text)
  return (sys.executable, str(path))


# learn.py itself, on the network that the model was trained with.
LEARN = (
  sys.executable,
  "-c",
  f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
  "from quick import quick_network\n"
  "from ssil_jax.commands import execute\n"
  "with quick_network():\n"
  "  execute('learn')",
)
