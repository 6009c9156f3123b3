"""What the comparison prints on the terminal; the script as such: see test_report."""

from written_runs import SEED_ROW, SEED_RUNS, one_state, seed_run, write_run

from ssil_jax.commands import compare


def output_of(tmp_path, capsys, monkeypatch, *workdirs):
  """Lines on a terminal of 80 columns, without runs of spaces."""
  monkeypatch.setenv("COLUMNS", "80")
  flags = [f"--workdir={workdir}" for workdir in workdirs]
  assert compare.main(["compare.py", *flags, f"--output={tmp_path / 'page'}"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert max(len(line) for line in lines if "SS-IL" in line and "run" not in line) <= 80
  return [" ".join(line.split()) for line in lines]


def test_several_seeds_have_a_second_table(tmp_path, capsys, monkeypatch):
  seeds = [seed_run(tmp_path / f"{run['seed']}", **run) for run in SEED_RUNS]
  unfinished = write_run(tmp_path / "ft", results=one_state(method_title="FT"))
  lines = output_of(tmp_path, capsys, monkeypatch, *seeds, unfinished)
  assert lines.index("Comparison") < lines.index("Over seeds")
  assert lines.index("Over seeds") < lines.index(" ".join(SEED_ROW))
  left_out = "Left out of the means over seeds: FT (1 of 2 states), not finished."
  assert left_out in lines
  page = (tmp_path / "page" / "report.html").read_text(encoding="utf-8")
  assert SEED_ROW[2] in page


def test_single_seeds_have_none(tmp_path, capsys, monkeypatch):
  runs = [
    write_run(tmp_path / "a"),
    write_run(tmp_path / "b", method_title="FT"),
  ]
  lines = output_of(tmp_path, capsys, monkeypatch, *runs)
  assert "Comparison" in lines
  assert "Over seeds" not in lines
