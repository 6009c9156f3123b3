"""The source code of a method, as a hash: an edited method is another one.

Results of a method that has changed since must not be taken for its own. Comments and
docstrings do not count.
"""

import ast
import contextlib
import functools
import hashlib
import importlib.machinery
import importlib.util
import io
import pathlib
import sys
import sysconfig
import tokenize
from collections.abc import Iterator

from ssil_jax.methods.registry import get_method

_EQUATIONS = ("losses", "memory", "resnet", "sampling", "schedule")
_STANDARD_LIBRARY = pathlib.Path(sysconfig.get_path("stdlib"))
_LIBRARIES = {"site-packages", "dist-packages"}


def source_hash(name: str) -> str:
  """Returns a hash of the code of the method that `--method` names.

  It covers the modules of its functions and settings, and all that these import, wherever
  it lies, but for libraries; of this package, the methods and their equations. What
  `config` makes of flags, such as milestones, is in the identity of a run as values.
  The code of a module that is loaded is the one that was there at the first call.

  Raises:
    ConfigError: there is no such method.
  """
  waiting = [part.__module__ for part in get_method(name) if callable(part)]
  if ":" in name:
    waiting.append(name.partition(":")[0])
  own = {module.partition(".")[0] for module in waiting} - {"ssil_jax"}
  codes: dict[str, str] = {}
  importlib.invalidate_caches()  # of folders, which may have got files a moment ago
  while waiting:
    module = waiting.pop()
    if module not in codes and (path := _file_of(module)) and _counts(module, path, own):
      codes[module] = _remembered(module, path)
      is_package = path.name == "__init__.py"
      package = module if is_package else module.rpartition(".")[0]
      waiting += _imported(path.read_bytes(), package)
  digest = hashlib.blake2b(digest_size=16)
  for module, code in sorted(codes.items()):
    digest.update(f"{module}\n{code}\n".encode())
  return digest.hexdigest()


def _file_of(module: str) -> pathlib.Path | None:
  """Returns the file of a module, loaded or not; None for what has none, or is no module.

  Nothing is imported.
  """
  top, *rest = module.split(".")
  try:
    spec = importlib.util.find_spec(top)
  except (ImportError, ValueError):  # as of __main__
    return None
  for part in rest:
    folders = spec and spec.submodule_search_locations
    spec = importlib.machinery.PathFinder.find_spec(part, folders) if folders else None
  file = spec and spec.origin
  return pathlib.Path(file) if file and file.endswith(".py") else None


def _counts(module: str, path: pathlib.Path, own: set[str]) -> bool:
  """Returns whether a module is a part of a method; `own` are top-level modules of it."""
  top, _, rest = module.partition(".")
  if top == "ssil_jax":
    return rest in _EQUATIONS or rest.startswith("methods.")
  is_library = _LIBRARIES & {*path.parts} or path.is_relative_to(_STANDARD_LIBRARY)
  return top in own or not is_library


def _remembered(module: str, path: pathlib.Path) -> str:
  """Returns the code of a file: of a loaded module, as it was when first asked for."""
  spec = getattr(sys.modules.get(module), "__spec__", None)  # another one after a reload
  if spec is None:
    return _code(path)
  if not hasattr(spec, "ssil_jax_code"):
    spec.ssil_jax_code = _code(path)
  return spec.ssil_jax_code


@functools.lru_cache(maxsize=1024)
def _imported(code: bytes, package: str) -> tuple[str, ...]:
  """Returns names of modules, among others, that the code of a module imports."""
  names: list[str] = []
  for node in ast.walk(ast.parse(code)):
    if isinstance(node, ast.Import):
      for alias in node.names:
        names += _with_parents(alias.name)
    elif isinstance(node, ast.ImportFrom):
      with contextlib.suppress(ImportError):  # as a file that is in no package tries to
        relative = "." * node.level + (node.module or "")
        base = importlib.util.resolve_name(relative, package)
        names += _with_parents(base)
        names += (f"{base}.{alias.name}" for alias in node.names)
  return tuple(names)


def _with_parents(name: str) -> Iterator[str]:
  """Yields a module and the packages around it, which are imported before it."""
  while name:
    yield name
    name = name.rpartition(".")[0]


def _code(path: pathlib.Path) -> str:
  """Returns the lines of a file without comments, docstrings and empty ones.

  Not its syntax tree, which other versions of Python write otherwise.
  """
  with tokenize.open(path) as file:
    source = file.read()
  lines = source.split("\n")  # splitlines would also end lines at form feeds
  tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
  cuts = [token for token in tokens if token.type == tokenize.COMMENT]
  code = [token for token in tokens if token.type != tokenize.COMMENT]
  # Strings that are statements. The end of the file comes before its first token.
  begins = {"ENDMARKER", "NEWLINE", "NL", "INDENT", "DEDENT"}
  for place, token in enumerate(code):
    if token.type == tokenize.STRING and tokenize.tok_name[code[place - 1].type] in begins:
      after = code[place + 1]
      cuts += [token] if after.type == tokenize.NEWLINE or after.string == ";" else []
  for token in sorted(cuts, key=lambda token: token.start, reverse=True):
    (first, start), (last, end) = token.start, token.end
    lines[first - 1 : last] = [lines[first - 1][:start] + lines[last - 1][end:]]
  return "\n".join(line.rstrip() for line in lines if line.strip())
