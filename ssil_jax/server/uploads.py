"""Receives photos and the names of classes, within limits that hold while they arrive."""

import asyncio
import contextlib
import math
from typing import NamedTuple, Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from ssil_jax.server.problems import Problem

_LONGEST_FIELD = 4096  # bytes of what is no photo
_LONGEST_FILE_NAME = 255  # characters that are repeated in answers
_MOST_PARTS_BESIDES = 1000  # fields that are no photos
_SECONDS_OF_SILENCE = 60  # after which a sender is given up
_DISCARDED = 1 << 26  # bytes that are read of a request that was refused


class Limits(NamedTuple):
  """Says how much may be sent at once."""

  photo_bytes: int = 20 << 20
  predict_photos: int = 64
  predict_bytes: int = 256 << 20
  learn_photos: int = 20_000
  learn_bytes: int = 8 << 30


class Receiver(Protocol):
  """Takes the parts of a form in their order; methods may raise Problem or OSError."""

  def field(self, name: str, value: str) -> None:
    """Takes a field that is no file."""

  def begin_photo(self, file_name: str) -> None:
    """Begins a photo; the name is what its sender calls it, for answers alone."""

  def add(self, content: bytes) -> None:
    """Takes the next bytes of the photo."""

  def end_photo(self) -> None:
    """Ends the photo."""


class _Form:
  """Hands on what the parser finds to a receiver, and counts."""

  def __init__(self, receiver: Receiver, most_photos: int, limits: Limits):
    self._receiver, self._most, self._limits = receiver, most_photos, limits
    self._headers: dict[bytes, bytes] = {}
    self._header = [b"", b""]  # the one that is being read
    self._name = self._file_name = ""
    self._is_photo = False
    self._value = bytearray()
    self._size = self._num_photos = self._num_fields = 0
    self.is_whole = False

  def callbacks(self):
    return {name: getattr(self, name) for name in dir(self) if name.startswith("on_")}

  def on_part_begin(self) -> None:
    self._headers, self._header = {}, [b"", b""]

  def on_header_field(self, data: bytes, start: int, end: int) -> None:
    self._header[0] += data[start:end]

  def on_header_value(self, data: bytes, start: int, end: int) -> None:
    self._header[1] += data[start:end]

  def on_header_end(self) -> None:
    name, value = self._header
    self._headers[name.lower()] = value
    self._header = [b"", b""]

  def on_headers_finished(self) -> None:
    _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
    self._name = options.get(b"name", b"").decode(errors="replace")
    self._is_photo = b"filename" in options
    self._value, self._size = bytearray(), 0
    if not self._is_photo:
      self._num_fields += 1
      if self._num_fields > _MOST_PARTS_BESIDES:
        raise Problem("the form has too many fields", 413)
      return
    self._file_name = options[b"filename"].decode(errors="replace")[:_LONGEST_FILE_NAME]
    if self._name != "photos":
      raise Problem(f"{self._file_name} is a file in a field that is not called photos")
    self._num_photos += 1
    if self._num_photos > self._most:
      raise Problem(
        f"more than {self._most:,} photos are sent at once: send fewer at a time", 413
      )
    self._receiver.begin_photo(self._file_name)

  def on_part_data(self, data: bytes, start: int, end: int) -> None:
    self._size += end - start
    if self._is_photo:
      if self._size > self._limits.photo_bytes:
        raise Problem(
          f"{self._file_name} has more than the {_megabytes(self._limits.photo_bytes)} "
          "allowed: send a smaller copy",
          413,
        )
      self._receiver.add(data[start:end])
      return
    if self._size > _LONGEST_FIELD:
      raise Problem(
        f"the field {self._name[:50]} has more than {_LONGEST_FIELD} bytes", 413
      )
    self._value += data[start:end]

  def on_part_end(self) -> None:
    if self._is_photo:
      self._receiver.end_photo()
      return
    try:
      value = self._value.decode()
    except UnicodeDecodeError as error:
      raise Problem(f"the field {self._name[:50]} is not UTF-8") from error
    self._receiver.field(self._name, value)

  def on_end(self) -> None:
    self.is_whole = True


def _megabytes(size: int) -> str:
  return f"{size / (1 << 20):,.0f} MB"


async def receive(
  request: Request,
  receiver: Receiver,
  *,
  most_photos: int,
  most_bytes: int,
  limits: Limits,
  most_seconds: float = math.inf,
) -> None:
  """Reads a multipart form, piece by piece.

  Nothing of what exceeds a limit is kept: the first byte too much ends it.

  Raises:
    Problem: it is no such form, breaks off, exceeds a limit, falls silent or takes longer
      than `most_seconds` in all.
    OSError: the receiver could not write.
  """
  kind, options = parse_options_header(request.headers.get("content-type", ""))
  if kind != b"multipart/form-data" or not options.get(b"boundary"):
    raise Problem("photos are sent as multipart/form-data", 415)
  too_large = Problem(
    f"more than {_megabytes(most_bytes)} are sent at once: send fewer photos at a time", 413
  )
  form = _Form(receiver, most_photos, limits)
  stream = _heard(aiter(request.stream()), most_seconds)
  size = 0
  try:
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > most_bytes:
      raise too_large
    parser = MultipartParser(options[b"boundary"], form.callbacks())
    async for chunk in stream:
      size += len(chunk)
      if size > most_bytes:
        raise too_large
      parser.write(chunk)
    parser.finalize()
    if not form.is_whole:
      raise Problem("the form breaks off before its end")
  except FormParserError as error:
    raise Problem("the form cannot be read: it is no multipart/form-data") from error
  except ClientDisconnect as error:
    raise Problem("the sender has gone away") from error
  except Problem:
    # A browser shows no answer that comes while it is still sending.
    with contextlib.suppress(ClientDisconnect, Problem):
      async for chunk in stream:
        size += len(chunk)
        if size > _DISCARDED:
          break
    raise


async def _heard(stream, most_seconds: float):
  """Yields the pieces of a stream; raises Problem if it falls silent or takes too long."""
  clock = asyncio.get_running_loop().time
  end = clock() + most_seconds
  while True:
    left = end - clock()
    try:
      if left <= 0:  # what has arrived already is not waited for
        raise TimeoutError
      chunk = await asyncio.wait_for(anext(stream), min(_SECONDS_OF_SILENCE, left))
    except StopAsyncIteration:
      return
    except TimeoutError as error:
      if left < _SECONDS_OF_SILENCE:
        text = f"not all has arrived within {most_seconds:g} s: send fewer photos at a time"
        raise Problem(text, 408) from error
      raise Problem(f"nothing has arrived for {_SECONDS_OF_SILENCE} s", 408) from error
    yield chunk


class PhotosInMemory:
  """A receiver of photos that are needed only for a moment."""

  def __init__(self) -> None:
    self.photos: list[tuple[str, bytes]] = []  # name and content
    self._name, self._content = "", bytearray()

  def field(self, name: str, value: str) -> None:
    """Ignores what is no photo."""

  def begin_photo(self, file_name: str) -> None:
    self._name, self._content = file_name, bytearray()

  def add(self, content: bytes) -> None:
    self._content += content

  def end_photo(self) -> None:
    if self._name or self._content:  # a form without a chosen file sends an empty one
      self.photos.append((self._name, bytes(self._content)))
