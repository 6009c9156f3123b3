"""The source code of a method, as a hash: an edited method is another one.

Results of a method that has changed since must not be taken for its own. Comments and
docstrings do not count.
"""

import ast
import hashlib
import importlib
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
  method = get_method(name)
  modules = {part.__module__ for part in method if inspect.isroutine(part)}
  modules |= {method.settings.__module__}
  if ":" in name:
    modules.add(name.partition(":")[0])
  paths: dict[str, pathlib.Path] = {}
  waiting = sorted(modules)
  roots = {_folder(module) for module in waiting if not _is_ours(module)}
  while waiting:
    module = waiting.pop()
    path = _path(module)
    if module in paths or path is None or not _counts(module, path, roots):
      continue
    paths[module] = path
    waiting += _imported(module, path)
  digest = hashlib.blake2b(digest_size=16)
  for module in sorted(paths):
    digest.update(f"{module}\n{_code(paths[module])}\n".encode())
  return digest.hexdigest()


def _is_ours(module: str) -> bool:
  return module.partition(".")[0] == "ssil_jax"


def _path(module: str) -> pathlib.Path | None:
  """Of an imported module; None for what has no source, and for other names."""
  file = getattr(sys.modules.get(module), "__file__", None)
  return pathlib.Path(file) if file and file.endswith(".py") else None


def _folder(module: str) -> pathlib.Path:
  """That holds the file, or the outermost package, of a user's module."""
  top = importlib.import_module(module.partition(".")[0])
  return pathlib.Path(os.path.abspath(top.__file__ or os.curdir)).parent


def _counts(module: str, path: pathlib.Path, roots: set[pathlib.Path]) -> bool:
  if _is_ours(module):
    _, _, rest = module.partition(".")
    return rest in _EQUATIONS or rest.startswith("methods.")
  return any(path.absolute().is_relative_to(root) for root in roots)


def _imported(module: str, path: pathlib.Path) -> Iterator[str]:
  """Names of modules, among others, that a module imports."""
  package = sys.modules[module].__package__ or ""
  for node in ast.walk(ast.parse(path.read_bytes())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      parents = package.split(".")[: len(package.split(".")) - node.level + 1]
      base = ".".join([*(parents if node.level else []), *filter(None, [node.module])])
      yield base
      yield from (f"{base}.{alias.name}" for alias in node.names)


def _code(path: pathlib.Path) -> str:
  """The lines of a file without comments, docstrings and empty ones."""
  source = path.read_bytes()
  text = source.decode(tokenize.detect_encoding(io.BytesIO(source).readline)[0])
  # As Python does; splitlines would also end lines at form feeds.
  lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
  for token in tokenize.tokenize(io.BytesIO(source).readline):
    if token.type == tokenize.COMMENT:
      row, column = token.start
      lines[row - 1] = lines[row - 1][:column]
  documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
      _take_out(node.body[0], lines)
  return "\n".join(line.rstrip() for line in lines if line.strip())


def _take_out(node: ast.stmt, lines: list[str]) -> None:
  """Leaves what is before and after it in its lines; columns are those of UTF-8."""
  first, last = node.lineno - 1, node.end_lineno - 1
  after = lines[last].encode()[node.end_col_offset :].decode()
  before = lines[first].encode()[: node.col_offset].decode()
  lines[first : last + 1] = [before + after] + [""] * (last - first)
