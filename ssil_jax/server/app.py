"""The routes of the server: a page, and a REST interface that does the same."""

import asyncio
import contextlib
import ipaddress
import json
import pathlib
import socket
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ssil_jax.server.answering import Answerer
from ssil_jax.server.learning import Learner
from ssil_jax.server.problems import Problem
from ssil_jax.server.uploads import Limits, PhotosInMemory, receive

STATIC = pathlib.Path(__file__).with_name("static")

_SECONDS_BETWEEN_LOOKS = 1.0  # for a model that was changed from elsewhere
_MOST_WAITING = 2  # requests whose photos are in memory at a time
_SECONDS_TO_ARRIVE = 120  # for them: a slow sender must not keep others waiting
_LONGEST_TOP = 1000
_HEADERS = {
  # Scripts, styles and images are this server's own, and a name that looks like markup is
  # none. No other page may show this one in a frame.
  "Content-Security-Policy": (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
  ),
  "X-Content-Type-Options": "nosniff",
  "Referrer-Policy": "no-referrer",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Cross-Origin-Opener-Policy": "same-origin",
}


class JSON(Response):
  """An answer in JSON, in ASCII: a name may hold what is no text in UTF-8."""

  media_type = "application/json"

  def render(self, content: Any) -> bytes:
    return json.dumps(content, allow_nan=False).encode()


class Guard:
  """Lets in what this server's own page sends, and what no browser does.

  A page of another site, open in the same browser, must neither read nor change anything:

  - It may have its own name point to this machine (DNS rebinding) and so pass for the same
    origin, but the browser then still sends that name as Host. No name is accepted but
    localhost, this machine's, and those allowed by a flag; addresses cannot be rebound.
  - It may send a form to this address (CSRF). Browsers name the page that sends a POST, as
    Origin, and newer ones what it is to the server, as Sec-Fetch-Site, which no script can
    forge. What has neither, as from curl, comes from no page.

  All answers get `_HEADERS`.
  """

  def __init__(self, app: ASGIApp, hosts: Sequence[str]):
    self._app = app
    own = {"localhost", socket.gethostname(), socket.getfqdn()}
    self._hosts = {name.lower().rstrip(".") for name in (*own, *hosts)}

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return

    async def send_with_headers(message: Message) -> None:
      if message["type"] == "http.response.start":
        present = {name.lower() for name, _ in message["headers"]}
        message["headers"] = [
          *message["headers"],
          *(
            (name.encode(), value.encode())
            for name, value in _HEADERS.items()
            if name.lower().encode() not in present
          ),
        ]
      await send(message)

    refusal = self._refusal(scope["method"], Headers(scope=scope))
    if refusal:
      answer = JSON({"error": refusal}, 403)
      await answer(scope, receive, send_with_headers)
      return
    await self._app(scope, receive, send_with_headers)

  def _refusal(self, method: str, headers: Headers) -> str | None:
    host = headers.get("host", "")
    name = _host_name(host)
    if name not in self._hosts and not _is_address(name):
      return (
        f"this server is not known as {name[:100]}: use its address, or start it with "
        "--allowed_hosts"
      )
    if method in ("GET", "HEAD"):
      return None
    origin = headers.get("origin")
    if (origin is not None and urlsplit(origin).netloc.lower() != host.lower()) or (
      headers.get("sec-fetch-site", "none") not in ("same-origin", "none")
    ):
      return "only this server's own page may send photos from a browser"
    return None


def _host_name(host: str) -> str:
  try:
    return (urlsplit(f"//{host}").hostname or "").lower().rstrip(".")
  except ValueError:
    return ""


def _is_address(name: str) -> bool:
  try:
    ipaddress.ip_address(name)
  except ValueError:
    return False
  return True


class Service:
  """Holds what the routes answer."""

  def __init__(self, answerer: Answerer, learner: Learner, limits: Limits):
    self._answerer, self._learner, self._limits = answerer, learner, limits
    self._waiting = asyncio.Semaphore(_MOST_WAITING)

  async def model(self, request: Request) -> Response:
    summary = await asyncio.to_thread(self._answerer.summary)
    return JSON({**summary, "limits": self._limits._asdict()})

  async def exemplar(self, request: Request) -> Response:
    label = request.path_params["index"]
    image = await asyncio.to_thread(self._answerer.exemplar, label)
    if image is None:
      raise Problem(f"there is no exemplar of class {label}", 404)
    # The page asks for another address when the model has changed.
    return Response(image, media_type="image/png", headers={"Cache-Control": "no-cache"})

  async def predict(self, request: Request) -> Response:
    try:
      top = int(request.query_params.get("top", "5"))
    except ValueError:
      top = 0
    if not 1 <= top <= _LONGEST_TOP:
      raise Problem(f"top must be a whole number from 1 to {_LONGEST_TOP}")
    async with self._waiting:
      form = PhotosInMemory()
      await receive(
        request,
        form,
        most_photos=self._limits.predict_photos,
        most_bytes=self._limits.predict_bytes,
        limits=self._limits,
        most_seconds=_SECONDS_TO_ARRIVE,
      )
      if not form.photos:
        raise Problem("no photo is sent: send some in the field photos")
      return JSON(await asyncio.to_thread(self._answerer.predict, form.photos, top))

  async def learn(self, request: Request) -> Response:
    with self._learner.receiving(self._answerer.loaded.model.class_names) as upload:
      await receive(
        request,
        upload,
        most_photos=self._limits.learn_photos,
        most_bytes=self._limits.learn_bytes,
        limits=self._limits,
      )
      job = await self._learner.start(upload)
    return JSON({"job": job}, 202)

  async def go_on(self, request: Request) -> Response:
    return JSON({"job": self._learner.go_on()}, 202)

  async def cancel(self, request: Request) -> Response:
    await self._learner.cancel()
    return JSON(await asyncio.to_thread(self._learner.progress))

  async def progress(self, request: Request) -> Response:
    return JSON(await asyncio.to_thread(self._learner.progress))

  def file(self, name: str):
    async def endpoint(request: Request) -> Response:
      return FileResponse(STATIC / name, headers={"Cache-Control": "no-cache"})

    return endpoint


class StaticFile(StaticFiles):
  """Static files that a browser asks for again after an update."""

  def file_response(self, *args, **kwargs) -> Response:
    answer = super().file_response(*args, **kwargs)
    answer.headers["Cache-Control"] = "no-cache"
    return answer


async def _problem(request: Request, error: Problem) -> Response:
  photos = [photo._asdict() for photo in error.photos]
  return JSON({"error": str(error), **({"photos": photos} if photos else {})}, error.status)


async def _http_error(request: Request, error: HTTPException) -> Response:
  return JSON({"error": error.detail}, error.status_code, error.headers)


def make_app(
  answerer: Answerer,
  learner: Learner,
  *,
  limits: Limits | None = None,
  hosts: Sequence[str] = (),
) -> Starlette:
  """Makes the application.

  Args:
    answerer: the model.
    learner: of the same work directory.
    limits: of what may be sent.
    hosts: names by which the server may be called, besides this machine's own.
  """
  service = Service(answerer, learner, limits or Limits())

  async def watch() -> None:
    while True:
      await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)
      await asyncio.to_thread(answerer.refresh)

  @contextlib.asynccontextmanager
  async def lifespan(app: Starlette):
    learner.resume()
    watching = asyncio.create_task(watch())
    try:
      yield
    finally:
      watching.cancel()
      await learner.close()

  app = Starlette(
    routes=[
      Route("/", service.file("index.html")),
      Route("/api", service.file("api.html")),
      Route("/openapi.json", service.file("openapi.json")),
      Route("/api/model", service.model),
      Route("/api/predict", service.predict, methods=["POST"]),
      Route("/api/learn", service.learn, methods=["POST"]),
      Route("/api/learn", service.cancel, methods=["DELETE"]),
      Route("/api/learn", service.progress),
      Route("/api/learn/resume", service.go_on, methods=["POST"]),
      Route("/api/classes/{index:int}/exemplar", service.exemplar),
      Mount("/static", StaticFile(directory=STATIC)),
    ],
    exception_handlers={Problem: _problem, HTTPException: _http_error},
    lifespan=lifespan,
  )
  app.add_middleware(Guard, hosts=hosts)
  return app
