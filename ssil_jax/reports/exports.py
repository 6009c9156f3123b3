"""Writes tables as files for other programs: CSV, LaTeX and Markdown."""

import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path

from ssil_jax.errors import UserError
from ssil_jax.reports.blocks import Cell, Table, as_cell, number_columns
from ssil_jax.system import write_bytes

_MANY = 8  # columns; a LaTeX table of more is scaled to the width of the text
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet may take for one
_LATEX = {
  "\\": r"\textbackslash{}",
  "{": r"\{",
  "}": r"\}",
  "$": r"\$",
  "&": r"\&",
  "%": r"\%",
  "#": r"\#",
  "_": r"\_",
  "~": r"\textasciitilde{}",
  "^": r"\textasciicircum{}",
  "<": r"\textless{}",
  ">": r"\textgreater{}",
  "|": r"\textbar{}",
  '"': "''",  # the only one that all font encodings have
  "\N{PLUS-MINUS SIGN}": r"$\pm$",
  "\N{MINUS SIGN}": "$-$",
  "\N{MULTIPLICATION SIGN}": r"$\times$",
  "\N{LESS-THAN OR EQUAL TO}": r"$\leq$",
  "\N{GREATER-THAN OR EQUAL TO}": r"$\geq$",
  "\N{RIGHTWARDS ARROW}": r"$\rightarrow$",
  "\N{HORIZONTAL ELLIPSIS}": r"\ldots{}",
  "\N{EN DASH}": "--",
  "\N{NO-BREAK SPACE}": "~",
  "\N{REPLACEMENT CHARACTER}": "?",
}
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~])")


def as_csv(table: Table) -> str:
  """Returns a table as CSV, in RFC 4180's form.

  A cell with a number is that number. A column whose cells have a spread is followed by
  one for it, "NAME (std)", and one whose cells are of different numbers of seeds by these,
  "NAME (n)". What is unknown is empty. Text that a spreadsheet would compute begins with an
  apostrophe.
  """
  rows = [[as_cell(cell) for cell in row] for row in table.rows]
  columns = [[row[place] for row in rows] for place in range(len(table.columns))]
  lines: list[list[str]] = [[] for _ in (table.columns, *rows)]
  for name, cells in zip(table.columns, columns, strict=True):
    values = [_literal(c.text) if c.value is None else _number(c.value) for c in cells]
    made = [(name, values)]
    if any(cell.spread is not None for cell in cells):
      made.append((f"{name} (std)", [_number(cell.spread) for cell in cells]))
    if len({cell.count for cell in cells} - {None}) > 1:
      made.append((f"{name} (n)", [_number(cell.count) for cell in cells]))
    for head, texts in made:
      for line, text in zip(lines, (_literal(head), *texts), strict=True):
        line.append(text)
  file = io.StringIO()
  csv.writer(file).writerows(lines)
  return file.getvalue()


def _literal(text: str) -> str:
  if text == "-":
    return ""
  return f"'{text}" if text.startswith(_FORMULA) else text


def _number(value: float | None) -> str:
  return "" if value is None else f"{value:.10g}"


def as_latex(table: Table) -> str:
  """Returns a table as LaTeX with booktabs; the best of a column is bold.

  pdfLaTeX sets it as long as names are in Latin letters, LuaLaTeX and XeLaTeX with a font
  that has them any.
  """
  numbers = number_columns(table)
  alignment = "".join("lr"[place in numbers] for place in range(len(table.columns)))
  lines = [
    r"\toprule",
    " & ".join(map(latex_text, table.columns)) + r" \\",
    r"\midrule",
    *(" & ".join(map(_latex_cell, row)) + r" \\" for row in table.rows),
    r"\bottomrule",
  ]
  body = "\n".join([rf"\begin{{tabular}}{{{alignment}}}", *lines, r"\end{tabular}"])
  packages = "booktabs"
  if len(table.columns) > _MANY:
    packages += ",graphicx"
    body = f"\\resizebox{{\\linewidth}}{{!}}{{%\n{body}}}"
  caption = ". ".join(filter(None, (table.caption.rstrip(". "), table.note)))
  return (
    f"% \\usepackage{{{packages}}}\n"
    "\\begin{table}\n\\centering\n"
    f"\\caption{{{latex_text(caption)}}}\n\\label{{tab:{table.name}}}\n"
    f"{body}\n\\end{{table}}\n"
  )


def latex_text(text: str) -> str:
  """Returns text as LaTeX shows it, whatever is in it."""
  return "".join(_LATEX.get(char, char) for char in text)


def _latex_cell(cell: str | Cell) -> str:
  cell = as_cell(cell)
  text = latex_text(cell.text)
  # A bracket after the end of the row before would be its argument.
  if text.startswith(("[", "*")):
    text = f"{{}}{text}"
  if cell.best:
    text = rf"\textbf{{{text}}}"
  return text + ("$^{*}$" if cell.significant else "")


def as_markdown(table: Table) -> str:
  """Returns a table as GitHub's Markdown; the best of a column is bold."""
  numbers = number_columns(table)
  rules = ["---:" if place in numbers else "---" for place in range(len(table.columns))]
  rows = [
    list(map(markdown_text, table.columns)),
    rules,
    *(list(map(_markdown_cell, row)) for row in table.rows),
  ]
  lines = [f"| {' | '.join(row)} |" for row in rows]
  texts = [markdown_text(text) for text in (table.caption, table.note) if text]
  return "\n\n".join([texts[0], "\n".join(lines), *texts[1:]]) + "\n"


def markdown_text(text: str) -> str:
  """Returns text as Markdown shows it, whatever is in it."""
  return _MARKDOWN.sub(r"\\\1", text.replace("&", "&amp;"))


def _markdown_cell(cell: str | Cell) -> str:
  cell = as_cell(cell)
  text = markdown_text(cell.text)
  return (f"**{text}**" if cell.best else text) + (r"\*" if cell.significant else "")


KINDS = {"csv": as_csv, "latex": as_latex, "markdown": as_markdown}
_ENDINGS = {"csv": "csv", "latex": "tex", "markdown": "md"}


def write_tables(tables: Iterable[Table], kind: str, folder: Path) -> list[Path]:
  """Writes each table into a file FOLDER/NAME.{csv,tex,md}, whose paths it returns.

  Args:
    tables: with different names.
    kind: csv, latex or markdown.
    folder: is made if it is not there.

  Raises:
    UserError: the files cannot be written.
  """
  written = []
  try:
    folder.mkdir(parents=True, exist_ok=True)
    for table in tables:
      written.append(folder / f"{table.name}.{_ENDINGS[kind]}")
      write_bytes(written[-1], KINDS[kind](table).encode())
  except OSError as error:
    place = error.filename2 or error.filename or folder
    raise UserError(
      f"{place} cannot be written ({error.strerror}): choose another place for the report"
    ) from error
  return written
