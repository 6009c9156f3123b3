"""Writes the page of the paper's parts: ours beside the published, claims, the study."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ssil_jax.errors import DataError
from ssil_jax.paper import claims, plots, protocol, tables
from ssil_jax.paper.found import Found, find
from ssil_jax.paper.protocol import IMAGENET, Cell, Scale
from ssil_jax.reports import page
from ssil_jax.reports.blocks import Block, Section, Table, Text, tables_of
from ssil_jax.reports.blocks import Cell as Shown
from ssil_jax.reports.exports import write_tables

_TITLES = {
  "table1": "Table 1: methods, memory sizes, numbers of states",
  "table2": "Table 2: replay batch size and number of states",
  "figure1": "Figure 1: what FT forgets, and what it confuses",
  "figure2": "Figure 2: decision regions of three classifiers",
  "figure3": "Figure 3: FT and SS-IL, by the gradients of their losses",
  "figure4": "Figure 4: accuracy by classes seen",
  "figure5": "Figure 5: error ratios of all methods",
  "figure6": "Figure 6: epochs, scores, ablation",
  "figure7": "Figure 7: why IL2M corrects little",
}
_FIGURES = {
  "figure1": plots.figure1,
  "figure4": plots.figure4,
  "figure5": plots.figure5,
  "figure6": plots.figure6,
  "figure7": plots.figure7,
}
_OTHER_DATA = (
  "The published numbers are of ImageNet-1K with a ResNet-18 of width 64: other data, a "
  "larger network and far more steps than here. The differences say how far apart the two "
  "scales are, not how good either is; compare rows and columns with each other."
)


def write(
  output: Path,
  parts: Sequence[str],
  scale: Scale,
  cells: Mapping[Path, Cell],
  *,
  notes: Sequence[str] = (),
  exports: Sequence[str] = (),
) -> list[str]:
  """Writes OUTPUT/report.html with its figures and tables.

  Args:
    output: the folder.
    parts: of `protocol.PARTS`, in the order of the page.
    scale: of the runs.
    cells: work directory -> what it is in the paper.
    notes: what is missing, and why, a line each.
    exports: kinds of `exports.KINDS`, for every table of the page, beside CSV.

  Returns:
    Lines for the terminal: what appears of the claims, what was left out, and the page.

  Raises:
    DataError: parts need runs, and none is finished.
    UserError: the page cannot be written.
  """
  found = find(cells)
  left_out = [*notes, *found.left_out]
  if protocol.cells_of(parts) and not found.seeds:
    raise DataError(
      "no run is finished yet, and there is nothing to show: "
      + ("; ".join(left_out) or "rerun the command to resume")
    )
  sections = list(_sections(parts, scale, found, left_out))
  path = page.write_page(
    output / "report.html",
    title=f"The SS-IL paper on {scale.title}",
    kicker="A Simple Class Decision Balancing for Incremental Learning, reproduced",
    sections=sections,
  )
  for kind in exports:
    write_tables(tables_of(sections), kind, output / "tables")
  checked = claims.table(found)
  lines = [f"{verdict:>9}: {text} ({told})" for text, verdict, told, _ in checked.rows]
  return [*lines, *left_out, f"report: {path}"]


def _sections(
  parts: Sequence[str], scale: Scale, found: Found, left_out: Sequence[str]
) -> Iterator[Section]:
  seeds = sorted({s.run.results["seed"] for runs in found.seeds.values() for s in runs})
  blocks: list[Block] = [Text(line, warning=True) for line in left_out]
  checked = claims.table(found)
  if checked.rows:
    yield Section(
      "paper_claims",
      "What appears of the paper's claims",
      [*blocks, checked],
      intro=f"Runs on {scale.title}; seeds: {', '.join(map(str, seeds))}. Numbers with "
      "\N{PLUS-MINUS SIGN} are mean and sample standard deviation over seeds.",
    )
    blocks = []
  for part in parts:
    content = [*blocks, *_blocks(part, scale, found)]
    blocks = []
    if content:
      yield Section(f"paper_{part}", _TITLES[part], content, intro=_intro(part, scale))
  comparable = [
    seed.run
    for cell in dict.fromkeys([*protocol.figure5(), *protocol.figure6()])
    if cell.dataset == IMAGENET and cell.epochs is None
    for seed in found.of(cell)
  ]
  if len(comparable) > 1:
    yield from page.study_sections(comparable, highlight="ssil")
  if found.seeds:
    yield Section("paper_runs", "All runs", [_runs(found)], folded=True)


def _intro(part: str, scale: Scale) -> str:
  return _OTHER_DATA if scale.stands_in and part in ("table1", "table2") else ""


def _blocks(part: str, scale: Scale, found: Found) -> list[Block]:
  if part == "table1":
    return [
      one
      for dataset in scale.datasets
      if any(cell.dataset == dataset for cell in found.seeds)
      for one in tables.table1(found, scale, dataset)
    ]
  if part == "table2":
    return tables.table2(found, scale) if found.seeds else []
  if part == "figure2":
    return plots.figure2()
  if part == "figure3":
    return plots.figure3()
  drawn: list[Block] = list(_FIGURES[part](found, scale))
  return [*drawn, tables.figure6(found, scale)] if part == "figure6" and drawn else drawn


def _runs(found: Found) -> Table:
  """Returns every run with its main numbers, and links to its files."""
  rows = []
  for seeds in found.seeds.values():
    for workdir, run in seeds:
      average = run.results["average"]
      numbers = [average["top1"], average["top5"], average["imbalance"]]
      rows.append(
        [
          Shown(workdir.name, link=workdir / "report.html"),
          *(
            Shown("-") if value is None else Shown(f"{100 * value:.1f}", 100 * value)
            for value in numbers
          ),
          f"{sum(row['train_seconds'] for row in run.results['states']):.0f}",
          Shown("results.json", link=workdir / "results.json"),
        ]
      )
  return Table(
    "paper_runs",
    "Every finished run; averages over states in %",
    ["run", "top-1", "top-5", "imbalance", "training time (s)", "file"],
    rows,
  )
