"""Writes pages: self-contained HTML of sections, with their figures and tables as files."""

import base64
import functools
import hashlib
import os
import re
import urllib.parse
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import jinja2
import markupsafe

from ssil_jax.errors import UserError
from ssil_jax.reports import figures, svg
from ssil_jax.reports.blocks import (
  Figure,
  Section,
  Table,
  as_cell,
  number_columns,
  tables_of,
)
from ssil_jax.reports.exports import write_tables
from ssil_jax.reports.results import Run, load_runs
from ssil_jax.reports.study import heading, study_sections
from ssil_jax.system import write_bytes

__all__ = ["study_sections", "write_page", "write_report", "write_study"]

_NAME = re.compile("[a-z0-9_]+")
_FILE = re.compile(r'href="((?:figures|tables)/[a-z0-9_]+\.(?:svg|png|csv))"')
_LARGE = 2**26  # bytes; no page is


def write_report(workdirs: Sequence[Path], output: Path) -> Path:
  """Writes the page of some runs, in the order of their work directories.

  Of several, those whose files are wrong are named, by a warning and on the page, and left
  out, as long as there is another.

  Returns:
    `output`.

  Raises:
    DataError: a file of the only work directory, or of each, is missing or wrong.
    UserError: there is no work directory, or the page cannot be written.
  """
  runs, skipped = load_runs(workdirs)
  for reason in skipped:
    warnings.warn(f"left out: {reason}", stacklevel=2)
  return write_study(runs, output, skipped=skipped)


def write_study(
  runs: Sequence[Run],
  output: Path,
  *,
  skipped: Sequence[str] = (),
  highlight: str | None = None,
  exports: Sequence[str] = (),
) -> Path:
  """Writes the page of some runs; returns `output`.

  Args:
    runs: at least one.
    output: the page; see `write_page`.
    skipped: why other work directories are left out, a line each.
    highlight: the method in question, by its name; see `study_sections`.
    exports: further kinds of files that each table gets; see `write_tables`.

  Raises:
    UserError: the page cannot be written.
  """
  title, kicker = heading(runs)
  sections = study_sections(runs, highlight=highlight, skipped=skipped)
  output = write_page(output, title=title, sections=sections, kicker=kicker)
  for kind in exports:
    write_tables(tables_of(sections), kind, output.parent / "tables")
  return output


def write_page(
  output: Path, *, title: str, sections: Sequence[Section], kicker: str = ""
) -> Path:
  """Writes a page and, in `figures` and `tables` beside it, what it shows as files.

  Each figure is there as PNG and SVG, each table as CSV. Each file is replaced, even where
  it is a link: to what, someone else may have chosen. Files that only an earlier page there
  had are removed.

  Args:
    output: the HTML file.
    title: of the page.
    sections: in their order; all names on the page are different.
    kicker: a line above the title.

  Returns:
    `output`.

  Raises:
    UserError: the page cannot be written.
    ValueError: two figures, tables or sections have one name, or it is none.
  """
  output = Path(output)
  drawn = [b for section in sections for b in section.blocks if isinstance(b, Figure)]
  tables = list(tables_of(sections))
  for named in (sections, drawn, tables):
    names = [block.name for block in named]
    if len(set(names)) < len(names) or not all(map(_NAME.fullmatch, names)):
      raise ValueError(f"names must be different, of a-z, 0-9 and _: {names}")
  page = _render(output, title, sections, drawn, kicker)
  try:
    folder = output.parent / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for figure in drawn:
      write_bytes(folder / f"{figure.name}.svg", figure.svg)
      write_bytes(folder / f"{figure.name}.png", figure.png)
    write_tables(tables, "csv", output.parent / "tables")
    _remove(output.parent, _files_of(output) - set(_FILE.findall(page)))
    write_bytes(output, page.encode())
  except OSError as error:
    place = error.filename2 or error.filename or output  # the second is what is replaced
    raise UserError(
      f"{place} cannot be written ({error.strerror}): choose another place for the report"
    ) from error
  return output


def _files_of(page: Path) -> set[str]:
  """Returns the files that an earlier page names."""
  if not page.is_file() or page.is_symlink() or page.stat().st_size > _LARGE:
    return set()
  return set(_FILE.findall(page.read_text(encoding="utf-8", errors="replace")))


def _remove(folder: Path, names: Iterable[str]) -> None:
  for path in (folder / name for name in names):
    if not path.parent.is_symlink():  # which may lead to files of others
      path.unlink(missing_ok=True)


def _render(
  output: Path,
  title: str,
  sections: Sequence[Section],
  drawn: Sequence[Figure],
  kicker: str,
) -> str:
  loader = jinja2.PackageLoader("ssil_jax.reports")
  environment = jinja2.Environment(
    loader=loader,
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters |= {
    "as_cell": as_cell,
    "digest": _digest,
    "kind": lambda block: type(block).__name__,
    "lower_first": lambda text: text[:1].lower() + text[1:],
    "relative": functools.partial(_relative, output),
  }
  css, script = (
    loader.get_source(environment, f"page.{kind}")[0] for kind in ("css", "js")
  )
  for name, dark in (("LIGHT", False), ("DARK", True)):
    colors = figures.theme(dark=dark).items()
    css = css.replace(name, " ".join(f"{key}: {value};" for key, value in colors))
  styles = svg.StyleSheet(figures.variables())
  inlined = {
    figure.name: svg.inline(figure.svg, name=figure.name, alt=figure.alt, styles=styles)
    for figure in drawn
  }
  # The texts of <style> and <script> are our own, and none ends its element.
  return environment.get_template("page.html.jinja").render(
    title=title,
    kicker=kicker,
    sections=sections,
    drawn=inlined,
    numbers=number_columns,
    is_sortable=_is_sortable,
    style=markupsafe.Markup(f"\n{css}{styles.css}\n"),
    script=markupsafe.Markup(f"\n{script}"),
  )


def _is_sortable(table: Table) -> bool:
  cells = [as_cell(cell) for row in table.rows for cell in row]
  has_values = any(cell.value is not None for cell in cells)
  return table.sortable and has_values and len(table.rows) > 1


def _digest(text: str) -> str:
  """Returns what a Content-Security-Policy calls a text of the page that it allows."""
  digest = hashlib.sha256(text.encode()).digest()
  return f"sha256-{base64.b64encode(digest).decode('ascii')}"


def _relative(output: Path, link: Path) -> str:
  """Returns the address of a file for a page."""
  path = os.path.relpath(os.path.abspath(link), os.path.abspath(output.parent))
  # Quoted as bytes, for a name may be no text; the colon of a name would end a scheme.
  return urllib.parse.quote(os.fsencode(path))
