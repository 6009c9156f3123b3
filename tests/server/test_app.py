"""The REST interface: what it answers, what it refuses, and that it is as described."""

import asyncio
import io
import itertools
import json
import os
import zipfile
import zlib

import numpy as np
import pytest
from folders import encode, noise
from jsonschema import Draft202012Validator
from PIL import Image
from served import NAMES, class_form, photos_of, serving
from starlette.requests import Request
from starlette.routing import Route

import ssil_jax
from ssil_jax.model.trained import TrainedModel, load
from ssil_jax.server.app import STATIC
from ssil_jax.server.problems import Problem
from ssil_jax.server.uploads import Limits, PhotosInMemory, receive

DESCRIPTION = json.loads((STATIC / "openapi.json").read_text())
PHOTO = encode(noise(20, 30), "PNG")
TEXT = b"no photo"


@pytest.fixture
def client(workdir):
  with serving(workdir, limits=Limits(photo_bytes=5000, predict_photos=3)) as found:
    yield found


def bomb():
  """A PNG of 100 bytes that promises 20 gigapixels."""
  header = b"IHDR" + (150_000).to_bytes(4) * 2 + bytes((8, 2, 0, 0, 0))
  chunk = (13).to_bytes(4) + header + zlib.crc32(header).to_bytes(4)
  pixels = bytes(4) + b"IDAT" + zlib.crc32(b"IDAT").to_bytes(4)
  return b"\x89PNG\r\n\x1a\n" + chunk + pixels


def check_described(path, verb, response):
  """That an answer has a form that the description gives it."""
  answers = DESCRIPTION["paths"][path][verb]["responses"]
  schema = answers[str(response.status_code)]["content"]["application/json"]["schema"]
  whole = {**schema, "components": DESCRIPTION["components"]}
  Draft202012Validator(whole).validate(response.json())
  return response.json()


def test_the_description_names_every_route_and_no_other(client):
  served = {
    (route.path.replace(":int", ""), method.lower())
    for route in client.app.routes
    if isinstance(route, Route) and route.path.startswith("/api/")
    for method in route.methods - {"HEAD"}
  }
  described = {(p, verb) for p, verbs in DESCRIPTION["paths"].items() for verb in verbs}
  assert served == described
  assert client.get("/openapi.json").json() == DESCRIPTION


def test_the_model_tells_its_classes_and_accuracies(client, workdir):
  found = check_described("/api/model", "get", client.get("/api/model"))
  card = json.loads((workdir / "model.json").read_bytes())
  assert [c["name"] for c in found["classes"]] == card["class_names"]
  assert sorted(card["class_names"]) == sorted(NAMES)
  assert [c["state"] for c in found["classes"]] == [1, 1, 2, 2]
  assert [s["top1"] for s in found["states"]] == card["accuracy"]["top1_by_state"]
  assert all(c["has_exemplar"] for c in found["classes"])


def test_photos_are_answered_as_the_model_does(client, workdir):
  contents = [encode(noise(20, 30, seed=i), "PNG") for i in range(2)]
  response = client.post("/api/predict?top=3", files=photos_of(*contents, TEXT))
  *answers, bad = check_described("/api/predict", "post", response)
  expected = load(workdir).predict(contents, top=3)
  for i, (answer, prediction) in enumerate(zip(answers, expected, strict=True)):
    assert answer["file"] == str(i)
    assert [c["name"] for c in answer["classes"]] == [c.name for c in prediction.classes]
    np.testing.assert_allclose(
      [c["probability"] for c in answer["classes"]],
      [c.probability for c in prediction.classes],
      rtol=1e-5,
    )
  assert bad == {"file": "2", "error": "not a JPEG, PNG or WebP image"}


def test_a_bomb_and_an_empty_photo_are_errors_of_their_own(client):
  response = client.post("/api/predict", files=photos_of(bomb(), b"", PHOTO))
  huge, empty, good = response.json()
  assert huge["error"] == "150000x150000 pixels, more than the 100000000 allowed"
  assert empty["error"] == "it is empty"
  assert len(good["classes"]) == 4


@pytest.mark.parametrize(
  ("form", "status", "error"),
  [
    (photos_of(), 415, "photos are sent as multipart/form-data"),
    ([("name", (None, "x"))], 400, "no photo is sent: send some in the field photos"),
    (
      photos_of(*[PHOTO] * 4),
      413,
      "more than 3 photos are sent at once",
    ),
    (photos_of(b"x" * 5001), 413, "0 has more than the 0 MB allowed: send a smaller copy"),
    ([("file", ("a", PHOTO))], 400, "a is a file in a field that is not called photos"),
    ([("name", (None, "x" * 5000))], 413, "the field name has more than 4096 bytes"),
    ([("name", (None, b"\xff"))], 400, "the field name is not UTF-8"),
  ],
)
def test_forms_beyond_the_limits_are_refused(client, form, status, error):
  response = client.post("/api/predict", files=form)
  assert response.status_code == status
  assert error in response.json()["error"]


@pytest.mark.parametrize("top", ["0", "-1", "many", "1001"])
def test_top_is_a_number(client, top):
  response = client.post(f"/api/predict?top={top}", files=photos_of(PHOTO))
  assert response.status_code == 400
  assert response.json()["error"] == "top must be a whole number from 1 to 1000"


def test_a_form_that_breaks_off_is_refused(client):
  kind = {"content-type": "multipart/form-data; boundary=b"}
  begun = b'--b\r\nContent-Disposition: form-data; name="photos"; filename="a"\r\n\r\nxyz'
  response = client.post("/api/predict", content=begun, headers=kind)
  assert response.json()["error"] == "the form breaks off before its end"
  response = client.post("/api/predict", content=b"nothing of the kind", headers=kind)
  assert "no multipart/form-data" in response.json()["error"]
  kind = {"content-type": "multipart/form-data"}
  assert client.post("/api/predict", content=begun, headers=kind).status_code == 415


def test_no_more_is_read_into_memory_than_is_allowed(workdir):
  """A request without an announced length, of more than the limit."""
  taken = []

  def endless():
    yield b'--b\r\nContent-Disposition: form-data; name="photos"; filename="a"\r\n\r\n'
    for _ in range(200):
      taken.append(1)
      yield b"x" * 1000

  with serving(workdir, limits=Limits(predict_bytes=20_000)) as client:
    response = client.post(
      "/api/predict",
      content=endless(),
      headers={"content-type": "multipart/form-data; boundary=b"},
    )
  assert response.status_code == 413
  assert "are sent at once" in response.json()["error"]


def test_exemplars_are_small_images_made_anew(client, workdir):
  classes = client.get("/api/model").json()["classes"]
  with zipfile.ZipFile(workdir / "model" / "2" / "exemplars.zip") as archive:
    stored = {name: archive.read(name) for name in archive.namelist()}
  for row in classes:
    response = client.get(f"/api/classes/{row['index']}/exemplar")
    assert response.headers["content-type"] == "image/png"
    shown = np.asarray(Image.open(io.BytesIO(response.content)))
    first = min(name for name in stored if name.startswith(f"{row['index']:05d} "))
    np.testing.assert_array_equal(shown, Image.open(io.BytesIO(stored[first])))
  for index in ("4", "99999"):
    response = client.get(f"/api/classes/{index}/exemplar")
    assert response.json() == {"error": f"there is no exemplar of class {index}"}
    assert response.status_code == 404
  assert client.get("/api/classes/-1/exemplar").status_code == 404


def test_without_exemplars_it_answers_all_the_same(workdir):
  (workdir / "model" / "2" / "exemplars.zip").write_bytes(b"PK damaged")
  said = []
  with serving(workdir, said=said) as client:
    assert not any(c["has_exemplar"] for c in client.get("/api/model").json()["classes"])
    assert client.get("/api/classes/0/exemplar").status_code == 404
    assert client.post("/api/predict", files=photos_of(PHOTO)).status_code == 200
  assert "exemplars.zip cannot be read" in said[0]


@pytest.mark.parametrize(
  ("headers", "allowed"),
  [
    ({}, True),  # curl
    ({"origin": "http://localhost"}, True),
    ({"origin": "http://localhost", "sec-fetch-site": "same-origin"}, True),
    ({"origin": "http://evil.example"}, False),
    ({"origin": "null"}, False),
    ({"origin": "http://localhost:9"}, False),
    ({"sec-fetch-site": "cross-site"}, False),
    ({"sec-fetch-site": "same-site"}, False),
    ({"host": "evil.example"}, False),
    ({"host": "evil.example", "origin": "http://evil.example"}, False),
    ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8000"}, True),
    ({"host": "[::1]:8000"}, True),
    ({"host": "models.example", "origin": "https://models.example"}, True),
    ({"host": "127.0.0.1.evil.example"}, False),
    ({"host": "[x"}, False),
  ],
)
def test_other_sites_can_neither_send_nor_read(workdir, headers, allowed):
  with serving(workdir, hosts=["models.example"]) as client:
    for path in ("/api/predict", "/api/learn"):
      response = client.post(path, files=photos_of(PHOTO), headers=headers)
      assert (response.status_code != 403) == allowed
    assert (client.delete("/api/learn", headers=headers).status_code != 403) == allowed
    known = "evil" not in headers.get("host", "") and headers.get("host") != "[x"
    assert (client.get("/api/model", headers=headers).status_code == 200) == known


def test_every_answer_has_the_headers_that_protect_it(client):
  for path in (
    "/",
    "/api",
    "/static/page.js",
    "/api/model",
    "/nothing",
    "/static/../app.py",
  ):
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
  for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static//etc/passwd"):
    assert client.get(path).status_code == 404


def test_pages_load_nothing_from_elsewhere_and_have_no_markup_of_scripts():
  for path in STATIC.iterdir():
    text = path.read_text()
    for word in (
      "https://",
      "innerHTML",
      "insertAdjacent",
      "document.write",
      " onclick",
      "style=",
    ):
      assert word not in text, path.name
    if path.suffix != ".svg":
      assert "http://" not in text, path.name


def test_a_name_that_is_no_unicode_can_be_told(workdir):
  card = json.loads((workdir / "model.json").read_bytes())
  card["class_names"][0] = card["states"][0]["classes"][0] = os.fsdecode(b"caf\xe9")
  (workdir / "model.json").write_text(json.dumps(card))
  with serving(workdir) as client:
    name = client.get("/api/model").json()["classes"][0]["name"]
  assert name == os.fsdecode(b"caf\xe9")


def test_a_model_that_was_changed_is_loaded_and_a_damaged_one_is_not(workdir):
  said = []
  with serving(workdir, said=said) as client:
    path = workdir / "model.json"
    card = json.loads(path.read_bytes())
    path.write_text("{")
    client.answerer.refresh()
    client.answerer.refresh()
    assert [line for line in said if "goes on to answer" in line] == said
    assert len(said) == 1
    assert client.post("/api/predict", files=photos_of(PHOTO)).status_code == 200
    card["class_names"][0] = card["states"][0]["classes"][0] = "renamed"
    path.write_text(json.dumps(card))
    client.answerer.refresh()
    assert client.get("/api/model").json()["classes"][0]["name"] == "renamed"
    # Changed from elsewhere, it is found without being asked.
    card["class_names"][0] = card["states"][0]["classes"][0] = "renamed again"
    path.write_text(json.dumps(card))
    for _ in range(600):
      if client.get("/api/model").json()["classes"][0]["name"] == "renamed again":
        break
      client.portal.call(asyncio.sleep, 0.1)
    assert client.get("/api/model").json()["classes"][0]["name"] == "renamed again"


@pytest.mark.parametrize("error", [RuntimeError, MemoryError])
def test_no_error_ends_the_search_for_a_changed_model(workdir, monkeypatch, error):
  monkeypatch.setattr("ssil_jax.server.app._SECONDS_BETWEEN_LOOKS", 0.01)
  monkeypatch.setattr("ssil_jax.server.answering._SECONDS_UNTIL_RETRY", 0)
  failures = []

  def fails_twice(*args, **options):
    if len(failures) < 2:
      failures.append(1)
      raise error("out of room")
    return load(*args, **options)

  said = []
  with serving(workdir, said=said) as client:
    monkeypatch.setattr("ssil_jax.server.answering.load", fails_twice)
    path = workdir / "model.json"
    card = json.loads(path.read_bytes())
    card["class_names"][0] = card["states"][0]["classes"][0] = "renamed"
    path.write_text(json.dumps(card))
    for _ in range(600):
      if client.get("/api/model").json()["classes"][0]["name"] == "renamed":
        break
      client.portal.call(asyncio.sleep, 0.1)
    assert client.get("/api/model").json()["classes"][0]["name"] == "renamed"
  (line,) = [line for line in said if "goes on to answer" in line]  # said once
  assert line.endswith(f"{error.__name__}: out of room")


def test_a_model_is_not_tried_while_another_one_computes(workdir, monkeypatch):
  """The precision is set for the whole process, and put back in the order of leaving."""
  with serving(workdir) as client:
    alone = []

    def scores(model, pixels):
      alone.append(client.answerer._network.locked())
      return np.zeros((len(pixels), 4)), np.full((len(pixels), 4), 0.25)

    monkeypatch.setattr(TrainedModel, "scores", scores)
    os.utime(workdir / "model.json", ns=(1, 1))
    client.answerer.refresh()
    assert client.post("/api/predict", files=photos_of(PHOTO)).status_code == 200
  assert alone
  assert all(alone)


def test_a_sender_who_is_slow_without_end_is_given_up():
  begun = b'--b\r\nContent-Disposition: form-data; name="photos"; filename="a"\r\n\r\n'
  pieces = itertools.chain([begun], itertools.repeat(b"x"))

  async def trickle():
    await asyncio.sleep(0.001)
    return {"type": "http.request", "body": next(pieces), "more_body": True}

  async def send_slowly():
    kind = (b"content-type", b"multipart/form-data; boundary=b")
    request = Request({"type": "http", "method": "POST", "headers": [kind]}, trickle)
    limits = {"most_photos": 3, "most_bytes": 1 << 40, "limits": Limits()}
    sent = receive(request, PhotosInMemory(), most_seconds=0.05, **limits)
    await asyncio.wait_for(sent, 60)

  with pytest.raises(Problem, match="not all has arrived within 0.05 s") as found:
    asyncio.run(send_slowly())
  assert found.value.status == 408


def test_the_version_is_told(client):
  assert client.get("/api/model").json()["version"] == ssil_jax.__version__


@pytest.mark.parametrize(
  ("classes", "status", "error"),
  [
    ([], 415, "photos are sent as multipart/form-data"),
    ([("", [PHOTO])], 400, "a class has no name: give it one"),
    ([("  ", [PHOTO])], 400, "a class has no name: give it one"),
    ([("a/b", [PHOTO])], 400, "the class name a/b has a slash: write it without"),
    ([("..", [PHOTO])], 400, "the class name .. begins with a dot: write it without"),
    ([(".x", [PHOTO])], 400, "the class name .x begins with a dot: write it without"),
    ([("a\0b", [PHOTO])], 400, "the class name 'a\\x00b' has characters that control"),
    ([("a\u202eb", [PHOTO])], 400, "the class name 'a\\u202eb' has characters that"),
    ([("Test", [PHOTO])], 400, "a class cannot be called Test, for that is a part of"),
    ([("\u732b" * 86, [PHOTO])], 400, "has 258 bytes: 255 are allowed"),
    ([("new", [])], 400, "there are no photos of new: send some"),
    ([("a", [PHOTO]), ("b", [])], 400, "there are no photos of b: send some"),
    ([("\u732b", [PHOTO])], 409, "the model knows \u732b already: choose another name"),
    ([("\u732b\u200d", [PHOTO])], 409, "the model knows \u732b already: choose another"),
    ([("Chat & <B>chien", [PHOTO])], 409, "the model knows chat & <b>chien already"),
    ([("d1\u200b", [PHOTO])], 400, "the class name 'd1\\u200b' has characters that"),
    ([("\u200d", [PHOTO])], 400, "a class has no name: give it one"),
    ([("a", [PHOTO]), ("A", [PHOTO])], 400, "the class names 'a' and 'A' look the same"),
    ([("new", [b"x" * 5001])], 413, "0 has more than the 0 MB allowed"),
  ],
)
def test_what_cannot_be_learnt_is_refused_and_leaves_nothing(
  client, workdir, classes, status, error
):
  response = client.post("/api/learn", files=class_form(*classes))
  assert response.status_code == status
  assert error in response.json()["error"]
  assert client.get("/api/learn").json() == {"status": "idle"}
  assert not [*(workdir / "uploads").glob("*")]


def test_photos_of_no_class_are_refused(client):
  response = client.post("/api/learn", files=photos_of(PHOTO))
  assert (
    response.json()["error"] == "photos come without a class: send its name before them"
  )
  response = client.post("/api/learn", files=[("nam", (None, "x"))])
  assert "there is no field nam" in response.json()["error"]


def test_photos_that_cannot_be_read_are_named_before_anything_is_learnt(client, workdir):
  form = class_form(("new", [PHOTO, TEXT, bomb()]))
  response = client.post("/api/learn", files=form)
  found = check_described("/api/learn", "post", response)
  assert response.status_code == 400
  assert found["error"].startswith("2 of 3 photos cannot be read; nothing was learnt")
  assert [photo["file"] for photo in found["photos"]] == ["1", "2"]
  assert not [*(workdir / "uploads").glob("*")]
