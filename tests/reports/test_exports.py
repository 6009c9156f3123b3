"""Tables as files for other programs."""

import csv
import io
import re

import pytest
from fuzzing import HOSTILE

from ssil_jax.errors import UserError
from ssil_jax.reports import exports
from ssil_jax.reports.blocks import Cell, Table

TABLE = Table(
  "results_1",
  "Over 50% of a_b",
  ("method", "seeds (n)", "top-1"),
  [
    ["SS-IL", Cell("3", 3), Cell("42.0 ± 2.0", 41.98, 2.0, 3, best=True, significant=True)],
    ["[FT] | x", Cell("1", 1), Cell("7.5", 7.5, None, 1)],
    ["=1+1", Cell("2", 2), "-"],
  ],
  "p < 0.05",
)


def read_csv(table):
  return list(csv.reader(io.StringIO(exports.as_csv(table))))


def test_csv_has_numbers_and_no_formulas():
  assert read_csv(TABLE) == [
    ["method", "seeds (n)", "top-1", "top-1 (std)", "top-1 (n)"],
    ["SS-IL", "3", "41.98", "2", "3"],
    ["[FT] | x", "1", "7.5", "", "1"],
    ["'=1+1", "2", "", "", ""],
  ]


def test_csv_counts_seeds_where_they_differ():
  cells = [Cell("1 ± 1", 1.0, 1.0, 2), Cell("2 ± 1", 2.0, 1.0, 2), "-"]
  table = TABLE._replace(columns=("", "a"), rows=[["x", cell] for cell in cells])
  assert read_csv(table)[0] == ["", "a", "a (std)"]
  table = table._replace(rows=[*table.rows, ["x", Cell("3", 3.0, None, 1)]])
  assert read_csv(table)[0] == ["", "a", "a (std)", "a (n)"]
  assert [row[-1] for row in read_csv(table)[1:]] == ["2", "2", "", "1"]


def test_latex_is_a_booktabs_table():
  assert exports.as_latex(TABLE) == (
    "% \\usepackage{booktabs}\n"
    "\\begin{table}\n"
    "\\centering\n"
    "\\caption{Over 50\\% of a\\_b. p \\textless{} 0.05}\n"
    "\\label{tab:results_1}\n"
    "\\begin{tabular}{lrr}\n"
    "\\toprule\n"
    "method & seeds (n) & top-1 \\\\\n"
    "\\midrule\n"
    "SS-IL & 3 & \\textbf{42.0 $\\pm$ 2.0}$^{*}$ \\\\\n"
    "{}[FT] \\textbar{} x & 1 & 7.5 \\\\\n"
    "=1+1 & 2 & - \\\\\n"
    "\\bottomrule\n"
    "\\end{tabular}\n"
    "\\end{table}\n"
  )


# What a cell may hold, as TeX reads it: no character is left that means something to it.
LATEX_TEXT = re.compile(
  r"(?:[^\\{}$&%#_~^\n]|\{\}|\\[{}$&%#_]|~|\$(?:\\pm|-|\\times|\\leq|\\geq|\\rightarrow)\$"
  r"|\\(?:text(?:backslash|ascii(?:tilde|circum)|less|greater|bar)|ldots)\{\})*"
)


@pytest.mark.parametrize("export", [exports.as_latex, exports.as_markdown])
def test_hostile_names_are_text(export):
  names = [name.replace("\n", " ").replace("\r", " ") for name in HOSTILE]
  names += [r"\input{/etc/passwd} %", "a & b # $x^2$ _{~} ^^41", "*", "± → …"]
  table = Table("t", "c", ("name", "value"), [[name, Cell("1", 1)] for name in names])
  lines = export(table).split("\n")
  if export is exports.as_latex:
    start = lines.index(r"\midrule") + 1
    cells = [line.removesuffix(r" & 1 \\") for line in lines[start : start + len(names)]]
    assert all(LATEX_TEXT.fullmatch(cell) for cell in cells)
    assert lines[start + len(names)] == r"\bottomrule"
  else:
    rows = [line for line in lines if line.startswith("| ")][2:]
    assert len(rows) == len(names)
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)
    assert not any(re.search(r"(?<!\\)[<`\[]", row) for row in rows)


def test_markdown_has_the_best_in_bold():
  assert exports.as_markdown(TABLE) == (
    "Over 50% of a\\_b\n\n"
    "| method | seeds (n) | top-1 |\n"
    "| --- | ---: | ---: |\n"
    "| SS-IL | 3 | **42.0 ± 2.0**\\* |\n"
    "| \\[FT\\] \\| x | 1 | 7.5 |\n"
    "| =1+1 | 2 | - |\n\n"
    "p \\< 0.05\n"
  )


def test_files_are_named_after_their_tables(tmp_path):
  for kind, ending in (("csv", "csv"), ("latex", "tex"), ("markdown", "md")):
    (path,) = exports.write_tables([TABLE], kind, tmp_path / "tables")
    assert path == tmp_path / "tables" / f"results_1.{ending}"
    assert path.stat().st_size
  with pytest.raises(UserError, match="cannot be written"):
    exports.write_tables([TABLE], "csv", path)
