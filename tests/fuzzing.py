"""Random input: settings of the tests that try it, and what they share.

Whatever files and images hold, the outcome is a result or a `UserError` (for images an
`ImageError`), never another exception, and what was there before stays as it is. A few
hundred examples, always the same, run with the other tests; more, and new ones, with

  FUZZ_EXAMPLES=5000 python -m pytest -k fuzz

A failure prints the input. It becomes an `@example`, or a row of docs/bad_inputs.md.
"""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from ssil_jax.errors import UserError

EXAMPLES = os.environ.get("FUZZ_EXAMPLES")


def fuzz(few):
  """Settings of a target: `few` examples, always the same ones, or as many as asked for."""
  return settings(
    max_examples=int(EXAMPLES or few),
    derandomize=EXAMPLES is None,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
  )


HOSTILE = (
  "<script>alert(1)</script>",
  "\"><img src=x onerror=alert(1)>'",
  "{{ 7 * 7 }}{% raw %}",
  "$\\frac{",
  "$x^{$_",
  "_hidden",
  "[red]bold[/bold] [link=http://x]",
  "[/]",
  ":warning:",
  "\x1b]0;title\x07\x1b[31m",
  "a\r\nb\x0b\x85\u2028",
  "\x00\x7f\x9b",
  "\u202ertl\u2066\u200f",
  "\ud800\udfff",
  "\U0001f4a3 \u5b9e\u9a8c \u0e01\u0e33",
  "../../../etc/passwd",
  "%s%n{0.__class__}",
  "x" * 5000,
  "e\u0301" * 30,
  "",
)


def result_or_message(function, *args):
  """What a function returns, or None and the message of its UserError."""
  try:
    return function(*args), None
  except UserError as error:
    return None, str(error)


def clean(text):
  """Whether a terminal shows it as it is."""
  return all(line.isprintable() for line in text.split("\n"))


@st.composite
def changed_bytes(draw, data, *, after=0):
  """Some bytes changed, put in, cut out, or cut off, the first ones left as they are."""
  data = bytearray(data)
  for _ in range(draw(st.integers(1, 4))):
    place = draw(st.integers(min(after, len(data)), len(data)))
    change = draw(st.sampled_from(["flip", "set", "insert", "delete", "cut", "copy"]))
    if change == "flip" and place < len(data):
      data[place] ^= 1 << draw(st.integers(0, 7))
    elif change == "set" and place < len(data):
      data[place] = draw(st.sampled_from([0, 1, 127, 128, 255, 10, 34]))
    elif change == "insert":
      data[place:place] = draw(st.binary(min_size=1, max_size=9))
    elif change == "delete":
      del data[place : place + draw(st.integers(1, 50))]
    elif change == "cut":
      del data[place:]
    elif change == "copy":
      start = draw(st.integers(0, len(data)))
      data[place:place] = data[start : start + draw(st.integers(1, 200))]
  return bytes(data)
