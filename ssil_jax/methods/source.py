"""The source code of a method, as a hash: an edited method is another one.

Results of a method that has changed since must not be taken for its own. Comments and
docstrings do not count.
"""

import ast
import contextlib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import io
import os
import pathlib
import sys
import tokenize
from collections.abc import Iterator

from ssil_jax.methods.registry import get_method

_EQUATIONS = ("losses", "memory", "resnet", "sampling", "schedule")


def source_hash(name: str) -> str:
  """Returns a hash of the code of the method that `--method` names.

  It covers the modules of its functions and settings, and what these import of
  `ssil_jax.methods`, of the package's equations, and of the user's own folder.

  Raises:
    ConfigError: there is no such method.
  """
  is_code = lambda part: inspect.isroutine(part) or inspect.isclass(part)  # noqa: E731
  waiting = [part.__module__ for part in filter(is_code, get_method(name))]
  if ":" in name:
    waiting.append(name.partition(":")[0])
  tops = {module.partition(".")[0] for module in waiting} - {"ssil_jax"}
  roots = {_folder(top) for top in tops}
  paths: dict[str, pathlib.Path] = {}
  while waiting:
    module = waiting.pop()
    if module not in paths and (path := _path(module, roots)):
      paths[module] = path
      waiting += _imported(module, path)
  digest = hashlib.blake2b(digest_size=16)
  for module, path in sorted(paths.items()):
    code = _code(path, path.stat().st_mtime_ns)
    digest.update(f"{module}\n{code}\n".encode())
  return digest.hexdigest()


def _folder(top: str) -> pathlib.Path:
  """Returns the folder with the file of a module, which is that of a package itself."""
  file = importlib.import_module(top).__file__
  return pathlib.Path(os.path.abspath(file or os.curdir)).parent


def _path(module: str, roots: set[pathlib.Path]) -> pathlib.Path | None:
  """Returns the file of an imported module that counts; None for all other names."""
  file = getattr(sys.modules.get(module), "__file__", None)
  if not file or not file.endswith(".py"):
    return None
  path = pathlib.Path(file)
  top, _, rest = module.partition(".")
  if top == "ssil_jax":
    return path if rest in _EQUATIONS or rest.startswith("methods.") else None
  return path if any(path.absolute().is_relative_to(root) for root in roots) else None


def _imported(module: str, path: pathlib.Path) -> Iterator[str]:
  """Yields names of modules, among others, that a module imports."""
  package = sys.modules[module].__package__
  for node in ast.walk(ast.parse(path.read_bytes())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      with contextlib.suppress(ImportError):  # as a file that is in no package tries to
        relative = "." * node.level + (node.module or "")
        base = importlib.util.resolve_name(relative, package)
        yield from (base, *(f"{base}.{alias.name}" for alias in node.names))


@functools.lru_cache(maxsize=256)
def _code(path: pathlib.Path, changed: int) -> str:
  """Returns the lines of a file without comments, docstrings and empty ones.

  Not its syntax tree, which other versions of Python write otherwise.

  Args:
    path: of the file.
    changed: when it was, so that what is remembered of it is not older.
  """
  del changed
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
