"""Reads off a compiled program's text what a TPU's main memory is read and written.

XLA's own `cost_analysis` counts an array in the memory on the chip as one in main memory,
and a copy between the two as three arrays. Here an instruction reads each of its arguments
that are in main memory, whole and once, even if it takes a slice of them alone, and writes
each such result. Arrays are as large as their tiles make them:
bf16[160,3]{0,1:T(8,128)(2,1)} has 8 rows of 256.
"""

import math
import re

_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*?^\}", re.M | re.S)
_INSTRUCTION = re.compile(
  r"^ +(?:ROOT )?%([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*?)\)(.*)$", re.M
)
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_TYPE = re.compile(r"[a-z]+(\d+)\w*")
_WITHOUT_BITS = {"pred": 8, "token": 0, "opaque": 0}
_RETURNS_ARGUMENTS = {"all-gather-start", "collective-permute-start"}  # beside results
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(?:body|(?:branch|true|false)_computations?)=(\{.*?\}|%[\w.\-]+)")
_MOVES_NOTHING = {
  *("parameter", "constant", "tuple", "get-tuple-element", "bitcast"),
  *("conditional", "while", "after-all"),
}


def main_memory_bytes(hlo: str) -> int:
  """Returns what one run of a program moves from and to main memory, in bytes.

  Both branches of a condition count, and a loop as one round.

  Args:
    hlo: of a compiled program, as `jax.stages.Compiled.as_text` returns it.
  """
  computations = {found[2]: found for found in _COMPUTATION.finditer(hlo)}
  (waiting,) = ([name] for name, found in computations.items() if found[1])
  total = 0
  while waiting:
    instructions = _INSTRUCTION.findall(computations[waiting.pop()][0])
    shapes = {name: shape for name, shape, *_ in instructions}
    for _, shape, kind, arguments, attributes in instructions:
      total += _moved(kind, shape, [shapes[name] for name in _NAME.findall(arguments)])
      for names in _CALLED.findall(attributes):
        waiting += _NAME.findall(names)
  return total


def _moved(kind: str, shape: str, arguments: list[str]) -> int:
  if kind in _MOVES_NOTHING or kind.endswith("-done"):
    return 0
  if kind == "copy-start":  # (to, from, context)
    return sum(size for size, is_main in _arrays(shape)[:2] if is_main)
  if kind == "slice-start":  # ((from), to, context): of `from` a part as large as `to`
    (_, from_main), (size, to_main), *_ = _arrays(shape)
    return size * (from_main + to_main)
  if kind in _RETURNS_ARGUMENTS:
    arguments = []
  found = [array for text in (shape, *arguments) for array in _arrays(text)]
  return sum(size for size, is_main in found if is_main)


def _arrays(shape: str) -> list[tuple[int, bool]]:
  """Returns of each array in a shape its bytes, and whether main memory has it.

  Raises ValueError if its type or its place is unknown.
  """
  found = []
  for kind, dimensions, layout, placed in _ARRAY.findall(shape):
    known = _TYPE.fullmatch(kind)
    if not (known or kind in _WITHOUT_BITS) or "S(5)" in placed:  # the host's memory
      raise ValueError(f"{shape}: how large that is, and where, is not known here")
    bits = int(known[1]) if known else _WITHOUT_BITS[kind]
    sizes = [int(size) for size in dimensions.split(",") if size]
    sizes = [sizes[int(axis)] for axis in reversed(layout.split(",")) if axis] or sizes
    tile = re.match(r"T\(([\d,]+)\)", placed)
    if tile:
      rows = [int(size) for size in tile[1].split(",")]
      sizes = [1] * (len(rows) - len(sizes)) + sizes
      for axis, size in enumerate(rows, len(sizes) - len(rows)):
        sizes[axis] = math.ceil(sizes[axis] / size) * size
    found.append((math.prod(sizes) * bits // 8, "S(" not in placed))
  return found
